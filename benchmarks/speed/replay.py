"""Measure the replay on a large dataset: rows sampled and appended a second, memory, and the time to start and import.

    python -m benchmarks.speed.replay --json benchmarks/results/replay-2026-11-27.json

A dataset of random numbers is written to a temporary folder first (10M transitions of 28 observations and 5 actions
take 1.5 GB); the replay that samples it runs in a process of its own, so that its memory is its own, too. That is
counted without the pages of mapped files, which the system takes back when it needs them. Rates are of processor
time as well as of the clock: where other work runs beside, the former says what one core can do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import write_json
from benchmarks.replay_speed import TRAJECTORY, trajectory
from benchmarks.speed.timing import spread
from dipole_ray.columns import Schema
from dipole_ray.data.dataset import write_dataset
from dipole_ray.data.schema import Rows
from dipole_ray.replay.replay import Replay

SAMPLES = {"1-step, 32 batches of 256": (1, 32), "30-step, 32 batches of 256": (30, 32), "1-step, one batch": (1, 1)}


def rates(work: Callable[[], int], rounds: int, seconds: float) -> dict[str, Any]:
    """Return rows a second of the clock and of the processor's time."""
    work()
    by_clock, by_core = [], []
    for _ in range(rounds):
        start, core, rows = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            rows += work()
        by_clock.append(rows / (time.perf_counter() - start))
        by_core.append(rows / (time.process_time() - core))
    return {"rows_per_s": spread(by_clock), "rows_per_core_s": spread(by_core)}


def memory_mb() -> dict[str, float]:
    """Return the process's own memory, and with it the pages of mapped files that happen to be there."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    kb = {words[0].rstrip(":"): int(words[1]) for words in lines if words[0] in ("RssAnon:", "VmRSS:")}
    return {"own": kb["RssAnon"] / 1024, "with_mapped_pages": kb["VmRSS"] / 1024}


def sample(folder: Path, schema: Schema, args: argparse.Namespace) -> dict[str, Any]:
    """Open the dataset and sample it; runs in a process of its own."""
    before, start = memory_mb(), time.perf_counter()
    replays = {1: Replay(schema=schema, offline=[folder], n_step=1)}
    found: dict[str, Any] = {"start_s": time.perf_counter() - start, "transitions": replays[1].num_offline}
    found["memory_mb"] = {"before": before, "opened": memory_mb()}
    replays[30] = Replay(schema=schema, offline=[folder], n_step=30)
    for name, (n_step, batches) in SAMPLES.items():

        def draw(n_step: int = n_step, batches: int = batches) -> int:
            return len(replays[n_step].sample(256, batches)["rewards"])

        found[name] = rates(draw, args.rounds, args.seconds)
    found["memory_mb"]["sampled"] = memory_mb()
    return found


def append(folder: Path, schema: Schema, args: argparse.Namespace) -> dict[str, Any]:
    """Insert into a ring that wraps, validation, journal and checksums included."""
    found = {}
    for name, length in (("fragments of 256 rows", 256), ("trajectories of 1001 rows", TRAJECTORY + 1)):
        whole = trajectory(np.random.default_rng(0), schema)
        rows = {column: values[-length:].copy() for column, values in whole.items()}
        with Replay(schema=schema, online=folder / f"ring-{length}.arrow", capacity=200_000) as replay:
            sequence = iter(range(10**9))

            def insert(replay: Replay = replay, rows: Rows = rows, sequence: Iterator[int] = sequence) -> int:
                replay.insert(rows, worker=0, incarnation=0, sequence=next(sequence))
                return len(rows["rewards"])

            found[name] = rates(insert, args.rounds, args.seconds)
    return found


def import_speed(folder: Path, schema: Schema, transitions: int) -> dict[str, Any]:
    """Import a compressed OGBench file by the command, and read it bare."""
    random, count = np.random.default_rng(0), transitions // TRAJECTORY * (TRAJECTORY + 1)
    terminals = (np.arange(count) % (TRAJECTORY + 1) == TRAJECTORY).astype(np.float32)
    columns: dict[str, Any] = {
        "observations": random.normal(size=(count, schema.observation_dim)).astype(np.float32),
        "actions": random.uniform(-1, 1, size=(count, schema.action_dim)).astype(np.float32),
        "terminals": terminals,
        "rewards": random.normal(size=count).astype(np.float32),
        "masks": np.ones(count, np.float32),
    }
    file = folder / "big-v0.npz"
    np.savez_compressed(file, **columns)
    start = time.perf_counter()
    with np.load(file, allow_pickle=False) as opened:
        for name in opened.files:
            opened[name]
    bare = time.perf_counter() - start
    start = time.perf_counter()
    command = [sys.executable, "-m", "dipole_ray.cli", "data", "import", str(file), "--out", str(folder / "imported")]
    subprocess.run(command, check=True, capture_output=True)
    return {"rows": count, "command_s": time.perf_counter() - start, "decompression_s": bare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=10_000_000)
    parser.add_argument("--import-transitions", type=int, default=1_000_000, help="0 leaves the import out")
    parser.add_argument("--observation-dim", type=int, default=28)
    parser.add_argument("--action-dim", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each way in each round")
    parser.add_argument("--folder", type=Path, help="where datasets are written (default: a temporary folder)")
    parser.add_argument("--sample", action="store_true", help=argparse.SUPPRESS)  # the process that samples
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    args = parser.parse_args()
    schema = Schema(args.observation_dim, args.action_dim)
    if args.sample:
        print(json.dumps(sample(args.folder / "dataset", schema, args)))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        random, start = np.random.default_rng(0), time.perf_counter()
        some = [trajectory(random, schema) for _ in range(20)]
        pieces = (some[i % len(some)] for i in range(args.transitions // TRAJECTORY))
        write_dataset(folder / "dataset", pieces, schema, {})
        found["written_rows_per_s"] = args.transitions / (time.perf_counter() - start)
        given = ["--sample", "--folder", name, "--rounds", str(args.rounds), "--seconds", str(args.seconds)]
        given += ["--observation-dim", str(args.observation_dim), "--action-dim", str(args.action_dim)]
        command = [sys.executable, "-m", "benchmarks.speed.replay", *given]
        found["sampled"] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        found["appended"] = append(folder, schema, args)
        if args.import_transitions:
            found["imported"] = import_speed(folder, schema, args.import_transitions)
    print(json.dumps(found, indent=1))
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("json", "sample")}
    write_json(args.json, "python -m benchmarks.speed.replay", {"settings": settings, **found})


if __name__ == "__main__":
    main()
