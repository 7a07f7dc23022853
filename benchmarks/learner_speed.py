"""Measure learner updates per second against a plain torch loop of the same maths, side by side in one run.

    python -m benchmarks.learner_speed --preset paper --threads 1 --out benchmarks/results/learner_speed.json

Both start from the same weights and take the same batches and noise; the run stops if their losses differ.
Rounds of the two alternate, so that a change of the machine's load meets both. Also shown: where an update's
time goes. Set OMP_NUM_THREADS to the value of --threads for the cleanest numbers.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.plain_learner import PlainLearner
from dipole_ray.agents.agent import Agent
from dipole_ray.agents.config import PRESETS, AgentConfig
from dipole_ray.agents.dipole import DipoleAgent
from dipole_ray.columns import Schema
from dipole_ray.cores import usable_cores
from dipole_ray.evaluation.cells import method_name

Batch = dict[str, Tensor]
Rates = tuple[float, float]


def random_batches(agent: Agent, count: int) -> list[Batch]:
    """Return batches of the configured size on the agent's device."""
    rows, generator = agent.config.batch_size, torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(agent.device)

    return [
        {
            "observations": normal(rows, agent.sizes.observation_dim),
            "actions": normal(rows, agent.sizes.action_dim).clamp(-1, 1),
            "rewards": -(normal(rows) > 0).float(),
            "masks": (normal(rows) > -1.5).float(),
            "next_observations": normal(rows, agent.sizes.observation_dim),
            "discounts": torch.full((rows,), agent.config.discount, device=agent.device),
        }
        for _ in range(count)
    ]


def check_same_maths(config: AgentConfig, schema: Schema, device: str) -> float:
    """Return the largest relative difference of any loss over five updates; raise SystemExit if it is not rounding."""
    agent = DipoleAgent(config, schema, seed=0, device=device)
    plain = PlainLearner(agent)
    generator = torch.Generator(device)
    generator.set_state(agent.generator.get_state())
    worst = 0.0
    for batch in random_batches(agent, 5):
        ours, theirs = agent.update(batch, diagnostics=False), plain.update(batch, generator)
        for name, loss in theirs.items():
            worst = max(worst, abs(float(ours[name]) - float(loss)) / max(abs(float(loss)), 1e-6))
    if worst > 1e-3:
        raise SystemExit(f"error: the two learners differ by {worst:.2e} in a loss; their speeds say nothing")
    return worst


def wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def update_rates(update: Callable[[Batch], object], batches: list[Batch], seconds: float, device: str) -> Rates:
    """Return updates per second of wall time and per second of processor time, over at least `seconds`."""
    wait_for(device)
    start, processor_start, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        update(batches[done % len(batches)])
        done += 1
    wait_for(device)
    return done / (time.perf_counter() - start), done / (time.process_time() - processor_start)


