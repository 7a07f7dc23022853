"""A policy gradient through denoising: its likelihoods, its gradient at the old policy, and what it climbs to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import Agent
from dipole_ray.agents.backbones import BackboneConfig
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.policy_gradient import (
    CHAINS,
    LIKELIHOODS,
    PolicyGradientConfig,
    clipped_losses,
    draw_chain,
    make_denoising,
)
from dipole_ray.errors import ConfigError
from tests.agents.battery import (
    ACTION_DIM,
    OBSERVATION_DIM,
    ROWS,
    assert_same,
    make_agent,
    make_batch,
    tiny_config,
)
from tests.agents.test_captured import UPDATES, OnTheDevice, assert_close, joined

DPPO: dict[str, Any] = {"weight_scheme": "dppo", "advantage": "group", "num_candidates": 1, "denoise_steps": 4}
DIFFUSIONS = ["flow", "vp"]


def drawn_batch(agent: Agent, seed: int) -> dict[str, np.ndarray]:
    """Return a batch whose actions the agent's policy drew, with random advantages."""
    batch = make_batch(seed)
    policy: Any = agent.policy
    actions, kept = policy.draw_chains(batch["observations"], torch.Generator().manual_seed(seed))
    rows = {name: values.numpy() for name, values in kept.items()}
    return {**batch, "actions": actions.numpy(), "is_offline": np.zeros(ROWS, np.float32), **rows}


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_a_chain_is_as_likely_as_its_gaussians_say(diffusion: str) -> None:
    """Each step is drawn from its own deviation and judged with no less than the floor; torch knows the density."""
    config = PolicyGradientConfig(min_std=0.05, min_likelihood_std=0.3)
    steps = make_denoising(diffusion, 5, 0.5, config)
    assert steps.stds.min() >= 0.05 and steps.likelihood_stds.min() >= 0.3 and (steps.stds < 0.3).any()

    def field(x: torch.Tensor, t: float) -> torch.Tensor:
        return torch.sin(3 * x + t)

    noise = torch.randn(64, 6, 3)
    chain, likelihoods = draw_chain(field, noise, steps)
    assert torch.equal(chain[:, 0], noise[:, 0])
    for number in range(5):
        k = torch.full((64,), number)
        mean = steps.mean(chain[:, number], field(chain[:, number], float(steps.times[number])), k)
        torch.testing.assert_close(chain[:, number + 1], mean + steps.stds[number] * noise[:, number + 1])
        density = torch.distributions.Normal(mean, steps.likelihood_stds[number]).log_prob(chain[:, number + 1])
        torch.testing.assert_close(likelihoods[:, number], density.sum(dim=1))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_a_chain_ends_where_the_path_does_whatever_the_share_of_noise(diffusion: str, eta: float) -> None:
    """Of a Gaussian target the field is known exactly: in many steps every eta ends in its mean and deviation."""
    mean, std, many = 0.3, 0.2, 300
    steps = make_denoising(diffusion, many, 1.0, PolicyGradientConfig(eta=eta, min_std=1e-6, min_likelihood_std=1e-6))

    def field(x: torch.Tensor, t: float) -> torch.Tensor:
        alpha, sigma = (t, 1 - t) if diffusion == "flow" else _of_vp(t)
        variance = (alpha * std) ** 2 + sigma**2
        noise = sigma * (x - alpha * mean) / variance  # E[n | x]
        action = mean + alpha * std**2 * (x - alpha * mean) / variance
        return action - noise if diffusion == "flow" else noise

    torch.manual_seed(0)
    ends = draw_chain(field, torch.randn(4_000, many + 1, 1), steps)[0][:, -1]
    assert float(ends.mean()) == pytest.approx(mean, abs=0.01) and float(ends.std()) == pytest.approx(std, abs=0.01)


