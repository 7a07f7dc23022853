"""`dipole data import | inspect | columns | collect | download`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from dipole_ray.cli.collect import add_collect
from dipole_ray.cli.command import CACHE, add_command, refusal, require_place, write_file
from dipole_ray.cli.download import add_download
from dipole_ray.errors import ConfigError, DatasetError, counted

if TYPE_CHECKING:
    from dipole_ray.columns import Schema
    from dipole_ray.data.inspection.summary import Repeats
    from dipole_ray.data.sources.reading import Reading
    from dipole_ray.envs.make import EnvConfig

IMPORT_HELP = """\
Turn data of OGBench, ExORL, D4RL, Minari or LeRobot, or any Parquet / Arrow table, into a dataset mapped from disk.

examples:
  # OGBench data, labelled with the rewards of one task
  dipole data import pointmaze-medium-navigate-v0.npz --env pointmaze-medium-navigate-singletask-task1-v0 --out DIR

  # ExORL's episodes (DIR/buffer/episode_000000_1000.npz, ...), rewarded for one of the domain's tasks
  # or a folder above several such of one domain
  dipole data import walker/rnd --env exorl/walker-run --out DIR

  # D4RL's .hdf5; --env is the environment with its observations and actions, and checks them
  dipole data import hopper_medium-v2.hdf5 --env Hopper-v5 --out DIR

  # a Minari dataset: the folder that holds data/main_data.hdf5 (or data/0/*.arrow); dict observations are chosen
  dipole data import ~/.minari/datasets/mujoco/hopper/medium-v0 --env Hopper-v5 --out DIR
  dipole data import ~/.minari/datasets/D4RL/pointmaze/umaze-v2 --out DIR --map observations=desired_goal,observation

  # a LeRobot dataset (v2 or v3) by its root; lerobot is not needed, videos are not read
  dipole data import lerobot/pusht --out DIR

  # a table with columns called observations, actions, rewards, terminals, timeouts
  dipole data import robot.parquet --env your_module:Robot-v0 --out DIR

  # a table with other names: several columns make a vector, obs_* takes all that begin so
  dipole data import robot.parquet --out DIR --map 'observations=obs_*' --map actions=throttle,steer \\
      --map rewards=r --map episode=run --map terminals=crashed

meanings for --map: observations, actions, rewards, next_observations, masks (0 = the task ended), terminals,
  timeouts (1 = a time limit cut the trajectory), episode, time (checks the order), terminals_are (termination or
  boundary), files_are (trajectories: none goes on in the next file; parts: one does where nothing ends it). What is
  not mapped is taken by its usual name where the table has it (MEANING= leaves it out); dipole data columns FILE shows
  what a table has, and what would be read as what.

LeRobot has no observation after an episode's last action: its last frame only closes it, unless the task ended
there. Rewards are next.reward, else 1 at success (next.success, or success in meta/episodes), else the progress of
a reward model (*_progress.parquet). Without --env, actions are scaled from their least and greatest in meta.

The files of a folder are read in the order of their numbers. A table may also be an .npz or HDF5 with one row a
transition. An .npz of observations, actions and terminals without next_observations, timeouts or masks is OGBench's,
with a row more a trajectory; a HDF5 with D4RL's names is D4RL's. With --map either is a table.

Observations may be images, uint8 of height x width x channels, in arrays, lists, tensors, or as PNG or JPEG; they stay
uint8. One column is an image, several with an image among them become an array of its own name each (docs/pixels.md).

In D4RL's files terminals end the task (mask 0), timeouts only the trajectory. What the last action before a timeout led
to is known only where there are next_observations: otherwise that transition is left out, as D4RL does, and counted. A
file without timeouts needs the environment's time limit, from --env or --max-episode-steps.

