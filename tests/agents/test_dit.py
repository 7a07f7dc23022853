"""The transformer's tokens: several numbers of an action each, and a context that is given; sizes as published."""

from __future__ import annotations

from unittest.mock import patch

import peft
import pytest
import torch
from torch import Tensor

from dipole_ray.agents.adapters import layers_of
from dipole_ray.agents.dit import PARTS, DiTFields
from dipole_ray.agents.networks import Sizes
from dipole_ray.errors import ConfigError

SIZES = Sizes(20, 32, (8,), 2)
"""The ego vector, and 8 poses of x, y, cos, sin."""


def head(size: str = "tiny") -> DiTFields:
    return DiTFields(size, ("bc",), SIZES, torch.Generator().manual_seed(0), token_dim=4, context_dim=24)


def seen(rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "ego": torch.randn(rows, 20, generator=generator),
        "context": torch.randn(rows, 7, 24, generator=generator).half(),
    }


def test_an_action_of_8_poses_is_8_tokens_and_a_given_context_is_attended_to() -> None:
    fields, generator = head(), torch.Generator().manual_seed(1)
    assert fields.places.shape[0] == 8 and fields.point.in_features == fields.head.out_features == 4
    observations = seen(3, generator)
    x, t = torch.randn(3, 5, 32, generator=generator), torch.rand(3, 1, generator=generator)
    encoded = fields.encode(observations, fields.names)
    assert [keys.shape for keys, _ in encoded.keys_and_values] == [(3, 4, 7, 16)] * 2
    assert not fields.velocity(encoded, x, t, fields.names).any()
    for parameter in fields.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    many = fields.velocity(fields.encode(observations, fields.names), x, t, fields.names)
    assert many.shape == (1, 3, 5, 32)
    alone = torch.stack([fields(observations, x[:, n], t) for n in range(5)], dim=2)
    torch.testing.assert_close(many, alone, rtol=1e-4, atol=1e-5)
    for part in PARTS:
        other = {**observations, part: observations[part] + 1}
        assert not torch.allclose(fields(other, x[:, 0], t), alone[:, :, 0], atol=1e-3)
    shuffled = {**observations, "context": observations["context"].flip(1)}
    torch.testing.assert_close(fields(shuffled, x[:, 0], t), alone[:, :, 0], rtol=1e-4, atol=1e-5)


def test_an_action_that_is_no_whole_number_of_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="30 numbers of an action are no whole number of tokens of 4"):
        DiTFields("tiny", ("bc",), Sizes(20, 30, (8,), 2), torch.Generator(), token_dim=4)


def test_base_is_within_a_percent_of_the_published_head_and_an_adapter_has_417_792_weights_of_each_rank() -> None:
    with torch.device("meta"), patch.object(DiTFields, "_draw"):
        network = DiTFields("base", ("bc",), SIZES, torch.Generator(), token_dim=4, context_dim=1024)
    assert sum(each.numel() for each in network.parameters()) / 462e6 == pytest.approx(1, abs=0.01)
    targets = layers_of(network, ("attention", "mlp"))
    for rank in (1, 16):
        with torch.device("meta"):
            adapted = peft.get_peft_model(network, peft.LoraConfig(r=rank, target_modules=targets))
        counted = sum(each.numel() for name, each in adapted.named_parameters() if ".lora_" in name)
        assert counted == 417_792 * rank
        network = adapted.unload()
