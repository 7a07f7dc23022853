"""On a bandit with two modes and a known reward, greediness pays and bounded weights survive a steep beta."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from dipole_ray.agents.agent import Agent, make_agent
from dipole_ray.agents.config import AgentConfig
from dipole_ray.columns import Schema
from dipole_ray.errors import NonFiniteError

ROWS = 128


def bandit_config(**changes: Any) -> AgentConfig:
    small = {
        "hidden_dims": (48, 48),
        "learning_rate": 3e-3,
        "expectile": 0.5,
        "num_candidates": 1,
        "bootstrap": "value",
    }
    return AgentConfig(**{**small, "beta": 2.0, **changes})


def reward_of(actions: np.ndarray) -> np.ndarray:
    """Return the known reward, in (0, 1]: best at 0.5, next to nothing at the other mode and outside the data."""
    return np.exp(-((actions - 0.5) ** 2) / (2 * 0.2**2))


def bandit_batch(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return one-step episodes whose actions come from two modes, at -0.5 and 0.5."""
    actions = rng.choice([-0.5, 0.5], size=(ROWS, 1)) + 0.08 * rng.normal(size=(ROWS, 1))
    nothing = np.zeros((ROWS, 1), np.float32)
    return {
        "observations": nothing,
        "actions": actions.astype(np.float32),
        "rewards": reward_of(actions[:, 0]).astype(np.float32),
        "masks": np.zeros(ROWS, np.float32),
        "next_observations": nothing,
    }


def train(config: AgentConfig, updates: int) -> tuple[Agent, list[float]]:
    """Return the trained agent and its first policy loss at every update."""
    agent, rng = make_agent(config, Schema(1, 1), seed=0), np.random.default_rng(0)
    history = []
    for _ in range(updates):
        metrics = agent.update(bandit_batch(rng), diagnostics=False)
        history.append(next(float(value) for name, value in metrics.items() if name.startswith("actor/loss")))
    return agent, history


@cache
def trained_dipole() -> Agent:
    return train(bandit_config(train_bc=True), 1200)[0]


def expected_reward(agent: Agent, **options: Any) -> float:
    actions = agent.sample_actions(
        np.zeros((4000, 1), np.float32), generator=torch.Generator().manual_seed(0), **options
    )
    return float(reward_of(actions.numpy()).mean())


def assert_greediness_pays(agent: Agent) -> None:
    """Check that the expected reward rises with omega, and falls when omega presses the actions out of the data."""
    rewards = [expected_reward(agent, omega=omega) for omega in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    pressed = expected_reward(agent, omega=100.0)
    cloned = expected_reward(agent, policy="bc")
    print(f"omega -1 to 1: {np.round(rewards, 3)}, 100: {pressed:.3f}, behaviour cloning: {cloned:.3f}")
    assert all(low < high for low, high in pairwise(rewards))
    assert rewards[-1] > 0.75 and pressed < 0.5
    # Both modes have half the data and A = +-a with a = 0.464, so pi+ gives the better one sigma(2 a).
    in_mode = (0.2**2 / (0.2**2 + 0.08**2)) ** 0.5
    assert cloned == pytest.approx(in_mode / 2, abs=0.1)
    assert rewards[2] == pytest.approx(in_mode / (1 + np.exp(-2.0 * in_mode / 2)), abs=0.1)


def test_expected_reward_rises_with_omega_and_falls_when_pressed_out_of_the_data() -> None:
    assert_greediness_pays(trained_dipole())


def test_choosing_among_candidates_also_raises_the_reward_of_cloning() -> None:
    agent = trained_dipole()
    assert expected_reward(agent, policy="bc", num_candidates=16) > 0.9


def test_exponential_weights_blow_up_where_the_dichotomous_ones_stay_bounded() -> None:
    steep = 6.0
    agent, bounded = train(bandit_config(beta=steep), 500)
    _, exploding = train(bandit_config(beta=steep, weight_scheme="exp", exp_weight_max=math.inf), 300)
    print(f"largest loss at beta {steep}: dipole {max(bounded):.2f}, exp {max(exploding):.2e}")
    assert max(bounded) < 10 and max(exploding) > 1e4
    assert expected_reward(agent, omega=0.0) > 0.5
    # Steeper still, exp(beta A) leaves float32 and no step can be taken; the bounded weights do not notice.
    with pytest.raises(NonFiniteError):
        train(bandit_config(beta=1e4, weight_scheme="exp", exp_weight_max=math.inf), 300)
    agent, bounded = train(bandit_config(beta=1e4), 500)
    assert max(bounded) < 10 and agent.skipped_updates == 0
    assert expected_reward(agent, omega=0.0) > 0.5


def test_fql_leaves_the_mode_that_pays_nothing_the_less_it_is_held_to_the_data() -> None:
    held, free = (
        train(bandit_config(algorithm="fql", bootstrap="policy", alpha=alpha, denoise_steps=5), 600)[0]
        for alpha in (1000.0, 0.3)
    )
    cloned = expected_reward(free, policy="bc")
    rewards = [expected_reward(agent) for agent in (held, free)]
    chosen = expected_reward(held, num_candidates=16)
    print(f"cloned {cloned:.3f}, alpha 1000: {rewards[0]:.3f}, best of 16 {chosen:.3f}, alpha 0.3: {rewards[1]:.3f}")
    assert rewards[0] == pytest.approx(cloned, abs=0.15) and rewards[1] > 0.8 and chosen > 0.8


def test_iql_goes_to_the_better_mode_where_a_flat_weight_stays_between_them() -> None:
    steep, flat = (train(bandit_config(algorithm="iql", beta=beta), 800)[0] for beta in (10.0, 1e-6))
    rewards = [expected_reward(agent) for agent in (steep, flat)]
    drawn = [expected_reward(agent, explore=True) for agent in (steep, flat)]
    print(f"beta 10: mode {rewards[0]:.3f}, drawn {drawn[0]:.3f}; beta 0: {rewards[1]:.3f}, drawn {drawn[1]:.3f}")
    mean = float(flat.sample_actions(np.zeros((1, 1), np.float32)))
    assert rewards[0] > 0.9 and drawn[0] > 0.7, "its deviation is learned, so that draws stay in the mode"
    assert mean == pytest.approx(0.0, abs=0.1) and rewards[1] < 0.2
