"""What the tests of downloads share: files to fetch, patience, and one call that fetches."""

from __future__ import annotations

import hashlib
import io
import socket
import zipfile
from pathlib import Path
from typing import Any

from dipole_ray.data.download.catalogue import RemoteFile
from dipole_ray.data.download.fetch import Downloaded, Patience, download
from tests.data.file_server import FileServer

NAME = "pointmaze-medium-navigate-v0.npz"
NPZ = RemoteFile(path=NAME, contents="ogbench")
ZIP = RemoteFile(path="walker/rnd.zip", contents="exorl")
CALM = Patience(timeout_s=20.0, retries=2, first_wait_s=0.01)
PACKED = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
IMPATIENT = Patience(timeout_s=0.7, retries=2, first_wait_s=0.01)


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
