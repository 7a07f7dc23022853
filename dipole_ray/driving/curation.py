"""Which scenes are worth keeping, by NAVSIM's rule; and plans that need no policy."""

import numpy as np

from dipole_ray.driving.plans import PLAN_STEP_S
from dipole_ray.driving.recorded import PLAN_POSES, RecordedScene
from dipole_ray.driving.score import PDMScorer
from dipole_ray.driving.vehicle import VX, Array

HUMAN_AT_LEAST, STRAIGHT_AT_MOST = 0.8, 0.8
DECELERATION = 3.0  # m/s^2 of a driver who brakes
_TIMES = PLAN_STEP_S * np.arange(1, PLAN_POSES + 1)


def going_on(speed: float) -> Array:
    """Return the plan (8, 3) that goes straight on at a speed."""
    return np.column_stack([speed * _TIMES, np.zeros((PLAN_POSES, 2))])


def braking(speed: float) -> Array:
    """Return the plan (8, 3) that goes straight on and brakes."""
    times = np.minimum(_TIMES, speed / DECELERATION)
    return np.column_stack([speed * times - DECELERATION * times**2 / 2, np.zeros((PLAN_POSES, 2))])


def speed_of(one: RecordedScene) -> float:
    """Return the speed of the car at the start."""
    return float(np.hypot(*one.scene.ego[[VX, VX + 1]]))


def is_worth_keeping(one: RecordedScene) -> bool:
    """Return whether the driver did well, and going straight on would not have.

    NAVSIM keeps scenes in which the PDM score of the driver is at least 0.8 and that of constant velocity at most 0.8.
    """
    plans = np.stack([one.human, going_on(speed_of(one))])
    human, straight = PDMScorer(one.scene, "clipped").score(plans).pdms.tolist()
    return bool(human >= HUMAN_AT_LEAST and straight <= STRAIGHT_AT_MOST)
