"""What a velocity field is to the policies and losses that ask for it by name, and stacked MLPs behind that.

Shapes: F fields, B rows, N candidates, O observation dim, A action dim, H hidden units.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dipole_ray.agents.networks import Members, Sizes, StackedMLP


class VelocityField(Protocol):
    """Named vector fields v(s, x_t, t) that share what they can of a state's encoding.

    An implementation is an `nn.Module`. The optimizer moves those of its parameters that require a gradient, so a
    frozen backbone is one whose parameters do not.
    """

    names: tuple[str, ...]
    """Of the fields, such as `positive`, `negative` and `bc`."""

    def __call__(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return for training the velocities of all fields, (F, B, A), in the order of `names`.

        Given are observations (B, O), points x_t (B, A) and flow times in [0, 1], (B, 1).
        """
        ...

    def encode(self, observations: Tensor, fields: Sequence[str]) -> Any:
        """Return what the named fields need of the observations (B, O): once a state, whatever the step or candidate.

        The fields are named here too, since an adapter of one field may lie below what reads the observations.
        """
        ...

    def velocity(self, context: Any, x: Tensor, t: float | Tensor, fields: Sequence[str]) -> Tensor:
        """Return the velocities of the named fields, (F, B, N, A), at N candidates of each observation.

        `encode` gave the context, for the same fields in the same order; x_t is (B, N, A), and the flow time t in
        [0, 1] is one for all, or (B, 1).
        """
        ...


MakeFields = Callable[[tuple[str, ...], Sizes, torch.Generator], VelocityField]
"""Returns untrained fields of these names and sizes, drawn from the generator, on the CPU."""


class StackedFields(nn.Module):
    """Fields that are MLPs of one shape, all evaluated in one stacked product; time enters as one raw scalar."""

    def __init__(self, names: tuple[str, ...], sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.names = names
        self.observation_dim = sizes.observation_dim
        dims = (sizes.pair_dim + 1, *sizes.hidden_dims, sizes.action_dim)
        self.mlp = StackedMLP(len(names), dims, layer_norm=False, generator=generator)

    @classmethod
    def of(
        cls, names: tuple[str, ...], observation_dim: int, kernels: Sequence[Tensor], biases: Sequence[Tensor]
    ) -> "StackedFields":
        """Return fields of given weights, see `StackedMLP.of`."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.names, made.observation_dim, made.mlp = names, observation_dim, StackedMLP.of(kernels, biases)
        return made

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocities of all fields, see `VelocityField.__call__`."""
        return self.mlp.forward(torch.cat((observations, x, t), dim=-1))

    def encode(self, observations: Tensor, fields: Sequence[str]) -> Tensor:
        """Return the observations' share of the first layer, (F, B, H)."""
        members = self._members(fields)
        kernel = self.mlp.kernels[0][members, : self.observation_dim]
        return torch.baddbmm(self.mlp.biases[0][members], observations.expand(len(fields), *observations.shape), kernel)

    def velocity(self, context: Tensor, x: Tensor, t: float | Tensor, fields: Sequence[str]) -> Tensor:
        """Return the velocities of the named fields, see `VelocityField.velocity`."""
        members = self._members(fields)
        rows, candidates, action_dim = x.shape
        action_kernel = self.mlp.kernels[0][members, self.observation_dim : -1]
        time_kernel = self.mlp.kernels[0][members, -1:]
        flat = x.reshape(1, rows * candidates, action_dim).expand(len(fields), -1, -1)
        hidden = torch.bmm(flat, action_kernel).view(-1, rows, candidates, context.shape[-1])
        hidden = hidden + (context + t * time_kernel).unsqueeze(2)
        return self.mlp.after_first_layer(hidden.flatten(1, 2), members).view(-1, rows, candidates, action_dim)

    def parts(self, fields: Sequence[str]) -> tuple[list[Tensor], ...]:
        """Return the kernels (F, in, out) and biases (F, 1, out) of the named fields, layer by layer."""
        return self.mlp.parts(self._members(fields))[:2]

    def _members(self, fields: Sequence[str]) -> Members:
        """Return where the named fields lie in the stack."""
        found = [self.names.index(name) for name in fields]
        is_range = found == list(range(found[0], found[0] + len(found)))
        return slice(found[0], found[-1] + 1) if is_range else found
