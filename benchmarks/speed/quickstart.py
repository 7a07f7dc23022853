"""How long the quick start takes in two checkouts, side by side: alternately, on one machine, ratios of each pair.

    python -m benchmarks.speed.quickstart --before main~20 --pairs 3 --json quickstart.json

Both trees run with this interpreter and its packages; `--before` is checked out beside this one and removed again.
`evaluation` are the seconds in which the run waited for an evaluation: those that workers play beside the learner cost
it none.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import write_json

HERE = Path(__file__).resolve().parents[2]
MEASURES = ("whole_s", "offline_s", "online_s", "evaluation_s")


def main() -> int:
    """Run the pairs, print the ratios, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="REF", required=True, help="commit to compare this checkout with")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write all numbers as JSON")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of both runs")
    arguments = parser.parse_args()
    runs: list[dict[str, dict[str, float]]] = []
    with checkout(arguments.before) as before:
        for pair in range(arguments.pairs):
            trees = {"before": before, "after": HERE}
            order = list(trees) if pair % 2 == 0 else list(reversed(trees))
            runs.append({name: timed(trees[name], arguments.overrides, pair) for name in order})
            print(f"pair {pair + 1}: {json.dumps(runs[-1])}", flush=True)
    table = {name: summary([run["after"][name] / run["before"][name] for run in runs]) for name in MEASURES}
    print(f"{'after / before':16}  median  least   most  (n = {len(runs)})")
    for name, found in table.items():
        print(f"{name:16}  {found['median']:6.2f} {found['least']:6.2f} {found['most']:6.2f}")
    command = f"python -m benchmarks.speed.quickstart --before {arguments.before} --pairs {arguments.pairs}"
    write_json(arguments.json, command, {"ratios": table, "runs": runs})
    return 0


@contextlib.contextmanager
def checkout(ref: str) -> Iterator[Path]:
    """Give a checkout of `ref` for the block."""
    with tempfile.TemporaryDirectory(prefix="before-") as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(tree), ref], cwd=HERE, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=HERE, check=True)


def timed(tree: Path, overrides: list[str], seed: int) -> dict[str, float]:
    """Return the seconds of one quick start in a tree; its data are made before the first."""
    with tempfile.TemporaryDirectory(prefix="quickstart-") as folder:
        command = [sys.executable, "-m", "dipole_ray.cli", "train", "quickstart", f"folder={folder}", f"seed={seed}"]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, *overrides],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            capture_output=True,
            text=True,
            check=False,
        )
        whole_s = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{tree}: the run failed: {done.stderr.strip().splitlines()[-1]}")
        (run,) = (path for path in Path(folder).iterdir() if (path / "run.yaml").exists())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {"whole_s": whole_s, **phases(lines)}


def phases(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of both phases, and those of evaluations that no iteration ran beside."""
    found = dict.fromkeys(("offline_s", "online_s"), 0.0)
    for line in lines:
        found["online_s" if line["env_steps"] else "offline_s"] += line.get("time/iteration_s") or 0.0
    span_s = lines[-1]["time"] - lines[0]["time"]
    iterations_s = sum(line.get("time/iteration_s") or 0.0 for line in lines[1:])
    return {**found, "evaluation_s": span_s - iterations_s}


def summary(ratios: list[float]) -> dict[str, float]:
    """Return the median and the spread of ratios."""
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios), "n": float(len(ratios))}


if __name__ == "__main__":
    raise SystemExit(main())
