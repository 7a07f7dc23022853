"""Observations that are no flat vectors: images stay uint8, arrays come by name, and encoders make states of them."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import Agent, make_agent, make_policy
from dipole_ray.agents.backbones import BackboneConfig
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.encoders import EncoderConfig, seen_by
from dipole_ray.columns import Column, Schema
from dipole_ray.errors import ConfigError
from tests.agents.battery import assert_same, tiny_config

SIDE, ROWS, ACTION_DIM = 6, 8, 2
IMAGE, JOINTS = Column((SIDE, SIDE, 3), "uint8"), Column((3,))
OF_IMAGES = Schema(IMAGE, ACTION_DIM)
OF_BOTH = Schema({"camera": IMAGE, "joints": JOINTS}, ACTION_DIM)
OF_VECTORS = Schema({"joints": JOINTS, "goal": Column((2,))}, ACTION_DIM)

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "pixels.md").read_text()
MINE = '''
import torch
from torch import nn


class Encoder(nn.Module):
    """Means of the colours and the joints, in a linear layer."""

    def __init__(self, sizes, generator):
        super().__init__()
        self.observed, self.embedding_dim, self.rows = sizes.observed, 7, []
        self.layer = nn.Linear(sum(column.shape[-1] for column in sizes.observed.values()), 7)
        nn.init.xavier_uniform_(self.layer.weight, generator=generator)
        nn.init.zeros_(self.layer.bias)

    def forward(self, observations):
        parts = observations if isinstance(observations, dict) else {"observations": observations}
        for name, column in self.observed.items():
            part = parts[name.rpartition(".")[2]]
            assert part.dtype == getattr(torch, column.dtype) and part.shape[1:] == column.shape, name
        self.rows.append(len(part))
        means = [part.float().flatten(1, -2).mean(dim=1) / 255 if part.ndim > 2 else part for part in parts.values()]
        return torch.tanh(self.layer(torch.cat(means, dim=-1)))


class Fields(nn.Module):
    """A velocity of the observations as they are."""

    def __init__(self, names, sizes, generator):
        super().__init__()
        self.names, self.encoder = names, Encoder(sizes, generator)
        self.out = nn.Linear(7 + sizes.action_dim + 1, sizes.action_dim)
        nn.init.xavier_uniform_(self.out.weight, generator=generator)
        nn.init.zeros_(self.out.bias)

    def encode(self, observations, fields):
        return self.encoder(observations)

    def velocity(self, context, x, t, fields):
        t = torch.as_tensor(t, dtype=x.dtype).expand(len(x), 1).unsqueeze(1).expand(*x.shape[:2], 1)
        states = context.unsqueeze(1).expand(-1, x.shape[1], -1)
        return self.out(torch.cat((states, x, t), dim=-1)).unsqueeze(0)

    def forward(self, observations, x, t):
        return self.velocity(self.encode(observations, self.names), x.unsqueeze(1), t, self.names)[:, :, 0]


class Halved(Encoder):
    def forward(self, observations):
        return super().forward(observations)[:, :3]


def nothing(sizes, generator):
    return object()
'''


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the user's, outside of the package."""
    (tmp_path / "my_encoder.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_encoder", raising=False)


def with_mine(preset: str = "paper", sharing: str = "own", **changes: Any) -> AgentConfig:
    encoder = EncoderConfig(network="my_encoder:Encoder", sharing=sharing)
    return tiny_config(preset, **{"encoder": encoder, "num_candidates": 4, **changes})


def draw_observations(schema: Schema, rng: np.random.Generator, rows: int) -> Any:
    drawn = {
        name.rpartition(".")[2]: rng.integers(0, 256, (rows, *column.shape), dtype=np.uint8)
        if column.dtype == "uint8"
        else rng.normal(size=(rows, *column.shape)).astype(np.float32)
        for name, column in schema.as_seen.observed.items()
    }
    return drawn.get("observations", drawn)


