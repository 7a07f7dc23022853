"""A real MLflow server in a process of its own, and a real HTTP proxy before it that breaks in the ways networks do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.chaos.kit import wait_until

FAULTS = ("healthy", "refuse", "error", "latency", "cut_request", "cut_reply", "silent")
LATENCY_S = 30.0
SERVER_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes, for what nobody asks of it here
    # As docs/reliability.md advises for sweeps: with the usual 15 connections, more requests at a time than that wait
    # for each other's second connection until they fail after 30 s.
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "64",
}


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Server:
    """`mlflow server` on SQLite with one worker; it can be killed, stopped, and started again on the same database."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.database = folder / "server.db"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server without waiting for it."""
        store = ["--backend-store-uri", f"sqlite:///{self.database}"]
        store += ["--artifacts-destination", str(self.folder / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), *store]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--workers", "1"],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                env={**os.environ, **SERVER_SETTINGS},
            )

    def wait(self, deadline_s: float = 180.0) -> None:
        """Wait until it answers."""
        wait_until(self._answers, deadline_s, f"mlflow server ({self.folder / 'server.log'})", poll_s=0.2)

    def signal(self, number: int) -> None:
        """Send a signal to the server and its workers."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End it without a word; killing twice does nothing."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Proxy:
    """Passes HTTP on to `upstream`, unless `fault` says otherwise; notes when each metrics batch came, by run.

    `refuse`: nobody listens. `error`: answers 500. `latency`: passes on after 30 s. `cut_request`: hangs up in the
    middle of the request. `cut_reply`: passes the request on and hangs up in the middle of the reply, so that the
    server did what the client believes it did not. `silent`: takes the request and never answers.
    """

    def __init__(self, upstream: Server) -> None:
        self.upstream = upstream
        self.port = free_port()
        self.batches: list[tuple[float, str, int]] = []
        """Arrival time, run id and number of metrics of every `log_batch` request that was passed on."""
        self.requests: list[tuple[float, str]] = []
        """Arrival time and path of every request, passed on or not."""
        self.fault = "healthy"
        self.silent_paths = ""
        """Requests whose path holds this text are never answered (empty: none)."""
        self._closed = threading.Event()
        self._listener: ThreadingHTTPServer | None = None
        self._listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def break_with(self, fault: str) -> None:
        """Change how the proxy behaves from now on."""
        assert fault in FAULTS, fault
        self.fault = fault
        if fault == "refuse":
            self._deafen()
        elif self._listener is None:
            self._listen()

    def close(self) -> None:
        self._closed.set()
        self._deafen()

    def wait_while_open(self, seconds: float | None) -> None:
        """Hold a request back for `seconds`, or until the test is over."""
        self._closed.wait(seconds)

    def _listen(self) -> None:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._listener = _Listener(("127.0.0.1", self.port), handler)
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def _deafen(self) -> None:
        if self._listener is not None:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256


class _Handler(BaseHTTPRequestHandler):
    """One connection from a client."""

    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""

    def do_GET(self) -> None:
        fault, proxy = self.proxy.fault, self.proxy
        length = int(self.headers.get("Content-Length", 0))
        proxy.requests.append((time.monotonic(), self.path))
        if fault == "refuse" or (fault == "cut_request" and self.rfile.read(length // 2) is not None):
            return self._hang_up()
        body = self.rfile.read(length)
        if fault == "silent" or (proxy.silent_paths and proxy.silent_paths in self.path):
            proxy.wait_while_open(None)
            return self._hang_up()
        if fault == "error":
            return self._answer(500, b'{"error_code": "INTERNAL_ERROR", "message": "the disk is on holiday"}')
        if fault == "latency":
            proxy.wait_while_open(LATENCY_S)
        return self._pass_on(body, cut=fault == "cut_reply")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _pass_on(self, body: bytes, *, cut: bool) -> None:
        if self.path.endswith("/log-batch"):
            batch = json.loads(body)
            self.proxy.batches.append((time.monotonic(), batch["run_id"], len(batch.get("metrics", []))))
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream.port, timeout=300)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers))
            reply = upstream.getresponse()
            content = reply.read()
        except (OSError, http.client.HTTPException):
            return self._hang_up()
        finally:
            upstream.close()
        return self._answer(reply.status, content, cut=cut)

    def _answer(self, status: int, content: bytes, *, cut: bool = False) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        """Reset the connection, as a machine that lost power would on its return."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
