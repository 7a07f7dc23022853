"""F3: a host that is down, slow, wrong or cut off costs a mirror or a moment, never a wrong file."""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole_ray.data.download.fetch import Patience
from dipole_ray.errors import DatasetError
from tests.data.downloading import (
    IMPATIENT,
    NAME,
    Log,
    closed_port,
    fetch,
    sha256,
    visible,
)
from tests.data.file_server import Fault, FileServer, file_server

# Mirrors and resuming


def test_a_download_leaves_the_file_and_its_record_and_is_not_repeated(
    tmp_path: Path, server: FileServer, npz: bytes
) -> None:
    server.put(NAME, npz)
    done = fetch(tmp_path, server)
    assert done.path.read_bytes() == npz and done.sha256 == sha256(npz)
    assert "publishes no checksum; verified by its structure: 8004 rows" in done.verified
    assert visible(tmp_path) == {NAME, f"{NAME}.json"}
    assert json.loads((tmp_path / f"{NAME}.json").read_text())["sha256"] == sha256(npz)
    count = len(server.requests)
    again = fetch(tmp_path, server)
    assert again.url is None and "recorded in" in again.verified and len(server.requests) == count


def test_the_next_mirror_is_tried_when_one_lacks_the_file_or_is_down(
    tmp_path: Path, server: FileServer, mirror: FileServer, npz: bytes
) -> None:
    log, down = Log(), closed_port()
    mirror.put(NAME, npz)
    bases = [server.url, down, "http://no-such-host.invalid", mirror.url]
    done = fetch(tmp_path, *bases, log=log)
    assert done.url == f"{mirror.url}/{NAME}" and done.path.read_bytes() == npz
    assert f"{server.url}/{NAME}: HTTP 404 Not Found; going on" in log.text
    assert len(server.asked(NAME)) == 1
    assert f"{down}/{NAME}: refused the connection (3 attempts)" in log.text
    assert "no-such-host.invalid" in log.text and "name cannot be resolved" in log.text


def test_when_no_mirror_helps_each_is_named_with_what_happened_there(
    tmp_path: Path, server: FileServer, mirror: FileServer, npz: bytes
) -> None:
    mirror.put(NAME, npz, Fault(cut=20_000, stays=True))
    with pytest.raises(DatasetError) as error:
        fetch(tmp_path, server, mirror)
    text = str(error.value)
    assert f"{server.url}/{NAME}: HTTP 404" in text and f"{mirror.url}/{NAME}: broke the connection" in text
    kept = (tmp_path / f"{NAME}.part").stat().st_size
    assert f"{kept / 1000:.1f} kB are kept" in text and "the same command continues there" in text
    assert visible(tmp_path) == {f"{NAME}.part", f"{NAME}.part.json"}


def test_a_broken_transfer_asks_only_for_the_rest(tmp_path: Path, server: FileServer, npz: bytes) -> None:
    log = Log()
    server.put(NAME, npz, Fault(cut=100_000), Fault(cut=100_000))
    assert fetch(tmp_path, server, log=log).path.read_bytes() == npz
    ranges = [request.range for request in server.asked(NAME)]
    assert ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert all(request.if_range == server.files[f"/{NAME}"].etag for request in server.asked(NAME)[1:])
    assert "broke the connection; 100.0 kB are here, attempt 2 of 3" in log.text


def test_a_mirror_that_gets_on_is_not_left_however_often_it_breaks(tmp_path: Path, server: FileServer) -> None:
    data = np.random.default_rng(0).bytes(9 << 20)
    server.put(NAME, data, *[Fault(cut=1_100_000)] * 8)
    assert fetch(tmp_path, server, sha256=sha256(data)).path.read_bytes() == data
    assert len(server.asked(NAME)) == 9


