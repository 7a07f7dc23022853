"""Context tokens on disk: what an encoder made of the scenes of a folder, once, for all who learn and act there.

    FOLDER/contexts.json    the encoder's checksum, that of the scenes, and the entry of each file
    FOLDER/*.arrow          the tokens of the scenes of one file each, (n, T, C) float16, mapped and not read

The list is written after each file, so what was interrupted goes on. Tokens of another encoder or of other scenes are
refused.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.columns import Column
from dipole_ray.data.segment import SegmentEntry, open_segment, write_segment
from dipole_ray.driving.container import SceneFolder
from dipole_ray.driving.encoders import ContextEncoder, open_encoder
from dipole_ray.driving.vehicle import Array
from dipole_ray.errors import CorruptSegment, DatasetError, counted
from dipole_ray.files.durable import read_json, write_json
from dipole_ray.files.place import make_folder
from dipole_ray.parallel import map_tasks

LIST_NAME, FORMAT = "contexts.json", 1
MAX_LIST_BYTES = 256 << 20
_COLUMN = "tokens"
SCENES_A_SECOND = {"tiny": 15.0, "small": 60.0, "large": 0.2}  # that one core encodes: whether starting Ray pays


@dataclass(frozen=True, slots=True)
class _List:
    """What the list of a folder says."""

    encoder: str
    shape: tuple[int, int]
    scenes: list[list[int]]
    files: Mapping[int, SegmentEntry]
    """by the number of the file of scenes"""

    def write(self, folder: Path) -> None:
        files = {str(number): entry.to_json() for number, entry in self.files.items()}
        head = {"format": FORMAT, "encoder": self.encoder, "shape": list(self.shape), "scenes": self.scenes}
        write_json(folder / LIST_NAME, {**head, "files": files})


def default_folder(scenes: Path, policy: str) -> Path:
    """Return where the contexts of a folder's scenes lie."""
    return scenes / f"contexts-{policy}"


@dataclass(frozen=True, slots=True)
class _Task:
    """The scenes of one file, and who encodes them."""

    scenes: Path
    number: int
    tokens: tuple[str, ...]
    encoder: tuple[str, Path | None, Path | None, str]

    def __str__(self) -> str:
        return f"{self.scenes}, file {self.number}"


def encode_scenes(
    scenes: SceneFolder,
    out: Path,
    policy: str,
    weights: Path | None = None,
    sensors: Path | None = None,
    device: str = "cpu",
) -> "Contexts":
    """Write the context tokens of all scenes of a folder, by Ray tasks where it pays, and open them.

    Args:
        scenes: The scenes.
        out: The folder to write, a new one or one to go on with.
        policy: Whose encoder, see `open_encoder`, which the other arguments are for.
        weights: Of the encoder.
        sensors: The log's pictures.
        device: `cpu`, or `cuda`: a GPU a task.

    Raises:
        ConfigError: The encoder cannot be made.
        DatasetError: The folder holds tokens of another encoder or other scenes, or a scene cannot be seen.
    """
    encoder = _encoder(policy, weights, sensors, "cpu")  # here there may be no GPU
    given = policy, weights, sensors, device
    found = _List(encoder.identity, encoder.shape, scenes.content, {})
    if (out / LIST_NAME).exists():
        found = _listed(out)
        _require(out, found, scenes, encoder)
    make_folder(out)
    files = dict(found.files)

    def save(task: _Task, tokens: Array) -> SegmentEntry:
        entry = write_segment(out, f"tokens-{task.number}", {_COLUMN: tokens}, _layout(encoder.shape))
        files[task.number] = entry
        replace(found, files=files).write(out)
        return entry

    map_tasks(
        _encoded,
        [_Task(scenes.folder, number, tokens, given) for number, tokens in enumerate(scenes.files) if tokens],
        description=f"encode by {policy}",
        unit="scenes",
        size=lambda task: len(task.tokens),
        rate=SCENES_A_SECOND[policy],
        num_gpus=1.0 if device == "cuda" else 0.0,
        saved=lambda task: files.get(task.number),
        save=save,
    )
    return Contexts(out, scenes)


def _encoded(task: _Task) -> Array:
    """Return the context tokens of a file's scenes, (n, T, C) float16."""
    folder = SceneFolder(task.scenes)
    return _encoder(*task.encoder)([folder.read(token) for token in task.tokens])


