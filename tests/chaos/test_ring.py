"""The online ring without Ray: a process killed while it inserts (D1) and a disk that does not fill up (D5)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dipole_ray.columns import Schema
from dipole_ray.data.schema import close_trajectory
from dipole_ray.replay.replay import Replay
from tests.chaos.conftest import Measured

pytestmark = pytest.mark.chaos


def test_d1_a_process_killed_while_it_inserts_loses_only_what_was_not_acknowledged(
    tmp_path: Path, measured: Measured
) -> None:
    """Fifty kills at seeded times, ten deaths of each run, rows of 644 bytes; nothing is corrupt, nothing is twice."""
    command = [sys.executable, "-m", "tests.chaos.kill_inserts", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)
    measured("D1", f"ring: corrupt rows after {found['kills']} kills", found["corrupt"], "rows", bar="0")
    measured("D1", f"ring: acknowledged transitions lost in {found['kills']} kills", found["lost"], "rows", bar="0")
    assert (found["kills"], found["corrupt"], found["lost"], found["twice"]) == (50, 0, 0, 0)
    assert len(found["descriptor_counts"]) == 1, "a recovery leaves no file open"


def open_descriptors(folder: Path) -> int:
    """Return how many descriptors of this process lead into `folder`, to removed files too."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # another thread's, closed meanwhile
            links.append(str(descriptor.readlink()))
    return sum(link.startswith(str(folder)) for link in links)


def test_d5_ten_million_rows_into_a_store_of_one_million(tmp_path: Path, measured: Measured) -> None:
    schema, capacity, steps = Schema(29, 8), 1_000_000, 999
    random = np.random.default_rng(0)
    observations, actions = random.normal(size=(steps + 1, 29)), random.uniform(-1, 1, (steps, 8))
    rows = close_trajectory(observations, actions, random.normal(size=steps), np.ones(steps))
    path = tmp_path / "ring.arrow"
    descriptors, sizes = [], []
    with Replay(schema=schema, online=path, capacity=capacity) as replay:
        start = time.perf_counter()
        for sequence in range(10_000):
            replay.insert(rows, worker=sequence % 64, incarnation=sequence // 64, sequence=sequence)
            if sequence % 500 == 0:
                descriptors.append(open_descriptors(tmp_path))
                sizes.append(sum(max(f.stat().st_size, 512 * f.stat().st_blocks) for f in tmp_path.iterdir()))
        seconds = time.perf_counter() - start
        assert replay.env_steps_inserted == 10_000 * steps and replay.num_online >= capacity - capacity // steps - 2
    ratio = max(sizes) / (capacity * schema.row_bytes)
    measured("D5", "ring and journal on disk, by the capacity's bytes", ratio, "times", bar="<= 1.2")
    measured("D5", "rows inserted, rows of 172 bytes in pieces of 1000", 1e7 / seconds, "rows/s", bar="none")
    assert ratio <= 1.2
    assert set(descriptors) == {descriptors[0]} and descriptors[0] >= 1 and len(set(sizes)) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ring.arrow", "ring.arrow.journal"]
    path.unlink()
