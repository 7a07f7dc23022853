"""Malformed tables, and datasets whose manifest vouches for what it should not."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

from dipole_ray.columns import Schema
from dipole_ray.data.dataset import MANIFEST, _json_checksum, write_dataset
from dipole_ray.data.schema import remaining_steps
from dipole_ray.data.segment import arrow_schema
from dipole_ray.data.sources.mapping import TableMapping
from tests.data.malformed import Case
from tests.data.malformed_npz import AGAIN, BIG_ROWS, Make, payload
from tests.synthetic import random_trajectory, transition_columns, write_table

Columns = dict[str, Any]
SCHEMA = Schema(3, 2)
ENDS = TableMapping(terminals="terminals", timeouts="timeouts")
EPISODE = TableMapping(episode="episode")

# ---- tables ----


def columns() -> Columns:
    """Return a good table: two trajectories, one terminated, one cut by a time limit."""
    return transition_columns(np.random.default_rng(0), [20, 30])


def table(change: Callable[[Columns], Columns], suffix: str = "parquet") -> Make:
    """Return a maker of the good table with changed columns."""
    return lambda folder: write_table(folder / f"table.{suffix}", change(columns()))


def with_column(suffix: str = "parquet", **values: Any) -> Make:
    """Return a maker of a table of three rows with some columns replaced."""

    def make(folder: Path) -> Path:
        good = {"rewards": [1.0, 2.0, 3.0], "actions": [[0.1]] * 3, "observations": [[1.0]] * 3, "episode": [0, 0, 1]}
        made = pa.table(good | values)
        path = folder / f"table.{suffix}"
        pq.write_table(made, path) if suffix == "parquet" else feather.write_feather(made, str(path))
        return path

    return make


def at(name: str, row: int, value: float) -> Make:
    """Return a maker of the good table with one row of a column set to `value`."""

    def change(found: Columns) -> Columns:
        found[name] = found[name].astype(np.float64)
        found[name][row] = value
        return found

    return table(change)


def swapped(found: Columns) -> Columns:
    found["next_observations"][[6, 7]] = found["next_observations"][[7, 6]]
    return found


def same_name_twice(folder: Path) -> Path:
    made = pa.table(
        {**columns(), **{name: list(columns()[name]) for name in ("observations", "actions", "next_observations")}}
    )
    made = made.append_column("rewards", made["rewards"])
    feather.write_feather(made, str(folder / "table.feather"))
    return folder / "table.feather"


def constant(folder: Path) -> Path:
    """Write 20 million equal rows, which Parquet encodes in a few hundred kilobytes."""
    zeros = np.zeros(20_000_000, np.float32)
    names = ("observations", "actions", "rewards", "episode")
    pq.write_table(pa.table(dict.fromkeys(names, zeros)), folder / "table.parquet")
    return folder / "table.parquet"


def compressed(folder: Path) -> Path:
    """Write 400 MB of zeros as one batch of a few kilobytes."""
    zeros = np.zeros(25_000_000, np.float32)
    made = pa.table(dict.fromkeys(("observations", "actions", "rewards", "episode"), zeros))
    feather.write_feather(made, str(folder / "table.feather"), compression="zstd", chunksize=len(zeros))
    return folder / "table.feather"


def false_length(folder: Path) -> Path:
    """Write a small compressed table, one buffer of which says that it decompresses to 10 GB."""
    path = folder / "table.feather"
    rewards = np.zeros(1000)
    made = pa.table({"rewards": rewards, "observations": rewards, "actions": rewards, "episode": rewards})
    feather.write_feather(made, str(path), compression="zstd")
    content = path.read_bytes()
    assert content.count(struct.pack("<q", 8000)) >= 4
    path.write_bytes(content.replace(struct.pack("<q", 8000), struct.pack("<q", 10 * 10**9)))
    return path


def with_offsets(folder: Path) -> Path:
    """Write a table whose lists begin far beyond their numbers: Arrow would follow."""
    path = write_table(folder / "table.feather", columns(), row_group=50)
    feather.write_feather(feather.read_table(str(path)), str(path), compression="uncompressed")
    content = path.read_bytes()
    offsets = struct.pack("<4i", 0, 3, 6, 9)
    assert offsets in content
    path.write_bytes(content.replace(offsets, struct.pack("<4i", 0, 3, 2**30, 9)))
    return path


def big_table(folder: Path) -> Path:
    """Write 32 MB with a missing reward in the end."""
    rewards = pa.array(np.zeros(BIG_ROWS, np.float32), mask=np.arange(BIG_ROWS) == BIG_ROWS - 1)
    numbers = pa.FixedSizeListArray.from_arrays(
        pa.array(np.random.default_rng(0).random(14 * BIG_ROWS, np.float32)), 14
    )
    actions = pa.array(np.zeros(BIG_ROWS, np.float32))
    made = pa.table(
        {"observations": numbers, "actions": actions, "rewards": rewards, "episode": np.arange(BIG_ROWS) // 1000}
    )
    pq.write_table(made, folder / "table.parquet", row_group_size=65_536)
    return folder / "table.parquet"


def cut(folder: Path) -> Path:
    path = write_table(folder / "table.parquet", columns())
    path.write_bytes(path.read_bytes()[:-20])
    return path


def pipe(folder: Path) -> Path:
    (folder / "tables").mkdir()
    os.mkfifo(folder / "tables" / "0.parquet")
    return folder / "tables"


TABLES = [
    Case(
        "table: missing column",
        table(lambda c: {k: v for k, v in c.items() if k != "rewards"}),
        "'rewards'",
        "--map rewards=",
        is_readable_for_inspect=True,
    ),
    Case("table: text", with_column(rewards=["a", "b", "c"]), "'rewards' is of type string", "map a column of numbers"),
    Case("table: lists of lists", with_column(observations=[[[1.0]]] * 3), "'observations'", "map a column"),
    Case(
        "table: ragged lists",
        with_column(observations=[[1.0], [1.0, 2.0], [1.0]]),
        "'observations' .*row 1",
        "same length",
    ),
    Case(
        "table: empty lists",
        with_column(observations=pa.array([[], [], []], pa.list_(pa.float32()))),
        "'observations'",
        "at least one number",
    ),
    Case("table: missing values", with_column(rewards=[1.0, None, 2.0]), "'rewards' .*row 1", "fill them"),
    Case(
        "table: no rows",
        table(
            lambda c: (
                {k: v[:0] for k, v in c.items() if v.ndim == 1} | {"observations": np.zeros(0), "actions": np.zeros(0)}
            )
        ),
        "rows",
        "nothing to import",
        EPISODE,
    ),
    Case("table: every row an end", with_column(episode=[0, 1, 2]), "'episode'", "map next_observations"),
    Case("table: NaN for an end", at("terminals", 4, np.nan), "'terminals' .*row 4", "store 1"),
    Case("table: two for an end", at("timeouts", 4, 2.0), "'timeouts' .*row 4", "store 1"),
    Case("table: NaN for an episode", with_column(episode=[0.0, np.nan, 1.0]), "'episode' .*row 1", "fill it"),
    Case(
        "table: lists for episodes", with_column("feather", episode=[[0], [0], [1]]), "'episode'", "one number or text"
    ),
    Case("table: NaN in a reward", at("rewards", 7, np.nan), r"row 7 \(rewards\)", "--non-finite drop"),
    Case("table: actions outside [-1, 1]", table(lambda c: c | {"actions": 4 * c["actions"]}), "actions", "--env"),
    Case("table: rows out of order", table(swapped), "row 6", "sort the table"),
    Case(
        "table: other next observations",
        table(lambda c: c | {"next_observations": c["observations"][:, :2]}),
        "next_observations have 2",
        "map columns",
    ),
    Case("table: the same name twice", same_name_twice, "'rewards'", "rename"),
    Case(
        "table: a mapping to nothing",
        table(lambda c: c),
        "'velocity_\\*'",
        "--map observations=",
        TableMapping(observations="velocity_*", episode="episode"),
    ),
    Case(
        "table: a mapping to two",
        table(lambda c: c),
        "rewards needs one column",
        "map a single column",
        TableMapping(rewards="t*", episode="episode"),
    ),
    Case(
        "table: a number of 5000 digits",
        with_column(**{"obs_" + "9" * 5000: ["a", "b", "c"]}),
        "'obs_999",
        "map a column of numbers",
        TableMapping(observations="obs_*", episode="episode"),
    ),
    Case("table: a Parquet bomb", constant, "columns observations, actions, rewards", "original source", EPISODE),
    Case("table: a Feather bomb", compressed, "batches", "original source", EPISODE),
    Case("table: a false length of 10 GB", false_length, "batches", "original source", EPISODE),
    Case("table: offsets beyond the file", with_offsets, "(?i)offset", AGAIN),
    Case("table: cut short", cut, "table", AGAIN),
    Case("table: a pickle", lambda folder: _write(folder / "table.parquet", payload(folder)), "table", AGAIN),
    Case(
        "table: a pickle as Feather", lambda folder: _write(folder / "table.feather", payload(folder)), "table", AGAIN
    ),
    Case("table: a pipe", pipe, "0.parquet", "remove it"),
    Case("table: 32 MB, a null in the end", big_table, f"'rewards' .*row {BIG_ROWS - 1}", "fill them", EPISODE),
]


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ---- datasets ----


def dataset(change: Callable[[Path, dict[str, Any]], None]) -> Make:
    """Return a maker of a good dataset whose manifest, and whatever else, is changed; its checksums fit afterwards."""

    def make(folder: Path) -> Path:
        random = np.random.default_rng(0)
        write_dataset(folder / "data", [random_trajectory(random, 20), random_trajectory(random, 30)], SCHEMA, {})
        manifest = json.loads((folder / "data" / MANIFEST).read_text())
        body = {key: value for key, value in manifest.items() if key != "checksum"}
        change(folder / "data", body)
        if (folder / "data" / MANIFEST).exists():
            (folder / "data" / MANIFEST).write_text(json.dumps({**body, "checksum": _json_checksum(body)}))
        return folder / "data"

    return make


def entry(**values: Any) -> Make:
    """Return a maker of a dataset with another line in its manifest."""
    return dataset(lambda folder, body: body["files"][0].update(values))


def manifest(content: bytes) -> Make:
    """Return a maker of a dataset with another manifest."""

    def make(folder: Path) -> Path:
        path = dataset(lambda _, body: None)(folder)
        (path / MANIFEST).write_bytes(content)
        return path

    return make


def vouched(content: Callable[[Path], bytes]) -> Make:
    """Return a maker of a dataset whose manifest vouches for any file."""

    def change(folder: Path, body: dict[str, Any]) -> None:
        written = content(folder.parent)
        (folder / body["files"][0]["name"]).write_bytes(written)
        body["files"][0] |= {"bytes": len(written), "crc32": zlib.crc32(written)}

    return dataset(change)


def rows(compression: str | None = None, count: int = 52, **changes: Any) -> Callable[[Path], bytes]:
    """Return the bytes of a data file of `count` rows, with any columns, compressed or not."""

    def content(_: Path) -> bytes:
        closing = np.isin(np.arange(count), (20, count - 1))
        values = {"observations": np.zeros((count, 3)), "actions": np.zeros((count, 2)), "rewards": np.zeros(count)}
        values |= {"masks": np.ones(count), "remaining": remaining_steps(np.ones(count), closing), **changes}
        schema = arrow_schema(SCHEMA.columns)
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(value.reshape(-1), pa.float32()), type=field.type)
            if value.ndim > 1
            else pa.array(value, field.type)
            for value, field in zip(values.values(), schema, strict=True)
        ]
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_file(sink, schema, options=options) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        return bytes(sink.getvalue())

    return content


def linked(folder: Path, body: dict[str, Any]) -> None:
    path = folder / body["files"][0]["name"]
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


def endless(folder: Path) -> Path:
    """Write a manifest of 8 GiB, none of it on the disk."""
    path = dataset(lambda _, body: None)(folder)
    os.truncate(path / MANIFEST, 1 << 33)
    return path


DATASETS = [
    Case(
        "dataset: no manifest",
        dataset(lambda folder, _: (folder / MANIFEST).unlink()),
        "manifest.json",
        "make one with",
    ),
    Case("dataset: half a manifest", manifest(b'{"format": "dipole-data'), "manifest.json", "restore it"),
    Case(
        "dataset: a pickle for a manifest",
        lambda folder: manifest(payload(folder))(folder),
        "manifest.json",
        "restore it",
    ),
    Case("dataset: a manifest that nests", manifest(b"[" * 10**6), "manifest.json", "restore it"),
    Case(
        "dataset: a number of a million digits",
        manifest(b'{"version": ' + b"1" * 10**6 + b"}"),
        "manifest.json",
        "restore it",
    ),
    Case("dataset: a manifest of 8 GiB", endless, "manifest.json", "restore it"),
    Case(
        "dataset: another version",
        dataset(lambda _, body: body.update(version=99)),
        "version 99",
        "import the original",
    ),
    Case(
        "dataset: a changed manifest",
        manifest(b'{"format": "dipole-dataset", "version": 1, "checksum": "0"}'),
        "checksum",
        "restore it",
    ),
    Case("dataset: a file name that leads out", entry(name="../../x"), r"'\.\./\.\./x'", "do not use"),
    Case("dataset: an absolute file name", entry(name="/etc/passwd"), "'/etc/passwd'", "do not use"),
    Case("dataset: a name that is a number", entry(name=7), "'name'", "restore it"),
    Case("dataset: negative rows", entry(rows=-52), "'rows'", "restore it"),
    Case("dataset: more rows than bytes", entry(rows=10**12), "1000000000000 rows", "restore it"),
    Case("dataset: no transitions", entry(transitions=0), "0 transitions", "restore it"),
    Case("dataset: a length of text", entry(bytes="9"), "'bytes'", "restore it"),
    Case("dataset: an unknown entry", entry(loader="pickle"), "loader", "import the dataset again"),
    Case(
        "dataset: dimensions below one",
        dataset(lambda _, body: body["schema"].update(action_dim=-2)),
        "action_dim=-2",
        "import the dataset again",
    ),
    Case(
        "dataset: dimensions beyond any",
        dataset(lambda _, body: body["schema"].update(observation_dim=10**15)),
        "cannot hold",
        "restore it",
    ),
    Case("dataset: a link for a file", dataset(linked), r"data-00000.*\.arrow: is a link", "restore the file|import"),
    Case(
        "dataset: a flipped byte",
        dataset(lambda folder, body: _flip(folder / body["files"][0]["name"])),
        "checksum mismatch",
        "restore the file",
    ),
    Case(
        "dataset: a pickle for a file",
        vouched(lambda folder: payload(folder).ljust(4096, b".")),
        r"data-00000.*\.arrow",
        "restore the file",
    ),
    Case("dataset: other rows than said", vouched(rows(count=51)), "holds 51 rows", "restore the file"),
    Case("dataset: a compressed bomb", vouched(rows("zstd", count=2_000_000)), "compressed", "restore the file"),
    Case(
        "dataset: ends that contradict the rows",
        vouched(rows(remaining=np.full(52, 7))),
        "'remaining'",
        "restore the file",
    ),
    Case(
        "dataset: rows that count backwards",
        vouched(rows(remaining=np.full(52, -1))),
        "'remaining'",
        "restore the file",
    ),
]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
