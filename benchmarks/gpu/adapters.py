"""Measure adapters on a transformer of 450 million weights on a GPU: ways to train both, to sample, and the memory.

python -m benchmarks.gpu.adapters --out benchmarks/results

The head of the published driving policy: 8 action tokens of 4 numbers, 1024 wide, 12 blocks, 16 heads, each state 475
tokens of context that an encoder has left on the disk. `two passes` is the package's way to train: the backbone once an
adapter, by PEFT's layers. `PEFT's mixed batch` gives these a name for every row. `one batch` stacks the adapters, so
that each layer is one product for all rows; `one batch, shared` also computes the backbone's keys and values of the
context once for both. Acting takes the flow's ten steps through both fields for ten candidates a state: with adapters
merged, as the package does, or not; with keys and values of the context once a state (`cached`) or once a step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.adapted import learner
from benchmarks.gpu.attempt import attempt
from dipole_ray.agents import dit, flow
from dipole_ray.agents.adapters import AdaptedFields, AdapterConfig
from dipole_ray.agents.networks import Sizes

NAMES = ["positive", "negative"]
Run = Callable[[], Tensor]
Seen = Mapping[str, Tensor]
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
    fields.network.eval()  # type: ignore[attr-defined]  # in training PEFT refuses its mixed batch; nothing else minds
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


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def captured(run: Run, device: str) -> Run:
    """Return what replays a graph of `run`; on a CPU, where there are none, `run` itself."""
    if device != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay


def milliseconds(run: Run, device: str, seconds: float) -> dict[str, float]:
    """Return median, lowest and highest of three rounds, and how many calls each had, after one that warms up."""
    run()
    times, calls = [], 1
    for number in range(4):
        wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wait(device)
        took = (time.perf_counter() - start) / calls
        if number:
            times.append(took * 1e3)
        else:
            calls = max(1, min(100, int(seconds / took)))
    return {"n": calls, "median": statistics.median(times), "min": min(times), "max": max(times)}


def distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return how far `right` is from `left`, of whose length."""
    ours, theirs = (torch.cat([each.detach().flatten().float() for each in every]) for every in (left, right))
    return float((ours - theirs).norm() / ours.norm())


