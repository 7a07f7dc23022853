"""Statistics over runs: mean and IQM, probability of improvement, stratified bootstrap (Agarwal et al., NeurIPS 2021).

A method's scores are one array a task, with a score a seed. Intervals are percentiles of the statistic over resamples
in which every task keeps its number of seeds (strata), so that they say what other seeds would have given on the same
tasks. Runs of one seed begin with the same networks, see the same batches and meet the same episodes, so a difference
of two methods is resampled seed by seed (`paired`): what both owe to the seed is no doubt about the difference.

Point estimates equal the `rliable` package's, and so does the probability of improvement, which takes runs as
independent; where tasks differ in their number of seeds, which that package does not take, every task weighs the same
in a mean and every run the same in an IQM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dipole_ray.errors import ConfigError
from dipole_ray.statistics import Interval

Scores = Sequence[NDArray[np.float64]]
"""Scores of one method: an array (seeds,) a task; inside a statistic (resamples, seeds)."""
Statistic = Callable[..., NDArray[np.float64]]
"""Takes the scores of one or more methods, (resamples, seeds) a task, and returns (resamples,)."""

RESAMPLES = 10_000


def mean(scores: Scores) -> NDArray[np.float64]:
    """Return the mean over tasks of the mean over seeds."""
    return np.asarray(np.mean([task.mean(axis=-1) for task in scores], axis=0))


def interquartile_mean(scores: Scores) -> NDArray[np.float64]:
    """Return the mean of the middle half of all runs; it is robust to outliers, and steadier than a median."""
    runs = np.sort(np.concatenate(list(scores), axis=-1), axis=-1)
    cut = int(0.25 * runs.shape[-1])
    return np.asarray(runs[..., cut : runs.shape[-1] - cut].mean(axis=-1))


def probability_of_improvement(first: Scores, second: Scores) -> NDArray[np.float64]:
    """Return how often a run of the first method beats one of the second on the same task; ties count half."""
    shares = []
    for x, y in zip(first, second, strict=True):
        difference = x[..., :, None] - y[..., None, :]
        shares.append(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-2, -1)))
    return np.asarray(np.mean(shares, axis=0))


def mean_difference(first: Scores, second: Scores) -> NDArray[np.float64]:
    """Return by how much the mean of the first method is above that of the second."""
    return np.asarray(mean(first) - mean(second))


def estimate(statistic: Statistic, *methods: Scores) -> float:
    """Return the statistic of the scores as they are."""
    _check(methods)
    return float(statistic(*(list(scores) for scores in methods)))


def interval(
    statistic: Statistic,
    *methods: Scores,
    paired: bool = False,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the stratified percentile bootstrap interval of a statistic.

    Args:
        statistic: One of the above.
        *methods: The scores of each method.
        paired: Resample all methods by the same seeds, which must stand in the same order; else independently.
        confidence: Coverage in (0, 1); with five seeds the true coverage is lower, as with every bootstrap.
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        The interval; both ends NaN where a task has no second seed, which says nothing about its spread.
    """
    _check(methods)
    if any(len(task) < 2 for scores in methods for task in scores):
        return Interval(math.nan, math.nan)
    generator = np.random.default_rng(seed)

    def chosen(scores: Scores) -> list[NDArray[np.int64]]:
        return [generator.integers(0, len(task), size=(resamples, len(task))) for task in scores]

    indices = [chosen(methods[0])] * len(methods) if paired else [chosen(scores) for scores in methods]
    drawn = [
        [task[index] for task, index in zip(scores, tasks, strict=True)]
        for scores, tasks in zip(methods, indices, strict=True)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(*drawn), [tail, 1 - tail])
    return Interval(float(low), float(high))


def _check(methods: Sequence[Scores]) -> None:
    if not methods or any(not scores or any(len(task) == 0 for task in scores) for scores in methods):
        raise ConfigError("statistics over runs need at least one score in every task of every method")
    if len({len(scores) for scores in methods}) > 1:
        raise ConfigError("methods can only be compared on the same tasks")
