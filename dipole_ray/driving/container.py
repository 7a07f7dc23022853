"""Scenes on disk: a folder of Arrow files, a scene a record batch, its polygons as well-known binary.

    FOLDER/scenes.json    tokens, length and CRC-32 of each file, and where the scenes come from
    FOLDER/NAME.arrow     the scenes of one log, or of one part of a recording

A file is written whole or not at all, and the list of files last; a folder whose list says that it is not complete is
refused. Length and checksum are verified before a file is opened, once by each who opens the folder.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dipole_ray.data.segment import file_checksum
from dipole_ray.data.sources.arrow_index import declared_bytes
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.rows import SCHEMA, scene_of_row, scene_row, status_array
from dipole_ray.driving.vehicle import Array
from dipole_ray.errors import CorruptSegment, DatasetError, counted
from dipole_ray.files.durable import read_json, replacing, write_json
from dipole_ray.files.place import make_folder

LIST_NAME, FORMAT = "scenes.json", 1
MAX_LIST_BYTES = 256 << 20
MAX_SCENE_BYTES = 256 << 20
_LOST = b"lost"
STATUS_COLUMNS = ("token", "command", "motion", "history", "human")


@dataclass(frozen=True, slots=True)
class Shard:
    """What the list says of one file."""

    name: str
    bytes: int
    crc32: int
    tokens: tuple[str, ...]
    lost: tuple[str, ...] = ()
    """a sentence for each scene that could not be made"""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the scenes of a folder come from."""

    source: str
    """the row's name in every table, such as `SUMO-OSM, not NAVSIM`"""
    attribution: str
    """what has to be said wherever they are shown"""
    settings: Mapping[str, Any]
    """what made them; a folder is only continued with the same"""


