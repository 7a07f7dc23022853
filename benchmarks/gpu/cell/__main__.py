"""One cell of the paper's protocol on a GPU, and the cube study of adapters on the cores beside it.

    python -m benchmarks.gpu.cell rows.parquet --out FOLDER

The cell: OGBench cube-single, task 2, the preset `paper` with a cloned field beside, a million updates of 256 rows by
captured updates in TF32. The study: two full networks, LoRA of rank 4, 16 and 64 on a backbone cloned before, and of
rank 16 on one that is drawn, five seeds each, all from the advantages that the cell's critics give at `--advantages-at`
updates. Whatever there is when `--seconds` are over is saved. The folder then holds policies in a few tar files, which
`python -m benchmarks.cell FOLDER` evaluates where there are simulators, and one JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.attempt import attempt, provenance
from benchmarks.gpu.cell import carried, learner, policies
from benchmarks.gpu.cell.fields import SETTINGS
from benchmarks.gpu.cell.study import Study
from dipole_ray import settings

NAME = "gpu_cell.json"
TAR_BYTES = 15 << 20
STUDY_MARKS = [10_000, 20_000]
"""All 25 runs finish on 16 cores of a Xeon, where rank 64 made 66 to 76 updates/s and the others 88 to 107."""


def packed_study(study: Study, out: Path) -> list[str]:
    """Pack the policies of all runs into files of at most `TAR_BYTES`; return their names."""
    groups: list[list[Path]] = [[]]
    held = 0
    for run in sorted(study.policies.glob("*")):
        size = sum(file.stat().st_size + 1024 for file in run.rglob("*") if file.is_file())
        if held + size > TAR_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(run)
        held += size
    names = [f"study-{number}.tar" for number in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        policies.pack(group, study.work, out / name)
    return names


def measure(args: argparse.Namespace, work: Path, begin: float) -> dict[str, Any]:
    """Train everything; return what the JSON file says."""
    until, changes = begin + args.seconds, {"hidden_dims": args.hidden_dims} if args.hidden_dims else {}
    rows, schema = carried.unpack(args.rows, work / "data")
    batch = learner.transitions(rows)
    print(f"{len(batch['rewards'])} transitions after {time.time() - begin:.1f} s", flush=True)
    torch.set_float32_matmul_precision("high")
    agent = learner.paper_agent(schema, 0, args.device, **changes)
    study = Study(work, args.seeds, args.study_marks, until)
    study.clone(work / "data", args.clone_updates, begin + args.clone_until)

    at: dict[int, Any] = {mark: partial(policies.save, work / "cell", agent, schema) for mark in args.marks}
    known: dict[str, float] = {}

    def begin_study() -> None:
        found = learner.advantages(agent, batch)
        known.update(updates=agent.learner_steps, std=float(found.std()), mean=float(found.mean()))
        known["positive"] = float((found > 0).mean())
        study.begin(rows, schema, found)
        print(f"study begun after {time.time() - begin:.1f} s, {agent.learner_steps} updates: {known}", flush=True)

    saving = at.get(args.advantages_at, lambda: None)
    at[args.advantages_at] = lambda: (saving(), begin_study())
    print(learner.HEAD, flush=True)
    curve = attempt("cell", lambda: learner.train(agent, batch, args.updates, until, at=at, seed=0, call=args.call))
    if "failed" in curve and not known:
        study.end(-args.seconds)
        raise SystemExit("the cell failed before the study could begin")
    policies.save(work / "cell", agent, schema)
    if not known:  # too late for a study, if the cell did not come so far; still what a short trial shows
        begin_study()
    runs = study.end()
    return {
        "rows": len(batch["rewards"]),
        "successes": int((batch["masks"] == 0).sum()),
        "cell": {"settings": settings.to_mapping(agent.config), "updates": agent.learner_steps, "curve": curve},
        "study": {"settings": SETTINGS, "advantages": known, "runs": runs, "packed": packed_study(study, args.out)},
    }


def main() -> None:
    begin = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="packed by benchmarks.gpu.cell.carried")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=500.0, help="until what there is is saved")
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--marks", type=int, nargs="*", default=[100_000, 300_000], help="updates to save at, too")
    parser.add_argument("--call", type=int, default=learner.CALL, help="updates without the host")
    parser.add_argument("--advantages-at", type=int, default=250_000, help="updates after which the study begins")
    parser.add_argument("--study-marks", type=int, nargs="+", default=STUDY_MARKS, help="updates of its runs")
    parser.add_argument("--clone-updates", type=int, default=20_000)
    parser.add_argument(
        "--clone-until", type=float, default=120.0, help="seconds after which backbones are as they are"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--hidden-dims", type=int, nargs="+", help="for a trial: smaller networks")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found = measure(args, work, begin)
        saved: Sequence[Path] = sorted((work / "cell" / "checkpoints").glob("[0-9]*"))
        for path in saved:
            policies.pack([path], work, args.out / f"cell-{int(path.name)}.tar")
    record = {**provenance(f"python -m benchmarks.gpu.cell --seconds {args.seconds:g}", "numpy", "peft"), **found}
    record["cores"], record["seconds"] = os.cpu_count(), time.time() - begin
    (args.out / NAME).write_text(json.dumps(record, indent=1) + "\n")
    print(
        f"{args.out / NAME}: {record['cell']['updates']} updates, all done after {record['seconds']:.1f} s", flush=True
    )
    for run in record["study"]["runs"]:
        print({key: value for key, value in run.items() if key != "seed"}, flush=True)


if __name__ == "__main__":
    main()
