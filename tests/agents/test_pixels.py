"""Images in updates: what IMPALA makes of them, and what a random shift does to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dipole_ray.agents.agent import Agent, make_agent
from dipole_ray.agents.augmentation import random_shift
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.encoders import EncoderConfig
from dipole_ray.agents.impala import IMPALAS, Impala, Shape
from dipole_ray.agents.networks import Sizes
from dipole_ray.columns import Column, Schema
from dipole_ray.errors import ConfigError
from tests.agents.battery import assert_same, tiny_config
from tests.agents.test_observations import (
    ACTION_DIM,
    IMAGE,
    OF_BOTH,
    OF_IMAGES,
    ROWS,
    SIDE,
    check_learns_acts_and_resumes,
    make_batch,
)

FLAT = Schema(5, ACTION_DIM)


def impala(preset: str = "paper", **encoder: Any) -> AgentConfig:
    made = EncoderConfig(**{"network": "impala_tiny", "pad": 1, **encoder})
    return tiny_config(preset, encoder=made, num_candidates=2)


@pytest.mark.parametrize(("preset", "sharing"), [("ifql", "shared"), ("fql", "own")])
def test_impala_learns_acts_and_resumes_bitwise_with_its_shifts(preset: str, sharing: str) -> None:
    check_learns_acts_and_resumes(impala(preset, sharing=sharing, layer_norm=sharing == "own"), OF_BOTH)


def test_impala_sees_uint8_as_numbers_from_zero_to_one_and_puts_vectors_after_its_units() -> None:
    sizes = Sizes(0, ACTION_DIM, (), 2, OF_BOTH.observed)
    made = Impala(Shape((4, 6), 1, 10), False, sizes, torch.Generator().manual_seed(0))
    trunk: Any = made.trunks["camera"]
    read = []
    trunk.stacks[0].register_forward_pre_hook(lambda _, given: read.append(given[0]))
    images = torch.full((2, *IMAGE.shape), 255, dtype=torch.uint8)
    images[1] = 0
    joints = torch.randn(2, 3)
    states = made({"camera": images, "joints": joints})
    assert states.shape == (2, made.embedding_dim) == (2, 13) and torch.equal(states[:, 10:], joints)
    assert read[0].shape == (2, 3, SIDE, SIDE) and read[0].aminmax() == (0.0, 1.0)
    assert trunk.dense.in_features == 6 * 2 * 2  # two halvings of 6 pixels


def test_the_sizes_of_impala_are_those_of_ogbench() -> None:
    """Its `impala` on an image of 64 x 64 x 3: stacks of 16, 32 and 32 channels, 8 x 8 positions into 512 units."""
    sizes = Sizes(0, 2, (), 2, {"observations": Column((64, 64, 3), "uint8")})
    counts = {}
    for name, shape in IMPALAS.items():
        made = Impala(shape, False, sizes, torch.Generator())
        counts[name] = sum(each.numel() for each in made.parameters())
    dense = 8 * 8 * 32 * 512 + 512
    stack = [27 * 16 + 16, 144 * 32 + 32, 288 * 32 + 32]
    blocks = [2 * (144 * 16 + 16), 2 * (288 * 32 + 32), 2 * (288 * 32 + 32)]
    assert counts["impala"] == sum(stack) + 2 * sum(blocks) + dense
    assert counts["impala_small"] == sum(stack) + sum(blocks) + dense


def test_shifts_move_whole_images_by_every_step_equally_often_and_repeat_the_border() -> None:
    pad, count = 2, 5000
    image = torch.arange(SIDE * SIDE, dtype=torch.uint8).view(1, SIDE, SIDE, 1).expand(count, -1, -1, 3)
    moved = random_shift(image, torch.rand(count, 2, generator=torch.Generator().manual_seed(0)), pad)
    assert moved.dtype == torch.uint8 and moved.shape == image.shape
    by_hand = torch.nn.functional.pad(image[:1].permute(0, 3, 1, 2).float(), [pad] * 4, mode="replicate")
    crops = {
        (i, j): by_hand[0, :, i : i + SIDE, j : j + SIDE].permute(1, 2, 0).to(torch.uint8)
        for i in range(2 * pad + 1)
        for j in range(2 * pad + 1)
    }
    found = [int((moved == crop).flatten(1).all(dim=1).sum()) for crop in crops.values()]
    assert sum(found) == count  # no row is anything else
    assert min(found) > 140 and max(found) < 260  # 200 each: four deviations are 56


def augmented(agent: Agent, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return what an update's networks are given of a batch."""
    return agent._augmented(agent._read_batch(batch))


