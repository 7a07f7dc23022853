"""Fields that are LoRA adapters on one frozen network, the backbone, which alone is the behaviour-cloned field `bc`.

The network is any velocity field of torch's with the one name `bc`. Training evaluates it once an adapter; sampling
merges each adapter into plain weights first, so that a step costs what a step of the backbone costs.

Shapes: F fields, B rows, N candidates, O observation dim, A action dim; r rank.
"""

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from dipole_ray.agents import state
from dipole_ray.agents.config import ABOVE_ZERO, Rule, require_rules
from dipole_ray.agents.fields import VelocityField
from dipole_ray.agents.narrow import keep_weights_in
from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.settings import unread

BACKBONE = "bc"
"""Name of the field that is the backbone without an adapter."""
KINDS = {"linear": ("",), "attention": ("attention",), "mlp": ("mlp", "feedforward")}
"""Kinds of layers: the linear ones in a module whose class has one of these words in its name, in any case."""
_BASE = ".base_layer."
_GIVEN = "backbone."
_RANK = Rule(lambda x: x >= 0, "give a whole number of at least 0 (none)")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """Whether the fields are low-rank adapters (LoRA) on one frozen backbone, and which."""

    rank: Annotated[int, _RANK] = 0
    """Rank r of an adapter's matrices, >= 1; 0 = no adapters, each field is a network of its own."""
    alpha: Annotated[float, ABOVE_ZERO] = 16.0
    """What an adapter adds to a layer is scaled by alpha / rank, > 0. The released driving policy: 16, at rank 64."""
    targets: tuple[str, ...] = ("linear",)
    """Layers that get an adapter: by kind, `linear` (all), `attention` or `mlp` (linear layers in modules whose class
    is so called), or by name, whole or its end, such as `qkv` or `blocks.0.proj`. The paper's: [attention, mlp]."""

    def __post_init__(self) -> None:
        """Reject what is out of range, and what no adapter would read."""
        require_rules(self, "agent.adapters")
        if not self.targets:
            raise ConfigError("agent.adapters.targets: found none; name a kind of layers, such as linear")
        for name, neutral in () if self.rank else (("alpha", 16.0), ("targets", ("linear",))):
            if (found := getattr(self, name)) != neutral:
                shown, remedy = "[linear]" if name == "targets" else neutral, "agent.adapters.rank above 0"
                raise unread(f"agent.adapters.{name}", found, shown, "there are no adapters", remedy)


class ActingLayer(nn.Module):
    """What a layer of PEFT's holds, under the same names, for those who merge adapters and train none."""

    def __init__(self, base_layer: nn.Linear, names: tuple[str, ...], config: AdapterConfig) -> None:
        super().__init__()
        rank, self.scaling = config.rank, config.alpha / config.rank
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({name: _zeros(base_layer.in_features, rank) for name in names})
        self.lora_B = nn.ModuleDict({name: _zeros(rank, base_layer.out_features) for name in names})

    def get_base_layer(self) -> nn.Linear:
        """Return the layer of the backbone."""
        return self.base_layer

    def get_delta_weight(self, name: str) -> Tensor:
        """Return what an adapter adds to the weights of the layer."""
        up, down = self.lora_B.get_parameter(f"{name}.weight"), self.lora_A.get_parameter(f"{name}.weight")
        return (up @ down) * self.scaling


class Merged(NamedTuple):
    """What a state's encoding is to `AdaptedFields`: plain fields, and what they encoded."""

    fields: VelocityField
    context: Any