def test_a_later_download_continues_and_begins_with_the_mirror_it_has_bytes_of(
    tmp_path: Path, server: FileServer, mirror: FileServer, npz: bytes
) -> None:
    server.put(NAME, npz, Fault(cut=200_000), Fault(status=500, stays=True))
    with pytest.raises(DatasetError, match="HTTP 500"):
        fetch(tmp_path, server)
    server.faults.clear()
    mirror.put(NAME, npz)
    assert fetch(tmp_path, mirror, server).path.read_bytes() == npz
    assert not mirror.requests
    assert server.asked(NAME)[-1].range == "bytes=200000-" and server.asked(NAME)[-1].sent == len(npz) - 200_000


def test_versions_are_never_joined(tmp_path: Path, server: FileServer, npz: bytes, other_npz: bytes) -> None:
    """Whatever the server makes of If-Range, a file that changed between two attempts is fetched anew."""
    assert len(npz) == len(other_npz)
    past, later = formatdate(1e9, usegmt=True), formatdate(1.1e9, usegmt=True)
    versions: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({}, {"honours_if_range": False}),
        ({}, {"honours_if_range": False, "etag": None}),
        ({"etag": None, "last_modified": past}, {"etag": None, "last_modified": later}),
        ({"etag": None, "last_modified": past}, {"etag": None, "last_modified": later, "honours_if_range": False}),
        ({"etag": 'W/"same"'}, {"etag": 'W/"same"'}),
        ({"etag": None}, {"etag": None}),
    ]
    for number, (before, after) in enumerate(versions):
        folder, log = tmp_path / str(number), Log()
        server.put(NAME, npz, Fault(cut=100_000), **before)
        with pytest.raises(DatasetError):
            fetch(folder, server, patience=Patience(retries=0))
        server.put(NAME, other_npz, **after)
        assert fetch(folder, server, log=log).path.read_bytes() == other_npz, (before, after)
        assert server.asked(NAME)[-1].sent == len(npz)
        assert "starting over" in log.text and "CRC" not in log.text, "joined, and found only by the structure"


def test_an_unchanged_date_is_enough_to_continue(tmp_path: Path, server: FileServer, npz: bytes) -> None:
    server.put(NAME, npz, Fault(cut=100_000), etag=None, last_modified=formatdate(1e9, usegmt=True))
    assert fetch(tmp_path, server).path.read_bytes() == npz
    assert server.asked(NAME)[-1].sent == len(npz) - 100_000


def test_a_server_without_ranges_starts_over(tmp_path: Path, server: FileServer, npz: bytes) -> None:
    log = Log()
    server.put(NAME, npz, Fault(cut=100_000), has_ranges=False)
    assert fetch(tmp_path, server, log=log).path.read_bytes() == npz
    assert server.asked(NAME)[-1].sent == len(npz) and "starting over" in log.text


def test_a_partial_file_of_unknown_origin_or_odd_length_is_not_built_upon(
    tmp_path: Path, server: FileServer, npz: bytes
) -> None:
    part, note = tmp_path / f"{NAME}.part", tmp_path / f"{NAME}.part.json"
    server.put(NAME, npz)
    etag, url = server.files[f"/{NAME}"].etag, f"{server.url}/{NAME}"
    origin = {"url": url, "validator": etag, "total": len(npz), "sha256": None}
    for text, size in ((None, 100), ("{", 100), ('{"url": 1}', 100), (json.dumps(origin), len(npz) + 1)):
        part.write_bytes(b"x" * size)
        note.unlink(missing_ok=True)
        if text is not None:
            note.write_text(text)
        assert fetch(tmp_path, server).path.read_bytes() == npz
        for path in list(tmp_path.iterdir()):
            path.unlink()


def test_a_file_joined_wrongly_is_fetched_once_more_in_one_piece(
    tmp_path: Path, server: FileServer, npz: bytes
) -> None:
    """A power cut may leave zeros under a right length: only the checksum or the structure tells."""
    log, part = Log(), tmp_path / f"{NAME}.part"
    server.put(NAME, npz, Fault(cut=100_000))
    with pytest.raises(DatasetError):
        fetch(tmp_path, server, patience=Patience(retries=0))
    part.write_bytes(bytes(100_000))
    assert fetch(tmp_path, server, log=log).path.read_bytes() == npz
    assert [request.range for request in server.asked(NAME)][1:] == ["bytes=100000-", None]


