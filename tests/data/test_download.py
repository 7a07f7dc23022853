"""F3: a host that is down, slow, wrong or cut off costs a mirror or a moment, never a wrong file."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole_ray.data.download.catalogue import OFFICIAL, RemoteFile, base_urls, dataset_names, dataset_of, remote_files
from dipole_ray.data.download.fetch import Downloaded, Patience, download
from dipole_ray.errors import ConfigError, DatasetError
from tests.data.dying import die_at
from tests.data.file_server import Fault, FileServer, file_server
from tests.synthetic import ogbench_arrays, write_ogbench

NAME = "pointmaze-medium-navigate-v0.npz"
NPZ = RemoteFile(path=NAME, contents="ogbench")
ZIP = RemoteFile(path="walker/rnd.zip", contents="exorl")
CALM = Patience(timeout_s=20.0, retries=2, first_wait_s=0.01)
PACKED = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
IMPATIENT = Patience(timeout_s=0.7, retries=2, first_wait_s=0.01)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture
def mirror() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture(scope="session")
def npz(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an OGBench file of some 240 kB."""
    arrays = ogbench_arrays(np.random.default_rng(0), [2000] * 4, 2, 2)
    return write_ogbench(tmp_path_factory.mktemp("npz") / NAME, arrays).read_bytes()


@pytest.fixture(scope="session")
def small_npz(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an OGBench file of some 3 kB."""
    arrays = ogbench_arrays(np.random.default_rng(2), [20], 2, 2)
    return write_ogbench(tmp_path_factory.mktemp("npz") / NAME, arrays).read_bytes()


@pytest.fixture(scope="session")
def other_npz(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return another file of the same length."""
    arrays = ogbench_arrays(np.random.default_rng(1), [2000] * 4, 2, 2)
    return write_ogbench(tmp_path_factory.mktemp("npz") / NAME, arrays).read_bytes()


class Log(list[str]):
    """What the user was told."""

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self)


def fetch(
    folder: Path, *servers: FileServer | str, file: RemoteFile = NPZ, log: Log | None = None, **options: Any
) -> Downloaded:
    bases = [server if isinstance(server, str) else server.url for server in servers]
    say = (Log() if log is None else log).append
    return download(file, bases, folder, say=say, **{"patience": CALM} | options)


def archive(members: dict[str, bytes], **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return stream.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}


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


# Checksums


def test_a_wrong_file_is_refused_and_the_next_mirror_asked(
    tmp_path: Path, server: FileServer, mirror: FileServer, npz: bytes, other_npz: bytes
) -> None:
    log = Log()
    server.put(NAME, other_npz)
    mirror.put(NAME, npz)
    done = fetch(tmp_path, server, mirror, log=log, sha256=sha256(npz))
    assert done.path.read_bytes() == npz and done.verified == "its SHA-256 is as given by you"
    assert f"its SHA-256 is {sha256(other_npz)} and not {sha256(npz)} as given by you; going on" in log.text
    assert len(server.requests) == 1


def test_a_file_that_is_wrong_everywhere_is_nowhere(tmp_path: Path, server: FileServer, other_npz: bytes) -> None:
    server.put(NAME, other_npz)
    with pytest.raises(DatasetError, match="wrong checksum"):
        fetch(tmp_path, server, sha256="0" * 64)
    assert visible(tmp_path) == set()


@pytest.mark.parametrize("form", ["bare", "plain", "binary", "sums", "tagged"])
def test_a_published_checksum_is_used(
    tmp_path: Path, server: FileServer, mirror: FileServer, npz: bytes, other_npz: bytes, form: str
) -> None:
    sums = {
        "bare": (f"{NAME}.sha256", "{}\n"),
        "plain": (f"{NAME}.sha256", "{}  " + NAME),
        "binary": (f"{NAME}.sha256", "{} *./" + NAME),
        "sums": ("SHA256SUMS", "0" * 64 + "  other.npz\n{}  " + NAME + "\n"),
        "tagged": ("SHA256SUMS", "SHA256 (" + NAME + ") = {}\n"),
    }
    name, text = sums[form]
    log = Log()
    for host, data in ((server, other_npz), (mirror, npz)):
        host.put(NAME, data)
        host.put(name, text.format(sha256(npz).upper() if form == "bare" else sha256(npz)).encode())
    done = fetch(tmp_path, server, mirror, log=log)
    assert done.path.read_bytes() == npz and f"published in {name} beside it" in done.verified
    assert "wrong checksum" in log.text


