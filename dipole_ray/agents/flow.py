"""Flow matching: the straight path from noise to action, the guided field and its Euler sampler.

Shapes: B rows, A action dim; K denoise steps. Any leading shape works.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def path_point(noise: Tensor, actions: Tensor, t: Tensor) -> Tensor:
    """Return x_t = (1 - t) x_0 + t a, shape (B, A), for noise x_0 and actions (B, A) and times t (B, 1)."""
    return torch.lerp(noise, actions, t)


def path_velocity(noise: Tensor, actions: Tensor) -> Tensor:
    """Return the regression target u = a - x_0, shape (B, A): the path's velocity, constant in t."""
    return actions - noise


def guided_velocity(positive: Tensor, negative: Tensor, omega: float | Tensor) -> Tensor:
    """Combine the two fields into the field of the greedified policy, (1 + omega) v+ - omega v- (Eq. 10).

    Computed as v+ + omega (v+ - v-): the textbook difference of two large terms has twelve times the
    bfloat16 error at omega = 5.

    Args:
        positive: v+, any shape.
        negative: v-, same shape.
        omega: Greediness, a number or a tensor that broadcasts; 0 is v+ and -1 is v-.

    Returns:
        The guided velocity, same shape.
    """
    return positive + omega * (positive - negative)


def sample(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, denoise_steps: int, clip: bool = True) -> Tensor:
    """Carry noise to actions with K Euler steps from t = 0 to t = 1.

    Args:
        velocity: The field, called as velocity(x, t) with t = 0, 1/K, ..., (K-1)/K; returns the shape of x.
        noise: x_0, a draw of the standard normal.
        denoise_steps: K, at least 1.
        clip: Whether to clip the result, once at the end, to the action box [-1, 1].

    Returns:
        Actions, the shape of `noise`.
    """
    x = noise
    for k in range(denoise_steps):
        x = x + velocity(x, k / denoise_steps) / denoise_steps
    return x.clamp(-1.0, 1.0) if clip else x
