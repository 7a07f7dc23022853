"""Measure acting on one core: the networks packed for the compiled kernels against the readable ones.

    python -m benchmarks.speed.acting --json benchmarks/results/acting-2026-11-27.json

Both are the same policy in one process, in turns, timed by processor time: best of N candidates for B states, at both
sizes, by pi+ alone (omega 0) and by both fields (omega 1). Their actions from the same noise are compared, too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import write_json
from benchmarks.speed.timing import core_milliseconds
from dipole_ray.agents.agent import make_policy
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.policy import Policy
from dipole_ray.columns import Schema

CASES = {"best of 32, one state": (1, 32), "one state": (1, 1), "4 states of 16": (4, 16), "50 states": (50, 1)}


def readable(policy: Policy, observations: Tensor, noise: Tensor, omega: float) -> Tensor:
    """Act as `sample_actions` does without kernels."""
    with torch.no_grad():
        return policy.best(observations, policy.from_noise(observations, noise, omega, "guided"))


def measure(policy: Policy, states: int, candidates: int, omega: float, args: argparse.Namespace) -> dict[str, Any]:
    """Return the times of both ways, and how far their actions are apart."""
    observations = torch.randn(states, policy.sizes.observation_dim, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)

    def ours() -> Tensor:
        return policy.sample_actions(observations, omega, candidates, generator)

    def theirs() -> Tensor:
        return readable(policy, observations, policy.normal((states, candidates, args.action_dim), generator), omega)

    apart = 0.0
    for _ in range(20):
        state = generator.get_state()
        actions = ours()
        generator.set_state(state)
        apart = max(apart, float((actions - theirs()).abs().max()))
    ways: dict[str, Callable[[], object]] = {"readable": theirs, "packed": ours}
    found = core_milliseconds(ways, args.rounds, args.seconds)
    ratio = found["readable"]["median"] / found["packed"]["median"]
    return {"core_ms": found, "ratio": ratio, "largest_difference": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--observation-dim", type=int, default=28)
    parser.add_argument("--action-dim", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each way in each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    rows = []
    print(f"{'':10}{'':24}{'omega':>6}{'readable':>12}{'packed':>12}{'ratio':>8}{'difference':>12}")
    for preset, size in (("paper", "3 x 512"), ("small", "2 x 128")):
        policy = make_policy(AgentConfig.preset(preset), Schema(args.observation_dim, args.action_dim), seed=0)
        for name, (states, candidates) in CASES.items():
            for omega in (0.0, 1.0):
                row = measure(policy, states, candidates, omega, args)
                rows.append({"size": size, "states": states, "candidates": candidates, "omega": omega, **row})
                before, after = (row["core_ms"][way]["median"] for way in ("readable", "packed"))
                numbers = f"{before:>9.3f} ms{after:>9.3f} ms{row['ratio']:>8.2f}{row['largest_difference']:>12.1e}"
                print(f"{size:10}{name:24}{omega:>6g}{numbers}", flush=True)
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    write_json(args.json, "python -m benchmarks.speed.acting", {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
