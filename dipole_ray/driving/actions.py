"""Plans as actions: 8 poses in numbers from -1 to 1, the form in which they are learned, drawn and stored.

As `poses`, four numbers of a pose `t` seconds ahead: the mean speed along the car, the offset aside, and cosine and
sine of the heading. Offsets are bent, so that decimetres within a lane are as far apart as metres around a corner.

As `way`, first the speeds along the way, of each half second beside that of now, then the offsets aside from the way,
bent more; the heading is the way's. A number's error then is one of speed or of decimetres wherever the road leads.
"""

import numpy as np

from dipole_ray.driving.plans import PLAN_STEP_S
from dipole_ray.driving.recorded import PLAN_POSES, RecordedScene
from dipole_ray.driving.vehicle import Array, turned, wrap
from dipole_ray.driving.way import Way

NUMBERS = 4  # of a pose
ACTION_DIM, WAY_DIM = PLAN_POSES * NUMBERS, PLAN_POSES * 2
MAX_SPEED, MAX_ASIDE_M = 40.0, 80.0  # what -1 and 1 stand for: standing still and 144 km/h, and 80 m to either side
MAX_FASTER, MAX_BESIDE_M, LINEAR_M = 12.0, 20.0, 0.1  # for `way`: m/s beside the speed now, metres beside the way
LANE_M = 3.5
_TIMES = PLAN_STEP_S * np.arange(1, PLAN_POSES + 1)
_HALF, _BEND, _WAY_BEND = MAX_SPEED / 2, np.arcsinh(MAX_ASIDE_M), np.arcsinh(MAX_BESIDE_M / LINEAR_M)


def action_dim(kind: str) -> int:
    """Return the numbers of an action, of `poses` or `way`."""
    return {"poses": ACTION_DIM, "way": WAY_DIM}[kind]


def way_of(one: RecordedScene, kind: str) -> Way | None:
    """Return the way that a scene's actions are seen from; None where they are `poses`."""
    return Way(one) if kind == "way" else None


def actions_of(plans: Array, way: Way | None = None) -> Array:
    """Return plans (..., 8, 3) as actions (..., A) float32; what lies beyond the bounds is clipped to them."""
    if way is not None:
        courses = way.courses(plans)
        along = np.maximum.accumulate(courses[..., 0].clip(min=0.0), axis=-1)
        faster = np.diff(along, axis=-1, prepend=0.0) / PLAN_STEP_S - way.speed
        bent = np.arcsinh(courses[..., 1] / LINEAR_M) / _WAY_BEND
        numbers = np.concatenate([faster / MAX_FASTER, bent], axis=-1)
    else:
        along = plans[..., 0] / _TIMES / _HALF - 1
        aside = np.arcsinh(plans[..., 1]) / _BEND
        numbers = np.stack([along, aside, np.cos(plans[..., 2]), np.sin(plans[..., 2])], axis=-1)
        numbers = numbers.reshape(*plans.shape[:-2], ACTION_DIM)
    actions: Array = numbers.clip(-1.0, 1.0).astype(np.float32)
    return actions


def plans_of(actions: Array, way: Way | None = None) -> Array:
    """Return the plans (..., 8, 3) of actions (..., A)."""
    if way is not None:
        faster, bent = np.split(actions.astype(np.float64), 2, axis=-1)
        along = np.cumsum((way.speed + faster * MAX_FASTER).clip(min=0.0) * PLAN_STEP_S, axis=-1)
        aside = np.sinh(bent * _WAY_BEND) * LINEAR_M
        return way.plans(np.stack([along, aside, np.zeros_like(along)], axis=-1))
    numbers = actions.astype(np.float64).reshape(*actions.shape[:-1], PLAN_POSES, NUMBERS)
    along = (numbers[..., 0] + 1) * _HALF * _TIMES
    aside = np.sinh(numbers[..., 1] * _BEND)
    return np.stack([along, aside, np.arctan2(numbers[..., 3], numbers[..., 2])], axis=-1)


def explored(plans: Array, noise: float, random: np.random.Generator, *, are_courses: bool = False) -> Array:
    """Return plans (B, 8, 3), each longer or shorter by a factor of deviation `noise`, and bent by as many radians.

    Whole plans are changed, not poses: drives of shaken poses are uncomfortable, and would be learned from. Courses are
    not bent but go aside, in the end by `noise` lanes: what is an angle to a plan leads a course off the road.
    """
    factor, angle = 1 + noise * random.standard_normal((len(plans), 1)), noise * random.standard_normal((len(plans), 1))
    bent = angle * np.arange(1, PLAN_POSES + 1) / PLAN_POSES
    if are_courses:
        moved: Array = plans * np.array([1.0, 1.0, 0.0])
        moved[..., 0] *= factor.clip(min=0.0)
        moved[..., 1] += LANE_M * bent
        return moved
    places = turned(plans[..., :2] * factor.clip(min=0.0)[..., None], bent / 2)  # on a circle: half the turn
    return np.concatenate([places, wrap(plans[..., 2:] + bent[..., None])], axis=-1)
