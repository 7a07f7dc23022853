"""What was downloaded is verified before anybody sees it; the machine's own troubles lose nothing; names, addresses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole_ray.data.download.catalogue import OFFICIAL, base_urls, dataset_names, dataset_of, remote_files
from dipole_ray.errors import ConfigError, DatasetError
from tests.data.downloading import (
    NAME,
    PACKED,
    ZIP,
    Log,
    archive,
    fetch,
    sha256,
    visible,
)
from tests.data.dying import die_at
from tests.data.file_server import Fault, FileServer

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
    server.put(NAME, npz, Fault(chunk=30_000, pause_s=0.25))
    logs, done = [Log(), Log()], []
    threads = [threading.Thread(target=lambda log=log: done.append(fetch(tmp_path, server, log=log))) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked(NAME)) == 1 and sorted(item.url is None for item in done) == [False, True]
    assert sum(f"{NAME}: waiting for process {os.getpid()}, which" in log.text for log in logs) == 1


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
    assert len(names) == len(set(names)) == 82 and sum(name.startswith("visual-") for name in names) == 35
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
        ("ogbench", "visual-cube-singel-play-v0", "'visual-cube-single-play-v0'"),
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
