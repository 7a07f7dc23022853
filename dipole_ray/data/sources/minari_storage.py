"""The episodes of a Minari dataset as its storages hold them: one HDF5 file, or an Arrow or Parquet folder each."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from dipole_ray.data.sources.hdf5 import Array, Group, child, child_names, is_group, open_hdf5
from dipole_ray.data.sources.npz import check_expansion
from dipole_ray.data.sources.reading import DAMAGED, OTHER_LAYOUT, Arrays, bad_array
from dipole_ray.data.sources.table import column_matrix, column_vector, read_batches
from dipole_ray.errors import DatasetError

MAIN_FILE = "main_data.hdf5"
STEPS = ("rewards", "terminations", "truncations")
_NAMES = ("observations", "actions", *STEPS)


def hdf5_episodes(folder: Path, count: int | None, components: Sequence[str]) -> Iterator[tuple[Path, str, Arrays]]:
    """Yield place, name and arrays of every episode, in order: observations (T + 1, O) and T rows of the rest.

    Args:
        folder: Holds main_data.hdf5.
        count: Episodes that there must be; None if nobody says.
        components: Entries of dict observations to join; empty where observations are one array.
    """
    path = folder / MAIN_FILE
    with open_hdf5(path) as file:
        found = [re.fullmatch(r"episode_(\d{1,9})", name) for name in child_names(file)]
        numbers = {int(match[1]) for match in found if match}
        _check_numbers(path, numbers, count)
        declared = 0
        for number in range(len(numbers)):
            name = f"episode_{number}"
            group = child(path, file, name)
            if not is_group(group):
                raise DatasetError(f"{path}: '{name}' is no group; {DAMAGED}")
            parts = [Array(path, group, part, (2,), "f") for part in _observation_names(path, group, components)]
            columns = {"actions": Array(path, group, "actions", (2,), "f")}
            columns |= {step: Array(path, group, step, (1, 2)) for step in STEPS}
            # Many names can lead to the same episode.
            declared += sum(array.num_bytes for array in (*parts, *columns.values()))
            check_expansion(path, declared, f"{number + 1} episodes")
            arrays = {step: array.read(0, array.shape[0]) for step, array in columns.items()}
            joined = [array.read(0, array.shape[0]) for array in parts]
            yield path / name, name, {**arrays, "observations": _join(path, name, joined)}


def arrow_episodes(
    folder: Path, suffix: str, count: int | None, components: Sequence[str]
) -> Iterator[tuple[Path, str, Arrays]]:
    """Yield the same as `hdf5_episodes`, from one folder of .arrow or .parquet files an episode."""
    numbers = {int(entry.name) for entry in folder.iterdir() if re.fullmatch(r"\d{1,9}", entry.name) and entry.is_dir()}
    _check_numbers(folder, numbers, count)
    for number in range(len(numbers)):
        place = folder / str(number)
        files = sorted(file for file in place.iterdir() if file.suffix == f".{suffix}")
        parts = [part for file in files for part in _arrow_parts(file, components)]
        if not parts:
            raise DatasetError(f"{place}: holds no rows in .{suffix} files; the dataset is incomplete, get it again")
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        # What is not an observation is padded with one row.
        steps = {name: values[:-1] for name, values in arrays.items() if name != "observations"}
        yield files[0], f"episode_{number}", {**steps, "observations": arrays["observations"]}


def _check_numbers(path: Path, numbers: set[int], count: int | None) -> None:
    missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
    if missing != len(numbers) or count not in (None, len(numbers)) or not numbers:
        said = f"metadata.json says {count}" if count is not None else "they count from 0"
        found = f"holds {len(numbers)} episodes, the first missing is episode_{missing} ({said})"
        raise DatasetError(f"{path}: {found}; the dataset is incomplete, get it again")


def _observation_names(path: Path, group: Group, components: Sequence[str]) -> list[str]:
    found = child(path, group, "observations")
    if is_group(found):
        if not components:
            raise _needs_choice(path, child_names(found))
        return [f"observations/{name}" for name in components]
    if components and found is not None:
        raise _needs_none(path)
    return ["observations"]


def _join(path: Path, name: str, parts: list[np.ndarray]) -> np.ndarray:
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise DatasetError(f"{path}: observations of '{name}' differ in their rows {lengths}; get the file again")
    return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _arrow_parts(file: Path, components: Sequence[str]) -> Iterator[Arrays]:
    if not file.is_file():
        raise DatasetError(f"{file}: not a regular file; restore the dataset from its original source")
    for batch in read_batches(file, partial(_columns, file)):
        column = batch.column("observations")
        if pa.types.is_struct(column.type):
            names = [field.name for field in column.type]
            if not components:
                raise _needs_choice(file, names)
            unknown = [name for name in components if name not in names]
            if unknown or column.null_count:
                found = f"no '{unknown[0]}' in observations" if unknown else "observations are missing in some rows"
                raise DatasetError(f"{file}: {found}; there are {', '.join(names)}: choose among them with --map")
            observed = pa.RecordBatch.from_arrays([column.field(name) for name in components], names=list(components))
        elif components:
            raise _needs_none(file)
        else:
            observed = batch.select(["observations"])
        yield {
            "observations": np.concatenate([_vectors(observed, name, file) for name in observed.schema.names], axis=1),
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
    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (is_list and pa.types.is_floating(kind.value_type)):
        expected = "expected vectors of floats (pixel and discrete data are not supported)"
        raise bad_array(file, name, f"is of type {kind}", f"{expected}: record the environment with flat Box spaces")
    return column_matrix(batch, (name,), file, 0)


def _needs_choice(path: Path, names: Sequence[str]) -> DatasetError:
    found = sorted(names)[:12]
    return DatasetError(
        f"{path}: array 'observations' is a dict of {', '.join(found)}; choose what becomes the observation vector, in "
        "the order of the environment that you train in (FlattenObservation takes that of its space): dipole data "
        f"import ... --map observations={','.join(found)}"
    )


def _needs_none(path: Path) -> DatasetError:
    return bad_array(path, "observations", "is one array, there is nothing to choose", "leave --map out")
