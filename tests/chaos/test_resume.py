"""R1: a run that is killed again and again, and resumed, is bit for bit the run that never was. R3: no burst after.

One process, CPU. A chain of kills costs one start each: every life but the last ends by SIGKILL, and the whole course
is compared with the uninterrupted run's: every checkpoint on the way, the replay's rows, evaluation and metrics.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from dipole_ray import DIPOLE
from dipole_ray.collect import collect
from dipole_ray.files.checkpoint import newest_valid, read_checkpoint
from dipole_ray.runs.config import load
from dipole_ray.runs.start import resume_run, start_run
from dipole_ray.tracking.metrics_file import read_metrics
from tests.chaos.conftest import Measured
from tests.chaos.kit import config, ring_rows
from tests.cli.commands import dipole, environment, write_config

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("resume"), pytest.mark.usefixtures("cluster")]

ROOT = Path(__file__).resolve().parents[2]
OFFLINE, ONLINE, RATIO, ENVS, FRAGMENT = 60, 240, 0.5, 2, 30
LIFE_S = 120.0
"""Deadline of one life; a start alone takes 5 to 10 s on two cores."""
OWN = {"run", "tracker", "algorithm", "replay_directory", "policy_version"}
"""What two runs of one course differ in: their folder, bytes of metrics (times), and how often weights were published:
a restart publishes them once more."""
VERSION = "rollout/policy_version"

Death = tuple[str, int]
"""What is about to be called, and for which time in its process, when the kill comes."""
UPDATE, ENV_STEP = "dipole_ray.agents.dipole:DipoleAgent.update", "dipole_ray.rllib.experience:FragmentRecorder.add"
BOUNDARIES: tuple[tuple[str, Death], ...] = (
    ("at the start", ("dipole_ray.runs.run:Run.train", 1)),
    ("offline, before the first checkpoint", (UPDATE, 30)),
    ("in the write of the first checkpoint", ("safetensors.torch:save", 1)),
    ("offline, after the first checkpoint", ("dipole_ray.runs.run:Run.log", 3)),
    ("at the end of the offline phase", ("dipole_ray.runs.run:Run._evaluate", 1)),
    ("between evaluation and its checkpoint", ("safetensors.torch:save", 1)),
    ("before the online phase", ("dipole_ray.runs.run:Run._train_phase", 1)),
    ("online, episodes running", (ENV_STEP, FRAGMENT + 7)),
    ("in the write of an online checkpoint", ("safetensors.torch:save", 2)),
    ("at the end of the online phase", ("dipole_ray.runs.run:Run._evaluate", 1)),
    ("before the pictures", ("dipole_ray.runs.run:Run._draw", 1)),
)


@pytest.fixture(scope="module")
def home(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and the config of a run that takes seconds and keeps every checkpoint."""
    home = tmp_path_factory.mktemp("home")
    data = collect("Pendulum-v1", 500, 0, home / "data", progress=False)[0]
    write_config(
        home / "small.yaml",
        data={"path": str(data)},
        training={"offline_learner_steps": OFFLINE, "online_env_steps": ONLINE, "updates_per_env_step": RATIO},
        rollout={"envs_per_worker": ENVS, "fragment_steps": FRAGMENT},
        evaluation={"every_learner_steps": 50, "interval_episodes": 2},
        checkpoint={"every_learner_steps": 25, "keep": 100},
    )
    return home


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """The uninterrupted run, in a process and a Ray of its own."""
    ended = dipole("train", "small.yaml", "folder=whole", cwd=home, timeout=LIFE_S)
    assert ended.returncode == 0, ended.stderr
    return next(home.glob("whole/small-*"))


def live(home: Path, death: Death, *words: str | Path) -> float:
    """Run `dipole WORDS` until it is killed where `death` says; return when it began."""
    began = time.time()
    command = [sys.executable, "-m", "tests.chaos.die_at", death[0], str(death[1]), *map(str, words)]
    variables = {**environment(home), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        command, cwd=home, env=variables, capture_output=True, text=True, timeout=LIFE_S, check=False
    )
    assert ended.returncode == -signal.SIGKILL, f"lived past {death}: {ended.stdout[-500:]} {ended.stderr[-2000:]}"
    return began


