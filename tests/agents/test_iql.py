"""IQL's update is what its paper says, and its Gaussian acts by its mean unless it explores or chooses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dipole_ray.agents.iql import IqlAgent
from dipole_ray.errors import ConfigError
from tests.agents.battery import ACTION_DIM, ROWS, make_agent, make_batch, tiny_config


def trained(**changes: object) -> IqlAgent:
    agent: IqlAgent = make_agent(tiny_config("iql", **changes))
    for step in range(3):
        agent.update(make_batch(step))
    return agent


def test_the_losses_are_expectile_bellman_and_weighted_likelihood() -> None:
    agent = trained(beta=2.0, exp_weight_max=1.5, expectile=0.7)
    batch = agent._read_batch(make_batch(5))
    networks = agent.networks
    terms, metrics, _ = agent._losses(batch, diagnostics=True)
    with torch.no_grad():
        pairs = torch.cat((batch["observations"], batch["actions"]), dim=1)
        q, q_bar = networks.critic(pairs)[..., 0], networks.target_critic(pairs)[..., 0]
        v, v_next = (networks.value(batch[name])[0, :, 0] for name in ("observations", "next_observations"))
        mean = networks.policy(batch["observations"])[0]
        likelihood = torch.distributions.Normal(mean, networks.policy_log_std.exp()).log_prob(batch["actions"])
    target = batch["rewards"] + batch["discounts"] * batch["masks"] * v_next
    residual = q_bar.amin(dim=0) - v
    weight = torch.exp(2.0 * (q.amin(dim=0) - v)).clamp(max=1.5)
    assert 0.0 < float((weight == 1.5).float().mean()) < 1.0, "some rows should meet the ceiling"
    torch.testing.assert_close(terms["critic"].detach(), (q - target).square().mean())
    torch.testing.assert_close(terms["value"].detach(), (torch.where(residual < 0, 0.3, 0.7) * residual**2).mean())
    torch.testing.assert_close(terms["actor"].detach(), -(weight * likelihood.sum(dim=1)).mean())
    torch.testing.assert_close(metrics["actor/weight_q50"], weight.quantile(0.5))
    torch.testing.assert_close(metrics["actor/std_mean"], networks.policy_log_std.detach().exp().mean())


def test_each_loss_reaches_only_its_own_network_and_every_parameter_is_used() -> None:
    agent = trained()
    terms, _, _ = agent._losses(agent._read_batch(make_batch(0)), diagnostics=True)
    parameters = agent.networks.trained_parameters()
    owners = {"critic": {"critic"}, "value": {"value"}, "actor": {"policy", "policy_log_std"}}
    for term, owner in owners.items():
        gradients = torch.autograd.grad(terms[term], list(parameters.values()), allow_unused=True, retain_graph=True)
        reached = {name.split(".")[0] for name, g in zip(parameters, gradients, strict=True) if g is not None}
        assert reached == owner, term
    assert {name.split(".")[0] for name in parameters} == set.union(*owners.values())


def test_one_candidate_is_the_mean_and_exploring_or_choosing_draws() -> None:
    agent = trained()
    observations = torch.from_numpy(make_batch(9)["observations"])
    with torch.no_grad():
        mean, std = agent.networks.policy(observations)[0], agent.networks.policy_log_std.exp()

    def noise(count: int) -> Tensor:
        return torch.randn(ROWS, count, ACTION_DIM, generator=torch.Generator().manual_seed(1))

    def act(**options: object) -> Tensor:
        return agent.sample_actions(observations, generator=torch.Generator().manual_seed(1), **options)

    torch.testing.assert_close(act(), mean.clamp(-1, 1))
    torch.testing.assert_close(act(explore=True), (mean + std * noise(1)[:, 0]).clamp(-1, 1))
    with torch.no_grad():
        candidates = (mean.unsqueeze(1) + std * noise(4)).clamp(-1, 1)
        q = torch.stack(
            [
                agent.networks.critic(torch.cat((observations, candidates[:, i]), dim=1)).amin(dim=0)[:, 0]
                for i in range(4)
            ]
        )
    torch.testing.assert_close(act(num_candidates=4), candidates[torch.arange(ROWS), q.argmax(dim=0)])


def test_the_policy_begins_near_zero_with_unit_deviation_and_its_deviation_stays_in_range() -> None:
    agent = make_agent(tiny_config("iql"))
    with torch.no_grad():
        mean, log_std = agent.policy.gaussian(torch.randn(500, 5, generator=torch.Generator().manual_seed(0)))
        assert float(mean.abs().mean()) < 0.1 and bool((log_std == 0).all())
        for value, kept in ((-9.0, -5.0), (9.0, 2.0)):
            agent.networks.policy_log_std.fill_(value)
            assert bool((agent.policy.gaussian(torch.zeros(1, 5))[1] == kept).all())


def test_what_iql_does_not_have_is_refused() -> None:
    agent, observations = make_agent(tiny_config("iql")), make_batch(0)["observations"]
    with pytest.raises(ConfigError, match=r"no behaviour-cloning field; set agent\.algorithm=dipole"):
        agent.sample_actions(observations, policy="bc")
    with pytest.raises(ConfigError, match="algorithm 'iql' has nothing to guide"):
        agent.sample_actions(observations, omega=0.5)
