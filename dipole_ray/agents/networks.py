"""Ensembles of small MLPs whose members are evaluated in one stacked pass.

Shapes: E members, B rows, I inputs, H hidden units, D outputs.
"""

import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dipole_ray.columns import Column

LAYER_NORM_EPS = 1e-6
# GELU's tanh approximation is x (1 + tanh(u / 2)) / 2 = x sigma(u) with u = LINEAR x + CUBIC x^3.
LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
CUBIC = 0.044715 * LINEAR
_LARGEST_SLOPE = 1e30


@dataclass(frozen=True, slots=True)
class Sizes:
    """What all networks of one agent measure."""

    observation_dim: int
    """Numbers in what a network reads of a state: a flat vector, an encoder's embedding, or all columns together."""
    action_dim: int
    hidden_dims: tuple[int, ...]
    num_critics: int
    observed: Mapping[str, Column] = field(default_factory=dict, hash=False)
    """What a network reads of a state, as `Schema.observed` says it; a flat vector by default."""

    def __post_init__(self) -> None:
        if not self.observed:
            object.__setattr__(self, "observed", {"observations": Column((self.observation_dim,))})

    @property
    def pair_dim(self) -> int:
        """Numbers in an observation and an action together, what a critic reads."""
        return self.observation_dim + self.action_dim


STACKED: ContextVar[bool] = ContextVar("stacked", default=False)
"""Whether a step of `stacked` evaluates the networks of many agents at once, which only torch's own functions allow."""

PASSES: ContextVar[Any] = ContextVar("passes", default=None)
"""What evaluates stacks within a step that is `compiled` or captured: `passes.Passes` or `fused.FusedPasses`."""

Members = slice | list[int] | None
"""Which members of a stack to evaluate; all by default. A slice copies no kernel, a list does."""


class StackedMLP(nn.Module):
    """E independent MLPs of one shape, `dims` from I over every H to D, with kernels stacked as (E, in, out).

    GELU (tanh approximation) after each hidden layer, optionally followed by LayerNorm with eps 1e-6
    and its own scale and shift for every member. Kernels are Xavier uniform per member, biases zero.
    """

    def __init__(self, num_members: int, dims: Sequence[int], *, layer_norm: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.num_members = num_members
        self.layer_norm = layer_norm
        layers = list(pairwise(dims))
        self.kernels = nn.ParameterList([_xavier_uniform((num_members, i, o), generator) for i, o in layers])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(num_members, 1, o)) for _, o in layers])
        norm_dims = dims[1:-1] if layer_norm else ()
        self.norm_scales = nn.ParameterList([nn.Parameter(torch.ones(num_members, 1, h)) for h in norm_dims])
        self.norm_shifts = nn.ParameterList([nn.Parameter(torch.zeros(num_members, 1, h)) for h in norm_dims])
        self.note_parameters()

    def note_parameters(self, *, detached: bool = False) -> None:
        """Compute from now on with the parameters as they are registered now, or so that none gets a gradient."""
        kinds: list[list[Tensor]] = [list(each) for each in (self.kernels, self.biases, self.norm_scales)]
        kinds.append(list(self.norm_shifts))
        kernels, biases, scales, shifts = ([one.detach() for one in each] if detached else each for each in kinds)
        # In plain tuples: looking them up in a ParameterList is slow beside a small network's pass.
        self._dense, self._norms = tuple(zip(kernels, biases, strict=True)), tuple(zip(scales, shifts, strict=True))

    @classmethod
    def of(cls, kernels: Sequence[Tensor], biases: Sequence[Tensor]) -> "StackedMLP":
        """Return a stack, without layer norms, of kernels (E, in, out) and biases (E, 1, out) that nothing trains."""
        made = cls(len(kernels[0]), (), layer_norm=False, generator=torch.Generator())
        made.kernels, made.biases = (
            nn.ParameterList([nn.Parameter(each, requires_grad=False) for each in every]) for every in (kernels, biases)
        )
        made.note_parameters()
        return made

    def forward(self, inputs: Tensor, members: Members = None) -> Tensor:
        """Evaluate the chosen members, E of them, and return (E, B, D).

        Inputs are (B, I), seen by every member, or (E, B, I) with one block for each.
        """
        passes = PASSES.get()
        if passes is not None:
            found: Tensor = passes.evaluate(self, inputs, members)
            return found
        kernel, bias = (_choose(parameter, members) for parameter in self._dense[0])
        if inputs.dim() == 2:
            inputs = inputs.expand(kernel.shape[0], *inputs.shape)
        return self.after_first_layer(torch.baddbmm(bias, inputs, kernel), members)

    def at(self, states: Tensor, candidates: Tensor) -> Tensor:
        """Evaluate all members at N candidates (B, N, C) of each state (B, S), which comes first: (E, B, N, D)."""
        repeated = states.unsqueeze(1).expand(-1, candidates.shape[1], -1)
        found = self.forward(torch.cat((repeated, candidates), dim=-1).flatten(0, 1))
        return found.view(-1, *candidates.shape[:2], found.shape[-1])

    def parts(self, members: Members = None) -> tuple[list[Tensor], ...]:
        """Return the chosen members' kernels, biases, and scales and shifts of norms, each layer by layer."""
        dense, norms = (list(zip(*kind, strict=True)) or [(), ()] for kind in (self._dense, self._norms))
        return tuple([_choose(each, members) for each in kind] for kind in (*dense, *norms))

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


def _choose(stacked: Tensor, members: Members) -> Tensor:
    """Return the chosen members' part; the whole without an indexing node in the graph."""
    return stacked if members is None else stacked[members]


def _xavier_uniform(shape: tuple[int, ...], generator: torch.Generator) -> nn.Parameter:
    """Draw (E, in, out) kernels, each member with the bound sqrt(6 / (in + out)) of one dense layer."""
    bound = (6.0 / (shape[-2] + shape[-1])) ** 0.5
    return nn.Parameter((torch.rand(shape, generator=generator) * 2.0 - 1.0) * bound)


def gelu_tanh(x: Tensor) -> Tensor:
    """Return GELU(x) in the tanh approximation, any shape; equal to torch's to rounding, first derivative included.

    On a CPU it costs half of torch's own, which at these widths is a sixth of an update: torch vectorises the sigmoid
    several times better than the tanh.
    """
    if x.device.type != "cpu" or STACKED.get():
        return F.gelu(x, approximate="tanh")
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Gelu.apply(x)
        return result
    return _gate(x).mul_(x)


class _Gelu(torch.autograd.Function):
    """x sigma(u) with d/dx = sigma + x sigma (1 - sigma) u'.

    torch types both methods with `*args`, whatever a function takes, and their context without its tensors.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        gate = _gate(x)
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        x, gate = ctx.saved_tensors
        slope = torch.addcmul(x.new_full((), LINEAR), x, x, value=3.0 * CUBIC).mul_(x)
        # x s (1 - s) u' + s, in place, without another buffer than the slope's; s (1 - s) is 0 where x^3 overflows.
        slope.clamp_(-_LARGEST_SLOPE, _LARGEST_SLOPE).addcmul_(slope, gate, value=-1.0).mul_(gate).add_(gate)
        return slope.mul_(gradient)


def _gate(x: Tensor) -> Tensor:
    """Return sigma(u), the factor by which GELU scales its input."""
    return torch.addcmul(x.new_full((), LINEAR), x, x, value=CUBIC).mul_(x).sigmoid_()
