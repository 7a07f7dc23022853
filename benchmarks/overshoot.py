"""Where does greediness overshoot? One set of networks over omega: score, actions at the bounds, distance to the data.

    python -m benchmarks.overshoot runs/bench/small_pointmaze/pointmaze-medium/dipole/seed-* --out benchmarks/results

Nothing is trained: each run folder's newest checkpoint plays the episodes of every omega. How far actions are from the
data is measured where the policy goes: of the 32 rows whose (normalized) observations are nearest, the one with the
nearest action, in units of the action space (its edges are 2 long). The same measure of dataset rows against the others
is the yardstick: 1 means as far as the data are from each other. Actions and states are those of each episode's first
steps (`--first-steps`), so that a lost episode, which is long in a maze, weighs no more than one that arrives.

Shapes: Q queries, K nearest rows, O observation dim, A action dim.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from benchmarks.record import brief, summary, write_record
from dipole_ray.agents.policy import Policy
from dipole_ray.data.dataset import open_dataset
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import evaluate_cell
from dipole_ray.evaluation.table import summarize
from dipole_ray.plots import style
from dipole_ray.plots.panels import Line, Panel, draw_panels
from dipole_ray.runs.config import load
from dipole_ray.runs.prepare import prepare_dataset
from dipole_ray.serving.policy import load_policy

NEIGHBOURS, QUERIES, AT_BOUND = 32, 2000, 1 - 1e-6
MEASURES = ("score", "action_bound_fraction", "action_distance", "observation_distance")


class Observed:
    """A policy that keeps what it saw and did in the first steps of the episodes, which it plays all at once."""

    def __init__(self, policy: Policy, first_steps: int) -> None:
        self.policy, self.device, self.first_steps = policy, policy.device, first_steps
        self.observations: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []

    def sample_actions(self, observations: Tensor, **how: Any) -> Tensor:
        """Act as the policy does."""
        actions = self.policy.sample_actions(observations, **how)
        if len(self.actions) < self.first_steps:
            self.observations.append(observations.numpy().copy())
            self.actions.append(actions.cpu().numpy())
        return actions


class Neighbourhood:
    """The dataset's rows, asked for the nearest."""

    def __init__(self, observations: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> None:
        self._mean, self._std = observations.mean(axis=0), observations.std(axis=0) + 1e-6
        self._rows, self._actions = self._scaled(observations), actions
        self._tree = KDTree(self._rows)
        own = rng.choice(len(actions), min(QUERIES, len(actions)), replace=False)
        self.yardstick = [float(np.mean(part)) for part in self._distances(self._rows[own], actions[own], skip=1)]

    def _scaled(self, observations: np.ndarray) -> np.ndarray:
        return (observations - self._mean) / self._std

    def _distances(self, rows: np.ndarray, actions: np.ndarray, skip: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the distances (Q,) to the nearest action of the K nearest rows, and to the nearest row."""
        far, index = self._tree.query(rows, k=NEIGHBOURS + skip)
        near = np.linalg.norm(self._actions[index[:, skip:]] - actions[:, None], axis=-1)
        return near.min(axis=1), far[:, skip]

    def ratios(self, policy: Observed, rng: np.random.Generator) -> tuple[float, float]:
        """Return the mean distances of actions and observations of what was played, in units of the yardstick."""
        observations, actions = np.concatenate(policy.observations), np.concatenate(policy.actions)
        some = rng.choice(len(actions), min(QUERIES, len(actions)), replace=False)
        found = self._distances(self._scaled(observations[some]), actions[some], skip=0)
        return (
            float(found[0].mean()) / max(self.yardstick[0], 1e-9),
            float(found[1].mean()) / max(self.yardstick[1], 1e-9),
        )


def neighbourhood_of(run: Path, rng: np.random.Generator) -> Neighbourhood:
    """Return the neighbourhood in the dataset a run learned from, thinned to 200 000 rows."""
    config = load(run / "run.yaml")
    folder = prepare_dataset(config.data, config.env)
    assert folder is not None, "a run without a dataset has no data to be far from"
    observations, actions = [], []
    for part in open_dataset(folder).iter_rows():
        steps = part["remaining"] > 0
        observations.append(part["observations"][steps])
        actions.append(part["actions"][steps])
    rows, acted = np.concatenate(observations), np.concatenate(actions)
    some = rng.choice(len(rows), min(200_000, len(rows)), replace=False)
    return Neighbourhood(rows[some], acted[some], rng)


def play(
    run: Path, omegas: list[float], candidates: list[int], episodes: int, first_steps: int
) -> dict[str, dict[str, float]]:
    """Return the measures of every cell of one run."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    trained, near = load_policy(run), neighbourhood_of(run, rng)
    cells = [Cell("guided", omega, count) for count in candidates for omega in omegas]
    if trained.policy.has_bc:
        cells = [Cell("bc", None, count) for count in candidates] + cells
    found = {}
    for cell in cells:
        policy = Observed(trained.policy, first_steps)
        row = summarize(evaluate_cell(policy, trained.env, cell, episodes=episodes, num_envs=episodes, seed=4000))
        score = row["return"] if row["success"] is None else 100 * row["success"]
        distances = near.ratios(policy, rng)
        at_bound = float(np.mean(np.abs(np.concatenate(policy.actions)) >= AT_BOUND))
        found[str(cell)] = dict(zip(MEASURES, (score, at_bound, *distances), strict=True))
        print(f"{run.name}: {cell}: score {score:.1f}, distance {distances[0]:.2f}", flush=True)
    return found


def markdown(cells: dict[str, dict[str, Any]]) -> str:
    """Return the table a person reads."""
    lines = [
        "Means over seeds with 95 % bootstrap intervals. Distances are in units of the data's own; they and the share",
        "of action components at the bound are of each episode's first steps.",
        "",
        "| cell | " + " | ".join(name.replace("_", " ") for name in MEASURES) + " |",
    ]
    lines.append("|---|" + "--:|" * len(MEASURES))
    for cell, numbers in cells.items():
        lines.append(f"| {cell} | " + " | ".join(brief(numbers[name]) for name in MEASURES) + " |")
    return "\n".join(lines)


def picture(cells: dict[str, dict[str, Any]], omegas: list[float], candidates: list[int], path: Path) -> None:
    """Draw every measure over omega."""
    titles = {"score": "score", "action_bound_fraction": "actions at the bound"}
    titles |= {"action_distance": "actions from the data", "observation_distance": "states from the data"}
    panels = []
    for measure, title in titles.items():
        lines = []
        for count, colour in zip(candidates, style.CYCLE, strict=False):
            rows = [cells[str(Cell("guided", omega, count))][measure] for omega in omegas]
            middle, low, high = ([row[end] for row in rows] for end in ("mean", "low", "high"))
            label = f"{count} candidate{'s' * (count > 1)}"
            lines.append(Line(label=label, colour=colour, x=omegas, y=middle, low=low, high=high))
        unit = "in units of the data's own" if measure.endswith("distance") else ""
        panels.append(Panel(title=title, xlabel="greediness \u03c9", ylabel=unit, lines=lines))
    draw_panels(panels, path, columns=4, title="One set of networks a seed, over \u03c9")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of one task, one a seed")
    parser.add_argument("--omegas", type=float, nargs="+", default=[-1, -0.5, 0, 0.5, 1, 2, 4, 8, 16])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--first-steps", type=int, default=100, help="steps of each episode that are measured")
    parser.add_argument("--processes", type=int, default=2, help="runs that play at the same time")
    parser.add_argument("--name", default="overshoot")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    play_run = partial(
        play, omegas=args.omegas, candidates=args.candidates, episodes=args.episodes, first_steps=args.first_steps
    )
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        played = list(pool.map(play_run, args.runs))
    cells = {cell: {name: summary([run[cell][name] for run in played]) for name in MEASURES} for cell in played[0]}
    shown = dict.fromkeys("/".join([*run.parts[-5:-1], "seed-*"]) for run in args.runs)  # wherever the runs lie
    options = f"--episodes {args.episodes} --first-steps {args.first_steps} --name {args.name}"
    command = f"python -m benchmarks.overshoot {' '.join(f'runs/{run}' for run in shown)} {options}"
    numbers, title = {"runs": [run.name for run in args.runs], "cells": cells}, "Where greediness overshoots"
    picture(cells, args.omegas, args.candidates, args.out / f"{args.name}.png")
    write_record(args.out, args.name, command, numbers, title, markdown(cells) + f"\n\n![]({args.name}.png)")
    print(markdown(cells))


if __name__ == "__main__":
    main()
