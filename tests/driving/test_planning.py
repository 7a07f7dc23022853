"""From scenes to scored plans: encoded once, cloned by a head from the cached tokens, planned in and judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("shapely")

import torch

from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import make_agent
from dipole_ray.agents.backbones import BackboneConfig
from dipole_ray.agents.config import AgentConfig
from dipole_ray.driving.actions import ACTION_DIM, actions_of, plans_of
from dipole_ray.driving.contexts import encode_scenes, planning_schema
from dipole_ray.driving.observations import observe
from dipole_ray.driving.score import PDMScorer
from tests.driving.test_anchors import scene
from tests.driving.test_contexts import make_folder


def test_a_head_clones_the_drivers_plans_from_cached_tokens_and_its_plans_are_scored(tmp_path: Path) -> None:
    scenes = make_folder(tmp_path / "scenes", [scene("a"), scene("b", speed=5.0)], [scene("c", start=40.0)])
    cached = encode_scenes(scenes, tmp_path / "tokens", "tiny")
    some = [scenes.read(token) for token in scenes.tokens]
    ego = np.stack([observe(one, "status") for one in some])
    schema = planning_schema(cached.shape, ego.shape[1], ACTION_DIM)
    config = AgentConfig(
        backbone=BackboneConfig(network="dipole_ray.agents.plan_heads:tiny"),
        adapters=AdapterConfig(rank=2),
        advantage="group",
        diffusion="vp",
        noise_scale=0.5,
        learning_rate=2e-3,
        num_candidates=1,
    )
    agent = make_agent(config, schema, seed=0)
    human = np.stack([one.human for one in some])
    seen = {"ego": ego, "context": cached.read(scenes.tokens)}
    scored = [PDMScorer(one.scene, "clipped") for one in some]

    def planned() -> np.ndarray:
        many = {name: values.repeat(4, axis=0) for name, values in seen.items()}
        drawn = agent.sample_actions(many, policy="bc", generator=torch.Generator().manual_seed(0))
        return plans_of(drawn.numpy()).reshape(3, 4, 8, 3)

    before = np.abs(planned()[..., 0] - human[:, None, :, 0]).mean()
    agent.clone(True)
    rows = {name: values.repeat(8, axis=0) for name, values in seen.items()}
    nothing = np.zeros(24, np.float32)
    batch = {"observations": rows, "next_observations": rows, "rewards": nothing, "masks": nothing}
    for _ in range(80):
        agent.update({**batch, "actions": actions_of(human).repeat(8, axis=0)}, diagnostics=False)
    plans = planned()
    assert np.abs(plans[..., 0] - human[:, None, :, 0]).mean() < 0.3 * before
    scores = np.stack([one.score(own).pdms for one, own in zip(scored, plans, strict=True)])
    assert scores.shape == (3, 4) and (scores >= 0).all() and (scores <= 1).all()
