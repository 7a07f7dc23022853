"""The speeds and curvatures that a reference asks for, by least squares with a penalty for what is rough."""

from functools import cache

import numpy as np

from dipole_ray.driving.plans import STEP_S
from dipole_ray.driving.vehicle import Array, wrap

ROUGH_SPEED, ROUGH_CURVATURE, INITIAL_CURVATURE = 1e-4, 1e-2, 1e-10


def speed_profile(reference: Array) -> Array:
    """Return the speeds (B, M) at the start of each of the M = 40 displacements of a reference (B, 41, 3).

    The displacements are (cos h, sin h) v dt; the unknowns are the first speed and the accelerations. Since the
    headings are unit vectors they drop out of the normal equations, and one matrix serves all plans.
    """
    moved = np.diff(reference[..., :2], axis=1)
    heading = reference[:, :-1, 2]
    along = np.cos(heading) * moved[..., 0] + np.sin(heading) * moved[..., 1]
    return _cumulated(along @ _speed_solver(along.shape[1]).T)


def curvature_profile(reference: Array, speed: Array) -> Array:
    """Return the curvatures (B, M) that turn the reference's headings at these speeds.

    A heading turns by v kappa dt; the unknowns are the first curvature and its rates.
    """
    turned = wrap(np.diff(reference[..., 2], axis=1))
    steps = _integrals(speed.shape[1])
    design = speed[:, :, None] * steps
    normal = np.swapaxes(design, 1, 2) @ design
    penalty = np.full(len(steps), ROUGH_CURVATURE)
    penalty[0] = INITIAL_CURVATURE
    right = np.swapaxes(design, 1, 2) @ turned[..., None]
    return _cumulated(np.linalg.solve(normal + np.diag(penalty), right)[..., 0])


def _cumulated(initial_and_rates: Array) -> Array:
    """Return the profile (B, M) of an initial value and M - 1 rates."""
    changes = np.cumsum(initial_and_rates[:, 1:] * STEP_S, axis=1)
    first = initial_and_rates[:, :1]
    return np.concatenate([first, first + changes], axis=1)


def _integrals(count: int) -> Array:
    """Return the matrix (M, M) from an initial value and rates to the integral over each step."""
    matrix = np.tri(count) * STEP_S**2
    matrix[:, 0] = STEP_S
    return matrix


@cache
def _speed_solver(count: int) -> Array:
    """Return the matrix (M, M) from displacements to the first speed and the accelerations.

    The penalty was meant for the differences of accelerations. In the official code the band of ones is overwritten,
    so that it is one for the accelerations themselves, but for the last row; scores depend on that.
    """
    rough = np.zeros((count - 2, count))
    rough[:, 1:-1] = -np.eye(count - 2)
    rough[-1, -1] = 1.0
    steps = _integrals(count)
    solver: Array = np.linalg.pinv(steps.T @ steps + ROUGH_SPEED * rough.T @ rough) @ steps.T
    return solver
