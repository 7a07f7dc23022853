"""Read ExORL's episode files, `{domain}/{algorithm}/buffer/episode_{index}_{steps}.npz`.

An episode of T steps has T+1 rows. Row 0 is the start, with a dummy action; row i holds action i and the observation
and physics state it led to. Transition i is therefore (observation[i-1], action[i], reward of physics[i],
observation[i]). The file's own `reward` is that of whatever task the data was collected under, so it is ignored, as
are `discount` (these tasks never end: the mask is 1 everywhere) and `skill`.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dipole_ray.columns import Schema
from dipole_ray.data.sources.guarantees import finite_rows
from dipole_ray.data.sources.npz import ArrayHeader, read_headers, stream_arrays
from dipole_ray.data.sources.reading import Arrays, Block, ImportReport, Reading, bad_array, to_float
from dipole_ray.errors import DatasetError

BUFFER = "buffer"

_NAME = re.compile(r"\w+_(\d+)_(\d+)\.npz")
_ARRAYS = ("observation", "action", "physics")
_AGAIN = "get the file again, or remove it to do without this episode"


def is_exorl(path: Path) -> bool:
    """Return whether `path` is a folder of episodes, or holds one where ExORL puts them."""
    return any(True for _ in _folders(path))


def find_episodes(path: Path) -> list[Path]:
    """Return the episode files of a folder, or of several of one domain below it (seeds), by folder and name."""
    folders = sorted(_folders(path))
    if not folders:
        remedy = "name the folder of episode_000000_1000.npz and its kin, such as walker/rnd/buffer"
        raise DatasetError(f"{path}: holds no episodes; {remedy}")
    found = [sorted(file for file in folder.iterdir() if _NAME.fullmatch(file.name)) for folder in folders]
    firsts = [files[0] for files in found] if len(found) > 1 else []
    sizes = [[episode_headers(file)[name].shape[1] for name in _ARRAYS] for file in firsts]
    for file, size in zip(firsts, sizes, strict=True):
        if size != sizes[0]:
            raise DatasetError(
                f"{path}: holds several folders of episodes, and not of one domain: {firsts[0].parent} has "
                f"{sizes[0][0]} observations and {sizes[0][1]} actions, {file.parent} has {size[0]} and {size[1]}; "
                "name one of them, or a folder above those of one domain"
            )
    return [file for files in found for file in files]


def _folders(path: Path) -> Iterator[Path]:
    """Yield the folders of episodes at `path`: itself, or `buffer` on the four levels below."""
    for folder in (path, *(found for depth in range(4) for found in path.glob("*/" * depth + BUFFER))):
        if folder.is_dir() and any(_NAME.fullmatch(file.name) for file in folder.iterdir()):
            yield folder


def episode_steps(file: Path) -> int:
    """Return the steps of an episode as its file's name says; reading it checks them."""
    return int(file.stem.rpartition("_")[2])


def schema(path: Path, reading: Reading) -> Schema:
    """Return the dimensions of the first episode from its headers alone."""
    headers = episode_headers(find_episodes(path)[0])
    return Schema(headers["observation"].shape[1], headers["action"].shape[1])


def episode_headers(file: Path) -> dict[str, ArrayHeader]:
    """Return the headers of one episode's arrays, which are complete and have the steps that the file's name says."""
    headers = read_headers(file)
    rows = episode_steps(file) + 1
    if rows < 2:
        raise DatasetError(f"{file}: by its name an episode without steps; remove it")
    for name in _ARRAYS:
        header = headers.get(name)
        if header is None:
            found = f"is missing (found {', '.join(sorted(headers)) or 'none'})"
            raise bad_array(file, name, found, f"an episode of ExORL has {', '.join(_ARRAYS)}: {_AGAIN}")
        if header.dtype.kind != "f" or header.dtype.itemsize < (8 if name == "physics" else 4):
            kind = "float64, which exact rewards need" if name == "physics" else "float32 (pixels are not supported)"
            raise bad_array(file, name, f"is of type {header.dtype}, expected {kind}", _AGAIN)
        if len(header.shape) != 2 or 0 in header.shape:
            raise bad_array(file, name, f"has shape {header.shape}, expected (rows, dim)", _AGAIN)
        if header.shape[0] != rows:
            found = f"has {header.shape[0]} rows, an episode of {rows - 1} steps (its name says so) has {rows}"
            raise bad_array(file, name, found, _AGAIN)
    return headers


