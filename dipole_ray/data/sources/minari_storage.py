"""The episodes of a Minari dataset as its storages hold them: one HDF5 file, or an Arrow or Parquet folder each."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from dipole_ray.columns import Schema
from dipole_ray.data.schema import concatenate
from dipole_ray.data.sources.hdf5 import Array, Group, child, child_names, encoded_rows, is_group, open_hdf5
from dipole_ray.data.sources.images import (
    are_images,
    column_of,
    decoded,
    holds_images,
    image_column,
    is_list,
    last_part,
)
from dipole_ray.data.sources.npz import check_expansion
from dipole_ray.data.sources.reading import DAMAGED, OTHER_LAYOUT, Arrays, Contents, bad_array
from dipole_ray.data.sources.table import column_matrix, column_vector
from dipole_ray.data.sources.table_files import contents, read_batches
from dipole_ray.errors import DatasetError, counted

MAIN_FILE = "main_data.hdf5"
STEPS = ("rewards", "terminations", "truncations")
Shapes: TypeAlias = dict[str, tuple[int, ...]]  # of images by the entry of dict observations; "" of others
_NAMES = ("observations", "actions", *STEPS)


def hdf5_contents_of_first(folder: Path) -> Contents:
    """Return the arrays of the first episode, entries of dicts as `a/b`, with types and shapes."""
    path = folder / MAIN_FILE
    with open_hdf5(path) as file:
        return dict(_arrays_below(path, child(path, file, "episode_0"), ""))


def _arrays_below(path: Path, group: object, prefix: str) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    for name in child_names(group) if is_group(group) else ():  # type: ignore[arg-type]
        found: Any = child(path, group, name)  # type: ignore[arg-type]
        if is_group(found):
            yield from _arrays_below(path, found, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", (str(getattr(found, "dtype", "")), getattr(found, "shape", None) or ())


def arrow_contents_of_first(folder: Path, suffix: str) -> Contents:
    """Return the columns of the first episode, entries of dict observations as `a/b`, with types and shapes."""
    files = sorted(file for file in (folder / "0").iterdir() if file.suffix == f".{suffix}")
    found: Contents = {}
    for name, (kind, shape) in (contents(files[0]) if files else {}).items():
        parts = re.findall(r"(?:struct<|, )(\w+): ", kind) if kind.startswith("struct<") else []
        found |= {f"{name}/{part}": ("", shape) for part in parts} or {name: (kind, shape)}
    return found


def hdf5_episodes(
    folder: Path, count: int | None, components: Sequence[str], like: Schema | None
) -> Iterator[tuple[Path, str, Arrays]]:
    """Yield place, name and arrays of every episode, in order: observations (T + 1, O) and T rows of the rest.

    There must be `count` of them, if anybody says; `components` are the entries of dict observations to join, or where
    one is an image, to keep by name. `like` is what the environment observes.
    """
    path = folder / MAIN_FILE
    with open_hdf5(path) as file:
        matches = [re.fullmatch(r"episode_(\d{1,9})", name) for name in child_names(file)]
        declared = 0
        for number in _checked_numbers(path, {int(match[1]) for match in matches if match}, count):
            name = f"episode_{number}"
            group = child(path, file, name)
            if not is_group(group):
                raise DatasetError(f"{path}: '{name}' is no group; {DAMAGED}")
            observed = child(path, group, "observations")
            if observed is not None:
                _check_choice(path, child_names(observed) if is_group(observed) else None, components)
            parts = [f"observations/{part}" for part in components] if is_group(observed) else ["observations"]
            observations = {part: _observed(path, group, part) for part in parts}
            columns = {"actions": Array(path, group, "actions", (2,), "f")}
            columns |= {step: Array(path, group, step, (1, 2)) for step in STEPS}
            # Many names can lead to the same episode.
            held = (*observations.values(), *columns.values())
            declared += sum(array.declared_bytes for array in held if isinstance(array, Array))
            check_expansion(path, declared, counted(number + 1, "episode"))
            arrays = {step: array.read(0, array.shape[0]) for step, array in columns.items()}
            seen = {part: _read(path, part, array, like) for part, array in observations.items()}
            lengths = [len(values) for values in seen.values()]
            if len(set(lengths)) > 1:
                found = f"observations of '{name}' differ in their rows {lengths}"
                raise DatasetError(f"{path}: {found}; get the file again")
            yield path / name, name, {**arrays, **_joined(seen)}


def _observed(path: Path, group: Group, part: str) -> Array | list[bytes]:
    """Return an array of observations, or its encoded pictures."""
    if (pictures := encoded_rows(path, group, part)) is not None:
        return pictures
    found = child(path, group, part)
    return Array(path, group, part, range(2, 6), "f" if len(getattr(found, "shape", None) or ()) < 3 else "fiu")


def _read(path: Path, part: str, array: Array | list[bytes], like: Schema | None) -> np.ndarray:
    if not isinstance(array, Array):
        return decoded(array, f"{path}: array '{part}'", path)
    column_of(array.dtype, array.shape, like, partial(bad_array, path, part))
    return array.read(0, array.shape[0])


def _joined(seen: Arrays) -> Arrays:
    """Return vectors as one; where images are among several entries of an observation, each as a column of its own."""
    if len(seen) == 1 or not any(map(are_images, seen.values())):
        parts = list(seen.values())
        return {"observations": parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)}
    return {f"observations.{last_part(name)}": values for name, values in seen.items()}


def arrow_episodes(
    folder: Path, suffix: str, count: int | None, components: Sequence[str], shapes: Shapes, like: Schema | None
) -> Iterator[tuple[Path, str, Arrays]]:
    """Yield the same as `hdf5_episodes`, from one folder of .arrow or .parquet files an episode.

    `shapes` are those of the images in the observation space, which flat lists are brought to.
    """
    numbers = {int(entry.name) for entry in folder.iterdir() if re.fullmatch(r"\d{1,9}", entry.name) and entry.is_dir()}
    for number in _checked_numbers(folder, numbers, count):
        place = folder / str(number)
        files = sorted(file for file in place.iterdir() if file.suffix == f".{suffix}")
        parts = [part for file in files for part in _arrow_parts(file, components, shapes, like)]
        if not parts:
            raise DatasetError(f"{place}: holds no rows in .{suffix} files; the dataset is incomplete, get it again")
        arrays = concatenate(parts)
        # What is not an observation is padded with one row.
        steps = {name: values[:-1] for name, values in arrays.items() if name in ("actions", *STEPS)}
        yield files[0], f"episode_{number}", {**arrays, **steps}


def _checked_numbers(path: Path, numbers: set[int], count: int | None) -> range:
    """Return the numbers of the episodes, of which none may be missing."""
    missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
    if missing != len(numbers) or count not in (None, len(numbers)) or not numbers:
        said = f"metadata.json says {count}" if count is not None else "they count from 0"
        found = f"holds {counted(len(numbers), 'episode')}, the first missing is episode_{missing} ({said})"
        raise DatasetError(f"{path}: {found}; the dataset is incomplete, get it again")
    return range(len(numbers))


def _check_choice(path: Path, entries: Sequence[str] | None, components: Sequence[str]) -> None:
    """Refuse components where observations are one array (no entries), and a dict of entries without components."""
    if entries is None and components:
        raise bad_array(path, "observations", "is one array, there is nothing to choose", "leave --map out")
    if entries is not None and not components:
        found = sorted(entries)[:12]
        raise DatasetError(
            f"{path}: array 'observations' is a dict of {', '.join(found)}; choose what becomes the observation "
            "vector, in the order of the environment that you train in (FlattenObservation takes that of its space): "
            f"dipole data import ... --map observations={','.join(found)}"
        )


def _arrow_parts(file: Path, components: Sequence[str], shapes: Shapes, like: Schema | None) -> Iterator[Arrays]:
    if not file.is_file():
        raise DatasetError(f"{file}: not a regular file; restore the dataset from its original source")
    for batch in read_batches(file, partial(_columns, file)):
        column = batch.column("observations")
        entries = [field.name for field in column.type] if pa.types.is_struct(column.type) else None
        _check_choice(file, entries, components)
        observed = batch.select(["observations"])
        if entries is not None:
            unknown = [name for name in components if name not in entries]
            if unknown or column.null_count:
                found = f"no '{unknown[0]}' in observations" if unknown else "observations are missing in some rows"
                raise DatasetError(f"{file}: {found}; there are {', '.join(entries)}: choose among them with --map")
            observed = pa.RecordBatch.from_arrays([column.field(name) for name in components], names=list(components))
        seen: Arrays = {}
        for name in observed.schema.names:
            shape = shapes.get("" if entries is None else name, ())
            is_image = shape or holds_images(observed.column(name).type)
            args = (observed.column(name), name, file, 0, like, shape)
            seen[name] = image_column(*args) if is_image else _vectors(observed, name, file)
        yield {
            **_joined(seen),
            "actions": _vectors(batch, "actions", file),
            **{name: column_vector(batch, name, file, 0) for name in STEPS},
        }


def _columns(file: Path, available: list[str]) -> Sequence[str]:
    for name in _NAMES:
        if available.count(name) != 1:
            what = "missing" if name not in available else "there twice"
            raise bad_array(file, name, f"is {what} (found {', '.join(available)})", OTHER_LAYOUT)
    return _NAMES


def _vectors(batch: pa.RecordBatch, name: str, file: Path) -> np.ndarray:
    kind = batch.column(name).type
    if not (is_list(kind) and pa.types.is_floating(kind.value_type)):
        expected = "expected vectors of floats, or images (discrete data is not supported)"
        raise bad_array(file, name, f"is of type {kind}", f"{expected}: record the environment with flat Box spaces")
    return column_matrix(batch, (name,), file, 0)
