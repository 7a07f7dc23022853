"""Observations of every kind go the whole way: written, verified, inserted, sampled, and continued from a state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest

from dipole_ray.columns import Column, Schema
from dipole_ray.data.dataset import open_dataset, write_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import Rows, close_trajectory
from dipole_ray.errors import CheckpointError, ConfigError, CorruptSegment, DatasetError, NonFiniteError
from dipole_ray.replay.replay import Replay
from tests.synthetic import random_trajectory

IMAGE, FRAME = Column((6, 5, 3), "uint8"), Column((6, 5, 3), "uint8", table="frames")
KINDS = {
    "image": Schema(IMAGE, 2),
    "named": Schema({"camera": IMAGE, "joints": Column((4,))}, 2),
    "reference": Schema(FRAME, 2),
    "stack": Schema({"now": FRAME, "before": FRAME, "joints": Column((4,))}, 2),
    "plan": Schema(Column((4,), table="scenes"), Column((8, 3))),
}
LENGTHS = (5, 17, 1, 9)
NUM_ENTRIES = 11


def made(column: Column, random: np.random.Generator, count: int) -> np.ndarray:
    """Return `count` random entries of a column, or numbers of entries of its table."""
    if column.table is not None:
        return random.integers(0, NUM_ENTRIES, count)
    if column.dtype == "uint8":
        return random.integers(0, 256, (count, *column.shape)).astype(np.uint8)
    return random.normal(size=(count, *column.shape)).astype(np.float32)


def tables_of(schema: Schema) -> Rows:
    random = np.random.default_rng(7)
    return {name: made(column, random, NUM_ENTRIES) for name, column in schema.tables.items()}


def trajectory(schema: Schema, seed: int, length: int) -> Rows:
    random = np.random.default_rng(seed)
    named = {name: made(column, random, length + 1) for name, column in schema.observed.items()}
    short = {name.partition(".")[2]: values for name, values in named.items()}
    actions = random.uniform(-1, 1, (length, *schema.actions.shape))
    rewards = random.normal(size=length)
    return close_trajectory(named.get("observations", short), actions, rewards, np.ones(length), schema)


def pieces_of(schema: Schema) -> list[Rows]:
    return [trajectory(schema, seed, length) for seed, length in enumerate(LENGTHS)]


def seen(schema: Schema, rows: Rows, tables: Rows, at: int) -> dict[str, np.ndarray]:
    """Return the observation of one row as a policy sees it, by column."""
    return {
        name: rows[name][at] if column.table is None else tables[column.table][rows[name][at]]
        for name, column in schema.observed.items()
    }


def expected_transitions(schema: Schema, pieces: list[Rows], n_step: int) -> dict[bytes, dict[str, np.ndarray]]:
    """Return every transition by its action, walked step by step."""
    tables, found = tables_of(schema), {}
    for rows in pieces:
        length = len(rows["rewards"]) - 1
        for start in range(length):
            end = min(start + n_step, length)
            entry = {"rewards": rows["rewards"][start:end].astype(np.float64).sum(), "actions": rows["actions"][start]}
            entry |= seen(schema, rows, tables, start)
            entry |= {f"next_{name}": value for name, value in seen(schema, rows, tables, end).items()}
            found[rows["actions"][start].tobytes()] = entry
    return found


def flat(batch: dict[str, Any]) -> Rows:
    """Return a batch with `observations.NAME` in place of dicts."""
    named = {name: values for name, values in batch.items() if not isinstance(values, dict)}
    for group, inner in batch.items():
        named |= {f"{group}.{name}": values for name, values in inner.items()} if isinstance(inner, dict) else {}
    return named


def assert_drawn(batch: dict[str, Any], expected: dict[bytes, dict[str, np.ndarray]], *, all_of_them: bool) -> None:
    columns, drawn = flat(batch), set()
    for at, action in enumerate(columns["actions"]):
        drawn.add(action.tobytes())
        for name, value in expected[action.tobytes()].items():
            np.testing.assert_allclose(columns[name][at], value, rtol=1e-6, err_msg=name)
    assert drawn <= expected.keys() and (not all_of_them or drawn == expected.keys())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_observation_is_written_sampled_and_continued_bitwise(tmp_path: Path, kind: str) -> None:
    schema = KINDS[kind]
    offline, online = pieces_of(schema), [trajectory(schema, 100 + i, 6) for i in range(12)]
    write_dataset(tmp_path / "data", offline, schema, {}, tables=tables_of(schema), segment_rows=20)
    dataset = open_dataset(tmp_path / "data", strict=True)
    assert dataset.schema == schema and len(dataset.segments) > 1
    settings: dict[str, Any] = {"offline": [tmp_path / "data"], "online": tmp_path / "ring.arrow", "capacity": 56}
    expected = expected_transitions(schema, offline, 3)
    with Replay(schema=schema, n_step=3, discount=1.0, **settings) as replay:
        batch = replay.sample(32, 30)
        assert_drawn(batch, expected, all_of_them=True)
        for name, column in schema.as_seen.observed.items():
            assert flat(batch)[name].dtype == flat(batch)[f"next_{name}"].dtype == column.dtype
        for sequence, piece in enumerate(online):  # more than the ring holds, so that it wraps
            replay.insert(piece, worker=0, incarnation=0, sequence=sequence)
        newest = expected_transitions(schema, online[-8:], 3)
        assert_drawn(replay.sample(32, 30, offline_fraction=0.0), newest, all_of_them=True)
        assert_drawn(replay.sample(32, 30), {**expected, **newest}, all_of_them=True)
        state = json.loads(json.dumps(replay.state()))
        following = flat(replay.sample(32, 4))
        table = feather.read_table(tmp_path / "ring.arrow", memory_map=False)
        assert table.column_names == [*schema.columns, "sequence"]
    with Replay(schema=schema, n_step=3, discount=1.0, **settings) as replay:
        assert replay.load_state(state) == 0
        again = flat(replay.sample(32, 4))
    assert all(np.array_equal(again[name], values) for name, values in following.items())


def test_a_frame_that_many_rows_share_lies_on_the_disk_once(tmp_path: Path) -> None:
    big = Column((64, 64, 3), "uint8", table="frames")
    schema, entries = Schema({"now": big, "before": big}, 2), np.zeros((20, 64, 64, 3), np.uint8)
    rows = [trajectory(Schema(big, 2), 0, 400)]
    numbers = np.minimum(np.arange(401) // 20, NUM_ENTRIES - 1).astype(np.int32)
    for piece in rows:
        del piece["observations"]
        piece |= {"observations.now": numbers, "observations.before": np.maximum(numbers - 1, 0)}
    write_dataset(tmp_path / "data", rows, schema, {}, tables={"frames": entries})
    size = sum(path.stat().st_size for path in (tmp_path / "data").iterdir())
    assert entries.nbytes < size < 1.1 * entries.nbytes, "401 rows with two frames each take the bytes of 20 frames"
    assert Replay(schema=schema, offline=[tmp_path / "data"]).sample(8)["observations"]["now"].shape == (8, 64, 64, 3)


def test_inserted_rows_hold_whole_observations_beside_a_dataset_that_refers_to_a_table(tmp_path: Path) -> None:
    """What an environment gives is new, and what a dataset holds once stays there once."""
    stored, whole = KINDS["reference"], KINDS["image"]
    assert stored.as_seen == whole
    offline, online = pieces_of(stored), pieces_of(whole)
    write_dataset(tmp_path / "data", offline, stored, {}, tables=tables_of(stored))
    expected = expected_transitions(stored, offline, 1) | expected_transitions(whole, online, 1)
    ring: dict[str, Any] = {"online": tmp_path / "ring.arrow", "capacity": 100}
    with Replay(schema=whole, offline=[tmp_path / "data"], discount=1.0, **ring) as replay:
        for sequence, piece in enumerate(online):
            replay.insert(piece, worker=0, incarnation=0, sequence=sequence)
        assert_drawn(replay.sample(64, 30), expected, all_of_them=True)


def test_a_reference_to_no_entry_and_a_table_that_does_not_fit_are_refused(tmp_path: Path) -> None:
    schema = KINDS["reference"]
    tables, pieces = tables_of(schema), pieces_of(schema)
    pieces[1]["observations"][3] = NUM_ENTRIES
    with pytest.raises(
        DatasetError, match=r"'observations' refers to entries 0 to 11, table 'frames' has 11; give the"
    ):
        write_dataset(tmp_path / "data", pieces, schema, {}, tables=tables)
    for wrong, message in (
        ({}, r"side tables \['frames'\] are needed and \[\] given"),
        ({"frames": tables["frames"][:, :4]}, r"must be uint8 of shape \(entries, 6, 5, 3\); found uint8 of shape"),
        ({"frames": tables["frames"][:0]}, r"must be uint8 of shape \(entries, 6, 5, 3\)"),
    ):
        with pytest.raises(DatasetError, match=message):
            write_dataset(tmp_path / "data", pieces_of(schema), schema, {}, tables=wrong)
    plan = KINDS["plan"]
    scenes = tables_of(plan)["scenes"]
    scenes[2, 1] = np.nan
    with pytest.raises(NonFiniteError, match="entry 2 of table 'scenes' holds NaN"):
        write_dataset(tmp_path / "data", pieces_of(plan), plan, {}, tables={"scenes": scenes})
    assert not (tmp_path / "data").exists()
    write_dataset(tmp_path / "data", pieces_of(schema), schema, {}, tables=tables)
    ring: dict[str, Any] = {"online": tmp_path / "ring.arrow", "capacity": 100}
    with Replay(schema=schema, offline=[tmp_path / "data"], **ring) as replay:
        with pytest.raises(DatasetError, match="table 'frames' has 11"):
            replay.insert(pieces[1], worker=0, incarnation=0, sequence=0)
        assert replay.num_online == 0
    with pytest.raises(ConfigError, match=r"side tables of one dataset \(frames\), and 0 are given"):
        Replay(schema=schema, online=tmp_path / "other.arrow", capacity=100)


def test_a_damaged_table_is_found_and_a_replaced_dataset_leaves_no_table_behind(tmp_path: Path) -> None:
    schema = KINDS["reference"]
    first = write_dataset(tmp_path / "data", pieces_of(schema), schema, {"file": "a.npz"}, tables=tables_of(schema))
    path = tmp_path / "data" / first.tables["frames"].name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptSegment, match=r"checksum mismatch.*every row may refer to it: restore the file.*a\.npz"):
        open_dataset(tmp_path / "data")
    write_dataset(tmp_path / "data", [random_trajectory(np.random.default_rng(0), 5)], Schema(3, 2), {}, overwrite=True)
    assert not path.exists() and len(list((tmp_path / "data").iterdir())) == 2
    assert open_dataset(tmp_path / "data").tables == {}


def test_statistics_are_those_of_vectors_and_weigh_entries_by_their_rows(tmp_path: Path) -> None:
    """An image has none; beside it the vectors count."""
    for kind, schema in KINDS.items():
        write_dataset(tmp_path / kind, pieces_of(schema), schema, {}, tables=tables_of(schema))
        replay = Replay(schema=schema, offline=[tmp_path / kind])
        if kind in ("image", "reference"):
            with pytest.raises(
                DatasetError, match=r"observations are .*uint8 \(6, 5, 3\).*observation_normalization=none"
            ):
                replay.observation_statistics()
            continue
        name = "observations" if kind == "plan" else "observations.joints"
        values = np.concatenate([piece[name] for piece in pieces_of(schema)])
        if kind == "plan":
            values = tables_of(schema)["scenes"][values]
        values = values.astype(np.float64)
        for found, right in zip(
            replay.observation_statistics(), (values.mean(axis=0), values.std(axis=0)), strict=True
        ):
            np.testing.assert_allclose(found, right, rtol=1e-6)


def test_inspection_of_anything_but_vectors_and_images_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for kind, schema in KINDS.items():
        write_dataset(tmp_path / kind, pieces_of(schema), schema, {}, tables=tables_of(schema))
        inspection = inspect_dataset(tmp_path / kind, expected=schema)
        is_refused = any("only vectors and images are inspected" in finding.what for finding in inspection.findings)
        assert is_refused == (kind not in ("image", "named"))
        assert is_refused or (inspection.verdict != "error" and inspection.figures["transitions"] == sum(LENGTHS))


def test_floats_are_not_stored_as_pixels(tmp_path: Path) -> None:
    schema = KINDS["image"]
    bright = close_trajectory(np.full((3, 6, 5, 3), 0.5), np.zeros((2, 2)), np.zeros(2), np.ones(2), schema)
    with pytest.raises(DatasetError, match=r"column 'observations' must be uint8 of shape .* found float64"):
        write_dataset(tmp_path / "data", [bright], schema, {})


def test_other_columns_are_refused_by_dataset_ring_and_state(tmp_path: Path) -> None:
    image, taller = KINDS["image"], Schema(Column((5, 6, 3), "uint8"), 2)
    write_dataset(tmp_path / "data", pieces_of(image), image, {})
    with pytest.raises(DatasetError, match=r"observations have uint8 \(6, 5, 3\) and .* has uint8 \(5, 6, 3\) and 2"):
        Replay(schema=taller, offline=[tmp_path / "data"])
    with Replay(schema=image, online=tmp_path / "ring.arrow", capacity=64) as replay:
        state = replay.state()
    with pytest.raises(
        ConfigError, match=r"rows of observations uint8 \(6, 5, 3\), .* needs 72 rows of observations uint8"
    ):
        Replay(schema=taller, online=tmp_path / "ring.arrow", capacity=64)
    with (
        Replay(schema=taller, online=tmp_path / "other.arrow", capacity=64) as replay,
        pytest.raises(CheckpointError, match="does not fit this replay"),
    ):
        replay.load_state(state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_survives_json(kind: str) -> None:
    assert Schema.from_json(json.loads(json.dumps(KINDS[kind].to_json()))) == KINDS[kind]


def test_columns_that_cannot_be_stored_are_refused() -> None:
    for wrong in ((), (0,)), ({}, 2), ({"a.b": Column((3,))}, 2), (3, Column((2,), "uint8")), (3, Column()):
        with pytest.raises(ConfigError):
            Schema(*(Column(part) if isinstance(part, tuple) else part for part in wrong))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="one dtype and shape"):
        Schema({"a": Column((3,), table="t"), "b": Column((4,), table="t")}, 2)
    with pytest.raises(ConfigError, match="float64"):
        Column((3,), "float64")
    with pytest.raises(ConfigError, match=r"observations are uint8 \(6, 5, 3\) and actions 2, where flat vectors"):
        _ = KINDS["image"].observation_dim


def test_a_dataset_of_vectors_is_written_byte_for_byte_as_it_always_was(tmp_path: Path) -> None:
    rows = random_trajectory(np.random.default_rng(5), 40)
    manifest = write_dataset(tmp_path / "data", [rows], Schema(3, 2), {})
    fields, arrays = [], []
    for name, values in rows.items():
        array = pa.array(values.reshape(-1))
        if values.ndim == 2:
            kind = pa.list_(pa.field("item", pa.float32(), nullable=False), values.shape[1])
            array = pa.FixedSizeListArray.from_arrays(array, type=kind)
        fields.append(pa.field(name, array.type, nullable=False))
        arrays.append(array)
    batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
    with pa.OSFile(str(tmp_path / "plain.arrow"), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    assert (tmp_path / "data" / manifest.files[0].name).read_bytes() == (tmp_path / "plain.arrow").read_bytes()
    written = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert [*written] == ["format", "version", "schema", "source", "files", "checksum"]
    assert written["schema"] == {"observation_dim": 3, "action_dim": 2}
