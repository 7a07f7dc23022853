"""Gradients of the driving policy on judged plans under sigmoid and exp weights, on a GPU.

bash benchmarks/gpu/gradients.sh build/gradients/plans.npz build/gradients

The head `base` (459 million weights) is cloned from the drivers for a few seconds; from there every scheme trains it by
adapters of rank 16 and with all of its weights, and so the heads `small` and `tiny` with all of theirs, seed after seed
until the time is over. Each training is printed and written as it ends; one that the end of the time cuts short has
fewer updates. What one run has no time for another does, with `--parts`. `--cpu` does it with `tiny` alone, on a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.attempt import BEGIN, attempt, provenance
from benchmarks.gradients.judged import BATCH, RANK, Case, JudgedPlans, Learners
from benchmarks.gradients.measure import Scheme, trained

CLONE_UPDATES, UPDATES, SEEDS = 300, 80, 5
PARTS = "base-adapted", "base", "small", "tiny"
"""Networks, trained by adapters or with all of their weights, the most wanted first."""


def line(found: dict[str, Any]) -> str:
    """Return what a training came to, in a line."""
    if "gradient" not in found:
        return str(found.get("failed", "nothing"))
    error, gradient = found["held_out"]["error"], found["gradient"]
    shown = f"gradient {gradient['median']} (most {gradient['max']}), effective {found['effective']['median']}"
    shown += f", loss {found['loss']['median']}, held out {error[0]} -> {error[-1]}"
    rate = found["updates"] / found["seconds"]
    return f"{shown}, {found['updates']} updates, {rate:.1f}/s, skipped {found['skipped']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plans", type=Path, required=True, metavar="FILE.npz", help="of benchmarks.driving.judged_plans"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seconds", type=float, default=125, help="after which nothing more is learned (default: 125)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=[*PARTS, "small-adapted", "tiny-adapted"],
        help=f"what is trained, in this order (default: {' '.join(PARTS)})",
    )
    parser.add_argument("--cpu", action="store_true", help="the smallest size on a CPU, to see that it runs")
    options = parser.parse_args()
    device, names = ("cpu", ("tiny-adapted", "tiny")) if options.cpu else ("cuda", options.parts or PARTS)
    parts = [(name.partition("-")[0], "-" in name) for name in names]
    if options.cpu:
        torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    plans, deadline = JudgedPlans(options.plans, device), BEGIN + options.seconds
    print(f"read {plans.scenes} scenes after {time.perf_counter() - BEGIN:.1f} s", flush=True)
    command = f"bash benchmarks/gpu/gradients.sh {options.plans.name} {options.out} {options.first_seed}"
    result: dict[str, Any] = {
        **provenance(f"{command} --seconds {options.seconds:g} --parts {' '.join(names)}", "peft"),
        "precision": "tf32",
        "sizes": {"scenes": plans.scenes, "plans_a_scene": plans.plans, "batch_size": BATCH, "rank": RANK},
        "folders": plans.folders,
        "clone_updates": 20 if options.cpu else CLONE_UPDATES,
        "runs": [],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"gradients_gpu-{result['date']}-seed{options.first_seed}-{'_'.join(names)}.json"
    cases = {name: Case(plans, name, device, result["clone_updates"]) for name, _ in parts}
    learners = {part: Learners(cases[part[0]], part[1]) for part in parts}
    for seed in range(options.first_seed, options.first_seed + SEEDS):
        for part, scheme in [(part, scheme) for part in parts for scheme in plans.schemes()]:
            if time.perf_counter() > deadline:
                return

            def run(part: Any = part, scheme: Scheme = scheme, seed: int = seed) -> dict[str, Any]:
                case, agent = cases[part[0]], learners[part].fresh(scheme, seed)
                return trained(agent, scheme, case.batches(seed), case.probe, options.updates, deadline)

            label = {"task": "driving", "network": part[0], "adapted": part[1], "seed": seed, "scheme": scheme.name}
            found = attempt(" ".join(map(str, label.values())), run, within_s=options.seconds)
            print(f"  {line(found)}", flush=True)
            result["runs"].append(label | found)
            file.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
