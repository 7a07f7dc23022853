"""Measure S agents in one process: each by its own updates in turn, compiled and readable, and all as one stacked step.

    python -m benchmarks.speed.seeds --json benchmarks/results/speed_seeds-2026-11-27.json

Agents of all ways start from the same weights and take the same batches and noise; that they end alike is checked
first. Rounds alternate, so that a change of the machine's load meets all. Counted are updates, each agent's for
itself, per second of one core's processor time, which a neighbour takes little of. On a CPU stacking saves only what
Python and torch spend on starting operations. On a GPU `benchmarks/gpu/check.sh` measures the stacked step's graph.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.learner_speed import random_batches
from benchmarks.record import write_json
from benchmarks.speed.learner import SCHEMA, SIZES
from benchmarks.speed.timing import spread
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.dipole import DipoleAgent, DipoleConfig

UPDATES = 4
"""Of each agent in a call."""


def ways(size: str, bootstrap: str, count: int) -> dict[str, Callable[[], object]]:
    """Return what takes `UPDATES` updates of each of `count` agents, by its name."""
    config = DipoleConfig.preset("paper", hidden_dims=SIZES[size], bootstrap=bootstrap)
    kinds = [[DipoleAgent(config, SCHEMA, seed=seed) for seed in range(count)] for _ in range(3)]
    readable, compiled, members = kinds
    if not all(agent.compile() for agent in compiled):
        raise SystemExit("error: numba cannot compile here; see the warning above")
    batches = random_batches(readable[0], UPDATES)
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    stacked = CapturedUpdates(members, config.batch_size, UPDATES)

    def in_turn(agents: list[DipoleAgent]) -> None:
        for agent in agents:
            for k, batch in enumerate(batches):
                agent.update(batch, diagnostics=k == UPDATES - 1)

    found: dict[str, Callable[[], object]] = {
        "readable, in turn": lambda: in_turn(readable),
        "compiled, in turn": lambda: in_turn(compiled),
        "stacked": lambda: stacked.update_on([joined] * count),
    }
    for call in found.values():
        call()
    for left, *others in zip(*kinds, strict=True):
        if (worst := max(_difference(left, other) for other in others)) > 1e-4:
            raise SystemExit(f"error: parameters differ by {worst} after {UPDATES} updates")
    return found


def _difference(left: DipoleAgent, right: DipoleAgent) -> float:
    """Return the largest distance of two tensors of parameters, relative to the first's length or to 1."""
    pairs: list[tuple[Tensor, Tensor]] = list(zip(left._parameters, right._parameters, strict=True))
    return max(float((one - other).detach().norm() / one.detach().norm().clamp(min=1.0)) for one, other in pairs)


def measure(size: str, bootstrap: str, counts: list[int], rounds: int, seconds: float) -> dict[str, Any]:
    """Return rates by number of agents and way, and the ratios of neighbouring rounds to compiled updates in turn."""
    by_count = {count: ways(size, bootstrap, count) for count in counts}
    found: dict[int, dict[str, list[float]]] = {count: {} for count in counts}
    for _ in range(rounds):
        for count, calls in by_count.items():
            for name, call in calls.items():
                start, done, until = time.process_time(), 0, time.perf_counter() + seconds
                while time.perf_counter() < until or not done:
                    call()
                    done += UPDATES * count
                found[count].setdefault(name, []).append(done / (time.process_time() - start))
    rows: list[dict[str, Any]] = []
    for count, rates in found.items():
        ratios = {
            f"{name} / compiled, in turn": spread(list(np.divide(values, rates["compiled, in turn"])))
            for name, values in rates.items()
            if name != "compiled, in turn"
        }
        alone = found[counts[0]]["compiled, in turn"]
        ratios[f"compiled, in turn / the same with {counts[0]}"] = spread(
            list(np.divide(rates["compiled, in turn"], alone))
        )
        rows.append({"agents": count, "rates": {n: spread(v) for n, v in rates.items()}, "ratios": ratios})
    return {"size": size, "bootstrap": bootstrap, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--bootstraps", nargs="+", choices=("value", "policy"), default=["value", "policy"])
    parser.add_argument("--agents", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one way's round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = []
    for size in args.sizes:
        for bootstrap in args.bootstraps:
            parts.append(measure(size, bootstrap, args.agents, args.rounds, args.seconds))
            for row in parts[-1]["rows"]:
                numbers = {**row["rates"], **row["ratios"]}
                texts = [f"{name} {x['median']:.2f} [{x['min']:.2f}, {x['max']:.2f}]" for name, x in numbers.items()]
                print(f"{size} {bootstrap}, {row['agents']} agents: {'; '.join(texts)}", flush=True)
    numbers = {"unit": "updates per second of a core, all agents' together", "load": os.getloadavg(), "parts": parts}
    write_json(args.json, f"python -m benchmarks.speed.seeds {' '.join(sys.argv[1:])}".strip(), numbers)


if __name__ == "__main__":
    main()
