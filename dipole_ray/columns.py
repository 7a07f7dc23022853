"""What one row of experience holds: columns with a dtype and a shape.

Environments, datasets, replay and agents hand a `Schema` on, so that none of them assumes what an observation is: a
vector, an image, several named arrays, or a reference to an entry that lies once in a side table of the dataset.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dipole_ray.errors import ConfigError, DatasetError, DipoleError

DTYPES = {"float32": 4, "float16": 2, "uint8": 1, "int32": 4, "int64": 8}  # the dtypes of columns, and their bytes
MAX_AXES = 8
CHANNELS = (1, 3, 4)  # of one picture: grey, colours, colours and transparency


def is_channels_first(shape: tuple[int, ...]) -> bool:
    """Return whether an image of this shape is (channels, height, width) instead of ours, which has channels last."""
    return len(shape) == 3 and shape[0] in CHANNELS and shape[2] not in CHANNELS and shape[1] > CHANNELS[-1]


@dataclass(frozen=True, slots=True)
class Column:
    """What one row holds under one name."""

    shape: tuple[int, ...] = ()  # shape of the entry; () is a single number
    dtype: str = "float32"  # one of `DTYPES`
    table: str | None = None  # side table in which the entry lies once; rows then hold its number there, an int32

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES or len(self.shape) > MAX_AXES or not all(length >= 1 for length in self.shape):
            remedy = f"use one of {', '.join(DTYPES)} and at most {MAX_AXES} lengths, each at least 1"
            raise ConfigError(f"a column of {self.dtype} and shape {self.shape} cannot be stored; {remedy}")

    def __str__(self) -> str:
        """Return the length of a vector, dtype and shape of anything else."""
        text = str(self.shape[0]) if self.is_vector else f"{self.dtype} {self.shape}"
        return text if self.table is None else f"{text} in table '{self.table}'"

    @property
    def is_vector(self) -> bool:
        """Whether the entry is a flat vector of float32."""
        return self.dtype == "float32" and len(self.shape) == 1

    @property
    def is_image(self) -> bool:
        """Whether the entry is an image: uint8 of height x width x channels."""
        return self.dtype == "uint8" and len(self.shape) == 3

    @property
    def bytes(self) -> int:
        """Bytes of the entry."""
        return math.prod(self.shape) * DTYPES[self.dtype]

    def to_json(self) -> dict[str, Any]:
        """Return the column as a JSON object."""
        return {"shape": list(self.shape), "dtype": self.dtype, "table": self.table}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Column:
        """Rebuild a column from `to_json`."""
        table = None if value["table"] is None else str(value["table"])
        return cls(tuple(int(length) for length in value["shape"]), str(value["dtype"]), table)


@dataclass(frozen=True, slots=True, init=False)
class Schema:
    """Observations and actions of an environment, a dataset or a replay; everything else about a row is fixed.

    Schema(29, 8)                                                  # flat float32 vectors
    Schema(Column((64, 64, 3), "uint8"), 8)                        # an image
    Schema({"camera": Column((64, 64, 3), "uint8"), "joints": Column((9,))}, 8)
    Schema(Column((64, 64, 3), "uint8", table="frames"), 8)        # rows refer to frames, each stored once
    Schema(29, 8).keeping({"chains": Column((11, 8))})             # rows of rollouts keep what a method asks for
    """

    # By the names of columns: `observations`, or `observations.NAME` of several arrays, in a batch a dict under it.
    observed: dict[str, Column]
    actions: Column  # the action, float32 in [-1, 1]
    kept: dict[str, Column]  # what rows of rollouts have besides, which no dataset has

    def __init__(self, observations: Column | Mapping[str, Column] | int, actions: Column | int) -> None:
        """Take columns; an int stands for a flat vector of that length."""
        if any(not isinstance(column, Column | Mapping) and column < 1 for column in (observations, actions)):
            remedy = "take them from env_dims(env_id) or from an open dataset's .schema"
            raise ConfigError(f"observation_dim={observations} and action_dim={actions} must be at least 1; {remedy}")
        single = observations if isinstance(observations, Column | Mapping) else Column((int(observations),))
        named = {} if isinstance(single, Column) else {f"observations.{name}": item for name, item in single.items()}
        object.__setattr__(self, "observed", {"observations": single} if isinstance(single, Column) else named)
        object.__setattr__(self, "actions", actions if isinstance(actions, Column) else Column((int(actions),)))
        object.__setattr__(self, "kept", {})
        if self.actions.dtype != "float32" or not self.actions.shape or self.actions.table is not None:
            raise ConfigError(f"actions are {self.actions}; they must be float32 arrays, stored in the rows themselves")
        names = [*(name.partition(".")[2] for name in named), *self.tables]
        if not self.observed or not all(name.isidentifier() for name in names):
            raise ConfigError(f"observations and tables have the names {names}; give each a name of letters and digits")
        shared = ((replace(self.observed[name], table=None), table) for name, table in self.references.items())
        if any(self.tables[table] != column for column, table in shared):
            raise ConfigError(f"{self}: columns that refer to one table must have one dtype and shape")

    def __str__(self) -> str:
        """Return observation and action, such as `29 and 8`."""
        return f"{self.observation_text} and {self.actions}"

    @property
    def observation_text(self) -> str:
        """What an observation is, for people: the length of a vector, dtype and shape of anything else."""
        return ", ".join(f"{name.partition('.')[2]} {column}".strip() for name, column in self.observed.items())

    @property
    def columns(self) -> dict[str, Column]:
        """The columns of stored rows, in order; those that refer to a table hold numbers."""
        number, count = Column(), Column(dtype="int32")
        stored = {**self.observed, **dict.fromkeys(self.references, count)}
        return {**stored, "actions": self.actions, "rewards": number, "masks": number, "remaining": count, **self.kept}

    def keeping(self, kept: Mapping[str, Column]) -> Schema:
        """Return the same whose rows keep these columns, and no others, beside what every row has."""
        found = copy.copy(self)
        object.__setattr__(found, "kept", dict(kept))
        return found

    @property
    def references(self) -> dict[str, str]:
        """Columns that hold numbers of entries, and the side table of each."""
        return {name: column.table for name, column in self.observed.items() if column.table is not None}

    @property
    def tables(self) -> dict[str, Column]:
        """The side tables, and what an entry of each is."""
        return {table: replace(self.observed[name], table=None) for name, table in self.references.items()}

    @property
    def as_seen(self) -> Schema:
        """The same without references and what is kept: what policies see."""
        return _named({name: replace(column, table=None) for name, column in self.observed.items()}, self.actions)

    @property
    def row_bytes(self) -> int:
        """Bytes that one row takes on disk and in memory."""
        return sum(column.bytes for column in self.columns.values())

    @property
    def is_flat(self) -> bool:
        """Whether rows hold flat vectors of float32, and nothing else."""
        observation = self.observed.get("observations")
        is_vector = observation is not None and observation.is_vector and observation.table is None
        return is_vector and self.actions.is_vector

    @property
    def observation_dim(self) -> int:
        """Length of the flat observation vector; ConfigError if there is none."""
        return self._length(self.observed.get("observations"))

    @property
    def action_dim(self) -> int:
        """Length of the flat action vector; ConfigError if there is none."""
        return self._length(self.actions)

    def _length(self, column: Column | None) -> int:
        if column is None or not column.is_vector:
            raise ConfigError(
                f"observations are {self.observation_text} and actions {self.actions}, where flat vectors of float32 "
                "are needed; use something that takes what they are"
            )
        return column.shape[0]

    def to_json(self) -> dict[str, Any]:
        """Return the schema as a JSON object; that of flat vectors is what it was before there were others."""
        kept = {"kept": {name: column.to_json() for name, column in self.kept.items()}} if self.kept else {}
        if self.is_flat:
            return {"observation_dim": self.observation_dim, "action_dim": self.action_dim, **kept}
        observed = {name: column.to_json() for name, column in self.observed.items()}
        return {"observations": observed, "actions": self.actions.to_json(), **kept}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Schema:
        """Rebuild a schema from `to_json`."""
        kept = {str(name): Column.from_json(column) for name, column in value.get("kept", {}).items()}
        if "observations" not in value:
            return cls(int(value["observation_dim"]), int(value["action_dim"])).keeping(kept)
        observed = {str(name): Column.from_json(column) for name, column in value["observations"].items()}
        return _named(observed, Column.from_json(value["actions"])).keeping(kept)


def _named(observed: Mapping[str, Column], actions: Column) -> Schema:
    """Return the schema whose observation columns have these names."""
    single = observed.get("observations")
    return Schema(single or {name.removeprefix("observations."): item for name, item in observed.items()}, actions)


def require_fit(
    found: Schema, expected: Schema, *, what: object, whom: str, remedy: str, error: type[DipoleError] = DatasetError
) -> None:
    """Raise `error` unless the data `what` hold, in their rows or in tables, what `whom` expects of them."""
    if expected not in (found, found.as_seen):
        raise error(f"{what}: {misfit(found, expected, whom)}; {remedy}")


def misfit(found: Schema, expected: Schema, whom: str) -> str:
    """Return in words how data differ from what `whom` expects."""
    sees = [any(column.is_image for column in one.observed.values()) for one in (found, expected)]
    if sees[0] != sees[1]:
        kinds = [
            f"{'images' if one else 'numbers'} ({text.observation_text})"
            for one, text in zip(sees, (found, expected), strict=True)
        ]
        return f"observations are {kinds[0]}, and {whom} observes {kinds[1]}"
    return f"observations have {found.observation_text} and actions {found.actions} dimensions, {whom} has {expected}"


def flattened(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return columns with `observations.NAME`s in the place of a mapping under `observations`; likewise next ones."""
    flat: dict[str, Any] = {}
    for name, values in columns.items():
        several = isinstance(values, Mapping)
        flat |= {f"{name}.{inner}": each for inner, each in values.items()} if several else {name: values}
    return flat


def nested(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns with `observations.NAME`s as one dict under `observations`; likewise the next ones."""
    found: dict[str, Any] = {}
    for name, values in columns.items():
        group, _, inner = name.partition(".")
        if inner:
            found.setdefault(group, {})[inner] = values
        else:
            found[name] = values
    return found
