"""Checkpoints: one folder each, `checkpoints/000004000`, of safetensors files and a `state.json`; never pickle.

A folder is written beside its place, every file flushed to the disk, then renamed: it is there whole or not at all.
`state.json` names every file with its length and SHA-256, and carries a checksum of itself, so that a flipped bit
or a cut anywhere in a checkpoint is found before anything of it is used.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.files.durable import replacing, sync
from dipole_ray.files.place import absolute
from dipole_ray.files.provenance import package_versions

FORMAT = 1
STATE_FILE = "state.json"
MAX_STATE_BYTES = 64 * 2**20

Contents = Mapping[str, Mapping[str, Tensor] | str]
"""By file name flat tensors, in a safetensors file whose suffix is left out, or the text of a .json file."""
_log = logging.getLogger(__name__)
_STEP_NAME = re.compile(r"\d{9,}")
BESIDE = "../"
"""Begins the name of a file that lies once beside all checkpoints that name it, such as a frozen backbone."""
_FILE_NAME = re.compile(
    r"\.\./backbone-[0-9a-f]{16}|"
    r"[A-Za-z0-9_][A-Za-z0-9_-]*(/[A-Za-z0-9_][A-Za-z0-9_-]*){0,2}(\.json)?"
)
_WRITING, _REPLACED, _REMOVING = ".writing-", ".replaced-", ".removing-"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """How often the run is saved, and how many checkpoints stay on the disk."""

    every_learner_steps: int = 50_000
    """Updates between two checkpoints; one is also written at the end of each phase and on Ctrl-C."""
    keep: int = 2
    """Checkpoints that stay, at least 1; with 2, one is left if the disk damages the other."""
    retry_minutes: float = 60.0
    """How long a run pauses, trying again, when the disk is full or refuses a write; 0 = end at once with the error."""

    def __post_init__(self) -> None:
        """Reject a run that never saves, keeps nothing, or waits for less than no time."""
        if self.every_learner_steps < 1:
            found = f"checkpoint.every_learner_steps is {self.every_learner_steps}: at least 1 is needed"
            raise ConfigError(f"{found}; give a number above the run's updates to save only at the end of each phase")
        if self.keep < 1:
            raise ConfigError(f"checkpoint.keep is {self.keep}: at least 1 is needed, or nothing could be resumed")
        if not 0.0 <= self.retry_minutes < math.inf:
            raise ConfigError(f"checkpoint.retry_minutes is {self.retry_minutes}: give 0 or a finite number of minutes")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a verified checkpoint holds."""

    path: Path
    learner_steps: int
    tensors: dict[str, dict[str, Tensor]]  # by file name without suffix, on the CPU, not shared with anything
    metadata: dict[str, Any]  # the writer's own JSON values
    versions: dict[str, str]  # of packages at the time of writing