def make_batch(schema: Schema, seed: int, rows: int = ROWS) -> dict[str, Any]:
    """Return a batch as the replay hands it out."""
    rng = np.random.default_rng(seed)
    return {
        "observations": draw_observations(schema, rng, rows),
        "actions": rng.uniform(-1, 1, (rows, ACTION_DIM)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "masks": np.ones(rows, np.float32),
        "next_observations": draw_observations(schema, rng, rows),
    }


def check_learns_acts_and_resumes(config: AgentConfig, schema: Schema) -> Agent:
    """Fit, act, publish, save and resume."""
    agent = make_agent(config, schema, seed=0)
    if config.observation_normalization == "dataset":
        agent.fit_observations(np.ones(3), np.full(3, 2.0))
    before = agent.state_dict()
    for step in range(3):
        metrics = agent.update(make_batch(schema, step))
        assert all(bool(torch.isfinite(value)) for value in metrics.values()), metrics
    after = agent.state_dict()
    moving = [name for name in before if name.startswith("networks.") and "observation_" not in name]
    assert [name for name in moving if torch.equal(before[name], after[name])] == []
    observations = make_batch(schema, 9)["observations"]
    resumed, worker, follower = (make(config, schema, seed=5) for make in (make_agent, make_policy, make_policy))
    resumed.load_state_dict(after)
    worker.load_agent_state(after)
    follower.load_policy_state(agent.policy.policy_state())
    kept = follower.networks.state_dict().keys()
    assert kept <= agent.networks.state_dict().keys() and not any("target" in name for name in kept)
    acted = [one.sample_actions(observations) for one in (agent, resumed, worker)]
    assert torch.equal(acted[0], acted[1]) and torch.equal(acted[0], acted[2])
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    ways = [one.sample_actions(observations, generator=g) for one, g in zip((agent, follower), generators, strict=True)]
    assert torch.equal(*ways)
    for step in range(3, 5):
        assert_same(agent.update(make_batch(schema, step)), resumed.update(make_batch(schema, step)))
    assert_same(agent.state_dict(), resumed.state_dict())
    return agent


@pytest.mark.parametrize("sharing", ["own", "shared"])
@pytest.mark.parametrize("preset", ["paper", "ifql", "fql", "iql"])
def test_every_method_learns_acts_and_resumes_bitwise_on_images_and_vectors(preset: str, sharing: str) -> None:
    check_learns_acts_and_resumes(with_mine(preset, sharing, observation_normalization="dataset"), OF_BOTH)


def test_one_image_is_a_tensor_and_several_vectors_need_no_encoder() -> None:
    check_learns_acts_and_resumes(with_mine(), OF_IMAGES)
    check_learns_acts_and_resumes(tiny_config(), OF_VECTORS)


def test_vectors_by_name_are_what_one_vector_of_both_is() -> None:
    named, flat = (make_agent(tiny_config(), schema, seed=0) for schema in (OF_VECTORS, Schema(5, ACTION_DIM)))
    for step in range(2):
        batch = make_batch(OF_VECTORS, step)
        joined = {
            name: np.concatenate(list(each.values()), axis=1) if isinstance(each, dict) else each
            for name, each in batch.items()
        }
        assert_same(named.update(batch), flat.update(joined))


def test_a_backbone_of_ones_own_reads_observations_as_they_are_unless_all_share_an_encoder() -> None:
    config = with_mine(backbone=BackboneConfig(network="my_encoder:Fields"))
    agent = check_learns_acts_and_resumes(config, OF_BOTH)
    fields: Any = agent.networks.fields
    assert fields.networks[0].encoder.observed == OF_BOTH.observed
    assert set(agent.networks.encoders) == {"critic", "value", "target_critic"}
    shared: Any = make_agent(
        with_mine(sharing="shared", backbone=BackboneConfig(network="dit-tiny")), OF_BOTH, seed=0
    ).networks
    assert set(shared.encoders) == {"shared", "target_critic"}
    assert shared.fields.networks[0].state[0].in_features == 7


def test_fields_that_read_observations_need_no_encoder_where_there_is_no_critic() -> None:
    settings: Any = {"advantage": "group", "num_candidates": 1, "encoder": EncoderConfig()}
    config = with_mine(backbone=BackboneConfig(network="my_encoder:Fields"), **settings)
    check_learns_acts_and_resumes(config, OF_BOTH)
    with pytest.raises(ConfigError, match=r"agent\.encoder\.sharing: found 'shared', but .*'group' trains no critics"):
        make_agent(replace(config, encoder=EncoderConfig(sharing="shared")), OF_VECTORS, seed=0)


@pytest.mark.parametrize(("sharing", "calls"), [("own", {"critic": 1, "fields": 1}), ("shared", {"shared": 1})])
def test_acting_encodes_each_state_once_whatever_the_steps_and_candidates(sharing: str, calls: dict[str, int]) -> None:
    policy = make_policy(with_mine(sharing=sharing), OF_BOTH, seed=0)
    found: Any = policy.networks.encoders
    for name in found:
        found[name].rows.clear()
    policy.sample_actions(draw_observations(OF_BOTH, np.random.default_rng(0), 5), omega=1.0, num_candidates=9)
    assert {name: found[name].rows for name in found} == {name: [5] * count for name, count in calls.items()}


def test_images_are_uint8_in_all_that_a_batch_takes_until_an_encoder_reads_them() -> None:
    agent = make_agent(with_mine(), OF_BOTH, seed=0)
    columns = agent._read_batch(make_batch(OF_BOTH, 0))
    stored = 2 * ROWS * (IMAGE.bytes + JOINTS.bytes) + ROWS * 4 * (ACTION_DIM + 4)
    assert sum(column.nbytes for column in columns.values()) == stored
    batch = make_batch(OF_BOTH, 0)
    camera = torch.from_numpy(batch["observations"]["camera"])
    read = agent._read_batch({**batch, "observations": {**batch["observations"], "camera": camera}})
    assert read["observations.camera"].data_ptr() == camera.data_ptr()  # nothing is copied on the way
    seen = agent.policy.normalized({"camera": camera, "joints": read["observations.joints"]})
    raw: Any = seen_by("nobody's", seen)
    assert raw["camera"].data_ptr() == camera.data_ptr()


def _moved(agent: Agent, term: str) -> set[str]:
    """Return the encoders that one of the losses gives a gradient."""
    keeps = agent._losses

    def only(batch: Any, diagnostics: bool) -> Any:
        terms, metrics, statistics = keeps(batch, diagnostics)
        return {term: terms[term]}, metrics, statistics

    agent._losses = only  # type: ignore[method-assign]
    agent.networks.zero_grad(set_to_none=True)
    agent._loss(agent._read_batch(make_batch(OF_BOTH, 0)), False)[0].backward()  # type: ignore[no-untyped-call]
    agent._losses = keeps  # type: ignore[method-assign]
    gradients = [(name, each.grad) for name, each in agent.networks.encoders.named_parameters()]
    return {name.partition(".")[0] for name, found in gradients if found is not None and bool(found.any())}


@pytest.mark.parametrize(
    ("preset", "reached"),
    [
        ("paper", {"critic": "critic", "value": "value", "actor": "fields"}),
        ("ifql", {"critic": "critic", "value": "value", "actor": "fields"}),
        ("iql", {"critic": "critic", "value": "value", "actor": "policy"}),
        ("fql", {"critic": "critic", "flow": "fields", "policy": "policy"}),
    ],
)
def test_each_loss_moves_its_own_encoder_and_only_critics_and_v_a_shared_one(
    preset: str, reached: dict[str, str]
) -> None:
    own, shared = (make_agent(with_mine(preset, sharing), OF_BOTH, seed=0) for sharing in ("own", "shared"))
    for term, encoder in reached.items():
        assert _moved(own, term) == {encoder}
        assert _moved(shared, term) == ({"shared"} if term in ("critic", "value") else set())


@pytest.mark.parametrize("sharing", ["own", "shared"])
def test_the_encoder_of_the_target_critics_follows_that_of_the_critics(sharing: str) -> None:
    agent = make_agent(with_mine(sharing=sharing, tau=0.25), OF_BOTH, seed=0)
    name = agent.networks.encoders.by_role["critic"]
    online, target = (agent.networks.encoders[each].layer for each in (name, "target_critic"))  # type: ignore[union-attr]
    before = target.weight.clone()
    assert torch.equal(before, online.weight)
    agent.update(make_batch(OF_BOTH, 0))
    expected = torch.lerp(before, online.weight.detach(), 0.25)
    assert torch.equal(target.weight, expected) and not torch.equal(before, expected)


def test_what_reads_flat_vectors_alone_is_refused_or_left_out() -> None:
    agent = make_agent(with_mine(), OF_BOTH, seed=0)
    assert not agent.compile() and not agent.steps.is_compiled
    with pytest.raises(ConfigError, match=r"captured updates: observations are uint8 .*take flat vectors"):
        CapturedUpdates([agent], ROWS, 1)
    with pytest.raises(ConfigError, match=r"agent\.adapters\.rank: found 4, but agent\.encoder would move before the"):
        with_mine(adapters=AdapterConfig(rank=4))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"network": "imapla"}, "agent.encoder.network: found 'imapla'; choose none, impala, .*or module:factory"),
        ({"sharing": "some"}, "agent.encoder.sharing: found 'some'; choose one of own, shared"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EncoderConfig(**settings)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("none", r"observations are uint8 \(6, 6, 3\), where flat vectors of float32 are needed; set agent\.encoder"),
        ("no_such_module:Encoder", r"agent\.encoder\.network: cannot import 'no_such_module'"),
        ("my_encoder:Missing", r"agent\.encoder\.network: 'my_encoder' has no function 'Missing'"),
        (
            "my_encoder:Halved",
            r"of one row my_encoder:Halved makes torch.float32 \(1, 3\); let it make float32 \(1, 7\)",
        ),
        ("my_encoder:nothing", r"agent\.encoder\.network: my_encoder:nothing made a object; let it make a torch\.nn"),
    ],
)
def test_encoders_that_are_none_are_refused(network: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_agent(tiny_config(encoder=EncoderConfig(network=network)), OF_IMAGES, seed=0)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda o: o["camera"], "observations are observations; give camera, joints"),
        (lambda o: {"camera": o["camera"]}, "observations are camera; give camera, joints"),
        (lambda o: {**o, "camera": o["camera"] / 255}, r"observations\.camera hold torch\.float64, and .* says uint8"),
        (lambda o: {**o, "camera": o["camera"][:, 1:]}, r"observations\.camera have shape \(8, 5, 6, 3\); give \(B, 6"),
        (lambda o: {**o, "joints": o["joints"][1:]}, r"observations have \[7, 8\] rows in their columns"),
    ],
)
def test_observations_that_are_not_the_schemas_are_refused(spoil: Any, said: str) -> None:
    policy = make_policy(with_mine(), OF_BOTH, seed=0)
    with pytest.raises(ConfigError, match=said):
        policy.sample_actions(spoil(make_batch(OF_BOTH, 0)["observations"]))


def test_a_batch_without_one_of_the_arrays_is_refused_by_name() -> None:
    batch = make_batch(OF_BOTH, 0)
    del batch["next_observations"]["camera"]
    with pytest.raises(ConfigError, match=r"batch: column 'next_observations\.camera' is missing"):
        make_agent(with_mine(), OF_BOTH, seed=0).update(batch)


def test_the_guides_encoder_learns_from_a_file_of_ones_own(tmp_path: Path) -> None:
    (program,) = re.findall(r"`my_encoder.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_encoder.py").write_text(program)
    check_learns_acts_and_resumes(with_mine(encoder=EncoderConfig(network="my_encoder:Mine")), OF_BOTH)


def test_entries_that_lie_in_tables_are_seen_as_what_they_are() -> None:
    in_table = Schema(Column(IMAGE.shape, "uint8", table="frames"), ACTION_DIM)
    config: Any = with_mine()
    agents = [make_agent(config, schema, seed=0) for schema in (OF_IMAGES, in_table)]
    batch = make_batch(OF_IMAGES, 0)
    assert_same(*(agent.update(batch) for agent in agents))
    state: dict[str, Tensor] = agents[0].state_dict()
    assert_same(state, agents[1].state_dict())
