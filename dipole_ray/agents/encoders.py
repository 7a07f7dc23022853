"""What makes flat states, which networks read, of observations that are images or several arrays.

The critics, V and the policy's networks share one encoder or have one each; the target critics' follows the critics' by
Polyak averaging, as they do themselves. A shared encoder is moved by the losses of critics and V alone, as in DrQ: to
the policy's networks its states are given. An own one is moved by the loss of its network, as in OGBench and FQL.

Shapes: B rows, D embedding dim.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from dipole_ray.agents.factories import find_factory, is_factory
from dipole_ray.agents.impala import IMPALAS, Impala
from dipole_ray.agents.networks import Sizes
from dipole_ray.agents.observations import Observations, is_vector
from dipole_ray.columns import nested
from dipole_ray.errors import ConfigError
from dipole_ray.settings import unread

SHARED, TARGET, SHIFT = "shared", "target_critic", "random_shift"
_PAD = 4
_MOVES_SHARED = ("critic", "value", TARGET)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """The network that makes flat states of observations, and which networks share one."""

    network: str = "none"
    """`none` (flat vectors; several are put one after another), `impala`, `impala_small` or `impala_tiny` (convolutions
    of 2, 1 and 1 residual blocks a stack; the first two as in OGBench), or `module:factory`, a function of your own
    (docs/pixels.md)."""
    layer_norm: bool = False
    """Whether `impala*` normalizes its last convolutions' channels and its states. OGBench: false."""
    sharing: str = "own"
    """`own`: critics, V and the policy's networks have an encoder each, and a backbone of your own reads observations
    as they are (OGBench, FQL). `shared`: all read the states of one, which critics and V move (DrQ)."""
    augmentation: str = SHIFT
    """What an update does to images first: `random_shift`, each is moved by up to `pad` pixels either way (DrQ), or
    `none`. Acting sees images as they are."""
    pad: int = _PAD
    """Pixels of the largest shift, >= 1. DrQ: 4 on 84 x 84; OGBench: 3 on 64 x 64, on half of the batches."""

    def __post_init__(self) -> None:
        """Reject an encoder that there is not, and what nothing would read."""
        if self.network not in (known := ("none", *IMPALAS)) and not is_factory(self.network):
            named = ", ".join(known)
            raise ConfigError(f"agent.encoder.network: found '{self.network}'; choose {named}, or module:factory")
        for name, choices in {"sharing": ("own", SHARED), "augmentation": (SHIFT, "none")}.items():
            if (found := getattr(self, name)) not in choices:
                raise ConfigError(f"agent.encoder.{name}: found '{found}'; choose one of {', '.join(choices)}")
        if self.pad < 1:
            raise ConfigError(f"agent.encoder.pad: found {self.pad}; give a whole number of at least 1")
        if self.layer_norm and self.network not in IMPALAS:
            why, remedy = f"network '{self.network}' does not read it", "agent.encoder.network=impala"
            raise unread("agent.encoder.layer_norm", self.layer_norm, False, why, remedy)
        if self.pad != _PAD and self.augmentation != SHIFT:
            why, remedy = f"augmentation '{self.augmentation}' shifts nothing", f"agent.encoder.augmentation={SHIFT}"
            raise unread("agent.encoder.pad", self.pad, _PAD, why, remedy)


class Encoder(Protocol):
    """Makes flat states of observations; an implementation is an `nn.Module`."""

    embedding_dim: int
    """D."""

    def __call__(self, observations: Observations) -> Tensor:
        """Return float32 (B, D) of observations: uint8 images as they are stored, vectors normalized."""
        ...


MakeEncoder = Callable[[Sizes, torch.Generator], Encoder]
"""Returns an untrained encoder of `Sizes.observed`, drawn from the generator, on the CPU."""


class Concatenated(nn.Module):
    """Vectors, one after another."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        others = [column for column in sizes.observed.values() if not column.is_vector]
        if others:
            found = f"observations are {', '.join(map(str, others))}, where flat vectors of float32 are needed"
            raise ConfigError(f"{found}; set agent.encoder.network=impala for images, or module:factory for others")
        self.embedding_dim = sizes.observation_dim

    def forward(self, observations: Observations) -> Tensor:
        """Return the vectors (B, D)."""
        return observations if isinstance(observations, Tensor) else torch.cat(list(observations.values()), dim=-1)


class Encoders(nn.ModuleDict):
    """The encoders of networks by the networks' roles; a role without one reads observations as they are."""

    def __init__(self, by_role: Mapping[str, str], encoders: Mapping[str, nn.Module]) -> None:
        """Take the name of each role's encoder, and the encoders by name."""
        super().__init__({name: encoders[name] for name in dict.fromkeys(by_role.values())})
        self.by_role = dict(by_role)

    def only(self, roles: Iterable[str]) -> Self:
        """Return the encoders of these roles: the same modules, not copies."""
        return type(self)({role: name for role, name in self.by_role.items() if role in roles}, dict(self.items()))

    @property
    def embedding_dim(self) -> int:
        """D, the same of all."""
        first: Any = next(iter(self.values()))
        found: int = first.embedding_dim
        return found

    def parameters_of(self, role: str) -> list[nn.Parameter]:
        """Return the parameters of a role's encoder."""
        return list(self[self.by_role[role]].parameters())


