"""What does the second network cost? Updates per second and act latency of one policy network against two.

    python -m benchmarks.two_networks --threads 1 --out benchmarks/results

The one-network agents are IFQL (the same critics and V, one unweighted field) and exp weighting; the two-network agent
is DIPOLE. All bootstrap from V(s'), so that an update differs in the policy networks alone; DIPOLE as the paper has it
(a' from pi+) is shown beside them. Rounds of all agents alternate within one run; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learner_speed import random_batches
from benchmarks.record import write_record
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.dipole import DipoleAgent
from dipole_ray.columns import Schema

SCHEMA = Schema(28, 5)  # cube-single
SIZES = {"2 x 128": (128, 128), "3 x 512": (512, 512, 512)}
LEARNERS: dict[str, dict[str, Any]] = {
    "one network (IFQL)": {"weight_scheme": "bc", "bootstrap": "value"},
    "one network (exp)": {"weight_scheme": "exp", "bootstrap": "value"},
    "two networks (DIPOLE)": {"weight_scheme": "dipole", "bootstrap": "value"},
    "two networks (DIPOLE, a' from pi+)": {"weight_scheme": "dipole"},
}
BASE = "one network (IFQL)"
ROWS = (1, 16, 256)
CANDIDATES = (1, 32)


def per_second(work: Callable[[], object], seconds: float) -> float:
    """Return calls per second of processor time, over at least `seconds` of it."""
    start, calls = time.process_time(), 0
    while time.process_time() - start < seconds:
        work()
        calls += 1
    return calls / (time.process_time() - start)


def ratios(rates: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Return each kind's median rate, and its cost against `base` round by round: median and range."""
    found = {}
    for name, values in rates.items():
        costs = [one / own for own, one in zip(values, rates[base], strict=True)]
        found[name] = {
            "per_core_s": round(statistics.median(values), 2),
            "cost": round(statistics.median(costs), 3),
            "cost_min": round(min(costs), 3),
            "cost_max": round(max(costs), 3),
        }
    return found


def learning(size: tuple[int, ...], rounds: int, seconds: float, device: str) -> dict[str, dict[str, float]]:
    """Return the cost of an update of every learner."""
    agents = {
        name: DipoleAgent(AgentConfig(hidden_dims=size, **settings), SCHEMA, seed=0, device=device)
        for name, settings in LEARNERS.items()
    }
    batches = random_batches(agents[BASE], 1)
    rates: dict[str, list[float]] = {name: [] for name in agents}
    for _ in range(rounds):
        for name, agent in agents.items():
            rates[name].append(per_second(partial(agent.update, batches[0], diagnostics=False), seconds))
    return ratios(rates, BASE)


def acting(size: tuple[int, ...], rounds: int, seconds: float, device: str) -> list[dict[str, Any]]:
    """Return the milliseconds of an action through one field (omega 0) and through two (omega 1)."""
    agent = DipoleAgent(AgentConfig(hidden_dims=size), SCHEMA, seed=0, device=device)
    lines = []
    for rows, candidates in itertools.product(ROWS, CANDIDATES):
        observations = np.random.default_rng(0).normal(size=(rows, SCHEMA.observation_dim)).astype(np.float32)
        rates: dict[str, list[float]] = {"one": [], "two": []}
        for _ in range(rounds):
            for name, omega in (("one", 0.0), ("two", 1.0)):
                call = partial(agent.sample_actions, observations, omega, candidates)
                rates[name].append(per_second(call, seconds))
        both = ratios(rates, "one")
        lines.append(
            {
                "observations": rows,
                "candidates": candidates,
                "one_ms": round(1e3 / both["one"]["per_core_s"], 3),
                "two_ms": round(1e3 / both["two"]["per_core_s"], 3),
                **{key: both["two"][key] for key in ("cost", "cost_min", "cost_max")},
            }
        )
    return lines


def markdown(results: dict[str, Any]) -> str:
    """Return the tables a person reads."""
    lines = ["| networks | agent | updates per core-second | cost of an update (range) |", "|---|---|--:|--:|"]
    for size, result in results.items():
        for name, row in result["learning"].items():
            lines.append(f"| {size} | {name} | {row['per_core_s']:.1f} | {_cost(row)} |")
    lines += ["", "| networks | observations | candidates | pi+ alone, ms | both, ms | cost (range) |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for size, result in results.items():
        for row in result["acting"]:
            cells = [size, row["observations"], row["candidates"], row["one_ms"], row["two_ms"], _cost(row)]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _cost(row: dict[str, float]) -> str:
    return f"{row['cost']:.2f} ({row['cost_min']:.2f}-{row['cost_max']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time of each agent in a round of updates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {
        name: {
            "learning": learning(size, args.rounds, args.seconds, args.device),
            "acting": acting(size, args.rounds, args.seconds / 4, args.device),
        }
        for name, size in SIZES.items()
    }
    command = f"python -m benchmarks.two_networks --rounds {args.rounds} --threads {args.threads}"
    about = {"device": args.device, "threads": args.threads, "rounds": args.rounds, **SCHEMA.to_json()}
    tables = markdown(results)
    write_record(args.out, "two_networks", command, {**about, "results": results}, "What two networks cost", tables)
    print(tables)


if __name__ == "__main__":
    main()