def write_checkpoint(directory: Path, learner_steps: int, contents: Contents, metadata: Mapping[str, Any]) -> Path:
    """Write a checkpoint of a run into the folder of all of them, whole or not at all, and return its own folder.

    A run has one writer: what an earlier, killed one left half-written is removed. A checkpoint with the same
    `learner_steps`, which name it, is replaced. On a failure the checkpoints that were there before are untouched.
    Tensors may lie on any device; `metadata` are JSON values: text keys, finite numbers.

    Raises:
        CheckpointError: The disk is full or read-only, or `metadata` is not JSON.
    """
    _require_json(dict(metadata), "metadata")  # first: what cannot be read back must not replace what can
    for file_name, content in contents.items():
        if not _FILE_NAME.fullmatch(file_name) or file_name.endswith(".json") != isinstance(content, str):
            raise CheckpointError(f"checkpoint file name '{file_name}': only letters, digits, '_' and '-' can be used")
    name = f"{learner_steps:09d}"
    final, writing = directory / name, directory / f"{_WRITING}{name}-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove(directory, _WRITING, _REMOVING)
        writing.mkdir()
        _fill(writing, learner_steps, contents, metadata)
        if final.exists():
            # Until the next rename, `newest_valid` finds the old checkpoint under this second name.
            _remove(directory, _REPLACED)
            final.rename(directory / f"{_REPLACED}{name}")
        writing.rename(final)
        sync(directory)
        _remove(directory, _REPLACED)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {final}: could not be written ({error.strerror or error}); earlier checkpoints are "
            "untouched; free space or make the folder writable, then go on with 'dipole train --resume'"
        ) from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return final


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, or the newest valid one of a folder, every byte verified; CheckpointError where none is."""
    path = absolute(path)  # read again when a learner dies, wherever the process works then
    if not (path / STATE_FILE).exists():
        newest = newest_valid(path)
        if newest is None:
            raise CheckpointError(f"{path}: holds no valid checkpoint; give a run or checkpoint folder that has one")
        path = newest
    state = _read_state(path)
    tensors = {}
    for name, record in state["files"].items():
        data = _read_verified(path, name, record)
        if name.endswith(".json"):  # for other programs
            continue
        try:
            tensors[name] = safetensors.torch.load(data)
        except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
            raise _damaged(_place(path, name), f"not a safetensors file: {error}") from None
    return Checkpoint(path, state["learner_steps"], tensors, state["metadata"], state["versions"])


@contextlib.contextmanager
def entries_of(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what is missing or of another type in a checkpoint's metadata, met in this block, into CheckpointError.

    A checksum says that nobody changed a file by accident, not that it was written by a run of this project.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        found = f"does not hold what a run saves there ({type(error).__name__}: {error})"
        raise CheckpointError(f"{checkpoint.path}: {found}; resume from another checkpoint") from error


def newest_valid(directory: Path, *, not_after: int | None = None) -> Path | None:
    """Return the newest whole checkpoint of at most `not_after` updates, or None; a warning names each damaged one."""
    for path in _checkpoints(directory):
        if not_after is not None and steps_of(path) > not_after:
            continue
        try:
            for name, record in _read_state(path)["files"].items():
                _read_verified(path, name, record)
            return path
        except CheckpointError as error:
            _log.warning("passed over: %s", error)
    return None


def prune(newest: Path, keep: int) -> None:
    """Remove all checkpoints but `newest`, just written, and the `keep - 1` before it.

    Later ones go too: the run has gone back behind them, and a resume must not take them for its newest.

    Raises:
        CheckpointError: One could not be removed.
    """
    found = _checkpoints(newest.parent)
    kept = [path for path in found if steps_of(path) <= steps_of(newest)][:keep]
    try:
        for path in [path for path in found if path not in kept]:
            # Renamed first, so that a kill in the middle leaves no half-removed folder that looks like a checkpoint.
            path.rename(path.with_name(f"{_REMOVING}{steps_of(path):09d}"))
            _remove(newest.parent, _REMOVING)
    except OSError as error:
        raise CheckpointError(f"{newest.parent}: old checkpoints could not be removed ({error.strerror})") from error


def _checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoint folders, the newest first; a set-aside one counts where its successor never arrived."""
    if not directory.is_dir():
        return []
    found = {path.name: path for path in directory.iterdir() if _STEP_NAME.fullmatch(path.name)}
    for path in directory.glob(f"{_REPLACED}*"):
        found.setdefault(path.name.removeprefix(_REPLACED), path)
    return sorted(found.values(), key=steps_of, reverse=True)


def steps_of(path: Path) -> int:
    """Return the learner steps that a checkpoint folder is named after."""
    return int(path.name.removeprefix(_REPLACED))