class Training:
    """One batch, an optimizer of both adapters, and what they begin with."""

    def __init__(self, case: Case, fields: AdaptedFields, seconds: float) -> None:
        generator = torch.Generator(case.device).manual_seed(3)
        draw = partial(torch.randn, generator=generator, device=case.device)
        self.case, self.fields, self.seconds = case, fields, seconds
        self.observations = drawn_observations(case, case.rows, draw)
        self.x, self.target = draw(case.rows, case.actions), draw(case.rows, case.actions)
        self.t, self.weights = draw(case.rows, 1).sigmoid(), draw(2, case.rows).sigmoid()
        self.parameters = fields._of_adapters
        self.start = [each.detach().clone() for each in self.parameters]
        on_cuda = case.device == "cuda"
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-4, fused=True, capturable=on_cuda)
        self.expected = self.gradients(fields)[1]

    def begin(self) -> None:
        """Be where every measurement begins."""
        for parameter, before in zip(self.parameters, self.start, strict=True):
            parameter.data.copy_(before)
            for moment in self.optimizer.state.get(parameter, {}).values():
                moment.zero_()

    def gradients(self, way: Any) -> tuple[Tensor, Sequence[Tensor]]:
        errors = (way(self.observations, self.x, self.t) - self.target).square().mean(-1)
        loss = (self.weights * errors).mean()
        return loss.detach(), torch.autograd.grad(loss, self.parameters)

    def update(self, way: Any) -> Tensor:
        loss, found = self.gradients(way)
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = gradient.contiguous()
        self.optimizer.step()
        return loss

    def measure(self, name: str, way: Any) -> dict[str, Any]:
        """Return milliseconds of an update, its memory, and how far its gradients are from those of two passes."""
        self.begin()
        found: dict[str, Any] = {"gradients_from_two_passes": distance(self.expected, self.gradients(way)[1])}
        if self.case.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found["eager_ms"] = milliseconds(partial(self.update, way), self.case.device, self.seconds)
        if self.case.device == "cuda":
            found["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        if name != PEFTS:  # which no graph may hold, see `capture_pefts`
            found["captured"] = attempt(f"{label(self.case)}, {name}, captured", self.capture, way)
        return found

    def capture(self, way: Any) -> dict[str, Any]:
        """Return the same of a graph of the update, and how far five of them are from five eager ones."""
        self.begin()
        for _ in range(5):
            self.update(way)
        eager = [each.detach().clone() for each in self.parameters]
        run = captured(partial(self.update, way), self.case.device)
        self.begin()
        for _ in range(5):
            run()
        apart = distance(eager, self.parameters)
        return {"ms": milliseconds(run, self.case.device, self.seconds), "apart_from_eager_after_5": apart}

    def every_way(self) -> dict[str, Any]:
        """Return what each way takes, by name."""
        found = {}
        ways = training_ways(self.fields)
        for name in self.case.training:
            way = ways[name]
            found[name] = attempt(f"{label(self.case)}, {name}", self.measure, name, way)
            self.begin()
        return found


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


@torch.no_grad()
def acting(case: Case, fields: AdaptedFields, states: int, seconds: float) -> dict[str, Any]:
    """Return milliseconds of ten candidates for each state, by each way, and how far the ways are apart."""
    generator = torch.Generator(case.device).manual_seed(4)
    draw = partial(torch.randn, generator=generator, device=case.device)
    observations, noise = drawn_observations(case, states, draw), draw(states, case.candidates, case.actions)
    ways = acting_ways(case, fields, observations, noise)
    expected = next(iter(ways.values()))()

    def measure(way: Run) -> dict[str, Any]:
        eager = way().clone()
        run = captured(way, case.device)
        return {
            "from_merged_and_cached": float((expected - eager).abs().max()),
            "captured_from_eager": float((run() - eager).abs().max()),
            "eager_ms": milliseconds(way, case.device, seconds),
            "captured_ms": milliseconds(run, case.device, seconds),
        }

    chosen = case.acting[states]
    found = {name: attempt(f"{label(case)}, {states} states, {name}", measure, ways[name]) for name in chosen}
    fields._require_gradients()
    return found


def label(case: Case) -> str:
    return f"r {case.rank}, {case.precision}"


def measured(case: Case, seconds: float) -> dict[str, Any]:
    """Return all of a case, with the memory that its weights take."""
    torch.set_float32_matmul_precision("high")
    fields = make_fields(case)
    found: dict[str, Any] = {
        "backbone_weights": sum(each.numel() for each in fields.backbone_state().values()),
        "backbone_mib": sum(each.nbytes for each in fields.backbone_state().values()) / 2**20,
        "adapter_weights": sum(each.numel() for each in fields._of_adapters) // 2,
        "training": Training(case, fields, seconds).every_way(),
    }
    found["acting"] = {str(states): acting(case, fields, states, seconds) for states in case.acting}
    torch.set_float32_matmul_precision("highest")
    return found


def capture_pefts(case: Case, seconds: float) -> dict[str, Any]:
    """Return the same of PEFT's mixed batch in a graph: last, as a capture that fails may leave the device unusable."""
    fields = make_fields(case)
    return Training(case, fields, seconds).capture(training_ways(fields)[PEFTS])


def shown(times: dict[str, float]) -> str:
    return f"{times['median']:.2f} [{times['min']:.2f}, {times['max']:.2f}]"


def tables(result: dict[str, Any]) -> str:
    """Return all that was found, for a person."""
    updates, actions, agents = [], [], []
    for name, case in result["cases"].items():
        if "failed" in case:
            updates.append([name, case["failed"], *[""] * 5])
            continue
        for way, found in case["training"].items():
            if "failed" in found:
                updates.append([name, way, found["failed"], *[""] * 4])
                continue
            replay = found.get("captured", result["pefts_captured"])
            cells = [shown(found["eager_ms"]), replay.get("failed") or shown(replay["ms"])]
            cells += [
                f"{1e3 / replay['ms']['median']:.1f}" if "ms" in replay else "-",
                f"{found.get('peak_mib', 0):.0f}",
            ]
            apart = f"{replay['apart_from_eager_after_5']:.1e}" if "ms" in replay else "-"
            updates.append([name, way, *cells, f"{found['gradients_from_two_passes']:.1e}, {apart}"])
        for states, ways in case["acting"].items():
            for way, found in ways.items():
                if "failed" in found:
                    actions.append([name, states, way, found["failed"], "", ""])
                    continue
                apart = f"{found['from_merged_and_cached']:.1e}, {found['captured_from_eager']:.1e}"
                actions.append([name, states, way, shown(found["eager_ms"]), shown(found["captured_ms"]), apart])
    for rank, found in result["agents"].items():
        if "parameters" not in found:
            agents.append([rank, found["failed"], *[""] * 6])
            continue
        keys = ("parameters", "trained", "optimizer_bytes", "published_bytes", "updates_per_s")
        peak, replayed = found.get("peak_bytes", 0) / 2**20, found.get("captured_updates_per_s", float("nan"))
        millions = [found[key] / (1e6 if index < 2 else 2**20 if index < 4 else 1) for index, key in enumerate(keys)]
        agents.append(
            [rank if rank != "0" else "full", *(f"{each:.2f}" for each in millions), f"{replayed:.2f}", f"{peak:.0f}"]
        )
    heads = (
        ["case", "way", "eager ms", "captured ms", "updates/s", "peak MiB", "gradients apart, captured apart"],
        ["case", "states", "way", "eager ms", "captured ms", "apart: from merged and cached, captured"],
        ["r", "weights (M)", "trained (M)", "optimizer MiB", "version MiB", "updates/s", "captured", "peak MiB"],
    )
    parts = zip(
        ("Updates of both adapters", "Ten candidates a state, ten steps, both fields", "Whole agents"),
        heads,
        (updates, actions, agents),
        strict=True,
    )
    return "\n\n".join(
        f"## {title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
        for title, head, rows in parts
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--tiny", action="store_true", help="every part at sizes for a CPU, to see that it runs")
    arguments = parser.parse_args()
    if arguments.tiny:
        torch.set_num_threads(1)
    device, sizes = ("cpu", TINY) if arguments.tiny else ("cuda", FULL)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks.gpu.adapters",
        "gpu": "none: tiny sizes on a CPU" if arguments.tiny else torch.cuda.get_device_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        "commit": commit or None,
        "sizes": {key: list(value) if isinstance(value, tuple) else value for key, value in sizes.items()},
        "cases": {},
        "agents": {},
        "pefts_captured": {"failed": "not reached"},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for _ in parts(result, device, sizes, 0.02 if arguments.tiny else 0.06):
        (arguments.out / f"gpu_adapters-{result['date']}.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "gpu_adapters.md").write_text(tables(result) + "\n")
    print(tables(result))


def parts(result: dict[str, Any], device: str, sizes: Mapping[str, Any], seconds: float) -> Iterator[None]:
    """Fill the result in, part by part, the most wanted first."""
    cases = [Case(rank, precision, device, sizes["shape"], sizes["rows"], *ways) for rank, precision, *ways in CASES]
    network, ranks, updates = ("dit-base", (16, 0, 64), 5) if device == "cuda" else ("dit-tiny", (16, 0), 2)
    for number, case in enumerate(cases):
        result["cases"][label(case)] = attempt(label(case), measured, case, seconds)
        yield
        for rank in (ranks[:1], ranks[1:2], ranks[2:])[number]:
            words = f"agent of {network}, r {rank}"
            result["agents"][str(rank)] = attempt(words, learner, network, rank, updates, 1, device)
            yield
    result["pefts_captured"] = attempt(f"{PEFTS}, captured", capture_pefts, cases[0], seconds)
    yield


if __name__ == "__main__":
    main()
