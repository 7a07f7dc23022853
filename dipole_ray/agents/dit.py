"""A diffusion transformer (DiT, Peebles & Xie, ICCV 2023) over action tokens, with cross-attention to context tokens.

Each number of the action, or each few of them, is a token. Context tokens are made of the observation, or are a part
of it that an encoder computed beforehand. A block is self-attention, MLP, cross-attention and a second MLP, each
shifted, scaled and gated by the time and the observation (adaLN-Zero), so that a fresh network returns zero. Keys and
values of the context depend on neither time nor action: `encode` computes them once a state.

Shapes: B rows, N candidates, O observation dim, A action dim, P action tokens of A / P numbers; C context tokens of D
numbers, W width, H heads.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dipole_ray.agents.networks import Sizes
from dipole_ray.errors import ConfigError


class Shape(NamedTuple):
    """How large a transformer is."""

    width: int
    depth: int
    heads: int
    context_tokens: int


SIZES = {"tiny": Shape(64, 2, 4, 4), "small": Shape(256, 6, 8, 8), "base": Shape(1024, 12, 16, 16)}
"""The published driving policy's head is `base`."""
_FREQUENCIES = 128
_TIME_SCALE = 1000.0
"""Flow times in [0, 1] are embedded as DiT embeds its 1000 steps."""


PARTS = "ego", "context"
"""Observations that bring their context: what is known of oneself, (B, O), and tokens of an encoder, (B, C, D)."""
Observed = Tensor | Mapping[str, Tensor]


class Context(NamedTuple):
    """What a state is to the transformer: (B, W), and keys and values (B, H, C, W / H) of each block."""

    embedding: Tensor
    keys_and_values: list[tuple[Tensor, Tensor]]


class SelfAttention(nn.Module):
    """Attention among the tokens of one row."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (R, P, W) of tokens (R, P, W)."""
        q, k, v = (_split(part, self.heads) for part in self.qkv(tokens).chunk(3, dim=-1))
        found: Tensor = self.proj(_join(F.scaled_dot_product_attention(q, k, v)))
        return found


class CrossAttention(nn.Module):
    """Attention of each row's tokens to the context of its state."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H, C, W / H) of context tokens (B, C, W)."""
        return _split(self.k(context), self.heads), _split(self.v(context), self.heads)

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return (B N, P, W) of tokens (B N, P, W); the N candidates of a state attend in one product."""
        states = len(keys)
        q = _split(self.q(tokens).reshape(states, -1, tokens.shape[-1]), self.heads)
        found: Tensor = self.proj(_join(F.scaled_dot_product_attention(q, keys, values)).view_as(tokens))
        return found


class MLP(nn.Module):
    """Two layers, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        found: Tensor = self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))
        return found


class Block(nn.Module):
    """Self-attention, MLP, cross-attention, MLP; the conditioning says how much of each is added."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention, self.mlp = SelfAttention(shape.width, shape.heads), MLP(shape.width)
        self.cross, self.cross_mlp = CrossAttention(shape.width, shape.heads), MLP(shape.width)
        self.modulation = nn.Linear(shape.width, 12 * shape.width)

    def forward(self, tokens: Tensor, condition: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return tokens (R, P, W); the condition is (R, W)."""
        parts = self.modulation(F.silu(condition)).unsqueeze(1).chunk(12, dim=-1)
        for layer, (shift, scale, gate) in zip(
            (self.attention, self.mlp, self.cross, self.cross_mlp),
            (parts[i : i + 3] for i in range(0, 12, 3)),
            strict=True,
        ):
            inputs = _normal(tokens) * (1 + scale) + shift
            tokens = tokens + gate * (layer(inputs, keys, values) if layer is self.cross else layer(inputs))
        return tokens


