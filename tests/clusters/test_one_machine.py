"""The script that a user runs to see a cluster live through the loss of a node; `clusters/one_machine.py --help`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters.files import CLUSTERS

SCRIPT = CLUSTERS / "one_machine.py"
NETWORKS = ["loopback", *(["namespaces"] if os.geteuid() == 0 and shutil.which("ip") else [])]
SMALL_RUN = (
    "quickstart",
    "data.collect_transitions=2000",
    "training.offline_learner_steps=200",
    "training.online_env_steps=12000",
    "evaluation.episodes=2",
    "evaluation.every_learner_steps=0",
    "evaluation.omegas=[1.0]",
    "evaluation.candidates=[1]",
)


def leftovers() -> set[str]:
    """Return the network namespaces, temporary folders and processes that look like the script's."""
    spaces = Path("/run/netns")
    found = {str(path) for path in spaces.glob("dipole-*")} if spaces.is_dir() else set()
    folders = {str(path) for path in Path("/tmp").glob("dipole-*") if (path / "token").exists()}
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().split(b"\0")
        except OSError:
            continue
        found |= {
            f"{command.parent.name} {word.decode()}" for word in words if word.startswith(b"--temp-dir=/tmp/dipole")
        }
    return found | folders


def run_script(*words: str) -> subprocess.Popen[str]:
    """Start the script as a user does, from anywhere; what it says comes in one stream."""
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.Popen(command, cwd="/", text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def said_on(text: str) -> list[dict[str, str]]:
    """Return what lived on each node, one entry for each time that the script shows it."""
    shown: list[dict[str, str]] = []
    for name, actors in re.findall(r"^\[one_machine\]   (head|worker\d) +(.*)$", text, re.M):
        if name == "head":
            shown.append({})
        shown[-1][name] = actors
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_submitted_run_finishes_though_a_node_with_rollouts_dies(network: str, tmp_path: Path) -> None:
    """Learner and replay are on the head, rollouts on two nodes; those of the dead one come back on the other."""
    before = leftovers()
    process = run_script(f"--network={network}", "--kill-at=0.1", f"--folder={tmp_path}", *SMALL_RUN)
    text, _ = process.communicate(timeout=540)
    print(text)
    assert process.returncode == 0
    middle, after = said_on(text)
    assert middle == {"head": "1 learner, 1 replay", "worker1": "1 rollout worker", "worker2": "1 rollout worker"}
    assert sorted(after) == ["head", "worker1", "worker2"] and after["head"] == "1 learner, 1 replay"
    assert sorted([after["worker1"], after["worker2"]]) == ["2 rollout workers", "dead"]
    (run,) = tmp_path.glob("quickstart-*")
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["env_steps"] >= 12000 and "online" in json.loads((run / "evaluation.json").read_text())
    assert leftovers() == before


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    before = leftovers()
    process = run_script("--network=auto", f"--folder={tmp_path}", *SMALL_RUN)
    assert process.stdout is not None
    for line in process.stdout:
        if "head is up" in line:
            break
    assert leftovers() != before
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0 and leftovers() == before


def test_a_part_that_is_none_is_refused() -> None:
    process = run_script("quickstart", "--kill-at", "1.5", "seed=1")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "--kill-at is 1.5: give a part of the online phase in (0, 1)" in text
