"""Tiny datasets, made on the spot, in the layouts that the readers take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

from dipole_ray.data.schema import Rows, close_trajectory


def random_trajectory(
    random: np.random.Generator, length: int, observation_dim: int = 3, action_dim: int = 2, mask_rate: float = 0.1
) -> Rows:
    """Return one trajectory of `length` transitions; each transition has mask 0 at `mask_rate`."""
    return close_trajectory(
        random.normal(size=(length + 1, observation_dim)),
        random.uniform(-1, 1, size=(length, action_dim)),
        random.normal(size=length),
        (random.random(length) >= mask_rate).astype(np.float32),
    )


def ogbench_arrays(
    random: np.random.Generator,
    lengths: Sequence[int],
    observation_dim: int = 4,
    action_dim: int = 2,
    qpos_dim: int = 2,
    num_buttons: int = 0,
) -> dict[str, np.ndarray]:
    """Return the arrays of an OGBench file: T + 1 rows a trajectory, `terminals` on the last of them."""
    ends = np.cumsum([length + 1 for length in lengths]) - 1
    count = int(ends[-1]) + 1
    arrays = {
        "observations": random.normal(size=(count, observation_dim)).astype(np.float32),
        "actions": random.uniform(-1, 1, size=(count, action_dim)).astype(np.float32),
        "terminals": np.isin(np.arange(count), ends),
        "qpos": random.normal(size=(count, qpos_dim)).astype(np.float32),
        "qvel": random.normal(size=(count, qpos_dim)).astype(np.float32),
    }
    if num_buttons:
        arrays["button_states"] = random.integers(0, 2, size=(count, num_buttons))
    return arrays


def write_ogbench(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write OGBench arrays as OGBench does (compressed)."""
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def transition_columns(random: np.random.Generator, lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """Return one row a transition: odd trajectories terminate, even ones are cut by a time limit."""
    count = sum(lengths)
    last = np.cumsum(lengths) - 1
    states = [random.normal(size=(length + 1, 3)).astype(np.float32) for length in lengths]
    return {
        "observations": np.concatenate([state[:-1] for state in states]),
        "next_observations": np.concatenate([state[1:] for state in states]),
        "actions": random.uniform(-1, 1, size=(count, 2)).astype(np.float32),
        "rewards": random.normal(size=count).astype(np.float32),
        "terminals": np.isin(np.arange(count), last[1::2]),
        "timeouts": np.isin(np.arange(count), last[0::2]),
        "episode": np.repeat(np.arange(len(lengths)), lengths),
    }


def write_table(path: Path, columns: dict[str, np.ndarray], row_group: int = 7) -> Path:
    """Write columns as Parquet or Feather (by the ending of `path`), vectors as lists."""
    table = pa.table({name: list(values) if values.ndim > 1 else pa.array(values) for name, values in columns.items()})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=row_group)
    else:
        feather.write_feather(table, str(path), chunksize=row_group)
    return path


def write_exorl(
    folder: Path, index: int, observation_dim: int, action_dim: int, physics: np.ndarray, **replaced: np.ndarray
) -> Path:
    """Write one episode in ExORL's format around the states `physics`, of which the first is the start."""
    rows = len(physics)
    random = np.random.default_rng(index)
    arrays = {
        "observation": random.standard_normal((rows, observation_dim)).astype(np.float32),
        "action": random.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        "reward": np.full((rows, 1), 77.0, np.float32),
        "discount": np.ones((rows, 1), np.float32),
        "physics": physics,
    }
    arrays["action"][0] = 0.0
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"episode_{index:06d}_{rows - 1}.npz"
    with path.open("wb") as file:
        np.savez_compressed(file, **(arrays | replaced))  # type: ignore[arg-type]
    return path


def write_d4rl(path: Path, arrays: dict[str, np.ndarray], *, narrow: bool = False, **options: Any) -> Path:
    """Write arrays as D4RL does, names with slashes into groups; `options` as of h5py's create_dataset.

    Args:
        path: The file.
        arrays: By name; scalars are stored as they are.
        narrow: Take chunks of 100 rows and 2 columns, which do not divide the array.
        options: Compression and chunks.
    """
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            chunks = {"chunks": (min(100, len(values)), *(2,) * (values.ndim - 1))} if narrow and values.ndim else {}
            file.create_dataset(name, data=values, **(options | chunks if values.ndim else {}))
    return path
