"""The small side of the experiment, on a CPU: an MLP with critics in pointmaze, and small heads on the judged plans.

    python -m benchmarks.gradients.small --plans build/gradients/plans.npz --out build/gradients

Pointmaze is as in the suite `small_beta`: 50 000 rows of the noisy expert, 2 x 128, advantages of critics that learn at
the same time, divided by their running deviation; every scheme of a seed begins with the same networks. The MLP (3 x
512, the car's status) and the head `tiny` learn from the file of judged plans that the large policy learns from, from a
clone, for as many updates.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.attempt import attempt
from benchmarks.gpu.gradients import CLONE_UPDATES, UPDATES, line
from benchmarks.gradients.judged import HELD_OUT, Case, JudgedPlans, Learners
from benchmarks.gradients.measure import SCHEMES, Batch, Probe, Scheme, trained
from benchmarks.record import write_json
from dipole_ray.agents.adapters import SeparateFields
from dipole_ray.agents.agent import Agent, make_agent
from dipole_ray.agents.backbones import LinearFields
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.networks import Sizes
from dipole_ray.data.dataset import open_dataset
from dipole_ray.envs.make import EnvConfig
from dipole_ray.replay.replay import Replay
from dipole_ray.runs.config import DataConfig
from dipole_ray.runs.prepare import prepare_dataset

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
MAZE_BATCH, MAZE_UPDATES = 128, 1500
AT_ONCE = 50
"""Batches that are sampled at a time."""


def separate(names: tuple[str, ...], sizes: Sizes, generator: torch.Generator) -> SeparateFields:
    """Return an MLP a field, so that each has gradients of its own; pi+ is drawn first in every scheme."""
    return SeparateFields(names, [LinearFields((name,), sizes, generator) for name in names])


def maze_data(seed: int) -> Path:
    """Return the folder of rows that the collector made with this seed."""
    folder = prepare_dataset(DataConfig(collect_transitions=50_000, collect_seed=seed), EnvConfig(id=MAZE))
    assert folder is not None
    return folder


class Maze:
    """Pointmaze's rows, and others of its collector that nothing is learned from."""

    def __init__(self) -> None:
        self.folder, other = (maze_data(seed) for seed in (10, 11))
        self.schema = open_dataset(self.folder).schema
        self.config = AgentConfig.preset(
            "small",
            advantage_normalization="running_std",
            observation_normalization="dataset",
            discount=0.995,
            n_step=30,
            reward_scale=10.0,
            reward_shift=10.0,
            batch_size=MAZE_BATCH,
        )
        rows = {name: torch.from_numpy(column) for name, column in self.replay(0, other).sample(HELD_OUT).items()}
        self.probe = Probe.of(rows["observations"], rows["actions"], torch.zeros(HELD_OUT, dtype=torch.bool))

    def replay(self, seed: int, folder: Path | None = None) -> Replay:
        """Return a replay of the rows to learn from, or of others, whose draws are of this seed."""
        windows = {"n_step": self.config.n_step, "discount": self.config.discount}
        return Replay(schema=self.schema, offline=[folder or self.folder], seed=seed, **windows)

    def agent(self, scheme: Scheme, seed: int) -> Agent:
        """Return an untrained agent, of the same draws for every scheme."""
        config = replace(self.config, **scheme.settings())
        agent = make_agent(config, self.schema, seed=seed, make_fields=separate)
        agent.fit_observations(*self.replay(0).observation_statistics())
        return agent

    def batches(self, seed: int) -> Iterator[Batch]:
        """Draw batches without end."""
        replay = self.replay(seed)
        while True:
            drawn = replay.sample(MAZE_BATCH, AT_ONCE)
            for part in range(AT_ONCE):
                rows = slice(part * MAZE_BATCH, (part + 1) * MAZE_BATCH)
                yield {name: column[rows] for name, column in drawn.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plans", type=Path, required=True, metavar="FILE.npz", help="of benchmarks.driving.judged_plans"
    )
    parser.add_argument("--out", type=Path, default=Path("build/gradients"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--maze-updates", type=int, default=MAZE_UPDATES)
    parser.add_argument("--updates", type=int, default=UPDATES, help="on judged plans")
    parser.add_argument("--parts", nargs="+", default=["maze", "mlp", "tiny", "tiny-adapted"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    command = f"python -m benchmarks.gradients.small --plans {options.plans.name} --seeds {options.seeds}"
    for part in options.parts:
        runs = []
        for seed in range(options.seeds):
            label, run, schemes = part_of(part, seed, options)
            for scheme in schemes:
                found = attempt(f"{part}, seed {seed}, {scheme.name}", run, scheme, within_s=math.inf)
                print(f"  {line(found)}", flush=True)
                runs.append({**label, "scheme": scheme.name, **found})
            numbers = {"clone_updates": CLONE_UPDATES, "runs": runs}
            write_json(options.out / f"gradients_{part}.json", command, numbers)


def part_of(part: str, seed: int, options: argparse.Namespace) -> tuple[dict[str, Any], Any, list[Scheme]]:
    """Return a part's label, what trains by a scheme, and its schemes."""
    deadline = time.perf_counter() + 3600
    if part == "maze":
        maze, updates = Maze(), options.maze_updates
        label = {"network": "mlp 2 x 128, critics", "adapted": False, "seed": seed, "task": "pointmaze"}

        def run(scheme: Scheme) -> dict[str, Any]:
            return trained(maze.agent(scheme, seed), scheme, maze.batches(seed), maze.probe, updates, deadline)

        return label, run, SCHEMES
    network, _, adapted = part.partition("-")
    plans = JudgedPlans(options.plans, "cpu")
    case = Case(plans, network, "cpu", CLONE_UPDATES)
    learners = Learners(case, bool(adapted))
    name = "mlp 3 x 512" if network == "mlp" else network
    label = {"network": name, "adapted": bool(adapted), "seed": seed, "task": "driving"}

    def judged(scheme: Scheme) -> dict[str, Any]:
        agent, batches = learners.fresh(scheme, seed), case.batches(seed)
        return trained(agent, scheme, batches, case.probe, options.updates, deadline)

    return label, judged, plans.schemes()


if __name__ == "__main__":
    main()
