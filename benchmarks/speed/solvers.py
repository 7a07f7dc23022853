"""Measure what the flow's solver and its steps are worth: the error of actions, evaluations of the fields, and returns.

    python -m benchmarks.speed.solvers runs/pointmaze-* runs/pendulum-* --out benchmarks/results

The runs of one environment differ in their seed. The error is the mean |a - a of 200 Euler steps| over states of the
dataset's own distribution and the same noise, one candidate; returns are those of `dipole evaluate`. The runs of the
dated result, each after 4000 updates offline on 50 000 transitions made on the spot, seeds 0, 1, 2:

    dipole train quickstart seed=0 training.online_env_steps=0 name=pointmaze
    dipole train quickstart seed=0 training.online_env_steps=0 name=pendulum env.id=Pendulum-v1 agent.n_step=1 \\
        agent.discount=0.99 agent.reward_scale=0.1 agent.reward_shift=0
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import brief, summary, write_record
from dipole_ray.agents import flow
from dipole_ray.evaluation.cells import EvalConfig
from dipole_ray.evaluation.parallel import evaluate_policy
from dipole_ray.serving.policy import load_policy
from dipole_ray.tables import markdown_table

SETTINGS = [("euler", 5), ("euler", 10), ("euler", 20), ("midpoint", 2), ("midpoint", 3), ("midpoint", 5)]
EXACT = ("euler", 200)


def errors(run: Path, omegas: list[float], states: int) -> dict[tuple[str, int, float], float]:
    """Return the mean distance of actions from those of 200 Euler steps, by solver, steps and omega."""
    policy = load_policy(run).policy
    generator = torch.Generator().manual_seed(0)
    # What the networks see of the dataset, whose mean and deviation are 0 and 1 to them.
    observations = torch.randn(states, policy.sizes.observation_dim, generator=generator)
    noise = torch.randn(states, 1, policy.sizes.action_dim, generator=generator)
    fields: Any = policy.packed().networks.fields
    found = {}
    for omega in omegas:
        along = ["positive", "negative"] if omega else ["positive"]
        exact = flow.generate(fields, observations, noise, along, EXACT[1], omega, EXACT[0])
        for solver, steps in SETTINGS:
            actions = flow.generate(fields, observations, noise, along, steps, omega, solver)
            found[solver, steps, omega] = float((actions - exact).abs().mean())
    return found


def returns(run: Path, omegas: list[float], args: argparse.Namespace) -> dict[tuple[str, int, float, int], float]:
    """Return the mean success, or return where there is none, by solver, steps, omega and candidates."""
    found = {}
    config = EvalConfig(
        omegas=tuple(omegas), candidates=tuple(args.candidates), bc=False, episodes=args.episodes, seed=args.seed
    )
    for solver, steps in [*SETTINGS, EXACT]:
        for result in evaluate_policy(load_policy(run, solver=solver, denoise_steps=steps), config, progress=False):
            score = result.returns if result.successes is None else 100.0 * result.successes
            found[solver, steps, float(result.cell.omega or 0.0), result.cell.candidates] = float(np.mean(score))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--omegas", nargs="+", type=float, default=[0.0, 1.0, 2.0])
    parser.add_argument("--candidates", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--states", type=int, default=2000)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for solvers-DATE.json and solvers.md")
    args = parser.parse_args()
    by_env: dict[str, list[Path]] = defaultdict(list)
    for run in args.runs:
        by_env[load_policy(run).env.id].append(run)
    numbers: dict[str, Any] = {}
    lines: list[str] = []
    for env, runs in by_env.items():
        error = [errors(run, args.omegas, args.states) for run in runs]
        score = [returns(run, args.omegas, args) for run in runs]
        head = ["solver", "steps", "evaluations", *(f"error, omega {omega:g}" for omega in args.omegas)]
        head += [f"omega {omega:g}, {count}" for count in args.candidates for omega in args.omegas]
        rows = []
        for solver, steps in [*SETTINGS, EXACT]:
            far = [summary([one.get((solver, steps, omega), 0.0) for one in error]) for omega in args.omegas]
            good = [
                summary([one[solver, steps, omega, count] for one in score])
                for count in args.candidates
                for omega in args.omegas
            ]
            numbers.setdefault(env, []).append({"solver": solver, "steps": steps, "errors": far, "scores": good})
            evaluations = steps * (2 if solver == "midpoint" else 1)
            words = [solver, str(steps), str(evaluations), *(f"{one['mean']:.4f}" for one in far)]
            rows.append([*words, *(brief(one, 0) for one in good)])
        lines += [f"## {env}, {len(runs)} seeds", "", *markdown_table(head, rows, words=1), ""]
        print("\n".join(lines[-len(rows) - 4 :]), flush=True)
    about = "Scores are success in per cent, or the undiscounted return, mean and 95 % interval over seeds."
    text = f"{about} Columns: error by omega, then score by omega and candidates.\n\n" + "\n".join(lines)
    command = "python -m benchmarks.speed.solvers RUNS"
    settings = {name: getattr(args, name) for name in ("omegas", "candidates", "states", "episodes", "seed")}
    write_record(args.out, "solvers", command, {"settings": settings, "rows": numbers}, "Solvers of the flow", text)


if __name__ == "__main__":
    main()
