"""Evaluate the policies of `benchmarks.gpu.cell`, trained where there are no simulators.

    python -m benchmarks.cell FOLDER --part cell --out benchmarks/results
    python -m benchmarks.cell FOLDER --part study --out benchmarks/results

The cell: omega 0 to 4 and the cloned field, 1 and 32 candidates, of every number of updates that was saved. The study
of adapters: omega 0, 1 and 4 and the cloned backbones, one candidate, each training seed on start states of its own.
What is evaluated is written into `--work`, by which the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.cell.__main__ import NAME
from benchmarks.gpu.cell.fields import METHODS
from benchmarks.gpu.cell.policies import unpack
from benchmarks.record import write_record
from dipole_ray.envs.make import env_dims
from dipole_ray.evaluation.cells import EvalConfig
from dipole_ray.evaluation.parallel import evaluate_policy
from dipole_ray.evaluation.statistics import (
    mean,
    mean_difference,
    stratified_interval,
    wilson_interval,
)
from dipole_ray.evaluation.table import rows_of
from dipole_ray.files.checkpoint import steps_of
from dipole_ray.serving.policy import load_policy
from dipole_ray.tables import markdown_table, with_interval

OMEGAS = {"cell": (0.0, 0.5, 1.0, 2.0, 4.0), "study": (0.0, 1.0, 4.0)}
CANDIDATES = {"cell": (1, 32), "study": (1,)}
EPISODES = {"cell": 50, "study": 20}
LABELS = {"full": "two networks", "scratch-16": "lora-16 from scratch", "clone": "cloned backbone"}


def evaluated(part: str, checkpoint: Path, episodes: int) -> list[dict[str, Any]]:
    """Return the rows of a policy; its backbone is evaluated once a seed."""
    run, seed = checkpoint.parent.parent.name, 0
    if part == "study":
        seed = int(run.rpartition("-seed")[2])
    trained = load_policy(checkpoint)
    config = EvalConfig(
        episodes=episodes,
        omegas=OMEGAS[part],
        candidates=CANDIDATES[part],
        bc=part == "cell" or run.startswith("lora-4"),
        seed=seed,
    )
    results = evaluate_policy(trained, config)
    rows = rows_of(results, trained.policy.config, config.confidence, env_dims(trained.env).has_success)
    about = {"run": run, "seed": seed, "updates": trained.learner_steps}
    return [{**about, **row} for row in rows]


def gathered(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of all policies of a part."""
    for file in sorted(args.folder.glob(f"{args.part}-*.tar")):
        if not (args.work / f".{file.name}").exists():
            unpack(file, args.work)
            (args.work / f".{file.name}").touch()
    found, rows = sorted(args.work.glob(f"{args.part}/**/checkpoints/[0-9]*"), key=steps_of, reverse=True), []
    for checkpoint in (each for each in found if not args.updates or steps_of(each) in args.updates):
        done = args.work / f"{args.part}-{checkpoint.parent.parent.name}-{checkpoint.name}-{args.episodes}.json"
        if not done.exists():
            done.write_text(json.dumps(evaluated(args.part, checkpoint, args.episodes)))
            print(done.read_text(), flush=True)
        rows += json.loads(done.read_text())
    return rows


def table_of_cell(rows: Sequence[dict[str, Any]]) -> str:
    """Return success by updates, policy and candidates, in per cent."""
    lines = []
    for updates in sorted({row["updates"] for row in rows}):
        own = [row for row in rows if row["updates"] == updates]
        for omega in (None, *OMEGAS["cell"]):
            cells = [next(r for r in own if r["omega"] == omega and r["candidates"] == n) for n in CANDIDATES["cell"]]
            name, shown = ("BC", "-") if omega is None else ("DIPOLE", f"{omega:g}")
            shares = [[100 * row[key] for key in ("success", "success_low", "success_high")] for row in cells]
            lines.append([f"{updates:,}".replace(",", " "), name, shown, *(with_interval(*s, ".0f") for s in shares)])
    head = ["updates", "policy", "omega", *(f"{n} candidate{'s' * (n > 1)}" for n in CANDIDATES["cell"])]
    return "\n".join(markdown_table(head, lines, words=2))


def table_of_study(rows: Sequence[dict[str, Any]]) -> str:
    """Return success by method and omega with intervals over seeds, and differences from two networks by seed."""
    lines = []
    for updates in sorted({row["updates"] for row in rows}):
        scores: dict[tuple[str, float | None], list[np.ndarray]] = {}
        pooled: dict[tuple[str, float | None], tuple[int, int]] = {}
        for row in sorted((row for row in rows if row["updates"] == updates), key=lambda row: row["seed"]):
            method = "clone" if row["omega"] is None else row["run"].rpartition("-seed")[0]
            key = method, row["omega"]
            before = scores.get(key, [np.zeros(0)])[0]
            scores[key] = [np.append(before, 100 * row["success"])]
            told, episodes = pooled.get(key, (0, 0))
            pooled[key] = told + round(row["success"] * row["episodes"]), episodes + row["episodes"]
        for method, omega in [("clone", None), *((method, omega) for omega in OMEGAS["study"] for method in METHODS)]:
            own, full = scores.get((method, omega)), scores.get(("full", omega))
            if own is None:
                continue
            share = with_interval(float(mean(own)), *stratified_interval(mean, own), ".0f")
            apart = "-"
            if full is not None and method != "full" and len(full[0]) == len(own[0]):
                ends = stratified_interval(mean_difference, own, full, paired=True)
                apart = with_interval(float(mean_difference(own, full)), *ends, "+.0f")
            wilson = [100 * end for end in wilson_interval(*pooled[method, omega])]
            cells = [
                f"{updates:,}".replace(",", " "),
                LABELS.get(method, method),
                "-" if omega is None else f"{omega:g}",
            ]
            per_seed = ", ".join(f"{one:.0f}" for one in own[0])
            lines.append([*cells, share, f"{wilson[0]:.0f} to {wilson[1]:.0f}", per_seed, apart])
    head = ["updates", "method", "omega", "success", "Wilson, episodes pooled", "by seed", "from two networks"]
    return "\n".join(markdown_table(head, lines, words=2))


TABLES = {"cell": table_of_cell, "study": table_of_study}
TITLES = {
    "cell": ("gpu_cell", "A cell of the paper's protocol: cube-single, task 2"),
    "study": ("gpu_cell_adapters", "Adapters against two networks on cube-single, task 2, from the same advantages"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what benchmarks.gpu.cell wrote")
    parser.add_argument("--part", choices=TABLES, required=True)
    parser.add_argument("--updates", type=int, nargs="*", help="only policies of so many updates")
    parser.add_argument("--episodes", type=int, help="of each policy at each omega and number of candidates")
    parser.add_argument("--work", type=Path, default=Path("/tmp/cell-evaluation"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.episodes = args.episodes or EPISODES[args.part]
    args.work.mkdir(parents=True, exist_ok=True)
    rows, training = gathered(args), json.loads((args.folder / NAME).read_text())
    table = TABLES[args.part](rows)
    print(table)
    if args.out is not None:
        name, title = TITLES[args.part]
        own = {key: value for key, value in training.items() if key not in TABLES}
        trained = {**own, **training[args.part]}
        command = f"python -m benchmarks.cell FOLDER --part {args.part}"
        write_record(args.out, name, command, {"training": trained, "rows": rows}, title, table)


if __name__ == "__main__":
    main()
