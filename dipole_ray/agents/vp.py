"""Variance-preserving diffusion with the linear schedule, and DPM-Solver++ (Lu et al., 2022), order 2, multistep.

    x_t = alpha(t) a + sigma(t) noise,   log alpha(t) = -(b1 - b0) t^2 / 4 - b0 t / 2,   sigma^2 = 1 - alpha^2

The action is at t = 0 and noise at t = 1, the other way round than in `flow`. A field predicts the noise; that of the
guided policy combines two such predictions as `flow.guided_velocity` combines velocities (Eq. 10).

Shapes: B rows, A action dim; K denoise steps.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_B0, _B1 = 0.1, 20.0
FIRST = 1e-3
"""The least time that is trained, where the field is asked last."""


def path_point(noise: Tensor, actions: Tensor, t: Tensor) -> Tensor:
    """Return x_t, shape (B, A), for noise and actions (B, A) and times t (B, 1)."""
    log_alpha = _log_alpha(t)
    return log_alpha.exp() * actions + (-torch.expm1(2.0 * log_alpha)).sqrt() * noise


def times(uniform: Tensor) -> Tensor:
    """Return the times of training, uniform in [1e-3, 1), of numbers uniform in [0, 1)."""
    return FIRST + (1.0 - FIRST) * uniform


def sample(
    noise_prediction: Callable[[Tensor, float], Tensor],
    noise: Tensor,
    denoise_steps: int,
    clip: bool = True,
    clips_predictions: bool = False,
) -> Tensor:
    """Carry noise to actions of its shape, asking the field K times, from t = 1 to t = 1e-3.

    The times are spaced evenly in log(alpha / sigma). Each step goes along the line through the last two predictions
    of the action, clipped or not; the last prediction is the result, clipped to the action box [-1, 1].
    """
    points, width = schedule(denoise_steps), _width(denoise_steps)

    def actions(x: Tensor, k: int) -> Tensor:
        alpha, sigma, t = points[k]
        found = (x - sigma * noise_prediction(x, t)) / alpha
        return found.clamp(-1.0, 1.0) if clips_predictions else found

    x, found = noise, actions(noise, 0)
    along = found
    for k in range(1, denoise_steps):
        alpha, sigma, _ = points[k]
        x = sigma / points[k - 1][1] * x - alpha * math.expm1(-width) * along
        before, found = found, actions(x, k)
        along = 1.5 * found - 0.5 * before
    return found.clamp(-1.0, 1.0) if clip else found


def schedule(denoise_steps: int) -> list[tuple[float, float, float]]:
    """Return alpha, sigma and t where a sampler asks the field, spaced evenly in log(alpha / sigma)."""
    first, width = _half_log_snr(1.0), _width(denoise_steps)
    return [_schedule(first + k * width) for k in range(denoise_steps)]


def _width(denoise_steps: int) -> float:
    """Return the step in log(alpha / sigma)."""
    return (_half_log_snr(FIRST) - _half_log_snr(1.0)) / max(denoise_steps - 1, 1)


def _log_alpha(t: Tensor) -> Tensor:
    return -0.25 * (_B1 - _B0) * t.square() - 0.5 * _B0 * t


def _half_log_snr(t: float) -> float:
    """Return log(alpha / sigma)."""
    log_alpha = -0.25 * (_B1 - _B0) * t * t - 0.5 * _B0 * t
    return log_alpha - 0.5 * math.log(-math.expm1(2.0 * log_alpha))


def _schedule(half_log_snr: float) -> tuple[float, float, float]:
    """Return alpha, sigma and t at a value of log(alpha / sigma)."""
    log_alpha = -0.5 * math.log1p(math.exp(-2.0 * half_log_snr))
    # The root of (b1 - b0) t^2 / 4 + b0 t / 2 + log alpha = 0, without a difference of like numbers.
    t = -4.0 * log_alpha / (_B0 + math.sqrt(_B0 * _B0 - 4.0 * (_B1 - _B0) * log_alpha))
    return math.exp(log_alpha), math.sqrt(-math.expm1(2.0 * log_alpha)), t
