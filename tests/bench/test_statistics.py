"""Statistics over runs equal those of the `rliable` package, and hand-computed ones where it takes no such scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from dipole_ray.errors import ConfigError
from dipole_ray.evaluation import statistics

# rliable 1.2.0 (arch 7.2, numpy 2.4) on `scores` below; it does not install beside pandas 3, which others need here.
# Estimate, low, high; 50 000 resamples, for the probability 5000 (2000 for the largest).
RLIABLE = {
    (0, 5, 1): {
        "mean": (65.6, 58.2, 72.6),
        "iqm": (66.0, 55.666666666666664, 75.0),
        "improvement": (0.1, 0.0, 0.3333333333333333),
    },
    (1, 8, 9): {
        "mean": (54.5, 50.666319444444454, 58.30555555555556),
        "iqm": (51.138888888888886, 46.22222222222222, 55.833333333333336),
        "improvement": (0.4020061728395061, 0.3448881172839507, 0.45835262345678984),
    },
    (2, 3, 4): {
        "mean": (41.833333333333336, 34.083333333333336, 50.16666666666667),
        "iqm": (35.166666666666664, 21.666666666666668, 47.833333333333336),
        "improvement": (0.46875, 0.3020833333333333, 0.65625),
    },
    (3, 10, 30): {
        "mean": (48.19333333333332, 46.013333333333335, 50.34666666666667),
        "iqm": (48.3, 45.693333333333335, 50.906666666666666),
        "improvement": (0.5093939393939394, 0.47954166666666664, 0.5401553030303031),
    },
    (4, 2, 1): {
        "mean": (109.5, 91.0, 128.0),
        "iqm": (109.5, 91.0, 128.0),
        "improvement": (0.8333333333333334, 0.3333333333333333, 1.0),
    },
}
STATISTICS = {
    "mean": statistics.mean,
    "iqm": statistics.interquartile_mean,
    "improvement": statistics.probability_of_improvement,
}


def scores(seed: int, runs: int, tasks: int) -> list[NDArray[np.float64]]:
    """Return scores by task, of different scales and with ties."""
    generator = np.random.default_rng(seed)
    return list(np.round(generator.normal(generator.uniform(0, 100, tasks), 20, (runs, tasks)), 0).T)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize(("seed", "runs", "tasks"), RLIABLE)
def test_estimates_equal_rliables_and_intervals_do_up_to_the_resampling(
    name: str, seed: int, runs: int, tasks: int
) -> None:
    """Ends of two bootstraps differ by hundredths of the interval's width, and a probability of few pairs by a step."""
    methods = [scores(seed, runs, tasks)]
    methods += [scores(seed + 100, runs + 1, tasks)] if name == "improvement" else []
    expected, low, high = RLIABLE[seed, runs, tasks][name]
    assert statistics.estimate(STATISTICS[name], *methods) == pytest.approx(expected, rel=1e-13)
    ours = statistics.stratified_interval(STATISTICS[name], *methods, resamples=50_000)
    slack = max(0.1 * (high - low), 1 / 14 if name == "improvement" and runs <= 5 else 0.0)
    assert abs(ours.low - low) <= slack and abs(ours.high - high) <= slack


def test_tasks_with_different_numbers_of_seeds() -> None:
    x = [np.array([0.0, 10.0]), np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]
    y = [np.array([5.0, 10.0, 20.0]), np.array([3.0])]
    assert statistics.estimate(statistics.mean, x) == (5.0 + 3.5) / 2
    assert statistics.estimate(statistics.interquartile_mean, x) == np.mean([2.0, 3.0, 4.0, 5.0])
    # Task 1: of six pairs one win and one tie; task 2: of six pairs three wins and one tie.
    by_hand = (1.5 / 6 + 3.5 / 6) / 2
    assert statistics.estimate(statistics.probability_of_improvement, x, y) == pytest.approx(by_hand)
    u = [stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(x, y, strict=True)]
    assert by_hand == pytest.approx(np.mean(u))
    assert statistics.estimate(statistics.mean_difference, x, y) == pytest.approx(4.25 - (35 / 3 + 3) / 2)


def test_every_task_keeps_its_own_seeds_in_a_resample() -> None:
    """Two tasks far apart without spread inside: a bootstrap that mixed them would have a wide interval."""
    x = [np.zeros(5), np.full(5, 100.0)]
    assert statistics.stratified_interval(statistics.mean, x) == (50.0, 50.0)


def test_an_interval_is_the_same_each_time_and_none_where_there_is_one_seed() -> None:
    x = scores(3, 5, 3)
    assert statistics.stratified_interval(statistics.mean, x) == statistics.stratified_interval(statistics.mean, x)
    lone = [np.array([3.0])]
    assert all(map(math.isnan, statistics.stratified_interval(statistics.mean, lone)))
    assert all(
        map(math.isnan, statistics.stratified_interval(statistics.mean_difference, lone, [np.array([1.0, 2.0])]))
    )


def test_nothing_is_compared_with_nothing() -> None:
    with pytest.raises(ConfigError, match="at least one score"):
        statistics.estimate(statistics.mean, [np.array([])])
    with pytest.raises(ConfigError, match="same tasks"):
        statistics.estimate(statistics.mean_difference, [np.zeros(2)], [np.zeros(2), np.zeros(2)])
