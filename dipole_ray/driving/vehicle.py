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


def box_points(states: Array) -> Array:
    """Return the box of the car at states (..., 11), in points (..., 5, 2).

    These are the corners front left, rear left, rear right and front right, and the centre.
    """
    heading = states[..., HEADING, None]
    along = np.concatenate([np.cos(heading), np.sin(heading)], axis=-1)
    # The turn by a right angle is nuPlan's, whose rounding decides which boxes touch.
    across = np.concatenate([np.cos(heading + np.pi / 2), np.sin(heading + np.pi / 2)], axis=-1)
    center = states[..., [X, Y]] + REAR_AXLE_TO_CENTER * along
    corners = [(WIDTH / 2, LENGTH / 2), (WIDTH / 2, -LENGTH / 2), (-WIDTH / 2, -LENGTH / 2), (-WIDTH / 2, LENGTH / 2)]
    return np.stack([*(center + (left * across + ahead * along) for left, ahead in corners), center], axis=-2)
