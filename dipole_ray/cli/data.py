"""`dipole data import | inspect | collect | download`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from dipole_ray.cli.collect import add_collect
from dipole_ray.cli.command import add_command
from dipole_ray.cli.download import add_download
from dipole_ray.cli.source import add_source_options, check_options, name_a_task, reading_of
from dipole_ray.errors import ConfigError, DatasetError

IMPORT_HELP = """\
Turn data of OGBench, ExORL, D4RL or Minari, or any Parquet / Arrow / Feather table, into a dataset mapped from disk.

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

  # a table with columns called observations, actions, rewards, terminals, timeouts
  dipole data import robot.parquet --out DIR

  # a table with other names: several columns make a vector, obs_* takes all that begin so
  dipole data import robot.parquet --out DIR --map 'observations=obs_*' --map actions=throttle,steer \\
      --map rewards=r --map episode=run --map terminals=crashed

meanings for --map: observations, actions, rewards, next_observations, masks (0 = the task ended), terminals,
  timeouts (1 = a time limit cut the trajectory), episode, terminals_are (termination or boundary)

In D4RL's files terminals end the task (mask 0), timeouts only the trajectory. What the last action before a timeout led
to is known only where there are next_observations: otherwise that transition is left out, as D4RL does, and counted. A
file without timeouts needs the environment's time limit, from --env or --max-episode-steps. Minari's actions are scaled
to [-1, 1] from the bounds of its action space, as the environment's are. D4RL's files have none, nor have some of
Minari's: those of --env's actions are taken. All other actions must lie in [-1, 1].

Of an ExORL episode only observation, action and physics are read: rewards are computed from the recorded states, in
parallel through Ray, and kept in --cache, so that an interrupted import goes on and a second one of the same task is
only a copy; reward, discount and skill in the file are ignored.
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


def add_data_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `data` and its commands to the main parser; each sets `run`, a function of the parsed arguments."""
    parser = subparsers.add_parser("data", help="import, inspect, collect or download a dataset", description=__doc__)
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_import(commands)
    _add_inspect(commands)
    add_collect(commands)
    add_download(commands)


def _add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(commands, "import", run_import, IMPORT_HELP)
    source = "a file or folder in one of these formats; tables may be a folder"
    parser.add_argument("source", metavar="SRC", type=Path, help=source)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the dataset")
    parser.add_argument("--env", metavar="ENV_ID", help="task that gives the rewards, and whose spaces must match")
    formats = ("ogbench", "exorl", "d4rl", "minari", "table")
    parser.add_argument("--format", choices=formats, help="default: by what SRC is")
    add_source_options(parser)
    dropped = "what to do with transitions that hold NaN or infinity (default: refuse)"
    parser.add_argument("--non-finite", choices=("refuse", "drop"), default="refuse", help=dropped)
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset in DIR")


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(commands, "inspect", run_inspect, INSPECT_HELP)
    parser.add_argument("path", metavar="PATH", type=Path, help="a dataset folder, or what import takes")
    task = "task that rewards OGBench's and ExORL's data, and whose spaces must match"
    parser.add_argument("--env", metavar="ENV_ID", help=task)
    add_source_options(parser)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the verdict as JSON as well")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw returns, lengths and actions as a picture")


def run_import(args: argparse.Namespace) -> int:
    """Import a file as a dataset and say what to do next."""
    from dipole_ray.columns import require_fit
    from dipole_ray.data.dataset import write_dataset
    from dipole_ray.data.sources.formats import DATASET, FORMATS, dataset_kind
    from dipole_ray.data.sources.guarantees import MAX_NAMED
    from dipole_ray.data.sources.reading import ImportReport
    from dipole_ray.progress import Progress

    kind = dataset_kind(args.source)
    if kind == DATASET:
        raise DatasetError(f"{args.source}: is a dataset already; train on it as it is, or import its original")
    row = FORMATS[args.format or kind]
    check_options(args, args.source, row.name)
    if "labels" in row.takes and args.env is None:
        raise ConfigError(f"{args.source}: ExORL's episodes are rewarded for a task; {name_a_task()}")
    report = ImportReport()
    reading, expected = reading_of(args, row.name)
    reading = replace(reading, non_finite=args.non_finite)
    schema = row.schema(args.source, reading)
    if expected is not None:
        remedy = "name the environment that made this data with --env"
        require_fit(schema, expected, what=args.source, whom=f"'{args.env}'", remedy=remedy)
    source = {"format": row.name, "file": row.remembered(args.source), "env": args.env, "non_finite": args.non_finite}
    source |= row.choices(args.source, reading)
    rows = row.rows(args.source, reading, report)
    with Progress(f"import {args.source.name}", unit="transitions") as progress:
        manifest = write_dataset(args.out, _counted(rows, progress), schema, source, overwrite=args.overwrite)
    places = ", ".join(report.non_finite) + (", ..." if len(report.non_finite) == MAX_NAMED else "")
    dropped = f", {report.dropped_transitions} dropped as not finite: {places}" if report.dropped_transitions else ""
    if report.unfollowed_transitions:
        dropped += f", {report.unfollowed_transitions} left out because nothing says what they led to"
    for note in report.notes:
        print(f"note: {note}")
    print(
        f"{args.out}: {manifest.num_transitions} transitions in {report.trajectories} trajectories{dropped}, "
        f"observations {schema.observation_text}, actions {schema.actions}\n"
        f"next: dipole data inspect {args.out}\n"
        f"      dipole train data.path={args.out}" + (f" env.id={args.env}" if args.env else " env.id=ENV_ID")
    )
    return 0


def _counted(rows: Iterable[Any], progress: Any) -> Iterator[Any]:
    for piece in rows:
        yield piece
        progress.advance(int((piece["remaining"] > 0).sum()))


def run_inspect(args: argparse.Namespace) -> int:
    """Inspect a dataset, print the verdict, and write it where asked."""
    from dipole_ray.cli.inspect_report import plot_inspection, print_inspection
    from dipole_ray.data.inspection.inspect import inspect_dataset
    from dipole_ray.data.sources.formats import FORMATS, dataset_kind
    from dipole_ray.progress import Progress

    kind = dataset_kind(args.path)
    check_options(args, args.path, kind)
    progress = Progress(f"inspect {args.path.name}", unit="transitions")
    with ExitStack() as stack:
        reading, expected = reading_of(args, kind, lambda: stack.enter_context(progress))
        if args.env is None or "labels" not in (FORMATS[kind].takes if kind in FORMATS else ()):
            stack.enter_context(progress)  # otherwise after the labelling, which has a bar of its own
        inspection = inspect_dataset(args.path, reading, expected=expected, on_transitions=progress.update)
    print_inspection(inspection)
    try:
        if args.json is not None:
            args.json.write_text(json.dumps(inspection.to_json(), indent=1) + "\n", encoding="utf-8")
        if args.plot is not None:
            plot_inspection(inspection, args.plot)
    except OSError as error:
        found = f"{error.filename or args.plot}: cannot be written ({error.strerror or error})"
        raise ConfigError(f"{found}; choose another place for the output") from error
    return 1 if inspection.verdict == "error" else 0
