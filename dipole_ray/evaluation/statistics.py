"""Intervals for what an evaluation measures over episodes, and for what a suite measures over runs.

Episodes: Wilson's interval for a proportion (success) stays inside [0, 1] and does not shrink to a point when every
episode succeeds. The bootstrap for a mean (return, length) is bias-corrected and accelerated (BCa), because returns
of tasks with success or failure are skewed. scipy's differ in the last bit, by which a recorded evaluation would no
longer equal its repetition.

Runs (Agarwal et al., NeurIPS 2021): every task keeps its number of seeds in a resample (strata), so that an interval
says what other seeds would have given on the same tasks. Runs of one seed begin with the same networks, see the same
batches and meet the same episodes, so a difference of two methods is resampled seed by seed (`paired`): what both owe
to the seed is no doubt about the difference. Estimates equal the `rliable` package's; where tasks differ in their
number of seeds, which that package does not take, every task weighs the same in a mean and every run in an IQM.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dipole_ray.errors import ConfigError, NonFiniteError

RESAMPLES = 10_000  # they settle the ends to about 1 % of the width
Numbers = NDArray[np.float64]
Samples = Sequence[Numbers]
"""Scores of one method: an array (seeds,) a task; inside a statistic (resamples, seeds)."""
Statistic = Callable[..., Numbers]
"""Takes the scores of one or more methods, (resamples, seeds) a task, and returns (resamples,)."""

_RESAMPLED_VALUES_AT_ONCE = 4_000_000
_NORMAL = NormalDist()


class Interval(NamedTuple):
    """Lower and upper end of a confidence interval, in the unit of what it bounds."""

    low: float
    high: float


# ---- over episodes ----


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's interval of a proportion (JASA 1927, no continuity correction); ConfigError for bad counts."""
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ConfigError(f"a proportion needs 0 <= successes <= n and n >= 1; found {successes} of {n}")
    z, share = _NORMAL.inv_cdf(0.5 + confidence / 2), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the two ends the exact value is 0 or 1; the difference of two roundings is not.
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return the BCa bootstrap interval of a mean (Efron, JASA 1987), in the unit of `values` (n,), one an episode.

    Both ends are NaN for a single value, which says nothing about spread, and equal the value when all are the same.

    Raises:
        ConfigError: If there are no values, or confidence or resamples are impossible.
        NonFiniteError: If `values` holds NaN or infinity.
    """
    _check_confidence(confidence)
    sample = np.asarray(values, dtype=np.float64).ravel()
    if sample.size == 0 or resamples < 1:
        raise ConfigError(f"a bootstrap needs values and resamples; found {sample.size} and {resamples}")
    if not np.isfinite(sample).all():
        raise NonFiniteError(f"bootstrap of a non-finite value (index {int(np.argmin(np.isfinite(sample)))})")
    if sample.size == 1:
        return Interval(math.nan, math.nan)
    if np.ptp(sample) == 0:  # the correction would divide by a spread of zero
        return Interval(float(sample.mean()), float(sample.mean()))
    generator = np.random.default_rng(seed)
    chunk = max(1, _RESAMPLED_VALUES_AT_ONCE // sample.size)
    resampled = np.empty(resamples)
    for start in range(0, resamples, chunk):  # in chunks that bound the memory
        means = resampled[start : start + chunk]
        means[:] = sample[generator.integers(0, sample.size, size=(len(means), sample.size))].mean(axis=-1)
    low, high = np.quantile(resampled, _bca_levels(sample, resampled, confidence))
    return Interval(float(low), float(high))


def _bca_levels(sample: Numbers, resampled: Numbers, confidence: float) -> tuple[float, float]:
    """Return the two quantile levels of the resampled means that bound the mean after both corrections."""
    estimate = float(sample.mean())
    below = float(np.mean(resampled < estimate) + 0.5 * np.mean(resampled == estimate))
    margin = 0.5 / resampled.size  # or a mean beyond all resamples would be infinitely biased
    bias = _NORMAL.inv_cdf(min(max(below, margin), 1 - margin))
    jackknife = np.array([np.delete(sample, i).mean() for i in range(sample.size)])
    deviation = jackknife.mean() - jackknife
    spread = float(np.sum(deviation**2))
    acceleration = float(np.sum(deviation**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    tail = (1 - confidence) / 2
    shifts = [bias + _NORMAL.inv_cdf(level) for level in (tail, 1 - tail)]
    low, high = (_NORMAL.cdf(bias + shift / (1 - acceleration * shift)) for shift in shifts)
    return low, high


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie strictly between 0 and 1; found {confidence}")


# ---- over runs ----


def mean(scores: Samples) -> Numbers:
    """Return the mean over tasks of the mean over seeds."""
    return np.asarray(np.mean([task.mean(axis=-1) for task in scores], axis=0))


def interquartile_mean(scores: Samples) -> Numbers:
    """Return the mean of the middle half of all runs; it is robust to outliers, and steadier than a median."""
    runs = np.sort(np.concatenate(list(scores), axis=-1), axis=-1)
    cut = int(0.25 * runs.shape[-1])
    return np.asarray(runs[..., cut : runs.shape[-1] - cut].mean(axis=-1))


def probability_of_improvement(first: Samples, second: Samples) -> Numbers:
    """Return how often a run of the first method beats one of the second on the same task; ties count half."""
    shares = []
    for x, y in zip(first, second, strict=True):
        difference = x[..., :, None] - y[..., None, :]
        shares.append(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-2, -1)))
    return np.asarray(np.mean(shares, axis=0))


def mean_difference(first: Samples, second: Samples) -> Numbers:
    """Return by how much the mean of the first method is above that of the second."""
    return np.asarray(mean(first) - mean(second))


def estimate(statistic: Statistic, *methods: Samples) -> float:
    """Return the statistic of the scores as they are."""
    _check_samples(methods)
    return float(statistic(*(list(scores) for scores in methods)))


def stratified_interval(
    statistic: Statistic, *methods: Samples, paired: bool = False, resamples: int = RESAMPLES
) -> Interval:
    """Return the stratified percentile bootstrap interval of a statistic, of 95 %; with few seeds it covers less.

    Both ends are NaN where a task has no second seed, which says nothing about its spread. `paired` resamples all
    methods by the same seeds, which must stand in the same order; else each method has its own.
    """
    _check_samples(methods)
    if any(len(task) < 2 for scores in methods for task in scores):
        return Interval(math.nan, math.nan)
    generator = np.random.default_rng(0)
    drawn: list[Samples] = []
    chosen: list[NDArray[np.int64]] = []
    for scores in methods:
        if not (paired and chosen):
            chosen = [generator.integers(0, len(task), size=(resamples, len(task))) for task in scores]
        drawn.append([task[index] for task, index in zip(scores, chosen, strict=True)])
    low, high = np.quantile(statistic(*drawn), [0.025, 0.975])
    return Interval(float(low), float(high))


def _check_samples(methods: Sequence[Samples]) -> None:
    if not methods or any(not scores or any(len(task) == 0 for task in scores) for scores in methods):
        raise ConfigError("statistics over runs need at least one score in every task of every method")
    if len({len(scores) for scores in methods}) > 1:
        raise ConfigError("methods can only be compared on the same tasks")
