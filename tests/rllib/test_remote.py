"""Remote workers, learner and replay: the same numbers as in one process, and a run that outlives its workers."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dipole_ray import DIPOLE
from dipole_ray.columns import Schema
from dipole_ray.cores import usable_cores
from dipole_ray.data.dataset import write_dataset
from dipole_ray.data.schema import close_trajectory
from dipole_ray.errors import ConfigError, DatasetError, EnvironmentUnavailable
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import CellResult
from dipole_ray.rllib.evaluate import play
from tests.rllib.small import config, train_until

pytestmark = pytest.mark.usefixtures("cluster")

DEADLINE_S = 120.0
ONLINE_STEPS = 10_000


def remote_config(dataset: Path | None, **settings: Any) -> Any:
    """Return a config with two rollout workers and a learner actor."""
    return config(dataset, workers=2, learners=1, **settings)


def online_rows(algorithm: DIPOLE) -> np.ndarray:
    """Return every online transition of the ring as rows of observation, action and reward."""
    state = algorithm.replay.state()["online"]
    ring = ring_columns(algorithm.replay_directory / "online.arrow", state["rows_written"])
    kept = ring["remaining"] > 0
    return np.concatenate([ring["observations"], ring["actions"], ring["rewards"][:, None]], axis=1)[kept]


def ring_columns(path: Path, rows: int) -> dict[str, np.ndarray]:
    """Return the first `rows` rows of an Arrow file's columns."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all().slice(0, rows)
    columns = {}
    for name in ("observations", "actions", "rewards", "remaining"):
        column = table[name].combine_chunks()
        values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        columns[name] = values.to_numpy(zero_copy_only=False).reshape(rows, -1)
    columns["rewards"], columns["remaining"] = columns["rewards"][:, 0], columns["remaining"][:, 0]
    return columns


def test_remote_learner_equals_the_one_in_process(pendulum: Path) -> None:
    """100 offline updates: the same batches, the same agent, bit for bit."""
    states = []
    for learners in (0, 1):
        algorithm = config(pendulum, learners=learners, offline_learner_steps=100).build_algo()
        train_until(algorithm, lambda a: a.learner_steps >= 100)
        algorithm.checkpoint_contents()  # waits for what is in flight
        states.append(algorithm.learner.agent_state())
        algorithm.stop()
    assert states[0]["learner_steps"].item() == 100
    assert [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])] == []


@pytest.fixture(scope="module")
def algorithm(cluster: None, pendulum: Path) -> Iterator[DIPOLE]:
    """A remote algorithm that several tests use one after the other; its threads are shared out automatically."""
    made = remote_config(pendulum, online_env_steps=ONLINE_STEPS)
    made.learner_num_threads = None
    built = made.build_algo()
    yield built
    built.stop()


def test_threads_are_not_oversubscribed(algorithm: DIPOLE) -> None:
    cores = usable_cores()
    group = algorithm.env_runner_group
    assert group.foreach_env_runner(lambda worker: torch.get_num_threads(), local_env_runner=False) == [1, 1]
    learners = algorithm.learner_group.foreach_learner(lambda learner: torch.get_num_threads())
    assert [result.get() for result in learners.result_or_errors] == [max(1, cores - 2)]


def test_fragments_do_not_pile_up_before_a_slow_learner(algorithm: DIPOLE) -> None:
    """Workers that outrun the learner wait for it: else memory grows, and rows come ever later to the replay."""
    algorithm.publish_weights()
    fragments = algorithm.experience.gather(lambda: algorithm.learner.policy)
    for _ in range(15):
        assert len(next(fragments).rows) > 0
        time.sleep(0.3)  # both workers answer meanwhile
    assert len(algorithm.experience._unread[algorithm.experience._collect]) <= 3


def test_restore_rolls_back_everything_and_the_workers_act_with_it(
    algorithm: DIPOLE, pendulum: Path, tmp_path: Path
) -> None:
    """RLlib's workers would keep the newer weights (weights_seq_no); ours act with what the learner has."""
    algorithm.train()
    path = algorithm.save_to_path(tmp_path / "saved")
    old = algorithm.learner.agent_state()
    train_until(algorithm, lambda a: a.env_steps >= 120)
    newest = algorithm.learner.policy.version
    algorithm.restore_from_path(path)
    assert (algorithm.learner_steps, algorithm.env_steps, algorithm.replay.sizes()["online"]) == (16, 0, 0)
    assert all(torch.equal(tensor, old[name]) for name, tensor in algorithm.learner.agent_state().items())

    cells = [Cell("guided", 1.0, 2), Cell("guided", 0.0, 1), Cell("guided", 0.0, 2)]
    played = play(algorithm, None, cells, episodes=2)
    alone = config(pendulum).build_algo()
    alone.train()
    assert alone.learner_steps == 16
    expected = play(alone, None, cells, episodes=2)
    alone.stop()
    for here, there in zip(played, expected, strict=True):
        assert here.returns.tolist() == there.returns.tolist(), "a worker acts with other weights"

    train_until(algorithm, lambda a: a.env_steps > 0)
    assert algorithm.group_metrics["rollout/policy_version"] > newest, "a fragment from before the restore got in"
    assert algorithm.replay.sizes()["online"] == algorithm.env_steps


