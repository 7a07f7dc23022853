"""A Ray cluster on this one machine: three nodes, a run or a sweep by `ray job submit`, and a node that dies in it.

The nodes are started by `ray start`. As root each is in a network namespace of its own and shares nothing with the
others but a network and the disk; elsewhere they are processes with addresses 127.0.0.11 to 127.0.0.13.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from local_nodes import BIN, Node, Ports, end_all, environment, free_port, network, say, start

REPOSITORY = Path(__file__).resolve().parent.parent
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.2

_EPILOG = """\
examples:
  sudo .venv/bin/python clusters/one_machine.py                     the quick start, nodes in network namespaces
  .venv/bin/python clusters/one_machine.py                          the same, nodes on the loopback device
  .venv/bin/python clusters/one_machine.py quickstart agent.beta=5 training.online_env_steps=16000
  .venv/bin/python clusters/one_machine.py --kill-at 0.2 my_run.yaml
  .venv/bin/python clusters/one_machine.py --sweep                  the smallest sweep, trials on several nodes
  .venv/bin/python clusters/one_machine.py --sweep my_sweep.yaml --address
  .venv/bin/python clusters/one_machine.py --no-kill                everybody lives

What you will see: the nodes start; the job's own log, as `ray job submit` prints it; what lives on which node (learner,
replay and rollout workers of a run, trials of a sweep); a worker node killed with all its processes at the given part
of the online phase, or of the sweep; what it had at work on other nodes; the table of the finished run, or the
leaderboard. A sweep is then given once more, to see that it finds nothing left to do. Status 0 says that all of this
happened.

Authentication by a token is on, the dashboard listens on the head's localhost only. All processes, namespaces and
temporary files are gone at the end, also after Ctrl-C and failures; the folder of the results stays.
"""


# ---- what is run ----


@dataclass(frozen=True)
class Train:
    """`dipole train`, whose rollout workers come back elsewhere."""

    folder: Path
    command = "train"
    default = "quickstart"
    span = "the online phase"

    def part(self) -> float:
        """Return how much of the online phase is done, in [0, 1]."""
        for run in self.folder.glob("*/metrics.jsonl"):
            lines = run.read_text().split("\n")[:-1]
            total = yaml.safe_load((run.parent / "run.yaml").read_text())["training"]["online_env_steps"]
            if lines and total:
                return float(json.loads(lines[-1])["env_steps"]) / float(total)
        return 0.0

    def on(self, node: Node) -> list[str]:
        """Return what would be lost with a node."""
        return ["rollout worker"] * node.actors()["rollout worker"]

    def is_back(self, lost: list[str], before: int, nodes: list[Node]) -> bool:
        """Return whether as many are at work as before the loss."""
        return sum(len(self.on(node)) for node in nodes) >= before


@dataclass(frozen=True)
class Sweep:
    """`dipole sweep`, whose trials go on elsewhere from their checkpoints."""

    folder: Path
    command = "sweep"
    default = "smoke"
    span = "the sweep"

    def stored(self) -> tuple[Path, dict[str, Any]]:
        """Return the sweep's folder and what it has written down, which is nothing at first."""
        for found in self.folder.glob("*/sweep.json"):
            stored: dict[str, Any] = json.loads(found.read_text())
            return found.parent, stored
        return self.folder, {"trials": []}

    def part(self) -> float:
        """Return how many of the rungs are done, in [0, 1]."""
        _, stored = self.stored()
        rungs = [trial["rung"] for trial in stored["trials"]]
        return sum(rungs) / (len(rungs) * stored["plan"]["sweep"]["rungs"]) if rungs else 0.0

    def on(self, node: Node) -> list[str]:
        """Return the trials that a node is at work on; a trial's lock names the process that has it."""
        sweep, stored = self.stored()
        pids, found = set(map(str, node.pids())), []
        for trial in stored["trials"]:
            with suppress(FileNotFoundError):
                lock = (sweep / "trials" / trial["id"] / ".lock").read_text()
                if trial["status"] == "running" and lock in pids:
                    found.append(trial["id"])
        return found

    def is_back(self, lost: list[str], before: int, nodes: list[Node]) -> bool:
        """Return whether the lost trials are at work, or have come to their end."""
        _, stored = self.stored()
        left = {trial["id"] for trial in stored["trials"] if trial["status"] not in ("done", "stopped")}
        return set(lost) & left <= {trial for node in nodes for trial in self.on(node)}


Work = Train | Sweep


def begin(
    head: Node, ports: Ports, words: list[str], env: dict[str, str], *, by_address: bool
) -> subprocess.Popen[bytes]:
    """Hand the work to the cluster as a user would; its log comes here."""
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "dipole", *words]
    if by_address:
        command = ["dipole", words[0], "--address", f"{head.address}:{ports.gcs}", *words[1:]]
    say("$ " + " ".join(command))
    address = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports.dashboard}"}
    return subprocess.Popen([*head.prefix, str(BIN / command[0]), *command[1:]], env={**env, **address}, cwd=REPOSITORY)


