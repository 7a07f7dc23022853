"""C6: the replay's process is killed in an insert, in a sample, in a seal; the run goes on by itself with every row."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from dipole_ray import DIPOLE
from dipole_ray.columns import Schema
from dipole_ray.data.schema import Rows, close_trajectory
from dipole_ray.rllib.replay_actor import ReplayClient
from tests.chaos.conftest import Measured
from tests.chaos.kit import assert_every_row_once, config, is_alive, kill, pid_of, train_until, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("cluster")]

REPEATS = 3
DEADLINE_S = 60.0
"""Nothing here may take longer. The promise of 10 s is judged from the recorded figures: on a loaded machine of two
cores the start of a Python process alone can take that long."""


# ---- a million rows of the humanoid's width ----

SCHEMA = Schema(141, 17)
CAPACITY, STEPS = 1_000_000, 99_999
"""Pieces of 64 MB, so that there is time to look into the ring while one is being written."""


def piece(number: int) -> Rows:
    """Return one trajectory whose rewards and observations count its transitions."""
    count = np.arange(number * STEPS, (number + 1) * STEPS + 1, dtype=np.float32)
    observations = np.repeat(count[:, None], SCHEMA.observation_dim, axis=1)
    actions, masks = np.zeros((STEPS, SCHEMA.action_dim), np.float32), np.ones(STEPS, np.float32)
    return close_trajectory(observations, actions, count[:-1], masks)


class Wide:
    """The replay of a million rows, and what a look into its file says; the pages are shared with its process."""

    def __init__(self, path: Path) -> None:
        self.path, self.inserted = path, 0
        self.replay = ReplayClient(schema=SCHEMA, online=path, capacity=CAPACITY)
        table = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        self.marks = table.column("sequence").to_numpy()
        self.rewards, self.remaining = table.column("rewards").to_numpy(), table.column("remaining").to_numpy()

    @property
    def pid(self) -> int:
        return pid_of(self.replay._replay)

    def insert(self) -> None:
        total = self.replay.insert(ray.put(piece(self.inserted)), 0, 0, self.inserted)
        self.inserted += 1
        assert total == self.inserted * STEPS

    def mark(self, row: int) -> int:
        """Return the commit mark at the place of a row."""
        return int(self.marks[row % len(self.marks)])

    def assert_every_row_once(self) -> None:
        """The newest million rows are there, each at its place, and count from first to last."""
        end = self.inserted * (STEPS + 1)
        numbers = np.arange(end - CAPACITY, end)
        rows = numbers % len(self.marks)
        assert np.array_equal(self.marks[rows], numbers + 1)
        kept = self.rewards[rows][self.remaining[rows] > 0]
        newest = self.inserted * STEPS
        assert np.array_equal(kept, np.arange(newest - len(kept), newest, dtype=np.float32))
        assert self.replay.sizes()["online"] == len(kept) == CAPACITY - CAPACITY // (STEPS + 1)

    def sample(self) -> np.ndarray:
        """Draw 256 transitions, check that none is torn and return their numbers."""
        batch = ray.get(self.replay.sample(256, 1), timeout=DEADLINE_S)
        assert (batch["observations"] == batch["rewards"][:, None]).all()
        assert (batch["next_observations"] == batch["rewards"][:, None] + 1).all()
        return np.asarray(batch["rewards"])


@pytest.fixture(scope="module")
def wide(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wide]:
    found = Wide(tmp_path_factory.mktemp("wide") / "ring.arrow")
    while found.inserted * (STEPS + 1) < CAPACITY:
        found.insert()
    yield found
    found.replay.close()
    found.path.unlink()


def kill_in_insert(wide: Wide, committed: bool, delay_s: float) -> float | None:
    """Kill while the next piece is written or, `committed`, after all its marks while its blocks are sealed.

    Returns:
        The time of death; None if it came too late for that.
    """
    first, pid = wide.inserted * (STEPS + 1), wide.pid
    last = first + STEPS
    row, mark = (last, last + 1) if committed else (first, -(first + 1))
    answered, deaths = threading.Event(), []

    def watch_and_kill() -> None:
        wait_until(lambda: wide.mark(row) == mark, DEADLINE_S, "the insert", poll_s=0.0002)
        time.sleep(delay_s)
        kill(pid)
        died = time.monotonic()
        wait_until(lambda: not is_alive(pid), DEADLINE_S, "the end of the process", poll_s=0.001)
        is_whole = wide.mark(last) == last + 1
        time.sleep(0.05)  # an answer on its way would have come
        if is_whole == committed and not answered.is_set():
            deaths.append(died)

    killer = threading.Thread(target=watch_and_kill)
    killer.start()
    wide.insert()
    answered.set()
    killer.join()
    return deaths[0] if deaths else None


def kill_in_sample(wide: Wide, delay_s: float) -> float | None:
    """Kill while the replay gathers a large batch, which comes all the same; return when, None if it came before."""
    pending, pid = wide.replay.sample(256, 200), wide.pid
    time.sleep(delay_s)
    kill(pid)
    died = time.monotonic()
    time.sleep(0.05)
    is_late = bool(ray.wait([pending], timeout=0)[0])
    batch = ray.get(pending, timeout=DEADLINE_S)
    assert (batch["observations"] == batch["rewards"][:, None]).all() and len(batch["rewards"]) == 51_200
    return None if is_late else died


@pytest.mark.parametrize("moment", ["insert", "sample", "seal"])
def test_a_million_rows_are_back_at_once(wide: Wide, moment: str, measured: Measured) -> None:
    random = np.random.default_rng(["insert", "sample", "seal"].index(moment))
    drawn, hits = wide.sample(), 0
    for _ in range(4 * REPEATS):  # a busy machine may let a moment pass
        delay_s = float(random.uniform(0.0, 0.003))
        died = kill_in_sample(wide, delay_s) if moment == "sample" else kill_in_insert(wide, moment == "seal", delay_s)
        again = wide.sample()
        if died is not None:
            seconds, hits = time.monotonic() - died, hits + 1
            what = f"replay killed in {moment}: first sample, 1 M rows of 644 B"
            measured("C6", what, seconds, "s", bar="<= 10 s")
            assert seconds < DEADLINE_S
        assert (drawn == again).mean() < 0.1, "the sampler repeats itself"
        drawn = again
        wide.assert_every_row_once()
        if hits == REPEATS:
            return
    raise AssertionError(f"hit only {hits} times in {moment}")


# ---- a run ----


@pytest.fixture(scope="module")
def algorithm(cluster: None) -> Iterator[DIPOLE]:
    built = config(workers=2).build_algo()
    train_until(built, lambda a: a.env_steps >= 480)
    yield built
    built.stop()


@contextmanager
def killed_in(replay: ReplayClient, method: str, delay_s: float) -> Iterator[list[float]]:
    """Kill the replay's process `delay_s` after the driver next calls `method`; give the time of it."""
    pid, died = pid_of(replay._replay), []

    def arm() -> None:
        if not died:
            died.append(time.monotonic() + delay_s)
            threading.Timer(delay_s, kill, [pid]).start()

    def call(name: str, *args: Any) -> Any:
        if name == method:
            arm()
        return ReplayClient._call(replay, name, *args)

    def sample(*args: int) -> Any:
        batches = ReplayClient.sample(replay, *args)
        if method == "sample":
            arm()
        return batches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "_call", call)
        patch.setattr(replay, "sample", sample)
        yield died
    assert died, f"{method} was never called"
    wait_until(lambda: pid_of(replay._replay) not in (0, pid), DEADLINE_S, "another process of the replay")


