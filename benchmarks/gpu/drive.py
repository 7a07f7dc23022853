"""Measure the driving policy at the published size: an epoch of cloning and one of RL, sampling, and the encoder.

python -m benchmarks.gpu.drive --out benchmarks/results

The head is a transformer `base` with adapters of rank 16 on frozen weights, its context 475 x 1024 tokens of float16
for each scene, random and already on the GPU. An epoch of cloning has each scene's plan once; one of RL 11 plans of
each scene, the 10 that were drawn and the logged one. Weights are random: what is measured is time and memory.
A part that fails says so. `--small` runs all of it on a CPU in seconds, to see that it runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.attempt import attempt, provenance
from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import Agent, make_agent
from dipole_ray.agents.backbones import BackboneConfig
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.florence import SHAPES, FlorenceEncoder
from dipole_ray.columns import Column, Schema

EGO, ACTIONS, PLANS = 20, 32, 11
WITHIN_S = 100
"""Parts that would start later than this after the beginning are left out."""
Scenes = dict[str, Tensor]


class Case:
    """What is measured: at the published size on a GPU, or small on a CPU."""

    def __init__(self, small: bool) -> None:
        self.device = "cpu" if small else "cuda"
        self.head, self.encoder = ("tiny", "tiny") if small else ("base", "large")
        self.scenes, self.batch, self.rl_scenes = (16, 8, 2) if small else (1024, 64, 256)
        shape = SHAPES[self.encoder]
        self.context = shape.tokens(3), shape.width

    @cached_property
    def agent(self) -> Agent:
        """An agent of adapters whose rows bring their advantage, the same in all parts: drawing it takes seconds."""
        targets = ("attention", "mlp")
        config = AgentConfig(
            backbone=BackboneConfig(network=f"dipole_ray.agents.plan_heads:{self.head}"),
            adapters=AdapterConfig(rank=16, targets=targets),
            advantage="group",
            num_candidates=1,
            batch_size=self.batch,
            learning_rate=1e-4,
        )
        observed = {"ego": Column((EGO,)), "context": Column(self.context, "float16")}
        return make_agent(config, Schema(observed, ACTIONS), seed=0, device=self.device)

    @cached_property
    def cached(self) -> Scenes:
        """Random scenes as an encoder would leave them."""
        generator = torch.Generator(self.device).manual_seed(0)
        drawn = {"generator": generator, "device": self.device}
        return {
            "ego": torch.randn(self.scenes, EGO, **drawn),
            "context": torch.randn(self.scenes, *self.context, dtype=torch.float16, **drawn),
            "actions": torch.rand(self.scenes, ACTIONS, **drawn) * 2 - 1,
        }

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def timed(self, run: Callable[[], object]) -> tuple[float, float]:
        """Return the seconds that it takes, and the most GiB that were held meanwhile."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
        return time.perf_counter() - start, peak / 2**30


def batch_of(scenes: Scenes, rows: Tensor) -> dict[str, Any]:
    """Return the batch of some scenes, a plan each with a random advantage."""
    seen = {name: scenes[name][rows] for name in ("ego", "context")}
    rewards = torch.linspace(-1.5, 1.5, len(rows), device=rows.device)
    plain = {"actions": scenes["actions"][rows], "rewards": rewards, "masks": torch.zeros_like(rewards)}
    return {"observations": seen, "next_observations": seen, **plain}


