"""C4: the learner may die at any moment; the run goes on by itself from its newest valid checkpoint."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dipole_ray import DIPOLE
from dipole_ray.errors import CheckpointError, ResourcesUnavailable
from tests.chaos.conftest import Measured
from tests.chaos.kit import assert_every_row_once, config, kill, learner_pid, train_until, worker_versions

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("cluster")]

POINTS = 20
MOMENTS = ("update", "weight publish", "checkpoint write")
LATEST_S = {"update": 0.3, "weight publish": 0.02, "checkpoint write": 0.05}
"""How long after the beginning of each moment the kill comes at the latest."""
ONE_ITERATION = 300
"""Updates that an iteration submits at most: those of its 240 environment steps and of one delivery beyond."""
RECOVERED_WITHIN_S = 90.0
"""The promise is 30 s on a machine of its own; tests run beside each other."""


@pytest.fixture(scope="module")
def algorithm(cluster: None) -> Iterator[DIPOLE]:
    built = config(workers=2, updates_per_env_step=1.0).build_algo()
    yield built
    built.stop()


def during(moment: str, algorithm: DIPOLE, folder: Path) -> Callable[[], object]:
    """Return what the learner is doing at `moment`."""
    if moment == "update":
        return algorithm.train
    if moment == "weight publish":
        return lambda: [algorithm.publish_weights() for _ in range(10)]
    return lambda: algorithm.save_to_path(folder)


def test_learner_killed_at_twenty_points(algorithm: DIPOLE, tmp_path: Path, measured: Measured) -> None:
    """Resumes from the newest valid checkpoint; loses at most what came after it; policy versions never go back."""
    rng = random.Random(4)
    train_until(algorithm, lambda a: a.learner_steps > 0)
    algorithm.save_to_path(tmp_path)
    versions = worker_versions(algorithm)
    for point in range(POINTS):
        moment = MOMENTS[point % len(MOMENTS)]
        for _ in range(rng.randrange(1, 4)):
            algorithm.train()
        saved = int(algorithm.restart_point.name) if algorithm.restart_point else 0
        steps, env_steps, restarts = algorithm.learner_steps, algorithm.env_steps, algorithm.learner_restarts
        lost = algorithm.lost_updates
        killer = threading.Timer(rng.uniform(0.0, LATEST_S[moment]), kill, [learner_pid(algorithm)])
        killer.start()
        work = during(moment, algorithm, tmp_path)
        start = time.monotonic()
        while algorithm.learner_restarts == restarts:
            assert time.monotonic() - start < RECOVERED_WITHIN_S
            work()
            steps = max(steps, algorithm.learner_steps)
        revived = algorithm.learner_steps
        train_until(algorithm, lambda a, revived=revived: a.learner_steps > revived, RECOVERED_WITHIN_S)
        measured("C4", f"learner killed in {moment}: updates again", time.monotonic() - start, "s", bar="<= 30 s")
        assert algorithm.learner_restarts == restarts + 1
        newest = int(algorithm.restart_point.name) if algorithm.restart_point else 0
        assert newest >= saved and revived >= saved, "went back behind the newest checkpoint"
        assert algorithm.lost_updates - lost <= max(steps, revived) - saved + ONE_ITERATION
        assert algorithm.env_steps >= env_steps, "environment steps were forgotten"
        before, versions = versions, worker_versions(algorithm)
        assert all(versions[worker] >= version for worker, version in before.items()), "a worker's policy went back"
        if point % 4 == 3:
            algorithm.save_to_path(tmp_path)
    assert_every_row_once(algorithm)
    assert algorithm.group_metrics["learner/restarts"] == POINTS
    expected = int(algorithm.env_steps * 1.0) - algorithm.lost_updates
    assert algorithm.learner_steps == expected, "updates were made up for, or lost without being counted"


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(algorithm: DIPOLE, tmp_path: Path) -> None:
    train_until(algorithm, lambda a: True)
    algorithm.train()
    algorithm.save_to_path(tmp_path)
    older = algorithm.learner_steps
    algorithm.train()
    newest = Path(algorithm.save_to_path(tmp_path))
    with (newest / "agent.safetensors").open("r+b") as stream:
        stream.seek(200)
        stream.write(b"\xff\xff\xff\xff")
    restarts = algorithm.learner_restarts
    kill(learner_pid(algorithm))
    while algorithm.learner_restarts == restarts:
        algorithm.train()
    assert algorithm.learner_steps == older
    train_until(algorithm, lambda a: a.learner_steps > older)


def test_without_any_checkpoint_left_the_run_ends_with_a_sentence(cluster: None, tmp_path: Path) -> None:
    algorithm = config(workers=0).build_algo()
    train_until(algorithm, lambda a: a.learner_steps > 0)
    path = Path(algorithm.save_to_path(tmp_path))
    (path / "state.json").unlink()
    kill(learner_pid(algorithm))
    with pytest.raises(CheckpointError, match="no valid checkpoint is left"):
        train_until(algorithm, lambda a: False, deadline_s=30.0)
    algorithm.stop()


def test_a_learner_that_always_dies_ends_the_run_and_names_memory(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never an endless restart."""
    algorithm = config(workers=0, learner_steps_per_iteration=8).build_algo()
    again = algorithm.learner.start_again

    def doomed() -> None:
        again()
        kill(learner_pid(algorithm))

    monkeypatch.setattr(algorithm.learner, "start_again", doomed)
    kill(learner_pid(algorithm))
    with pytest.raises(ResourcesUnavailable, match="5 times without one update"):
        train_until(algorithm, lambda a: False, deadline_s=120.0)
    algorithm.stop()
