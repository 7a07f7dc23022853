"""Settings that contradict each other or cannot work are refused with the remedy."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dipole_ray import settings
from dipole_ray.agents.config import PRESETS, AgentConfig
from dipole_ray.errors import ConfigError

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"weight_scheme": "awr"}, "choose one of dipole, bc, exp, cfgrl"),
    ({"bootstrap": "critic"}, "choose one of policy, value"),
    ({"beta": 0.0}, "agent.beta: found 0.0; give a finite number above 0"),
    ({"beta": math.inf}, "agent.beta: found inf"),
    ({"shift": math.nan}, "agent.shift: found nan"),
    ({"omega": -1.5}, "at least -1"),
    ({"expectile": 1.0}, "agent.expectile: found 1.0; give a number strictly between 0 and 1"),
    ({"discount": 1.01}, "agent.discount"),
    ({"tau": 0.0}, "agent.tau"),
    ({"num_candidates": 0}, "agent.num_candidates"),
    ({"hidden_dims": ()}, "agent.hidden_dims"),
    ({"weight_scheme": "bc", "omega": 1.0}, "set agent.omega=0 or agent.weight_scheme=dipole"),
    ({"weight_scheme": "exp", "target_omega": 0.5}, "set agent.target_omega=0"),
    ({"weight_scheme": "cfgrl", "shift": 1.0}, "set agent.shift=0"),
    ({"bootstrap": "value", "target_candidates": 4}, "set agent.target_candidates=1 or agent.bootstrap=policy"),
    ({"bootstrap": "value", "target_aggregation": "min"}, "set agent.target_aggregation=mean"),
    ({"target_choice": "target"}, "set agent.target_choice=online or agent.target_candidates above 1"),
    ({"num_critics": 1, "advantage_aggregation": "mean_minus_std"}, "set agent.num_critics=2"),
    ({"advantage_aggregation": "median"}, "choose one of min, mean, mean_minus_std, or null"),
    ({"algorithm": "awac"}, "agent.algorithm: found 'awac'; choose one of dipole, fql, iql"),
    ({"alpha": 0.0}, "agent.alpha: found 0.0"),
    ({"normalize_q_loss": True}, "set agent.normalize_q_loss=false or agent.algorithm=fql"),
    ({"alpha": 3.0}, "agent.alpha: found 3.0, but algorithm 'dipole' does not read it; set agent.alpha=10.0"),
    ({"algorithm": "iql", "bootstrap": "value", "alpha": 3.0}, "agent.alpha=10.0 or agent.algorithm=fql"),
    ({"exp_weight_max": 5.0}, "set agent.exp_weight_max=100.0 or agent.weight_scheme=exp"),
    ({"algorithm": "fql", "exp_weight_max": math.inf}, "set agent.exp_weight_max=100.0 or agent.algorithm=iql"),
    ({"algorithm": "iql"}, "agent.bootstrap: found policy, but algorithm 'iql' leaves no choice there; set agent.b"),
    ({"algorithm": "iql", "bootstrap": "value", "train_bc": True}, "agent.train_bc=false or agent.algorithm=dipole"),
    ({"algorithm": "iql", "bootstrap": "value", "omega": 1.0}, "set agent.omega=0 or agent.algorithm=dipole"),
    ({"algorithm": "fql", "bootstrap": "value"}, "set agent.bootstrap=policy or agent.algorithm=dipole"),
    ({"algorithm": "fql", "weight_scheme": "bc"}, "set agent.weight_scheme=dipole or agent.algorithm=dipole"),
    ({"algorithm": "fql", "advantage_normalization": "batch_std"}, "set agent.advantage_normalization=none"),
    ({"algorithm": "fql", "target_omega": 1.0}, "set agent.target_omega=0 or agent.algorithm=dipole"),
    (
        {"algorithm": "fql", "rollout_denoise_steps": 5},
        "set agent.rollout_denoise_steps=null or agent.algorithm=dipole",
    ),
    ({"rollout_denoise_steps": 0}, "give a whole number of at least 1, or null"),
    ({"algorithm": "fql", "shift": 1.0}, "set agent.shift=0 or agent.algorithm=dipole"),
    ({"num_critics": 1, "target_aggregation": "mean_minus_std"}, "set agent.num_critics=2"),
    ({"discount": 1.0, "reward_shift": 1.0}, "set agent.discount below 1 or agent.reward_shift=0"),
]


@pytest.mark.parametrize(("wrong", "remedy"), REFUSED)
def test_refused_settings_name_the_remedy(wrong: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AgentConfig(**wrong)
    assert remedy in str(caught.value)


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="choose one of paper, small, dipole, bc, ifql, exp, cfgrl, fql, iql"):
        AgentConfig.preset("large")


def test_defaults_are_the_papers_table() -> None:
    config = AgentConfig.preset("paper")
    assert config == AgentConfig()
    assert (config.hidden_dims, config.batch_size, config.learning_rate) == ((512, 512, 512), 256, 3e-4)
    assert (config.expectile, config.discount, config.tau) == (0.9, 0.995, 0.005)
    assert (config.beta, config.shift, config.denoise_steps, config.num_candidates) == (1.0, 0.0, 10, 32)
    assert (config.bootstrap, config.target_candidates, config.target_omega) == ("policy", 1, 0.0)
    assert (config.target_aggregation, config.value_aggregation, config.num_critics) == ("mean", "min", 2)


def test_uncapped_exponential_weights_and_changes_on_a_preset_are_allowed() -> None:
    config = AgentConfig.preset("exp", exp_weight_max=math.inf, hidden_dims=(8,))
    assert (config.weight_scheme, config.exp_weight_max, config.hidden_dims) == ("exp", math.inf, (8,))


def test_presets_of_fql_and_iql_are_the_published_settings() -> None:
    fql, iql = AgentConfig.preset("fql"), AgentConfig.preset("iql")
    assert (fql.alpha, fql.normalize_q_loss, fql.target_aggregation, fql.num_critics) == (10.0, False, "mean", 2)
    assert (iql.beta, iql.exp_weight_max, iql.expectile, iql.bootstrap) == (10.0, 100.0, 0.9, "value")
    for config in (fql, iql):
        assert (config.num_candidates, config.batch_size, config.learning_rate, config.tau) == (1, 256, 3e-4, 0.005)
        assert not config.is_guided and config.denoise_steps == 10


def test_cfgrl_bootstraps_from_the_value_as_both_of_its_public_agents_do() -> None:
    cfgrl = AgentConfig.preset("cfgrl")
    assert (cfgrl.weight_scheme, cfgrl.bootstrap, cfgrl.num_candidates) == ("cfgrl", "value", 1)


def test_a_config_from_before_an_algorithm_could_be_chosen_still_loads() -> None:
    old = settings.to_mapping(AgentConfig.preset("exp", beta=3.0))
    for name in ("algorithm", "alpha", "normalize_q_loss"):
        del old[name]
    assert settings.from_mapping(AgentConfig, old, "agent") == AgentConfig.preset("exp", beta=3.0)


def test_a_bc_field_is_added_only_where_the_scheme_has_none() -> None:
    assert AgentConfig(train_bc=True).fields == ("positive", "negative", "bc")
    assert AgentConfig.preset("cfgrl", train_bc=True).fields == ("positive", "bc")
    assert AgentConfig.preset("bc", train_bc=True).fields == ("bc",)
    assert AgentConfig.preset("fql", train_bc=True).fields == ("bc",)


def test_an_algorithm_has_the_settings_that_it_reads() -> None:
    dipole, fql, iql = (set(vars(AgentConfig.preset(name))) for name in ("dipole", "fql", "iql"))
    assert dipole - fql == {
        *("weight_scheme", "shift", "omega", "exp_weight_max", "bootstrap", "target_omega", "advantage_normalization"),
        *("advantage", "learned_score", "backbone", "adapters", "diffusion", "noise_scale"),
        *("rollout_denoise_steps", "policy_gradient"),
    }
    assert fql - dipole == {"alpha", "normalize_q_loss"}
    assert iql - fql == {"exp_weight_max", "bootstrap", "advantage_normalization"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_file_with_the_keys_of_all_algorithms_is_read_whatever_it_chooses(preset: str) -> None:
    config = AgentConfig.preset(preset)
    everything = settings.to_mapping(config)
    assert everything.keys() == settings.to_mapping(AgentConfig()).keys()
    assert settings.from_mapping(AgentConfig, everything, "agent") == config
