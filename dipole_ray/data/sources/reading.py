"""What a reader of anybody's data is told, and what it gives: trajectories as it found them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from dipole_ray.columns import Schema
from dipole_ray.data.narrowing import to_float32
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.errors import DatasetError, agreeing, counted

DAMAGED = "the file is damaged, get it again"
OTHER_LAYOUT = "the file is damaged or of another layout, get it again"

Value = TypeVar("Value")
Arrays = dict[str, np.ndarray]
Contents = dict[str, tuple[str, tuple[int, ...]]]  # type and shape of each column or array of a file
ActionBounds = tuple[np.ndarray, np.ndarray]  # least and greatest actions, (A,) each
# Rewards (N,) and masks (N,) of N rows from their arrays: observations, actions, terminals, physics state.
Relabel = Callable[[Arrays], tuple[np.ndarray, np.ndarray]]
# The rewards of the steps of each episode, (T,): NaN where a state is not finite.
Labels = Callable[[list[Path]], Iterable[np.ndarray]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What data in anybody's format does not say itself, each for some formats only, and what is asked of it."""

    mapping: TableMapping | None = None  # for tables; by default columns are taken by their names
    relabel: Relabel | None = None  # for .npz files without rewards
    labels: Labels | None = None  # for ExORL's episodes
    observations: Sequence[str] = ()  # for Minari: entries of dict observations to join, in order; `a/b` is one inside
    max_episode_steps: int | None = None  # the environment's time limit, for data that marks no ends of that kind
    is_limit_asked: bool = False  # whether it must have an effect, since somebody gave it for this data alone
    action_bounds: ActionBounds | None = None  # of the environment's actions, which become -1 and 1
    # What recorded actions are: the environment's own, or scaled to [-1, 1] already.
    actions_are: Literal["environment", "unit"] = "environment"
    offset: tuple[tuple[int, float], ...] = ()  # dimensions of observations, and what is subtracted from them
    clip_actions: bool = False  # bring actions outside the bounds to them, and count, instead of refusing them
    non_finite: Literal["refuse", "drop"] = "refuse"  # `drop` leaves transitions out, which splits their trajectory
    schema: Schema | None = None  # what the environment observes, where one is named: lists become images of its shapes
    needs_rewards: bool = True  # whether data that nobody rewards is refused; otherwise its rewards are 0


@dataclass(kw_only=True, slots=True)
class ImportReport:
    """What was met on the way; filled while rows are consumed."""

    rows_read: int = 0  # rows of the original
    transitions: int = 0  # transitions handed on
    trajectories: int = 0  # trajectories (or pieces, where non-finite rows were dropped) handed on
    dropped_transitions: int = 0  # transitions dropped because they touch a NaN or infinity
    non_finite: list[str] = field(default_factory=list)  # where the first of their numbers stand: `row 7 (rewards)`
    unfollowed_transitions: int = 0  # left out, because the original does not hold the observation that they led to
    unmarked_ends: int = 0  # of trajectories, by a next observation that is not the next row's
    first_unmarked: int = 0  # row of the first of them
    short_pieces: int = 0  # trajectories of one transition with which the task did not end
    untimed_rows: int = 0  # whose time is missing, where others have one
    time_gaps: int = 0  # transitions over which the time rises far more than usual
    first_gap: str = ""
    returning_episodes: int = 0  # pieces of episodes that come after rows of others
    first_return: str = ""
    narrowed: list[str] = field(default_factory=list)  # what float32 cannot tell apart, a clause with its remedy each
    names: dict[str, Sequence[str]] = field(default_factory=dict)  # of the dimensions of vectors, where there are some
    warnings: list[str] = field(default_factory=list)  # what is likely to be wrong, a clause with its remedy each
    clipped_transitions: int = 0  # whose action was outside the bounds, and was brought to them
    action_range: ActionBounds | None = None  # least and greatest scaled actions, (A,) each, before they were clipped
    whole_actions: bool = True  # whether every recorded action so far is a whole number
    notes: list[str] = field(default_factory=list)  # what else was decided, a clause each

    columns: list[str] = field(default_factory=list)  # columns or arrays that are read, `rewards = r`
    unread: list[str] = field(default_factory=list)  # those of which nothing is read

    def reads(self, used: Mapping[str, Sequence[str]], available: Iterable[str]) -> None:
        """Note which columns are read, by their meaning, and which of the `available` ones are not."""
        for meaning, names in used.items():
            shown = [*names[:3], "...", names[-1]] if len(names) > 5 else names
            self.columns.append(meaning if [*names] == [meaning] else f"{meaning} = {', '.join(shown)}")
        taken = {name for names in used.values() for name in names}
        self.unread += [name for name in available if name not in taken]

    def dimension(self, vector: str, number: int) -> str:
        """Return a dimension of the observations or actions for people: its number, and its name where it has one."""
        names = self.names.get(vector, ())
        return f"dimension {number}" + (f" ('{names[number]}')" if number < len(names) else "")

    @property
    def columns_text(self) -> str:
        """What is read of a file and what is not, for people."""
        return ", ".join(self.columns) + (f"; not read: {', '.join(self.unread)}" if self.unread else "")

    def share(self, count: int, verb: str = "") -> str:
        """Return a count of lost transitions with its share of all that the original has, as words."""
        total = self.transitions + self.dropped_transitions + self.unfollowed_transitions
        return f"{counted(count, 'transition')} ({100 * count / max(1, total):.3g} %) {agreeing(count, verb)}".rstrip()


