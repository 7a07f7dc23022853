"""What agents take for an observation: what its schema says, as tensors.

One column is a tensor (B, *shape) of its dtype, so that an image is uint8 until an encoder reads it; several are a dict
of such tensors by name. In batches the columns also come flat, as `observations.NAME`, like those of stored rows.

Shapes: B rows, V numbers in all vectors of an observation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dipole_ray.columns import Column, Schema, flattened, nested
from dipole_ray.errors import ConfigError

Observations = Tensor | dict[str, Tensor]
"""(B, *shape), or such tensors by name."""


def is_vector(observed: Mapping[str, Column]) -> bool:
    """Whether an observation is one flat vector of float32."""
    return list(observed) == ["observations"] and observed["observations"].is_vector


def vector_dim(observed: Mapping[str, Column]) -> int:
    """Return V, what normalization has statistics of: the vectors follow each other in the schema's order."""
    return sum(column.shape[0] for column in observed.values() if column.is_vector)


def columns_of_batch(schema: Schema, names: Sequence[str]) -> dict[str, Column]:
    """Return what each named column of a batch holds, those of observations and next ones in the place of the group."""
    found: dict[str, Column] = {}
    for name in names:
        start, group, _ = name.partition("observations")
        own = {name: schema.actions if name == "actions" else Column()}
        found |= {f"{start}{each}": of for each, of in schema.as_seen.observed.items()} if group else own
    return found


def read_column(values: Any, column: Column, device: torch.device, name: str) -> Tensor:
    """Return a column on the device in its dtype; ConfigError where whole numbers would have to be rounded."""
    wanted: torch.dtype = getattr(torch, column.dtype)
    given = torch.as_tensor(values)
    if not wanted.is_floating_point and given.dtype != wanted:
        raise ConfigError(
            f"{name} hold {given.dtype}, and the schema says {column.dtype}; give them as they are stored"
        )
    return given.to(device, wanted)


def read_observations(given: Any, observed: Mapping[str, Column], device: torch.device) -> Observations:
    """Return observations to act on, arrays or tensors, on the device; ConfigError if they are not the schema's."""
    flat = flattened({"observations": given})
    if flat.keys() != observed.keys():
        found, wanted = (", ".join(name.removeprefix("observations.") for name in each) for each in (flat, observed))
        raise ConfigError(f"observations are {found}; give {wanted}")
    tensors = {}
    for name, column in observed.items():
        values = tensors[name] = read_column(flat[name], column, device, name)
        if values.shape[1:] != column.shape or values.ndim != len(column.shape) + 1 or not len(values):
            shape = ", ".join(map(str, ("B", *column.shape)))
            found = f"{name} have shape {tuple(values.shape)}"
            raise ConfigError(f"{found}; give ({shape}), one row each and at least one")
    if len(lengths := {len(values) for values in tensors.values()}) > 1:
        raise ConfigError(f"observations have {sorted(lengths)} rows in their columns; give as many in each")
    read: Observations = nested(tensors)["observations"]
    return read


def rows_of(observations: Observations) -> int:
    """Return B."""
    return len(observations if isinstance(observations, Tensor) else next(iter(observations.values())))


def normalized(observations: Observations, observed: Mapping[str, Column], mean: Tensor, std: Tensor) -> Observations:
    """Return observations whose vectors are less their mean (V,), over their deviation (V,); all else is as it was."""
    if isinstance(observations, Tensor):
        return (observations - mean) / std if observed["observations"].is_vector else observations
    vectors = {name.partition(".")[2]: column for name, column in observed.items() if column.is_vector}
    sizes = [column.shape[0] for column in vectors.values()]
    parts = zip(vectors, mean.split(sizes), std.split(sizes), strict=True)
    return observations | {name: (observations[name] - m) / s for name, m, s in parts}
