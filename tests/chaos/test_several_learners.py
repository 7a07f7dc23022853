"""C4 with several learners: the death of one ends all, also those that would wait for it for ever; the run goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dipole_ray import DIPOLE
from tests.chaos.conftest import Measured
from tests.chaos.kit import assert_every_row_once, config, is_alive, kill, train_until, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("cluster")]

RECOVERED_WITHIN_S = 90.0
"""The promise is 30 s on a machine of its own; tests run beside each other."""


@pytest.fixture(scope="module")
def algorithm(cluster: None) -> Iterator[DIPOLE]:
    built = config(workers=1, learners=2, updates_per_env_step=1.0).build_algo()
    yield built
    built.stop()


def pids(algorithm: DIPOLE) -> list[int]:
    """Return the process id of each learner."""
    found = algorithm.learner_group.foreach_learner(lambda learner: os.getpid())
    return [result.get() for result in found.result_or_errors]


def hang_the_first(learner: Any) -> None:
    """Let the first learner never return from its next exchange, as one may that waits for a dead node."""
    if learner.agent.data_parallel.rank == 0:
        learner.agent.data_parallel.all_reduce_mean = lambda tensors: time.sleep(3600.0)


@pytest.mark.parametrize("survivor", ["sees the connection break", "waits for ever"])
def test_one_of_two_learners_killed(algorithm: DIPOLE, tmp_path: Path, measured: Measured, survivor: str) -> None:
    train_until(algorithm, lambda a: a.env_steps >= 120)
    algorithm.save_to_path(tmp_path)
    saved, restarts, before = algorithm.learner_steps, algorithm.learner_restarts, pids(algorithm)
    if survivor == "waits for ever":
        algorithm.learner_group.foreach_learner(hang_the_first)
    kill(before[1])
    start = time.monotonic()
    train_until(algorithm, lambda a: a.learner_restarts > restarts, RECOVERED_WITHIN_S)
    assert algorithm.learner_restarts == restarts + 1 and algorithm.learner_steps >= saved
    train_until(algorithm, lambda a: a.learner_steps > saved, RECOVERED_WITHIN_S)
    measured("C4", "one of two learners killed: updates again", time.monotonic() - start, "s", bar="<= 30 s")
    after = pids(algorithm)
    assert len(after) == 2 and not set(after) & set(before)
    wait_until(lambda: not any(map(is_alive, before)), 30.0, "the learner that lived on is killed too")
    states = [
        result.get()
        for result in algorithm.learner_group.foreach_learner(lambda learner: learner.agent_state()).result_or_errors
    ]
    assert all((tensor == states[1][name]).all() for name, tensor in states[0].items()), "the new pair differs"
    assert_every_row_once(algorithm)