@dataclass(kw_only=True, slots=True)
class Block:
    """Consecutive rows as a reader found them, by column; a trajectory may go on in the next block.

    observations       (N, O), float64 where the original is wider than float32, or images, uint8 (N, H, W, C); or
                       several of both, `observations.NAME`, and so the next ones
    actions            (N, A), not yet brought to [-1, 1]
    rewards            (N,), float64 where the original is wider than float32
    masks              float32 (N,), 0 where the task ended
    ends               bool (N,), the last row of each trajectory; that of the data is one anyway
    next_observations  (N, O), where the original has them; a row of NaN: not this one
    times              (N,), where the original has them: they must not fall inside a trajectory, and are not stored
    others             (N, ...), of numbers that must be finite but are not stored
    """

    path: Path  # the original, for messages
    columns: Arrays
    is_closed: bool = False  # whether the last row of a trajectory holds only its last observation
    first_row: int = 0  # number of the first row in the original, for messages
    marks_limits: bool = True  # whether the original says where time limits cut; otherwise the environment's does
    is_mapped: bool = True  # whether --map says what its columns are
    time_name: str = ""  # the column that `times` are of
    place: str = ""  # what the rows are counted in, such as `episode_7`; empty where that is the whole original


def parts_of(columns: Mapping[str, Value], group: str = "observations") -> dict[str, Value]:
    """Return what a group of columns holds by what follows its name: "" of a single one, else .NAME."""
    return {name[len(group) :]: values for name, values in columns.items() if name.partition(".")[0] == group}


def to_float(values: np.ndarray) -> np.ndarray:
    """Return float64 where float32 could not hold the numbers of this type, else float32."""
    is_wide = values.dtype.kind in "fiu" and values.dtype.itemsize > (4 if values.dtype.kind == "f" else 2)
    return values.astype(np.float64, copy=False) if is_wide else to_float32(values)


def to_times(values: np.ndarray) -> np.ndarray:
    """Return float64 or int64: microseconds since 1970 must stay apart, and differences of times have a sign."""
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)


def bad_array(path: Path | str, name: str, found: str, remedy: str) -> DatasetError:
    """Return the error of an array of a file: what was found there, and what to do."""
    return DatasetError(f"{path}: array '{name}' {found}; {remedy}")


def incomplete(path: Path, what: str, error: BaseException) -> DatasetError:
    """Return the error of a file that its library cannot read to the end."""
    return DatasetError(f"{path}: not a complete {what} ({str(error)[:300]}); it is damaged or cut short, get it again")