def read_arrays(file: Path, names: Sequence[str]) -> Arrays:
    """Return some arrays of one episode, T+1 rows each."""
    chunks = list(stream_arrays(file, episode_headers(file), names))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in names}


def physics_digest(files: Sequence[Path]) -> str:
    """Return a digest of the states in `files`: what the rewards of every task depend on, wherever the files lie."""
    digest = hashlib.sha256()
    for file in files:
        header = read_headers(file).get("physics")
        digest.update(f"{file.name} {header and (header.crc32, header.shape)}\n".encode())
    return digest.hexdigest()[:16]


def read(path: Path, reading: Reading, report: ImportReport) -> Iterator[Block]:
    """Return the episodes one by one; they are rewarded first, which may take a while."""
    files = find_episodes(path)
    if reading.labels is not None:
        rewards = reading.labels(files)
    elif reading.needs_rewards:
        raise DatasetError(f"{path}: ExORL's episodes are rewarded for a task; name one of their domain with --env")
    else:
        rewards = (np.zeros(episode_steps(file), np.float32) for file in files)
    return _episodes(files, rewards, reading, report)


def _episodes(
    files: Sequence[Path], rewards: Iterable[np.ndarray], reading: Reading, report: ImportReport
) -> Iterator[Block]:
    dims: tuple[int, int] | None = None
    report.reads({name: [name] for name in _ARRAYS}, read_headers(files[0]).keys() - {"reward", "discount", "skill"})
    folders = dict.fromkeys(file.parent for file in files)
    if len(folders) > 1:
        report.notes.append(f"the episodes of {len(folders)} folders are joined: {', '.join(map(str, folders))}")
    for file, labels in zip(files, rewards, strict=True):
        arrays = read_arrays(file, ("observation", "action"))
        observations, actions = map(to_float, arrays.values())
        steps = len(observations) - 1
        dims = dims or (observations.shape[1], actions.shape[1])
        if (observations.shape[1], actions.shape[1]) != dims:
            raise DatasetError(
                f"{file}: observations have {observations.shape[1]} and actions {actions.shape[1]} dimensions, the "
                f"first episode has {dims[0]} and {dims[1]}; keep one domain a folder"
            )
        if labels.shape != (steps,):
            raise DatasetError(f"{file}: {labels.shape} rewards for {steps} steps; label this episode again")
        if reading.non_finite == "refuse":
            for name, values in {"observation": observations, "action": actions[1:], "physics": labels}.items():
                _require_finite(file, name, values)
        columns = {
            "observations": observations,
            "actions": np.concatenate([actions[1:], np.zeros_like(actions[:1])]),
            "rewards": np.append(to_float(labels), np.float32(0.0)),
            "masks": np.ones(steps + 1, np.float32),
            "ends": np.arange(steps + 1) == steps,
        }
        yield Block(path=file, columns=columns, is_closed=True, first_row=1)


def _require_finite(file: Path, name: str, values: np.ndarray) -> None:
    """Refuse what is not finite by the names and rows of the file, which say more than those of the schema."""
    bad = np.flatnonzero(~finite_rows(values))
    if len(bad):
        row = int(bad[0]) + (name != "observation")  # row 0 has only an observation
        raise DatasetError(
            f"{file}: row {row} of array '{name}' holds NaN, infinity or no possible state ({len(bad)} such rows); "
            "remove the file to do without this episode, or leave those transitions out with --non-finite drop"
        )
