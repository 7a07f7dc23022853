"""Networks packed for acting on a CPU equal the readable ones, whatever the sizes, and are never those of before."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dipole_ray.agents import flow, packed
from dipole_ray.agents.agent import make_policy
from dipole_ray.agents.config import PRESETS
from dipole_ray.agents.fields import StackedFields
from dipole_ray.agents.networks import Sizes, StackedMLP
from dipole_ray.agents.policy import Policy
from tests.agents.battery import DEVICE, SCHEMA, make_agent, make_batch, tiny_config

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU acts with the readable networks")
NAMES = ("positive", "negative", "bc")
SIZES = Sizes(observation_dim=7, action_dim=3, hidden_dims=(37, 64, 21), num_critics=2)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(module: Any) -> Any:
    """Return a module in float64, its zeros and ones moved, too."""
    generator = drawn()
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter += 0.1 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
    return module


def inputs(states: int, candidates: int) -> tuple[Tensor, Tensor]:
    generator = drawn(1)
    observations = torch.randn(states, SIZES.observation_dim, dtype=torch.float64, generator=generator)
    noise = torch.randn(states, candidates, SIZES.action_dim, dtype=torch.float64, generator=generator)
    return observations, noise


@pytest.mark.parametrize("states, candidates", [(1, 1), (1, 32), (5, 23)])
def test_flows_and_critics_are_those_of_the_readable_networks_in_float64(states: int, candidates: int) -> None:
    observations, noise = inputs(states, candidates)
    fields = shaken(StackedFields(NAMES, SIZES, drawn()))
    ours = packed.PackedFields(fields, SIZES.action_dim, packed.kernels())
    with torch.no_grad():
        for along, omega in ((["positive"], 0.0), (["negative"], -1.0), (["bc"], 0.0), (["positive", "negative"], 1.5)):
            for solver, steps in (("euler", 10), ("midpoint", 3)):
                how: Any = along, steps, omega, solver
                expected = flow.generate(fields, observations, noise, *how)
                found = flow.generate(ours, observations, noise, *how)
                torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
        for norm in (False, True):
            dims = (SIZES.pair_dim, *SIZES.hidden_dims, 4)
            mlp = shaken(StackedMLP(3, dims, layer_norm=norm, generator=drawn(2)))
            critic = packed.PackedMLP(mlp, SIZES.observation_dim, SIZES.action_dim, packed.kernels())
            torch.testing.assert_close(critic.at(observations, noise), mlp.at(observations, noise), rtol=1e-11, atol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_method_acts_as_with_its_readable_networks_from_the_same_noise(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, observations = make_policy(tiny_config(preset), SCHEMA, seed=0), make_batch(9)["observations"]
    ways = [{"policy": "bc"}] if policy.has_bc else []
    ways += [{"omega": omega} for omega in ((-1.0, 0.0, 1.5) if policy.config.is_guided else (0.0,))]

    def act() -> list[Tensor]:
        return [
            policy.sample_actions(observations, num_candidates=count, generator=drawn(3), **way)  # type: ignore[arg-type]
            for way in ways
            for count in (1, 8)
        ]

    ours = act()
    assert policy.packed() is not policy
    monkeypatch.setattr(packed, "kernels", lambda: None)
    assert policy.packed() is policy
    torch.testing.assert_close(ours, act(), rtol=0, atol=2e-6)


def test_an_action_does_not_depend_on_which_other_rows_are_asked_about() -> None:
    acting = make_policy(tiny_config(), SCHEMA, seed=0).packed()
    observations = torch.from_numpy(make_batch(9)["observations"])
    noise = torch.randn(len(observations), 5, 2, generator=drawn())
    together = acting.best(observations, acting.from_noise(observations, noise, 1.0, "guided"))
    for row in range(len(observations)):
        one = observations[row : row + 1]
        alone = acting.best(one, acting.from_noise(one, noise[row : row + 1], 1.0, "guided"))
        assert torch.equal(alone[0], together[row])


def acts_as_packed_now(policy: Policy) -> bool:
    """Return whether a policy acts as one would whose networks were packed for the first time."""
    observations = make_batch(9)["observations"]
    actions = policy.sample_actions(observations, omega=1.0, generator=drawn())
    policy._packed = None
    return torch.equal(actions, policy.sample_actions(observations, omega=1.0, generator=drawn()))


def test_networks_are_packed_anew_when_their_weights_have_changed_and_only_then() -> None:
    agent, other = make_agent(tiny_config()), make_agent(tiny_config(), seed=1)
    observations = make_batch(9)["observations"]
    agent.sample_actions(observations, omega=1.0)
    agent.update(make_batch(0))
    assert acts_as_packed_now(agent.policy), "after an update"
    agent.load_state_dict(other.state_dict())
    assert acts_as_packed_now(agent.policy), "after a checkpoint"
    policy = make_policy(tiny_config(), SCHEMA, seed=0)
    policy.sample_actions(observations)
    policy.load_policy_state(other.policy.policy_state())
    assert acts_as_packed_now(policy), "after a published policy"
    policy.networks.load_state_dict({name: 2 * tensor for name, tensor in policy.networks.state_dict().items()})
    assert acts_as_packed_now(policy), "after torch's own way"
    assert policy.packed() is policy.packed()


def test_an_observation_that_is_not_finite_gives_no_finite_action() -> None:
    policy, observations = make_policy(tiny_config(), SCHEMA, seed=0), make_batch(9)["observations"]
    observations[3, 2], observations[5, 1] = np.nan, np.inf
    actions = policy.sample_actions(observations, num_candidates=1)
    assert sorted(set(torch.argwhere(actions.isnan())[:, 0].tolist())) == [3, 5]


def test_without_numba_the_readable_networks_act_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy, observations = make_policy(tiny_config(), SCHEMA, seed=0), make_batch(9)["observations"]
    packed.kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "dipole_ray.agents.kernels", None)
    monkeypatch.delattr("dipole_ray.agents.kernels", raising=False)
    try:
        for _ in range(2):
            policy.sample_actions(observations)
        assert policy.packed() is policy and len(caplog.records) == 1
    finally:
        packed.kernels.cache_clear()
