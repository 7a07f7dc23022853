"""A policy is not an agent: whoever only acts holds no optimizer, no target critics and no V, and acts the same."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dipole_ray import DIPOLEConfig
from dipole_ray.agents import agent as agents
from dipole_ray.agents.agent import make_policy
from dipole_ray.agents.config import PRESETS, AgentConfig
from dipole_ray.agents.policy import Policy
from dipole_ray.cli import main
from dipole_ray.columns import Schema
from dipole_ray.rllib.env_runner import DIPOLEEnvRunner
from dipole_ray.rllib.module import DIPOLERLModule
from dipole_ray.serving.policy import load_policy
from dipole_ray.settings import to_mapping
from tests.agents.battery import SCHEMA, assert_same, make_agent, make_batch, tiny_config
from tests.cli.test_evaluate_cli import saved_run

ACTORS = {"dipole": {"fields"}, "fql": {"fields", "policy"}, "iql": {"policy", "policy_log_std"}}


class Tensors:
    """Counts the tensors that came to life since it was made: whatever was there is out of the collector's sight."""

    def __init__(self) -> None:
        gc.freeze()

    def new(self) -> int:
        gc.collect()
        return sum(issubclass(type(one), Tensor) for one in gc.get_objects())


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """Show the collector everything again."""
    yield
    gc.unfreeze()


def assert_only_acts(policy: Policy, config: AgentConfig, new_tensors: float) -> None:
    """Check that a policy has its actor, the online critics and the observations' statistics, and no tensor more."""
    names = policy.networks.state_dict().keys()
    roles = {"critic", "observation_mean", "observation_std"} | ACTORS[config.algorithm]
    assert {name.split(".")[0] for name in names} == roles
    assert new_tensors == len(names)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_policy_has_nothing_that_learns_and_one_seed_means_the_same_policy_to_both(preset: str) -> None:
    config = tiny_config(preset)
    tensors = Tensors()
    policy = make_policy(config, SCHEMA, seed=0)
    assert_only_acts(policy, config, tensors.new())
    agent, observations = make_agent(config), make_batch(99)["observations"]
    assert_same(policy.policy_state(), agent.policy.policy_state())
    for _ in range(2):  # each from its own noise, which goes on
        assert torch.equal(policy.sample_actions(observations), agent.sample_actions(observations))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_checkpoints_policy_has_nothing_that_learns_and_goes_on_with_the_agents_noise(
    preset: str, tmp_path: Path
) -> None:
    config = tiny_config(preset)
    run = saved_run(tmp_path / "run", config)
    tensors = Tensors()
    trained = load_policy(run)
    assert_only_acts(trained.policy, config, tensors.new())
    agent, observations = make_agent(config, 8), make_batch(99)["observations"]
    for step in range(3):
        agent.update(make_batch(step))
    taken = make_policy(config, SCHEMA, seed=1)
    taken.load_agent_state(agent.state_dict())
    assert torch.equal(taken.sample_actions(observations), agent.sample_actions(observations))


@pytest.mark.parametrize("preset", ["paper", "fql", "iql"])
def test_evaluation_plays_with_nothing_that_learns(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, act = tiny_config(preset), Policy.sample_actions
    run = saved_run(tmp_path / "run", config)
    tensors, acted = Tensors(), []

    def look(acting: Policy, observations: Tensor, **how: Any) -> Tensor:
        if not acted:
            # The observations are the one more; the command holds a policy, and the cell that it plays another.
            assert_only_acts(acting, config, (tensors.new() - 1) / 2)
        acted.append(acting)
        return act(acting, observations, **how)

    monkeypatch.setattr(Policy, "sample_actions", look)
    assert main(["evaluate", str(run), "--omega", "0", "--candidates", "1", "--episodes", "1"]) == 0
    assert len(acted) == 20, "one policy, each step of an episode"


@pytest.mark.parametrize("preset", ["paper", "fql", "iql"])
def test_a_rollout_worker_holds_nothing_that_learns_and_takes_published_weights(preset: str) -> None:
    settings = tiny_config(preset)
    config = DIPOLEConfig().environment("Pendulum-v1").debugging(seed=3)
    config.training(**to_mapping(settings), offline_learner_steps=0, online_env_steps=100)
    config.validate()
    tensors = Tensors()
    runner = DIPOLEEnvRunner(config=config)
    module = runner.module
    assert isinstance(module, DIPOLERLModule)
    assert_only_acts(module.policy, settings, tensors.new())
    assert len(module.state_dict()) == len(module.policy.networks.state_dict())
    publisher = make_policy(settings, Schema(3, 1), seed=9)
    runner.set_policy(1, publisher.policy_state())
    assert_same(module.policy.policy_state(), publisher.policy_state())
    # RLlib's way to broadcast: the learner sends more than the worker takes.
    agent = agents.make_agent(settings, Schema(3, 1), seed=4)
    sent = {f"networks.{name}": tensor.numpy() for name, tensor in agent.networks.state_dict().items()}
    runner.set_state({"rl_module": {"default_policy": sent}})
    assert_same(module.policy.policy_state(), agent.policy.policy_state())
    runner.stop()
