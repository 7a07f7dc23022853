"""A head that plans learns from scenes that bring their context, cloned first and then by its group's advantage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import make_agent
from dipole_ray.agents.backbones import BackboneConfig
from dipole_ray.agents.config import AgentConfig
from dipole_ray.columns import Column, Schema
from dipole_ray.errors import ConfigError

ROWS = 16
SCHEMA = Schema({"ego": Column((20,)), "context": Column((5, 12), "float16", table="scenes")}, 32)


def config(**changes: Any) -> AgentConfig:
    return AgentConfig(
        backbone=BackboneConfig(network="dipole_ray.agents.plan_heads:tiny"),
        adapters=AdapterConfig(rank=2, targets=("attention", "mlp")),
        advantage="group",
        num_candidates=1,
        learning_rate=3e-3,
        **changes,
    )


def batch(seed: int) -> dict[str, Any]:
    """Return rows whose plan goes where the first number of the context says; it is good where the car is fast."""
    generator = torch.Generator().manual_seed(seed)
    seen: dict[str, Tensor] = {
        "ego": torch.randn(ROWS, 20, generator=generator),
        "context": torch.randn(ROWS, 5, 12, generator=generator).half(),
    }
    actions = torch.tanh(seen["context"].float().mean(dim=(1, 2), keepdim=True)[:, 0] * 3).expand(ROWS, 32)
    rewards, masks = torch.linspace(-1.5, 1.5, ROWS), torch.zeros(ROWS)
    return {"observations": seen, "next_observations": seen, "actions": actions, "rewards": rewards, "masks": masks}


@pytest.mark.parametrize("diffusion", ["flow", "vp"])
def test_a_head_clones_plans_of_the_context_and_then_only_its_adapters_move(diffusion: str) -> None:
    agent = make_agent(config(diffusion=diffusion, noise_scale=0.5), SCHEMA, seed=0)
    agent.clone(True)
    history = [float(agent.update(batch(step))["actor/loss_bc"]) for step in range(60)]
    assert sum(history[-10:]) < 0.7 * sum(history[:10])
    agent.clone(False)
    before = {name: each.clone() for name, each in agent.networks.named_parameters()}
    for step in range(3):
        agent.update(batch(step))
    moved = {name for name, each in agent.networks.named_parameters() if not torch.equal(before[name], each)}
    assert moved == {name for name in before if ".lora_" in name}
    seen = batch(9)["observations"]
    plans = agent.sample_actions(seen, omega=1.0, generator=lambda shape: torch.zeros(shape))
    assert plans.shape == (ROWS, 32) and bool(plans.abs().max() <= 1.0)
    other = {**seen, "context": -seen["context"]}
    assert not torch.allclose(plans, agent.sample_actions(other, omega=1.0, generator=lambda shape: torch.zeros(shape)))


def test_other_observations_are_refused_with_what_a_head_takes() -> None:
    for observed in (Column((20,)), {"ego": Column((20,)), "context": Column((60,))}):
        with pytest.raises(ConfigError, match=r"a head that plans observes ego \(O,\) and context \(C, D\), found "):
            make_agent(config(), Schema(observed, 32), seed=0)