def breakdown(agent: DipoleAgent, batches: list[Batch], updates: int) -> dict[str, float]:
    """Return the milliseconds each part of an update takes, by clocks around the agent's own calls."""
    device = str(agent.device)
    marks: dict[str, float] = {}

    def now() -> float:
        wait_for(device)
        return time.perf_counter()

    def clocked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            marks[f"{name} start"] = now()
            result = function(*args, **kwargs)
            marks[f"{name} end"] = now()
            return result

        return call

    calls: list[tuple[Any, str, str]] = [(agent, "_critic_targets", "targets"), (agent, "_losses", "losses")]
    calls += [(agent.optimizer, "step", "step"), (agent.data_parallel, "all_reduce_mean", "hook")]
    totals: dict[str, float] = {}
    with ExitStack() as stack:
        for owner, method, name in calls:
            stack.enter_context(patch.object(owner, method, clocked(getattr(owner, method), name)))
        for index in range(updates):
            start = now()
            agent.update(batches[index % len(batches)], diagnostics=False)
            end = now()
            targets = marks["targets end"] - marks["targets start"]
            parts = {
                "targets: sampling a', target critics or V": targets,
                "forward: all losses": marks["losses end"] - marks["losses start"] - targets,
                "backward": marks["hook start"] - marks["losses end"],
                "gradient norm and finite check": marks["step start"] - marks["hook end"],
                "Adam": marks["step end"] - marks["step start"],
                "Polyak and bookkeeping": end - marks["step end"] + marks["losses start"] - start,
            }
            for name, seconds in parts.items():
                totals[name] = totals.get(name, 0.0) + seconds * 1e3 / updates
    return totals


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": usable_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the whole result of one run."""
    torch.set_num_threads(options.threads)
    config = AgentConfig.preset(options.preset)
    schema = Schema(options.observation_dim, options.action_dim)
    difference = check_same_maths(config, schema, options.device)
    agent = DipoleAgent(config, schema, seed=0, device=options.device)
    reporting = DipoleAgent(config, schema, seed=0, device=options.device)
    plain, generator = PlainLearner(agent), torch.Generator(options.device).manual_seed(0)
    batches = random_batches(agent, 8)
    sides: dict[str, Callable[[Batch], object]] = {
        "plain torch loop": lambda batch: plain.update(batch, generator),
        "dipole_ray": lambda batch: agent.update(batch, diagnostics=False),
        "dipole_ray, all metrics": lambda batch: reporting.update(batch),
    }
    rates: dict[str, list[Rates]] = {name: [] for name in sides}
    for round_index in range(options.rounds + 1):
        for name, update in sides.items():
            pair = update_rates(update, batches, options.seconds, options.device)
            if round_index > 0:  # The first round warms up.
                rates[name].append(pair)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "preset": options.preset,
        **schema.to_json(),
        "threads": options.threads,
        "device": options.device,
        "seconds_per_side_and_round": options.seconds,
        "largest_relative_loss_difference": difference,
        **{unit: table(rates, clock) for clock, unit in enumerate(("updates_per_s", "updates_per_cpu_s"))},
        "breakdown_ms": breakdown(agent, batches, max(5, round(rates["dipole_ray"][-1][0] * options.seconds))),
    }


def table(rates: dict[str, list[Rates]], clock: int) -> dict[str, dict[str, float]]:
    """Return the summary of each side by one of the two clocks, and of the ratio within each round."""
    columns = {name: [pair[clock] for pair in pairs] for name, pairs in rates.items()}
    ratios = [ours / theirs for ours, theirs in zip(columns["dipole_ray"], columns["plain torch loop"], strict=True)]
    return {name: summary(values) for name, values in {**columns, "dipole_ray / plain": ratios}.items()}


def summary(values: list[float]) -> dict[str, float]:
    spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {"n": len(values), **{name: round(value, 3) for name, value in spread.items()}}


def show(result: dict[str, Any]) -> None:
    print(
        f"preset {result['preset']}, observations {result['observation_dim']}, actions {result['action_dim']}, "
        f"{result['threads']} thread(s), {result['machine']['cpu']}, torch {result['versions']['torch']}"
    )
    print(f"largest relative difference of a loss over 5 updates: {result['largest_relative_loss_difference']:.1e}\n")
    for unit, title in {"updates_per_s": "updates/s", "updates_per_cpu_s": "updates per CPU-second"}.items():
        print(f"{title:28}{'n':>4}{'median':>10}{'min':>10}{'max':>10}")
        for name, row in result[unit].items():
            print(f"{name:28}{row['n']:>4}{row['median']:>10.2f}{row['min']:>10.2f}{row['max']:>10.2f}")
        print()
    total = sum(result["breakdown_ms"].values())
    print(f"{'one update of dipole_ray':46}{'ms':>8}{'share':>8}")
    for name, milliseconds in result["breakdown_ms"].items():
        print(f"{name:46}{milliseconds:>8.2f}{milliseconds / total:>8.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    presets = [name for name in PRESETS if method_name(AgentConfig.preset(name)) == "DIPOLE"]
    parser.add_argument("--preset", default="paper", choices=presets)
    parser.add_argument("--observation-dim", type=int, default=69, help="humanoidmaze: 69")
    parser.add_argument("--action-dim", type=int, default=21, help="humanoidmaze: 21")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads within an operation")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each side in each round")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    options = parser.parse_args()
    result = measure(options)
    show(result)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
