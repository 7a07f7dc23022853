"""What a policy's fields are made of: the stacked MLPs, a transformer, or a network of the user's own.

Shapes: F fields, B rows, N candidates, O observation dim, A action dim, H hidden units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dipole_ray.agents.adapters import BACKBONE, AdaptedFields, AdapterConfig, SeparateFields
from dipole_ray.agents.dit import SIZES, DiTFields
from dipole_ray.agents.factories import find_factory, is_factory
from dipole_ray.agents.fields import MakeFields, StackedFields, VelocityField
from dipole_ray.agents.narrow import DTYPES
from dipole_ray.agents.networks import Sizes, gelu_tanh
from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.files.durable import replacing
from dipole_ray.files.place import absolute


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """The network behind every field, or behind all of them together where they are adapters."""

    network: str = "mlp"
    """`mlp` (of `hidden_dims`), `dit-tiny`, `dit-small` or `dit-base` (0.35, 15 and 475 million weights: a transformer
    over one token for each number of the action), or `module:factory`, a function of your own (docs/large-policies.md).
    """
    path: str | None = None
    """Safetensors file of the trained weights that the adapters lie on; null = none. Relative to the working directory;
    the run keeps it absolute."""
    dtype: str = "float32"
    """What the weights of its linear layers are kept in once it is frozen below adapters: `float32`, or `bfloat16`, in
    half the memory and multiplied as such. Adapters, weights with an adapter merged into them, and all else stay
    float32, and so is the backbone while it is cloned."""

    def __post_init__(self) -> None:
        """Reject a network that there is not, and keep the file's place for good."""
        if self.network not in NETWORKS and not is_factory(self.network):
            known = ", ".join(NETWORKS)
            raise ConfigError(f"agent.backbone.network: found '{self.network}'; choose {known}, or module:factory")
        if self.dtype not in DTYPES:
            raise ConfigError(f"agent.backbone.dtype: found '{self.dtype}'; choose {' or '.join(DTYPES)}")
        if self.path is not None:
            object.__setattr__(self, "path", str(absolute(self.path)))


class LinearFields(nn.Module):
    """The MLP of one member of `StackedFields`, in the linear layers that adapters are attached to."""

    def __init__(self, names: tuple[str, ...], sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.names = names
        stacked = StackedFields(names, sizes, generator)
        self.observation_dim = sizes.observation_dim
        self.layers = nn.ModuleList()
        for kernel, bias in zip(stacked.mlp.kernels, stacked.mlp.biases, strict=True):
            layer = nn.Linear(*kernel.shape[1:])
            layer.weight.data, layer.bias.data = kernel.data[0].T.contiguous(), bias.data[0, 0].clone()
            self.layers.append(layer)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocities, see `VelocityField.__call__`."""
        hidden = torch.cat((observations, x, t), dim=-1)
        for layer in self.layers[:-1]:
            hidden = gelu_tanh(layer(hidden))
        found: Tensor = self.layers[-1](hidden)
        return found.unsqueeze(0)

    def encode(self, observations: Tensor, fields: Sequence[str]) -> tuple[StackedFields, Tensor]:
        """Return the stacked MLP of one member, and what it encodes."""
        stacked = self.stack(self.names, [self])
        return stacked, stacked.encode(observations, fields)

    def velocity(
        self, context: tuple[StackedFields, Tensor], x: Tensor, t: float | Tensor, fields: Sequence[str]
    ) -> Tensor:
        """Return the velocities, see `VelocityField.velocity`."""
        return context[0].velocity(context[1], x, t, fields)

    @torch.no_grad()
    def stack(self, names: tuple[str, ...], networks: Sequence["LinearFields"]) -> StackedFields:
        """Return networks of this one's sizes as the stacked MLPs that compiled code evaluates."""
        by_layer = list(zip(*(network.layers for network in networks), strict=True))
        kernels = [torch.stack([layer.weight.T.to(layer.bias.dtype) for layer in layers]) for layers in by_layer]
        biases = [torch.stack([layer.bias.unsqueeze(0) for layer in layers]) for layers in by_layer]
        return StackedFields.of(names, self.observation_dim, kernels, biases)


NETWORKS: dict[str, MakeFields] = {"mlp": LinearFields, **{f"dit-{size}": partial(DiTFields, size) for size in SIZES}}
"""Networks by name; each makes a field of one name."""


def make_fields(
    backbone: BackboneConfig,
    adapters: AdapterConfig,
    names: tuple[str, ...],
    sizes: Sizes,
    generator: torch.Generator,
    *,
    learns: bool = True,
) -> VelocityField:
    """Return untrained fields as the settings say: adapters on one network, or a network each.

    With adapters the network's weights are those of `backbone.path`, where that is set; fields that do not learn, but
    act alone, need no PEFT.
    """
    make = _factory(backbone.network)
    if adapters.rank:
        network = make((BACKBONE,), sizes, generator)
        fields = AdaptedFields(names, network, adapters, generator, dtype=DTYPES[backbone.dtype], learns=learns)
        if backbone.path is not None:
            _load(backbone, fields, sizes)
        return fields
    if backbone.network == "mlp":
        return StackedFields(names, sizes, generator)
    return SeparateFields(names, [make((name,), sizes, generator) for name in names])


def _factory(network: str) -> MakeFields:
    """Return what makes the network; ConfigError where a factory of the user's is not found."""
    if network in NETWORKS:
        return NETWORKS[network]
    found: MakeFields = find_factory(network, "agent.backbone.network")
    return found


def _load(backbone: BackboneConfig, fields: AdaptedFields, sizes: Sizes) -> None:
    """Give the adapters the backbone of a file; ConfigError where it is none, or of another network."""
    assert backbone.path is not None
    tensors = read_weights(Path(backbone.path), "agent.backbone.path")
    fits = f"{sizes.observation_dim} observations, {sizes.action_dim} actions and network {backbone.network}"
    own = fields.backbone_state()
    numbers = {name for name, each in tensors.items() if name in own and each.is_floating_point()}
    tensors = {name: each.to(own[name].dtype) if name in numbers else each for name, each in tensors.items()}
    try:
        fields.load_backbone(tensors)
    except CheckpointError as error:
        raise ConfigError(f"agent.backbone.path: {backbone.path} does not fit {fits}: {error}") from None


def read_weights(file: Path, what: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; ConfigError, which names `what` asked for it, where it is none."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(file.read_bytes())
        return tensors
    except OSError as error:
        raise ConfigError(f"{what}: {file} cannot be read ({error.strerror}); give a safetensors file") from error
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        with file.open("rb") as stream:
            is_pickle = stream.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        found = "holds a pickle, which could run anything" if is_pickle else f"is no safetensors file ({error})"
        remedy = "write it anew with safetensors.torch.save_file(module.state_dict(), FILE)"
        raise ConfigError(f"{what}: {file} {found}; {remedy}") from None


def save_backbone(fields: AdaptedFields, file: Path) -> None:
    """Write the backbone of the fields as `agent.backbone.path` reads it, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in fields.backbone_state().items()}
    with replacing(file) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors))