def test_an_evaluation_that_begins_while_no_worker_can_be_asked_is_played_once_one_can(
    algorithm: DIPOLE, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, asked = algorithm.experience.workers, list[int]()  # type: ignore[attr-defined]
    usable = workers.usable
    monkeypatch.setattr(workers, "usable", lambda: [] if len(asked) < 4 and not asked.append(1) else usable())
    (result,) = play(algorithm, None, [Cell()], episodes=3)
    assert len(result.returns) == 3 and len(asked) == 4


def test_both_phases_with_remote_workers_learner_and_evaluation(
    algorithm: DIPOLE, pendulum: Path, tmp_path: Path
) -> None:
    version = 0
    for _ in range(30):
        if algorithm.env_steps >= 400:
            break
        algorithm.train()
        assert algorithm.learner.policy.version >= version
        version = algorithm.learner.policy.version
        metrics = algorithm.group_metrics
        assert 0 <= metrics["time/learner_wait_fraction"] <= 1
        assert 0 <= metrics.get("time/rollout_wait_fraction", 0.0) <= 1
        assert algorithm.learner_steps <= 40 or algorithm.learner_steps == 40 + int(algorithm.env_steps * 3 / 10)
    assert algorithm.env_steps >= 400 and algorithm.replay.sizes()["online"] == algorithm.env_steps
    # No duplicates: every transition in the ring is another one.
    rows = online_rows(algorithm)
    assert len(rows) == algorithm.env_steps == len(np.unique(rows, axis=0))

    seen: Counter[Cell] = Counter()
    cells = [Cell("guided", omega, candidates) for omega in (0.0, 0.5, 1.0) for candidates in (1, 2)]

    def count(result: CellResult) -> None:
        seen[result.cell] += 1

    results = play(algorithm, None, cells, episodes=2, on_result=count)
    assert [result.cell for result in results] == cells and seen == Counter(cells)
    evaluated = algorithm.evaluate()
    assert evaluated["env_runners"]["episode_return_mean"] == algorithm.score < 0
    assert {"omega_0_candidates_1", "omega_1_candidates_2"} <= evaluated.keys()

    # A checkpoint continues with another number of processes, with every row.
    path = algorithm.save_to_path(tmp_path / "saved")
    steps = algorithm.learner_steps, algorithm.env_steps
    saved = algorithm.learner.agent_state()
    resumed = config(pendulum, workers=1, online_env_steps=ONLINE_STEPS).build_algo()
    resumed.restore_from_path(path)
    assert (resumed.learner_steps, resumed.env_steps) == steps
    assert all(torch.equal(tensor, saved[name]) for name, tensor in resumed.learner.agent_state().items())
    resumed.train()
    rows = online_rows(resumed)
    assert resumed.env_steps > steps[1] and len(rows) == resumed.env_steps
    assert len(np.unique(rows[:, :3], axis=0)) == len(rows), "the resumed workers lived their first episodes again"
    resumed.stop()


@pytest.mark.slow
def test_run_outlives_a_killed_worker(algorithm: DIPOLE) -> None:
    def worker_pids() -> dict[int, int]:
        found = algorithm.env_runner_group.foreach_env_runner(
            lambda worker: (worker.worker_index, os.getpid()), local_env_runner=False
        )
        return dict(found)

    def lives() -> set[tuple[int, int]]:
        return {(worker, life) for worker, life, _ in algorithm.replay.state()["last_sequences"]}

    # One worker may have delivered all of this before the other has made its environment.
    train_until(algorithm, lambda a: a.env_steps >= 120 and {worker for worker, _ in lives()} == {1, 2})
    before, lived = worker_pids(), lives()
    assert before.keys() == {1, 2}
    os.kill(before[1], signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_S
    while not (new := lives() - lived):
        assert time.monotonic() < deadline, "the worker did not come back"
        steps = algorithm.env_steps
        algorithm.train()
        assert algorithm.env_steps >= steps + 60, "the run stood still"
    assert [worker for worker, _ in new] == [1], "the new life of the worker delivers"
    assert worker_pids()[1] != before[1]
    rows = online_rows(algorithm)
    assert len(rows) == algorithm.env_steps == algorithm.replay.sizes()["online"] == len(np.unique(rows, axis=0))
    assert algorithm.learner_steps == 40 + int(algorithm.env_steps * 3 / 10)


def test_errors_of_the_user_arrive_as_ours(pendulum: Path, tmp_path: Path) -> None:
    """No Ray traceback around a sentence that names the remedy."""

    def build(dataset: Path, env: str = "Pendulum-v1", **settings: Any) -> None:
        config(dataset, workers=1, **settings).environment(env).build_algo()

    piece = close_trajectory(
        np.zeros((11, 5), np.float32), np.zeros((10, 2), np.float32), np.zeros(10, np.float32), np.ones(10, np.float32)
    )
    write_dataset(tmp_path / "other", [piece], Schema(5, 2), {})
    with pytest.raises(ConfigError, match="observations have 5 and actions 2 dimensions, 'Pendulum-v1' has"):
        build(tmp_path / "other", observation_normalization="none")
    with pytest.raises(DatasetError, match="nowhere"):
        build(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="Pendulum-v1"):
        build(pendulum, "Pendulun-v1")
    with pytest.raises(ConfigError, match=r"agent\.expectile"):
        build(pendulum, expectile=2.0)


@pytest.mark.slow
def test_an_environment_that_always_raises_is_named_instead_of_restarted_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dipole_ray.rllib.workers.MAX_PAUSE_S", 0.2)  # the four rests take 15 s otherwise
    broken = config(None, workers=1, offline_learner_steps=0).environment("tests.broken_envs:Raises-v0")
    algorithm = broken.build_algo()
    try:
        with pytest.raises(EnvironmentUnavailable, match="ValueError: the gripper is on fire"):
            algorithm.train()
    finally:
        algorithm.stop()
