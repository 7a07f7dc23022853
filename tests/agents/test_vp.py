"""The variance-preserving diffusion: DPM-Solver++ solves its equation, and agents that predict noise learn."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from dipole_ray.agents import agent as agents
from dipole_ray.agents import flow, vp
from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.columns import Schema
from dipole_ray.errors import ConfigError
from tests.agents.battery import make_agent, make_batch, tiny_config
from tests.agents.test_bandit import bandit_config

POSITIVE, NEGATIVE = (0.4, 0.3), (-0.2, 0.6)
"""Mean and deviation of the 1-D Gaussians pi+ and pi-."""
Prediction = Callable[[Tensor, float], Tensor]


def levels(t: float) -> tuple[float, float, float]:
    """Return beta(t), alpha and sigma of the published schedule, whose integral from 0 to t is t^2 / 2 and t times."""
    log_alpha = -0.5 * (0.1 * t + 19.9 * t * t / 2)
    return 0.1 + 19.9 * t, float(np.exp(log_alpha)), float(np.sqrt(1 - np.exp(2 * log_alpha)))


def slope_and_offset(t: float, mean: float, deviation: float) -> np.ndarray:
    """Return (a, b) of E[noise | x_t = x] = a x + b, the known score of a Gaussian times -sigma."""
    _, alpha, sigma = levels(t)
    slope = sigma / (alpha**2 * deviation**2 + sigma**2)
    return np.array([slope, -slope * alpha * mean])


def guided(t: float, omega: float) -> np.ndarray:
    return (1 + omega) * slope_and_offset(t, *POSITIVE) - omega * slope_and_offset(t, *NEGATIVE)


def prediction(omega: float) -> Prediction:
    def noise(x: Tensor, t: float) -> Tensor:
        both = [slope_and_offset(t, *one) for one in (POSITIVE, NEGATIVE)]
        positive, negative = (slope * x + offset for slope, offset in both)
        return flow.guided_velocity(positive, negative, omega)

    return noise


def sampled(omega: float, steps: int) -> np.ndarray:
    """Return what noise of 0 and of 1 become."""
    return vp.sample(prediction(omega), torch.tensor([0.0, 1.0], dtype=torch.float64), steps, clip=False).numpy()


def exact(omega: float) -> np.ndarray:
    """Solve the probability flow dx/dt = -beta x / 2 + beta noise / (2 sigma) from 1 to 1e-3; predict the action."""

    def rate(t: float, x: np.ndarray) -> np.ndarray:
        (beta, _, sigma), (slope, offset) = levels(t), guided(t, omega)
        return np.asarray(0.5 * beta * ((slope * x + offset) / sigma - x))

    x = solve_ivp(rate, (1.0, vp.FIRST), [0.0, 1.0], method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    (_, alpha, sigma), (slope, offset) = levels(vp.FIRST), guided(vp.FIRST, omega)
    return np.asarray((x - sigma * (slope * x + offset)) / alpha)


@pytest.mark.parametrize("omega", [-1.0, 0.0, 0.5, 2.0])
def test_the_solver_solves_the_guided_equation_of_two_gaussians_with_an_error_of_second_order(omega: float) -> None:
    errors = [np.abs(sampled(omega, 1 + steps) - exact(omega)).max() for steps in (100, 200, 400, 3200)]
    assert errors[0] / errors[1] > 3.6 and errors[1] / errors[2] > 3.7
    assert errors[-1] < 1e-5
    assert errors[0] / errors[1] < 4.6, "more than the order of the method would be another method"


def test_one_gaussian_alone_is_sampled_as_the_closed_form_says() -> None:
    mean, deviation = POSITIVE
    (_, first_alpha, first_sigma), (_, alpha, sigma) = levels(1.0), levels(vp.FIRST)
    spread, last = (np.sqrt(a**2 * deviation**2 + s**2) for a, s in ((first_alpha, first_sigma), (alpha, sigma)))
    noise = np.array([0.0, 1.0])
    x = alpha * mean + last / spread * (noise - first_alpha * mean)
    closed = mean + alpha * deviation**2 / last**2 * (x - alpha * mean)
    np.testing.assert_allclose(exact(0.0), closed, atol=1e-9)
    for steps, error in ((10, 0.03), (5, 0.25)):  # in deviations
        np.testing.assert_allclose(sampled(0.0, steps), closed, atol=error * deviation)


def test_each_step_asks_once_from_noise_to_the_least_time_and_clips_once_at_the_end() -> None:
    asked: list[float] = []

    def noted(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return torch.zeros_like(x)

    found = vp.sample(noted, torch.tensor([3.0, -0.001]), 6)
    assert len(asked) == 6 and asked[0] == pytest.approx(1.0) and asked[-1] == pytest.approx(1e-3)
    snr = np.log([alpha / sigma for _, alpha, sigma in map(levels, asked)])
    np.testing.assert_allclose(np.diff(snr), snr[1] - snr[0], rtol=1e-6)
    assert found[0] == 1.0 and -1.0 < found[1] < 0


def test_points_of_training_have_variance_one_and_times_keep_off_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, actions = torch.randn(2, 200_000, 1, generator=generator)
    t = vp.times(torch.rand(200_000, 1, generator=generator))
    assert float(t.min()) >= 1e-3 and float(t.max()) < 1.0
    assert float(vp.path_point(noise, actions, t).var()) == pytest.approx(1.0, abs=0.01)
    t = torch.tensor([[0.3]], dtype=torch.float64)
    _, alpha, sigma = levels(0.3)
    point = vp.path_point(torch.full((1, 1), 2.0).double(), torch.full((1, 1), 0.5).double(), t)
    assert float(point) == pytest.approx(0.5 * alpha + 2.0 * sigma, rel=1e-12)


@pytest.mark.parametrize("adapters", [{}, {"adapters": AdapterConfig(rank=4)}])
def test_actions_are_what_the_solver_makes_of_the_combined_predictions(adapters: dict[str, AdapterConfig]) -> None:
    config = tiny_config(diffusion="vp", **adapters)
    agent = make_agent(config)
    agent.update(make_batch(0))
    observations = make_batch(1)["observations"]
    noise = torch.randn(len(observations), 1, 2, generator=torch.Generator().manual_seed(0))
    found = agent.policy.packed().from_noise(torch.from_numpy(observations), noise, 1.5, "guided")
    fields, both = agent.networks.fields, ["positive", "negative"]
    context = fields.encode(torch.from_numpy(observations), both)
    with torch.no_grad():
        expected = vp.sample(
            lambda x, t: flow.guided_velocity(*fields.velocity(context, x, t, both), 1.5), noise, config.denoise_steps
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_greediness_moves_the_actions_where_fields_predict_noise() -> None:
    config = bandit_config(diffusion="vp", train_bc=True, beta=4.0)
    agent, rng = agents.make_agent(config, Schema(1, 1), seed=0), np.random.default_rng(0)
    nothing = np.zeros((256, 1), np.float32)
    for _ in range(400):
        actions = (0.3 * rng.normal(size=(256, 1))).clip(-1, 1).astype(np.float32)
        batch = {"actions": actions, "rewards": actions[:, 0], "masks": nothing[:, 0]}
        agent.update({**batch, "observations": nothing, "next_observations": nothing}, diagnostics=False)

    def acted(**how: Any) -> np.ndarray:
        states, generator = np.zeros((4000, 1), np.float32), torch.Generator().manual_seed(0)
        return np.asarray(agent.sample_actions(states, generator=generator, **how).cpu())

    means = [float(acted(omega=omega).mean()) for omega in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    cloned = acted(policy="bc")
    print(f"mean actions, omega -1 to 1: {np.round(means, 3)}; cloned {cloned.mean():.3f} +- {cloned.std():.3f}")
    assert all(low + 0.05 < high for low, high in pairwise(means)) and means[-1] > 0.25
    assert cloned.mean() == pytest.approx(0.0, abs=0.05) and cloned.std() == pytest.approx(0.3, abs=0.05)


def test_initial_noise_is_scaled_where_actions_are_made_and_not_where_fields_learn() -> None:
    plain, scaled = (make_agent(tiny_config(noise_scale=scale, num_candidates=1)) for scale in (1.0, 0.5))
    observations = make_batch(1)["observations"]
    halved = plain.sample_actions(observations, generator=lambda shape: torch.full(shape, 0.5))
    assert torch.equal(halved, scaled.sample_actions(observations, generator=lambda shape: torch.ones(shape)))
    losses = [float(one.update(make_batch(0))["actor/loss_positive"]) for one in (plain, scaled)]
    assert losses[0] == losses[1]


def test_settings_that_nothing_would_read_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"agent\.solver: found midpoint.*DPM-Solver\+\+"):
        tiny_config(diffusion="vp", solver="midpoint")
    with pytest.raises(ConfigError, match="choose one of flow, vp"):
        tiny_config(diffusion="ddpm")
    with pytest.raises(ConfigError, match="noise_scale"):
        tiny_config("iql", noise_scale=0.5)
