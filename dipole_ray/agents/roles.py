"""The networks of an agent by their role. Shapes: A action dim."""

from collections.abc import Iterable, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from dipole_ray.agents.adapters import AdaptedFields
from dipole_ray.agents.fields import VelocityField
from dipole_ray.agents.networks import Sizes, StackedMLP

Roles = dict[str, object]
"""Modules and parameters by their role, the names of `Networks`."""


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
    fields: VelocityField
    """The velocity fields of a flow."""
    policy: StackedMLP
    """The one-step policy mu(s, z), or the mean of a Gaussian."""
    policy_log_std: nn.Parameter
    """The Gaussian's log deviation, (1, A), the same in every state."""
    observation_mean: Tensor
    observation_std: Tensor

    def __init__(self, sizes: Sizes, roles: Roles) -> None:
        super().__init__()
        self.sizes = sizes
        for name, role in roles.items():
            if not isinstance(role, nn.Module | nn.Parameter):  # it would be neither trained nor saved
                raise TypeError(f"networks.{name}: found {type(role).__name__}; make it a torch.nn.Module")
            setattr(self, name, role)
        self.register_buffer("observation_mean", torch.zeros(sizes.observation_dim))
        self.register_buffer("observation_std", torch.ones(sizes.observation_dim))

    def only(self, roles: Iterable[str]) -> Self:
        """Return these roles alone: the same tensors, not copies."""
        part = type(self)(self.sizes, {name: getattr(self, name) for name in roles})
        part.observation_mean, part.observation_std = self.observation_mean, self.observation_std
        return part

    @property
    def adapted(self) -> AdaptedFields | None:
        """The fields, where they are adapters on a backbone."""
        fields = getattr(self, "fields", None)
        return fields if isinstance(fields, AdaptedFields) else None

    def follow(self, tensors: Mapping[str, Tensor], prefix: str = "") -> Mapping[str, Tensor]:
        """Be in the phase of a state, see `AdaptedFields.follow`, and return what of it is to be loaded."""
        return tensors if self.adapted is None else self.adapted.follow(tensors, f"{prefix}fields.")

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return by name the parameters that the optimizer moves; the target critics follow by Polyak averaging."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