def _of_vp(t: float) -> tuple[float, float]:
    log_alpha = -0.25 * 19.9 * t * t - 0.05 * t
    return float(np.exp(log_alpha)), float(np.sqrt(-np.expm1(2 * log_alpha)))


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("adapters", [0, 2])
def test_at_the_old_policy_ratios_are_1_and_the_gradient_is_reinforces(diffusion: str, adapters: int) -> None:
    agent = make_agent(tiny_config(diffusion=diffusion, adapters=AdapterConfig(rank=adapters), **DPPO))
    batch = agent._read_batch(drawn_batch(agent, 0))
    before = agent.generator.get_state()
    total, metrics, _ = agent._loss(batch, True)
    assert metrics["actor/kl"].abs() < 1e-6 and metrics["actor/clip_fraction"] == 0
    found = torch.autograd.grad(total, agent._parameters, materialize_grads=True)

    agent.generator.set_state(before)
    agent._path(batch["actions"])
    k, steps = (agent._draw("uniform", (ROWS,)) * 4).long(), agent.policy.denoising
    assert set(k.tolist()) == {0, 1, 2, 3}
    x, following = (batch[CHAINS][torch.arange(ROWS), k + each] for each in (0, 1))
    field = agent.networks.fields(batch["observations"], x, steps.times[k].unsqueeze(1))[0]
    mean = steps.mean(x, field, k)
    density = torch.distributions.Normal(mean, steps.likelihood_stds[k].unsqueeze(1)).log_prob(following).sum(dim=1)
    torch.testing.assert_close(density, batch[LIKELIHOODS][torch.arange(ROWS), k], atol=1e-4, rtol=1e-4)
    advantage = batch["rewards"] * 0.99 ** (3 - k)
    reinforce = -(advantage * density / ACTION_DIM).mean()
    expected = torch.autograd.grad(reinforce, agent._parameters, materialize_grads=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    assert any(bool(one.any()) for one in found)


def test_a_ratio_beyond_its_clip_moves_nothing_but_back() -> None:
    """The clip grows from noise to action, and a step that went too far the wrong way is still brought back."""
    steps = make_denoising("flow", 5, 1.0, PolicyGradientConfig(clip=0.1, clip_first=0.01))
    assert steps.clips[0] == pytest.approx(0.01) and steps.clips[-1] == pytest.approx(0.1)
    assert (steps.clips.diff() > 0).all() and steps.discounts[-1] == 1
    log_ratio = torch.tensor([0.2, 0.2, -0.2, -0.2, 0.05]).requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    clipped_losses(log_ratio, advantage, torch.full((5,), 0.1)).sum().backward()
    assert log_ratio.grad is not None and log_ratio.grad.ne(0).tolist() == [False, True, True, False, True]


def test_offline_rows_are_cloned_and_drawn_ones_climb_in_one_batch() -> None:
    agent = make_agent(tiny_config(**DPPO))
    batch = drawn_batch(agent, 0)
    batch["is_offline"][:8] = 1.0
    batch[CHAINS][:8], batch[LIKELIHOODS][:8] = 0.0, 0.0
    read, before = agent._read_batch(batch), agent.generator.get_state()
    loss = agent._loss(read, False)[0]
    agent.generator.set_state(before)
    x, t, target = agent._path(read["actions"])
    k, steps = (agent._draw("uniform", (ROWS,)) * 4).long(), agent.policy.denoising
    cloning = (agent.networks.fields(read["observations"], x, t)[0] - target).square().mean(dim=1)[:8]
    climbing = -(steps.discounts[k] * read["rewards"])[8:]
    torch.testing.assert_close(loss, (0.03 * cloning.sum() + climbing.sum()) / ROWS)
    del batch[CHAINS]
    with pytest.raises(ConfigError, match="column 'chains' is missing"):
        agent.update(batch)


@pytest.mark.parametrize("adapters", [0, 2])
def test_it_saves_and_resumes_bitwise_and_acts_as_before(adapters: int) -> None:
    config = tiny_config(adapters=AdapterConfig(rank=adapters), **DPPO)
    agent = make_agent(config)
    agent.update(drawn_batch(agent, 0))
    resumed = make_agent(config, seed=8)
    if adapters:
        resumed.networks.adapted.load_backbone(agent.networks.adapted.backbone_state())
    resumed.load_state_dict(agent.state_dict())
    batch = drawn_batch(agent, 1)
    assert_same(agent.update(batch), resumed.update(batch))
    assert_same(agent.state_dict(), resumed.state_dict())
    drawn, again = (drawn_batch(one, 2) for one in (agent, resumed))
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)


