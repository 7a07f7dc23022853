"""A learned score chooses among candidates where rows bring their advantage: critics that regress on their scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dipole_ray.agents import agent as agents
from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import make_policy
from dipole_ray.agents.backbones import BackboneConfig
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.encoders import EncoderConfig
from dipole_ray.columns import Column, Schema
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.cells import EvalConfig, cells_of
from tests.agents.battery import ROWS, SCHEMA, Batch, assert_same, make_agent, make_batch, tiny_config
from tests.agents.test_captured import UPDATES, assert_close, joined

SCORED: dict[str, Any] = {"advantage": "group", "learned_score": True}
GROUP, CANDIDATES = 10, 16
TOKENS = Schema({"ego": Column((5,)), "context": Column((3, 6), "float16", table="scenes")}, 4)


def scored_batch(seed: int) -> Batch:
    """Return rows that a group judged."""
    given, scores = make_batch(seed), np.random.default_rng(seed).uniform(size=ROWS)
    return {**given, "scores": scores.astype(np.float32), "is_offline": np.zeros(ROWS, np.float32)}


def of_score(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "critic" in name}


def judged(states: Tensor, action_dim: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return drawn actions (S, size, A) and their scores (S, size): how near they come to what the state wants."""
    actions = 2 * torch.rand(len(states), size, action_dim, generator=generator) - 1
    return actions, 1 - (actions - states[:, None, :action_dim].tanh()).abs().mean(dim=-1)


def learn(agent: Any, observe: Any, updates: int) -> None:
    """Update on groups of drawn actions, half of them offline, whose scores nobody tells."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        states = torch.randn(8, 5, generator=generator)
        actions, scores = judged(states, agent.sizes.action_dim, GROUP, generator)
        advantages = (scores - scores.mean(1, keepdim=True)) / scores.std(1, correction=0, keepdim=True)
        is_offline = torch.zeros_like(scores)
        advantages[4:], scores[4:], is_offline[4:] = 0.0, 0.0, 1.0
        told = {"rewards": advantages.flatten(), "scores": scores.flatten(), "is_offline": is_offline.flatten()}
        seen = observe(states.repeat_interleave(GROUP, dim=0))
        rows = {"observations": seen, "next_observations": seen, "masks": torch.zeros(8 * GROUP)}
        agent.update({**rows, **told, "actions": actions.flatten(0, 1)}, diagnostics=False)


def tokens_agent(seed: int = 0, **changes: Any) -> Any:
    head = BackboneConfig(network="dipole_ray.agents.plan_heads:tiny")
    return agents.make_agent(tiny_config(backbone=head, num_candidates=1, **SCORED, **changes), TOKENS, seed=seed)


def as_tokens(states: Tensor) -> dict[str, Tensor]:
    """Return observations whose wish is told by the context alone."""
    context = torch.cat((states, torch.ones_like(states[:, :1])), dim=1).unsqueeze(1).expand(-1, 3, -1)
    return {"ego": torch.zeros_like(states), "context": context.half()}


@pytest.mark.parametrize("seen", ["vector", pytest.param("tokens", marks=pytest.mark.slow)])
def test_the_choice_of_sixteen_is_better_than_a_drawn_action(seen: str) -> None:
    """In states that were never learned from, where the score of each action is known."""
    is_vector = seen == "vector"
    agent = make_agent(tiny_config(hidden_dims=(64, 64), **SCORED)) if is_vector else tokens_agent(learning_rate=2e-3)
    observe = (lambda states: states) if is_vector else as_tokens
    learn(agent, observe, 200)
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(64, 5, generator=generator)
    actions, scores = judged(states, agent.sizes.action_dim, CANDIDATES, generator)
    found = agent.policy.estimates(observe(states), actions)
    chosen = scores.gather(1, found.argmax(dim=1, keepdim=True)).squeeze(1)
    assert float((chosen > scores.mean(dim=1)).float().mean()) > 0.85
    mean, best = scores.mean(), scores.amax(dim=1).mean()
    assert float((chosen.mean() - mean) / (best - mean)) > 0.5


def test_rows_of_no_group_leave_the_score_as_it_was() -> None:
    """Nobody judged a dataset's rows: bitwise they move nothing and weigh nothing."""
    agent, other = (make_agent(tiny_config(**SCORED)) for _ in range(2))
    before = of_score(agent.state_dict())
    zeros, ones = np.zeros(ROWS, np.float32), np.ones(ROWS, np.float32)
    dataset = {**scored_batch(0), "rewards": zeros, "scores": zeros, "is_offline": ones}
    metrics = agent.update(dataset)
    assert float(metrics["critic/loss"]) == float(metrics["critic/correlation"]) == 0
    after = of_score(agent.state_dict())
    assert_same(*({name: each for name, each in kept.items() if "step" not in name} for kept in (before, after)))
    other.update(dataset)
    mixed = scored_batch(1)
    mixed["rewards"][8:16], mixed["is_offline"][8:16] = 0.0, 1.0
    elsewhere = {name: column.copy() for name, column in mixed.items()}
    elsewhere["actions"][8:16], elsewhere["observations"][8:16], elsewhere["scores"][8:16] = 0.5, -1.0, 9.0
    agent.update(mixed)
    other.update(elsewhere)
    assert_same(of_score(agent.state_dict()), of_score(other.state_dict()))
    assert not torch.equal(agent.state_dict()["networks.critic.kernels.0"], before["networks.critic.kernels.0"])


