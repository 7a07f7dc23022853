"""A Ray cluster on this one machine: three nodes, a run by `ray job submit`, and a node that dies in the middle.

The nodes are started by `ray start`. As root each is in a network namespace of its own and shares nothing with the
others but a network and the disk; elsewhere they are processes with addresses 127.0.0.11 to 127.0.0.13.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NAMES = ("head", "worker1", "worker2")
ACTORS = {"DIPOLEEnvRunner": "rollout worker", "WrappedExecutable": "learner", "ReplayHost": "replay"}
"""What the processes of a run are called by Ray, and here."""
START_S = 180.0
PR_SET_CHILD_SUBREAPER = 36

_EPILOG = """\
examples:
  sudo .venv/bin/python clusters/one_machine.py                     the quick start, nodes in network namespaces
  .venv/bin/python clusters/one_machine.py                          the same, nodes on the loopback device
  .venv/bin/python clusters/one_machine.py quickstart agent.beta=5 training.online_env_steps=16000
  .venv/bin/python clusters/one_machine.py --kill-at 0.2 my_run.yaml
  .venv/bin/python clusters/one_machine.py --no-kill                everybody lives

What you will see: the nodes start; the job's own log, as `ray job submit` prints it; on which node learner, replay and
rollout workers are; a worker node killed with all its processes at the given part of the online phase; its rollout
workers back on other nodes; the table of the finished run. Status 0 says that all of this happened.

Authentication by a token is on, the dashboard listens on the head's localhost only. All processes, namespaces and
temporary files are gone at the end, also after Ctrl-C and failures; the run's folder stays.
"""


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
        how = {"stdout": stream, "stderr": subprocess.STDOUT, "start_new_session": True}
        node.process = subprocess.Popen(command, env=env, **how)  # type: ignore[call-overload]
    began = time.monotonic()
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if node.process.poll() is not None or time.monotonic() - began > START_S:
            raise SystemExit(f"{node.name} did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.2)
    say(f"{node.name} is up at {node.address} after {time.monotonic() - began:.0f} s")


def submit(head: Node, ports: Ports, words: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Hand the run to the cluster as a user would; the job's log comes here."""
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "dipole", "train", *words]
    say("$ " + " ".join(command))
    address = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports.dashboard}"}
    return subprocess.Popen([*head.prefix, str(BIN / command[0]), *command[1:]], env={**env, **address}, cwd=REPOSITORY)


# ---- the run ----


def online_part(runs: Path, before: set[Path]) -> float:
    """Return how much of its online phase the new run under `runs` has behind it, in [0, 1]."""
    for run in set(runs.glob("*/metrics.jsonl")) - before:
        lines = run.read_text().split("\n")[:-1]
        total = yaml.safe_load((run.parent / "run.yaml").read_text())["training"]["online_env_steps"]
        if lines and total:
            return float(json.loads(lines[-1])["env_steps"]) / float(total)
    return 0.0


def until(job: subprocess.Popen[bytes], reached: Callable[[], bool]) -> bool:
    """Wait until `reached`; return False if the job ends before."""
    while not reached():
        if job.poll() is not None:
            return False
        time.sleep(0.2)
    return True


def kill_in_the_middle(job: subprocess.Popen[bytes], nodes: list[Node], part: Callable[[], float], at: float) -> bool:
    """Kill a worker node once `part` has reached `at`, and see its rollout workers come back; False if it did not."""
    if not until(job, lambda: part() >= at):
        say("the run ended before a node was killed: give it more online steps, or a lower --kill-at")
        return False
    show(nodes)
    workers = sum(node.actors()["rollout worker"] for node in nodes)
    victim = max(nodes[1:], key=lambda node: node.actors()["rollout worker"])
    lost = victim.actors()["rollout worker"]
    reached = part()
    victim.kill()
    began = time.monotonic()
    say(f"killed {victim.name} with {lost} of {workers} rollout workers at {100 * reached:.0f} % of the online phase")
    if not lost or not until(job, lambda: sum(node.actors()["rollout worker"] for node in nodes) >= workers):
        say("its rollout workers did not come back before the run ended")
        return False
    say(f"{workers} rollout workers again after {time.monotonic() - began:.1f} s")
    show(nodes)
    return True


def show(nodes: list[Node]) -> None:
    """Print what is on which node."""
    for node in nodes:
        actors = ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in sorted(node.actors().items()))
        say(f"  {node.name:8} {actors or ('none of the run' if node.process else 'dead')}")


def say(text: str) -> None:
    """Print a line that stands out of the job's log."""
    print(f"[one_machine] {text}", flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="PRESET|FILE.yaml|KEY=VALUE", help="as for `dipole train`")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the run's folder is made (runs)")
    parser.add_argument("--cpus", type=int, default=2, help="CPU slots of each node (2)")
    parser.add_argument("--kill-at", type=float, default=0.5, metavar="PART", help="when a node dies, in (0, 1) (0.5)")
    parser.add_argument("--no-kill", action="store_true", help="kill no node")
    parser.add_argument("--network", choices=("auto", "namespaces", "loopback"), default="auto", help="(auto)")
    arguments = parser.parse_intermixed_args(argv)
    if not 0.0 < arguments.kill_at < 1.0:
        parser.error(f"--kill-at is {arguments.kill_at}: give a part of the online phase in (0, 1)")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Do all of it; return 0 if the run finished and, unless nobody was to die, lived through the loss of a node."""
    arguments = parse(argv)
    runs = arguments.folder.resolve()
    before = set(runs.glob("*/metrics.jsonl"))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with ExitStack() as undo:
        # Sockets lie in it, whose paths must be short.
        made = tempfile.TemporaryDirectory(prefix="dipole-", dir="/tmp", ignore_cleanup_errors=True)
        folder = Path(undo.enter_context(made))
        nodes = undo.enter_context(network(arguments.network))
        undo.callback(end_all)
        ports = Ports() if nodes[0].prefix else Ports(free_port(), free_port())
        env = environment(folder)
        for node in nodes:
            start(node, nodes[0], ports, folder, arguments.cpus, env)
        if nodes[0].prefix:
            login = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={env['RAY_AUTH_TOKEN_PATH']}"
            say(f"to enter the head while it runs: {login} {' '.join(nodes[0].prefix)} bash")
        job = submit(nodes[0], ports, [*(arguments.words or ["quickstart"]), f"folder={runs}"], env)
        if arguments.no_kill:
            lived = until(job, lambda: online_part(runs, before) > 0)
            show(nodes)
        else:
            lived = kill_in_the_middle(job, nodes, lambda: online_part(runs, before), arguments.kill_at)
        status = job.wait()
        say(f"the run {'finished' if status == 0 else f'failed with status {status}'}; it is in {runs}")
        return status or int(not lived)


if __name__ == "__main__":
    sys.exit(main())