def until(job: subprocess.Popen[bytes], reached: Callable[[], bool]) -> bool:
    """Wait until `reached`; return False if the job ends before."""
    while not reached():
        if job.poll() is not None:
            return False
        time.sleep(POLL_S)
    return True


def kill_in_the_middle(job: subprocess.Popen[bytes], nodes: list[Node], work: Work, at: float) -> bool:
    """Kill a worker node once the work has come to `at`, and see what it had at work again; False if it was not."""
    if not until(job, lambda: work.part() >= at and any(work.on(node) for node in nodes[1:])):
        say("the work ended before a node was killed: give it more steps, or a lower --kill-at")
        return False
    show(nodes)
    before = sum(len(work.on(node)) for node in nodes)
    victim = max(nodes[1:], key=lambda node: len(work.on(node)))
    lost, reached = work.on(victim), work.part()
    victim.kill()
    began = time.monotonic()
    say(f"killed {victim.name} at {100 * reached:.0f} % of {work.span}; it had: {', '.join(lost)}")
    if not lost or not until(job, lambda: work.is_back(lost, before, nodes)):
        say("what it had was not at work again before the end")
        return False
    say(f"{', '.join(lost)} at work again after {time.monotonic() - began:.1f} s")
    show(nodes)
    return True


def show(nodes: list[Node]) -> None:
    """Print what is on which node."""
    for node in nodes:
        actors = ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in sorted(node.actors().items()))
        say(f"  {node.name:8} {actors or ('none of the run' if node.process else 'dead')}")


# ---- the program ----


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="PRESET|FILE.yaml|KEY=VALUE", help="as for `dipole train`")
    parser.add_argument("--sweep", action="store_true", help="`dipole sweep` in place of `dipole train`")
    parser.add_argument("--address", action="store_true", help="by --address on the head, not by `ray job submit`")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where a folder of results is made (runs)")
    parser.add_argument("--cpus", type=int, default=2, help="CPU slots of each node (2)")
    parser.add_argument("--kill-at", type=float, default=0.5, metavar="PART", help="when a node dies, in (0, 1) (0.5)")
    parser.add_argument("--no-kill", action="store_true", help="kill no node")
    parser.add_argument("--network", choices=("auto", "namespaces", "loopback"), default="auto", help="(auto)")
    arguments = parser.parse_intermixed_args(argv)
    if not 0.0 < arguments.kill_at < 1.0:
        parser.error(f"--kill-at is {arguments.kill_at}: give a part of the work in (0, 1)")
    return arguments


@contextmanager
def cluster(kind: str, cpus: int) -> Iterator[tuple[list[Node], Ports, dict[str, str]]]:
    """Yield the nodes of a running cluster, with its ports and the environment of those who speak with it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with ExitStack() as undo:
        # Sockets lie in it, whose paths must be short.
        made = tempfile.TemporaryDirectory(prefix="dipole-", dir="/tmp", ignore_cleanup_errors=True)
        folder = Path(undo.enter_context(made))
        nodes = undo.enter_context(network(kind))
        undo.callback(end_all)
        ports = Ports() if nodes[0].prefix else Ports(free_port(), free_port())
        env = environment(folder)
        for node in nodes:
            start(node, nodes[0], ports, folder, cpus, env)
        if nodes[0].prefix:
            login = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={env['RAY_AUTH_TOKEN_PATH']}"
            say(f"to enter the head while it runs: {login} {' '.join(nodes[0].prefix)} bash")
        yield nodes, ports, env


def main(argv: Sequence[str] | None = None) -> int:
    """Do all of it; return 0 if the work was done and, unless nobody was to die, lived through the loss of a node."""
    arguments = parse(argv)
    folder = arguments.folder.resolve() / time.strftime("one-machine-%Y%m%d-%H%M%S")
    work: Work = Sweep(folder) if arguments.sweep else Train(folder)
    words = [work.command, *(arguments.words or [work.default]), f"folder={folder}"]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with cluster(arguments.network, arguments.cpus) as (nodes, ports, env):

        def begun() -> subprocess.Popen[bytes]:
            return begin(nodes[0], ports, words, env, by_address=arguments.address)

        job, began = begun(), time.monotonic()
        if arguments.no_kill:
            lived = until(job, lambda: work.part() > 0)
            show(nodes)
        else:
            lived = kill_in_the_middle(job, nodes, work, arguments.kill_at)
        status = job.wait()
        how = "finished" if status == 0 else f"failed with status {status}"
        say(f"{how} after {time.monotonic() - began:.0f} s; all is in {folder}")
        if arguments.sweep and status == 0:
            say("the same command once more, which shall find nothing left to do:")
            status, alone = begun().wait(), len(list(folder.glob("*/sweep.json"))) == 1
            lived = lived and alone
        return status or int(not lived)


if __name__ == "__main__":
    sys.exit(main())
