"""Ensembles of small MLPs whose members are evaluated in one stacked pass.

Shapes: E members, B rows, I inputs, H hidden units, D outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dipole_ray.agents.activation import gelu_tanh

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Sizes:
    """What all networks of one agent measure."""

    observation_dim: int
    action_dim: int
    hidden_dims: tuple[int, ...]
    num_critics: int

    @property
    def pair_dim(self) -> int:
        """Numbers in an observation and an action together, what a critic reads."""
        return self.observation_dim + self.action_dim


def _xavier_uniform(shape: tuple[int, ...], generator: torch.Generator) -> nn.Parameter:
    """Draw (E, in, out) kernels, each member with the bound sqrt(6 / (in + out)) of one dense layer."""
    bound = (6.0 / (shape[-2] + shape[-1])) ** 0.5
    return nn.Parameter((torch.rand(shape, generator=generator) * 2.0 - 1.0) * bound)


Members = slice | list[int] | None
"""Which members of a stack to evaluate; all by default. A slice copies no kernel, a list does."""


def _choose(stacked: Tensor, members: Members) -> Tensor:
    """Return the chosen members' part; the whole without an indexing node in the graph."""
    return stacked if members is None else stacked[members]


class StackedMLP(nn.Module):
    """E independent MLPs of one shape, with kernels stacked as (E, in, out).

    GELU (tanh approximation) after each hidden layer, optionally followed by LayerNorm with eps 1e-6
    and its own scale and shift for every member. Kernels are Xavier uniform per member, biases zero.
    """

    def __init__(
        self,
        num_members: int,
        input_dim: int,
        hidden_dims: Sequence[int],
        output_dim: int,
        *,
        layer_norm: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.num_members = num_members
        self.layer_norm = layer_norm
        layers = list(pairwise((input_dim, *hidden_dims, output_dim)))
        self.kernels = nn.ParameterList([_xavier_uniform((num_members, i, o), generator) for i, o in layers])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(num_members, 1, o)) for _, o in layers])
        norm_dims = hidden_dims if layer_norm else ()
        self.norm_scales = nn.ParameterList([nn.Parameter(torch.ones(num_members, 1, h)) for h in norm_dims])
        self.norm_shifts = nn.ParameterList([nn.Parameter(torch.zeros(num_members, 1, h)) for h in norm_dims])
        # The same parameters in plain tuples: looking them up in a ParameterList is slow beside a small network's pass.
        self._dense = tuple(zip(self.kernels, self.biases, strict=True))
        self._norms = tuple(zip(self.norm_scales, self.norm_shifts, strict=True))

    def forward(self, inputs: Tensor, members: Members = None) -> Tensor:
        """Evaluate the chosen members, E of them, and return (E, B, D).

        Inputs are (B, I), seen by every member, or (E, B, I) with one block for each.
        """
        kernel, bias = (_choose(parameter, members) for parameter in self._dense[0])
        if inputs.dim() == 2:
            inputs = inputs.expand(kernel.shape[0], *inputs.shape)
        return self.after_first_layer(torch.baddbmm(bias, inputs, kernel), members)

    def after_first_layer(self, hidden: Tensor, members: Members = None) -> Tensor:
        """Finish the pass from the first layer's pre-activation (E, B, H); returns (E, B, D)."""
        for layer, (kernel, bias) in enumerate(self._dense[1:]):
            hidden = gelu_tanh(hidden)
            if self.layer_norm:
                scale, shift = self._norms[layer]
                hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=LAYER_NORM_EPS)
                hidden = torch.addcmul(_choose(shift, members), hidden, _choose(scale, members))
            hidden = torch.baddbmm(_choose(bias, members), hidden, _choose(kernel, members))
        return hidden
