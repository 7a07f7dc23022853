"""What the chaos tests share: the small run they break, kills, waits with a deadline, and the ring's rows."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from dipole_ray import DIPOLE, DIPOLEConfig

POINT = "tests.chaos.point_env:Point-v0"
AGENT = {"hidden_dims": (16, 16), "batch_size": 16, "denoise_steps": 2, "num_candidates": 2, "omega": 1.0}
LOOP = {
    "offline_learner_steps": 0,
    "online_env_steps": 100_000,
    "learner_steps_per_call": 8,
    "learner_steps_per_iteration": 64,
    "env_steps_per_iteration": 240,
    "updates_per_env_step": 0.3,
}


def config(*, workers: int = 4, learners: int = 1, dataset: Path | None = None, **settings: Any) -> DIPOLEConfig:
    """Return a config on the point environment, with `settings` of agent and loop over the small ones."""
    made = DIPOLEConfig().environment(POINT)
    if dataset is not None:
        made.offline_data(input_=str(dataset))
    return (
        made.training(preset="small", **{**AGENT, **LOOP, **settings})
        .env_runners(
            num_env_runners=workers, num_envs_per_env_runner=2, rollout_fragment_length=15, num_cpus_per_env_runner=0.5
        )
        .learners(num_learners=learners, num_threads=1)
        .evaluation(episodes=2, omegas=(1.0,), candidates=(1,))
    )


def kill(pid: int) -> None:
    """End a process as the machine would: without a word."""
    os.kill(pid, signal.SIGKILL)


def wait_until(reached: Callable[[], bool], deadline_s: float, what: str, poll_s: float = 0.05) -> float:
    """Wait until `reached` returns true and return the seconds it took; fail after `deadline_s`."""
    start = time.monotonic()
    while not reached():
        assert time.monotonic() - start < deadline_s, f"not within {deadline_s} s: {what}"
        time.sleep(poll_s)
    return time.monotonic() - start


def train_until(algorithm: DIPOLE, reached: Callable[[DIPOLE], bool], deadline_s: float = 120.0) -> float:
    """Train until `reached` and return the seconds it took; fail after `deadline_s`."""
    start = time.monotonic()
    while not reached(algorithm):
        assert time.monotonic() - start < deadline_s, f"not reached: {algorithm.learner_steps=}, {algorithm.env_steps=}"
        algorithm.train()
    return time.monotonic() - start


def worker_pids(algorithm: DIPOLE) -> dict[int, int]:
    """Return the process id of every healthy rollout worker by its index."""
    group = algorithm.env_runner_group
    return dict(group.foreach_env_runner(lambda worker: (worker.worker_index, os.getpid()), local_env_runner=False))


def worker_versions(algorithm: DIPOLE) -> dict[int, int]:
    """Return the version of the policy that each healthy rollout worker acts with."""
    group = algorithm.env_runner_group
    return dict(group.foreach_env_runner(lambda w: (w.worker_index, w.policy_version), local_env_runner=False))


def pid_of(actor: Any) -> int:
    """Return the process id of a living actor, given its handle."""
    return int(ray._private.state.actors(actor._actor_id.hex())["Pid"])


def actor_pids() -> dict[str, list[int]]:
    """Return the process ids of all living actors of this Ray by kind: worker, learner, replay."""
    kinds = {"DIPOLEEnvRunner": "worker", "DIPOLELearner": "learner", "Replay": "replay"}
    found: dict[str, list[int]] = {}
    for actor in ray._private.state.actors().values():
        for class_name, kind in kinds.items():
            if class_name in actor["ActorClassName"] and actor["State"] == "ALIVE":
                found.setdefault(kind, []).append(int(actor["Pid"]))
    return found


def learner_pid(algorithm: DIPOLE) -> int:
    """Return the process id of the learner actor."""
    return pid_of(algorithm.learner.learners[0])


def ring_rows(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of all committed rows in a ring's file, oldest first (rows beyond one lap are not in it)."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        columns[name] = values.to_numpy(zero_copy_only=False).reshape(table.num_rows, -1).copy()
        columns[name] = columns[name][:, 0] if columns[name].shape[1] == 1 else columns[name]
    committed = columns["sequence"] > 0
    order = np.argsort(columns["sequence"][committed])
    return {name: values[committed][order] for name, values in columns.items()}


def assert_every_row_once(algorithm: DIPOLE) -> None:
    """The ring holds as many transitions as the run counts environment steps, and no two that are equal."""
    rows = ring_rows(algorithm.replay_directory / "online.arrow")
    kept = rows["remaining"] > 0
    transitions = np.concatenate([rows["observations"], rows["actions"], rows["rewards"][:, None]], axis=1)[kept]
    assert algorithm.replay.sizes()["online"] == algorithm.env_steps == len(transitions)
    assert len(np.unique(transitions, axis=0)) == len(transitions), "a row was counted twice"


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
