"""The online ring holds exactly the newest rows, through wraps, restarts and torn writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipole_ray.columns import Schema
from dipole_ray.data.schema import Rows, concatenate
from dipole_ray.errors import CheckpointError, ConfigError, CorruptSegment, DatasetError, NonFiniteError
from dipole_ray.replay.n_step import gather_n_step
from dipole_ray.replay.replay import Replay
from dipole_ray.replay.ring import OnlineRing
from tests.synthetic import random_trajectory

SCHEMA = Schema(3, 2)
POWERS = 0.9 ** np.arange(5.0)


def append(ring: OnlineRing, rows: Rows) -> int:
    """Insert as one worker that never fails; return how many of the rows are transitions."""
    before = ring.contents.env_steps
    return ring.append(rows, worker=0, incarnation=0, sequence=before) - before


def ring_windows(ring: OnlineRing) -> dict[str, np.ndarray]:
    """Return every window that the ring can give, oldest first."""
    return gather_n_step(ring.columns, ring.transition_rows(np.arange(ring.num_transitions)), POWERS)


def model_windows(rows: Rows, capacity: int) -> dict[str, np.ndarray]:
    """Return the same from a plain list of all rows ever inserted."""
    valid = np.flatnonzero(rows["remaining"])
    valid = valid[valid >= len(rows["remaining"]) - capacity]
    return gather_n_step(rows, valid, POWERS)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@settings(max_examples=25, deadline=None)
@given(
    capacity=st.integers(12, 70),
    lengths=st.lists(st.integers(1, 11), min_size=1, max_size=40),
    restart=st.integers(0, 40),
    seed=st.integers(0, 100),
)
def test_ring_equals_a_list_of_the_newest_rows(
    tmp_path_factory: pytest.TempPathFactory, capacity: int, lengths: list[int], restart: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("ring") / "ring.arrow"
    ring, pieces = OnlineRing(path, SCHEMA, capacity), []
    for index, length in enumerate(lengths):
        pieces.append(random_trajectory(random, length))
        assert append(ring, pieces[-1]) == length
        assert_same(ring_windows(ring), model_windows(concatenate(pieces), capacity))
        if index == restart:
            state = json.loads(json.dumps(ring.state()))
            ring.close()
            ring = OnlineRing(path, SCHEMA, capacity)
            assert ring.num_transitions == 0
            assert ring.load_state(state) == 0
            assert_same(ring_windows(ring), model_windows(concatenate(pieces), capacity))
    ring.close()


def test_ring_is_a_feather_file_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "ring.arrow"
    random = np.random.default_rng(0)
    ring = OnlineRing(path, SCHEMA, 64)
    for count in range(12):
        table = feather.read_table(path, memory_map=False)
        assert table.num_rows == ring.file_rows
        sequence = np.sort(table["sequence"].to_numpy())
        newest = sequence[sequence > 0]
        np.testing.assert_array_equal(
            newest, np.arange(ring.contents.rows_written - len(newest), ring.contents.rows_written) + 1
        )
        assert len(newest) == min(ring.contents.rows_written, ring.file_rows) == min(count * 11, ring.file_rows)
        append(ring, random_trajectory(random, 10))
    with pa.ipc.open_file(path) as reader:
        reader.get_batch(0).validate(full=True)


def test_rows_after_the_state_are_dropped_even_after_a_wrap(tmp_path: Path) -> None:
    """What the checkpoint names survives further inserts of up to an eighth of the capacity, less one block."""
    random = np.random.default_rng(1)
    ring = OnlineRing(tmp_path / "ring.arrow", SCHEMA, 160)
    pieces = [random_trajectory(random, 9) for _ in range(40)]
    for piece in pieces[:39]:
        append(ring, piece)
    state, expected = ring.state(), ring_windows(ring)
    append(ring, pieces[39])
    assert ring.load_state(state) == 0
    assert_same(ring_windows(ring), expected)
    append(ring, pieces[39])
    assert_same(ring_windows(ring), model_windows(concatenate(pieces), 160))


def test_rows_overwritten_since_the_state_are_left_out_and_said(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    ring = OnlineRing(tmp_path / "ring.arrow", SCHEMA, 160)
    pieces = [random_trajectory(random, 9) for _ in range(40)]
    for piece in pieces[:30]:
        append(ring, piece)
    state = ring.state()
    for piece in pieces[30:]:
        append(ring, piece)
    with pytest.warns(RuntimeWarning, match="overwritten after this checkpoint"):
        lost = ring.load_state(state)
    assert 100 - (ring.file_rows - 160) <= lost <= 100
    assert_same(ring_windows(ring), model_windows(concatenate(pieces[:30]), 160 - lost))


@pytest.mark.parametrize("later", [210, 1000, 1900, 3500])
def test_what_remains_of_an_overwritten_checkpoint_is_a_checkpoint_like_any_other(tmp_path: Path, later: int) -> None:
    """Rows are overwritten in part or, from 1800 later ones on, all; the last of them lies inside a block of 100."""
    random, path = np.random.default_rng(22), tmp_path / "ring.arrow"

    def piece() -> Rows:
        return random_trajectory(random, 10)

    def opened() -> OnlineRing:
        return OnlineRing(path, SCHEMA, 1600, "run")

    ring, pieces = opened(), [piece() for _ in range(155)]  # 1705 rows
    for rows in pieces:
        append(ring, rows)
    state = json.loads(json.dumps(ring.state()))
    for _ in range(later // 11):
        append(ring, piece())
    with pytest.warns(RuntimeWarning, match="overwritten after this checkpoint"):
        lost = ring.load_state(state)
    for inserts in (0, 7, 30, 200):
        for _ in range(inserts):
            pieces.append(piece())
            append(ring, pieces[-1])
        rows = concatenate(pieces)
        held = min(1600, len(rows["remaining"]) - 105 - lost)
        assert_same(ring_windows(ring), model_windows(rows, held))
        state = json.loads(json.dumps(ring.state()))
        ring.close()
        ring = opened()
        assert_same(ring_windows(ring), model_windows(rows, held))
        assert ring.load_state(state) == 0
        assert_same(ring_windows(ring), model_windows(rows, held))


def test_rows_overwritten_by_a_course_that_was_given_up_are_overwritten_not_damaged(tmp_path: Path) -> None:
    """Back to the second checkpoint and then to the first, whose oldest rows the dropped ones had overwritten."""
    random, path = np.random.default_rng(23), tmp_path / "ring.arrow"
    ring, pieces, states = OnlineRing(path, SCHEMA, 160), [random_trajectory(random, 9) for _ in range(40)], []
    for index, piece in enumerate(pieces):
        append(ring, piece)
        if index in (29, 30):
            states.append(json.loads(json.dumps(ring.state())))
    for state, inserts in zip(reversed(states), (31, 30), strict=True):
        with pytest.warns(RuntimeWarning, match="overwritten after this checkpoint"):
            lost = ring.load_state(state)
        assert_same(ring_windows(ring), model_windows(concatenate(pieces[:inserts]), 160 - lost))


def test_an_insert_cut_short_by_a_kill_leaves_the_checkpoint_whole(tmp_path: Path) -> None:
    """A process is killed while it overwrites rows; the resumed ring gives the checkpoint's rows."""
    script = """
import json, os, signal, sys
import numpy as np
from pathlib import Path
from dipole_ray.replay.ring import OnlineRing
from dipole_ray.replay.ring_rows import RingRows
from dipole_ray.columns import Schema
from tests.replay.test_ring import append
from tests.synthetic import random_trajectory

write = RingRows.write
def killed(self, name, first, values):
    if first >= 310 and name == "rewards":
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, name, first, values)

RingRows.write = killed
random = np.random.default_rng(3)
ring = OnlineRing(Path(sys.argv[1]), Schema(3, 2), 160)
for index in range(40):
    if index == 30:
        Path(sys.argv[2]).write_text(json.dumps(ring.state()))
    append(ring, random_trajectory(random, 9))
"""
    path, state_path = tmp_path / "ring.arrow", tmp_path / "state.json"
    done = subprocess.run([sys.executable, "-c", script, str(path), str(state_path)], check=False)
    assert done.returncode == -9
    random = np.random.default_rng(3)
    pieces = [random_trajectory(random, 9) for _ in range(30)]
    ring = OnlineRing(path, SCHEMA, 160)
    assert ring.load_state(json.loads(state_path.read_text())) == 0
    assert_same(ring_windows(ring), model_windows(concatenate(pieces), 160))


