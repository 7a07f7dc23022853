"""`dipole data import | inspect | collect | download`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dipole_ray.cli.download import add_download
from dipole_ray.errors import ConfigError, DatasetError

CACHE = Path("~/.cache/dipole_ray")
"""Where a run keeps converted data too, unless data.cache says otherwise."""

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
to [-1, 1] from the bounds of its action space, as the environment's are; the actions of other data must lie there.

Of an ExORL episode only observation, action and physics are read: rewards are computed from the recorded states, in
parallel through Ray, and kept in --cache, so that an interrupted import goes on and a second one of the same task is
only a copy; reward, discount and skill in the file are ignored.
"""

INSPECT_HELP = """\
Read a dataset from beginning to end and give a verdict (ok, warning, error) before any training.

examples:
  dipole data inspect DIR
  dipole data inspect cube-single-play-v0.npz --env cube-single-play-singletask-v0 --plot cube.png
  dipole data inspect hopper_medium-v2.hdf5
  dipole data inspect robot.parquet --map rewards=r --map episode=run --json verdict.json

The exit code is 0 for ok and warning, 1 for error.
"""

COLLECT_HELP = """\
Make a dataset on the spot with a seeded scripted collector, in parallel through Ray tasks.

examples:
  dipole data collect pointmaze-medium-navigate-v0 --transitions 50000 --seed 0 --out DIR
  dipole data collect cube-single-play-v0 --transitions 100000 --seed 0 --out DIR --workers 8
  dipole data collect Pendulum-v1 --transitions 50000 --seed 0 --out DIR

  # ExORL's own episode files, in DIR/walker/rnd/buffer: by an explorer that seeks new states, or by uniform noise
  dipole data collect exorl walker --algo rnd --steps 100000 --seed 0 --out DIR
  dipole data collect exorl jaco --algo random --steps 100000 --out DIR --workers 8

OGBench names give OGBench's own file pair (NAME.npz and NAME-val.npz), which `ogbench` loads; the same name,
transitions and seed give the same data, whatever the number of workers. What was interrupted is continued by the same
command.

Domains of exorl: walker, quadruped, cheetah, jaco. Episodes are whole (1000 steps, jaco 250), so the number of steps
is rounded up; asking for more later goes on where the last episode ended. rnd explores in one process, at some
200 steps/s on one core: for more data, start several seeds with --out DIR/seed0, DIR/seed1, ...; import and
data.path=DIR take the episodes of all of them.
"""


