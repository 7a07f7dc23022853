"""A real HTTP server that serves files as good servers do, with ranges and validators, and breaks when told to."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class File:
    """What lies under one path, and how its server goes about it."""

    data: bytes
    etag: str | None = "auto"
    last_modified: str | None = None
    has_ranges: bool = True
    honours_if_range: bool = True
    has_length: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.etag == "auto":
            self.etag = f'"{hashlib.sha256(self.data).hexdigest()[:16]}"'


@dataclass
class Fault:
    """What goes wrong in one answer; a path's faults are used up one a request, the last one may stay."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """The connection is reset after this many bytes of the body."""
    end: int | None = None
    """The connection is closed in good order after this many bytes."""
    stall: int | None = None
    """After this many bytes nothing comes any more."""
    chunk: int = 1 << 16
    pause_s: float = 0.0
    """Wait after each chunk."""
    stays: bool = False


@dataclass
class Request:
    """One request as the server saw it."""

    path: str
    range: str | None
    if_range: str | None
    authorization: str | None
    sent: int = 0
    """Bytes of the body that were sent."""


class FileServer:
    """Files by path, the faults to come, and the requests that came."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, File] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)

    def serve(self) -> None:
        """Serve until closed."""
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Stop; stalled answers end."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def put(self, path: str, data: bytes, *faults: Fault, **options: object) -> None:
        """Place a file, with the faults of the next answers."""
        self.files[f"/{path}"] = File(data, **options)  # type: ignore[arg-type]
        self.faults[f"/{path}"] = list(faults)

    def asked(self, path: str) -> list[Request]:
        """Return the requests for one file."""
        return [request for request in self.requests if request.path == f"/{path}"]

    def fault(self, path: str) -> Fault:
        """Return what goes wrong this time."""
        faults = self.faults.get(path) or [Fault()]
        return faults[0] if faults[0].stays else faults.pop(0)


@contextmanager
def file_server(tls: ssl.SSLContext | None = None) -> Iterator[FileServer]:
    """Run a server on a port of its own, behind TLS if its certificate is given."""
    server = FileServer(tls)
    server.serve()
    try:
        yield server
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    owner: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        names = ("Range", "If-Range", "Authorization")
        request = Request(self.path, *(self.headers.get(name) for name in names))
        self.owner.requests.append(request)
        fault, file = self.owner.fault(path), self.owner.files.get(path)
        self.close_connection = True
        if fault.status is not None or file is None:
            self.answer(fault.status or 404, fault.headers | {"Content-Length": "0"})
            return
        start = self.start(file)
        if start >= len(file.data) > 0:
            self.answer(416, {"Content-Range": f"bytes */{len(file.data)}", "Content-Length": "0"})
            return
        headers = {"ETag": file.etag, "Last-Modified": file.last_modified} | file.headers | fault.headers
        if file.has_length:
            headers["Content-Length"] = str(len(file.data) - start)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(file.data) - 1}/{len(file.data)}"
        self.answer(206 if start else 200, headers)
        self.send_body(request, file.data[start:], fault)

    def start(self, file: File) -> int:
        """Return where the body begins: not at 0 only if the client's version is the present one."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not found or not file.has_ranges:
            return 0
        wanted = self.headers.get("If-Range")
        is_same = wanted is None or wanted in (file.etag, file.last_modified)
        return int(found[1]) if is_same or not file.honours_if_range else 0

    def answer(self, status: int, headers: dict[str, str | None]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def send_body(self, request: Request, body: bytes, fault: Fault) -> None:
        limits = [limit for limit in (fault.cut, fault.end, fault.stall) if limit is not None]
        body = body[: min(limits, default=len(body))]
        try:
            for begin in range(0, len(body), fault.chunk):
                piece = body[begin : begin + fault.chunk]
                self.wfile.write(piece)
                request.sent += len(piece)
                time.sleep(fault.pause_s)
            if fault.stall is not None:
                self.owner.closing.wait(30)
            if fault.cut is not None:
                # The client shall have read what was sent before the reset throws the rest away.
                time.sleep(0.05)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        except OSError:
            pass
