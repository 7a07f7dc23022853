"""The table of formats: how each is recognised, who reads it, what it may contain, and what it must be told.

`dipole data import`, `inspect`, `train data.path=` and the library take what is in it. A new format is a module that
gives its dimensions and yields `Block`s, and one row here; `guarantees.py` enforces the schema on what it yields.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipole_ray.columns import Schema
from dipole_ray.data.dataset import MANIFEST
from dipole_ray.data.schema import Rows
from dipole_ray.data.sources import array_files, d4rl, exorl, lerobot, minari, ogbench, table, table_files
from dipole_ray.data.sources.actions import ActionScale, known_bounds, range_warnings
from dipole_ray.data.sources.guarantees import enforce
from dipole_ray.data.sources.npz import read_headers
from dipole_ray.data.sources.reading import ActionBounds, Block, Contents, ImportReport, Reading
from dipole_ray.errors import DatasetError

DATASET = "dataset"  # what a folder is called that needs no import


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One row of the table."""

    name: str  # what users call it
    what: str  # what to give, for messages
    beginnings: tuple[bytes, ...] = ()  # how files of this format begin, whatever their names
    suffixes: tuple[str, ...] = ()  # endings of the names that mean this format, where the beginning tells nothing
    holds: Callable[[Path], bool] = lambda path: False  # whether what lies somewhere is of this format by its contents
    files: Callable[[Path], list[Path]] = lambda path: [path]  # the files that the transitions come from
    contents: Callable[[Path], Contents] = lambda path: {}  # the columns or arrays that are there, read or not
    uses: Callable[[Path, Reading], Mapping[str, tuple[str, ...]]] = lambda path, reading: {}  # those read, by meaning
    schema: Callable[[Path, Reading], Schema]  # gives the dimensions, from as little as possible
    read: Callable[[Path, Reading, ImportReport], Iterator[Block]]  # gives the trajectories as they are found there
    takes: frozenset[str] = frozenset()  # fields of `Reading` that choose something here and not in every format
    has_rewards: Callable[[Path, Reading], bool] = lambda path, reading: True  # otherwise a task gives them
    unrewarded: str = "name a task with --env, here and when importing"  # what to do where nothing does
    own_bounds: Callable[[Path], ActionBounds | None] = lambda path: None  # of its actions; None: the environment's
    recorded_bounds: Callable[[Path], ActionBounds | None] = lambda path: None  # the range, where nobody says
    is_unit: bool = False  # whether its actions are recorded in [-1, 1], whatever the environment's bounds
    # The names of the dimensions of observations and actions, where there are some; --offset takes those, messages too.
    names: Callable[[Path, Reading], Mapping[str, Sequence[str]]] = lambda path, reading: {}
    is_joined: bool = False  # whether it is read in single episodes, some of which are handed on together
    environment: str | None = "the environment of this data"  # what a run's env.id must name; None: labelling finds out
    remembered: Callable[[Path], str] = str  # what a dataset made from it says of where it came from
    own_choices: Callable[[Path, Reading], dict[str, Any]] = lambda path, reading: {}  # what it says of how it was read

    def rows(self, path: Path, reading: Reading, report: ImportReport | None = None) -> Iterator[Rows]:
        """Return the rows of whole trajectories, with all guarantees of the schema.

        `report` counts what was read, dropped and left out, while the rows are consumed.

        Raises:
            DatasetError: If the data is malformed or lacks something; says where, what was found and what to do.
        """
        report, scale = report or ImportReport(), self.action_scale(path, reading)
        report.notes += scale.notes()
        report.names |= self.names(path, reading)
        blocks = self.read(path, reading, report)
        yield from enforce(blocks, reading, scale, join=self.is_joined, report=report)
        report.warnings += range_warnings(scale, reading.action_bounds, report.action_range)

    def action_scale(self, path: Path, reading: Reading) -> ActionScale:
        """Return what becomes of recorded actions: the environment's bounds become -1 and 1, in every format."""
        if self.is_unit or reading.actions_are == "unit":
            return ActionScale(is_unit=True, clips=reading.clip_actions)
        own = known_bounds(self.own_bounds(path))
        bounds = known_bounds(own, reading.action_bounds)
        owner = "the environment's actions" if own is None else "the action space"
        if bounds is None:
            bounds, owner = self.recorded_bounds(path), "the recorded actions (--env gives the environment's)"
        return ActionScale(bounds=bounds, owner=owner, clips=reading.clip_actions)

    def choices(self, path: Path, reading: Reading, report: ImportReport) -> dict[str, Any]:
        """Return what a dataset made of this data says of how it was read; it grows with `report`, while that is."""
        said = {"action_bounds": self.action_scale(path, reading).to_json()}
        said |= {"clip_actions": True} if reading.clip_actions else {}
        said |= {"offset": dict(reading.offset)} if reading.offset else {}
        return self.own_choices(path, reading) | said | {"narrowed": report.narrowed}

    def is_rewarded(self, path: Path, reading: Reading) -> bool:
        """Return whether the rewards that would be read mean anything."""
        is_given = any(getattr(reading, name) is not None for name in self.takes & {"relabel", "labels"})
        return is_given or self.has_rewards(path, reading)


