"""Ensembles of small MLPs whose members are evaluated in one stacked pass.

Shapes: E members, B rows, I inputs, H hidden units, O observation dim, A action dim, D outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dipole_ray.agents.activation import gelu_tanh

LAYER_NORM_EPS = 1e-6


def _xavier_uniform(shape: tuple[int, ...], generator: torch.Generator) -> nn.Parameter:
    """Draw (E, in, out) kernels, each member with the bound sqrt(6 / (in + out)) of one dense layer."""
    bound = (6.0 / (shape[-2] + shape[-1])) ** 0.5
    return nn.Parameter((torch.rand(shape, generator=generator) * 2.0 - 1.0) * bound)


def _choose(stacked: Tensor, members: slice | None) -> Tensor:
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
        dims = (input_dim, *hidden_dims, output_dim)
        layers = list(pairwise(dims))
        self.kernels = nn.ParameterList([_xavier_uniform((num_members, i, o), generator) for i, o in layers])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(num_members, 1, o)) for _, o in layers])
        norm_dims = hidden_dims if layer_norm else ()
        self.norm_scales = nn.ParameterList([nn.Parameter(torch.ones(num_members, 1, h)) for h in norm_dims])
        self.norm_shifts = nn.ParameterList([nn.Parameter(torch.zeros(num_members, 1, h)) for h in norm_dims])
        # The same parameters in plain tuples: looking them up in a ParameterList is slow beside a small network's pass.
        self._dense = tuple(zip(self.kernels, self.biases, strict=True))
        self._norms = tuple(zip(self.norm_scales, self.norm_shifts, strict=True))

    def forward(self, inputs: Tensor, members: slice | None = None) -> Tensor:
        """Evaluate the chosen members.

        Args:
            inputs: (B, I), seen by every member, or (E, B, I) with one block for each chosen member.
            members: Which members to evaluate; all by default.

        Returns:
            (E, B, D), E counting the chosen members.
        """
        kernel, bias = (_choose(parameter, members) for parameter in self._dense[0])
        if inputs.dim() == 2:
            inputs = inputs.expand(kernel.shape[0], *inputs.shape)
        return self.after_first_layer(torch.baddbmm(bias, inputs, kernel), members)

    def after_first_layer(self, hidden: Tensor, members: slice | None = None) -> Tensor:
        """Finish the pass from the first layer's pre-activation (E, B, H); returns (E, B, D)."""
        for layer, (kernel, bias) in enumerate(self._dense[1:]):
            hidden = gelu_tanh(hidden)
            if self.layer_norm:
                scale, shift = self._norms[layer]
                hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=LAYER_NORM_EPS)
                hidden = torch.addcmul(_choose(shift, members), hidden, _choose(scale, members))
            hidden = torch.baddbmm(_choose(bias, members), hidden, _choose(kernel, members))
        return hidden


class VelocityFields(nn.Module):
    """F vector fields v(s, x_t, t) of one shape; time enters as one raw scalar."""

    def __init__(
        self,
        num_fields: int,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        input_dim = observation_dim + action_dim + 1
        self.mlp = StackedMLP(num_fields, input_dim, hidden_dims, action_dim, layer_norm=False, generator=generator)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocities of all fields, (F, B, A), at (B, O), (B, A) and times (B, 1) in [0, 1]."""
        return self.mlp.forward(torch.cat((observations, x, t), dim=-1))

    def embed(self, observations: Tensor, fields: slice) -> Tensor:
        """Return the observations' share of the first layer, (F, B, H): it is the same at every noise level."""
        kernel = self.mlp.kernels[0][fields, : self.observation_dim]
        observations = observations.expand(kernel.shape[0], *observations.shape)
        return torch.baddbmm(self.mlp.biases[0][fields], observations, kernel)

    def velocity(self, embedded: Tensor, x: Tensor, t: float, fields: slice) -> Tensor:
        """Return the velocities at one time `t` for N candidates of each observation.

        Args:
            embedded: (F, B, H) from `embed` with the same `fields`.
            x: (B, N, A).
            t: Flow time in [0, 1].
            fields: Which fields to evaluate.

        Returns:
            (F, B, N, A).
        """
        rows, candidates, _ = x.shape
        action_kernel = self.mlp.kernels[0][fields, self.observation_dim : -1]
        time_kernel = self.mlp.kernels[0][fields, -1:]
        flat = x.reshape(1, rows * candidates, self.action_dim).expand(embedded.shape[0], -1, -1)
        hidden = torch.bmm(flat, action_kernel).view(-1, rows, candidates, embedded.shape[-1])
        hidden = hidden + (embedded + t * time_kernel).unsqueeze(2)
        velocities = self.mlp.after_first_layer(hidden.flatten(1, 2), fields)
        return velocities.view(-1, rows, candidates, self.action_dim)


class AgentNetworks(nn.Module):
    """What every agent has: E critics Q(s, a), their target, and what observations are normalized with."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        *,
        num_critics: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        critic_dim = observation_dim + action_dim

        def critics() -> StackedMLP:
            return StackedMLP(num_critics, critic_dim, hidden_dims, 1, layer_norm=True, generator=generator)

        self.critic = critics()
        self.target_critic = critics().requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.observation_mean: Tensor
        self.observation_std: Tensor
        self.register_buffer("observation_mean", torch.zeros(observation_dim))
        self.register_buffer("observation_std", torch.ones(observation_dim))

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters the optimizer moves by name; the target critics follow by Polyak averaging."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