def test_a_checksum_for_other_files_or_a_page_instead_is_none(tmp_path: Path, server: FileServer, npz: bytes) -> None:
    server.put(NAME, npz)
    server.put(f"{NAME}.sha256", b"<html>" + b"0" * 64 + b"</html>")
    server.put("SHA256SUMS", b"0" * 64 + b"\n" + b"0" * 64 + b"  other.npz\n")
    assert "its server publishes no checksum; verified by its structure" in fetch(tmp_path, server).verified


def test_a_checksum_that_cannot_be_asked_for_is_said_to_be_so(tmp_path: Path, server: FileServer, npz: bytes) -> None:
    server.put(NAME, npz)
    server.put(f"{NAME}.sha256", b"", Fault(status=500, stays=True))
    assert "its checksum could not be asked for (HTTP 500" in fetch(tmp_path, server).verified


def test_the_checksum_that_hugging_face_names_in_its_redirect_is_used(
    tmp_path: Path, server: FileServer, mirror: FileServer, npz: bytes, other_npz: bytes
) -> None:
    mirror.put("blob", npz)
    for data in (npz, other_npz):
        location = {"Location": f"{mirror.url}/blob?X-Signature=1", "X-Linked-ETag": f'"{sha256(data)}"'}
        server.put(NAME, b"", Fault(status=302, headers=location, stays=True))
        if data is npz:
            assert fetch(tmp_path / "a", server).verified == "its SHA-256 is as named by its server"
        else:
            with pytest.raises(DatasetError, match="wrong checksum"):
                fetch(tmp_path / "b", server)


def test_a_recorded_checksum_holds_for_later_downloads(
    tmp_path: Path, server: FileServer, npz: bytes, other_npz: bytes
) -> None:
    server.put(NAME, npz)
    path = fetch(tmp_path, server).path
    path.unlink()
    server.put(NAME, other_npz)
    with pytest.raises(DatasetError, match=rf"as recorded in {NAME}.json on 20.*\n.*remove .*{NAME}.json"):
        fetch(tmp_path, server)
    assert not path.exists()
    assert fetch(tmp_path, server, sha256=sha256(other_npz)).path.read_bytes() == other_npz
    assert "recorded" in fetch(tmp_path, server).verified


def test_a_damaged_file_at_the_final_name_is_set_aside_and_replaced(
    tmp_path: Path, server: FileServer, npz: bytes
) -> None:
    server.put(NAME, npz)
    path, log = fetch(tmp_path, server).path, Log()
    damaged = npz[:1000] + bytes([npz[1000] ^ 1]) + npz[1001:]
    for has_record in (True, False):
        path.write_bytes(damaged)
        if not has_record:
            (tmp_path / f"{NAME}.json").unlink()
        assert fetch(tmp_path, server, log=log).path.read_bytes() == npz
        assert (tmp_path / f"{NAME}.refused").read_bytes() == damaged
    assert "wrong checksum" in log[0] and "Bad CRC-32" in log[1]


def test_a_file_that_came_another_way_is_checked_and_taken(tmp_path: Path, server: FileServer, npz: bytes) -> None:
    (tmp_path / NAME).write_bytes(npz)
    (tmp_path / f"{NAME}.part.json").write_text("{}")
    done = fetch(tmp_path, server)
    assert visible(tmp_path) == {NAME, f"{NAME}.json"}
    assert done.url is None and "no checksum of it is known; verified by its structure" in done.verified
    assert not server.requests and json.loads((tmp_path / f"{NAME}.json").read_text())["sha256"] == sha256(npz)


# Structure, where no checksum is known


