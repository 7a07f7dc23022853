"""Evaluate the policies of `benchmarks.gpu.cell`, trained where there are no simulators.

    python -m benchmarks.cell FOLDER --part cell --out benchmarks/results
    python -m benchmarks.cell FOLDER --part study --out benchmarks/results

The cell: omega 0 to 4 and the cloned field, 1 and 32 candidates, of every number of updates that was saved. The study
of adapters: omega 0, 1 and 4 and the cloned backbones, one candidate, each training seed on start states of its own.
What is played is written into `--work`, five episodes at a time, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.cell_report import NAMES, READING, TABLES, TITLES, Row, draw, trained_text, updates_of
from benchmarks.gpu.cell.__main__ import NAME
from benchmarks.gpu.cell.policies import unpack
from benchmarks.record import write_record
from dipole_ray.envs.make import make_env
from dipole_ray.evaluation.cells import Cell, EvalConfig, grid
from dipole_ray.evaluation.play import evaluate_cells
from dipole_ray.files.checkpoint import steps_of
from dipole_ray.serving.policy import TrainedPolicy, load_policy

OMEGAS = {"cell": (0.0, 0.5, 1.0, 2.0, 4.0), "study": (0.0, 1.0, 4.0)}
CANDIDATES = {"cell": (1, 32), "study": (1,)}
EPISODES = {"cell": 50, "study": 20}
BLOCK, NUM_ENVS = 5, 5
"""Episodes of a cell that are kept together, and environments that act together: each takes 250 MB, and as long to make
as an episode to play."""
Envs = Callable[[], Sequence[Any]]


def played(trained: TrainedPolicy, envs: Sequence[Any], cells: Sequence[Cell], block: range, seed: int) -> list[Row]:
    """Return what episodes with these numbers of some cells gave."""
    results = evaluate_cells(trained.policy, envs, cells, episodes=block, seed=seed)
    return [
        {
            "omega": result.cell.omega,
            "candidates": result.cell.candidates,
            "success": [False] * len(block) if result.successes is None else result.successes.tolist(),
            "length": result.lengths.tolist(),
        }
        for result in results
    ]


def evaluated(args: argparse.Namespace, checkpoint: Path, envs: Envs, episodes: int) -> list[Row]:
    """Return the rows of a policy; what was played before is read, and a backbone is evaluated once a seed."""
    run = checkpoint.parent.parent.name
    seed = int(run.rpartition("-seed")[2]) if args.part == "study" else 0
    trained, has_bc = load_policy(checkpoint), args.part == "cell" or run.startswith("lora-4-")
    whole: dict[tuple[float | None, int], Row] = {}
    for candidates in CANDIDATES[args.part]:
        omegas = OMEGAS[args.part] if args.omegas is None else tuple(args.omegas)
        cells = grid(EvalConfig(omegas=omegas, candidates=(candidates,), bc=has_bc), has_bc)
        for first in range(0, episodes, BLOCK):
            block = range(first, min(first + BLOCK, episodes))
            name = f"{args.part}-{run}-{checkpoint.name}-{candidates}-{block.start}-{block.stop}.json"
            if not (args.work / name).exists():
                found = played(trained, envs(), cells, block, seed)
                (args.work / name).write_text(json.dumps(found))
                print(name, {row["omega"]: sum(row["success"]) for row in found}, flush=True)
            for row in json.loads((args.work / name).read_text()):
                own = whole.setdefault((row["omega"], candidates), {**row, "success": [], "length": []})
                own["success"] += row["success"]
                own["length"] += row["length"]
    about = {"run": run, "seed": seed, "updates": trained.learner_steps}
    return [{**about, **row} for row in whole.values()]


def turn_of(checkpoint: Path) -> tuple[int, str]:
    """Return what policies are evaluated by: those with the most updates first, all methods of a seed together."""
    return -steps_of(checkpoint), checkpoint.parent.parent.name.rpartition("-seed")[2]


def gathered(args: argparse.Namespace) -> list[Row]:
    """Return the rows of all policies of a part."""
    for file in sorted(args.folder.glob(f"{args.part}-*.tar")):
        if not (args.work / f".{file.name}").exists():
            unpack(file, args.work)
            (args.work / f".{file.name}").touch()
    found = sorted(args.work.glob(f"{args.part}/**/checkpoints/[0-9]*"), key=turn_of)
    found = [each for each in found if not args.updates or steps_of(each) in args.updates]
    if args.seeds:
        found = [each for each in found if int(turn_of(each)[1]) in args.seeds]
    torch.set_num_threads(1)
    with ExitStack() as closing:
        env = load_policy(found[0]).env
        envs = cache(lambda: [closing.enter_context(make_env(env)) for _ in range(NUM_ENVS)])
        for episodes in (*range(BLOCK, args.episodes, BLOCK), args.episodes):  # no policy is far ahead of another
            rows = [row for checkpoint in found for row in evaluated(args, checkpoint, envs, episodes)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what benchmarks.gpu.cell wrote")
    parser.add_argument("--part", choices=TABLES, required=True)
    parser.add_argument("--updates", type=int, nargs="*", help="only policies of so many updates")
    parser.add_argument("--seeds", type=int, nargs="*", help="only these of the study: for processes side by side")
    parser.add_argument("--omegas", type=float, nargs="+", help="only these in what is not played yet: to save time")
    parser.add_argument("--episodes", type=int, help="of each policy at each omega and number of candidates")
    parser.add_argument("--work", type=Path, help="where policies are unpacked and episodes noted (FOLDER/played)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.episodes = args.episodes or EPISODES[args.part]
    args.work = args.work or args.folder / "played"
    args.work.mkdir(parents=True, exist_ok=True)
    rows, training = gathered(args), json.loads((args.folder / NAME).read_text())
    table = TABLES[args.part](rows)
    print(table)
    if args.out is not None:
        shared = {key: value for key, value in training.items() if key not in TABLES}
        trained = {**shared, **training[args.part]}
        picture = draw(args.part, rows, trained, args.out)
        text = "\n\n".join((trained_text(trained), table, f"![]({picture.name})", READING[args.part]))
        updates = " ".join(map(str, updates_of(rows)))
        command = f"python -m benchmarks.cell FOLDER --part {args.part} --updates {updates} --episodes {args.episodes}"
        numbers = {"training": trained, "rows": rows}
        write_record(args.out, NAMES[args.part], command, numbers, TITLES[args.part], text)


if __name__ == "__main__":
    main()
