"""Intervals agree with closed forms and with scipy, and say so where they cannot be had."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dipole_ray.errors import ConfigError, NonFiniteError
from dipole_ray.evaluation.statistics import bootstrap_interval, wilson_interval


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (9, 10), (10, 10), (50, 50), (17, 41), (1, 1)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_equals_scipy(successes: int, n: int, confidence: float) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    interval = wilson_interval(successes, n, confidence)
    assert interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0.0 <= interval.low <= successes / n <= interval.high <= 1.0


def test_wilson_of_all_successes_has_the_closed_form() -> None:
    z = 1.959963984540054
    assert wilson_interval(50, 50) == pytest.approx((50 / (50 + z * z), 1.0), abs=1e-12)


def test_bootstrap_is_scipys_bca() -> None:
    values = np.random.default_rng(3).exponential(size=40)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(0), method="BCa")
    interval = bootstrap_interval(values, resamples=20_000)
    width = interval.high - interval.low
    assert interval.low == pytest.approx(expected.confidence_interval.low, abs=0.03 * width)
    assert interval.high == pytest.approx(expected.confidence_interval.high, abs=0.03 * width)


def test_bootstrap_of_a_large_normal_sample_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(loc=5.0, size=400)
    half = 1.96 * values.std() / math.sqrt(400)
    low, high = bootstrap_interval(values)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_covers_the_mean_of_skewed_returns_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval(generator.exponential(size=30), 0.9, resamples=1000, seed=seed)
        hits += low <= 1.0 <= high
    assert 0.82 <= hits / 200 <= 0.96


def test_bootstrap_depends_on_values_and_seed_alone() -> None:
    values = np.random.default_rng(2).normal(size=25)
    np.random.seed(0)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)
    assert np.random.random() == np.random.RandomState(0).random()


def test_bootstrap_chunks_large_samples_without_changing_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=50)
    whole = bootstrap_interval(values, resamples=999)
    monkeypatch.setattr("dipole_ray.evaluation.statistics._RESAMPLED_VALUES_AT_ONCE", 5000)
    assert bootstrap_interval(values, resamples=999) == whole


def test_intervals_of_too_little_are_honest() -> None:
    assert all(math.isnan(end) for end in bootstrap_interval([3.0]))
    assert bootstrap_interval([1000.0] * 20) == (1000.0, 1000.0)
    assert wilson_interval(1, 1).low < 0.3


def test_impossible_inputs_are_refused() -> None:
    with pytest.raises(ConfigError, match="found 3 of 2"):
        wilson_interval(3, 2)
    with pytest.raises(ConfigError, match="confidence"):
        wilson_interval(1, 2, confidence=95)
    with pytest.raises(ConfigError, match="found 0"):
        bootstrap_interval([])
    with pytest.raises(NonFiniteError, match="index 1"):
        bootstrap_interval([0.0, math.nan])
