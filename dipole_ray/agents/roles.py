"""The networks of an agent by their role. Shapes: A action dim."""

from collections.abc import Iterable, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from dipole_ray.agents.adapters import AdaptedFields
from dipole_ray.agents.encoders import Encoded, Encoders, Seen
from dipole_ray.agents.fields import VelocityField
from dipole_ray.agents.networks import Sizes, StackedMLP
from dipole_ray.agents.observations import Observations, normalized, vector_dim
from dipole_ray.columns import Column

Roles = dict[str, object]
"""Modules and parameters by their role, the names of `Networks`."""


class Networks(nn.Module):
    """The learned functions by role, and what observations are normalized with.

    An agent's have all roles of its algorithm, a policy's only those that act; the two share their tensors.
    """

    critic: StackedMLP
    """Q(s, a), one member a critic; or a `PlanScore`, which is asked in the same words."""
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
    encoders: Encoders
    """What makes flat states of observations that are none, see `is_encoded`."""
    observation_mean: Tensor
    observation_std: Tensor

    def __init__(self, sizes: Sizes, roles: Roles, observed: Mapping[str, Column] | None = None) -> None:
        """Take the sizes of what networks read, and what an observation is where that is something else."""
        super().__init__()
        self.sizes, self.observed = sizes, observed or sizes.observed
        for name, role in roles.items():
            if not isinstance(role, nn.Module | nn.Parameter):  # it would be neither trained nor saved
                raise TypeError(f"networks.{name}: found {type(role).__name__}; make it a torch.nn.Module")
            setattr(self, name, role)
        self.register_buffer("observation_mean", torch.zeros(vector_dim(self.observed)))
        self.register_buffer("observation_std", torch.ones(vector_dim(self.observed)))

    def only(self, roles: Iterable[str]) -> Self:
        """Return these roles alone: the same tensors, not copies."""
        chosen: Roles = {name: getattr(self, name) for name in roles}
        if self.is_encoded:
            chosen["encoders"] = self.encoders.only(chosen)
        part = type(self)(self.sizes, chosen, self.observed)
        part.observation_mean, part.observation_std = self.observation_mean, self.observation_std
        return part

    @property
    def is_encoded(self) -> bool:
        """Whether there are encoders; else all networks read flat vectors as they are observed."""
        return "encoders" in self._modules

    def seen(self, observations: Observations, *, normalizes: bool, learns: bool) -> Seen:
        """Return observations as roles ask for them, see `encoders.seen_by`; their gradient may reach the encoders."""
        if normalizes:
            observations = normalized(observations, self.observed, self.observation_mean, self.observation_std)
        if self.is_encoded:
            return Encoded(self.encoders, observations, learns=learns)
        assert isinstance(observations, Tensor)
        return observations

    def critic_parameters(self, role: str) -> list[nn.Parameter]:
        """Return the parameters of `critic` or `target_critic`, with those of its encoder."""
        own = list(getattr(self, role).parameters())
        return [*own, *self.encoders.parameters_of(role)] if self.is_encoded else own

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