class Encoded:
    """Observations, and what each encoder makes of them: once, when the first role asks."""

    def __init__(self, encoders: Encoders, observations: Observations, *, learns: bool) -> None:
        """Take observations, vectors normalized; `learns` says whether gradients are to reach the encoders."""
        self._encoders, self._observations, self._learns = encoders, observations, learns
        self._states: dict[str, Tensor] = {}

    def seen_by(self, role: str) -> Observations:
        """Return what the network of a role reads."""
        name = self._encoders.by_role.get(role)
        if name is None:
            return self._observations
        if name not in self._states:
            with torch.set_grad_enabled(self._learns):
                self._states[name] = self._encoders[name](self._observations)
        return self._states[name] if name != SHARED or role in _MOVES_SHARED else self._states[name].detach()


Seen = Tensor | Encoded
"""A batch of normalized observations as losses and policies hand it around: flat vectors (B, O) as they are."""


def seen_by(role: str, observations: Seen) -> Any:
    """Return what the network of a role reads: flat states (B, D), or `Observations` where it has no encoder."""
    return observations if isinstance(observations, Tensor) else observations.seen_by(role)


def draw_encoders(
    config: EncoderConfig, sizes: Sizes, roles: Sequence[str], generator: torch.Generator
) -> Encoders | None:
    """Return the encoders of networks with these roles; of target critics after their critics'.

    None where observations are flat vectors and nothing is to encode them. ConfigError where no image is augmented as
    it is set.
    """
    if not any(column.is_image for column in sizes.observed.values()):
        for name, neutral in {"augmentation": SHIFT, "pad": _PAD}.items():
            if (found := getattr(config, name)) != neutral:
                why, remedy = "observations have no image", "give it an environment that has"
                raise unread(f"agent.encoder.{name}", found, neutral, why, remedy)
    if config.network == "none" and is_vector(sizes.observed):
        return None
    if config.sharing == SHARED and TARGET not in roles:
        why = "agent.advantage 'group' trains no critics and V, whose losses alone would move a shared encoder"
        raise ConfigError(f"agent.encoder.sharing: found 'shared', but {why}; set agent.encoder.sharing=own")
    by_role = {role: SHARED if config.sharing == SHARED and role != TARGET else role for role in roles}
    made: dict[str, nn.Module] = {}
    for name in dict.fromkeys(by_role.values()):
        made[name] = copy.deepcopy(made[by_role["critic"]]) if name == TARGET else _draw(config, sizes, generator)
    if TARGET in made:
        made[TARGET].requires_grad_(False)
    return Encoders(by_role, made)


def _draw(config: EncoderConfig, sizes: Sizes, generator: torch.Generator) -> nn.Module:
    """Return one encoder; ConfigError where a factory of the user's makes none."""
    if config.network == "none":
        return Concatenated(sizes)
    if config.network in IMPALAS:
        return Impala(IMPALAS[config.network], config.layer_norm, sizes, generator)
    made = find_factory(config.network, "agent.encoder.network")(sizes, generator)
    if not isinstance(made, nn.Module) or not isinstance(getattr(made, "embedding_dim", None), int):
        found = f"agent.encoder.network: {config.network} made a {type(made).__name__}"
        raise ConfigError(f"{found}; let it make a torch.nn.Module with an embedding_dim, the length of its states")
    columns = sizes.observed.items()
    zeros = {name: torch.zeros(1, *column.shape, dtype=getattr(torch, column.dtype)) for name, column in columns}
    with torch.no_grad():
        states = made(nested(zeros)["observations"])
    if states.shape != (1, made.embedding_dim) or states.dtype != torch.float32:
        found = f"of one row {config.network} makes {states.dtype} {tuple(states.shape)}"
        raise ConfigError(
            f"agent.encoder.network: {found}; let it make float32 (1, {made.embedding_dim}), one row each"
        )
    return made