def add_data_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `data` and its commands to the main parser; each sets `run`, a function of the parsed arguments."""
    parser = subparsers.add_parser("data", help="import, inspect, collect or download a dataset", description=__doc__)
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_import(commands)
    _add_inspect(commands)
    _add_collect(commands)
    add_download(commands)


def _add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    summary = text.partition("\n")[0]
    return commands.add_parser(
        name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add_command(commands, "import", IMPORT_HELP)
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="a file or folder in one of these formats; tables may be a folder"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the dataset")
    parser.add_argument("--env", metavar="ENV_ID", help="task that gives the rewards, and whose spaces must match")
    parser.add_argument(
        "--format", choices=("ogbench", "exorl", "d4rl", "minari", "table"), help="default: by what SRC is"
    )
    _add_map(parser)
    _add_limit(parser)
    parser.add_argument(
        "--non-finite",
        choices=("refuse", "drop"),
        default="refuse",
        help="what to do with transitions that hold NaN or infinity (default: refuse)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset in DIR")
    parser.add_argument("--workers", metavar="W", type=int, help="exorl only: Ray tasks at a time (default: all cores)")
    parser.add_argument(
        "--cache", metavar="DIR", type=Path, default=CACHE, help=f"exorl only: keeps rewards (default: {CACHE})"
    )
    parser.set_defaults(run=run_import)


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add_command(commands, "inspect", INSPECT_HELP)
    parser.add_argument("path", metavar="PATH", type=Path, help="a dataset folder, or what import takes")
    parser.add_argument(
        "--env", metavar="ENV_ID", help="task that rewards OGBench's and ExORL's data, or D4RL's environment"
    )
    _add_map(parser)
    _add_limit(parser)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the verdict as JSON as well")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw returns, lengths and actions as a picture")
    parser.set_defaults(run=run_inspect)


def _add_collect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add_command(commands, "collect", COLLECT_HELP)
    parser.add_argument("name", metavar="NAME", help="an OGBench dataset name, Pendulum-v1, or exorl")
    parser.add_argument("domain", metavar="DOMAIN", nargs="?", help="exorl only: walker, quadruped, cheetah or jaco")
    parser.add_argument("--algo", choices=("rnd", "random"), help="exorl only: who chooses the actions (default: rnd)")
    parser.add_argument(
        "--transitions", "--steps", metavar="N", type=int, required=True, help="transitions (steps) to make"
    )
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="seed (default: 0)")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the files")
    parser.add_argument("--workers", metavar="W", type=int, help="Ray tasks at a time (default: the whole cluster)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there; exorl begins anew")
    parser.set_defaults(run=run_collect)


def _add_map(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--map",
        metavar="MEANING=COLUMN",
        action="append",
        default=[],
        help="table column(s) for one meaning, or the entries of Minari's dict observations; repeatable",
    )


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-episode-steps",
        metavar="N",
        type=int,
        help="d4rl only: time limit of trajectories in a file without timeouts (default: that of --env)",
    )


def run_import(args: argparse.Namespace) -> int:
    """Import a file as a dataset and say what to do next."""
    from dipole_ray.data.dataset import write_dataset
    from dipole_ray.data.inspect import dataset_kind
    from dipole_ray.data.sources.pieces import MAX_NAMED, ImportReport
    from dipole_ray.progress import Progress

    kind = dataset_kind(args.source)
    if kind == "dataset":
        raise DatasetError(f"{args.source}: is a dataset already; train on it as it is, or import its original")
    kind = args.format or kind
    _check_options(args, kind)
    report = ImportReport()
    schema, rows, source = _open_source(args, kind, report)
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
        f"observations {schema.observation_dim}, actions {schema.action_dim}\n"
        f"next: dipole data inspect {args.out}\n"
        f"      dipole train data.path={args.out}" + (f" env.id={args.env}" if args.env else " env.id=ENV_ID")
    )
    return 0


def _check_options(args: argparse.Namespace, kind: str) -> None:
    """Refuse options that have no effect on this kind of data."""
    if args.map and kind not in ("table", "minari"):
        raise ConfigError(f"--map is for tables; {kind} data has fixed names: leave --map out or pass --format table")
    if args.max_episode_steps is not None and (kind != "d4rl" or args.max_episode_steps < 1):
        raise ConfigError(
            f"--max-episode-steps {args.max_episode_steps} of {kind} data: it is the time limit, at least 1, of D4RL "
            "files without timeouts; leave it out"
        )


def _open_source(args: argparse.Namespace, kind: str, report: Any) -> tuple[Any, Iterator[Any], dict[str, Any]]:
    """Return the schema, the rows and the description of what is to be imported."""
    from dipole_ray.data.sources.mapping import TableMapping
    from dipole_ray.data.sources.ogbench import ogbench_schema, read_ogbench
    from dipole_ray.data.sources.table import read_table, table_columns, table_schema

    source = {"format": kind, "file": args.source.name, "env": args.env, "non_finite": args.non_finite}
    if kind == "ogbench":
        schema = ogbench_schema(args.source)
        _check_environment(args, schema)
        rows = read_ogbench(args.source, _relabel(args.env), non_finite=args.non_finite, report=report)
        return schema, rows, source
    if kind == "exorl":
        return _open_exorl(args, source, report)
    if kind in ("d4rl", "minari"):
        return _open_hdf5(args, kind, source, report)
    columns = table_columns(args.source)
    mapping = TableMapping.from_pairs(args.map) if args.map else TableMapping.guess(columns)
    schema = table_schema(args.source, mapping)
    _check_environment(args, schema)
    rows = read_table(args.source, mapping, non_finite=args.non_finite, report=report)
    return schema, rows, source | {"mapping": mapping.to_json()}


def _open_hdf5(
    args: argparse.Namespace, kind: str, source: dict[str, Any], report: Any
) -> tuple[Any, Iterator[Any], dict[str, Any]]:
    """Return the schema, the rows and the description of D4RL's or Minari's data."""
    from dipole_ray.data.sources.d4rl import d4rl_schema, read_d4rl
    from dipole_ray.data.sources.minari import chosen_observations, minari_schema, read_minari

    source = source | {"file": str(args.source)}
    if kind == "d4rl":
        schema, limit = d4rl_schema(args.source), _time_limit(args)
        rows = read_d4rl(args.source, max_episode_steps=limit, non_finite=args.non_finite, report=report)
        source |= {"max_episode_steps": limit}
    else:
        chosen = chosen_observations(args.map)
        schema = minari_schema(args.source, chosen)
        rows = read_minari(args.source, chosen, non_finite=args.non_finite, report=report)
        source |= {"mapping": {"observations": list(chosen)}} if chosen else {}
    _check_environment(args, schema)
    return schema, rows, source


def _time_limit(args: argparse.Namespace) -> int | None:
    """Return the time limit that was given, or that of the environment that was named."""
    limit: int | None = args.max_episode_steps
    if limit is None and args.env is not None:
        from dipole_ray.envs.make import env_dims

        limit = env_dims(args.env).max_episode_steps
    return limit


def _open_exorl(
    args: argparse.Namespace, source: dict[str, Any], report: Any
) -> tuple[Any, Iterator[Any], dict[str, Any]]:
    """Label ExORL's episodes; return their schema, rows and description."""
    from dipole_ray.data.sources.exorl import exorl_schema, find_episodes, read_exorl
    from dipole_ray.envs.exorl.rewards import label_episodes, rewards_of
    from dipole_ray.envs.exorl.tasks import task_ids
    from dipole_ray.envs.registry import family

    if args.env is None or family(args.env) != "exorl":
        found = "without --env" if args.env is None else f"and '{args.env}' is none of theirs"
        raise ConfigError(
            f"{args.source}: ExORL's episodes are rewarded for a task {found}; name one with --env: "
            + ", ".join(task_ids())
        )
    files = find_episodes(args.source)
    schema = exorl_schema(files)
    _check_environment(args, schema)
    blocks = label_episodes(args.env, files, args.cache.expanduser(), num_workers=args.workers)
    rows = read_exorl(files, rewards_of(blocks), non_finite=args.non_finite, report=report)
    return schema, rows, source | {"file": str(args.source)}


