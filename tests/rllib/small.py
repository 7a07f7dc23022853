"""The smallest DIPOLE that still goes through everything, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dipole_ray import DIPOLE, DIPOLEConfig

AGENT = {"hidden_dims": (16, 16), "batch_size": 16, "denoise_steps": 2, "num_candidates": 2, "omega": 1.0}
LOOP = {
    "offline_learner_steps": 40,
    "online_env_steps": 400,
    "learner_steps_per_call": 8,
    "learner_steps_per_iteration": 16,
    "env_steps_per_iteration": 60,
    "updates_per_env_step": 0.3,
}


def config(dataset: Path | None, *, workers: int = 0, learners: int = 0, **settings: Any) -> DIPOLEConfig:
    """Return a config on Pendulum with `settings` over the small ones."""
    made = DIPOLEConfig().environment("Pendulum-v1")
    if dataset is not None:
        made.offline_data(input_=str(dataset))
        settings = {"observation_normalization": "dataset", **settings}
    return (
        made.training(preset="small", **{**AGENT, **LOOP, **settings})
        .env_runners(
            num_env_runners=workers, num_envs_per_env_runner=2, rollout_fragment_length=15, num_cpus_per_env_runner=0.5
        )
        .learners(num_learners=learners, num_threads=1)
        .evaluation(episodes=2, omegas=(0.0, 1.0), candidates=(1, 2))
    )


def train_until(algorithm: DIPOLE, reached: Callable[[DIPOLE], bool], most: int = 200) -> None:
    """Train until `reached`, at most `most` iterations."""
    for _ in range(most):
        if reached(algorithm):
            return
        algorithm.train()
    raise AssertionError(f"not reached in {most} iterations: {algorithm.learner_steps=}, {algorithm.env_steps=}")


def assert_same_tensors(left: dict[str, dict[str, torch.Tensor]], right: dict[str, dict[str, torch.Tensor]]) -> None:
    """Compare two sets of checkpoint tensors bit for bit."""
    assert left.keys() == right.keys()
    for file, tensors in left.items():
        assert tensors.keys() == right[file].keys(), file
        different = [name for name, tensor in tensors.items() if not torch.equal(tensor, right[file][name])]
        assert different == [], file
