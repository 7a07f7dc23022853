"""A replay whose process died holds, opened again, every row that was acknowledged, once, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole_ray.columns import Schema
from dipole_ray.data.schema import Rows, concatenate
from dipole_ray.errors import CorruptSegment, DatasetError
from dipole_ray.replay import journal
from dipole_ray.replay.replay import Replay
from dipole_ray.replay.ring import OnlineRing
from tests.data.dying import die_at
from tests.replay.test_ring import assert_same, model_windows, ring_windows
from tests.synthetic import random_trajectory

SCHEMA = Schema(3, 2)
CAPACITY = 160
"""Rows; blocks are of 10, and 20 rows more than the capacity are kept."""


@dataclass
class Model:
    """What the replay must hold: all rows since its beginning, and who inserted them."""

    pieces: list[Rows] = field(default_factory=list)
    last: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def env_steps(self) -> int:
        return sum(int(np.count_nonzero(piece["remaining"])) for piece in self.pieces)


def open_replay(path: Path, run: str | None = "run", **settings: Any) -> Replay:
    return Replay(schema=SCHEMA, online=path, capacity=CAPACITY, n_step=4, run=run, **settings)


def same(replay: Replay, model: Model, missing: int = 0) -> bool:
    """Whether the replay holds exactly the model's senders and newest rows, at most the oldest `missing` left out."""
    ring = replay._ring
    assert ring is not None
    if (replay.env_steps_inserted, ring.contents.last_sequence) != (model.env_steps, model.last):
        return False
    if not model.pieces:
        return replay.num_online == 0
    rows = concatenate(model.pieces)
    held = ring.contents.rows_written - ring.contents.oldest
    assert held >= min(CAPACITY, len(rows["remaining"])) - missing
    assert_same(ring_windows(ring), model_windows(rows, held))
    return True


def course(longest: int) -> list[tuple[str, Any]]:
    """Inserts of two workers, with one going back to a checkpoint in between; wraps around three times."""
    random = np.random.default_rng(longest)
    steps: list[tuple[str, Any]] = []
    for index in range(44):
        length = int(random.integers(1, longest))
        steps.append(("insert", (random_trajectory(random, length), index % 2, index)))
        if index == 20:
            steps.append(("save", None))
        if index == 21:
            steps.append(("load", None))
    return steps


def live(path: Path, steps: list[tuple[str, Any]], acknowledge: Callable[[], None]) -> None:
    """Take the steps, in a process that may be killed."""
    state: dict[str, Any] = {}
    replay = open_replay(path)
    for kind, what in steps:
        if kind == "insert":
            rows, worker, sequence = what
            replay.insert(rows, worker=worker, incarnation=7, sequence=sequence)
        elif kind == "save":
            state = json.loads(json.dumps(replay.state()))
        else:
            replay.load_state(state)
        acknowledge()


def models(steps: list[tuple[str, Any]]) -> list[Model]:
    """Return what must be there after 0, 1, 2 ... steps."""
    found, saved = [Model()], Model()
    for kind, what in steps:
        now = Model(list(found[-1].pieces), dict(found[-1].last))
        if kind == "insert":
            now.pieces.append(what[0])
            now.last[(what[1], 7)] = what[2]
        elif kind == "save":
            saved = now
        else:
            now = Model(list(saved.pieces), dict(saved.last))
        found.append(now)
    return found


