"""Intervals for what evaluation measures: a proportion (success) and a mean (return, length).

Both work from the episodes alone, at the small counts an evaluation can afford. Wilson's interval for a
proportion stays inside [0, 1] and does not shrink to a point when every episode succeeds. The
bootstrap for a mean is bias-corrected and accelerated (BCa), because returns of tasks with success
or failure are skewed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dipole_ray.errors import ConfigError, NonFiniteError

Statistic = Callable[..., Any]
"""Reduces the last axis of an array, called as `statistic(values, axis=-1)`; `numpy.mean` is one."""

_RESAMPLED_VALUES_AT_ONCE = 4_000_000
_NORMAL = NormalDist()


class Interval(NamedTuple):
    """Lower and upper end of a confidence interval, in the unit of what it bounds."""

    low: float
    high: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the score interval of a proportion (Wilson, JASA 1927, without continuity correction).

    Args:
        successes: Number of successes, 0 to `n`.
        n: Number of trials, at least 1.
        confidence: Coverage in (0, 1).

    Returns:
        The interval, inside [0, 1].

    Raises:
        ConfigError: If the counts or the confidence are impossible.
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ConfigError(f"a proportion needs 0 <= successes <= n and n >= 1; found {successes} of {n}")
    z = _NORMAL.inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the two ends the exact value is 0 or 1; the difference of two roundings is not.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(low, high)


def bootstrap_interval(
    values: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    statistic: Statistic = np.mean,
) -> Interval:
    """Return the BCa bootstrap interval of a statistic (Efron, JASA 1987).

    Args:
        values: One number an episode, shape (n,), finite.
        confidence: Coverage in (0, 1).
        resamples: Number of resamples; 10 000 settle the ends to about 1 % of the width.
        seed: Seed of the resampling; the same values and seed give the same interval.
        statistic: What is bounded; reduces the last axis.

    Returns:
        The interval in the unit of `values`. Both ends are NaN for a single value, which says nothing
        about spread, and equal the value when all values are the same.

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
    estimate = float(statistic(sample, axis=-1))
    if np.ptp(sample) == 0:
        return Interval(estimate, estimate)
    resampled = _resample(sample, resamples, seed, statistic)
    low, high = np.quantile(resampled, _bca_levels(sample, estimate, resampled, confidence, statistic))
    return Interval(float(low), float(high))


def _resample(sample: NDArray[np.float64], resamples: int, seed: int, statistic: Statistic) -> NDArray[np.float64]:
    """Return the statistic of `resamples` draws with replacement, in chunks that bound the memory."""
    generator = np.random.default_rng(seed)
    chunk = max(1, _RESAMPLED_VALUES_AT_ONCE // sample.size)
    results = np.empty(resamples)
    for start in range(0, resamples, chunk):
        stop = min(start + chunk, resamples)
        indices = generator.integers(0, sample.size, size=(stop - start, sample.size))
        results[start:stop] = statistic(sample[indices], axis=-1)
    return results


def _bca_levels(
    sample: NDArray[np.float64],
    estimate: float,
    resampled: NDArray[np.float64],
    confidence: float,
    statistic: Statistic,
) -> tuple[float, float]:
    """Return the two quantile levels of the resampled statistic that bound it after both corrections."""
    below = float(np.mean(resampled < estimate) + 0.5 * np.mean(resampled == estimate))
    margin = 0.5 / resampled.size
    bias = _NORMAL.inv_cdf(min(max(below, margin), 1 - margin))
    jackknife = np.array([statistic(np.delete(sample, i), axis=-1) for i in range(sample.size)])
    deviation = jackknife.mean() - jackknife
    spread = float(np.sum(deviation**2))
    acceleration = float(np.sum(deviation**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    tail = (1 - confidence) / 2
    levels = []
    for level in (tail, 1 - tail):
        shifted = bias + _NORMAL.inv_cdf(level)
        levels.append(_NORMAL.cdf(bias + shifted / (1 - acceleration * shifted)))
    return levels[0], levels[1]


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie strictly between 0 and 1; found {confidence}")
