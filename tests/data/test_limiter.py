"""The update-to-data ratio holds exactly, over the run and across restarts, and never in a burst."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipole_ray.data.limiter import UpdateLimiter
from dipole_ray.errors import ConfigError

RATIOS = st.one_of(st.sampled_from([0.0, 0.1, 1 / 3, 0.25, 1.0, 1.5, 20.0]), st.fractions(0, 8, max_denominator=1000))


@given(
    ratio=RATIOS,
    rounds=st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.integers(0, 30)), max_size=40),
)
def test_updates_equal_the_ratio_exactly(ratio: float | Fraction, rounds: list[tuple[int, bool, int]]) -> None:
    exact = ratio if isinstance(ratio, Fraction) else Fraction(ratio).limit_denominator(1_000_000)
    limiter, env_steps = UpdateLimiter(ratio), 0
    for steps, restarts, at_most in rounds:
        env_steps += steps
        limiter.record(min(at_most, limiter.due(env_steps)))
        assert limiter.updates_done <= math.floor(exact * env_steps)
        if restarts:
            state = json.loads(json.dumps(limiter.state()))
            limiter = UpdateLimiter(ratio)
            limiter.load_state(state)
    limiter.record(limiter.due(env_steps))
    assert limiter.updates_done == math.floor(exact * env_steps)
    assert limiter.due(env_steps) == 0


def test_updates_done_ahead_are_waited_for() -> None:
    limiter = UpdateLimiter(0.5)
    limiter.record(10)
    assert [limiter.due(steps) for steps in (0, 20, 22)] == [0, 0, 1]


def test_a_resume_with_another_ratio_gives_no_burst() -> None:
    limiter = UpdateLimiter(1.0)
    limiter.record(limiter.due(1_000_000))
    faster = UpdateLimiter(4.0)
    faster.load_state(json.loads(json.dumps(limiter.state())))
    assert faster.due(1_000_000) == 0
    assert faster.due(1_000_003) == 12


@pytest.mark.parametrize("ratio", [-1.0, math.nan, math.inf, 1e-9])
def test_ratios_without_meaning_are_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="updates_per_env_step"):
        UpdateLimiter(ratio)
