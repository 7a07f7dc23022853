"""The README's commands and programs do what it says: all are taken, and those without a cluster run, only smaller."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from dipole_ray.cli import _parse
from tests.cli.commands import dipole

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SIZES = "training.offline_learner_steps=40 training.online_env_steps=40 evaluation.episodes=1 env.max_episode_steps=20"
SWEEP = "run.data.collect_transitions=2000 run.training.offline_learner_steps=40 run.env.max_episode_steps=20"
SMALLER = (
    (r"^train (.*)quickstart(.*)", rf"train \1quickstart\2 data.collect_transitions=2000 {SIZES}"),
    (r"^train --resume runs/RUN", "train --resume {run} training.online_env_steps=60"),
    (r"^train cube_single(.*)", rf"train cube_single\1 {SIZES} training.online_env_steps=0"),
    (r"runs/RUN", "{run}"),
    (r"--episodes 50", "--episodes 1"),
    (r"--transitions 100000", "--transitions 1000"),
    (r"^sweep(.*)", rf"sweep\1 {SWEEP} sweep.evaluation.select_episodes=1 sweep.evaluation.report_episodes=1"),
    (r"sweep.num_samples=8", "sweep.num_samples=2"),
)
NETWORK = "data download"


def commands() -> list[str]:
    """Return what follows `dipole` in every indented line of the README."""
    return [line.split("#")[0].strip() for line in re.findall(r"^    dipole (.*)$", README, re.MULTILINE)]


def programs() -> list[str]:
    """Return the Python programs of the README."""
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_every_command_is_taken() -> None:
    assert len(commands()) >= 10
    for command in commands():
        assert callable(_parse(shlex.split(command)).run)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("no_ray")
def test_the_commands_run_one_after_the_other(tmp_path: Path) -> None:
    for command in commands():
        if command.startswith(NETWORK):
            continue  # downloads have a server of their own in tests/data
        smaller = command
        for pattern, replacement in SMALLER:
            smaller = re.sub(pattern, replacement, smaller)
        runs = sorted((tmp_path / "runs").glob("quickstart-*"))
        words = shlex.split(smaller.format(run=runs[0] if runs else ""))
        done = dipole(*words, cwd=tmp_path, timeout=600)
        # The doctor warns of what a machine lacks; only a failed check of the package itself would be ours.
        assert done.returncode == 0 or words[0] == "doctor", f"dipole {smaller}\n{done.stdout}\n{done.stderr}"
    run_programs(tmp_path)


def run_programs(folder: Path) -> None:
    """Run both programs on the data that the commands made, with fewer steps and episodes."""
    data = repr(str(folder / "data" / "cube-task"))
    loop, algorithm = programs()
    names: dict[str, Any] = {"observations": np.zeros((2, 28), np.float32)}
    smaller = {'"data/cube-task"': data, "10_000": "3", '"paper"': '"small"', "discount=0.995": "discount=0.99"}
    exec(changed(loop, smaller), names)
    assert names["actions"].shape == (2, 5)
    smaller = {
        "pointmaze-medium-navigate-singletask-task1-v0": "cube-single-play-singletask-v0",
        '"data/pointmaze"': data,
        "offline_learner_steps=4000": "offline_learner_steps=20, online_env_steps=0",
        ".learners(num_learners=1)": ".learners(num_learners=1).evaluation(episodes=1, omegas=(1.0,), candidates=(1,))",
        '"checkpoints/mine"': repr(str(folder / "mine")),
        '{"learner_steps": 4000}': f'{{"learner_steps": 20}}, storage_path={str(folder / "tune")!r}, verbose=0',
    }
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        exec(changed(algorithm, smaller), {})
    finally:
        ray.shutdown()
    assert (folder / "mine").is_dir() and len(list((folder / "tune").glob("*/*/result.json"))) == 2


def changed(program: str, replacements: dict[str, str]) -> str:
    """Return a program with every replacement made, each of which must find its text."""
    for before, after in replacements.items():
        assert before in program, f"the README's program has no {before} any more"
        program = program.replace(before, after)
    return program
