"""The update-to-data ratio holds exactly, over the run and across restarts, and never in a burst."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipole_ray.errors import ConfigError
from dipole_ray.replay.update_ratio import UpdateRatio

RATIOS = st.one_of(st.sampled_from([0.0, 0.1, 1 / 3, 0.25, 1.0, 1.5, 20.0]), st.fractions(0, 8, max_denominator=1000))


def restarted(counter: UpdateRatio, ratio: float | Fraction) -> UpdateRatio:
    """Return a new counter that continues from what a checkpoint keeps of another."""
    state = json.loads(json.dumps(counter.state()))
    counter = UpdateRatio(ratio)
    counter.load_state(state)
    return counter


def exactly(ratio: float | Fraction) -> Fraction:
    """Return the ratio a counter holds."""
    return ratio if isinstance(ratio, Fraction) else Fraction(ratio).limit_denominator(1_000_000)


@given(
    ratio=RATIOS,
    rounds=st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.integers(0, 30)), max_size=40),
)
def test_updates_equal_the_ratio_exactly(ratio: float | Fraction, rounds: list[tuple[int, bool, int]]) -> None:
    """Restarts where nothing is owed, as at every checkpoint, change nothing."""
    counter, env_steps = UpdateRatio(ratio), 0
    for steps, restarts, at_most in rounds:
        env_steps += steps
        owed = counter.due(env_steps)
        counter.record(owed if restarts else min(at_most, owed))
        assert counter.updates_done <= math.floor(exactly(ratio) * env_steps)
        if restarts:
            counter = restarted(counter, ratio)
    counter.record(counter.due(env_steps))
    assert counter.updates_done == math.floor(exactly(ratio) * env_steps)
    assert counter.due(env_steps) == 0


@given(ratio=RATIOS, new_ratio=RATIOS, behind=st.integers(0, 1_000_000), paid=st.integers(0, 100), steps=st.integers(0))
def test_no_burst_whatever_was_owed_before(
    ratio: float | Fraction, new_ratio: float | Fraction, behind: int, paid: int, steps: int
) -> None:
    """A counter resumed up to a million inserts behind asks for what new steps earn, not one update more."""
    counter = UpdateRatio(ratio)
    counter.record(min(paid, counter.due(behind)))
    for again in (ratio, new_ratio):
        resumed = restarted(counter, again)
        assert resumed.due(behind) == 0
        assert exactly(again) * steps - 1 < resumed.due(behind + steps) < exactly(again) * steps + 1


def test_first_second_after_a_resume_is_like_any_other() -> None:
    """R3: a million inserts behind, then 100 env steps a second: 20 updates in each of them."""
    counter = UpdateRatio(0.2)
    counter.due(1_000_000)
    counter, updates = restarted(counter, 0.2), []
    for second in range(1, 11):
        updates.append(counter.due(1_000_000 + 100 * second))
        counter.record(updates[-1])
    assert updates == [20] * 10


def test_updates_done_ahead_are_waited_for() -> None:
    counter = UpdateRatio(0.5)
    counter.record(10)
    assert [counter.due(steps) for steps in (0, 20, 22)] == [0, 0, 1]


def test_a_resume_with_another_ratio_gives_no_burst() -> None:
    counter = UpdateRatio(1.0)
    counter.record(counter.due(1_000_000))
    faster = restarted(counter, 4.0)
    assert faster.due(1_000_000) == 0
    assert faster.due(1_000_003) == 12


@pytest.mark.parametrize("ratio", [-1.0, math.nan, math.inf, 1e-9])
def test_ratios_without_meaning_are_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="updates_per_env_step"):
        UpdateRatio(ratio)