@pytest.fixture(autouse=True)
def short_journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The journal turns over every few inserts instead of every thousand."""
    monkeypatch.setattr(journal, "_RECORDS", 8)
    monkeypatch.setattr("dipole_ray.replay.ring_file.LOCK_WAIT_S", 1.0)
    yield


def lines_of(path: Path, steps: list[tuple[str, Any]]) -> int:
    """Return about how many lines a course takes, by bisection."""
    low, high = 0, 1
    while die_at(lambda acknowledge: live(path, steps, acknowledge), high)[1]:
        low, high = high, 2 * high
    while high - low > 20:
        middle = (low + high) // 2
        low, high = (middle, high) if die_at(lambda a: live(path, steps, a), middle)[1] else (low, middle)
    return low


@pytest.mark.parametrize(
    ("longest", "missing", "places"),
    [(10, 0, 40), *(pytest.param(*of, 100, marks=pytest.mark.slow) for of in ((10, 0), (60, 80)))],
)
def test_killed_between_any_two_lines_it_loses_at_most_the_insert_under_way(
    tmp_path: Path, longest: int, missing: int, places: int
) -> None:
    """At every third place the process that takes the ring up again is killed too, and a third one does it.

    An insert of more rows than the file has to spare (20, less a block) may take along the oldest, which it evicts.
    """
    path = tmp_path / "ring.arrow"
    steps = course(longest)
    expected = models(steps)
    random = np.random.default_rng(1)
    only_unanswered = 0
    for turn, line in enumerate(random.integers(0, lines_of(path, steps), size=places)):
        open_replay(path, run=None).close()  # the rows of the last turn are an earlier run's
        acknowledged, killed = die_at(lambda acknowledge: live(path, steps, acknowledge), int(line))
        assert killed
        if turn % 3 == 0:
            die_at(lambda _: open_replay(path).close(), int(random.integers(0, 150)))
        with open_replay(path) as replay:
            after = [step for step in (acknowledged, acknowledged + 1) if same(replay, expected[step], missing)]
            assert after, f"line {line}: after {acknowledged} steps {replay.env_steps_inserted} transitions are there"
            only_unanswered += after[0] > acknowledged
            for kind, what in steps[acknowledged:]:  # the unanswered call is repeated, and the run goes on
                if kind == "insert":
                    replay.insert(what[0], worker=what[1], incarnation=7, sequence=what[2])
            assert acknowledged < 24 or same(replay, expected[-1], missing)
    assert only_unanswered, "at some places the rows are all there"


def filled(path: Path, run: str = "run", length: int = 9) -> Model:
    """Begin a run in the file: 40 trajectories."""
    random, model = np.random.default_rng(4), Model()
    open_replay(path, None).close()
    replay = open_replay(path, run)
    for sequence in range(40):
        model.pieces.append(random_trajectory(random, length, mask_rate=0.0))
        model.last[(0, 0)] = sequence
        replay.insert(model.pieces[-1], worker=0, incarnation=0, sequence=sequence)
    replay.close()
    return model


def test_only_the_same_run_takes_rows_up(tmp_path: Path) -> None:
    path = tmp_path / "ring.arrow"
    model = filled(path)
    with open_replay(path) as replay:
        assert same(replay, model)
    for run in ("other", None):
        filled(path)
        with open_replay(path, run) as replay:
            assert same(replay, Model())
        with open_replay(path) as replay:
            assert same(replay, Model()), "another run has begun in the file"


def test_the_rows_of_a_checkpoint_can_still_be_loaded_after_a_death_before_the_load(tmp_path: Path) -> None:
    path = tmp_path / "ring.arrow"
    with open_replay(path, "first") as replay:
        rows = random_trajectory(np.random.default_rng(0), 30)
        replay.insert(rows, worker=0, incarnation=0, sequence=0)
        state = replay.state()
    open_replay(path, "second").close()
    with open_replay(path, "second") as replay:
        assert replay.num_online == 0
        assert replay.load_state(state) == 0
    with open_replay(path, "second") as replay:
        assert same(replay, Model([rows], {(0, 0): 0}))
        assert replay.insert(rows, worker=0, incarnation=0, sequence=0) == 30


def test_an_insert_given_up_by_an_error_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal then names two inserts at the same place; the later one counts."""
    path = tmp_path / "ring.arrow"
    random, model = np.random.default_rng(5), Model()
    with open_replay(path) as replay:
        assert replay._ring is not None
        model.pieces.append(random_trajectory(random, 9))
        replay.insert(model.pieces[0], worker=0, incarnation=0, sequence=0)
        with monkeypatch.context() as patch:
            patch.setattr(replay._ring._rows, "write", interrupted(replay._ring._rows.write))
            with pytest.raises(KeyboardInterrupt):
                replay.insert(random_trajectory(random, 12), worker=0, incarnation=0, sequence=1)
    with open_replay(path) as replay:
        model.last = {(0, 0): 0}
        assert same(replay, model)
    model.pieces.append(random_trajectory(random, 5))
    with open_replay(path) as replay:
        assert replay.insert(model.pieces[1], worker=0, incarnation=0, sequence=2) == 14
    with open_replay(path) as replay:
        model.last = {(0, 0): 2}
        assert same(replay, model)


def interrupted(write: Callable[..., None]) -> Callable[..., None]:
    def write_until_interrupted(name: str, first: int, values: np.ndarray) -> None:
        if name == "actions":
            raise KeyboardInterrupt
        write(name, first, values)

    return write_until_interrupted


