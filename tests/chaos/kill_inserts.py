"""Kill a process that inserts, fifty times, and judge what it leaves: `python -m tests.chaos.kill_inserts FOLDER`.

A program of its own, because it forks: prints one JSON line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from dipole_ray.columns import Schema
from dipole_ray.data.schema import Rows, close_trajectory
from dipole_ray.replay.replay import Replay

SCHEMA = Schema(141, 17)
"""644 bytes a row, as the humanoid's."""
CAPACITY, STEPS, KILLS = 20_000, 700, 50


def piece(number: int) -> Rows:
    """Return one trajectory whose rewards count its transitions; everything else is made of the same numbers."""
    count = number * STEPS + np.arange(STEPS + 1.0)
    observations = np.repeat(count[:, None], SCHEMA.observation_dim, axis=1)
    return close_trajectory(observations, np.zeros((STEPS, SCHEMA.action_dim)), count[:-1], np.ones(STEPS))


def open_replay(path: Path, run: str) -> Replay:
    return Replay(schema=SCHEMA, online=path, capacity=CAPACITY, run=run)


def insert_for_ever(path: Path, run: str, answers: int) -> None:
    replay = open_replay(path, run)
    number = replay.env_steps_inserted // STEPS
    while True:
        replay.insert(piece(number), worker=0, incarnation=0, sequence=number)
        number += 1
        os.write(answers, number.to_bytes(8, "little"))


def acknowledged_before_kill(path: Path, run: str, delay_s: float) -> int:
    """Let a child insert, kill it `delay_s` after its first answer and return how many pieces it acknowledged."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        insert_for_ever(path, run, writing)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as stream:
        first = stream.read(8)
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        rest = stream.read()
    return int.from_bytes((first + (rest or b""))[-8:], "little")


def main() -> None:
    path = Path(sys.argv[1]) / "ring.arrow"
    random = np.random.default_rng(0)
    warnings.simplefilter("error")  # a quarantined row is a corrupt one
    lost = twice = corrupt = unfinished = 0
    descriptors = set()
    for kill in range(KILLS):
        run = f"run {kill // 10}"  # ten deaths of each run
        known = acknowledged_before_kill(path, run, float(random.uniform(0.0, 0.06)))
        with open_replay(path, run) as replay:
            found = replay.env_steps_inserted
            batch = replay.sample(replay.num_online)
            assert replay._ring is not None
            rows = replay._ring.transition_rows(np.arange(replay.num_online))
            kept = replay._ring.columns["rewards"][rows]
            wide = replay._ring.columns["observations"][rows]
            descriptors.add(len(list(Path("/proc/self/fd").iterdir())))
        lost += max(0, known * STEPS - found)
        unfinished += found == (known + 1) * STEPS
        twice += len(kept) - len(np.unique(kept))
        expected = np.arange(found - len(kept), found, dtype=np.float32)
        corrupt += int((kept != expected).sum()) + int((wide != expected[:, None]).sum())
        corrupt += int((batch["next_observations"][:, 0] != batch["rewards"] + 1).sum())
        assert found in (known * STEPS, (known + 1) * STEPS), (known, found)
        assert len(kept) >= min(found, CAPACITY - CAPACITY // STEPS - STEPS - 1), len(kept)
    print(
        json.dumps(
            {
                "kills": KILLS, "lost": lost, "twice": twice, "corrupt": corrupt, "only_unanswered": unfinished,
                "descriptor_counts": sorted(descriptors),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
