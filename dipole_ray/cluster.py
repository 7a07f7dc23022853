"""Joining a Ray cluster, or starting a Ray on this machine: what would hang or fail with a trace is a sentence here."""

import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dipole_ray.cores import usable_cores
from dipole_ray.errors import ConfigError, ResourcesUnavailable, first_line

ANSWER_S = 10.0  # longest wait for a cluster to answer
# A socket's path holds 107 bytes; Ray puts up to 66 behind its folder: /session_DATE_TIME_MICROSECONDS_PID/sockets/NAME
MAX_FOLDER = 41
MAX_TEMPORARY = 75  # Python puts 32 bytes behind the folder of temporary files: /pymp-RANDOM/listener-RANDOM
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How every HTTP/2 connection begins, as those to Ray do: the preface and empty settings, answered by settings."""

_log = logging.getLogger(__name__)


def start_ray(**options: Any) -> Any:
    """Join the cluster that RAY_ADDRESS or `ray start` names, else start a local Ray with this process's cores.

    Takes further options of `ray.init`, and returns what that does.

    Raises:
        ConfigError: RAY_ADDRESS cannot be an address, or is one of Ray Client's.
        ResourcesUnavailable: The cluster does not answer, or Ray does not start; says why and what to do.
    """
    import ray

    address = cluster_address()
    if not address:
        options["num_cpus"] = usable_cores()
        _shorten_folder()
        _give_token()
    try:
        with _short_names():
            return ray.init(address or "local", **options)
    except Exception as error:  # Ray raises a dozen kinds, down to AssertionError
        ray.shutdown()
        what = "Ray does not start on this machine"
        remedy = f"see that {_ray_folder()} can be written and that memory and /dev/shm are not full"
        if address:
            what = f"the Ray cluster at {address} cannot be joined"
            remedy = f"see that it runs Ray {ray.__version__} and this Python, that RAY_AUTH_MODE and its token fit, "
            remedy += "and that this machine is a node of it (from another one use 'ray job submit')"
        raise ResourcesUnavailable(f"{what} ({type(error).__name__}: {first_line(error)}): {remedy}") from error


def settle_address() -> None:
    """Keep what joins Ray next, such as Tune, from waiting for a dead cluster for many minutes; raises likewise."""
    import ray

    if not ray.is_initialized() and not cluster_address() and noted_address():
        os.environ["RAY_ADDRESS"] = "local"


def refuse_client() -> None:
    """Raise ConfigError where this process has reached its cluster through Ray Client, which hides the nodes."""
    from ray.util.client import ray as client

    if client.is_connected():
        raise ConfigError(_NO_CLIENT.format("this program is connected by Ray Client (ray://)"))


_NO_CLIENT = (
    "{}, which has no access to the cluster's nodes: run on a node of the cluster with the address 'auto', or hand the "
    "command to it with 'ray job submit'"
)


def cluster_address() -> str:
    """Return the address of the cluster to join, which answers; empty where a local Ray is to be started.

    Raises:
        ConfigError: RAY_ADDRESS cannot be an address, or is one of Ray Client's.
        ResourcesUnavailable: Nothing of Ray's answers there within `ANSWER_S`.
    """
    given = os.environ.get("RAY_ADDRESS", "").strip()
    if given == "local":
        return ""
    if given.startswith("ray://"):
        raise ConfigError(_NO_CLIENT.format(f"RAY_ADDRESS or --address is {given}, Ray Client"))
    if given not in ("", "auto"):
        _require_answer(given)
        return given
    noted = noted_address()
    try:
        if noted:
            _require_answer(noted)
    except ResourcesUnavailable as error:
        if given:
            raise
        _log.warning("%s, or remove %s; a Ray of this machine is started instead", error, note_file())
        return ""
    return given or noted


def note_file() -> Path:
    """Return the file in which `ray start` notes the address of its cluster."""
    return _ray_folder() / "ray_current_cluster"


def noted_address() -> str:
    """Return the address that `ray start` noted on this machine; a Ray that died without `ray stop` leaves it."""
    try:
        return note_file().read_text().strip()
    except OSError:
        return ""


def _ray_folder() -> Path:
    """Return the folder of Ray's files."""
    of_system = os.environ.get("TMPDIR", "/tmp") if sys.platform.startswith("linux") else "/tmp"
    return Path(os.environ.get("RAY_TMPDIR", of_system)) / "ray"


def _shorten_folder() -> None:
    """Have Ray put its files into /tmp where the names of its sockets would be longer than the system takes.

    A folder that is given relative to this process's is made absolute, for Ray's processes work elsewhere.
    """
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if given := os.environ.get(name):
            os.environ[name] = str(Path(given).absolute())
    folder = _ray_folder()
    if len(os.fsencode(folder)) > MAX_FOLDER:
        os.environ["RAY_TMPDIR"] = "/tmp"
        _log.warning("%s is too long for the names of Ray's sockets: Ray's files go to /tmp/ray instead", folder)


@contextmanager
def _short_names() -> Iterator[None]:
    """Start children with /tmp for temporary files where the sockets' names would be too long in the folder they have.

    Ray waits a minute for its dashboard, which dies of that, and then goes on without.
    """
    given = os.environ.get("TMPDIR")
    if len(os.fsencode(tempfile.gettempdir())) <= MAX_TEMPORARY:
        yield
        return
    os.environ["TMPDIR"] = "/tmp"
    try:
        yield
    finally:
        os.environ.pop("TMPDIR") if given is None else os.environ.update(TMPDIR=given)


def _give_token() -> None:
    """Give a local Ray its token by the environment where it cannot keep one in the home folder."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        folder = Path("~/.ray").expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        is_kept = os.access(folder, os.W_OK) or (folder / "auth_token").is_file()
    except (OSError, RuntimeError):  # there may be no home folder at all
        is_kept = False
    if not is_kept:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)


def _require_answer(address: str) -> None:
    """Return once a server of Ray's kind answers at `address`; it may be starting, and is asked for `ANSWER_S`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        how = "write HOST:PORT, such as 10.0.0.1:6379, 'auto' on a node of a cluster, or 'local'"
        raise ConfigError(f"RAY_ADDRESS or --address is '{address}', which is no address of Ray's: {how}")
    deadline = time.monotonic() + ANSWER_S
    while (trouble := _trouble((host.strip("[]"), int(port)), deadline)) is not None:
        if time.monotonic() > deadline - 1.0:
            remedy = "start it, correct the address, or unset RAY_ADDRESS to use this machine alone"
            raise ResourcesUnavailable(f"the Ray cluster at {address} does not answer ({trouble}): {remedy}")
        time.sleep(1.0)


def _trouble(place: tuple[str, int], deadline: float) -> str | None:
    """Return what keeps a server from being Ray's, None where it may be: Ray itself would wait for many minutes."""
    try:
        with socket.create_connection(place, timeout=max(1.0, deadline - time.monotonic())) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return None  # it answers nothing before certificates are exchanged
            connection.sendall(HELLO)
            answer = connection.recv(9)
    except OSError as error:
        return first_line(error.strerror or error)
    return None if answer[3:4] == b"\x04" else "what listens there is no control service of Ray's"
