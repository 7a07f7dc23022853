"""C9: workers, learner and replay are killed at random for ten minutes, and the run ends where one without faults does.

`DIPOLE_CHAOS_MINUTES` sets the length.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dipole_ray import DIPOLE
from dipole_ray.evaluation.cells import Cell
from dipole_ray.rllib.evaluate import play
from tests.chaos.conftest import Measured
from tests.chaos.kit import actor_pids, assert_every_row_once, config, kill, train_until
from tests.chaos.slopes import trend

MINUTES = float(os.environ.get("DIPOLE_CHAOS_MINUTES", "10"))

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.timeout(MINUTES * 60.0 + 900.0),
]

MEAN_S = 20.0
SAVE_EVERY_S = 15.0
REFERENCES = 3
REFERENCE_STEPS = 20_000
"""Environment steps after which the runs without faults no longer improve: -50 untrained, about -5.5 then."""
LEARNS = {
    "hidden_dims": (64, 64),
    "batch_size": 64,
    "denoise_steps": 4,
    "num_candidates": 4,
    "beta": 3.0,
    "discount": 0.95,
    "learning_rate": 1e-3,
    "updates_per_env_step": 0.25,
    "online_env_steps": 1_000_000,
}


class Reaper(threading.Thread):
    """Kills actors at random moments, as a Poisson process, of every kind equally often, until it is told to stop."""

    def __init__(self, seed: int) -> None:
        super().__init__(daemon=True)
        self._rng = np.random.default_rng(seed)
        self._over = threading.Event()
        self.kills: Counter[str] = Counter()

    def run(self) -> None:
        kinds: list[str] = []
        while not self._over.wait(self._rng.exponential(MEAN_S)):
            kinds = kinds or list(self._rng.permutation(["worker", "learner", "replay"]))
            if living := actor_pids().get(kinds[-1]):
                kill(int(self._rng.choice(living)))
                self.kills[str(kinds.pop())] += 1

    def stop(self) -> None:
        self._over.set()
        self.join()


def mean_return(algorithm: DIPOLE) -> float:
    """Return the mean return of 50 episodes with the run's own omega and candidates."""
    return float(play(algorithm, None, [Cell("guided", 1.0, 4)], episodes=50)[0].returns.mean())


def without_faults(seed: int) -> float:
    """Return how well a run in one process ends."""
    made = config(workers=0, learners=0, **LEARNS)
    made.seed = seed
    algorithm = made.build_algo()
    train_until(algorithm, lambda a: a.env_steps >= REFERENCE_STEPS, 300.0)
    result = mean_return(algorithm)
    algorithm.stop()
    return result


def resident_mb() -> float:
    """Return this process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_ten_minutes_of_random_kills(tmp_path: Path, measured: Measured) -> None:
    """It learns what an undisturbed run learns, no row is lost or counted twice, and the driver does not grow."""
    references = [without_faults(seed) for seed in range(REFERENCES)]
    spread = stats.t.ppf(0.975, REFERENCES - 1) * np.std(references, ddof=1) * np.sqrt(1 + 1 / REFERENCES)
    low = float(np.mean(references) - spread)

    algorithm = config(workers=4, **LEARNS).build_algo()
    untrained = mean_return(algorithm)
    reaper = Reaper(seed=9)
    reaper.start()
    start = saved = time.monotonic()
    minutes, memory, longest = [], [], 0.0
    while time.monotonic() - start < MINUTES * 60.0:
        before = time.monotonic()
        algorithm.train()
        longest = max(longest, time.monotonic() - before)
        minutes.append((time.monotonic() - start) / 60.0)
        memory.append(resident_mb())
        if time.monotonic() - saved > SAVE_EVERY_S:
            algorithm.save_to_path(tmp_path)
            saved = time.monotonic()
    reaper.stop()
    train_until(algorithm, lambda a: a.learner_steps > 0)
    reached = mean_return(algorithm)

    for kind, count in reaper.kills.items():
        measured("C9", f"kills of the {kind}", count, "", bar="none")
    measured("C9", "return untrained", untrained, "", bar="none")
    for reference in references:
        measured("C9", f"return without faults, {REFERENCE_STEPS} steps", reference, "", bar="none")
    measured("C9", "return after the kills", reached, "", bar=f">= {low:.1f}, 95 % prediction interval")
    measured("C9", "environment steps a second", algorithm.env_steps / (60.0 * MINUTES), "", bar="none")
    measured("C9", "longest iteration", longest, "s", bar="none")
    slope = trend(np.array(minutes), np.array(memory))
    measured("C9", "memory of the driver", slope.slope, "MB/min", bar="< 1")
    assert sum(reaper.kills.values()) >= MINUTES and len(reaper.kills) == 3
    assert reached >= low, (reached, references)
    assert slope.slope < 1.0, slope
    assert_every_row_once(algorithm)
    algorithm.stop()
