"""Whether the rows of a table come in the order in which they were recorded, by what the table itself says of it.

Ends of trajectories, times and next observations are compared where one file goes on in the next, and where the name
of an episode comes again. What cannot be in order is refused; what may be is said.
"""

import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dipole_ray.data.sources.guarantees import is_followed
from dipole_ray.data.sources.images import sampled
from dipole_ray.data.sources.reading import Arrays, Block, ImportReport, parts_of
from dipole_ray.errors import DatasetError, counted

_SORT = "sort the table by episode and time"
_SAY = "say so with --map files_are=trajectories where a file's last trajectory ends with it"
_FAR = 3  # times the farthest step inside trajectories: beyond, a file's first row follows no other's last
_FEW_STEPS = 10  # too few to tell how far steps go
_RENAME = "name the files so that their numbers give the order in which they were recorded"


def natural_order(path: Path) -> list[str | tuple[int, str]]:
    """Return a key that sorts names with numbers by these: `2.parquet` comes before `10.parquet`."""
    parts = re.split(r"(\d+)", str(path))
    # Digits without leading zeros sort by length, then value; int() refuses numbers of thousands of digits.
    return [(len(part.lstrip("0")), part.lstrip("0")) if index % 2 else part for index, part in enumerate(parts)]


def followed(blocks: Iterable[Block], path: Path, report: ImportReport) -> Iterator[Block]:
    """Check the order of the rows of one file by the names of their episodes, where there are some, and drop these.

    The blocks hold `flagged` too, the ends that a flag marks.
    """
    order, last = Continuity(path, report), Arrays()
    for block in blocks:
        columns = dict(block.columns)
        rows = shown(columns)
        seen = {name: np.concatenate([last[name], rows[name]]) for name in rows} if last else rows
        order.follow(seen, block.first_row - bool(last))
        last = {name: values[-1:] for name, values in rows.items()}
        yield replace(block, columns={name: columns[name] for name in columns.keys() - {"flagged", "episode"}})


def shown(columns: Arrays) -> Arrays:
    """Return what a `Continuity` looks at of a table's columns: a few numbers of an image, all of what is small."""
    names = ("ends", "flagged", "times", "episode")
    seen = {group: parts_of(columns, group) for group in ("observations", "next_observations")}
    rows = {group: sampled(parts) for group, parts in seen.items() if parts}
    return rows | {name: columns[name] for name in names if name in columns}


@dataclass(slots=True)
class _Piece:
    """Consecutive rows of one episode, and what its last row says of the row after it."""

    row: int  # of the original
    time: float | None
    following: np.ndarray | None  # (O,)
    is_over: bool  # whether a flag ends the trajectory there


