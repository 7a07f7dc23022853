"""The car of nuPlan, which every plan is driven with: its state and its box."""

import numpy as np

Array = np.ndarray

# The columns of a state: the pose and the motion of the rear axle, in metres, seconds and radians.
X, Y, HEADING, VX, VY, AX, AY, STEER, STEER_RATE, YAW_RATE, YAW_ACCEL = range(11)
STATE_DIM = 11

WIDTH, FRONT, REAR, WHEELBASE = 2.297, 4.049, 1.127, 3.089  # front and rear are seen from the rear axle
LENGTH = FRONT + REAR
REAR_AXLE_TO_CENTER = abs(REAR - LENGTH / 2)


def wrap(angle: Array) -> Array:
    """Return angles in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def wrap_evenly(angle: Array) -> Array:
    """Return angles in [-pi, pi], exact where they already are small."""
    wrapped: Array = np.arctan2(np.sin(angle), np.cos(angle))
    return wrapped


def corners(centers: Array, heading: Array, length: Array | float, width: Array | float) -> Array:
    """Return the corners (..., 4, 2), front left, rear left, rear right, front right, of boxes around centers (..., 2).

    The turn by a right angle is nuPlan's, whose rounding decides which boxes touch.
    """
    along = np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    across = np.stack([np.cos(heading + np.pi / 2), np.sin(heading + np.pi / 2)], axis=-1)
    left, ahead = np.asarray(width)[..., None] / 2, np.asarray(length)[..., None] / 2
    ways = [(left, ahead), (left, -ahead), (-left, -ahead), (-left, ahead)]
    return np.stack([centers + (side * across + front * along) for side, front in ways], axis=-2)


def box_points(states: Array) -> Array:
    """Return the box of the car at states (..., 11), in points (..., 5, 2): its corners, and its centre."""
    heading = states[..., HEADING]
    along = np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    center = states[..., [X, Y]] + REAR_AXLE_TO_CENTER * along
    return np.concatenate([corners(center, heading, LENGTH, WIDTH), center[..., None, :]], axis=-2)


def turned(vectors: Array, angle: Array | float) -> Array:
    """Return vectors (..., 2) turned to the left, by one angle or by angles (...)."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1)


def seen_from(poses: Array, origin: Array) -> Array:
    """Return poses (..., 3) of the world in the frame of a pose (3,)."""
    moved = turned(poses[..., :2] - origin[:2], -origin[2])
    return np.concatenate([moved, wrap_evenly(poses[..., 2:] - origin[2])], axis=-1)