def course(state: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a checkpoint's metadata that an interruption must not change."""
    return {key: value for key, value in state.items() if key not in OWN}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of the metrics without clocks, and without the count of publications."""
    return [
        {name: value for name, value in line.items() if name not in ("time", VERSION) and not name.startswith("time/")}
        for line in read_metrics(run)
    ]


def differences(run: Path, whole: Path) -> list[str]:
    """Name everything in `run` that is not bit for bit as in `whole`."""
    found = []
    names = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (run, whole)]
    found += [] if names[0] == names[1] else [f"checkpoints {names}"]
    for name in names[1]:
        ours, theirs = read_checkpoint(run / "checkpoints" / name), read_checkpoint(whole / "checkpoints" / name)
        for file, tensors in theirs.tensors.items():
            other = ours.tensors.get(file, {})
            found += [
                f"{name}: {file} {key}"
                for key, tensor in tensors.items()
                if key not in other or other[key].numpy().tobytes() != tensor.numpy().tobytes()
            ]
        mine, own = course(ours.metadata), course(theirs.metadata)
        found += [f"{name}: {key}" for key in own.keys() | mine.keys() if mine.get(key) != own.get(key)]
    rows, expected = (ring_rows(folder / "replay" / "online.arrow") for folder in (run, whole))
    found += [f"replay: {name}" for name, values in expected.items() if rows[name].tobytes() != values.tobytes()]
    if (run / "evaluation.json").read_bytes() != (whole / "evaluation.json").read_bytes():
        found.append("evaluation.json")
    return found + ([] if metrics(run) == metrics(whole) else ["metrics.jsonl"])


def chain(home: Path, name: str, deaths: Sequence[Death], measured: Measured, own_ray: Sequence[int] = ()) -> Path:
    """Start a run, kill it at every death, resume it in between, and let it end; return its folder.

    Args:
        home: Where the config lies.
        name: Folder of the run.
        deaths: One a life.
        measured: Takes the seconds from the command to the first line of metrics.
        own_ray: Lives that start a Ray of their own; the others use this test's, which is quicker.
    """
    address = ray.get_runtime_context().gcs_address
    words: list[str | Path] = ["small.yaml", f"folder={name}"]
    for index, death in enumerate(deaths):
        began = live(home, death, "train", *words, *([] if index in own_ray else ["--address", address]))
        run = next(home.glob(f"{name}/small-*"))
        first = [line["time"] for line in read_metrics(run) if line["time"] > began][:1]
        if index and first:
            measured("R1", "resume after kill -9: first metrics", first[0] - began, "s", bar="reported")
        words = ["--resume", run]
    ended = dipole("train", *words, cwd=home, timeout=LIFE_S)
    assert ended.returncode == 0, ended.stderr
    return run


def test_killed_at_every_boundary_it_is_the_uninterrupted_run(home: Path, whole: Path, measured: Measured) -> None:
    run = chain(home, "boundaries", [death for _, death in BOUNDARIES], measured, own_ray=(0, 7))
    found = differences(run, whole)
    measured("R1", f"differences after {len(BOUNDARIES)} kills at boundaries", len(found), "things", bar="0")
    assert found == []
    assert {path.name for path in run.glob("*.png")} == {path.name for path in whole.glob("*.png")} != set()
    assert not [path for path in run.rglob("*") if path.name.startswith((".writing", ".replaced", ".removing"))]


def random_moments(seed: int) -> list[tuple[str, int]]:
    """Return ten moments of the course in order: before the n-th update, or before the n-th vectorised env step."""
    random = np.random.default_rng(seed)
    updates = OFFLINE + int(RATIO * ONLINE)
    moments = [(UPDATE, int(n)) for n in random.choice(np.arange(1, updates + 1), 6, replace=False)]
    moments += [(ENV_STEP, int(n)) for n in random.choice(np.arange(1, ONLINE // ENVS + 1), 4, replace=False)]

    def order(moment: tuple[str, int]) -> tuple[int, int, int]:
        target, n = moment
        if target == ENV_STEP:
            return math.ceil(n / FRAGMENT), 0, n
        return max(0, math.ceil((n - OFFLINE) / (RATIO * ENVS * FRAGMENT))), 1, n

    return sorted(moments, key=order)


def test_killed_at_ten_random_steps_it_is_the_uninterrupted_run(home: Path, whole: Path, measured: Measured) -> None:
    address = ray.get_runtime_context().gcs_address
    run: Path | None = None
    for target, n in random_moments(seed=7):
        done = {UPDATE: 0, ENV_STEP: 0}
        newest = None if run is None else newest_valid(run / "checkpoints")
        if newest is not None:
            saved = read_checkpoint(newest)
            done = {UPDATE: saved.learner_steps, ENV_STEP: saved.metadata["env_steps"] // ENVS}
        words = ["small.yaml", "folder=random"] if run is None else ["--resume", run]
        live(home, (target, n - done[target]), "train", *words, "--address", address)
        run = next(home.glob("random/small-*"))
    assert run is not None
    ended = dipole("train", "--resume", run, cwd=home, timeout=LIFE_S)
    assert ended.returncode == 0, ended.stderr
    found = differences(run, whole)
    measured("R1", "differences after 10 kills at random steps", len(found), "things", bar="0")
    assert found == []
    for line in read_metrics(run):  # R3: at every line of every life the ratio is the configured one
        assert line["learner_steps"] == OFFLINE + math.floor(RATIO * line["env_steps"]) or not line["env_steps"]


def test_no_burst_of_updates_after_a_resume(tmp_path: Path, measured: Measured) -> None:
    """R3: the state says that a million inserts were never paid for; the run goes on at its steady rate.

    What is asserted exactly are updates per environment step, which no load on the machine changes. The rate is taken
    per second of this process's own computing, and its bound is loose all the same: caches and clocks of a shared
    machine move a single one by tenths. A burst would be all updates and no environment steps, several times the rate.
    """
    ratio, behind = 0.25, 1_000_000
    small = {"updates_per_env_step": ratio, "online_env_steps": 10 * behind, "replay_capacity": 10_000}
    algorithm = config(workers=0, learners=0, **small).build_algo()
    try:
        algorithm.train()
        saved = read_checkpoint(Path(algorithm.save_to_path(tmp_path / "saved")))
        forged = {**saved.metadata, "env_steps": behind}
        forged["limiter"] = {**saved.metadata["limiter"], "env_steps": behind}
        forged["replay"] = {**saved.metadata["replay"], "env_steps_inserted": behind}
        firsts = []
        for _ in range(5):
            algorithm.restore_contents(replace(saved, metadata=forged))
            firsts.append(first_second_against_the_rest(algorithm, ratio))
            measured("R3", "updates in the first second / in later ones, 1 M behind", firsts[-1], "x", bar="none")
        median = float(np.median(firsts))
        measured("R3", "the same, median of 5 resumes", median, "x", bar="<= 1.1")
        assert median < 2
    finally:
        algorithm.stop()


def first_second_against_the_rest(algorithm: DIPOLE, ratio: float) -> float:
    """Train for 3 s of computing; return the updates of the first second over those of a mean later one."""
    start, begun = time.process_time(), algorithm.learner_steps
    seconds, updates = [0.0], [0]
    while seconds[-1] < 3.0:
        env_steps, learner_steps = algorithm.env_steps, algorithm.learner_steps
        algorithm.train()
        earned = ratio * (algorithm.env_steps - env_steps)
        assert earned > 0 and abs(algorithm.learner_steps - learner_steps - earned) < 1
        seconds.append(time.process_time() - start)
        updates.append(algorithm.learner_steps - begun)
    first = float(np.interp(1.0, seconds, updates))
    return first / ((updates[-1] - first) / (seconds[-1] - 1.0))


def test_workers_come_and_go_between_resumes(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """R2: none, then two, one, none again; each change is named once, and no episode or row is there twice."""
    settings = ["evaluation.episodes=1", "training.replay_capacity=2000", "evaluation.every_learner_steps=0"]
    run = start_run(load(home / "small.yaml", [f"folder={home / 'changing'}", *settings])).folder
    known = env_steps_before = 0
    for workers, env_steps in ((2, 480), (1, 720), (0, 960)):
        caplog.clear()
        changes = [*settings, f"rollout.num_workers={workers}", f"training.online_env_steps={env_steps}"]
        assert resume_run(run, changes).finished
        (warning,) = [text for text in caplog.messages if text.startswith("resumed with changes")]
        assert f"rollout.num_workers: {known} -> {workers}" in warning and "training.online_env_steps" in warning
        known = workers
        state = read_checkpoint(run / "checkpoints").metadata
        rows = ring_rows(run / "replay" / "online.arrow")
        kept = rows["observations"][rows["remaining"] > 0]
        assert env_steps <= state["env_steps"] == len(kept) == len(np.unique(kept, axis=0))
        assert state["learner_steps"] == OFFLINE + math.floor(RATIO * state["env_steps"])
        if not workers:  # every fragment counts: none is taken for a repetition of one from the run's beginning
            assert state["env_steps"] - env_steps_before == state["rollout"]["sequence"] * ENVS * FRAGMENT
        env_steps_before = state["env_steps"]
