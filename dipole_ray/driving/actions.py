"""Plans as actions: 8 poses of four numbers in [-1, 1], the form in which they are learned, drawn and stored.

Of a pose `t` seconds ahead: the mean speed along the car, the offset aside, and cosine and sine of the heading. Offsets
are bent, so that decimetres within a lane are as far apart as metres around a corner.
"""

import numpy as np

from dipole_ray.driving.plans import PLAN_STEP_S
from dipole_ray.driving.recorded import PLAN_POSES
from dipole_ray.driving.vehicle import Array, turned, wrap

NUMBERS = 4  # of a pose
ACTION_DIM = PLAN_POSES * NUMBERS
MAX_SPEED, MAX_ASIDE_M = 40.0, 80.0  # what -1 and 1 stand for: standing still and 144 km/h, and 80 m to either side
_TIMES = PLAN_STEP_S * np.arange(1, PLAN_POSES + 1)
_HALF, _BEND = MAX_SPEED / 2, np.arcsinh(MAX_ASIDE_M)


def actions_of(plans: Array) -> Array:
    """Return plans (..., 8, 3) as actions (..., 32) float32; what lies beyond the bounds is clipped to them."""
    along = plans[..., 0] / _TIMES / _HALF - 1
    aside = np.arcsinh(plans[..., 1]) / _BEND
    numbers = np.stack([along, aside, np.cos(plans[..., 2]), np.sin(plans[..., 2])], axis=-1)
    actions: Array = numbers.clip(-1.0, 1.0).astype(np.float32).reshape(*plans.shape[:-2], ACTION_DIM)
    return actions


def plans_of(actions: Array) -> Array:
    """Return the plans (..., 8, 3) of actions (..., 32)."""
    numbers = actions.astype(np.float64).reshape(*actions.shape[:-1], PLAN_POSES, NUMBERS)
    along = (numbers[..., 0] + 1) * _HALF * _TIMES
    aside = np.sinh(numbers[..., 1] * _BEND)
    return np.stack([along, aside, np.arctan2(numbers[..., 3], numbers[..., 2])], axis=-1)


def explored(plans: Array, noise: float, random: np.random.Generator) -> Array:
    """Return plans (B, 8, 3), each longer or shorter by a factor of deviation `noise`, and bent to a side by as much.

    Whole plans are changed, not poses: drives of shaken poses are uncomfortable, and would be learned from.
    """
    factor, angle = 1 + noise * random.standard_normal((len(plans), 1)), noise * random.standard_normal((len(plans), 1))
    bent = angle * np.arange(1, PLAN_POSES + 1) / PLAN_POSES
    places = turned(plans[..., :2] * factor.clip(min=0.0)[..., None], bent / 2)  # on a circle: half the turn
    return np.concatenate([places, wrap(plans[..., 2:] + bent[..., None])], axis=-1)
