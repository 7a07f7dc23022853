"""The learned functions of an agent: ensembles of small MLPs, evaluated in one stacked pass, by their role.

Shapes: E members, B rows, I inputs, H hidden units, O observation dim, A action dim, D outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dipole_ray.agents.activation import gelu_tanh

LAYER_NORM_EPS = 1e-6
Role = nn.Module | nn.Parameter


@dataclass(frozen=True, kw_only=True, slots=True)
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

    def __init__(self, num_fields: int, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.observation_dim, self.action_dim = sizes.observation_dim, sizes.action_dim
        dims = (sizes.pair_dim + 1, sizes.hidden_dims, sizes.action_dim)
        self.mlp = StackedMLP(num_fields, *dims, layer_norm=False, generator=generator)

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


class Networks(nn.Module):
    """The learned functions by role, and what observations are normalized with.

    An agent's have all roles of its algorithm, a policy's only those that act; the two share their tensors.
    """

    critic: StackedMLP
    """Q(s, a), one member a critic."""
    target_critic: StackedMLP
    """Follows the critics by Polyak averaging."""
    value: StackedMLP
    """V(s), without a target."""
    fields: VelocityFields
    """The velocity fields of a flow."""
    policy: StackedMLP
    """The one-step policy mu(s, z), or the mean of a Gaussian."""
    policy_log_std: nn.Parameter
    """The Gaussian's log deviation, (1, A), the same in every state."""
    observation_mean: Tensor
    observation_std: Tensor

    def __init__(self, sizes: Sizes, roles: Mapping[str, Role]) -> None:
        super().__init__()
        self.sizes = sizes
        for name, role in roles.items():
            setattr(self, name, role)
        self.register_buffer("observation_mean", torch.zeros(sizes.observation_dim))
        self.register_buffer("observation_std", torch.ones(sizes.observation_dim))

    def only(self, roles: Iterable[str]) -> Networks:
        """Return these roles alone: the same tensors, not copies."""
        part = Networks(self.sizes, {name: getattr(self, name) for name in roles})
        part.observation_mean, part.observation_std = self.observation_mean, self.observation_std
        return part

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return by name the parameters that the optimizer moves; the target critics follow by Polyak averaging."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def draw_networks(
    sizes: Sizes, seed: int, *, has_value: bool, draw_actor: Callable[[Sizes, torch.Generator], dict[str, Role]]
) -> tuple[Networks, int]:
    """Draw the untrained networks of an agent.

    A policy is drawn with what only a learner needs and drops it: so one seed means the same policy to both.

    Args:
        sizes: Of all networks.
        seed: Draws them, on the CPU, so that it means the same networks on every device.
        has_value: Whether V is among them.
        draw_actor: Draws what acts beside the critics, by role.

    Returns:
        The networks, and a seed for the noise.
    """
    generator = torch.Generator().manual_seed(seed)

    def mlp(members: int, input_dim: int) -> StackedMLP:
        return StackedMLP(members, input_dim, sizes.hidden_dims, 1, layer_norm=True, generator=generator)

    # The order of these draws is what a seed means: checkpoints and published results rest on it.
    critic, target_critic = (mlp(sizes.num_critics, sizes.pair_dim) for _ in range(2))
    target_critic.requires_grad_(False).load_state_dict(critic.state_dict())
    roles: dict[str, Role] = {"critic": critic, "target_critic": target_critic}
    if has_value:
        roles["value"] = mlp(1, sizes.observation_dim)
    roles |= draw_actor(sizes, generator)
    return Networks(sizes, roles), int(torch.randint(2**62, (1,), generator=generator).item())
