"""A dataset on disk: a folder of immutable Arrow files and the manifest that names them.

Rows may refer to entries of side tables, a file each, so that an observation which many transitions share (a frame, a
scene) lies on the disk once.

The manifest is written last and atomically, so a folder without one is an import that did not finish, and
a folder with one is complete. Files are named after their content: replacing a dataset never touches the
files of the old one until the new manifest stands.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.columns import Schema
from dipole_ray.data.narrowing import rounded
from dipole_ray.data.quarantine import Quarantined, describe_damage, restore_hint
from dipole_ray.data.schema import Rows, check_references, concatenate, first_non_finite, validate_rows
from dipole_ray.data.segment import SegmentEntry, open_segment, write_segment
from dipole_ray.errors import ConfigError, CorruptSegment, DatasetError, NonFiniteError, warn_once
from dipole_ray.files.durable import format_bytes, read_json, sync, write_json
from dipole_ray.files.lock import LOCK, FolderLock
from dipole_ray.files.place import absolute

FORMAT = "dipole-dataset"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_OURS = re.compile(r"(data|table)-.*\.arrow|\.(data|table)-.*\.arrow\.tmp|\.manifest\.json\.tmp")
_RESTORE = "restore it or import the dataset again"
_SAMPLE_ROWS = 65_536  # that are looked at to tell whether numbers are rounded
SEGMENT_ROWS = 1_000_000  # rows after which a new file is begun: sampling is fastest from one file, so files are large
SEGMENT_BYTES = 1 << 28  # and bytes, where observations are more than vectors: so much is held until it is written


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What `manifest.json` says: version, dimensions, origin and files."""

    schema: Schema  # columns of every file
    source: dict[str, Any]  # where the data came from, as JSON: reader, file, environment, options
    files: tuple[SegmentEntry, ...]  # the files in order
    tables: dict[str, SegmentEntry]  # the side tables by name

    @property
    def num_rows(self) -> int:
        """Rows over all files, closing rows included."""
        return sum(entry.rows for entry in self.files)

    @property
    def num_transitions(self) -> int:
        """Transitions over all files."""
        return sum(entry.transitions for entry in self.files)

    @property
    def content(self) -> list[list[int]]:
        """Rows and checksum of every file: the same for the same data, wherever it lies."""
        return [[entry.rows, entry.crc32] for entry in self.files]

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as a JSON object, with a checksum of the rest in it."""
        body = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "schema": self.schema.to_json(),
            "source": self.source,
            "files": [entry.to_json() for entry in self.files],
        }
        if self.tables:
            body["tables"] = {name: entry.to_json() for name, entry in self.tables.items()}
        return {**body, "checksum": _json_checksum(body)}

    @classmethod
    def from_json(cls, value: dict[str, Any], path: Path) -> Manifest:
        """Check and rebuild a manifest; one that was changed since it was written raises CorruptSegment."""
        if value.get("format") != FORMAT or value.get("version") != FORMAT_VERSION:
            raise DatasetError(
                f"{path}: format {value.get('format')!r} version {value.get('version')!r} is not {FORMAT!r} version "
                f"{FORMAT_VERSION}; import the original data again with this version"
            )
        # Manifests written before there was a checksum have none.
        body = {key: item for key, item in value.items() if key != "checksum"}
        if "checksum" in value and value["checksum"] != _json_checksum(body):
            raise CorruptSegment(f"{path}: its content does not match its checksum; {_RESTORE} into another folder")
        try:
            files = tuple(SegmentEntry(**entry) for entry in value["files"])
            schema, source = Schema.from_json(value["schema"]), dict(value["source"])
            tables = {name: SegmentEntry(**value["tables"][name]) for name in schema.tables}
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            raise CorruptSegment(f"{path}: incomplete manifest ({error!r}); import the dataset again") from error
        for entry in files:
            _check_entry(entry, schema.row_bytes, path)
        for name, column in schema.tables.items():
            _check_entry(tables[name], column.bytes, path, is_table=True)
        return cls(schema=schema, source=source, files=files, tables=tables)


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One verified, mapped file."""

    entry: SegmentEntry  # its line of the manifest
    columns: Rows  # read-only views into the file


