"""Which columns of a table mean what."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dipole_ray.errors import ConfigError, DatasetError

Columns = str | tuple[str, ...]

# Names by which a column is recognised, the first that is there; `done` is not among them: it may mean either end.
USUAL = {
    "observations": ("observations", "observation", "obs"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "next_observations": ("next_observations", "next_observation", "next_obs"),
    "masks": ("masks",),
    "terminals": ("terminals", "terminal", "terminated", "terminations"),
    "timeouts": ("timeouts", "timeout", "truncated", "truncations"),
    "episode": ("episode", "episode_id", "episode_index"),
    # The last two are the row numbers that pandas keeps: out of order where rows were shuffled.
    "time": ("time", "timestamp", "step", "timestep", "frame_index", "t", "index", "__index_level_0__"),
}
_REQUIRED = ("observations", "actions", "rewards")
_KINDS = ("terminals_are", "files_are")  # what is said with words, not columns
_VECTORS = ("observations", "actions", "next_observations")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableMapping:
    """Columns of a table by their meaning.

    A vector is one column of lists (`observations`), several columns (`("x", "y")`), or all columns that begin alike
    (`obs_*`, in the order of their numbers). Trajectory ends and the bootstrap mask are two things, and the mapping
    must say enough to tell them apart: a time limit ends the trajectory but not the task. What is not mapped is taken
    by its usual name where the table has it (`complete`); an empty name leaves such a column out.
    """

    observations: Columns | None = None  # observation at the time of the action
    actions: Columns | None = None  # action, in [-1, 1]
    rewards: str | None = None  # reward of the action
    next_observations: Columns | None = None  # after the action: inside a trajectory, the next row's observation
    masks: str | None = None  # 0 where the task ended with this transition (never bootstrap), else 1
    # Says also that the task ended, where `masks` is absent and timeouts, episode or next_observations tell other ends.
    terminals: str | None = None  # 1 on the last row of a trajectory
    timeouts: str | None = None  # 1 where a time limit cut the trajectory
    episode: str | None = None  # a value that is the same over one trajectory and differs from its neighbours'
    time: str | None = None  # a number that never falls inside a trajectory; only checks the order of the rows
    # What `terminals` mean where the columns leave it open: the task ended, or merely the trajectory.
    terminals_are: Literal["termination", "boundary"] | None = None
    # What the files of a folder are where the columns leave it open: trajectories of their own, or parts of one record.
    files_are: Literal["trajectories", "parts"] | None = None

    def __post_init__(self) -> None:
        if self.terminals_are not in (None, "termination", "boundary"):
            raise ConfigError(f"terminals_are={self.terminals_are!r} must be 'termination' or 'boundary'")
        if self.files_are not in (None, "trajectories", "parts"):
            raise ConfigError(f"files_are={self.files_are!r} must be 'trajectories' or 'parts'")

    def complete(self, columns: Sequence[str], usual: Mapping[str, Sequence[str]] = USUAL) -> TableMapping:
        """Return this mapping with the columns of a table that have a usual name and are not mapped otherwise."""
        given = self.columns()
        taken = {*chain.from_iterable(_expand_all(value, columns) for value in given.values())}
        found: dict[str, Any] = {
            name: next((column for column in names if column in columns and column not in taken), None)
            for name, names in usual.items()
            if name not in given
        }
        missing = {name: name for name in _REQUIRED if not (given | found).get(name)}  # which `resolve` will say
        left_out = {name: None for name, value in given.items() if not value}
        return replace(self, **(found | left_out | missing))

    def rewarded_or_not(self, columns: Sequence[str]) -> TableMapping:
        """Return this mapping, once complete, without rewards where no column of a table is taken for them."""
        return replace(self, rewards=None) if self.rewards == "rewards" and "rewards" not in columns else self

    @property
    def marks_limits(self) -> bool:
        """Whether the columns say where time limits cut trajectories."""
        tells_others = self.masks or self.timeouts or self.episode or self.next_observations
        return bool(tells_others) or self.terminals_are == "boundary" or self.files_are == "trajectories"

    def check(self, where: Path | str = "mapping", *, has_limit: bool = False) -> None:
        """Raise ConfigError unless the mapping, once complete, says where trajectories end, and where the task does.

        `where` is the table it is for, which the error names; with `has_limit` the environment's time limit is known.
        """
        if self.terminals_are is not None and self.terminals is None:
            raise ConfigError(f"{where}: terminals_are is given and no terminals are; give --map terminals=COLUMN")
        tells = self.terminals or self.timeouts or self.episode or self.next_observations
        if not (has_limit or tells or self.files_are == "trajectories"):
            remedy = (
                "give --map terminals=COLUMN, or timeouts, episode or next_observations; --map files_are=trajectories "
                "where a file is one; or --max-episode-steps N"
            )
            raise ConfigError(f"{where}: no column is known to say where trajectories end; {remedy}")
        if self.masks and self.terminals_are == "termination":
            remedy = "leave one out (--map masks= for the column of that name)"
            raise ConfigError(f"{where}: masks and terminals_are=termination both say where the task ends; {remedy}")
        if self.terminals and not (self.marks_limits or self.terminals_are):
            raise ConfigError(
                f"{where}: '{self.terminals}' alone does not tell a time limit from the end of the task; give --map "
                "terminals_are=termination where each ends the task, or --map terminals_are=boundary where none does, "
                "or map masks, timeouts or episode as well"
            )

    @property
    def infers_boundaries(self) -> bool:
        """Whether trajectories end, unmarked, where the next observation is not the next row's."""
        return bool(self.next_observations) and not self.episode

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
            can_be_empty = name not in (*_REQUIRED, *_KINDS)
            if not separator or not (column or can_be_empty) or name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean '{near[0]}'? " if near and near[0] != name else ""
                remedy = f"{hint}write MEANING=COLUMN with a meaning of {', '.join(names)}"
                raise ConfigError(f"--map {pair}: {remedy} (MEANING= leaves a column of that name out)")
            if name in values:
                raise ConfigError(f"--map {pair}: {name} is mapped twice; give it once, several columns as A,B,C")
            values[name] = tuple(column.split(",")) if "," in column else column
        return cls(**values)

    @classmethod
    def guess(cls, columns: Sequence[str]) -> TableMapping:
        """Map every column that has a usual name; ConfigError if that does not say enough."""
        mapping = cls().complete(columns)
        mapping.check()
        return mapping

    def to_json(self) -> dict[str, Any]:
        """Return the mapped columns as a JSON object."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def columns(self) -> dict[str, Columns]:
        """Return what is mapped, by meaning."""
        return {name: value for name, value in self.to_json().items() if name not in _KINDS}

    def found(self, available: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return meaning -> column names, of those that are there."""
        names = {meaning: _expand_all(value, available) for meaning, value in self.columns().items()}
        return {meaning: columns for meaning, columns in names.items() if {*columns} <= {*available}}

    def resolve(self, available: Sequence[str], path: Path) -> dict[str, tuple[str, ...]]:
        """Return meaning -> column names of one table.

        Raises:
            DatasetError: If a column is not there; names the nearest one.
        """
        resolved = {}
        for name, value in self.columns().items():
            names = _expand_all(value, available)
            for column in names:
                if available.count(column) > 1:
                    found = f"column '{column}' for {name} is there {available.count(column)} times"
                    raise DatasetError(f"{path}: {found}; rename all but one, or map another column")
                if column not in available:
                    near = difflib.get_close_matches(column, available, n=1)
                    hint = f"did you mean '{near[0]}'? " if near else ""
                    remedy = f"{hint}the table has {', '.join(available)}: map it with --map {name}=COLUMN"
                    raise DatasetError(f"{path}: no column '{column}' for {name}; {remedy}")
            if len(names) != 1 and name not in _VECTORS:
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


def _expand_all(value: Columns, available: Sequence[str]) -> tuple[str, ...]:
    patterns = (value,) if isinstance(value, str) else value
    return tuple(column for pattern in patterns for column in _expand(pattern, available))


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