class AdaptedFields(nn.Module):
    """Fields that are adapters by name on `network`; the field `bc`, for sampling, is the network alone.

    Attributes:
        names: Of the adapters.
        network: The backbone with the adapters in its layers.
        adapter_config: What PEFT writes as `adapter_config.json`, the same for all adapters; empty where none learns.
        is_frozen: Whether the adapters are trained; else the backbone is, and they add nothing.
    """

    backbone_checksum: Tensor

    def __init__(
        self,
        names: tuple[str, ...],
        network: VelocityField,
        config: AdapterConfig,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        learns: bool = True,
    ) -> None:
        """Put untrained adapters into the network.

        Args:
            names: Of the adapters.
            network: The backbone, with the one name `bc`.
            config: Of all adapters.
            generator: What the adapters are drawn from.
            dtype: What the weights of the backbone's linear layers are kept in while it is frozen.
            learns: Whether the fields are to be trained; for acting alone nobody needs PEFT.
        """
        super().__init__()
        if not isinstance(network, nn.Module) or BACKBONE in names:
            raise TypeError(f"adapters {names} on {type(network).__name__}: give a module and other names than 'bc'")
        self.names, self.network, self._dtype = names, network, dtype
        self._of_backbone = [each for each in network.parameters() if each.requires_grad]
        self._linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        targets, seed = layers_of(network, config.targets), int(torch.randint(2**62, (1,), generator=generator).item())
        self.adapter_config = _inject(network, names, targets, config, seed) if learns else {}
        for name in () if learns else targets:
            above, _, last = name.rpartition(".")
            layer: Any = network.get_submodule(name)
            setattr(network.get_submodule(above), last, ActingLayer(layer, names, config))
        self._layers: tuple[Any, ...] = tuple(network.get_submodule(name) for name in targets)
        self._of_adapters = [each for name, each in network.named_parameters() if _is_adapters(name)]
        self.register_buffer(state.BACKBONE_CHECKSUM, torch.zeros(32, dtype=torch.uint8))
        self.register_state_dict_post_hook(_leave_out_the_backbone)
        self.freeze()

    def freeze(self) -> None:
        """Train the adapters from now on, and the backbone no more; its checksum stands for it in the state dict."""
        self._train_adapters(True)
        keep_weights_in(self._dtype, self._linear)
        self.backbone_checksum.copy_(torch.frombuffer(bytearray(checksum(self.backbone_state())), dtype=torch.uint8))

    def thaw(self) -> None:
        """Train the backbone from now on, and no adapter."""
        keep_weights_in(torch.float32, self._linear)
        self._train_adapters(False)
        self.backbone_checksum.zero_()

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocities of all fields, see `VelocityField.__call__`.

        While the backbone is trained, its own alone, (1, B, A).
        """
        found = []
        for name in self.names if self.is_frozen else self.names[:1]:
            for layer in self._layers:
                layer.set_adapter(name)  # takes the gradient from the parameters of all others
            found.append(self.network(observations, x, t)[0])
        self._require_gradients()  # or backward would leave out the others
        return torch.stack(found)

    def encode(self, observations: Tensor, fields: Sequence[str]) -> Merged:
        """Merge the named fields into plain weights, and return those with what they make of the observations."""
        merged = self.merged(fields)
        return Merged(merged, merged.encode(observations, fields))

    def velocity(self, context: Merged, x: Tensor, t: float | Tensor, fields: Sequence[str]) -> Tensor:
        """Return the velocities of the named fields, see `VelocityField.velocity`."""
        return context.fields.velocity(context.context, x, t, fields)

    @torch.no_grad()
    def merged(self, names: Sequence[str]) -> VelocityField:
        """Return plain fields of these names, which share with the backbone all layers that no adapter changes."""
        networks = [self._plain(name) for name in names]
        stack = getattr(self.network, "stack", SeparateFields)
        fields: VelocityField = stack(tuple(names), networks)
        return fields

    def backbone_state(self) -> dict[str, Tensor]:
        """Return the backbone's live tensors under the names that they have in a network without adapters."""
        found = nn.Module.state_dict(self.network)
        return {name.replace(_BASE, "."): tensor for name, tensor in found.items() if not _is_adapters(name)}

    def follow(self, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Be in the phase of a state whose tensors of these fields begin with `prefix`, and return what is then loaded.

        A state of before `freeze` holds the backbone as these fields do; a later one its checksum, and perhaps the
        backbone itself, see `with_backbone`, which is taken at once. CheckpointError if it is not the one named.
        """
        named = tensors.get(prefix + state.BACKBONE_CHECKSUM)
        if named is None:
            return dict(tensors)
        if not bool(named.any()):
            self.thaw()
            return dict(tensors)
        start = f"{prefix}{_GIVEN}"
        given = {name.removeprefix(start): each for name, each in tensors.items() if name.startswith(start)}
        rest = {name: each for name, each in tensors.items() if not name.startswith(start)}
        if given and checksum(given) != bytes(named.tolist()):
            raise CheckpointError("the backbone is not the one that the adapters belong to; use another checkpoint")
        if not self.is_frozen:
            self.freeze()
        if given:
            self.load_backbone(given)
        return rest

    def load_backbone(self, tensors: Mapping[str, Tensor]) -> None:
        """Take these weights, named as in `backbone_state`, for the backbone; CheckpointError if they do not fit."""
        own = self.backbone_state()
        state.check_matches(own, tensors, "the backbone")
        state.copy_into(own, tensors)
        if self.is_frozen:
            self.freeze()

    def _plain(self, name: str) -> VelocityField:
        """Return the network with one adapter merged into its weights, or none; what is not changed is shared."""
        memo: dict[int, Any] = {id(one): one for one in (*self.network.parameters(), *self.network.buffers())}
        for layer in self._layers:
            linear = layer.get_base_layer()
            if name != BACKBONE:
                merged = copy.copy(linear)
                weight = nn.Parameter(linear.weight + layer.get_delta_weight(name), requires_grad=False)
                merged._parameters = {**linear._parameters, "weight": weight}
                linear = merged
            memo[id(layer)] = linear
        plain: Any = copy.copy(self.network)
        memo[id(self.network)] = plain
        plain._modules = copy.deepcopy(self.network._modules, memo)
        found: VelocityField = plain
        return found

    def _train_adapters(self, is_frozen: bool) -> None:
        self.is_frozen = is_frozen
        for layer in self._layers if self.adapter_config else ():
            layer.enable_adapters(is_frozen)
        self._require_gradients()

    def _require_gradients(self) -> None:
        """Let gradients reach all adapters, or the backbone, see `freeze` and `thaw`."""
        for parameters, is_trained in ((self._of_adapters, self.is_frozen), (self._of_backbone, not self.is_frozen)):
            for parameter in parameters:
                parameter.requires_grad_(is_trained)


class SeparateFields(nn.Module):
    """Fields that are one network each, every one a velocity field of a single name."""

    def __init__(self, names: tuple[str, ...], networks: Sequence[VelocityField]) -> None:
        super().__init__()
        self.names = names
        modules: Any = networks
        self.networks = nn.ModuleList(modules)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocities of all fields, see `VelocityField.__call__`."""
        return torch.cat([network(observations, x, t) for network in self.networks])

    def encode(self, observations: Tensor, fields: Sequence[str]) -> list[Any]:
        """Return what the network of each named field encodes."""
        return [network.encode(observations, network.names) for network in self._chosen(fields)]

    def velocity(self, context: list[Any], x: Tensor, t: float | Tensor, fields: Sequence[str]) -> Tensor:
        """Return the velocities of the named fields, see `VelocityField.velocity`."""
        both = zip(self._chosen(fields), context, strict=True)
        return torch.cat([network.velocity(encoded, x, t, network.names) for network, encoded in both])

    def _chosen(self, fields: Sequence[str]) -> list[Any]:
        return [self.networks[self.names.index(name)] for name in fields]


def with_backbone(tensors: Mapping[str, Tensor], backbone: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return a state, whose tensors of the fields begin with `prefix`, with the backbone that it only names."""
    return {**tensors, **{f"{prefix}{_GIVEN}{name}": tensor for name, tensor in backbone.items()}}


def checksum(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the SHA-256 of tensors with their names, types and shapes, whatever file or device they lie in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def layers_of(network: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return the names of the linear layers that the targets mean; ConfigError where one of them means none."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    above = {name: type(network.get_submodule(name.rpartition(".")[0])).__name__.lower() for name in linear}
    chosen = set()
    for target in targets:
        if target in KINDS:
            found = {name for name in linear if any(word in above[name] for word in KINDS[target])}
        else:
            found = {name for name in linear if f".{name}".endswith(f".{target}")}
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in linear})
            near = difflib.get_close_matches(target, [*KINDS, *ends, *linear], n=3, cutoff=0.0)
            what = f"'{target}', but no linear layer of {type(network).__name__} is so called or of that kind"
            raise ConfigError(f"agent.adapters.targets: found {what}; the nearest are {', '.join(near)}")
        chosen |= found
    return [name for name in linear if name in chosen]


def _inject(
    network: Any, names: tuple[str, ...], targets: Sequence[str], config: AdapterConfig, seed: int
) -> dict[str, Any]:
    """Put adapters of PEFT's, drawn by the seed, into the target layers, and return their `adapter_config.json`."""
    import peft  # three seconds, and transformers with it: only here

    alpha: Any = config.alpha  # PEFT scales by any number
    settings = peft.LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=_only(targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        injected = peft.get_peft_model(network, settings, adapter_name=names[0])
        for name in names[1:]:
            injected.add_adapter(name, settings)
    found: dict[str, Any] = json.loads(json.dumps({**settings.to_dict(), "inference_mode": True}, default=list))
    return found


def _zeros(inputs: int, outputs: int) -> nn.Module:
    """Return a linear layer without bias whose weights are zero, and for which nothing is drawn."""
    layer = nn.Linear(inputs, outputs, bias=False, device="meta").to_empty(device="cpu")
    nn.init.zeros_(layer.weight)
    return layer


def _only(names: Sequence[str]) -> str:
    """Return PEFT's pattern of exactly these layers; a list would also mean all that end so."""
    return "|".join(map(re.escape, names))


def _is_adapters(name: str) -> bool:
    """Whether a tensor of this name belongs to an adapter."""
    return ".lora_" in name


def _leave_out_the_backbone(fields: Any, tensors: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Drop from a state dict the tensors of a frozen backbone, for which the checksum stands."""
    start = f"{prefix}network."
    for name in [name for name in tensors if name.startswith(start) and not _is_adapters(name)]:
        if fields.is_frozen:
            del tensors[name]