def test_what_is_no_ogbench_file_is_refused(tmp_path: Path, server: FileServer, npz: bytes) -> None:
    objects, lacking = io.BytesIO(), io.BytesIO()
    np.savez(objects, observations=np.array([{}], dtype=object), actions=np.zeros(1), terminals=np.zeros(1))
    np.savez(lacking, observations=np.zeros((2, 2), np.float32))
    wrong = {
        b"<html>moved</html>": "not a whole .npz file",
        npz[:-1000]: "not a whole .npz file",
        npz[:5000] + bytes([npz[5000] ^ 4]) + npz[5001:]: "Bad CRC-32",
        objects.getvalue(): "holds Python objects",
        lacking.getvalue(): "'actions' is missing",
        b"": "not a whole .npz file",
    }
    for data, reason in wrong.items():
        server.put(NAME, data)
        with pytest.raises(DatasetError, match=reason):
            fetch(tmp_path, server)
        assert visible(tmp_path) == set()


def test_an_exorl_archive_is_checked_and_kept_as_it_is(tmp_path: Path, server: FileServer) -> None:
    episodes = {f"buffer/episode_{i:06}_1000.npz": bytes(2000) for i in range(3)}
    good = archive(episodes | {"video/0.mp4": b"film"}, compression=zipfile.ZIP_DEFLATED)
    server.put(ZIP.path, good)
    done = fetch(tmp_path, server, file=ZIP)
    assert done.path == tmp_path / "walker" / "rnd.zip" and done.path.read_bytes() == good
    assert "3 episodes, each as its CRC-32 says" in done.verified
    link = zipfile.ZipInfo("buffer/link")
    link.external_attr = 0o120777 << 16
    linked = io.BytesIO(good)
    with zipfile.ZipFile(linked, "a") as out:
        out.writestr(link, "/etc/passwd")
    wrong = {
        archive(episodes | {"../../evil.npz": b""}): "'../../evil.npz', which would be unpacked elsewhere",
        archive(episodes | {"/etc/evil": b""}): "unpacked elsewhere",
        linked.getvalue(): "unpacked elsewhere",
        archive({"readme.txt": b"x"}): "no ExORL archive",
        archive({"buffer/episode_0_1.npz": bytes(257 << 20)}, **PACKED): "decompression bomb",
    }
    for number, (data, reason) in enumerate(wrong.items()):
        server.put(ZIP.path, data)
        with pytest.raises(DatasetError, match=reason):
            fetch(tmp_path / str(number), server, file=ZIP)


# The machine's own troubles


def test_two_downloads_at_once_fetch_once(tmp_path: Path, server: FileServer, npz: bytes) -> None:
    server.put(NAME, npz, Fault(chunk=30_000, pause_s=0.05))
    logs, done = [Log(), Log()], []
    threads = [threading.Thread(target=lambda log=log: done.append(fetch(tmp_path, server, log=log))) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked(NAME)) == 1 and sorted(item.url is None for item in done) == [False, True]
    assert sum("another process downloads it; waiting" in log.text for log in logs) == 1


def test_killed_at_any_moment_a_wrong_file_is_never_there_and_the_next_command_finishes(
    tmp_path: Path, server: FileServer, small_npz: bytes
) -> None:
    """SIGKILL between two lines, seeded, and more closely towards the end, where the file gets its name."""
    seen: set[str] = set()

    def survives(line: int) -> bool:
        folder = tmp_path / str(line)
        server.put(NAME, small_npz, Fault(cut=1000))
        _, is_killed = die_at(lambda _done: fetch(folder, server) and None, line)
        assert not (folder / NAME).exists() or (folder / NAME).read_bytes() == small_npz
        seen.update(visible(folder) if folder.exists() else ())
        server.put(NAME, small_npz)
        assert fetch(folder, server).path.read_bytes() == small_npz
        assert visible(folder) == {NAME, f"{NAME}.json"}
        return not is_killed

    end = next(line for line in range(7, 10_000, 140) if survives(line))
    for line in range(end - 140, end, 12):
        survives(line)
    assert end > 500 and seen == {f"{NAME}.part", f"{NAME}.part.json", f"{NAME}.json", NAME}


