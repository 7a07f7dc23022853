"""The nodes of a Ray cluster on this one machine, each by `ray start`, and what lives on them; for `one_machine.py`.

As root each node is in a network namespace of its own and shares nothing with the others but a network and the disk;
elsewhere they are processes with addresses 127.0.0.11 to 127.0.0.13.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
NAMES = ("head", "worker1", "worker2")
ACTORS = {
    "DIPOLEEnvRunner": "rollout worker",
    "WrappedExecutable": "learner",
    "Replay": "replay",
    "SweepTrial": "trial",
}
"""What the processes of a run are called by Ray, and here."""
START_S = 180.0


@dataclass
class Node:
    """One node: `prefix` is what runs a command on it."""

    name: str
    address: str
    prefix: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    def pids(self) -> list[int]:
        """Return all processes of the node."""
        return [] if self.process is None else [self.process.pid, *descendants(self.process.pid)]

    def actors(self) -> Counter[str]:
        """Return how many of the run's actors of each kind live here."""
        found: Counter[str] = Counter()
        for pid in self.pids():
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
                found.update(kind for name, kind in ACTORS.items() if title.startswith("ray::") and name in title)
        return found

    def kill(self) -> None:
        """End every process at once and without a word, as a machine that loses its power."""
        end(self.pids())
        self.process = None


@dataclass(frozen=True)
class Ports:
    """The two ports of the head that others use."""

    gcs: int = 6379
    dashboard: int = 8265


# ---- processes ----


def descendants(root: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children[parent].append(int(stat.parent.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        waiting += (new := children[waiting.pop()])
        found += new
    return found


def end(pids: Sequence[int]) -> None:
    """Kill processes; those that are gone are gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def end_all() -> None:
    """Kill whatever this program started; as a subreaper it inherits what lost its parent."""
    deadline = time.monotonic() + 20.0
    while (pids := descendants(os.getpid())) and time.monotonic() < deadline:
        end(pids)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


# ---- network ----


def ip(*words: str, check: bool = True) -> None:
    """Run iproute2's `ip`."""
    subprocess.run(["ip", *words], check=check, capture_output=True)


@contextmanager
def network(kind: str) -> Iterator[list[Node]]:
    """Yield the nodes that are to be started, with their network for as long as the block lasts."""
    spaces = [f"dipole-{os.getpid()}-{name}" for name in NAMES]
    try:
        if kind != "loopback" and wired(spaces, is_must=kind == "namespaces"):
            prefix = ("ip", "netns", "exec")
            yield [Node(*it, (*prefix, space)) for *it, space in zip(NAMES, addresses("10.77.0."), spaces, strict=True)]
        else:
            yield [Node(*it) for it in zip(NAMES, addresses("127.0.0.1"), strict=True)]
    finally:
        if kind != "loopback" and os.geteuid() == 0:
            for space in spaces:
                with suppress(FileNotFoundError):
                    ip("netns", "delete", space, check=False)


def addresses(net: str) -> list[str]:
    """Return the nodes' addresses: `net` and a digit."""
    return [f"{net}{number}" for number in range(1, len(NAMES) + 1)]


def wired(spaces: list[str], *, is_must: bool) -> bool:
    """Make the namespaces and their network; return whether this machine and user can."""
    try:
        wire(spaces)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", b"").decode().strip() or str(error)
        if is_must:
            raise SystemExit(
                f"network namespaces: {why}; they need root and iproute2, or use --network loopback"
            ) from None
        say(f"no network namespaces ({why}): all nodes are on the loopback device")
        return False
    return True


def wire(spaces: list[str]) -> None:
    """Make one network namespace for each node; a bridge in the head's is the switch between all."""
    head, *others = spaces
    for space in spaces:
        ip("netns", "add", space)
        ip("-n", space, "link", "set", "lo", "up")
    here, *there = addresses("10.77.0.")
    ip("-n", head, "link", "add", "lan", "type", "bridge")
    ip("-n", head, "addr", "add", f"{here}/24", "dev", "lan")
    ip("-n", head, "link", "set", "lan", "up")
    for space, address in zip(others, there, strict=True):
        port = f"port{address.rpartition('.')[2]}"
        ip("-n", head, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", head, "link", "set", port, "master", "lan", "up")
        ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")


def free_port() -> int:
    """Return a free port outside 10002-19999, where Ray puts its workers."""
    while True:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = int(taken.getsockname()[1])
        if not 10002 <= port <= 19999:
            return port


# ---- the cluster ----


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of nodes and jobs: a token that only this cluster knows, nothing of another Ray."""
    made = folder / "token"
    made.touch(mode=0o600)
    made.write_text(secrets.token_hex(32))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{BIN}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(made)}


def start(node: Node, head: Node, ports: Ports, folder: Path, cpus: int, env: dict[str, str]) -> None:
    """Start Ray on a node and wait until it is up."""
    words = ["--block", "--disable-usage-stats", f"--num-cpus={cpus}", "--object-store-memory=500000000"]
    words += [f"--node-ip-address={node.address}", f"--temp-dir={folder / node.name}"]
    if not node.prefix:  # one address space for the ports of all
        words += [f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0"]
        words += [f"--ray-client-server-port={free_port()}"] if node is head else []
    if node is head:
        words += ["--head", f"--port={ports.gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={ports.dashboard}"]
    else:
        words += [f"--address={head.address}:{ports.gcs}"]
    log = folder / f"{node.name}.log"
    command = [*node.prefix, str(BIN / "ray"), "start", *words]
    with log.open("wb") as stream:
        node.process = subprocess.Popen(
            command, env=env, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    began = time.monotonic()
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if node.process.poll() is not None or time.monotonic() - began > START_S:
            raise SystemExit(f"{node.name} did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.2)
    say(f"{node.name} is up at {node.address} after {time.monotonic() - began:.0f} s")


def say(text: str) -> None:
    """Print a line that stands out of the job's log."""
    print(f"[one_machine] {text}", flush=True)