def filled(path: Path, inserts: int = 30) -> tuple[dict[str, Any], int]:
    random = np.random.default_rng(4)
    with Replay(schema=SCHEMA, online=path, capacity=200) as replay:
        for sequence in range(inserts):
            replay.insert(random_trajectory(random, 9), worker=0, incarnation=0, sequence=sequence)
        return replay.state(), replay.env_steps_inserted


def test_bit_flips_in_rows_of_the_checkpoint_are_found(tmp_path: Path) -> None:
    path = tmp_path / "ring.arrow"
    state, _ = filled(path)
    original = path.read_bytes()
    ring = OnlineRing(path, SCHEMA, 200)
    offsets = {name: column.ctypes.data - ring._mapped.ctypes.data for name, column in ring.columns.items()}
    file_rows = ring.file_rows
    ring.close()
    random = np.random.default_rng(5)
    for _ in range(12):
        row = int(random.integers(300 - 200, 300)) % file_rows
        damaged = bytearray(original)
        damaged[offsets["observations"] + row * 12 + int(random.integers(12))] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with (
            Replay(schema=SCHEMA, online=path, capacity=200) as replay,
            pytest.raises(CorruptSegment, match=r"checksum mismatch .* rows \d+ to \d+ .* resume from an older"),
        ):
            replay.load_state(state)