class DiTFields(nn.Module):
    """One field, the velocity of a transformer of the given size.

    Without `context_dim` observations are vectors (B, O), and context tokens are made of them. With it they are a
    vector and context tokens (B, C, D) of that many numbers, by the names of `PARTS`.
    """

    def __init__(
        self,
        size: str,
        names: tuple[str, ...],
        sizes: Sizes,
        generator: torch.Generator,
        token_dim: int = 1,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.names, self.token_dim = names, token_dim
        shape = SIZES[size]
        width, tokens = shape.width, sizes.action_dim // token_dim
        if tokens * token_dim != sizes.action_dim:
            raise ConfigError(f"{sizes.action_dim} numbers of an action are no whole number of tokens of {token_dim}")
        self.point = nn.Linear(token_dim, width)
        self.places = nn.Parameter(torch.zeros(tokens, width))
        self.time = nn.Sequential(nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.state = nn.Sequential(nn.Linear(sizes.observation_dim, width), nn.SiLU(), nn.Linear(width, width))
        if context_dim is None:
            self.tokens = nn.Linear(width, shape.context_tokens * width)
        else:
            self.tokens = nn.Linear(context_dim, width)
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.depth)])
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, token_dim)
        self._draw(generator)

    def forward(self, observations: Observed, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocities, see `VelocityField.__call__`."""
        found = self.velocity(self.encode(observations, self.names), x.unsqueeze(1), t, self.names)
        return found[:, :, 0]

    def encode(self, observations: Observed, fields: Sequence[str]) -> Context:
        """Return the embedding of the observations' vector, and what each block attends to of their context."""
        if isinstance(observations, Tensor):
            embedding = self.state(observations)
            tokens = self.tokens(F.silu(embedding)).unflatten(-1, (-1, embedding.shape[-1]))
        else:
            vector, context = (observations[name] for name in PARTS)
            embedding, tokens = self.state(vector), self.tokens(context.to(vector.dtype))
        return Context(embedding, [block.cross.keys_and_values(tokens) for block in self._blocks()])

    def velocity(self, context: Context, x: Tensor, t: float | Tensor, fields: Sequence[str]) -> Tensor:
        """Return the velocities (1, B, N, A), see `VelocityField.velocity`."""
        rows, candidates, _ = x.shape
        times = x.new_zeros(rows, 1) + t  # a tensor made of a number would be copied from the host, in no CUDA graph
        condition = context.embedding + self.time(_embedded(times))
        condition = condition.repeat_interleave(candidates, dim=0) if candidates > 1 else condition
        tokens = self.point(x.reshape(rows * candidates, -1, self.token_dim)) + self.places
        for block, (keys, values) in zip(self._blocks(), context.keys_and_values, strict=True):
            tokens = block(tokens, condition, keys, values)
        shift, scale = self.modulation(F.silu(condition)).unsqueeze(1).chunk(2, dim=-1)
        found: Tensor = self.head(_normal(tokens) * (1 + scale) + shift).view(1, *x.shape)
        return found

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        """Draw Xavier uniform kernels; biases are zero, as are the gates and the head: a fresh network returns zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        self.places.normal_(0.0, 0.02, generator=generator)
        for layer in (self.modulation, self.head, *(block.modulation for block in self._blocks())):
            nn.init.zeros_(layer.weight)

    def _blocks(self) -> list[Block]:
        blocks: Any = self.blocks
        return list(blocks)


def _normal(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)


def _embedded(t: Tensor) -> Tensor:
    """Return sines and cosines (B, 2 * _FREQUENCIES) of times (B, 1)."""
    steps = torch.arange(_FREQUENCIES, device=t.device, dtype=t.dtype) / _FREQUENCIES
    angles = _TIME_SCALE * t * torch.exp(-math.log(10_000) * steps)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _split(tokens: Tensor, heads: int) -> Tensor:
    """Return (R, T, W) as (R, H, T, W / H)."""
    return tokens.view(*tokens.shape[:-1], heads, tokens.shape[-1] // heads).transpose(1, 2)


def _join(tokens: Tensor) -> Tensor:
    """Undo `_split`."""
    return tokens.transpose(1, 2).flatten(2)
