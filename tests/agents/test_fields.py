"""A velocity field is a protocol: another architecture behind it learns, acts and is saved as the stacked MLPs are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dipole_ray.agents.agent import make_agent, make_policy
from dipole_ray.agents.dipole import DipoleAgent
from dipole_ray.agents.fields import StackedFields, VelocityField
from dipole_ray.agents.networks import Sizes
from dipole_ray.columns import Column, Schema
from dipole_ray.errors import ConfigError
from tests.agents.battery import assert_same
from tests.agents.test_bandit import assert_greediness_pays, bandit_batch, bandit_config

NAMES = ("positive", "negative", "bc")
WIDTH = 32
SCHEMA = Schema(1, 1)


class TransformerFields(nn.Module):
    """Fields that are one transformer: it reads the state, a point on the path, and a token that names the field.

    The state's token comes from a frozen layer, as it would from a pretrained backbone, and is encoded once a state.
    """

    def __init__(self, names: tuple[str, ...], sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.names = names
        self.encoded_rows = 0
        with torch.random.fork_rng():
            torch.manual_seed(generator.initial_seed())
            self.backbone = nn.Linear(sizes.observation_dim, WIDTH).requires_grad_(False)
            self.point = nn.Linear(sizes.action_dim + 1, WIDTH)
            self.tokens = nn.ParameterDict({name: nn.Parameter(torch.randn(WIDTH)) for name in names})
            self.layer = nn.TransformerEncoderLayer(
                WIDTH, 2, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            self.head = nn.Linear(WIDTH, sizes.action_dim)

    def encode(self, observations: Tensor, fields: Sequence[str]) -> Tensor:
        self.encoded_rows += len(observations)
        return self.backbone(observations)

    def velocity(self, context: Tensor, x: Tensor, t: float | Tensor, fields: Sequence[str]) -> Tensor:
        times = torch.as_tensor(t, dtype=x.dtype).expand(len(x), 1).unsqueeze(1).expand(*x.shape[:2], 1)
        points = self.point(torch.cat((x, times), dim=-1))
        states = context.unsqueeze(1).expand_as(points)
        sequences = torch.stack(
            [torch.stack((states, points, self.tokens[name].expand_as(points)), dim=2) for name in fields]
        )
        return self.head(self.layer(sequences.flatten(0, 2))[:, 1]).view(len(fields), *x.shape)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.velocity(self.encode(observations, self.names), x.unsqueeze(1), t, self.names)[:, :, 0]


def draw(make: Any) -> VelocityField:
    """Return untrained fields of one kind, off their initial zeros."""
    sizes = Sizes(observation_dim=6, action_dim=2, hidden_dims=(32, 32), num_critics=2)
    generator = torch.Generator().manual_seed(0)
    fields: Any = make(NAMES, sizes, generator)
    for parameter in fields.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return fields  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [StackedFields, TransformerFields])
def test_sampling_equals_the_training_pass_for_any_choice_of_fields_and_times(make: Any) -> None:
    fields, generator = draw(make), torch.Generator().manual_seed(1)
    observations, x = torch.randn(4, 6, generator=generator), torch.randn(4, 5, 2, generator=generator)
    times = torch.rand(4, 1, generator=generator)
    for chosen in (["positive"], ["positive", "negative"], ["bc"], ["bc", "positive"], list(NAMES)):
        context = fields.encode(observations, chosen)
        for t in (0.3, times):
            found = fields.velocity(context, x, t, chosen)
            for n in range(5):
                every = fields(observations, x[:, n], t if isinstance(t, Tensor) else torch.full((4, 1), t))
                expected = torch.stack([every[NAMES.index(name)] for name in chosen])
                torch.testing.assert_close(found[:, :, n], expected, rtol=1e-5, atol=1e-6)


@cache
def trained() -> DipoleAgent:
    """Return a DIPOLE on the bandit whose fields are a transformer."""
    config = bandit_config(train_bc=True)
    agent, rng = DipoleAgent(config, SCHEMA, seed=0, make_fields=TransformerFields), np.random.default_rng(0)
    for _ in range(1000):
        agent.update(bandit_batch(rng), diagnostics=False)
    return agent


def test_a_transformer_behind_the_protocol_learns_the_bandit() -> None:
    assert_greediness_pays(trained())


def test_a_frozen_backbone_is_neither_trained_nor_given_moments_and_is_asked_once_a_state() -> None:
    agent = trained()
    fields: Any = agent.networks.fields
    fresh: Any = make_policy(agent.config, SCHEMA, seed=0, make_fields=TransformerFields).networks.fields
    assert_same(fields.backbone.state_dict(), fresh.backbone.state_dict())
    assert not any("backbone" in name for name in agent.networks.trained_parameters())
    assert not any("backbone" in name for name in agent.state_dict() if name.startswith("optimizer."))
    assert not torch.equal(fields.head.weight, fresh.head.weight)
    before = fields.encoded_rows
    agent.sample_actions(np.zeros((7, 1), np.float32), omega=1.0, num_candidates=9)
    assert fields.encoded_rows - before == 7


def test_a_transformer_is_saved_and_published_as_the_stacked_networks_are() -> None:
    agent, rng, observations = trained(), np.random.default_rng(1), np.zeros((7, 1), np.float32)
    saved = agent.state_dict()
    resumed = make_agent(agent.config, SCHEMA, seed=9, make_fields=TransformerFields)
    resumed.load_state_dict(saved)
    worker = make_policy(agent.config, SCHEMA, seed=9, make_fields=TransformerFields)
    worker.load_agent_state(saved)
    acted = [one.sample_actions(observations) for one in (agent, resumed, worker)]
    assert torch.equal(acted[0], acted[1]) and torch.equal(acted[0], acted[2])
    batch = bandit_batch(rng)
    assert_same(agent.update(batch), resumed.update(batch))
    assert_same(agent.state_dict(), resumed.state_dict())
    worker.load_policy_state(agent.policy.policy_state())
    assert_same(worker.policy_state(), resumed.policy.policy_state())


def test_networks_that_are_no_modules_are_refused() -> None:
    class Plain:
        names = NAMES

    def make(names: tuple[str, ...], sizes: Sizes, generator: torch.Generator) -> Any:
        return Plain()

    with pytest.raises(TypeError, match=r"networks\.fields: found Plain; make it a torch\.nn\.Module"):
        DipoleAgent(bandit_config(), SCHEMA, seed=0, make_fields=make)


def test_stacked_networks_refuse_what_is_no_flat_vector_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"uint8 \(8, 8, 3\).*where flat vectors of float32 are needed"):
        make_agent(bandit_config(), Schema(Column((8, 8, 3), "uint8"), 1), seed=0)
