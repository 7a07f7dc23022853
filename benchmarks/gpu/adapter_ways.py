"""Ways to train two adapters on one transformer, and to act with them, that `adapters` measures side by side.

Shapes: F fields, R rows of each, B states, N candidates, T tokens, I inputs of a layer, A action dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dipole_ray.agents import dit, flow
from dipole_ray.agents.adapters import AdaptedFields, AdapterConfig
from dipole_ray.agents.networks import Sizes

NAMES = ["positive", "negative"]
Run = Callable[[], Tensor]
Way = Callable[[Any, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """What is measured at once: sizes, and in which numbers."""

    rank: int
    precision: str
    device: str
    shape: dit.Shape
    rows: int
    training: Sequence[str]
    acting: Mapping[int, Sequence[str]]
    candidates: int = 10
    steps: int = 10
    actions: int = 32
    token: int = 4
    ego: int = 12


FULL: dict[str, Any] = {"shape": dit.Shape(1024, 12, 16, 475), "rows": 32}
TINY: dict[str, Any] = {"shape": dit.Shape(64, 2, 4, 5), "rows": 4}
PEFTS, MERGED = "PEFT's mixed batch", ("merged, cached", "merged, once a step")
TRAINING = ("two passes", PEFTS, "one batch", "one batch, shared")
ACTING = tuple(f"{way}, {how}" for way in ("merged", "two passes", "one batch") for how in ("cached", "once a step"))
CASES: tuple[tuple[int, str, Sequence[str], Mapping[int, Sequence[str]]], ...] = (
    (16, "tf32", TRAINING, {1: ACTING, 16: MERGED}),
    (64, "tf32", ("two passes", "one batch", "one batch, shared"), {1: MERGED}),
    (16, "bfloat16", ("two passes", "one batch, shared"), {1: MERGED}),
)
"""Rank, numbers, ways to train, and ways to act for so many states; `bfloat16` is the backbone's, the rest is TF32."""


def make_fields(case: Case) -> AdaptedFields:
    """Return adapters, and a backbone, that are off the zeros they begin with."""
    dit.SIZES["measured"] = case.shape
    with torch.device(case.device):
        sizes, draws = Sizes(case.ego, case.actions, (1,), 1), torch.Generator(case.device).manual_seed(0)
        network = dit.DiTFields("measured", ("bc",), sizes, draws, case.token, case.shape.width)
    generator = torch.Generator(case.device).manual_seed(2)
    for parameter in network.parameters():
        parameter.data += torch.empty_like(parameter).normal_(0.0, 0.02, generator=generator)
    config = AdapterConfig(rank=case.rank, targets=("attention", "mlp"))
    dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
    fields = AdaptedFields((*NAMES,), network, config, torch.Generator().manual_seed(1), dtype=dtype).to(case.device)
    for parameter in fields._of_adapters:
        parameter.data.normal_(0.0, 0.02, generator=generator)
    adapted: Any = fields.network
    adapted.eval()  # in training PEFT refuses its mixed batch; nothing else minds
    return fields


def one_layer(layer: Any, rows: int, x: Tensor) -> Tensor:
    """Return what a layer makes of (F R, T, I), R rows for each adapter, or of (R, T, I), the same for all."""
    parts = [torch.stack([part[name].weight for name in NAMES]).mT for part in (layer.lora_A, layer.lora_B)]
    found = layer.base_layer(x)
    given = x.unsqueeze(0).expand(len(NAMES), *x.shape) if len(x) == rows else x.unflatten(0, (len(NAMES), rows))
    added = torch.bmm(torch.bmm(given.flatten(1, 2), parts[0]), parts[1]) * layer.scaling[NAMES[0]]
    added = added.view(len(NAMES), rows, *found.shape[1:])
    return (found.unsqueeze(0) + added if len(x) == rows else found.view_as(added) + added).flatten(0, 1)