FORMATS = {
    row.name: row
    for row in (
        Format(
            name="table",
            what="a table",
            beginnings=(array_files.PARQUET, array_files.ARROW),
            suffixes=table_files.SUFFIXES,
            holds=array_files.is_transitions,
            files=table_files.table_files,
            contents=table_files.contents,
            uses=table.uses,
            schema=table.schema,
            has_rewards=table.has_rewards,
            names=table.names,
            unrewarded="an import needs a column of them: name it with --map rewards=COLUMN, or add one",
            read=table.read,
            takes=frozenset({"mapping"}),
            own_choices=lambda path, reading: {"mapping": table.mapping_of(path, reading).to_json()},
            remembered=lambda path: path.name,
        ),
        Format(
            name="lerobot",
            what="the root of a LeRobot dataset",
            holds=lerobot.is_lerobot,
            files=lerobot.lerobot_files,
            contents=lerobot.contents,
            uses=lerobot.uses,
            schema=lerobot.schema,
            has_rewards=lerobot.has_rewards,
            unrewarded=lerobot.UNREWARDED.rpartition("; ")[2],
            read=lerobot.read,
            takes=frozenset({"mapping"}),
            recorded_bounds=lerobot.action_bounds,
            names=lerobot.names,
            own_choices=lambda _, reading: {"mapping": reading.mapping.to_json()} if reading.mapping else {},
        ),
        Format(
            name="ogbench",
            what="an OGBench .npz",
            beginnings=(array_files.ZIP,),
            suffixes=(".npz",),
            contents=array_files.array_contents,
            uses=ogbench.uses,
            schema=ogbench.schema,
            read=ogbench.read,
            takes=frozenset({"relabel"}),
            has_rewards=lambda path, reading: "rewards" in read_headers(path),
            environment=None,
            remembered=lambda path: path.name,
        ),
        Format(
            name="minari",
            what="a Minari folder",
            holds=minari.is_minari,
            files=minari.minari_files,
            contents=minari.contents,
            uses=minari.uses,
            schema=minari.schema,
            read=minari.read,
            takes=frozenset({"observations"}),
            own_bounds=minari.action_bounds,
            is_joined=True,
            own_choices=lambda _, reading: (
                {"mapping": {"observations": [*reading.observations]}} if reading.observations else {}
            ),
        ),
        Format(
            name="d4rl",
            what="D4RL's .hdf5",
            beginnings=(array_files.HDF5,),
            suffixes=(".hdf5", ".h5"),
            contents=array_files.array_contents,
            uses=d4rl.uses,
            schema=d4rl.schema,
            read=d4rl.read,
            own_choices=lambda _, reading: {"max_episode_steps": reading.max_episode_steps},
        ),
        Format(
            name="exorl",
            what="a folder of ExORL's episodes",
            holds=exorl.is_exorl,
            files=exorl.find_episodes,
            contents=lambda path: array_files.array_contents(exorl.find_episodes(path)[0]),
            schema=exorl.schema,
            read=exorl.read,
            takes=frozenset({"labels"}),
            is_unit=True,  # ExORL collected with scaled actions
            has_rewards=lambda path, reading: False,
            is_joined=True,
            environment="a task of the data's domain",
        ),
    )
}  # name -> row; where several fit, the first is meant


def dataset_kind(path: Path, mapping: object = None) -> str:
    """Return `dataset`, or the name of the format of what lies at `path`; DatasetError if nothing lies there.

    A file of arrays is a table where somebody gives a `mapping` of its columns.
    """
    if not path.exists():
        *kinds, last = (row.what for row in FORMATS.values())
        raise DatasetError(f"{path}: no such file or folder; give a dataset folder, {', '.join(kinds)} or {last}")
    if path.is_dir() and ((path / MANIFEST).exists() or any(path.glob("data-*.arrow"))):
        return DATASET
    if mapping and path.is_file() and array_files.is_arrays(path) and not minari.is_minari(path):
        return "table"
    start = array_files.beginning(path)
    by_contents = (name for name, row in FORMATS.items() if row.holds(path) or start.startswith(row.beginnings))
    by_name = (name for name, row in FORMATS.items() if path.suffix in row.suffixes)
    return next(by_contents, None) or next(by_name, "table")