def _fill(folder: Path, learner_steps: int, contents: Contents, metadata: Mapping[str, Any]) -> None:
    """Write all files of a checkpoint into `folder` and flush them to the disk."""
    files = {}
    for name, content in contents.items():
        data = content.encode() if isinstance(content, str) else _saved(content)
        if name.startswith(BESIDE):
            _write_once(_place(folder, name), data)
        else:
            file = _place(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    body = {"format": FORMAT, "learner_steps": learner_steps, "written_s": time.time(), "versions": package_versions()}
    body |= {"files": files, "metadata": dict(metadata)}
    (folder / STATE_FILE).write_text(json.dumps({**body, "checksum": _checksum(body)}, indent=1))
    for file in (*folder.rglob("*"), folder):
        sync(file)


def _saved(tensors: Mapping[str, Tensor]) -> bytes:
    """Return a safetensors file of clones: it refuses tensors that share memory, as tied weights and views do."""
    contiguous = torch.contiguous_format
    plain = {key: value.detach().cpu().clone(memory_format=contiguous) for key, value in tensors.items()}
    data: bytes = safetensors.torch.save(plain)
    return data


def _write_once(file: Path, data: bytes) -> None:
    """Write a file unless it is there with this content."""
    if not file.is_file() or file.stat().st_size != len(data) or file.read_bytes() != data:
        with replacing(file) as temporary:
            temporary.write_bytes(data)


def copy_checkpoint(path: Path, directory: Path) -> None:
    """Copy a checkpoint, and what lies beside it, into another folder of checkpoints."""
    shutil.copytree(path, directory / path.name)
    for file in beside(path):
        shutil.copyfile(file, directory / file.name)


def beside(path: Path) -> list[Path]:
    """Return the files that a checkpoint is read with, and that lie beside its folder."""
    names = [name for name in _read_state(path)["files"] if name.startswith(BESIDE)]
    return [path.parent / _place(path, name).name for name in names]


def _place(folder: Path, name: str) -> Path:
    """Return where a file of a checkpoint lies."""
    return folder / (name if name.endswith(".json") else f"{name}.safetensors")


def _read_state(path: Path) -> dict[str, Any]:
    """Return `state.json`, its checksum and layout verified."""
    file = path / STATE_FILE
    try:
        state = json.loads(_read_regular(file, MAX_STATE_BYTES))
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"not JSON: {str(error)[:200]}") from None
    if not isinstance(state, dict):
        raise _damaged(file, "not a JSON object")
    if (written := state.get("format")) != FORMAT:
        raise CheckpointError(
            f"{file}: format {written!r}, this version of dipole_ray reads format {FORMAT}; install the version of "
            "dipole_ray that wrote it ('versions' in the same file)"
        )
    if state.pop("checksum", None) != _checksum(state):  # of everything but itself
        raise _damaged(file, "its content does not match its checksum")
    for key, kind in {"learner_steps": int, "versions": dict, "metadata": dict, "files": dict}.items():
        if type(state.get(key)) is not kind or (key == "files" and not _is_file_table(state[key])):
            raise _damaged(file, f"'{key}' is missing or of the wrong form")
    return state


def _is_file_table(table: Mapping[str, Any]) -> bool:
    """Return whether `table` maps plain file names, none of which leaves the folder, to lengths and checksums."""
    return all(
        _FILE_NAME.fullmatch(name)
        and isinstance(record, dict)
        and (type(record.get("bytes")), type(record.get("sha256"))) == (int, str)
        for name, record in table.items()
    )


def _read_verified(path: Path, name: str, record: Mapping[str, Any]) -> bytes:
    """Return the bytes of one tensor file if they are those that were written."""
    file = _place(path, name)
    if not name.startswith(BESIDE) and any((path / one).is_symlink() for one in Path(name).parents[:-1]):
        raise _damaged(file, "its folder is a link")
    data = _read_regular(file, record["bytes"])
    if len(data) != record["bytes"]:
        raise _damaged(file, f"{len(data)} bytes, {record['bytes']} were written")
    found = hashlib.sha256(data).hexdigest()
    if found != record["sha256"]:
        raise _damaged(file, f"checksum mismatch (stored {record['sha256'][:12]}, read {found[:12]})")
    return data


def _read_regular(file: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes`; links and devices are refused."""
    try:
        if file.is_symlink() or not file.is_file():
            raise _damaged(file, "missing, or not a regular file")
        if (size := file.stat().st_size) > max_bytes:
            raise _damaged(file, f"{size} bytes, at most {max_bytes} belong there")
        return file.read_bytes()
    except OSError as error:
        raise _damaged(file, error.strerror or str(error)) from None


def _damaged(file: Path, finding: str) -> CheckpointError:
    """Return the error for a file that cannot be trusted, with the way out."""
    return CheckpointError(f"{file}: {finding}; remove this checkpoint's folder, or resume from another one beside it")


def _checksum(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON values, whatever their layout on the disk."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _remove(directory: Path, *prefixes: str) -> None:
    """Remove the working folders with these prefixes."""
    for path in directory.iterdir():
        if path.name.startswith(prefixes):
            shutil.rmtree(path)


def _require_json(value: Any, where: str) -> None:
    """Raise CheckpointError, naming the key, where `value` would not come back from JSON as it is."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise CheckpointError(f"{where}: the key {key!r} is no text; use str({key!r})")
            _require_json(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_json(item, f"{where}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise CheckpointError(f"{where} is {value}: JSON has no such number; store null")
    elif value is not None and not isinstance(value, str | int):
        raise CheckpointError(f"{where} is a {type(value).__name__}: only JSON values can be stored there")
