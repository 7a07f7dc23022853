"""The car following a reference: a linear-quadratic regulator and a kinematic bicycle, nuPlan's, 40 steps of 0.1 s."""

import numpy as np

from dipole_ray.driving.plans import STEP_S, STEPS
from dipole_ray.driving.profiles import curvature_profile, speed_profile
from dipole_ray.driving.vehicle import (
    AX,
    AY,
    HEADING,
    STATE_DIM,
    STEER,
    STEER_RATE,
    VX,
    WHEELBASE,
    YAW_ACCEL,
    YAW_RATE,
    Array,
    X,
    Y,
    wrap,
    wrap_evenly,
)

HORIZON = 10
STOPPED_SPEED = 0.2
SPEED_COST, LATERAL_COST, HEADING_COST = 10.0, 1.0, 10.0  # a unit of acceleration or steering rate costs 1
ACCELERATION_LAG_S, STEERING_LAG_S, MAX_STEER = 0.2, 0.05, np.pi / 3


def simulate(reference: Array, ego: Array) -> Array:
    """Return the states (B, 41, 11) of the car that follows references (B, 41, 3) from the state `ego` (11,)."""
    states = np.zeros((len(reference), STEPS + 1, STATE_DIM))
    states[:, 0] = ego
    speed = speed_profile(reference)
    curvature = curvature_profile(reference, speed)
    last = speed.shape[1] - 1
    for step in range(STEPS):
        window = np.minimum(np.arange(step, step + HORIZON), min(step + HORIZON, last))
        target = speed[:, min(step + HORIZON, last)]
        acceleration, steer_rate = _controls(states[:, step], reference[:, step], target, curvature[:, window])
        states[:, step + 1] = _moved(states[:, step], acceleration, steer_rate)
    return states


def _controls(state: Array, pose: Array, target_speed: Array, curvature: Array) -> tuple[Array, Array]:
    """Return the acceleration and the rate of steering, (B,) each, that bring the car to the reference in 1 s."""
    speed = state[:, VX]
    stops = (target_speed <= STOPPED_SPEED) & (speed <= STOPPED_SPEED)
    reach = HORIZON * STEP_S
    regulated = -SPEED_COST * reach * (speed - target_speed) / (reach * SPEED_COST * reach + 1)
    acceleration = np.where(stops, -0.5 * (speed - target_speed), regulated)
    distance = (speed[:, None] + acceleration[:, None] * (STEP_S * np.arange(HORIZON))) * STEP_S
    steer_rate = _steer_rate(_lateral_state(state, pose), distance, curvature)
    return acceleration, np.where(stops, 0.0, steer_rate)


def _lateral_state(state: Array, pose: Array) -> tuple[Array, Array, Array]:
    """Return the error to the side, the error of the heading and the steering angle."""
    x, y = state[:, X] - pose[:, 0], state[:, Y] - pose[:, 1]
    sideways = -x * np.sin(pose[:, 2]) + y * np.cos(pose[:, 2])
    return sideways, wrap_evenly(state[:, HEADING] - pose[:, 2]), state[:, STEER]


def _steer_rate(errors: tuple[Array, Array, Array], distance: Array, curvature: Array) -> Array:
    """Return the one rate of steering, held over the horizon, that costs least at its end.

    Errors grow as side += distance * heading, heading += distance * (steer / wheelbase - curvature) and steer += rate *
    dt, over the distances (B, 10); in the end they are what they are without steering, plus `rate` times an effect.
    """
    side, heading, steer = errors
    headings = heading[:, None] + _before(distance * (steer[:, None] / WHEELBASE - curvature))
    side = side + (distance * headings[:, :-1]).sum(axis=1)
    effects = _before(distance / WHEELBASE * (STEP_S * np.arange(HORIZON)))
    effect = (distance * effects[:, :-1]).sum(axis=1)
    heading, turned = wrap_evenly(headings[:, -1]), effects[:, -1]
    cost = LATERAL_COST * effect * side + HEADING_COST * turned * heading
    rate: Array = -cost / (LATERAL_COST * effect**2 + HEADING_COST * turned**2 + 1)
    return rate


def _before(steps: Array) -> Array:
    """Return the sums (B, 11) of what comes before each of ten steps and after the last."""
    return np.concatenate([np.zeros((len(steps), 1)), np.cumsum(steps, axis=1)], axis=1)


def _moved(state: Array, acceleration: Array, steer_rate: Array) -> Array:
    """Return the states (B, 11) one step later; acceleration and steering lag behind what was asked for."""
    new = np.zeros_like(state)
    speed, steer, heading = state[:, VX], state[:, STEER], state[:, HEADING]
    gain = STEP_S / (STEP_S + ACCELERATION_LAG_S)
    new[:, AX], new[:, AY] = gain * (acceleration - state[:, AX]) + state[:, AX], 0.0
    ideal = STEP_S * steer_rate + steer
    reached = STEP_S / (STEP_S + STEERING_LAG_S) * (ideal - steer) + steer
    new[:, STEER_RATE] = (reached - steer) / STEP_S
    new[:, X] = state[:, X] + speed * np.cos(heading) * STEP_S
    new[:, Y] = state[:, Y] + speed * np.sin(heading) * STEP_S
    new[:, HEADING] = wrap(heading + speed * np.tan(steer) / WHEELBASE * STEP_S)
    new[:, VX] = speed + new[:, AX] * STEP_S
    new[:, STEER] = np.clip(steer + new[:, STEER_RATE] * STEP_S, -MAX_STEER, MAX_STEER)
    new[:, YAW_RATE] = new[:, VX] * np.tan(new[:, STEER]) / WHEELBASE
    new[:, YAW_ACCEL] = (new[:, YAW_RATE] - state[:, YAW_RATE]) / STEP_S
    return new
