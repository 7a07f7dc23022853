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
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.adapted import learner
from benchmarks.gpu.adapter_tables import tables
from benchmarks.gpu.adapter_ways import (
    CASES,
    FULL,
    PEFTS,
    TINY,
    Case,
    Run,
    acting_ways,
    drawn_observations,
    make_fields,
    training_ways,
)
from benchmarks.gpu.attempt import attempt, provenance
from dipole_ray.agents.adapters import AdaptedFields


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--tiny", action="store_true", help="every part at sizes for a CPU, to see that it runs")
    arguments = parser.parse_args()
    if arguments.tiny:
        torch.set_num_threads(1)
    device, sizes = ("cpu", TINY) if arguments.tiny else ("cuda", FULL)
    result: dict[str, Any] = {
        **provenance("python -m benchmarks.gpu.adapters", "peft"),
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