def epoch(case: Case, precision: str, cloning: bool) -> dict[str, Any]:
    """Return rates and memory of an epoch of the clone phase, or of one of RL."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    agent, scenes = case.agent, case.cached
    if agent.is_cloning != cloning:
        agent.clone(cloning)
    count = case.scenes if cloning else case.rl_scenes * PLANS
    generator = torch.Generator(case.device).manual_seed(1)
    rows = torch.randint(case.scenes, (count // case.batch, case.batch), generator=generator, device=case.device)
    metrics: dict[str, Tensor] = {}

    def run(batches: Tensor) -> None:
        with torch.autocast(case.device, torch.bfloat16) if precision == "autocast" else nullcontext():
            for each in batches:
                metrics.update(agent.update(batch_of(scenes, each), diagnostics=False))

    run(rows[:2])
    seconds, peak = case.timed(lambda: run(rows))
    held = sum(each.numel() for each in agent.networks.trained_parameters().values())
    assert all(bool(torch.isfinite(each).all()) for each in agent.networks.trained_parameters().values())
    return {
        "samples": rows.numel(),
        "samples_per_s": rows.numel() / seconds,
        "updates_per_s": len(rows) / seconds,
        "seconds": seconds,
        "peak_gib": peak,
        "trained_parameters": held,
        "skipped_updates": int(metrics["system/skipped_updates"]),
    }


def sampling(case: Case, diffusion: str, steps: int, omega: float) -> dict[str, Any]:
    """Return how many plans a second come of scenes, 10 each."""
    torch.set_float32_matmul_precision("high")
    scenes, policy, rows = case.cached, copy.copy(case.agent.policy), case.batch
    config: Any = policy.config
    policy.config = replace(config, diffusion=diffusion, denoise_steps=steps)
    states = {name: scenes[name][:rows] for name in ("ego", "context")}

    def run() -> None:
        noise = policy.normal((rows, PLANS - 1, ACTIONS))
        seen = policy.normalized(states)
        policy.packed().from_noise(seen, noise, omega, "guided")

    with torch.no_grad():
        run()
        seconds, peak = case.timed(lambda: [run() for _ in range(4)])
    return {"plans_per_s": 4 * rows * (PLANS - 1) / seconds, "scenes_per_s": 4 * rows / seconds, "peak_gib": peak}


def encoding(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Return how many scenes, of three pictures each, the encoder does a second."""
    with torch.device(case.device):
        encoder = FlorenceEncoder(case.encoder).to(dtype)
    shape, rows = encoder.shape, 8
    drawn: dict[str, Any] = {"dtype": torch.uint8, "device": case.device}
    pictures = torch.randint(0, 256, (rows, 3, shape.pixels, shape.pixels, 3), **drawn)
    prompt = torch.randint(3, 60, (rows, shape.prompt), device=case.device)
    with torch.no_grad():
        found = encoder(pictures, prompt)
        seconds, peak = case.timed(lambda: [encoder(pictures, prompt) for _ in range(6)])
    return {
        "scenes_per_s": 6 * rows / seconds,
        "peak_gib": peak,
        "parameters": sum(each.numel() for each in encoder.parameters()),
        "tokens": list(found.shape[1:]),
        "finite": bool(torch.isfinite(found).all()),
    }


def print_table(parts: dict[str, dict[str, Any]]) -> None:
    """Print a row a part."""
    print(f"\n{'':40}{'samples/s':>12}{'scenes/s':>12}{'peak GiB':>10}  other")
    for name, row in parts.items():
        if "failed" in row:
            print(f"{name:40}{row['failed'][:120]}")
            continue
        rates = [row.get("samples_per_s", row.get("plans_per_s")), row.get("scenes_per_s")]
        cells = "".join(f"{'-' if rate is None else format(rate, '.1f'):>12}" for rate in rates)
        shown = ("updates_per_s", "seconds", "trained_parameters", "parameters", "skipped_updates", "tokens", "finite")
        rest = ", ".join(
            f"{key} {row[key]:.4g}" if isinstance(row[key], float) else f"{key} {row[key]}"
            for key in shown
            if key in row
        )
        print(f"{name:40}{cells}{row['peak_gib']:>10.2f}  {rest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--small", action="store_true", help="small sizes on a CPU; writes no result")
    arguments = parser.parse_args()
    if arguments.small:
        torch.set_num_threads(1)
    case = Case(arguments.small)
    half = torch.bfloat16 if arguments.small else torch.float16
    todo: dict[str, tuple[Any, ...]] = {
        "encoder, half precision": (encoding, half),
        "RL, tf32": (epoch, "tf32", False),
        "RL, bfloat16 by autocast": (epoch, "autocast", False),
        "10 plans a scene, flow, 5 steps": (sampling, "flow", 5, 0.0),
        "10 plans a scene, vp, 5 steps": (sampling, "vp", 5, 0.0),
        "10 plans a scene, vp, 10 steps, omega 1": (sampling, "vp", 10, 1.0),
        "clone, tf32": (epoch, "tf32", True),
        "clone, bfloat16 by autocast": (epoch, "autocast", True),
        "encoder, float32": (encoding, torch.float32),
        "clone, float32": (epoch, "float32", True),
        "RL, float32": (epoch, "float32", False),
    }
    parts = {}
    for name, (part, *rest) in todo.items():
        parts[name] = attempt(f"{name}, with setting up", part, case, *rest, within_s=WITHIN_S)
        if not arguments.small:
            torch.cuda.empty_cache()
    result = {
        **provenance("bash benchmarks/gpu/drive.sh", "transformers", "peft"),
        "seed": 0,
        "sizes": {"batch_size": case.batch, "rank": 16, "context": list(case.context), "plans_a_scene": PLANS},
        "parts": parts,
    }
    if not arguments.small:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"gpu_drive-{result['date']}.json").write_text(json.dumps(result, indent=1) + "\n")
    print_table(parts)


if __name__ == "__main__":
    main()