Stored actions lie in [-1, 1]: the bounds of the environment's actions become -1 and 1, in every format. The bounds are
those of --env (of a Minari dataset, of its own action space), and without --env actions are taken as lying in [-1, 1]
already. Data whose actions were scaled before it was saved needs --actions-are unit (ExORL's is read so anyway). An
action outside the bounds is refused, unless --clip-actions says that it is noise.

Observations are stored in float32, which tells numbers of about seven digits apart. Where more is lost than rounding
(metres of UTM, Unix times), the dimensions are named: --offset 0=5400000 subtracts that from dimension 0 first, and
--offset x=5400000 from dimension x: a table's column, where each dimension is one, or a name in LeRobot's info.json.
The dataset says so, and environments of runs on it subtract the same (env.observation_offset).

Of an ExORL episode only observation, action and physics are read: rewards are computed from the recorded states, in
parallel through Ray, and kept in --cache, so that an interrupted import goes on and a second one of the same task is
only a copy; reward, discount and skill in the file are ignored.
"""

COLUMNS_HELP = """\
Show the columns of a table, or the arrays of a file, with types and shapes, and what import would read them as.

examples:
  dipole data columns robot.parquet
  dipole data columns robot.parquet --map rewards=r

Nothing is converted and no mapping is needed. What is missing for an import is said below the columns.
"""

INSPECT_HELP = """\
Read a dataset from beginning to end and give a verdict (ok, warning, error) before any training.

examples:
  dipole data inspect DIR
  dipole data inspect cube-single-play-v0.npz --env cube-single-play-singletask-v0 --plot cube.png
  dipole data inspect hopper_medium-v2.hdf5 --env Hopper-v5
  dipole data inspect walker/rnd --env exorl/walker-run
  dipole data inspect robot.parquet --map rewards=r --map episode=run --json verdict.json

With --env the dimensions must be the environment's. Rewards of ExORL's episodes are computed in parallel and kept in
--cache, where import and training find them. The exit code is 0 for ok and warning, 1 for error.
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the parsers of `dipole`."""
    parser = subparsers.add_parser(
        "data",
        help="import, inspect, show, collect or download data",
        description=__doc__,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    source = add_command(commands, "import", run_import, IMPORT_HELP)
    what = "a file or folder in one of these formats; tables may be a folder"
    source.add_argument("source", metavar="SRC", type=Path, help=what)
    source.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the dataset")
    source.add_argument("--env", metavar="ENV_ID", help="task that gives the rewards, and whose spaces must match")
    formats = ("ogbench", "exorl", "d4rl", "minari", "lerobot", "table")
    source.add_argument("--format", choices=formats, help="default: by what SRC is")
    _add_options_of_formats(source)
    dropped = "what to do with transitions that hold NaN or infinity (default: refuse)"
    source.add_argument("--non-finite", choices=("refuse", "drop"), default="refuse", help=dropped)
    source.add_argument("--overwrite", action="store_true", help="replace the dataset in DIR")
    inspected = add_command(commands, "inspect", run_inspect, INSPECT_HELP)
    inspected.add_argument("path", metavar="PATH", type=Path, help="a dataset folder, or what import takes")
    task = "task that rewards OGBench's and ExORL's data, and whose spaces must match"
    inspected.add_argument("--env", metavar="ENV_ID", help=task)
    _add_options_of_formats(inspected)
    inspected.add_argument("--json", metavar="FILE", type=Path, help="write the verdict as JSON as well")
    inspected.add_argument("--plot", metavar="FILE", type=Path, help="draw returns, lengths and actions as a picture")
    columns = add_command(commands, "columns", run_columns, COLUMNS_HELP)
    columns.add_argument("path", metavar="PATH", type=Path, help="a table or another file that import takes")
    columns.add_argument(
        "--map", metavar="MEANING=COLUMN", action="append", default=[], help="as of import; repeatable"
    )
    add_collect(commands)
    add_download(commands)


def _add_options_of_formats(parser: argparse.ArgumentParser) -> None:
    """Add the options that only some kinds of data know; `_check_options` refuses them elsewhere."""
    columns = "table column(s) for one meaning, or the entries of Minari's dict observations; repeatable"
    parser.add_argument("--map", metavar="MEANING=COLUMN", action="append", default=[], help=columns)
    setting = "setting of --env, as train knows it: env.max_episode_steps=1000, env.kwargs.mass=2 (its own argument)"
    parser.add_argument("overrides", nargs="*", metavar="env.KEY=VALUE", help=setting)
    are = "what recorded actions are: the environment's own, whose bounds become -1 and 1 (default), or scaled before"
    parser.add_argument("--actions-are", choices=("environment", "unit"), help=are)
    offset = "subtract a number from a dimension of the observations that float32 is too coarse for; repeatable"
    parser.add_argument("--offset", metavar="DIM=VALUE", action="append", default=[], help=offset)
    clipped = "bring actions outside the bounds to them, and count them, instead of refusing them"
    parser.add_argument("--clip-actions", action="store_true", help=clipped)
    limit = "time limit of --env, and of trajectories in data that marks no time limits (default: the environment's)"
    parser.add_argument("--max-episode-steps", metavar="N", type=int, help=limit)
    parser.add_argument("--workers", metavar="W", type=int, help="exorl only: Ray tasks at a time (default: all cores)")
    parser.add_argument("--cache", metavar="DIR", type=Path, help=f"exorl only: keeps rewards (default: {CACHE})")


def run_import(args: argparse.Namespace) -> int:
    """Import a file as a dataset and say what to do next."""
    from dipole_ray.columns import require_fit
    from dipole_ray.data.dataset import write_dataset
    from dipole_ray.data.inspection.summary import Repeats
    from dipole_ray.data.sources.formats import DATASET, FORMATS, dataset_kind
    from dipole_ray.data.sources.guarantees import MAX_NAMED
    from dipole_ray.data.sources.reading import ImportReport
    from dipole_ray.progress import Progress

    kind = dataset_kind(args.source, args.map)
    if kind == DATASET:
        raise DatasetError(f"{args.source}: is a dataset already; train on it as it is, or import its original")
    row, report, repeats = FORMATS[args.format or kind], ImportReport(), Repeats()
    reading, expected = _reading_of(args, args.source, row.name)
    env = _env_of(args)
    if "labels" in row.takes and args.env is None:
        raise ConfigError(f"{args.source}: ExORL's episodes are rewarded for a task; {_name_a_task()}")
    reading = replace(reading, non_finite=args.non_finite)
    schema = row.schema(args.source, reading)
    if expected is not None:
        remedy = "name the environment that made this data with --env"
        require_fit(schema, expected, what=args.source, whom=f"'{args.env}'", remedy=remedy)
    source = {"format": row.name, "file": row.remembered(args.source), "env": args.env, "non_finite": args.non_finite}
    source |= {"env_settings": settings} if env is not None and (settings := env.overrides()) else {}
    source |= row.choices(args.source, reading, report)
    with Progress(f"import {args.source.name}", unit="transitions") as progress:
        rows = _counted(row.rows(args.source, reading, report), progress, repeats)
        manifest = write_dataset(args.out, rows, schema, source, overwrite=args.overwrite)
    places = ", ".join(report.non_finite) + (", ..." if len(report.non_finite) == MAX_NAMED else "")
    dropped = f", {report.share(report.dropped_transitions)} dropped as not finite: {places}" if places else ""
    if report.unfollowed_transitions:
        dropped += f", {report.share(report.unfollowed_transitions)} left out because nothing says what they led to"
    if report.clipped_transitions:
        dropped += f", {report.clipped_transitions} with an action clipped to its bounds"
    if report.columns:
        print(f"read: {report.columns_text}")
    for warning in [*report.warnings, *([told] if (told := repeats.told()) else [])]:
        print(f"warning: {warning}")
    for note in report.notes:
        print(f"note: {note}")
    print(
        f"{args.out}: {counted(manifest.num_transitions, 'transition')} in "
        f"{counted(report.trajectories, 'trajectory')}{dropped}, "
        f"observations {schema.observation_text}, actions {schema.actions}\n"
        f"next: dipole data inspect {quote(str(args.out))}\n"
        f"      dipole train {quote(f'data.path={args.out}')} env.id={args.env or 'ENV_ID'}{_env_settings(args)}"
    )
    return 0


def _env_settings(args: argparse.Namespace) -> str:
    """Return the settings of --env as `dipole train` takes them."""
    limit = [f"env.max_episode_steps={args.max_episode_steps}"] if args.env and args.max_episode_steps else []
    return "".join(f" {quote(word)}" for word in [*limit, *args.overrides])


def _counted(rows: Iterable[Any], progress: Any, repeats: Repeats) -> Iterator[Any]:
    for piece in rows:
        yield piece
        repeats.add(piece)
        progress.advance(int((piece["remaining"] > 0).sum()))


def run_columns(args: argparse.Namespace) -> int:
    """Print what a table or a file of arrays holds, what would be read as what, and what an import would still ask."""
    from rich.console import Console
    from rich.table import Table

    from dipole_ray.data.dataset import read_manifest
    from dipole_ray.data.sources.formats import FORMATS, dataset_kind
    from dipole_ray.data.sources.mapping import TableMapping
    from dipole_ray.data.sources.reading import Reading

    kind = dataset_kind(args.path, args.map)
    row, question = FORMATS.get(kind), None
    if row is None:
        columns = read_manifest(args.path).schema.columns.items()
        contents, meanings = {name: (column.dtype, column.shape) for name, column in columns}, dict[str, str]()
    else:
        reading = Reading(mapping=TableMapping.from_pairs(args.map) if "mapping" in row.takes else None)
        contents, uses = row.contents(args.path), row.uses(args.path, reading)
        meanings = {name: meaning for meaning, names in uses.items() for name in names}
        try:
            row.schema(args.path, reading)
        except (ConfigError, DatasetError) as error:
            question = str(error)
    table = Table(box=None, pad_edge=False)
    for title in ("column", "type", "shape", "read as"):
        table.add_column(title, no_wrap=title != "read as")
    for name, (dtype, shape) in contents.items():
        table.add_row(name, dtype, str(shape), meanings.get(name, ""))
    count = len(row.files(args.path)) if row is not None and kind == "table" else 1
    what = f"{kind}, the first of {count} files" if count > 1 else kind
    Console(soft_wrap=True).print(f"{args.path} ({what})", table, sep="\n", highlight=False, markup=False)
    if question is not None:
        print(f"an import would ask: {question}")
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    """Inspect a dataset, print the verdict, and write it where asked."""
    from dipole_ray.cli.inspect_report import plot_inspection, print_inspection
    from dipole_ray.data.inspection.inspect import inspect_dataset
    from dipole_ray.data.sources.formats import dataset_kind
    from dipole_ray.files.durable import json_text
    from dipole_ray.progress import Progress

    require_place("--json", args.json)
    require_place("--plot", args.plot)
    progress = Progress(f"inspect {args.path.name}", unit="transitions")
    with ExitStack() as stack:  # for the bar comes after the labelling, which has one of its own
        begin = partial(stack.enter_context, progress)
        reading, expected = _reading_of(args, args.path, dataset_kind(args.path, args.map), begin)
        inspection = inspect_dataset(args.path, reading, expected=expected, on_transitions=progress.update)
    print_inspection(inspection)
    if args.json is not None:
        write_file("--json", args.json, json_text(inspection.to_json()))
    if args.plot is not None:
        try:
            plot_inspection(inspection, args.plot)
        except OSError as error:
            raise refusal("--plot", args.plot, error) from error
    return 1 if inspection.verdict == "error" else 0


def _reading_of(
    args: argparse.Namespace, path: Path, kind: str, begin: Callable[[], object] = lambda: None
) -> tuple[Reading, Schema | None]:
    """Return how data of this kind, a format or `dataset`, is read, and the dimensions that it must have.

    `begin` is called when the reading may begin: at once, or when the rewards of ExORL's episodes are there.
    """
    from dipole_ray.collect.convert import offset_of, reading_for
    from dipole_ray.data.sources.formats import FORMATS
    from dipole_ray.data.sources.mapping import TableMapping
    from dipole_ray.data.sources.minari import chosen_observations
    from dipole_ray.data.sources.reading import Reading
    from dipole_ray.envs.make import env_dims

    takes = FORMATS[kind].takes if kind in FORMATS else frozenset()
    _check_options(args, path, kind, takes)
    reading, expected, env = Reading(), None, _env_of(args)
    if env is not None:
        dims, cache = env_dims(env), (args.cache or CACHE).expanduser()
        reading, expected = reading_for(args.env, dims, cache, args.workers, begin), dims.schema
    if args.env is None or "labels" not in takes:
        begin()
    reading = replace(
        reading,
        mapping=TableMapping.from_pairs(args.map) if args.map and "mapping" in takes else None,
        observations=chosen_observations(args.map) if "observations" in takes else (),
        max_episode_steps=args.max_episode_steps or reading.max_episode_steps,
        is_limit_asked=args.max_episode_steps is not None and args.env is None,
        actions_are=args.actions_are or reading.actions_are,
        clip_actions=args.clip_actions,
    )
    offset = _offsets(args.offset, FORMATS[kind].names(path, reading).get("observations", ()) if args.offset else ())
    return replace(reading, offset=offset or (() if env is None else offset_of(env))), expected


def _offsets(pairs: Sequence[str], columns: Sequence[str]) -> tuple[tuple[int, float], ...]:
    """Return the dimensions and the numbers of `DIM=VALUE`; DIM may be a name, where the dimensions have some."""
    found: dict[int, float] = {}
    for pair in pairs:
        name, _, number = pair.rpartition("=")
        try:
            dimension, value = columns.index(name) if name in columns else int(name), float(number)
        except ValueError:
            dimension, value = -1, math.inf
        if dimension < 0 or not math.isfinite(value):
            named = f" or one of {', '.join(columns[:8])}{', ...' if len(columns) > 8 else ''}" if columns else ""
            what = f"write DIM=VALUE, the number of a dimension from 0{named} and a finite number"
            raise ConfigError(f"--offset {pair}: {what}")
        if dimension in found:
            raise ConfigError(f"--offset {pair}: dimension {dimension} has an offset already; give it once")
        found[dimension] = value
    return tuple(found.items())


def _check_options(args: argparse.Namespace, path: Path, kind: str, takes: frozenset[str]) -> None:
    """Refuse options that have no effect on this kind of data, and environments that there are not."""
    from dipole_ray.data.sources.formats import FORMATS
    from dipole_ray.envs.registry import family

    if args.map and not takes & {"mapping", "observations"}:
        raise ConfigError(f"--map is for tables; {kind} data has fixed names: leave --map out")
    if kind not in FORMATS and (args.actions_are or args.clip_actions or args.offset):
        what = "--actions-are, --clip-actions and --offset say how numbers are stored, and here they are already"
        raise ConfigError(f"{path}: {what}; leave them out, or inspect its original")
    is_limited = args.env is not None or kind in FORMATS
    if args.max_episode_steps is not None and (not is_limited or args.max_episode_steps < 1):
        what = "it is the time limit, at least 1, of --env or of data that marks no time limits; leave it out"
        raise ConfigError(f"--max-episode-steps {args.max_episode_steps} of {kind} data: {what}")
    for option in [name for name in ("workers", "cache") if getattr(args, name) is not None]:
        if "labels" not in takes:
            raise ConfigError(f"--{option} is for rewarding ExORL's episodes, and this is {kind} data; leave it out")
        if args.env is None:
            raise ConfigError(f"--{option} is for rewarding {path} for a task; {_name_a_task()}")
    if args.env is not None and family(args.env) != "exorl" and "labels" in takes:
        why = f"ExORL's episodes are rewarded for a task, and '{args.env}' is none of theirs"
        raise ConfigError(f"{path}: {why}; {_name_a_task()}")


def _env_of(args: argparse.Namespace) -> EnvConfig | None:
    """Return the environment that `args` name, with its settings."""
    from dipole_ray import settings
    from dipole_ray.envs.make import EnvConfig

    for word in args.overrides:
        if not word.startswith("env.") or args.env is None:
            raise ConfigError(f"'{word}' is no setting of --env: give --env ENV_ID, and env.KEY=VALUE only")
    if args.env is None:
        return None
    given = {"env": {"id": args.env, "max_episode_steps": args.max_episode_steps}}
    return settings.from_mapping(EnvConfig, settings.apply_overrides(given, args.overrides)["env"], "env")


def _name_a_task() -> str:
    """Return what to do where a task of ExORL's is missing."""
    from dipole_ray.envs.exorl.tasks import task_ids

    return f"name one with --env: {', '.join(task_ids())}"
