"""FQL's update is what its paper says: targets, distillation, the climb on Q, and who learns from which."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dipole_ray.agents.dipole import DipoleAgent
from dipole_ray.agents.fql import FqlAgent
from dipole_ray.errors import ConfigError, NonFiniteError
from tests.agents.battery import ACTION_DIM, ROWS, SCHEMA, assert_same, make_agent, make_batch, tiny_config


def trained(**changes: object) -> FqlAgent:
    agent: FqlAgent = make_agent(tiny_config("fql", **changes))
    for step in range(3):
        agent.update(make_batch(step))
    return agent


def one_step(agent: FqlAgent, observations: Tensor, noise: Tensor) -> Tensor:
    """Return mu(s, z) (B, A), written out."""
    return agent.networks.policy(torch.cat((observations, noise), dim=1))[0]


@torch.no_grad()
def cloned(agent: FqlAgent, observations: Tensor, x: Tensor) -> Tensor:
    """Return the cloned flow's actions (B, A), ten Euler steps written out."""
    for k in range(10):
        x = x + agent.networks.fields(observations, x, torch.full((len(x), 1), k / 10))[0] / 10
    return x.clamp(-1, 1)


@pytest.mark.parametrize("how", ["mean", "min"])
def test_the_target_takes_the_one_step_policy_at_the_next_state(how: str) -> None:
    agent = trained(target_aggregation=how)
    batch = agent._read_batch(make_batch(5))
    source = torch.Generator()
    source.set_state(agent.generator.get_state())
    with torch.no_grad():
        noise = torch.randn(ROWS, 1, ACTION_DIM, generator=source)[:, 0]
        actions = one_step(agent, batch["next_observations"], noise).clamp(-1, 1)
        q = agent.networks.target_critic(torch.cat((batch["next_observations"], actions), dim=1))[..., 0]
    bootstrap = q.mean(dim=0) if how == "mean" else q.amin(dim=0)
    expected = batch["rewards"] + batch["discounts"] * batch["masks"] * bootstrap
    torch.testing.assert_close(agent._critic_target(batch), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_losses_are_flow_matching_distillation_and_q(normalize: bool) -> None:
    agent = trained(normalize_q_loss=normalize, alpha=3.0)
    batch, saved = agent._read_batch(make_batch(5)), agent.generator.get_state()
    terms, metrics, _ = agent._losses(batch, diagnostics=True)
    agent.generator.set_state(saved)
    q_target = agent._critic_target(batch)
    x0 = torch.randn(ROWS, ACTION_DIM, generator=agent.generator)
    t = torch.rand(ROWS, 1, generator=agent.generator)
    z = torch.randn(ROWS, 1, ACTION_DIM, generator=agent.generator)[:, 0]
    observations, data = batch["observations"], batch["actions"]
    with torch.no_grad():
        velocity = agent.networks.fields(observations, (1 - t) * x0 + t * data, t)[0]
        flow_loss = (velocity - (data - x0)).square().mean()
        actions = one_step(agent, observations, z)
        distillation = (actions - cloned(agent, observations, z)).square().mean()
        q = agent.networks.critic(torch.cat((observations, actions.clamp(-1, 1)), dim=1))[..., 0].mean(dim=0)
        q_loss = -q.mean() / (q.abs().mean() if normalize else 1.0)
        q_data = agent.networks.critic(torch.cat((observations, data), dim=1))[..., 0]
    torch.testing.assert_close(metrics["actor/loss_bc"], flow_loss)
    torch.testing.assert_close(metrics["actor/loss_distillation"], distillation)
    torch.testing.assert_close(metrics["actor/loss_q"], q_loss)
    torch.testing.assert_close(terms["policy"].detach(), 3.0 * distillation + q_loss)
    torch.testing.assert_close(terms["critic"].detach(), (q_data - q_target).square().mean())


@pytest.mark.parametrize("normalize", [False, True])
def test_each_loss_reaches_only_its_own_network(normalize: bool) -> None:
    agent = trained(normalize_q_loss=normalize)
    terms, _, _ = agent._losses(agent._read_batch(make_batch(0)), diagnostics=True)
    parameters = agent.networks.trained_parameters()
    for term, owner in {"critic": "critic", "flow": "fields", "policy": "policy"}.items():
        gradients = torch.autograd.grad(terms[term], list(parameters.values()), allow_unused=True, retain_graph=True)
        reached = {name.split(".")[0] for name, g in zip(parameters, gradients, strict=True) if g is not None}
        assert reached == {owner}, term


def test_the_policy_climbs_q_by_the_critics_gradient() -> None:
    """The gradient of the Q term is the chain rule through mu alone, and clipping cuts it outside the box."""
    agent = trained(alpha=1e-30)
    batch, saved = agent._read_batch(make_batch(5)), agent.generator.get_state()
    terms, _, _ = agent._losses(batch, diagnostics=False)
    parameters = list(agent.networks.policy.parameters())
    found = torch.autograd.grad(terms["policy"], parameters)
    agent.generator.set_state(saved)
    agent._critic_target(batch)
    agent._path(batch["actions"])
    z = torch.randn(ROWS, 1, ACTION_DIM, generator=agent.generator)[:, 0]
    actions = one_step(agent, batch["observations"], z)
    leaf = actions.detach().clamp(-1, 1).requires_grad_()
    q = agent.networks.critic(torch.cat((batch["observations"], leaf), dim=1)).mean(dim=0).mean()
    slope = torch.autograd.grad(q, leaf)[0] * (actions.detach().abs() <= 1)
    assert bool((actions.detach().abs() > 1).any()), "the clip should be met"
    expected = torch.autograd.grad((-slope * actions).sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_there_is_no_value_network_and_every_parameter_is_used() -> None:
    agent = make_agent(tiny_config("fql"))
    assert not hasattr(agent.networks, "value")
    assert not any(name.startswith("statistics.") for name in agent.state_dict())
    terms, _, _ = agent._losses(agent._read_batch(make_batch(0)), diagnostics=False)
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in agent.networks.trained_parameters().values())


def test_acting_is_one_step_of_the_policy_the_best_of_several_or_the_cloned_flow() -> None:
    agent = trained()
    observations = torch.from_numpy(make_batch(9)["observations"])

    def noise(count: int) -> Tensor:
        return torch.randn(ROWS, count, ACTION_DIM, generator=torch.Generator().manual_seed(1))

    def act(**options: object) -> Tensor:
        return agent.sample_actions(observations, generator=torch.Generator().manual_seed(1), **options)

    with torch.no_grad():
        expected = one_step(agent, observations, noise(1)[:, 0]).clamp(-1, 1)
        torch.testing.assert_close(act(), expected)
        candidates = [one_step(agent, observations, noise(4)[:, i]).clamp(-1, 1) for i in range(4)]
        q = torch.stack(
            [agent.networks.critic(torch.cat((observations, a), dim=1)).amin(dim=0)[:, 0] for a in candidates]
        )
    best = torch.stack(candidates)[q.argmax(dim=0), torch.arange(ROWS)]
    torch.testing.assert_close(act(num_candidates=4), best)
    torch.testing.assert_close(act(policy="bc"), cloned(agent, observations, noise(1)[:, 0]))


def test_what_fql_does_not_have_is_refused() -> None:
    agent = make_agent(tiny_config("fql"))
    with pytest.raises(ConfigError, match=r"algorithm 'fql' has nothing to guide.*agent\.algorithm=dipole"):
        agent.sample_actions(make_batch(0)["observations"], omega=1.0)
    with pytest.raises(ConfigError, match="FqlAgent is 'fql'"):
        FqlAgent(tiny_config(), SCHEMA, seed=0)
    with pytest.raises(ConfigError, match=r"agents\.agent\.make_agent"):
        DipoleAgent(tiny_config("fql"), SCHEMA, seed=0)


def test_a_step_that_is_not_finite_changes_nothing_and_ten_are_an_error() -> None:
    agent = trained()
    batch = make_batch(7)
    batch["rewards"][3] = math.nan
    before = agent.policy.policy_state()
    for _ in range(9):
        agent.update(batch)
    assert_same(before, agent.policy.policy_state())
    with pytest.raises(NonFiniteError, match=r"lower agent\.learning_rate \(now 0\.001\)$"):
        agent.update(batch)
    assert all(parameter.requires_grad for parameter in agent.networks.critic.parameters())
