"""A run's config: what wins over what, what is refused, and presets that all load."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from dipole_ray.agents.dipole import AgentConfig
from dipole_ray.envs.make import env_dims
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.cells import cells_of
from dipole_ray.runs.config import RunConfig, load, presets
from dipole_ray.runs.session import rllib_config

MINIMAL: dict[str, Any] = {"env": {"id": "Pendulum-v1"}, "training": {"offline_learner_steps": 0}}


def test_command_line_wins_over_file_over_preset_over_default(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    agent = {"preset": "small", "beta": 7.0, "omega": 1.0}
    path.write_text(yaml.safe_dump({**MINIMAL, "agent": agent}))
    config = load(path, ["agent.omega=2.0", "training.online_env_steps=5", "seed=3"])
    assert config.agent.omega == 2.0, "the command line"
    assert config.agent.beta == 7.0, "the file"
    assert config.agent.hidden_dims == (128, 128) != AgentConfig().hidden_dims, "the preset"
    assert config.agent.expectile == AgentConfig().expectile, "the default"
    assert (config.training.online_env_steps, config.seed) == (5, 3)
    # A preset named on the command line is still only what the other keys start from.
    assert load(path, ["agent.preset=paper"]).agent == AgentConfig(beta=7.0, omega=1.0)
    assert load(path, ["agent.beta=1", "agent.beta=2"]).agent.beta == 2.0


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_loads_and_reaches_the_algorithm(name: str, tmp_path: Path) -> None:
    """A preset for data that nobody can make on the spot asks for its path, and for nothing else."""
    given = yaml.safe_load(presets()[name].read_text())
    needed = [] if given.get("data") else ["data.path=data"]
    if given["env"]["id"] == "drive":  # its scenes are its data, and take SUMO a while
        pytest.importorskip("shapely")
        from tests.driving.folders import made_folder

        needed = [f"env.driving.{part}=[{made_folder(tmp_path / part, 2)}]" for part in ("scenes", "validation")]
    config = load(name, needed)
    assert env_dims(config.env).action_dim >= 1
    assert cells_of(config.evaluation, config.agent)
    made = rllib_config(config, Path("data") if config.training.learner_steps_before_online else None, None)
    made.validate()
    assert made.agent_settings() == config.agent and made.training_settings() == config.training


def test_stored_config_gives_the_same_config_back() -> None:
    config = RunConfig.from_mapping({**MINIMAL, "agent": {"preset": "small", "beta": 2}})
    again = RunConfig.from_mapping(yaml.safe_load(yaml.safe_dump(config.to_mapping())))
    assert again == config and again.digest() == config.digest()
    assert RunConfig.from_mapping({**MINIMAL, "seed": 1}).digest() != RunConfig.from_mapping(MINIMAL).digest()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["agent.betta=1"], r"agent\.beta"),
        (["agnt.beta=1"], "agent"),
        (["training.offline_learner_step=1"], r"training\.offline_learner_steps"),
        (["agent.beta=[1]"], r"agent\.beta"),
        (["agent.num_critics=1.5"], r"agent\.num_critics"),
        (["agent=small"], "agent: {preset: small}"),
        (["agent.preset=huge"], "choose one of paper, small"),
        (["training.offline_learner_steps=5"], "there is no dataset"),
        (["training.offline_fraction=0.5"], "there is no dataset"),
        (["training.online_env_steps=-1"], "use 0 to leave the phase out"),
        (["training.updates_per_env_step=-1"], "cannot be negative"),
        (["data.path=a", "data.collect_transitions=5"], "drop one of them"),
        (["data.collect_transitions=-5"], "use 0 or a positive number"),
        (["rollout.envs_per_worker=0"], "the others are at least 1"),
        (["learner.num_threads=0"], "at least 1, or null"),
        (["learner.num_learners=0"], "learner.remote=false runs it in the training process"),
        (["learner.num_learners=7", "agent.batch_size=16"], "does not divide by 7 learners: make it 14"),
        (["evaluation.episodes=0"], "at least 1"),
        (["checkpoint.keep=0"], r"checkpoint\.keep is 0"),
        (["env=null"], "env"),
        (["seed"], "seed"),
    ],
)
def test_mistake_is_refused_with_its_remedy(overrides: list[str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(ConfigError, match=said):
        load(path, overrides)


def test_sections_are_documented_where_they_stand() -> None:
    names = {field.name for field in fields(RunConfig)}
    assert names >= {"env", "data", "agent", "training", "rollout", "learner", "evaluation", "checkpoint", "tracking"}