class Continuity:
    """Is shown the rows of a table in the order in which they are read, and raises where that is not theirs."""

    def __init__(self, path: Path, report: ImportReport, *, are_parts: bool = False) -> None:
        """`are_parts`: somebody said that files go on in the next where nothing ends their last trajectory."""
        self._path, self._report, self._are_parts = path, report, are_parts
        self._episodes: dict[Hashable, _Piece] = {}  # by name, the end of their newest piece
        self._starts: dict[bytes, Path] = {}  # files by their first observation
        self._unfinished: list[tuple[Path, Path, bytes]] = []  # a file, the one read after it, what its last row led to
        self._tick: float | None = None  # the usual difference between the times of two rows
        self._num_unproved = 0
        self._farthest, self._num_steps = np.zeros(()), 0  # (O,), how far observations went inside trajectories
        self._first_names: set[Hashable] = set()  # of the episodes with which files begin
        self._first_unproved: tuple[Path, Path] | None = None  # of the joints within an episode of one name

    def follow(self, rows: Arrays, first_row: int) -> None:
        """Take consecutive rows, of which the first was shown before as the last, unless `first_row` is 0.

        `rows` has `ends`, `flagged` (the ends that a flag marks), and where the table has them `next_observations`,
        `times` and `episode`.
        """
        if (inner := np.flatnonzero(~rows["ends"][:-1])).size:
            steps = np.abs(rows["observations"][inner + 1] - rows["observations"][inner]).max(axis=0)
            self._farthest, self._num_steps = np.fmax(self._farthest, steps), self._num_steps + len(inner)
        if "times" in rows:
            steps = np.diff(rows["times"])[~rows["ends"][:-1]]
            steps = steps[steps > 0]
            self._tick = float(np.median(steps)) if len(steps) else self._tick
        if "episode" not in rows:
            return
        changes = np.flatnonzero(rows["episode"][1:] != rows["episode"][:-1]) + 1
        if not first_row:
            self._first_names.add(rows["episode"][0])
        for row in changes if first_row else [0, *changes]:
            if row:
                self._episodes[rows["episode"][row - 1]] = self._piece(rows, int(row) - 1, first_row)
            self._begin_episode(rows, int(row), first_row)

    def join(self, rows: Arrays, first_row: int, before: Path, after: Path) -> None:
        """Check the first two of consecutive rows: the last of one file, and the first of the file after it."""
        last = self._piece(rows, 0, first_row)
        if "episode" in rows:
            self._first_names.add(rows["episode"][1])
        self._starts.setdefault(rows["observations"][1].tobytes(), after)
        if last.following is not None and not last.is_over:
            self._unfinished.append((before, after, last.following.tobytes()))
        if rows["ends"][0]:
            return
        found = None
        if last.following is not None and not is_followed(last.following[None], rows["observations"][1:2])[0]:
            found = f"the next observation of its last row (row {last.row}) is not the first observation there"
        elif last.time is not None and not self._goes_on(last.time, rows["times"][1]):
            found = f"time goes from {last.time:g} (row {last.row}) to {rows['times'][1]:g} there"
        if found is not None:
            found = f"its last trajectory does not go on in {after.name}, the file read next: {found}"
            remedy = f"{_RENAME}, and mark every trajectory's last row as an end, or {_SAY}"
            raise DatasetError(f"{before}: {found}; {remedy}")
        if not {"next_observations", "times"} & rows.keys():
            self._num_unproved += 1
            self._require_near(rows, before, after)
            if "episode" in rows and self._first_unproved is None:
                self._first_unproved = before, after

    def _require_near(self, rows: Arrays, before: Path, after: Path) -> None:
        """Refuse a first row of a file that lies farther from the last of another than steps ever went."""
        jump = np.abs(rows["observations"][1] - rows["observations"][0])
        if self._are_parts or self._num_steps < _FEW_STEPS or not (far := jump > _FAR * self._farthest).any():
            return
        where = self._report.dimension("observations", int(far.argmax()))
        place = f"its last row and the first of {after.name}"
        found = f"{place} lie {jump[far][0]:.6g} apart in {where} of the observations"
        raise DatasetError(
            f"{before}: {found}, {_FAR} times farther than any step before; {_SAY}, or --map files_are=parts where it "
            "goes on, or map times or next_observations"
        )

    def begin_anew(self) -> None:
        """Take it that a file has no trajectory of the files before it: somebody said so."""
        self._episodes.clear()

    def finish(self) -> None:
        """Compare what the files say of each other, and report what was merely assumed."""
        for before, after, following in self._unfinished:
            right = self._starts.get(following, after)
            if right not in (before, after):
                found = f"its last row leads to the first of {right.name}, and {after.name} is read next"
                raise DatasetError(f"{before}: {found}; {_RENAME}")
        # Where all files begin with an episode of one name, a logger may count anew in every file.
        if self._first_unproved and len(self._first_names) == 1 and not self._are_parts:
            before, after = self._first_unproved
            name = next(iter(self._first_names))
            found = f"all files begin with episode {name}, and {before.name} ends with it"
            raise DatasetError(
                f"{self._path}: {found}, so that {after.name} may go on or begin anew; say which with "
                "--map files_are=trajectories (a file's last trajectory ends with it) or --map files_are=parts (it "
                "goes on in the next), or map times or next_observations"
            )
        if self._num_unproved and not self._are_parts:
            taken = counted(self._num_unproved, "trajectory", verb="are")
            self._report.warnings.append(
                f"{taken} taken to go on in the next file, in the order of the files' numbers, and nothing in the "
                "table proves it; map times or next_observations, or say so with --map files_are=parts "
                "(files_are=trajectories where they do not)"
            )

    def _begin_episode(self, rows: Arrays, row: int, first_row: int) -> None:
        """Look at the first row of a piece of an episode: has it been there before, and does it go on here?"""
        name = rows["episode"][row]
        earlier = self._episodes.get(name)
        if earlier is None:
            return
        time = rows["times"][row] if "times" in rows else None
        place = f"episode {name} stops at row {earlier.row} and"
        goes_on = earlier.following is not None and np.array_equal(earlier.following, rows["observations"][row])
        if earlier.time is not None and time is not None:
            goes_on |= self._goes_on(earlier.time, time) and time != earlier.time
        if goes_on and not earlier.is_over:
            remedy = f"{_SORT}, or {_RENAME}" if self._path.is_dir() else _SORT
            raise DatasetError(f"{self._path}: {place} goes on at row {first_row + row}, after others; {remedy}")
        if not self._report.returning_episodes:
            self._report.first_return = f"{place} comes again at row {first_row + row}"
        self._report.returning_episodes += 1

    def _goes_on(self, before: float, after: float) -> bool:
        """Return whether `after` may be the time of the row after one of the time `before`."""
        return before <= after and (self._tick is None or after - before <= 2 * self._tick)

    @staticmethod
    def _piece(rows: Arrays, row: int, first_row: int) -> _Piece:
        following = rows["next_observations"][row] if "next_observations" in rows else None
        following = None if following is None or np.isnan(following).all() else following
        time = float(rows["times"][row]) if "times" in rows else None
        return _Piece(first_row + row, time, following, bool(rows["flagged"][row]))
