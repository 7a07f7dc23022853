"""Every method keeps the promises of the battery, from its preset and with its settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dipole_ray import settings
from dipole_ray.agents.config import PRESETS, AgentConfig
from tests.agents.battery import make_agent, make_batch, run_battery, tiny_config

VARIANTS: dict[str, dict[str, Any]] = {
    "with a BC field": {"train_bc": True},
    "value bootstrap, running deviation": {"bootstrap": "value", "advantage_normalization": "running_std"},
    "pessimistic ensemble": {
        "num_critics": 5,
        "target_aggregation": "mean_minus_std",
        "value_aggregation": "mean_minus_std",
    },
    "FQL, normalized Q, best of 4 in a pessimistic target": {
        "preset": "fql",
        "normalize_q_loss": True,
        "target_candidates": 4,
        "target_aggregation": "min",
        "train_bc": True,
    },
    "IQL, running deviation, 5 critics": {
        "preset": "iql",
        "advantage_normalization": "running_std",
        "num_critics": 5,
        "value_aggregation": "mean_minus_std",
    },
    "best of 4 in a guided target": {
        "target_candidates": 4,
        "target_omega": 1.5,
        "advantage_normalization": "batch_std",
    },
}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_keeps_the_battery(preset: str) -> None:
    run_battery(tiny_config(preset))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_keeps_the_battery(variant: str) -> None:
    run_battery(tiny_config(**VARIANTS[variant]))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_resolve_to_valid_configs(preset: str) -> None:
    config = AgentConfig.preset(preset)
    one_field = config.weight_scheme in ("bc", "exp")
    assert len(config.fields) == {"fql": 1, "iql": 0}.get(config.algorithm, 1 if one_field else 2)
    # FQL's code base has 4 x 512 for the methods it brought, the authors of DIPOLE 3 x 512 for theirs.
    expected = {"small": (128,) * 2, "fql": (512,) * 4, "ifql": (512,) * 4, "iql": (512,) * 4}
    assert config.hidden_dims == expected.get(preset, (512,) * 3)


CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "algorithm": ({}, "fql"),
    "weight_scheme": ({}, "cfgrl"),
    "beta": ({}, 5.0),
    "shift": ({}, -1.0),
    "omega": ({}, 1.0),
    "num_candidates": ({}, 4),
    "exp_weight_max": ({"weight_scheme": "exp", "beta": 4.0}, 1.0),
    "alpha": ({"preset": "fql"}, 100.0),
    "normalize_q_loss": ({"preset": "fql"}, True),
    "train_bc": ({}, True),
    "expectile": ({}, 0.5),
    "discount": ({}, 0.9),
    "tau": ({}, 0.5),
    "bootstrap": ({}, "value"),
    "target_candidates": ({}, 3),
    "target_choice": ({"target_candidates": 8}, "target"),
    "target_update": ({}, "before"),
    "target_omega": ({}, 1.0),
    "target_aggregation": ({}, "min"),
    "value_aggregation": ({}, "mean"),
    "advantage_aggregation": ({}, "mean"),
    "rho": ({"target_aggregation": "mean_minus_std"}, 2.0),
    "num_critics": ({}, 3),
    "reward_scale": ({}, 3.0),
    "reward_shift": ({}, 1.0),
    "advantage_normalization": ({}, "batch_std"),
    "hidden_dims": ({}, (16, 16)),
    "denoise_steps": ({}, 3),
    "solver": ({}, "midpoint"),
    "learning_rate": ({}, 3e-3),
    "diffusion": ({}, "vp"),
    "noise_scale": ({}, 0.5),
}
"""A setting the change needs, and the changed value, for each field that the agent itself acts on."""
CHANGES_OF_OTHERS: dict[str, dict[str, Any]] = {
    "fql": {
        "num_candidates": 4,
        "discount": 0.9,
        "tau": 0.5,
        "target_candidates": 3,
        "target_update": "after",
        "target_aggregation": "min",
        "num_critics": 3,
        "reward_scale": 3.0,
        "denoise_steps": 3,
        "solver": "midpoint",
    },
    "iql": {
        "beta": 1.0,
        "num_candidates": 4,
        "exp_weight_max": 0.5,
        "expectile": 0.5,
        "discount": 0.9,
        "tau": 0.5,
        "value_aggregation": "mean",
        "advantage_aggregation": "mean",
        "target_update": "after",
        "num_critics": 3,
        "reward_shift": 1.0,
        "advantage_normalization": "batch_std",
    },
}
"""What FQL and IQL share with the family, they act on too."""
COVERED_ELSEWHERE = {
    *("batch_size", "n_step", "observation_normalization", "encoder", "backbone", "adapters", "advantage"),
    *("rollout_denoise_steps", "policy_gradient", "learned_score"),
}
"""The first two are the replay's to act on; files of their own cover the others, such as `test_adapters.py`."""


def test_every_setting_is_covered_below() -> None:
    assert settings.to_mapping(AgentConfig()).keys() == CHANGES.keys() | COVERED_ELSEWHERE


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_what_the_agent_does(name: str) -> None:
    needed, value = CHANGES[name]
    check_change(needed, name, value)


@pytest.mark.parametrize(
    ("preset", "name"), [(preset, name) for preset in CHANGES_OF_OTHERS for name in CHANGES_OF_OTHERS[preset]]
)
def test_shared_settings_change_what_fql_and_iql_do(preset: str, name: str) -> None:
    check_change({"preset": preset}, name, CHANGES_OF_OTHERS[preset][name])


def check_change(needed: dict[str, Any], name: str, value: Any) -> None:
    """Check that a setting's other value leads to another policy, or to other actions of it."""
    outcomes = []
    for config in (tiny_config(**needed), tiny_config(**{**needed, name: value})):
        agent = make_agent(config)
        for step in range(4):
            batch = make_batch(step)
            del batch["discounts"]
            agent.update(batch)
        actions = agent.sample_actions(make_batch(9)["observations"])
        outcomes.append({**agent.policy.policy_state(), "actions": actions})
    same_layout = {key: tensor.shape for key, tensor in outcomes[0].items()} == {
        key: tensor.shape for key, tensor in outcomes[1].items()
    }
    assert not same_layout or any(not torch.equal(outcomes[0][key], outcomes[1][key]) for key in outcomes[0])