def shard_bytes(scenes: Iterable[RecordedScene], lost: Sequence[str] = ()) -> bytes:
    """Return the Arrow file of scenes, with a sentence for each that could not be made."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    schema = SCHEMA.with_metadata({_LOST: json.dumps(list(lost)).encode()})
    with pa.ipc.new_file(sink, schema, options=options) as writer:
        for scene in scenes:
            writer.write_batch(pa.RecordBatch.from_pylist([scene_row(scene)], schema=schema))
    return bytes(sink.getvalue())


def write_shard(folder: Path, name: str, content: bytes) -> Shard:
    """Write one file, whole or not at all, and return its entry for the list."""
    path = folder / f"{name}.arrow"
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return shard_entry(path)


def shard_entry(path: Path) -> Shard:
    """Return the entry of a file that is there.

    Raises:
        DatasetError: It is damaged.
    """
    reader = _opened(path)
    tokens = tuple(reader.get_batch(i).column("token")[0].as_py() for i in range(reader.num_record_batches))
    lost = tuple(json.loads((reader.schema.metadata or {}).get(_LOST, b"[]")))
    return Shard(path.name, path.stat().st_size, file_checksum(path), tokens, lost)


def start_folder(folder: Path, origin: Origin) -> None:
    """Make a folder that is not complete, or go on with one.

    Raises:
        DatasetError: It holds other scenes, or is complete.
    """
    make_folder(folder)
    if (folder / LIST_NAME).exists():
        found = _listed(folder)
        if json.loads(json.dumps(dict(origin.settings))) != found["settings"]:
            raise DatasetError(f"{folder}: holds scenes made with other settings; give another folder, or remove it")
        return
    if any(folder.glob("*.arrow")):
        raise DatasetError(f"{folder}: has Arrow files and no {LIST_NAME}; give another folder")
    _write_list(folder, origin, [], complete=False)


def finish_folder(folder: Path, origin: Origin, shards: Sequence[Shard]) -> None:
    """Write the list of a folder whose files are all there."""
    _write_list(folder, origin, shards, complete=True)


def _write_list(folder: Path, origin: Origin, shards: Sequence[Shard], *, complete: bool) -> None:
    head = {"format": FORMAT, "complete": complete, "source": origin.source, "attribution": origin.attribution}
    rows = [asdict(shard) for shard in shards]
    write_json(folder / LIST_NAME, head | {"settings": dict(origin.settings), "shards": rows})


@dataclass(frozen=True, slots=True)
class SceneStatus:
    """What is known of the car alone, of N scenes."""

    tokens: tuple[str, ...]
    commands: tuple[str, ...]
    motion: Array
    """(N, 4, 4) as in RecordedScene"""
    history: Array
    """(N, 4, 3)"""
    human: Array
    """(N, 8, 3)"""


class SceneFolder:
    """The scenes of a folder, read when they are asked for."""

    def __init__(self, folder: Path, files_in_memory: int = 1) -> None:
        """Open a folder; so many of its files are kept in memory, verified, for who jumps between them.

        Raises:
            DatasetError: It has no list, or is not complete, or the list is damaged.
        """
        found = _listed(folder)
        if not found["complete"]:
            raise DatasetError(f"{folder}: not complete; run the command that makes it again, it goes on")
        self.folder = folder
        self.origin = Origin(found["source"], found["attribution"], found["settings"])
        self._shards = [
            Shard(**{**one, "tokens": tuple(one["tokens"]), "lost": tuple(one["lost"])}) for one in found["shards"]
        ]
        self._places = {token: (shard, index) for shard in self._shards for index, token in enumerate(shard.tokens)}
        if len(self._places) < sum(len(shard.tokens) for shard in self._shards):
            raise DatasetError(f"{folder / LIST_NAME}: names a scene twice")
        self._open: dict[str, pa.RecordBatchFileReader] = {}  # the file read last is last
        self._files_in_memory = files_in_memory

    @property
    def tokens(self) -> tuple[str, ...]:
        """The scenes' tokens, in the order of the files."""
        return tuple(self._places)

    @property
    def files(self) -> list[tuple[str, ...]]:
        """The tokens in each file: what is read together, as each file is read and verified whole."""
        return [shard.tokens for shard in self._shards]

    @property
    def content(self) -> list[list[int]]:
        """Length and checksum of every file: the same for the same scenes, wherever they lie."""
        return [[shard.bytes, shard.crc32] for shard in self._shards]

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[RecordedScene]:
        return (self.read(token) for token in self._places)

    def require(self, token: str) -> None:
        """Raise DatasetError if there is no scene of that token."""
        if token not in self._places:
            raise DatasetError(f"{self.folder}: no scene {token!r:.60}; it has {counted(len(self), 'scene')}")

    def read(self, token: str) -> RecordedScene:
        """Return a scene.

        Raises:
            DatasetError: There is none of that token.
            CorruptSegment: Its file differs from what the list says.
        """
        self.require(token)
        shard, index = self._places[token]
        reader = self._open.pop(shard.name, None) or _verified(self.folder / shard.name, shard)
        self._open[shard.name] = reader
        if len(self._open) > self._files_in_memory:
            del self._open[next(iter(self._open))]
        try:
            batch = reader.get_batch(index)
            batch.validate(full=True)
            return scene_of_row(batch.to_pylist()[0])
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError) as error:
            raise CorruptSegment(f"{self.folder / shard.name}: scene {token} cannot be read ({error})") from None

    def status(self) -> SceneStatus:
        """Return what is known of the car in every scene, without reading what surrounds it.

        Raises:
            CorruptSegment: A file differs from what the list says.
        """
        tables = [
            _columns(_verified(self.folder / shard.name, shard, STATUS_COLUMNS), self.folder / shard.name)
            for shard in self._shards
            if shard.tokens
        ]
        rows = [row for table in tables for row in table.to_pylist()]
        try:
            arrays = {name: status_array(rows, name) for name in ("motion", "history", "human")}
        except ValueError as error:
            raise CorruptSegment(f"{self.folder}: {error}") from None
        return SceneStatus(tuple(row["token"] for row in rows), tuple(row["command"] for row in rows), *arrays.values())


