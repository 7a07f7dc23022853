"""Whether a drive is comfortable: six bounds on smoothed accelerations, jerks and yaw."""

from functools import cache

import numpy as np
from scipy.signal import savgol_filter

from dipole_ray.driving.plans import STEP_S, STEPS
from dipole_ray.driving.vehicle import AX, AY, HEADING, Array

LON_ACCEL, LAT_ACCEL = (-4.05, 2.40), 4.89  # m/s^2
JERK, LON_JERK = 8.37, 4.13  # m/s^3
YAW_ACCEL, YAW_RATE = 1.93, 0.95  # rad/s^2, rad/s


def comfort_score(states: Array) -> Array:
    """Return C (B,): 1 if the states (B, 41, 11) stay within all six bounds, else 0.

    The windows are the official ones: all 41 samples for accelerations and jerks, but 8 for the accelerations that
    jerks are taken of, and 5 for what is taken of the heading.
    """
    lon, lat, heading = states[..., AX], states[..., AY], _unwrapped(states[..., HEADING])
    size = np.hypot(lon, lat)
    smooth = _smooth(lon, 41)
    jerk, lon_jerk = (_smooth(_smooth(values, 8), 41, derivative=1) for values in (size, lon))
    yaw_rate, yaw_accel = _smooth(heading, 5, derivative=1), _smooth(heading, 5, order=3, derivative=2)
    within = (smooth > LON_ACCEL[0]) & (smooth < LON_ACCEL[1]) & (np.abs(_smooth(lat, 41)) < LAT_ACCEL)
    within &= (np.abs(jerk) < JERK) & (np.abs(lon_jerk) < LON_JERK)
    within &= (np.abs(yaw_accel) < YAW_ACCEL) & (np.abs(yaw_rate) < YAW_RATE)
    score: Array = within.all(axis=1).astype(float)
    return score


def _smooth(values: Array, window: int, order: int = 2, derivative: int = 0) -> Array:
    """Return values (B, 41), or a derivative, of the polynomials fitted to a window around each sample."""
    smooth: Array = np.round(values @ _filter(window, order, derivative), 8)
    return smooth


@cache
def _filter(window: int, order: int, derivative: int) -> Array:
    """Return the Savitzky-Golay filter as a matrix (41, 41), to be multiplied from the right."""
    identity = np.eye(STEPS + 1)
    matrix: Array = savgol_filter(identity, window, order, deriv=derivative, delta=STEP_S, axis=-1)
    return matrix


def _unwrapped(heading: Array) -> Array:
    turns = np.cumsum(np.round(np.diff(heading, axis=1) / (2 * np.pi)), axis=1)
    return np.concatenate([heading[:, :1], heading[:, 1:] - 2 * np.pi * turns], axis=1)