def damage(path: Path, column: str, row: int) -> None:
    """Change one number of a row behind the ring's back."""
    ring = OnlineRing(path, SCHEMA, CAPACITY, "run")
    ring.columns[column].reshape(ring.file_rows, -1)[row % ring.file_rows, -1] += 1
    ring.close()


@pytest.mark.parametrize("column", ["observations", "remaining", "sequence"])
def test_damaged_rows_are_left_out_and_named_and_the_rest_is_served(tmp_path: Path, column: str) -> None:
    """Blocks are of 10 rows, trajectories of 7: those that reach into a damaged block end before it."""
    path = tmp_path / "ring.arrow"
    model = filled(path, length=6)
    damage(path, column, 235)
    with pytest.warns(RuntimeWarning, match=r"ring.arrow: .* rows 230 to 239 are quarantined") as warned:
        replay = open_replay(path)
    assert len(warned) == 1 and replay.env_steps_inserted == 240
    rows = concatenate(model.pieces)
    remaining = rows["remaining"]
    numbers = np.arange(len(remaining))
    reaching = (numbers < 230) & (numbers + remaining >= 230)
    assert reaching.sum() == 6, "the trajectory of rows 224 to 230"
    rows["remaining"] = np.where(reaching, 229 - numbers, remaining)
    for name in ("observations", "actions", "rewards", "masks"):
        rows[name][230:240] = np.nan
    rows["remaining"][230:240] = 0
    expected = model_windows(rows, CAPACITY)
    assert all(np.isfinite(values).all() for values in expected.values())
    assert replay._ring is not None
    assert_same(ring_windows(replay._ring), expected)
    state = json.loads(json.dumps(replay.state()))
    replay.close()
    with open_replay(path) as replay:  # without another warning
        assert replay._ring is not None
        assert_same(ring_windows(replay._ring), expected)
        assert replay.load_state(state) == 0
        assert_same(ring_windows(replay._ring), expected)


def test_damage_to_the_journal_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ring.arrow"
    model = filled(path)
    notes = path.with_name("ring.arrow.journal")
    ring, original = path.read_bytes(), notes.read_bytes()
    random, refused = np.random.default_rng(6), 0
    written = np.flatnonzero(np.frombuffer(original, np.uint8))
    for place in [*random.choice(written, size=170), *random.integers(0, len(original), size=30)]:
        damaged = bytearray(original)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(ring)
        notes.write_bytes(damaged)
        try:
            with open_replay(path) as replay:
                assert same(replay, model)
        except CorruptSegment as error:
            assert "resume from a checkpoint" in str(error)
            refused += 1
    assert refused > 40


def test_a_ring_that_vanished_is_no_empty_ring(tmp_path: Path) -> None:
    path = tmp_path / "ring.arrow"
    filled(path)
    path.unlink()
    with pytest.raises(CorruptSegment, match="the file is missing; rows up to 400 of this run"):
        open_replay(path)


def test_a_full_disk_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot make the replay's journal"):
        journal.Journal(tmp_path / "ring.arrow.journal", 10**12)


def test_no_batch_is_drawn_twice_over_the_deaths(tmp_path: Path) -> None:
    path = tmp_path / "ring.arrow"
    model = filled(path)
    drawn = []
    for _ in range(3):
        with open_replay(path, seed=3) as replay:
            assert same(replay, model)
            drawn.append(replay.sample(200)["rewards"])
    filled(path, "another")
    with open_replay(path, "another", seed=3) as replay:
        drawn.append(replay.sample(200)["rewards"])
    for index, batch in enumerate(drawn):
        for other in drawn[:index]:
            assert (batch == other).mean() < 0.1


def test_the_journal_has_its_length_for_ever_and_forgets_senders_long_gone(tmp_path: Path) -> None:
    path = tmp_path / "ring.arrow"
    rows = random_trajectory(np.random.default_rng(0), 3)
    with open_replay(path) as replay:
        length = path.with_name("ring.arrow.journal").stat().st_size
        for worker in range(journal.MAX_SENDERS + 500):
            replay.insert(rows, worker=worker, incarnation=2**62 + worker, sequence=2**60)
        assert path.with_name("ring.arrow.journal").stat().st_size == length
        assert replay._ring is not None
        expected = dict(replay._ring.contents.last_sequence)
    assert len(expected) == journal.MAX_SENDERS and (journal.MAX_SENDERS + 499, 2**62 + 1523) in expected
    with open_replay(path) as replay:
        assert replay._ring is not None and replay._ring.contents.last_sequence == expected
        assert replay.env_steps_inserted == 3 * (journal.MAX_SENDERS + 500)
