"""A plan as the reference that the car has to follow: poses in the world, every 0.1 s over 4 s."""

import numpy as np

from dipole_ray.driving.vehicle import HEADING, Array, X, Y, wrap

STEP_S, STEPS = 0.1, 40
PLAN_STEP_S = 0.5
MAX_POSE = 1e6  # metres or radians; beyond it the arithmetic says nothing


def reference_poses(plans: Array, ego: Array, start_us: int) -> Array:
    """Return the poses (B, 41, 3) in the world that plans (B, K, 3) ask for; the first is the car's own.

    A plan's poses follow each other by 0.5 s, in the frame of the rear axle at the start; the last one is held. Times
    are whole microseconds of the clock, cut off as the official code cuts them: that moves a pose by up to `speed` um.
    """
    count = plans.shape[1]
    start_s = start_us * 1e-6
    knots_us = np.concatenate([[start_us], _cut((np.arange(count) * PLAN_STEP_S + PLAN_STEP_S + start_s) * 1e6)])
    return sampled(_in_world(plans, ego), knots_us, start_us)


def sampled(poses: Array, knots_us: Array, start_us: int) -> Array:
    """Return the poses (B, 41, 3) every 0.1 s between poses (B, n, 3) in the world at the times (n,)."""
    times_us = np.clip(_cut((np.arange(STEPS + 1) * STEP_S + start_us * 1e-6) * 1e6), knots_us[0], knots_us[-1])
    poses = np.concatenate([poses[..., :2], np.unwrap(poses[..., 2:], axis=1)], axis=-1)
    after = np.clip(np.searchsorted(knots_us, times_us), 1, len(knots_us) - 1)
    since_us, span_us = times_us - knots_us[after - 1], knots_us[after] - knots_us[after - 1]
    slopes = (poses[:, after] - poses[:, after - 1]) / span_us[:, None]
    reference: Array = slopes * since_us[:, None] + poses[:, after - 1]
    reference[..., 2] = wrap(reference[..., 2])
    return reference


def _cut(microseconds: Array) -> Array:
    return microseconds.astype(np.int64).astype(np.float64)


def _in_world(plans: Array, ego: Array) -> Array:
    """Return the poses (B, 1 + K, 3) of the car at the start and of the plans, in the world."""
    cos, sin = np.cos(ego[HEADING]), np.sin(ego[HEADING])
    x, y, turn_cos, turn_sin = plans[..., 0], plans[..., 1], np.cos(plans[..., 2]), np.sin(plans[..., 2])
    heading = np.arctan2(sin * turn_cos + cos * turn_sin, cos * turn_cos - sin * turn_sin)
    world = np.stack([cos * x - sin * y + ego[X], sin * x + cos * y + ego[Y], heading], axis=-1)
    start = np.broadcast_to(ego[[X, Y, HEADING]], (len(plans), 1, 3))
    return np.concatenate([start, world], axis=1)