# Slow, silent and lying servers


def test_a_stalled_server_is_named_and_left_for_the_next(
    tmp_path: Path, server: FileServer, mirror: FileServer, npz: bytes
) -> None:
    log = Log()
    server.put(NAME, npz, Fault(stall=50_000, stays=True))
    mirror.put(NAME, npz)
    begin = time.monotonic()
    assert fetch(tmp_path, server, mirror, log=log, patience=IMPATIENT).path.read_bytes() == npz
    assert time.monotonic() - begin < 10  # 0.7 s of silence, and what a loaded machine adds
    assert f"{server.url}/{NAME}: sent nothing for 0.7 s; going on" in log.text and len(server.asked(NAME)) == 1


def test_a_server_that_stalls_is_continued_where_there_is_no_other(
    tmp_path: Path, server: FileServer, npz: bytes
) -> None:
    server.put(NAME, npz, Fault(stall=50_000))
    assert fetch(tmp_path, server, patience=IMPATIENT).path.read_bytes() == npz
    assert server.asked(NAME)[-1].range == "bytes=50000-"


def test_a_server_that_accepts_and_never_answers_is_a_stalled_one(
    tmp_path: Path, mirror: FileServer, npz: bytes
) -> None:
    mirror.put(NAME, npz)
    log = Log()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        base = f"http://127.0.0.1:{mute.getsockname()[1]}"
        assert fetch(tmp_path, base, mirror, log=log, patience=IMPATIENT).path.read_bytes() == npz
    assert f"{base}/{NAME}: sent nothing for 0.7 s" in log.text


def test_a_slow_server_that_moves_is_waited_for(tmp_path: Path, server: FileServer, npz: bytes) -> None:
    data = npz[:4000]
    server.put(NAME, data, Fault(chunk=200, pause_s=0.1))
    begin = time.monotonic()
    done = fetch(tmp_path, server, sha256=sha256(data), patience=Patience(timeout_s=1.5))
    assert done.path.read_bytes() == data and time.monotonic() - begin > 1.9
    assert len(server.asked(NAME)) == 1


def test_a_body_shorter_than_its_content_length_is_found(
    tmp_path: Path, server: FileServer, mirror: FileServer, npz: bytes
) -> None:
    log = Log()
    server.put(NAME, npz, Fault(end=100_000), Fault(end=0, stays=True))
    mirror.put(NAME, npz)
    assert fetch(tmp_path, server, mirror, log=log).path.read_bytes() == npz
    assert f"the body ended at byte 100000 of {len(npz)} (3 attempts)" in log.text


def test_a_body_without_length_is_judged_by_its_structure(
    tmp_path: Path, server: FileServer, mirror: FileServer, npz: bytes
) -> None:
    log = Log()
    server.put(NAME, npz, Fault(end=100_000), has_length=False)
    mirror.put(NAME, npz, has_length=False)
    assert fetch(tmp_path, server, mirror, log=log).path.read_bytes() == npz
    assert "is not a whole .npz file" in log.text


def test_passing_errors_are_retried_and_final_ones_are_not(
    tmp_path: Path, server: FileServer, mirror: FileServer, npz: bytes
) -> None:
    server.put(NAME, npz, Fault(status=503), Fault(status=500))
    assert fetch(tmp_path / "a", server).path.read_bytes() == npz
    mirror.put(NAME, npz)
    final = (
        Fault(status=403),
        Fault(status=503, headers={"Retry-After": "3600"}),
        Fault(headers={"Content-Encoding": "gzip"}),
    )
    for number, fault in enumerate(final):
        server.put(NAME, npz, fault)
        count, log = len(server.requests), Log()
        assert fetch(tmp_path / str(number), server, mirror, log=log).url == f"{mirror.url}/{NAME}"
        assert len(server.requests) == count + 1, log.text


