"""The encoder of Florence-2 (Xiao et al., CVPR 2024): pictures and a prompt to context tokens; no decoder, no LM head.

A picture of S x S pixels becomes (S / 32)^2 + 1 tokens, which a text encoder reads one picture after another and then
the prompt. Its layers are those of `transformers`, where they are native since version 5.

Shapes: B rows, V pictures of a row, P tokens of the prompt, T context tokens in all, C width of a token.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dipole_ray.agents import state
from dipole_ray.errors import CheckpointError, DipoleError


class FlorenceShape(NamedTuple):
    """How large an encoder is."""

    pixels: int
    """rows and columns of a picture"""
    vision_widths: tuple[int, ...]
    vision_heads: tuple[int, ...]
    vision_depths: tuple[int, ...]
    width: int
    """of the text encoder and of its tokens"""
    layers: int
    heads: int
    vocabulary: int
    positions: int
    """most tokens that the text encoder takes"""
    prompt: int
    """tokens of the prompt, of which those left over are padding"""

    def tokens(self, pictures: int) -> int:
        """Return T."""
        return pictures * ((self.pixels // _PIXELS_A_TOKEN) ** 2 + 1) + self.prompt


_PIXELS_A_TOKEN = 32
SHAPES = {
    "tiny": FlorenceShape(128, (32, 64, 128, 256), (2, 4, 8, 16), (1, 1, 2, 1), 128, 2, 4, 64, 256, 28),
    "large": FlorenceShape(384, (256, 512, 1024, 2048), (8, 16, 32, 64), (1, 1, 9, 1), 1024, 12, 16, 51289, 4096, 40),
}
"""`large` is Florence-2-large at the resolution of the published driving policy."""
PADDING = 1
"""The token of the vocabularies that means nothing."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pictures' channels, as published."""
_RENAMED = (
    (r"^model\.", ""),
    (r"^language_model\.model\.", "language_model."),
    (r"^language_model\.shared\.", "language_model.encoder.embed_tokens."),
    (r"^language_model\.", ""),
    (r"^image_projection$", "multi_modal_projector.image_projection.weight"),
    (r"^image_proj_norm\.", "multi_modal_projector.image_proj_norm."),
    (r"^image_pos_embed\.", "multi_modal_projector.image_position_embed."),
    (r"^visual_temporal_embed\.", "multi_modal_projector.visual_temporal_embed."),
    (r"^(vision_tower\.convs\.\d+)\.proj\.", r"\1.conv."),
    (r"(_block\.conv[12])\.fn\.dw\.", r"\1."),
    (r"(_block)\.(window_attn|channel_attn)\.norm\.", r"\1.norm1."),
    (r"(_block)\.ffn\.norm\.", r"\1.norm2."),
    (r"(window_attn|channel_attn|ffn)\.fn\.", r"\1."),
    (r"\.ffn\.net\.", ".ffn."),
)
"""From the names of the published weights, and from those of `transformers`, to the names here; in turn."""
_DROPPED = re.compile(r"^(decoder\.|lm_head\.|final_logits_bias$)")


class FlorenceEncoder(nn.Module):
    """Encodes pictures and a prompt; weights are random until `load_florence` gives some.

    DipoleError where transformers is not installed, or older than 5.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: str, seed: int = 0) -> None:
        super().__init__()
        require_transformers()
        from transformers import BartConfig, Florence2Config, Florence2VisionConfig
        from transformers.models.bart.modeling_bart import BartEncoder
        from transformers.models.florence2.modeling_florence2 import (
            Florence2MultiModalProjector,
            Florence2VisionBackbone,
        )

        self.shape = shape = SHAPES[size]
        vision = Florence2VisionConfig(
            embed_dim=shape.vision_widths,
            num_heads=shape.vision_heads,
            num_groups=shape.vision_heads,
            depths=shape.vision_depths,
            projection_dim=shape.width,
            attn_implementation="sdpa",
        )
        text = BartConfig(
            vocab_size=shape.vocabulary,
            d_model=shape.width,
            encoder_layers=shape.layers,
            encoder_attention_heads=shape.heads,
            encoder_ffn_dim=4 * shape.width,
            max_position_embeddings=shape.positions,
            attn_implementation="sdpa",
        )
        config = Florence2Config(vision_config=vision, text_config=text)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.vision_tower = Florence2VisionBackbone(vision)
            self.multi_modal_projector = Florence2MultiModalProjector(config)
            self.encoder = BartEncoder(text)
        for name, values in {"mean": _MEAN, "std": _STD}.items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.eval()

    def forward(self, pictures: Tensor, prompt: Tensor) -> Tensor:
        """Return the context tokens (B, T, C) of pictures and prompts; those of padding are zero.

        Args:
            pictures: (B, V, S, S, 3) uint8, red, green and blue.
            prompt: (B, P) numbers of tokens, `PADDING` where there are fewer.
        """
        rows, views = pictures.shape[:2]
        weight = self.encoder.embed_tokens.weight
        pixels = pictures.flatten(0, 1).permute(0, 3, 1, 2).to(weight.dtype) / 255.0
        seen = self.vision_tower((pixels - self.mean) / self.std).last_hidden_state
        tokens = self.multi_modal_projector(seen).unflatten(0, (rows, views)).flatten(1, 2)
        is_there = torch.cat((tokens.new_ones(tokens.shape[:2]), (prompt != PADDING).to(tokens.dtype)), dim=1)
        words = self.encoder.embed_tokens(prompt)
        found = self.encoder(inputs_embeds=torch.cat((tokens, words), dim=1), attention_mask=is_there.long())
        encoded: Tensor = found.last_hidden_state * is_there.unsqueeze(-1)
        return encoded


def require_transformers() -> None:
    """Raise DipoleError, which says what to install, where there is no transformers with Florence-2 in it."""
    if find_spec("transformers") is None or find_spec("transformers.models.florence2") is None:
        raise DipoleError(
            "Florence-2 needs transformers 5, not installed here: pip install 'dipole-ray[driving]', in a checkout "
            "pip install -e '.[driving]'"
        )


def load_florence(encoder: FlorenceEncoder, tensors: Mapping[str, Tensor]) -> None:
    """Take published weights, by their own names or by those of transformers; CheckpointError if they do not fit.

    Weights of the decoder may be among them, and are left aside.
    """
    own = encoder.state_dict()
    computed = {name: tensor for name, tensor in own.items() if name.endswith("pos_idx_to_embed")}  # in files of some
    given = computed | renamed_weights(tensors)
    given = {name: each.to(own[name].dtype) if name in own else each for name, each in given.items()}
    state.check_matches(own, given, "Florence-2's encoder")
    state.copy_into(own, given)


def renamed_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's weights by the names here; CheckpointError where two have one name and differ."""
    found: dict[str, Tensor] = {}
    for given, tensor in tensors.items():
        name = given
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        if _DROPPED.match(name):
            continue
        if given.endswith("image_projection"):  # a plain matrix there, applied from the right
            tensor = tensor.T.contiguous()
        if name in found and not torch.equal(found[name], tensor):
            raise CheckpointError(f"Florence-2's encoder: two different tensors are {name}; {given} is one of them")
        found[name] = tensor
    return found
