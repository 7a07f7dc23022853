"""The guided sampler solves the guided equation, and the guided field is numerically sound."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from dipole_ray.agents import flow

POSITIVE = (0.4, 0.3)
"""Mean and deviation of the 1-D Gaussian pi+."""
NEGATIVE = (-0.2, 0.6)
"""Mean and deviation of the 1-D Gaussian pi-."""


def slope_and_offset(t: float, mean: float, deviation: float) -> tuple[float, float]:
    """Return (a, b) of the marginal velocity E[action - noise | x_t = x] = a x + b of a Gaussian policy."""
    slope = (t * deviation**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * deviation**2)
    return slope, mean - slope * t * mean


def gaussian_velocity(mean: float, deviation: float) -> Callable[[Tensor, float], Tensor]:
    def velocity(x: Tensor, t: float) -> Tensor:
        slope, offset = slope_and_offset(t, mean, deviation)
        return slope * x + offset

    return velocity


def sampled_moments(omega: float, denoise_steps: int) -> np.ndarray:
    """Return mean and variance of the sampler's output: it maps noise affinely, so two noises tell all."""
    positive, negative = gaussian_velocity(*POSITIVE), gaussian_velocity(*NEGATIVE)

    def velocity(x: Tensor, t: float) -> Tensor:
        return flow.guided_velocity(positive(x, t), negative(x, t), omega)

    at_zero, at_one = flow.sample(velocity, torch.tensor([0.0, 1.0], dtype=torch.float64), denoise_steps, clip=False)
    return np.array([float(at_zero), float(at_one - at_zero) ** 2])


def exact_moments(omega: float) -> np.ndarray:
    """Solve the moment equations m' = a m + b, s' = 2 a s of the guided affine field."""

    def moment_rates(t: float, moments: np.ndarray) -> list[float]:
        pairs = np.array(slope_and_offset(t, *POSITIVE)), np.array(slope_and_offset(t, *NEGATIVE))
        slope, offset = (1 + omega) * pairs[0] - omega * pairs[1]
        return [slope * moments[0] + offset, 2 * slope * moments[1]]

    solution = solve_ivp(moment_rates, (0, 1), [0.0, 1.0], method="DOP853", rtol=1e-12, atol=1e-13)
    return np.asarray(solution.y[:, -1])


def extrapolated(values: list[np.ndarray]) -> np.ndarray:
    """Remove the error powers 1/K, 1/K^2, ... from results at K, 2K, 4K, ... (Richardson)."""
    order = 1
    while len(values) > 1:
        values = [(2**order * fine - coarse) / (2**order - 1) for coarse, fine in pairwise(values)]
        order += 1
    return values[0]


@pytest.mark.parametrize("omega", [-1.0, 0.0, 0.5, 2.0, 5.0])
def test_guided_sampler_solves_the_guided_equation_of_two_gaussians(omega: float) -> None:
    exact = exact_moments(omega)
    sampled = extrapolated([sampled_moments(omega, 64 * 2**level) for level in range(6)])
    np.testing.assert_allclose(sampled, exact, atol=1e-8, rtol=0)
    # Eq. 10 at every noise level is an approximation of Eq. 7: show how far the product density is.
    precision = (1 + omega) / POSITIVE[1] ** 2 - omega / NEGATIVE[1] ** 2
    weighted = (1 + omega) * POSITIVE[0] / POSITIVE[1] ** 2 - omega * NEGATIVE[0] / NEGATIVE[1] ** 2
    mean, variance = weighted / precision, 1 / precision
    print(
        f"omega {omega:4.1f}: guided mean {exact[0]:.6f} deviation {exact[1] ** 0.5:.6f}, "
        f"product mean {mean:.6f} deviation {variance**0.5:.6f}"
    )
    if omega in (-1.0, 0.0):  # One policy alone: there the field is exact.
        np.testing.assert_allclose(exact, [mean, variance], atol=1e-8)


def test_ten_euler_steps_are_the_composed_affine_maps() -> None:
    factor, addend = 1.0, 0.0
    for k in range(10):
        pairs = np.array(slope_and_offset(k / 10, *POSITIVE)), np.array(slope_and_offset(k / 10, *NEGATIVE))
        slope, offset = 3 * pairs[0] - 2 * pairs[1]
        factor, addend = factor * (1 + slope / 10), addend * (1 + slope / 10) + offset / 10
    np.testing.assert_allclose(sampled_moments(2.0, 10), [addend, factor**2], rtol=1e-13)


def test_midpoint_asks_again_half_a_step_on_and_is_at_least_of_second_order() -> None:
    velocity = gaussian_velocity(*POSITIVE)
    noise, asked = torch.tensor([0.5], dtype=torch.float64), []

    def noted(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return velocity(x, t)

    def error(steps: int) -> float:
        exact = exact_moments(0.0)
        return float((flow.sample(noted, noise, steps, solver="midpoint") - exact[0] - exact[1] ** 0.5 * noise).abs())

    errors = [error(steps) for steps in (2, 20, 40)]
    assert asked[:4] == [0.0, 0.25, 0.5, 0.75]
    assert errors[1] / errors[2] > 3.9 and errors[1] < 1e-3


def test_guided_velocity_is_the_extrapolation_of_equation_10() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 50, 3, dtype=torch.float64, generator=generator)
    for omega in (-1.0, 0.0, 0.5, 4.0):
        expected = (1 + omega) * positive - omega * negative
        torch.testing.assert_close(flow.guided_velocity(positive, negative, omega), expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(flow.guided_velocity(positive, negative, 0.0), positive)
    omegas = torch.linspace(0, 3, 50, dtype=torch.float64).unsqueeze(1)
    rows = flow.guided_velocity(positive, negative, omegas)
    torch.testing.assert_close(rows[7], flow.guided_velocity(positive[7], negative[7], float(omegas[7])))


def test_guided_velocity_keeps_bfloat16_accuracy_where_the_textbook_form_loses_it() -> None:
    generator = torch.Generator().manual_seed(0)
    negative = torch.randn(4000, dtype=torch.float64, generator=generator)
    positive = negative + 0.05 * torch.randn(4000, dtype=torch.float64, generator=generator)
    low_positive, low_negative = positive.bfloat16(), negative.bfloat16()
    exact = flow.guided_velocity(low_positive.double(), low_negative.double(), 5.0)
    error = (flow.guided_velocity(low_positive, low_negative, 5.0).double() - exact).abs().mean()
    textbook = ((1 + 5.0) * low_positive - 5.0 * low_negative).double()
    assert error * 5 < (textbook - exact).abs().mean()


def test_samples_are_clipped_once_at_the_end() -> None:
    noise = torch.tensor([[3.0], [-3.0], [0.2]])
    inward = flow.sample(lambda x, t: -0.9 * noise, noise, denoise_steps=10)
    torch.testing.assert_close(inward, 0.1 * noise)  # A clip on the way would change the first two.
    outward = flow.sample(lambda x, t: torch.ones_like(x), noise, denoise_steps=4)
    assert outward.flatten().tolist() == [1.0, -1.0, 1.0]


def test_the_path_runs_from_noise_to_action_at_its_velocity() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, actions = torch.randn(2, 6, 3, dtype=torch.float64, generator=generator)
    t = torch.rand(6, 1, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(flow.path_point(noise, actions, t), (1 - t) * noise + t * actions)
    torch.testing.assert_close(flow.path_point(noise, actions, 0 * t), noise)
    step = flow.path_point(noise, actions, t) + (1 - t) * flow.path_velocity(noise, actions)
    torch.testing.assert_close(step, actions)