def test_each_image_of_a_row_is_shifted_by_a_draw_of_its_own_and_vectors_are_left() -> None:
    """The draws are the generator's: the same for the same state, others in the next update."""
    agents = [make_agent(impala(pad=2), OF_BOTH, seed=0) for _ in range(2)]
    batch = make_batch(OF_BOTH, 0, rows=64)
    batch["next_observations"] = batch["observations"]
    first, again = (augmented(agent, batch) for agent in agents)
    assert_same(first, again)
    second = augmented(agents[0], batch)
    given = agents[0]._read_batch(batch)
    camera, following = "observations.camera", "next_observations.camera"
    assert {name for name in given if not torch.equal(given[name], first[name])} == {camera, following}
    for other in (first[following], second[camera], given[camera]):
        differs = (first[camera] != other).flatten(1).any(dim=1)
        assert 0.85 < float(differs.float().mean()) <= 1.0  # a shift is any other's in 1 of 25 rows


def test_without_augmentation_and_without_images_nothing_is_drawn() -> None:
    for config, schema in ((impala(augmentation="none", pad=4), OF_IMAGES), (tiny_config(), FLAT)):
        agent = make_agent(config, schema, seed=0)
        before, batch = agent.generator.get_state(), agent._read_batch(make_batch(schema, 0))
        assert all(each is batch[name] for name, each in agent._augmented(batch).items())
        assert torch.equal(before, agent.generator.get_state())


def test_acting_sees_images_as_they_are() -> None:
    policy = make_agent(impala(), OF_IMAGES, seed=0).policy
    images = np.random.default_rng(0).integers(0, 256, (ROWS, *IMAGE.shape), dtype=np.uint8)
    read: list[torch.Tensor] = []
    fields: Any = policy.networks.encoders["fields"]
    fields.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    policy.sample_actions(images)
    assert len(read) == 1 and torch.equal(read[0], torch.from_numpy(images))


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ({"augmentation": "flip"}, r"agent\.encoder\.augmentation: found 'flip'; choose one of random_shift, none"),
        ({"network": "impala", "pad": 0}, r"agent\.encoder\.pad: found 0; give a whole number of at least 1"),
        ({"pad": 2, "augmentation": "none"}, r"agent\.encoder\.pad: found 2, but augmentation 'none' shifts nothing"),
        ({"layer_norm": True}, r"agent\.encoder\.layer_norm: found true, but network 'none' does not read it"),
    ],
)
def test_settings_that_nothing_reads_are_refused(encoder: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EncoderConfig(**encoder)


@pytest.mark.parametrize(
    ("encoder", "schema", "said"),
    [
        ({"pad": 2}, FLAT, r"agent\.encoder\.pad: found 2, but observations have no image"),
        ({"network": "impala"}, FLAT, r"observations are 5, and impala reads uint8 images \(H, W, C\) beside vectors"),
        ({"network": "impala"}, Schema({"a": IMAGE, "b": Column((2, 3))}, 2), r"float32 \(2, 3\), and impala reads"),
    ],
)
def test_what_impala_cannot_read_is_refused(encoder: dict[str, Any], schema: Schema, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_agent(tiny_config(encoder=EncoderConfig(**encoder)), schema, seed=0)