def test_fast_ways_end_where_the_readable_one_does() -> None:
    """Compiled, captured and stacked; a captured step asks the host for nothing, as a CUDA graph has to."""
    config = tiny_config(**DPPO)
    agents: list[Agent] = [make_agent(config) for _ in range(5)]
    assert agents[1].compile()
    batches = [drawn_batch(agents[0], seed) for seed in range(UPDATES)]
    batches[0]["is_offline"][:5] = 1.0
    for batch in batches:
        agents[0].update(batch)
        agents[1].update(batch)
    CapturedUpdates([agents[2]], ROWS, UPDATES, fused=False).update_on([joined(batches)])
    CapturedUpdates(agents[3:], ROWS, UPDATES, fused=False).update_on([joined(batches)] * 2)
    for other in agents[1:]:
        assert_close(agents[0], other)
    captured = CapturedUpdates([agents[2]], ROWS, 1, fused=False)
    captured.load([batches[0]])
    with OnTheDevice():
        captured._update(diagnostics=True)


def test_a_learned_score_is_trained_beside_it() -> None:
    agent = make_agent(tiny_config(learned_score=True, **DPPO))
    batch = {**drawn_batch(agent, 0), "scores": torch.zeros(ROWS)}
    assert {"critic/loss", "actor/loss_positive", "actor/kl"} <= agent.update(batch).keys()


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_a_bandit_is_climbed_to_its_known_optimum(diffusion: str) -> None:
    """A clone of actions from all over is improved by drawing groups, judging and updating; it acts as others do."""
    agent = make_agent(tiny_config(diffusion=diffusion, **{**DPPO, "denoise_steps": 8}))
    best, seen = torch.tensor([0.5, -0.4]), torch.zeros(8 * ROWS, OBSERVATION_DIM)
    for seed in range(400):
        agent.update({**make_batch(seed, 8 * ROWS), "observations": seen})

    def score(actions: torch.Tensor) -> torch.Tensor:
        return -(actions - best).square().sum(dim=1)

    def acting() -> float:
        return float(score(agent.sample_actions(seen, generator=torch.Generator().manual_seed(3))).mean())

    before = acting()
    for _ in range(40):
        actions, kept = agent.policy.draw_chains(seen, agent.generator)
        scores = score(actions)
        batch = {
            **{name: torch.zeros_like(seen) for name in ("observations", "next_observations")},
            **{"actions": actions, "rewards": (scores - scores.mean()) / scores.std(), **kept},
            **{"masks": torch.zeros(len(seen)), "is_offline": torch.zeros(len(seen))},
        }
        for rows in torch.arange(len(seen)).view(8, ROWS):
            agent.update({name: column[rows] for name, column in batch.items()})
    assert before < -0.6 and acting() > before / 3, "the squared distance to the optimum, of both numbers"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"advantage": "critic"}, "set agent.advantage=group and agent.num_candidates=1"),
    ({"beta": 2.0}, "agent.beta: found 2.0, but weight_scheme 'dppo' weighs no rows"),
    ({"train_bc": True}, "set agent.train_bc=false or agent.weight_scheme=dipole"),
    ({"omega": 1.0}, "weight_scheme 'dppo' has nothing to guide; set agent.omega=0"),
    (
        {"weight_scheme": "exp", "policy_gradient": PolicyGradientConfig(clip=0.2)},
        "set agent.policy_gradient.clip=0.05",
    ),
    (
        {"adapters": AdapterConfig(rank=2), "backbone": BackboneConfig(dtype="bfloat16")},
        "likelihoods of weight_scheme 'dppo' would not agree; set float32",
    ),
]


@pytest.mark.parametrize(("wrong", "remedy"), REFUSED)
def test_what_a_policy_gradient_cannot_have_is_refused_with_the_remedy(wrong: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        AgentConfig(**{**DPPO, **wrong})
    assert remedy in str(refused.value)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"agent\.policy_gradient\.eta: found 1\.5; give a number in \[0, 1\]"):
        PolicyGradientConfig(eta=1.5)
    with pytest.raises(ConfigError, match=r"agent\.policy_gradient\.clip: found 0"):
        PolicyGradientConfig(clip=0)