def assert_nothing_is_missing(algorithm: DIPOLE) -> None:
    """Every acknowledged step is in the ring once, and every update that was owed reached the learner."""
    algorithm.publish_weights()
    assert_every_row_once(algorithm)
    assert algorithm.learner.agent_state()["learner_steps"].item() == algorithm.learner_steps
    assert algorithm.learner_steps == int(algorithm.env_steps * 3 // 10)


@pytest.mark.parametrize("method", ["insert", "sample"])
def test_the_run_goes_on_without_the_driver_noticing(algorithm: DIPOLE, method: str, measured: Measured) -> None:
    random = np.random.default_rng(len(method))
    for _ in range(REPEATS):
        with killed_in(algorithm.replay, method, float(random.uniform(0.0, 0.002))) as died:
            goal = algorithm.env_steps + 480
            train_until(algorithm, lambda a, goal=goal: a.env_steps >= goal)
        measured("C6", f"replay killed in {method}: 480 steps on", time.monotonic() - died[0], "s", bar="<= 10 s")
        assert_nothing_is_missing(algorithm)


def test_a_checkpoint_is_written_although_the_replay_dies_under_it(algorithm: DIPOLE, tmp_path: Path) -> None:
    """And what is loaded from it, with what came later, is what the next death leaves."""
    for repeat in range(REPEATS):
        with killed_in(algorithm.replay, "state", 0.001 * repeat):
            saved = algorithm.save_to_path(tmp_path / str(repeat))
        steps = algorithm.env_steps
        train_until(algorithm, lambda a, steps=steps: a.env_steps > steps)
        with killed_in(algorithm.replay, "load_state", 0.001 * repeat):
            algorithm.restore_from_path(saved)
        assert algorithm.replay.sizes()["online"] == algorithm.env_steps == steps
        kill(pid_of(algorithm.replay._replay))
        assert algorithm.replay.sizes()["online"] == steps
        train_until(algorithm, lambda a, steps=steps: a.env_steps > steps)
        kill(pid_of(algorithm.replay._replay))
        train_until(algorithm, lambda a, now=algorithm.env_steps: a.env_steps > now)
        assert_nothing_is_missing(algorithm)
