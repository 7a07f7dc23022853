"""Which columns of a table mean what."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dipole_ray.errors import ConfigError, DatasetError

Columns = str | tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableMapping:
    """Columns of a table by their meaning.

    A vector is one column of lists (`observations`), several columns (`("x", "y")`), or all columns that begin alike
    (`obs_*`, in the order of their numbers). Trajectory ends and the bootstrap mask are two things, and the mapping
    must say enough to tell them apart: a time limit ends the trajectory but not the task.
    """

    observations: Columns = "observations"  # observation at the time of the action
    actions: Columns = "actions"  # action, in [-1, 1]
    rewards: str = "rewards"  # reward of the action
    next_observations: Columns | None = None  # after the action: inside a trajectory, the next row's observation
    masks: str | None = None  # 0 where the task ended with this transition (never bootstrap), else 1
    # Says also that the task ended, where `masks` is absent and `timeouts` or `episode` tells the other ends.
    terminals: str | None = None  # 1 on the last row of a trajectory
    timeouts: str | None = None  # 1 where a time limit cut the trajectory
    episode: str | None = None  # a value that is the same over one trajectory and differs from its neighbours'
    # What `terminals` mean where the columns leave it open: the task ended, or merely the trajectory.
    terminals_are: Literal["termination", "boundary"] | None = None

    def __post_init__(self) -> None:
        if self.terminals_are not in (None, "termination", "boundary"):
            raise ConfigError(f"terminals_are={self.terminals_are!r} must be 'termination' or 'boundary'")
        if self.terminals_are is not None and self.terminals is None:
            raise ConfigError("terminals_are is set but no terminals column is mapped; map one with terminals=COLUMN")
        if not (self.terminals or self.timeouts or self.episode or self.next_observations):
            raise ConfigError(
                "the mapping does not say where trajectories end; map terminals, timeouts, episode or next_observations"
            )
        if self.masks and self.terminals_are == "termination":
            raise ConfigError("masks and terminals_are=termination both say where the task ends; leave one out")
        if self.terminals and not (self.masks or self.timeouts or self.episode or self.terminals_are):
            raise ConfigError(
                f"terminals={self.terminals} alone does not tell a time limit from the end of the task; map masks, "
                "timeouts or episode as well, or say terminals_are=termination or terminals_are=boundary"
            )

    @property
    def infers_boundaries(self) -> bool:
        """Whether trajectories end where the next observation is not the next row's."""
        return not (self.terminals or self.timeouts or self.episode)

    @classmethod
    def from_pairs(cls, pairs: Sequence[str]) -> TableMapping:
        """Build a mapping from `meaning=column` texts; several columns are separated by commas.

        Raises:
            ConfigError: If a text has no `=` or its meaning is unknown.
        """
        names = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for pair in pairs:
            name, separator, column = pair.partition("=")
            if not separator or not column or name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean '{near[0]}'? " if near and near[0] != name else ""
                raise ConfigError(f"--map {pair}: {hint}write MEANING=COLUMN with a meaning of {', '.join(names)}")
            values[name] = tuple(column.split(",")) if "," in column else column
        return cls(**values)

    @classmethod
    def guess(cls, columns: Sequence[str]) -> TableMapping:
        """Map every column that is already called by its meaning."""
        names = [field.name for field in fields(cls) if field.name != "terminals_are"]
        known: dict[str, Any] = {name: name for name in names if name in columns}
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """Return the mapped columns as a JSON object."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def resolve(self, available: Sequence[str], path: Path) -> dict[str, tuple[str, ...]]:
        """Return meaning -> column names of one table.

        Raises:
            DatasetError: If a column is not there; names the nearest one.
        """
        resolved, mapped = {}, self.to_json()
        mapped.pop("terminals_are", None)
        for name, value in mapped.items():
            patterns = (value,) if isinstance(value, str) else value
            names = tuple(column for pattern in patterns for column in _expand(pattern, available))
            for column in names:
                if available.count(column) > 1:
                    found = f"column '{column}' for {name} is there {available.count(column)} times"
                    raise DatasetError(f"{path}: {found}; rename all but one, or map another column")
                if column not in available:
                    near = difflib.get_close_matches(column, available, n=1)
                    hint = f"did you mean '{near[0]}'? " if near else ""
                    remedy = f"{hint}the table has {', '.join(available)}: map it with --map {name}=COLUMN"
                    raise DatasetError(f"{path}: no column '{column}' for {name}; {remedy}")
            if len(names) != 1 and name not in ("observations", "actions", "next_observations"):
                raise DatasetError(
                    f"{path}: {name} needs one column, {value!r} gives {len(names)}; map a single column"
                )
            resolved[name] = names
        return resolved

    def masks_and_ends(self, flags: dict[str, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the bootstrap masks, (N,) float32, and the known trajectory ends, (N,) bool.

        `flags` are the columns masks, terminals and timeouts, (count,) each, as far as they are mapped.
        """
        nothing = np.zeros(count, dtype=np.float32)
        terminals, timeouts = flags.get("terminals", nothing) != 0, flags.get("timeouts", nothing) != 0
        ended = nothing if self.terminals_are == "boundary" else terminals.astype(np.float32)
        return flags.get("masks", 1.0 - ended), terminals | timeouts


def _expand(pattern: str, available: Sequence[str]) -> list[str]:
    if not pattern.endswith("*"):
        return [pattern]
    prefix = pattern[:-1]
    found = [name for name in available if name.startswith(prefix)]
    # Digits without leading zeros sort by length, then value; int() refuses numbers of thousands of digits.
    numbers = {
        name: [(len(digits), digits) for digits in re.findall(r"0*(\d+)", name[len(prefix) :])] for name in found
    }
    return sorted(found, key=lambda name: (numbers[name], name)) or [pattern]