def test_a_damaged_header_never_changes_what_is_sampled(tmp_path: Path) -> None:
    """Arrow's own metadata has no checksum of ours: a flip there is refused, or touches nothing that is used."""
    path = tmp_path / "ring.arrow"
    state, _ = filled(path)
    original = path.read_bytes()
    with Replay(schema=SCHEMA, online=path, capacity=200) as replay:
        replay.load_state(state)
        expected = replay.sample(50, 4)
    ring = OnlineRing(path, SCHEMA, 200)
    base = ring._mapped.ctypes.data
    begin = ring.columns["observations"].ctypes.data - base
    end = ring.columns["sequence"].ctypes.data - base + ring.columns["sequence"].nbytes
    ring.close()
    places = [*range(begin), *range(end, len(original))]
    random, refused = np.random.default_rng(6), 0
    for place in random.choice(places, size=150):
        damaged = bytearray(original)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            with Replay(schema=SCHEMA, online=path, capacity=200) as replay:
                assert replay.load_state(state) == 0
                assert_same(replay.sample(50, 4), expected)
        except (CorruptSegment, ConfigError):
            refused += 1
    assert refused > 30


def test_a_missing_short_or_foreign_ring_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ring.arrow"
    state, _ = filled(path)
    original = path.read_bytes()
    path.write_bytes(original[: len(original) // 2])
    with pytest.raises(CorruptSegment, match="cut short"):
        Replay(schema=SCHEMA, online=path, capacity=200)
    path.write_bytes(b"")
    with pytest.raises(CorruptSegment, match="0 bytes"):
        Replay(schema=SCHEMA, online=path, capacity=200)
    path.unlink()
    with Replay(schema=SCHEMA, online=path, capacity=200) as replay, pytest.raises(CorruptSegment, match="missing"):
        replay.load_state(state)
    filled(path, inserts=3)
    with Replay(schema=SCHEMA, online=path, capacity=200) as replay, pytest.raises(CorruptSegment, match="not hold"):
        replay.load_state(state)
    with pytest.raises(ConfigError, match="capacity and environment it was made with"):
        Replay(schema=SCHEMA, online=path, capacity=300)
    with (
        Replay(schema=SCHEMA, online=tmp_path / "b", capacity=300) as replay,
        pytest.raises(CheckpointError, match="capacity 200, this replay 300"),
    ):
        replay.load_state(state)


def test_a_second_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dipole_ray.replay.ring_file.LOCK_WAIT_S", 0.2)
    path = tmp_path / "ring.arrow"
    with (
        Replay(schema=SCHEMA, online=path, capacity=100),
        pytest.raises(DatasetError, match="another replay is writing"),
    ):
        Replay(schema=SCHEMA, online=path, capacity=100)
    Replay(schema=SCHEMA, online=path, capacity=100).close()


def test_a_ring_larger_than_the_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError,
        match=r"the disk has .* free; lower the replay capacity \(training\.replay_capacity, at most \d+ here",
    ):
        Replay(schema=SCHEMA, online=tmp_path / "ring.arrow", capacity=10**13)
    assert not list(tmp_path.iterdir())


def test_file_stays_within_a_fifth_over_capacity(tmp_path: Path) -> None:
    ring = OnlineRing(tmp_path / "ring.arrow", SCHEMA, 20_000)
    random = np.random.default_rng(6)
    size = ring.path.stat().st_size
    for _ in range(50):
        append(ring, random_trajectory(random, 1999))
    assert ring.path.stat().st_size == size <= 1.2 * 20_000 * (SCHEMA.row_bytes + 8)


@pytest.mark.parametrize("column", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_rows_are_refused_whole_and_named(tmp_path: Path, column: str, value: float) -> None:
    random = np.random.default_rng(7)
    with Replay(schema=SCHEMA, online=tmp_path / "ring.arrow", capacity=100) as replay:
        rows = random_trajectory(random, 8)
        rows[column][5] = value
        with pytest.raises(NonFiniteError, match=rf"worker 3 .*row 5 of column '{column}'"):
            replay.insert(rows, worker=3, incarnation=0, sequence=0)
        assert (replay.num_online, replay.env_steps_inserted) == (0, 0)
        assert replay.insert(random_trajectory(random, 8), worker=3, incarnation=0, sequence=0) == 8


def test_rows_that_do_not_fit_are_refused_whole(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    good = random_trajectory(random, 8, mask_rate=0.0)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"observations": good["observations"].astype(np.float64)}, "float64"),
        ({"observations": good["observations"][:, :2]}, "shape"),
        ({"remaining": good["remaining"][::-1].copy()}, "close_trajectory"),
        ({"remaining": np.maximum(good["remaining"], 1)}, "close_trajectory"),
        ({"masks": np.full(9, 0.5, np.float32)}, "masks must be 0 or 1"),
        ({"actions": good["actions"] * 3}, "outside"),
        ({"extra": good["rewards"]}, "columns must be"),
    ]
    with Replay(schema=SCHEMA, online=tmp_path / "ring.arrow", capacity=100) as replay:
        for change, message in bad:
            with pytest.raises(DatasetError, match=message):
                replay.insert(good | change, worker=0, incarnation=0, sequence=0)
        with pytest.raises(DatasetError, match="exceeds the capacity"):
            replay.insert(random_trajectory(random, 100), worker=0, incarnation=0, sequence=0)
        assert replay.num_online == replay.env_steps_inserted == 0