def _relabel(env_id: str | None) -> Any:
    """Return the labelling of an OGBench or ExORL task; other environments' files bring their own rewards."""
    if env_id is not None and env_id.startswith("exorl/"):
        from dipole_ray.envs.exorl.relabel import exorl_relabel

        return partial(exorl_relabel, env_id)
    if env_id is None or "singletask" not in env_id:
        return None
    from dipole_ray.envs.relabel import ogbench_relabel

    return partial(ogbench_relabel, env_id)


def _check_environment(args: argparse.Namespace, schema: Any) -> None:
    """Refuse data whose dimensions are not those of the environment that was named."""
    if args.env is None:
        return
    from dipole_ray.envs.make import env_dims

    dims = env_dims(args.env)
    if (dims.observation_dim, dims.action_dim) != (schema.observation_dim, schema.action_dim):
        raise DatasetError(
            f"{args.source}: observations have {schema.observation_dim} and actions {schema.action_dim} dimensions, "
            f"'{args.env}' has {dims.observation_dim} and {dims.action_dim}; name the environment that made this data "
            "with --env"
        )


def _counted(rows: Iterable[Any], progress: Any) -> Iterator[Any]:
    for piece in rows:
        yield piece
        progress.advance(int((piece["remaining"] > 0).sum()))


def run_inspect(args: argparse.Namespace) -> int:
    """Inspect a dataset, print the verdict, and write it where asked."""
    from dipole_ray.cli.inspect_report import plot_inspection, print_inspection
    from dipole_ray.data.inspect import dataset_kind, inspect_dataset
    from dipole_ray.data.sources.mapping import TableMapping
    from dipole_ray.data.sources.minari import chosen_observations
    from dipole_ray.progress import Progress

    kind = dataset_kind(args.path)
    _check_options(args, kind)
    mapping = TableMapping.from_pairs(args.map) if args.map and kind == "table" else None
    with Progress(f"inspect {args.path.name}", unit="transitions") as progress:
        inspection = inspect_dataset(
            args.path,
            mapping=mapping,
            relabel=_relabel(args.env),
            observations=chosen_observations(args.map) if kind == "minari" else (),
            max_episode_steps=_time_limit(args) if kind == "d4rl" else None,
            on_transitions=progress.update,
        )
    print_inspection(inspection)
    try:
        if args.json is not None:
            args.json.write_text(json.dumps(inspection.to_json(), indent=1) + "\n", encoding="utf-8")
        if args.plot is not None:
            plot_inspection(inspection, args.plot)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or args.plot}: cannot be written ({error.strerror or error}); "
            "choose another place for the output"
        ) from error
    return 1 if inspection.verdict == "error" else 0


def run_collect(args: argparse.Namespace) -> int:
    """Collect a dataset and say what to do next."""
    from dipole_ray.envs.collect import collect

    if args.name == "exorl":
        return _collect_exorl(args)
    for value, what in ((args.domain, f"domain '{args.domain}'"), (args.algo, f"--algo {args.algo}")):
        if value is not None:
            raise ConfigError(f"{what} has no effect on '{args.name}': only exorl has domains; leave it out")
    paths = collect(
        args.name, args.transitions, args.seed, args.out, num_workers=args.workers, overwrite=args.overwrite
    )
    for path in paths:
        print(path)
    if paths[0].suffix == ".npz":
        task = "-singletask-".join(args.name.rsplit("-", 1))
        print(f"next: dipole data import {paths[0]} --env {task} --out DIR", file=sys.stdout)
    else:
        print(f"next: dipole data inspect {paths[0]}")
    return 0


def _collect_exorl(args: argparse.Namespace) -> int:
    """Collect ExORL episodes and say what to do next."""
    from dipole_ray.envs.collect.exorl import collect_exorl
    from dipole_ray.envs.exorl.tasks import DOMAINS, task_ids

    if args.domain is None:
        raise ConfigError(f"collect exorl DOMAIN: the domain is missing; name one of {', '.join(DOMAINS)}")
    folder = collect_exorl(
        args.domain,
        args.algo or "rnd",
        args.transitions,
        args.seed,
        args.out,
        num_workers=args.workers,
        overwrite=args.overwrite,
    )
    print(folder)
    tasks = [name for name in task_ids() if name.startswith(f"exorl/{args.domain}-")]
    print(f"next: dipole train data.path={folder} env.id={tasks[0]}   (or {', '.join(tasks[1:])})")
    return 0