def joined_status(folders: Sequence[SceneFolder]) -> SceneStatus:
    """Return what is known of the car in the scenes of several folders; DatasetError where they share a scene."""
    require_each_scene_once(folders)
    parts = [folder.status() for folder in folders]
    tokens, commands = (tuple(x for one in parts for x in getattr(one, key)) for key in ("tokens", "commands"))
    arrays = (np.concatenate([getattr(one, key) for one in parts]) for key in ("motion", "history", "human"))
    return SceneStatus(tokens, commands, *arrays)


def require_each_scene_once(folders: Sequence[SceneFolder]) -> None:
    """Raise DatasetError if a scene is in two of the folders: it would count twice, in silence."""
    homes: dict[str, Path] = {}
    for folder in folders:
        for token in folder.tokens:
            if token in homes:
                raise DatasetError(f"scene {token} is in {homes[token]} and in {folder.folder}; give each scene once")
            homes[token] = folder.folder


def _columns(reader: pa.RecordBatchFileReader, path: Path) -> pa.Table:
    try:
        table = reader.read_all()
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptSegment(f"{path}: cannot be read ({error})") from None


def is_scene_folder(path: Path) -> bool:
    """Return whether a path is a folder of scenes."""
    return (path / LIST_NAME).is_file()


def is_complete(path: Path) -> bool:
    """Return whether a path is a folder of scenes that are all there."""
    return is_scene_folder(path) and bool(_listed(path)["complete"])


def _verified(path: Path, shard: Shard, columns: Sequence[str] = ()) -> pa.RecordBatchFileReader:
    remedy = "make the folder again"
    if path.is_symlink() or not path.is_file():
        raise CorruptSegment(f"{path}: missing, or no regular file; {remedy}")
    if path.stat().st_size != shard.bytes:
        raise CorruptSegment(f"{path}: length is {path.stat().st_size} bytes, the list says {shard.bytes}; {remedy}")
    if (checksum := file_checksum(path)) != shard.crc32:
        raise CorruptSegment(f"{path}: checksum mismatch (list {shard.crc32:08x}, read {checksum:08x}); {remedy}")
    reader = _opened(path, columns)
    if reader.num_record_batches != len(shard.tokens):
        raise CorruptSegment(f"{path}: {reader.num_record_batches} scenes, the list says {len(shard.tokens)}; {remedy}")
    return reader


def _opened(path: Path, columns: Sequence[str] = ()) -> pa.RecordBatchFileReader:
    """Return the reader of a file in memory: one that is cut short while it is mapped would end the process.

    Without `columns` it reads all of them.
    """
    try:
        size = path.stat().st_size
        if declared_bytes(path) > max(64 * size, MAX_SCENE_BYTES):
            raise ValueError("its scenes would unpack without end")
        content = pa.py_buffer(path.read_bytes())
        reader = pa.ipc.open_file(content)
        if not reader.schema.equals(SCHEMA):
            raise ValueError("it has other columns")
        if columns:
            chosen = [SCHEMA.names.index(name) for name in columns]
            reader = pa.ipc.open_file(content, options=pa.ipc.IpcReadOptions(included_fields=chosen))
        return reader
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptSegment(f"{path}: not a file of scenes of this version ({error})") from None


def _listed(folder: Path) -> dict[str, Any]:
    path = folder / LIST_NAME
    with suppress(KeyError, TypeError):
        try:
            found: dict[str, Any] = read_json(path, MAX_LIST_BYTES, version=FORMAT)
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"{path}: cannot be read ({error}); a folder of scenes is made by dipole drive"
            ) from None
        for one in found["shards"]:
            name, texts = one["name"], [*one["tokens"], *one["lost"]]
            plain = isinstance(name, str) and Path(name).name == name and all(isinstance(text, str) for text in texts)
            if not plain or one.keys() != {"name", "bytes", "crc32", "tokens", "lost"}:
                raise TypeError(name)
        if isinstance(found["complete"], bool) and isinstance(found["settings"], dict):
            _ = found["source"] + found["attribution"]
            return found
    raise DatasetError(f"{path}: not a list of scenes; a folder of scenes is made by dipole drive")
