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
from typing import Any

import pytest

from dipole_ray.tracking.mlflow_server import connect
from tests.clusters.files import CLUSTERS

SCRIPT = CLUSTERS / "one_machine.py"
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
SMALL_SWEEP = (
    "tune_configs/smoke.yaml",
    "space.agent.beta={grid: [1.0, 3.0, 9.0]}",
    "sweep.rungs=6",
    "sweep.evaluation.omegas=[1.0]",
    "sweep.evaluation.candidates=[1]",
    "sweep.evaluation.select_episodes=2",
    "sweep.evaluation.report_episodes=2",
    "training.offline_learner_steps=3000",
    "data.collect_transitions=2000",
)
STEPS = [500, 1000, 1500, 2000, 2500, 3000]
"""Updates of each trial at its rungs."""


def case(network: str, *how: str) -> Any:
    """Return parameters of a test."""
    reason = "network namespaces need root and iproute2"
    missing = network == "namespaces" and (os.geteuid() != 0 or shutil.which("ip") is None)
    return pytest.param(network, how, marks=pytest.mark.skipif(missing, reason=reason), id="".join((network, *how)))


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


def finished(words: tuple[str, ...]) -> str:
    """Run the script to its good end, see that it left nothing behind, and return what it said."""
    before = leftovers()
    text, _ = (process := run_script(*words)).communicate(timeout=840)
    print(text)
    assert process.returncode == 0
    assert leftovers() == before
    return text


def said_on(text: str) -> list[dict[str, str]]:
    """Return what lived on each node, one entry for each time that the script shows it."""
    shown: list[dict[str, str]] = []
    for name, actors in re.findall(r"^\[one_machine\]   (head|worker\d) +(.*)$", text, re.M):
        if name == "head":
            shown.append({})
        shown[-1][name] = actors
    return shown


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("network", "how"), [case("loopback"), case("namespaces"), case("namespaces", "--address")])
def test_a_run_finishes_though_a_node_with_rollouts_dies(network: str, how: tuple[str, ...], tmp_path: Path) -> None:
    """Learner and replay are on the head, rollouts on two nodes; those of the dead one come back on the other."""
    words = (f"--network={network}", *how, "--kill-at=0.1", f"--folder={tmp_path}", *SMALL_RUN)
    text = finished(words)
    middle, after = said_on(text)
    assert middle == {"head": "1 learner, 1 replay", "worker1": "1 rollout worker", "worker2": "1 rollout worker"}
    assert sorted(after) == ["head", "worker1", "worker2"] and after["head"] == "1 learner, 1 replay"
    assert sorted([after["worker1"], after["worker2"]]) == ["2 rollout workers", "dead"]
    (run,) = tmp_path.glob("one-machine-*/quickstart-*")
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["env_steps"] >= 12000 and "online" in json.loads((run / "evaluation.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("network", "how"), [case("namespaces"), case("loopback", "--address")])
def test_a_sweep_finishes_though_a_node_with_a_trial_dies(network: str, how: tuple[str, ...], tmp_path: Path) -> None:
    """Trials are on several nodes, that of the dead one goes on from its checkpoint; the same command does no more."""
    words = (f"--network={network}", *how, "--sweep", "--kill-at=0.3", f"--folder={tmp_path}", *SMALL_SWEEP)
    text = finished(words)
    middle, after = said_on(text)
    assert sum("trial" in living for living in middle.values()) >= 2, "on several nodes; the first may have ended"
    assert sorted(after) == ["head", "worker1", "worker2"] and "dead" in after.values()
    (lost,) = re.findall(r"killed worker\d at \d+ % of the sweep; it had: (trial-00\d)$", text, re.M)
    (sweep,) = tmp_path.glob("one-machine-*/smoke-*")
    stored = json.loads((sweep / "sweep.json").read_text())
    assert [(trial["status"], trial["rung"]) for trial in stored["trials"]] == [("done", 6)] * 3
    notes = json.loads((sweep / "trials" / lost / "trial.json").read_text())
    assert [result["learner_steps"] for result in notes["results"]] == STEPS, "no rung was lost or scored twice"
    assert f"{lost} failed and is continued from its last rung" in text
    first, again = text.split("the same command once more")
    for board in (first, again):
        assert all(f"trial-00{number} " in board for number in range(3)) and str(sweep) in board
    assert "planned" not in again and not re.search(r"\d+/\d+ rungs", again)
    assert len(list((sweep / "trials").iterdir())) == 3
    assert_mlflow_has_it_all(sweep)


def assert_mlflow_has_it_all(sweep: Path) -> None:
    """See the sweep's run and one below it for each trial, whole and ended."""
    client = connect(f"sqlite:///{sweep.parent.parent / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert sorted(run.info.run_name for run in runs) == sorted([sweep.name, *(f"smoke/trial-00{i}" for i in range(3))])
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if run.info.run_name != sweep.name:
            assert [point.step for point in client.get_metric_history(run.info.run_id, "sweep/score")] == STEPS


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
    assert process.returncode == 2 and "--kill-at is 1.5: give a part of the work in (0, 1)" in text