def test_what_a_server_asks_for_is_waited(tmp_path: Path, server: FileServer, npz: bytes) -> None:
    log = Log()
    server.put(NAME, npz, Fault(status=429, headers={"Retry-After": "1"}))
    begin = time.monotonic()
    fetch(tmp_path, server, log=log)
    assert time.monotonic() - begin >= 1 and "attempt 2 of 3 in 1 s" in log.text


# Redirects and credentials


def test_redirects_stay_on_http(tmp_path: Path, server: FileServer, mirror: FileServer, npz: bytes) -> None:
    secret = tmp_path / "secret.npz"
    secret.write_bytes(npz)
    mirror.put(NAME, npz)
    wrong = {secret.as_uri(): "a file:", "ftp://127.0.0.1/x": "a ftp:", "data:,x": "a data:", "http://[": "no valid"}
    for location, what in wrong.items():
        log = Log()
        server.put(NAME, npz, Fault(status=302, headers={"Location": location}))
        assert fetch(tmp_path / "out", server, mirror, log=log).url == f"{mirror.url}/{NAME}"
        assert f"{server.url}/{NAME}: redirects to {what} address, not followed; going on" in log.text
        for path in (tmp_path / "out").iterdir():
            path.unlink()
    server.put(NAME, npz, Fault(status=302, headers={"Location": f"/{NAME}"}, stays=True))
    with pytest.raises(DatasetError, match="redirected more than 5 times"):
        fetch(tmp_path, server)
    server.put(NAME, npz, Fault(status=307, headers={"Location": f"{mirror.url}/{NAME}?token=1"}))
    assert fetch(tmp_path, server).path.read_bytes() == npz


def self_signed(folder: Path) -> Path:
    """Write a key and a certificate for 127.0.0.1 that no authority has signed."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    authority = x509.BasicConstraints(ca=True, path_length=None)
    made = builder.add_extension(host, critical=True).add_extension(authority, critical=True).sign(key, hashes.SHA256())
    encodings = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = folder / "server.pem"
    path.write_bytes(key.private_bytes(*encodings) + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_certificate_is_checked_and_https_is_not_left(
    tmp_path: Path, server: FileServer, npz: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, tls = self_signed(tmp_path), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    server.put(NAME, npz)
    with file_server(tls) as secure:
        secure.put(
            NAME, npz, Fault(cut=100_000), Fault(), Fault(status=301, headers={"Location": f"{server.url}/{NAME}"})
        )
        with pytest.raises(DatasetError, match=r"its certificate is not accepted .*SSL_CERT_FILE"):
            fetch(tmp_path / "a", secure)
        assert not secure.requests
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(tmp_path / "a", secure).path.read_bytes() == npz
        assert secure.asked(NAME)[1].range == "bytes=100000-"
        with pytest.raises(DatasetError, match="redirects from https to plain http, not followed"):
            fetch(tmp_path / "b", secure)
    assert not server.requests


def test_credentials_go_to_their_own_host_only_and_are_never_shown(
    tmp_path: Path, server: FileServer, mirror: FileServer, npz: bytes
) -> None:
    log, base = Log(), f"http://user:s%40fe@127.0.0.1:{server.port}/data?sig=s3cret"
    path = f"data/{NAME}"
    server.put(path, npz, Fault(status=302, headers={"Location": f"/moved/{NAME}?sig=s3cret"}, stays=True))
    server.put(
        f"moved/{NAME}", npz, Fault(status=302, headers={"Location": f"{mirror.url}/{NAME}?sig=s3cret"}, stays=True)
    )
    mirror.put(NAME, npz, Fault(cut=1000), Fault(status=404))
    with pytest.raises(DatasetError) as error:
        fetch(tmp_path, base, log=log)
    sent = [request.authorization for request in server.requests[:2]]
    assert sent == ["Basic dXNlcjpzQGZl"] * 2 and server.requests[0].path == f"/{path}?sig=s3cret"
    assert [request.authorization for request in mirror.requests] == [None] * len(mirror.requests)
    told = log.text + str(error.value) + (tmp_path / f"{NAME}.part.json").read_text()
    assert f"{server.url}/{path}" in told and not any(word in told for word in ("s3cret", "s%40fe", "user"))
