"""Evaluations that get no better end a phase, which goes back to the networks of the best."""

from __future__ import annotations

import numpy as np

from dipole_ray.runs.early_stop import EarlyStop


def networks(value: float) -> dict[str, np.ndarray]:
    return {"networks.a": np.array([value], np.float32)}


def test_it_ends_after_as_many_as_said_and_returns_the_best() -> None:
    stop = EarlyStop(2)
    for value, is_due in ((0.5, False), (0.7, False), (0.6, False), (0.7, True)):
        resumed = EarlyStop(2)  # as a checkpoint has it
        resumed.load_state(*stop.state())
        stop = resumed
        stop.note(value, networks(value))
        assert stop.is_due == is_due
    assert stop.end()["networks.a"] == np.float32(0.7) and stop.has_ended and stop.is_due
    later = EarlyStop(0)
    later.load_state(*stop.state())
    assert not later.is_due and not later.is_watching, "who waits for nothing goes on"


def test_a_phase_that_came_to_its_own_end_goes_back_as_well_and_may_go_on() -> None:
    stop = EarlyStop(5)
    stop.note(0.7, networks(0.7))
    stop.note(0.6, networks(0.6))
    assert stop.end()["networks.a"] == np.float32(0.7) and not stop.has_ended and not stop.is_due
    assert not stop.end(), "nothing was evaluated since"