@pytest.mark.parametrize("changes", [{}, {"adapters": AdapterConfig(rank=2)}], ids=["fields", "adapters"])
def test_the_policy_is_bitwise_what_it_is_without_a_score(changes: dict[str, Any]) -> None:
    scored = make_agent(tiny_config(**SCORED, **changes))
    alone = make_agent(tiny_config(advantage="group", num_candidates=1, **changes))
    for step in range(3):
        for agent in (scored, alone):
            if changes and step < 2:
                agent.clone(step == 0)
            agent.update(scored_batch(step))
    kept = scored.state_dict()
    assert of_score(kept)
    assert_same({name: each for name, each in kept.items() if name not in of_score(kept)}, alone.state_dict())
    observations = make_batch(9)["observations"]
    assert torch.equal(*(each.sample_actions(observations, num_candidates=1) for each in (scored, alone)))


@pytest.mark.parametrize("kind", ["fields", "adapters", "tokens"])
def test_a_published_policy_chooses_alike_and_a_resumed_agent_goes_on_bitwise(kind: str) -> None:
    if kind == "tokens":
        agent, resumed, schema, batch = tokens_agent(), tokens_agent(1), TOKENS, token_rows()
    else:
        config = tiny_config(**SCORED, adapters=AdapterConfig(rank=2 * (kind == "adapters")))
        backbone = config.adapters.rank and make_agent(config).networks.fields.backbone_state()
        agent, resumed, schema, batch = make_agent(config), make_agent(config, seed=1), SCHEMA, scored_batch(0)
        if backbone:
            resumed.networks.fields.load_backbone(backbone)
    agent.update(batch)
    resumed.load_state_dict(agent.state_dict())
    assert_same(agent.update(batch), resumed.update(batch))
    assert_same(agent.state_dict(), resumed.state_dict())
    worker = make_policy(agent.config, schema, seed=0)
    worker.load_policy_state(agent.policy.policy_state())
    draw = [{"num_candidates": 8, "generator": torch.Generator().manual_seed(3)} for _ in range(3)]
    chosen = agent.sample_actions(batch["observations"], **draw[0])
    assert torch.equal(chosen, worker.sample_actions(batch["observations"], **draw[1]))
    first = agent.sample_actions(batch["observations"], **{**draw[2], "num_candidates": 1})
    assert not torch.equal(chosen, first)


def token_rows() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    seen = as_tokens(torch.randn(ROWS, 5, generator=generator))
    actions, rewards = torch.rand(ROWS, 4, generator=generator), torch.randn(ROWS, generator=generator)
    told = {"rewards": rewards, "scores": rewards.sigmoid(), "masks": rewards, "is_offline": torch.zeros(ROWS)}
    return {"observations": seen, "next_observations": seen, "actions": actions, **told}


def test_fast_ways_end_where_the_readable_one_does() -> None:
    """Compiled and captured steps have critics without targets."""
    config = tiny_config(**SCORED)
    readable, compiled, captured = (make_agent(config) for _ in range(3))
    assert compiled.compile()
    batches = [scored_batch(seed) for seed in range(UPDATES)]
    for batch in batches:
        batch["is_offline"][:8] = 1.0
        readable.update(batch)
        compiled.update(batch)
    CapturedUpdates([captured], ROWS, UPDATES, fused=False).update_on([joined(batches)])
    for other in (compiled, captured):
        assert_close(readable, other)


def test_evaluations_choose_where_a_score_was_learned() -> None:
    grid = EvalConfig(candidates=(1, 16))
    assert {cell.candidates for cell in cells_of(grid, tiny_config(**SCORED))} == {1, 16}
    no_score = tiny_config(advantage="group", num_candidates=1)
    assert {cell.candidates for cell in cells_of(grid, no_score)} == {1}


def test_what_cannot_be_scored_or_is_not_read_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"learned_score: found true, but .*has critics.*agent\.advantage=group"):
        tiny_config(learned_score=True)
    others = {"expectile": 0.7, "n_step": 3, "bootstrap": "value", "tau": 0.01, "value_aggregation": "mean"}
    for setting, value in others.items():
        with pytest.raises(ConfigError, match=rf"agent\.{setting}: found {value}, but"):
            tiny_config(**SCORED, **{setting: value})
    assert tiny_config(**SCORED, num_critics=4, num_candidates=8).choice_aggregation == "mean"
    assert tiny_config(**SCORED, advantage_aggregation="min").choice_aggregation == "min"
    with pytest.raises(ConfigError, match="column 'scores' is missing"):
        make_agent(tiny_config(**SCORED)).update({**make_batch(0), "is_offline": np.zeros(ROWS)})
    with pytest.raises(ConfigError, match=r"num_candidates: found 8, .*agent\.learned_score=true"):
        tiny_config(advantage="group", num_candidates=8)
    images = Schema(Column((8, 8, 3), "uint8"), 2)
    head = BackboneConfig(network=f"{__name__}:image_fields")
    with pytest.raises(ConfigError, match=r"observations are uint8 .*agent\.encoder\.network=impala"):
        agents.make_agent(tiny_config(backbone=head, **SCORED), images, seed=0)
    shared = replace(tiny_config(**SCORED), encoder=EncoderConfig(network="impala_tiny", sharing="shared"))
    with pytest.raises(ConfigError, match=r"sharing: found 'shared', but .*'group'"):
        agents.make_agent(shared, images, seed=0)
