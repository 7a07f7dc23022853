"""Measure sampling from mapped files against `Table.take` on the same data, and appends to the online ring.

    python -m benchmarks.replay_speed --out benchmarks/results/replay_speed.json

One dataset of random numbers is written to a temporary folder; every way of sampling then draws transitions from it in
one run, rounds of the ways alternating, so that a change of the machine's load meets all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from dipole_ray.columns import Schema
from dipole_ray.cores import usable_cores
from dipole_ray.data.dataset import open_dataset, write_dataset
from dipole_ray.data.schema import Rows, close_trajectory
from dipole_ray.files.provenance import git_commit, package_versions
from dipole_ray.replay.replay import Replay

TRAJECTORY = 1000


def trajectory(random: np.random.Generator, schema: Schema) -> Rows:
    return close_trajectory(
        random.normal(size=(TRAJECTORY + 1, schema.observation_dim)),
        random.uniform(-1, 1, size=(TRAJECTORY, schema.action_dim)),
        random.normal(size=TRAJECTORY),
        np.ones(TRAJECTORY),
    )


def table_sampler(path: Path, chunk_rows: int, count: int) -> Callable[[], object]:
    """Return a draw of `count` transitions by `Table.take` from the mapped file, in chunks of `chunk_rows` rows."""
    whole = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    table = pa.concat_tables([whole.slice(start, chunk_rows) for start in range(0, whole.num_rows, chunk_rows)])
    valid = np.flatnonzero(whole["remaining"].to_numpy())
    random = np.random.default_rng(0)

    def draw() -> dict[str, np.ndarray]:
        rows = valid[random.integers(0, len(valid), size=count)]
        taken, following = table.take(rows), table.select(["observations"]).take(rows + 1)
        batch = {}
        for name in ("observations", "actions"):
            batch[name] = taken[name].combine_chunks().flatten().to_numpy().reshape(count, -1)
        batch["next_observations"] = following["observations"].combine_chunks().flatten().to_numpy().reshape(count, -1)
        return batch | {name: taken[name].to_numpy() for name in ("rewards", "masks")}

    return draw


def rates(ways: dict[str, tuple[Callable[[], object], int]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return samples per second of every way in every round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (draw, count) in ways.items():
            start, drawn = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - start) < seconds:
                draw()
                drawn += count
            found[name].append(drawn / elapsed)
    return found


def append_rates(path: Path, schema: Schema, capacity: int, inserts: int, rounds: int) -> list[float]:
    """Return rows per second inserted into a ring that wraps, validation and checksums included."""
    rows, found = trajectory(np.random.default_rng(0), schema), []
    with Replay(schema=schema, online=path, capacity=capacity) as replay:
        for turn in range(rounds):
            start = time.perf_counter()
            for sequence in range(inserts):
                replay.insert(rows, worker=0, incarnation=turn, sequence=sequence)
            found.append(inserts * (TRAJECTORY + 1) / (time.perf_counter() - start))
    return found


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    schema = Schema(args.observation_dim, args.action_dim)

    def trajectories() -> Iterator[Rows]:
        random = np.random.default_rng(0)
        return (trajectory(random, schema) for _ in range(args.transitions // TRAJECTORY))

    one = write_dataset(folder / "one", trajectories(), schema, {})
    write_dataset(folder / "sixteen", trajectories(), schema, {}, segment_rows=one.num_rows // 16 + TRAJECTORY)
    file = folder / "one" / one.files[0].name
    many = {"batch_size": args.batch_size, "num_batches": args.num_batches}
    count = args.batch_size * args.num_batches
    start = time.perf_counter()
    open_dataset(folder / "one")
    opened = time.perf_counter() - start
    replays = {n: Replay(schema=schema, offline=[folder / "one"], n_step=n) for n in (1, 30)}
    sixteen = Replay(schema=schema, offline=[folder / "sixteen"])
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "mapped, n_step 1": (lambda: replays[1].sample(**many), count),
        "mapped, n_step 30": (lambda: replays[30].sample(**many), count),
        "mapped, n_step 1, one batch a call": (lambda: replays[1].sample(args.batch_size), args.batch_size),
        "mapped, sixteen files": (lambda: sixteen.sample(**many), count),
        "Table.take, one chunk": (table_sampler(file, one.num_rows, count), count),
        "Table.take, chunks of 8192 rows": (table_sampler(file, 8192, count), count),
    }
    found = {name: summary(values) for name, values in rates(ways, args.rounds, args.seconds).items()}
    found["rows appended"] = summary(append_rates(folder / "ring.arrow", schema, 100_000, 200, args.rounds))
    found["verify and open, MB"] = summary([one.files[0].bytes / 1e6 / opened])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=500_000)
    parser.add_argument("--observation-dim", type=int, default=29)
    parser.add_argument("--action-dim", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--num-batches", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each way in each round")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    for name, values in found.items():
        print(f"{name:40} {values['median']:>14,.0f}/s   ({values['min']:,.0f} to {values['max']:,.0f})")
    takes = [found[name]["median"] for name in found if name.startswith("Table.take")]
    ratios = [found["mapped, n_step 1"]["median"] / rate for rate in takes]
    print(f"mapped against Table.take: {ratios[0]:.1f} times (one chunk), {ratios[1]:.1f} times (chunks of 8192 rows)")
    if args.out is not None:
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": git_commit(),
            "versions": package_versions(),
            "machine": {"processor": platform.machine(), "cores": usable_cores(), "system": platform.system()},
            "settings": {name: value for name, value in vars(args).items() if name != "out"},
            "per_second": found,
            "mapped_to_table_take": {"one chunk": ratios[0], "chunks of 8192 rows": ratios[1]},
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