@dataclass(frozen=True, slots=True)
class OfflineDataset:
    """An opened dataset; its arrays live in mapped files, not in memory."""

    directory: Path  # the folder
    manifest: Manifest  # what the folder says about itself
    segments: tuple[Segment, ...]  # the verified files
    quarantined: tuple[Quarantined, ...]  # the damaged files, which are not among the segments
    tables: Rows  # read-only views of the side tables, to whose entries rows refer

    @property
    def schema(self) -> Schema:
        """What observations and actions are."""
        return self.manifest.schema

    @property
    def source(self) -> dict[str, Any]:
        """Where the data came from."""
        return self.manifest.source

    @property
    def num_rows(self) -> int:
        """Rows that are served, closing rows included."""
        return sum(segment.entry.rows for segment in self.segments)

    @property
    def num_transitions(self) -> int:
        """Transitions that are served."""
        return sum(segment.entry.transitions for segment in self.segments)

    def iter_rows(self, chunk_rows: int | None = None) -> Iterator[Rows]:
        """Yield views of about `chunk_rows` rows that begin and end with whole trajectories.

        None: 65 536 rows, and of wide ones, such as images, as many as take 256 MB.
        """
        chunk_rows = chunk_rows or max(1, min(_SAMPLE_ROWS, SEGMENT_BYTES // self.schema.row_bytes))
        for segment in self.segments:
            closing = np.flatnonzero(segment.columns["remaining"] == 0)
            start = 0
            while start < segment.entry.rows:
                last = closing[min(int(np.searchsorted(closing, start + chunk_rows - 1)), len(closing) - 1)]
                yield {name: column[start : last + 1] for name, column in segment.columns.items()}
                start = int(last) + 1


def open_dataset(directory: Path | str, *, strict: bool = False) -> OfflineDataset:
    """Open a dataset written by `write_dataset`, verifying every file's length and checksum first.

    A dataset with a damaged file is refused if `strict`. Otherwise the rest is served, with one warning that names the
    files and rows that are not.

    Raises:
        DatasetError: If there is no (complete) dataset.
        CorruptSegment: If the manifest or a side table is damaged, or every file is, or one is and `strict` is true.
    """
    directory = absolute(directory)
    manifest = read_manifest(directory)
    remedy = restore_hint(directory, manifest.source)
    try:
        tables = {
            name: open_segment(directory, manifest.tables[name], {name: column})[name]
            for name, column in manifest.schema.tables.items()
        }
    except CorruptSegment as error:  # without all tables no row is of use
        raise CorruptSegment(f"{error}; every row may refer to it: {remedy}") from error
    segments, damaged, first_row = list[Segment](), list[Quarantined](), 0
    for entry in manifest.files:
        try:
            columns = open_segment(directory, entry, manifest.schema.columns)
            for name, table in manifest.schema.references.items():
                where = f"{directory / entry.name}: column '{name}'"
                check_references(columns[name], len(tables[table]), where, table)
            segments.append(Segment(entry=entry, columns=columns))
        except DatasetError as error:
            damaged.append(Quarantined(entry=entry, first_row=first_row, finding=str(error)))
        first_row += entry.rows
    if damaged:
        what = describe_damage(directory, damaged, manifest.files)
        if strict or not segments:
            raise CorruptSegment(f"{what}; {remedy}")
        warn_once(
            f"{what}; only the other {sum(segment.entry.rows for segment in segments)} rows are used: to get all of "
            f"them, {remedy}; to refuse a damaged dataset, set data.strict=true"
        )
    return OfflineDataset(directory, manifest, tuple(segments), tuple(damaged), tables)


def losses_of(dataset: OfflineDataset) -> list[str]:
    """Return, as `what; remedy`, what float32 could not tell apart when a dataset was made, or seems not to have."""
    if noted := dataset.source.get("narrowed"):
        return list(noted)
    found = rounded(dataset.segments[0].columns["observations"][:_SAMPLE_ROWS]) if dataset.schema.is_flat else None
    return [] if found is None else [found]


def common_offset(sources: Mapping[str | Path, dict[str, Any]]) -> dict[str, float]:
    """Return what was subtracted from the observations of datasets, by dimension; DatasetError where they differ."""
    found = {path: source.get("offset", {}) for path, source in sources.items()}
    first: dict[str, float] = next(iter(found.values()), {})
    for path, offset in found.items():
        if offset != first:
            what = f"observations are stored less the offset {offset}, those in {next(iter(found))} less {first}"
            raise DatasetError(f"{path}: {what}; import both with the same --offset")
    return first


def require_same_bounds(sources: Mapping[str | Path, dict[str, Any]]) -> None:
    """Raise DatasetError where datasets were made with other bounds as -1 and 1: one stored action would mean two."""
    told = {path: source.get("action_bounds") for path, source in sources.items()}
    known = {path: bounds for path, bounds in told.items() if isinstance(bounds, list)}
    for path, bounds in known.items():
        first = next(iter(known))
        if bounds != known[first]:
            what = f"actions were scaled to [-1, 1] from the bounds {bounds}, those in {first} from {known[first]}"
            raise DatasetError(f"{path}: {what}; import both with the same --env")


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a dataset without opening its files."""
    path = directory / MANIFEST
    if not path.is_file():
        found = "an import that did not finish" if any(directory.glob("data-*.arrow")) else "no dataset"
        inside = sorted(file.parent for file in directory.glob(f"*/{MANIFEST}"))
        remedy = "make one with 'dipole data import' or 'dipole data collect'"
        remedy = f"{inside[0]} is one" if inside else remedy
        raise DatasetError(f"{directory}: no {MANIFEST}, so this is {found}; {remedy}")
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise CorruptSegment(f"{path}: cannot be read ({error}); {_RESTORE}") from error
    if not isinstance(value, dict):
        raise CorruptSegment(f"{path}: is not a JSON object; {_RESTORE}")
    return Manifest.from_json(value, path)


def write_dataset(
    directory: Path | str,
    rows: Iterable[Rows],
    schema: Schema,
    source: dict[str, Any],
    *,
    tables: Mapping[str, np.ndarray] | None = None,
    overwrite: bool = False,
    segment_rows: int | None = None,
) -> Manifest:
    """Write whole trajectories as a dataset, all or nothing, and return its manifest.

    Args:
        directory: Folder to make; must not hold anything else.
        rows: Rows of one or more whole trajectories each, with the columns of `schema`; consumed as a stream.
        schema: What the columns are.
        source: Where they came from, JSON-able.
        tables: The side tables of the schema by name, each (entries, *shape); may be mapped files.
        overwrite: Replace a dataset that is already there. The old one stays valid until the new one is complete.
        segment_rows: Rows after which a new file is begun, at the end of the item at hand; None for a million, and of
            images for 256 MB.

    Raises:
        DatasetError: If the folder is taken, a row is wrong, there are no rows, or the disk refuses.
        NonFiniteError: If a number is NaN or infinite.
    """
    directory = Path(directory)
    _check_target(directory, overwrite)
    is_new = not directory.exists()
    if segment_rows is None:
        wide = max(1, SEGMENT_BYTES // schema.row_bytes)
        segment_rows = SEGMENT_ROWS if schema.is_flat else min(SEGMENT_ROWS, wide)
    written: list[SegmentEntry] = []
    try:
        with FolderLock(directory, math.inf):
            _check_target(directory, overwrite)  # another process may have filled it meanwhile
            try:
                named = _write_tables(directory, tables or {}, schema)
                sizes = {name: entry.rows for name, entry in named.items()}
                for number, block in enumerate(_segment_blocks(rows, schema, segment_rows, sizes)):
                    written.append(write_segment(directory, f"data-{number:05d}", block, schema.columns))
                if not written:
                    raise DatasetError(f"{directory}: the source gave no transitions, nothing was written; inspect it")
                manifest = Manifest(schema=schema, source=source, files=tuple(written), tables=named)
                write_json(directory / MANIFEST, manifest.to_json())
            finally:
                _discard_unnamed(directory)
    except OSError as error:
        need = format_bytes(sum(entry.bytes for entry in written))
        found = f"cannot write the dataset ({error.strerror or error}) after {need}; nothing of it was kept"
        raise DatasetError(f"{directory}: {found}: free space or choose another folder with --out") from error
    finally:
        if is_new:
            with suppress(OSError):  # goes if nothing was written
                directory.rmdir()
    return manifest


def _write_tables(directory: Path, tables: Mapping[str, np.ndarray], schema: Schema) -> dict[str, SegmentEntry]:
    """Write the side tables, a file each, and return their entries for the manifest."""
    if tables.keys() != schema.tables.keys():
        found = f"side tables {[*schema.tables]} are needed and {[*tables]} given"
        raise DatasetError(f"{directory}: {found}; pass tables=")
    written = {}
    for name, column in schema.tables.items():
        entries = tables[name]
        if entries.dtype != column.dtype or not len(entries) or entries.shape[1:] != column.shape:
            found = f"table '{name}' must be {column.dtype} of shape (entries, {str(column.shape)[1:]}"
            raise DatasetError(f"{directory}: {found}; found {entries.dtype} of shape {entries.shape}")
        if column.dtype.startswith("float") and (bad := first_non_finite(entries)) is not None:
            raise NonFiniteError(f"{directory}: entry {bad} of table '{name}' holds NaN or infinity; repair the data")
        written[name] = write_segment(directory, f"table-{name}", {name: entries}, {name: column})
    return written


def _check_entry(entry: SegmentEntry, row_bytes: int, path: Path, *, is_table: bool = False) -> None:
    """Refuse a line of the manifest that cannot be of a file beside it."""
    counts = {name: getattr(entry, name) for name in ("rows", "transitions", "bytes", "crc32")}
    strange = [name for name, count in counts.items() if type(count) is not int or count < 0]
    if strange or not isinstance(entry.name, str):
        what = strange[0] if strange else "name"
        raise CorruptSegment(f"{path}: '{what}' of a file is {getattr(entry, what)!r:.80}; {_RESTORE}")
    if Path(entry.name).name != entry.name:
        found = f"file name {entry.name!r:.200} points outside the folder"
        raise CorruptSegment(f"{path}: {found}; do not use this dataset")
    fits = entry.transitions == 0 < entry.rows if is_table else 0 < entry.transitions < entry.rows
    if not fits or entry.rows * row_bytes > entry.bytes:
        raise CorruptSegment(
            f"{path}: file {entry.name!r:.200} of {entry.bytes} bytes cannot hold {entry.rows} rows of "
            f"{row_bytes} bytes with {entry.transitions} transitions; {_RESTORE}"
        )


def _check_target(directory: Path, overwrite: bool) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise DatasetError(f"{directory}: is a file; name a folder for the dataset")
    if (directory / MANIFEST).exists():
        if not overwrite:
            raise DatasetError(f"{directory}: already holds a dataset; choose another folder or pass --overwrite")
        read_manifest(directory)  # somebody else's manifest.json is never replaced
        return
    strangers = [entry.name for entry in directory.iterdir() if not (entry.name == LOCK or _OURS.fullmatch(entry.name))]
    if strangers:
        found = ", ".join(sorted(strangers)[:3])
        raise DatasetError(f"{directory}: holds other files ({found}); name a new or empty folder")


def _json_checksum(body: dict[str, Any]) -> str:
    """Return the CRC-32 of JSON values as a reader gets them, whatever their layout on the disk."""
    text = json.dumps(json.loads(json.dumps(body)), sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x}"


def _segment_blocks(
    pieces: Iterable[Rows], schema: Schema, segment_rows: int, table_rows: Mapping[str, int]
) -> Iterator[Rows]:
    """Group validated rows into blocks of at most `segment_rows` rows where the items allow it."""
    held: list[Rows] = []
    held_rows = total = 0
    for piece in pieces:
        validate_rows(piece, schema, f"rows from {total} on", table_rows)
        count = len(piece["remaining"])
        if held and held_rows + count > segment_rows:
            yield concatenate(held)
            held, held_rows = [], 0
        held.append(piece)
        held_rows += count
        total += count
    if held:
        yield concatenate(held)


def _discard_unnamed(directory: Path) -> None:
    """Remove data files that the standing manifest (if any) does not name; whoever calls it holds the lock."""
    manifest = read_manifest(directory) if (directory / MANIFEST).exists() else None
    kept = {entry.name for entry in (*manifest.files, *manifest.tables.values())} if manifest is not None else set()
    for path in directory.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in kept:
            path.unlink()
    sync(directory)