@contextmanager
def stacked(fields: AdaptedFields, rows: int) -> Iterator[None]:
    """Let every layer with adapters compute all of them at once, see `one_layer`."""
    for layer in fields._layers:
        layer.forward = partial(one_layer, layer, rows)
    try:
        yield
    finally:
        for layer in fields._layers:
            del layer.forward


@contextmanager
def named(fields: AdaptedFields, rows: int) -> Iterator[None]:
    """Let PEFT's layers take the name of an adapter for every row, as its mixed batches do."""
    names = [name for name in NAMES for _ in range(rows)]

    def add_names(layer: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "adapter_names": names}

    hooks = [layer.register_forward_pre_hook(add_names, with_kwargs=True) for layer in fields._layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def in_one_batch(fields: AdaptedFields, how: Any, shared: bool, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return the velocities (F, B, A) of both adapters, by one evaluation of the backbone."""
    network: Any = fields.network
    with how(fields, len(x)):
        given = observations if shared else {name: torch.cat([each, each]) for name, each in observations.items()}
        context = network.encode(given, NAMES)
        if shared:
            context = context._replace(embedding=context.embedding.repeat(2, 1))
        found: Tensor = network.velocity(context, x.repeat(2, 1).unsqueeze(1), t.repeat(2, 1), NAMES)
    return found.view(2, *x.shape)


def drawn_observations(case: Case, states: int, draw: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Return what a driver knows of itself, (B, ego), and context tokens (B, C, W)."""
    return {"ego": draw(states, case.ego), "context": draw(states, case.shape.context_tokens, case.shape.width)}


def training_ways(fields: AdaptedFields) -> dict[str, Way]:
    return {
        "two passes": fields,
        PEFTS: partial(in_one_batch, fields, named, False),
        "one batch": partial(in_one_batch, fields, stacked, False),
        "one batch, shared": partial(in_one_batch, fields, stacked, True),
    }


def acting_ways(case: Case, fields: AdaptedFields, observations: Any, noise: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return ways to carry noise (B, N, A) along both fields at omega 1, by name."""
    merged, network, states = fields.merged(NAMES), fields.network, len(noise)
    Steps = Callable[[Tensor, float], Tensor]

    def flow_of(begin: Callable[[], Steps], cached: bool) -> Tensor:
        kept = begin() if cached else None
        return flow.sample(lambda x, t: (kept or begin())(x, t), noise, case.steps)

    def of_merged() -> Steps:
        context = merged.encode(observations, NAMES)

        def velocity(x: Tensor, t: float) -> Tensor:
            found = merged.velocity(context, x, t, NAMES)
            return flow.guided_velocity(found[0], found[1], 1.0)

        return velocity

    def of_two() -> Steps:
        contexts = []
        for name in NAMES:
            choose(name)
            contexts.append(network.encode(observations, network.names))

        def velocity(x: Tensor, t: float) -> Tensor:
            found = []
            for name, context in zip(NAMES, contexts, strict=True):
                choose(name)
                found.append(network.velocity(context, x, t, network.names)[0])
            return flow.guided_velocity(found[0], found[1], 1.0)

        return velocity

    def choose(name: str) -> None:
        for layer in fields._layers:
            layer.set_adapter(name)

    def of_one() -> Steps:
        with stacked(fields, states):
            context = network.encode(observations, NAMES)
        both = context._replace(embedding=context.embedding.repeat(2, 1))

        def velocity(x: Tensor, t: float) -> Tensor:
            with stacked(fields, states * case.candidates):
                found = network.velocity(both, x.repeat(2, 1, 1), t, NAMES)
            found = found.view(2, *x.shape)
            return flow.guided_velocity(found[0], found[1], 1.0)

        return velocity

    begins = {"merged": of_merged, "two passes": of_two, "one batch": of_one}
    return {
        f"{name}, {'cached' if cached else 'once a step'}": partial(flow_of, begin, cached)
        for name, begin in begins.items()
        for cached in (True, False)
    }