@lru_cache(maxsize=1)  # a worker encodes many files by one encoder, whose weights take seconds to read
def _encoder(policy: str, weights: Path | None, sensors: Path | None, device: str) -> ContextEncoder:
    return open_encoder(policy, weights, sensors, device)


class Contexts:
    """The context tokens of a folder's scenes; they lie in mapped files, not in memory."""

    def __init__(self, folder: Path, scenes: SceneFolder) -> None:
        """Open them.

        Raises:
            DatasetError: There are none, or not all, or they are of other scenes.
            CorruptSegment: A file is damaged.
        """
        found = _listed(folder)
        _require(folder, found, scenes)
        groups = {number: tokens for number, tokens in enumerate(scenes.files) if tokens}
        if missing := groups.keys() - found.files.keys():
            left = counted(sum(len(groups[number]) for number in missing), "scene")
            raise DatasetError(f"{folder}: {left} not encoded; run 'dipole drive encode' again, it goes on")
        self.folder, self.encoder, self.shape = folder, found.encoder, found.shape
        self._places: dict[str, tuple[Array, int]] = {}
        for number, tokens in groups.items():
            entry = found.files[number]
            try:
                rows = open_segment(folder, entry, _layout(found.shape))[_COLUMN]
            except CorruptSegment as error:
                raise CorruptSegment(f"{error}; remove {folder} and run 'dipole drive encode' again") from None
            if len(rows) != len(tokens):
                raise CorruptSegment(f"{folder / entry.name}: {len(rows)} scenes, {len(tokens)} are needed")
            self._places.update({token: (rows, index) for index, token in enumerate(tokens)})

    def __len__(self) -> int:
        return len(self._places)

    def read(self, tokens: Sequence[str]) -> Array:
        """Return the context tokens of some scenes, (n, T, C) float16; DatasetError where one is no scene here."""
        if unknown := [token for token in tokens if token not in self._places]:
            raise DatasetError(f"{self.folder}: no scene {unknown[0]!r:.60}")
        found = np.empty((len(tokens), *self.shape), dtype=np.float16)
        for row, (rows, index) in zip(found, (self._places[token] for token in tokens), strict=True):
            row[:] = rows[index]
        return found


def require_one_encoder(contexts: Sequence[Contexts]) -> str:
    """Return the encoder that made them all; DatasetError where there are several."""
    first = contexts[0]
    for other in contexts[1:]:
        if other.encoder != first.encoder:
            raise DatasetError(
                f"{other.folder} is encoded by {other.encoder[:12]} and {first.folder} by {first.encoder[:12]}: a "
                "policy reads one encoder's tokens; encode both with the same weights"
            )
    return first.encoder


def encoder_of(folder: Path) -> str:
    """Return the checksum of the encoder that made a folder's tokens; DatasetError where there are none."""
    return _listed(folder).encoder


def _require(folder: Path, found: _List, scenes: SceneFolder, encoder: ContextEncoder | None = None) -> None:
    remedy = "give another folder, or remove this one"
    if found.scenes != scenes.content:
        raise DatasetError(f"{folder}: holds the tokens of other scenes than {scenes.folder}; {remedy}")
    if encoder is not None and found.encoder != encoder.identity:
        both = f"{found.encoder[:12]}, and this one is {encoder.identity[:12]}"
        raise DatasetError(f"{folder}: holds the tokens of another encoder, {both}; {remedy}")


def _layout(shape: tuple[int, int]) -> dict[str, Column]:
    return {_COLUMN: Column(shape, "float16")}


def _listed(folder: Path) -> _List:
    path = folder / LIST_NAME
    made = "'dipole drive encode' makes one"
    try:
        found: Any = read_json(path, MAX_LIST_BYTES, version=FORMAT)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); {made}") from None
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        files = {int(number): SegmentEntry(**entry) for number, entry in found["files"].items()}
        plain = all(Path(entry.name).name == entry.name for entry in files.values())
        first, second = (int(length) for length in found["shape"])
        if plain and first > 0 and second > 0:
            return _List(
                str(found["encoder"]), (first, second), [list(map(int, one)) for one in found["scenes"]], files
            )
    raise DatasetError(f"{path}: not a list of context tokens; {made}")