FULL = """
import sys, pathlib
from dipole_ray.data.download.catalogue import RemoteFile
from dipole_ray.data.download.fetch import download
download(RemoteFile(path="x.npz", contents="ogbench"), [sys.argv[1]], pathlib.Path(sys.argv[2]), sha256=sys.argv[3])
"""


def test_a_full_disk_is_one_clear_error_and_the_partial_file_is_kept(tmp_path: Path, server: FileServer) -> None:
    data = np.random.default_rng(0).bytes(3 << 20)
    mount = f"mount -t tmpfs -o size=2m tmpfs {tmp_path}"
    script = f"{mount} && '{sys.executable}' -c '{FULL}' $0 {tmp_path} {sha256(data)}; ls -l {tmp_path}"
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    for has_length in (True, False):
        server.put("x.npz", data, has_length=has_length)
        command = ["unshare", "-Urm", "sh", "-c", script, server.url]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
        error = [line for line in shown.stderr.splitlines() if "DatasetError" in line][-1]
        assert "x.npz: cannot be written (" in error and "what arrived is kept; free some space" in error
        sizes = {line.split()[-1]: int(line.split()[4]) for line in shown.stdout.splitlines()[1:]}
        if has_length:
            assert "3.1 MB are still to come and 2." in error and sizes["x.npz.part"] == 0
        else:
            assert sizes["x.npz.part"] > 1_500_000
        assert "x.npz" not in sizes


def test_a_folder_that_cannot_be_written_is_said_to_be_so(tmp_path: Path, server: FileServer, npz: bytes) -> None:
    server.put(NAME, npz)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot be written .*choose another folder with --out"):
        fetch(tmp_path / "file", server)
    assert not server.requests


# Names and addresses


def test_the_names_are_those_of_ogbench_and_exorl() -> None:
    from dipole_ray.envs.registry import ogbench_ids

    names, ids = dataset_names("ogbench"), set(ogbench_ids())
    assert len(names) == len(set(names)) == 47
    assert {"-singletask-".join(name.rsplit("-", 1)) for name in names} <= ids
    assert len(dataset_names("exorl")) == 54 and "walker/rnd" in dataset_names("exorl")
    assert dataset_of("ogbench", "cube-double-play-singletask-task2-v0") == "cube-double-play-v0"
    assert dataset_of("ogbench", "antmaze-large-navigate-oraclerep-v0") == "antmaze-large-navigate-v0"
    files = [file.path for file in remote_files("ogbench", "scene-play-v0")]
    assert files == ["scene-play-v0.npz", "scene-play-v0-val.npz"]
    assert [file.path for file in remote_files("exorl", "jaco/icm_apt")] == ["jaco/icm_apt.zip"]


@pytest.mark.parametrize(
    ("source", "name", "remedy"),
    [
        ("ogbench", "pointmaze-mediun-navigate-v0", "'pointmaze-medium-navigate-v0'"),
        ("ogbench", "antmaze-giant-explore-v0", "nearest: 'antmaze-"),
        ("ogbench", "visual-cube-single-play-v0", "images"),
        ("ogbench", "cube-double-play-100m-v0", "'cube-double-play-v0'"),
        ("ogbench", "../../etc/passwd", "no ogbench dataset"),
        ("exorl", "walker-rnd", "'walker/rnd'"),
        ("exorl", "hopper/rnd", "nearest"),
    ],
)
def test_an_unknown_name_names_the_nearest(source: Any, name: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        dataset_of(source, name)


def test_base_urls_come_from_the_command_then_the_environment_then_the_host() -> None:
    environ = {"DIPOLE_EXORL_URL": "http://b http://c"}
    assert base_urls("exorl", ["https://a/x"], environ) == ["https://a/x", "http://b", "http://c", OFFICIAL["exorl"]]
    assert base_urls("exorl", [OFFICIAL["exorl"]], {}) == [OFFICIAL["exorl"]]
    for wrong in ("file:///etc", "ftp://a", "a.org/x", "http://", "http://user:secret@a:port", "http://["):
        with pytest.raises(ConfigError, match="no address of a web server") as error:
            base_urls("ogbench", [wrong], {})
        assert "secret" not in str(error.value)
