"""Florence-2's encoder is that of transformers without the decoder, and takes the published weights by their names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, Florence2Config, Florence2Model, Florence2VisionConfig

from dipole_ray.agents.florence import PADDING, SHAPES, FlorenceEncoder, load_florence, renamed_weights
from dipole_ray.errors import CheckpointError, DipoleError

IMAGE = 63
"""The token of `tiny`'s vocabulary that stands for a token of a picture."""


def whole_model() -> Florence2Model:
    """Return the model of transformers, decoder and all, of the size `tiny` and other random weights."""
    shape = SHAPES["tiny"]
    vision = Florence2VisionConfig(
        embed_dim=shape.vision_widths,
        num_heads=shape.vision_heads,
        num_groups=shape.vision_heads,
        depths=shape.vision_depths,
        projection_dim=shape.width,
    )
    text = BartConfig(
        vocab_size=shape.vocabulary,
        d_model=shape.width,
        encoder_layers=shape.layers,
        decoder_layers=1,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.width,
        decoder_ffn_dim=shape.width,
        max_position_embeddings=shape.positions,
    )
    torch.manual_seed(5)
    return Florence2Model(Florence2Config(vision_config=vision, text_config=text, image_token_id=IMAGE)).eval()


def as_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names that they were published with, that of the language model's head among them."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith("language_model."):
            name = f"language_model.model.{name.removeprefix('language_model.')}"
        elif name.startswith("vision_tower.convs."):
            name = name.replace(".conv.", ".proj.")
        elif name.startswith("vision_tower."):
            attention = "channel_attn" if ".channel_block." in name else "window_attn"
            for norm, layer in (("norm1", attention), ("norm2", "ffn")):
                name = name.replace(f"_block.{norm}.", f"_block.{layer}.norm.")
            for layer in ("conv1", "conv2"):
                name = name.replace(f"_block.{layer}.", f"_block.{layer}.fn.dw.")
            for layer in ("qkv", "proj"):
                name = name.replace(f"_attn.{layer}.", f"_attn.fn.{layer}.")
            name = name.replace(".ffn.fc", ".ffn.fn.net.fc")
        else:
            name = name.removeprefix("multi_modal_projector.").replace("image_position_embed", "image_pos_embed")
            name, tensor = ("image_projection", tensor.T) if name == "image_projection.weight" else (name, tensor)
        found[name] = tensor
    head = tensors["language_model.shared.weight"]
    return {**found, "language_model.lm_head.weight": head, "language_model.final_logits_bias": head[:1]}


def test_context_tokens_are_the_states_of_the_whole_models_encoder_whatever_the_weights_are_called() -> None:
    model, encoder, shape = whole_model(), FlorenceEncoder("tiny"), SHAPES["tiny"]
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (2, 3, 128, 128, 3), dtype=torch.uint8, generator=generator)
    prompt = torch.randint(3, 60, (2, shape.prompt), generator=generator)
    prompt[0, 9:] = PADDING
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (pictures.flatten(0, 1).permute(0, 3, 1, 2) / 255.0 - mean) / std
    ids = torch.cat((torch.full((2, 51), IMAGE), prompt), dim=1)
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels, attention_mask=(ids != PADDING).long())
        for names in (model.state_dict(), as_published(model.state_dict())):
            encoder = FlorenceEncoder("tiny")
            assert not torch.allclose(encoder(pictures, prompt), expected.encoder_last_hidden_state, atol=0.1)
            load_florence(encoder, names)
            found = encoder(pictures, prompt)
            assert found.shape == (2, shape.tokens(3), shape.width) == (2, 79, 128)
            is_there = (ids != PADDING).unsqueeze(-1)
            torch.testing.assert_close(found, expected.encoder_last_hidden_state * is_there, rtol=1e-4, atol=1e-5)


def test_large_has_the_published_570_7_million_weights_and_475_tokens_of_1024() -> None:
    with torch.device("meta"):
        encoder = FlorenceEncoder("large")
        names = as_published(whole_names(encoder))
    assert sum(each.numel() for each in encoder.parameters()) == 570_706_944
    assert (SHAPES["large"].tokens(3), SHAPES["large"].width) == (475, 1024)
    assert {name: each.shape for name, each in renamed_weights(names).items()} == {
        name: each.shape for name, each in encoder.state_dict().items()
    }
    assert {"vision_tower.blocks.2.8.channel_block.channel_attn.fn.qkv.weight", "image_projection"} <= names.keys()
    assert names["image_projection"].shape == (2048, 1024)


def whole_names(encoder: FlorenceEncoder) -> dict[str, Tensor]:
    """Return an encoder's weights by the names of transformers."""
    own = encoder.state_dict()
    words = {"language_model.shared.weight": own.pop("encoder.embed_tokens.weight")}
    return words | {f"language_model.{n}" if n.startswith("encoder.") else n: each for n, each in own.items()}


def test_weights_of_another_size_or_with_a_part_missing_are_refused() -> None:
    encoder, given = FlorenceEncoder("tiny"), whole_model().state_dict()
    before = {name: each.clone() for name, each in encoder.state_dict().items()}
    del given["vision_tower.convs.1.conv.bias"]
    with pytest.raises(CheckpointError, match=r"vision_tower\.convs\.1\.conv\.bias"):
        load_florence(encoder, given)
    with pytest.raises(CheckpointError, match=r"Florence-2's encoder.*shape"):
        load_florence(encoder, {**whole_model().state_dict(), "vision_tower.convs.1.conv.bias": torch.zeros(7)})
    assert all(torch.equal(before[name], each) for name, each in encoder.state_dict().items())


def test_without_transformers_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dipole_ray.agents.florence.find_spec", lambda name, *rest: None)
    with pytest.raises(
        DipoleError, match=r"needs transformers 5, not installed here: pip install 'dipole-ray\[driving\]'"
    ):
        FlorenceEncoder("tiny")
