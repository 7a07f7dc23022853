"""From scenes to scored plans: encoded once, cloned by a head from the cached tokens, planned in and judged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("shapely")

import torch

from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import make_agent
from dipole_ray.agents.backbones import BackboneConfig
from dipole_ray.agents.config import AgentConfig
from dipole_ray.collect.scenes import scene_dataset
from dipole_ray.data.dataset import open_dataset
from dipole_ray.driving.actions import actions_of, plans_of
from dipole_ray.driving.bev_encoder import BEVEncoder
from dipole_ray.driving.container import SceneFolder
from dipole_ray.driving.contexts import default_folder, encode_scenes
from dipole_ray.driving.encoders import save_small
from dipole_ray.driving.observations import observe, schema_of
from dipole_ray.driving.scene_set import SceneSet
from dipole_ray.driving.score import PDMScorer
from dipole_ray.errors import DatasetError
from dipole_ray.evaluation.cells import EvalConfig
from dipole_ray.evaluation.parallel import evaluate_policy
from dipole_ray.evaluation.report import sort_rows
from dipole_ray.evaluation.table import rows_of
from dipole_ray.runs.config import RunConfig
from dipole_ray.runs.start import start_run
from dipole_ray.serving.policy import load_policy
from tests.driving.folders import made_folder
from tests.driving.test_anchors import scene
from tests.driving.test_contexts import make_folder
from tests.driving.test_learning import ROUND, settings


def test_a_head_clones_the_drivers_plans_from_cached_tokens_and_its_plans_are_scored(tmp_path: Path) -> None:
    scenes = make_folder(tmp_path / "scenes", [scene("a"), scene("b", speed=5.0)], [scene("c", start=40.0)])
    cached = encode_scenes(scenes, tmp_path / "tokens", "tiny")
    some = [scenes.read(token) for token in scenes.tokens]
    ego = np.stack([observe(one, "status") for one in some])
    config = AgentConfig(
        backbone=BackboneConfig(network="dipole_ray.agents.plan_heads:tiny"),
        adapters=AdapterConfig(rank=2),
        advantage="group",
        diffusion="vp",
        noise_scale=0.5,
        learning_rate=2e-3,
        num_candidates=1,
    )
    agent = make_agent(config, schema_of("tiny"), seed=0)
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


@pytest.mark.slow
def test_a_run_learns_and_drives_by_tokens_that_were_encoded_before(cluster: None, tmp_path: Path) -> None:
    """Of four plans a learned score, which attends to the tokens too, takes one."""
    folders = made_folder(tmp_path / "train", 6), made_folder(tmp_path / "validation", 4)
    loop = {"clone_learner_steps": 8, "offline_learner_steps": 0, "online_env_steps": ROUND}
    given = settings(folders, tmp_path, scored=True, **loop)
    given["env"]["driving"] |= {"observation": "small", "actions": "poses"}
    given["agent"] |= {
        "backbone": {"network": "dipole_ray.agents.plan_heads:tiny"},
        "adapters": {"rank": 2},
        "diffusion": "vp",
        "noise_scale": 0.5,
        "observation_normalization": "none",
    }
    with pytest.raises(DatasetError, match=r"contexts-small.*'dipole drive encode' makes one"):
        start_run(RunConfig.from_mapping(given))
    for seed, folder in enumerate(folders):
        save_small(BEVEncoder(seed), tmp_path / f"weights{seed}")
        encode_scenes(SceneFolder(folder), default_folder(folder, "small"), "small", tmp_path / f"weights{seed}")
    with pytest.raises(DatasetError, match="a policy reads one encoder's tokens"):
        start_run(RunConfig.from_mapping(given))
    shutil.rmtree(default_folder(folders[1], "small"))
    encode_scenes(SceneFolder(folders[1]), default_folder(folders[1], "small"), "small", tmp_path / "weights0")
    run = start_run(RunConfig.from_mapping(given))
    dataset = open_dataset(scene_dataset(run.config.env.driving, Path(run.config.data.cache)))
    scenes = SceneSet([folders[0]], "small")
    seen: Any = scenes.observe(4, scenes.read(4))
    assert seen["context"].shape == (64, 128) and seen["context"].any()
    for name in ("ego", "context"):
        np.testing.assert_array_equal(dataset.tables[name][4], seen[name])
    how = EvalConfig(episodes=100, omegas=(0.0, 1.0), candidates=(1, 4))
    found = sort_rows(rows_of(evaluate_policy(load_policy(run.folder), how, progress=False), run.config.agent))
    assert [row["candidates"] for row in found] == [1, 1, 1, 4, 4, 4]
    assert found == sort_rows(run.evaluation["online"])
