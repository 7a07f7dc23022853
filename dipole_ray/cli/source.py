"""What `dipole data import` and `inspect` are told about data in anybody's format: options and environment."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipole_ray.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

CACHE = Path("~/.cache/dipole_ray")
"""Where a run keeps converted data too, unless data.cache says otherwise."""


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only some kinds of data know; `check_options` refuses them elsewhere."""
    parser.add_argument(
        "--map",
        metavar="MEANING=COLUMN",
        action="append",
        default=[],
        help="table column(s) for one meaning, or the entries of Minari's dict observations; repeatable",
    )
    parser.add_argument(
        "--max-episode-steps",
        metavar="N",
        type=int,
        help="d4rl only: time limit of trajectories in a file without timeouts (default: that of --env)",
    )
    parser.add_argument("--workers", metavar="W", type=int, help="exorl only: Ray tasks at a time (default: all cores)")
    parser.add_argument("--cache", metavar="DIR", type=Path, help=f"exorl only: keeps rewards (default: {CACHE})")


def check_options(args: argparse.Namespace, path: Path, kind: str) -> None:
    """Refuse options that have no effect on this kind of data, and environments that there are not."""
    if args.map and kind not in ("table", "minari"):
        raise ConfigError(f"--map is for tables; {kind} data has fixed names: leave --map out")
    if args.max_episode_steps is not None and (kind != "d4rl" or args.max_episode_steps < 1):
        raise ConfigError(
            f"--max-episode-steps {args.max_episode_steps} of {kind} data: it is the time limit, at least 1, of D4RL "
            "files without timeouts; leave it out"
        )
    for option in ("workers", "cache"):
        if getattr(args, option) is not None and kind != "exorl":
            raise ConfigError(f"--{option} is for rewarding ExORL's episodes, and this is {kind} data; leave it out")
        if getattr(args, option) is not None and args.env is None:
            raise ConfigError(f"--{option} is for rewarding {path} for a task; {_name_a_task()}")
    if args.env is None:
        return
    from dipole_ray.envs.registry import family

    if family(args.env) != "exorl" and kind == "exorl":
        raise ConfigError(
            f"{path}: ExORL's episodes are rewarded for a task, and '{args.env}' is none of theirs; {_name_a_task()}"
        )


def _name_a_task() -> str:
    from dipole_ray.envs.exorl.tasks import task_ids

    return f"name one with --env: {', '.join(task_ids())}"


def environment(env_id: str | None) -> tuple[Any, Any, int | None]:
    """Return the dimensions as a schema, the bounds of the actions and the time limit; each None without an id."""
    if env_id is None:
        return None, None, None
    import numpy as np

    from dipole_ray.data.schema import Schema
    from dipole_ray.envs.make import env_dims

    dims = env_dims(env_id)
    low, high = map(np.asarray, dims.action_bounds)
    return Schema(dims.observation_dim, dims.action_dim), (low, high), dims.max_episode_steps


def open_source(args: argparse.Namespace, kind: str, report: Any) -> tuple[Any, Iterator[Any], dict[str, Any]]:
    """Return the schema, the rows and the description of what is to be imported."""
    from dipole_ray.data.sources.mapping import TableMapping
    from dipole_ray.data.sources.ogbench import ogbench_schema, read_ogbench
    from dipole_ray.data.sources.table import read_table, table_columns, table_schema

    source = {"format": kind, "file": args.source.name, "env": args.env, "non_finite": args.non_finite}
    if kind == "ogbench":
        schema = ogbench_schema(args.source)
        _check_environment(args, schema)
        rows = read_ogbench(args.source, relabel_for(args.env), non_finite=args.non_finite, report=report)
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
    _, bounds, limit = environment(args.env)
    options: dict[str, Any] = {"action_bounds": bounds, "non_finite": args.non_finite, "report": report}
    if kind == "d4rl":
        schema, limit = d4rl_schema(args.source), args.max_episode_steps or limit
        rows = read_d4rl(args.source, max_episode_steps=limit, **options)
        source |= {"max_episode_steps": limit}
    else:
        chosen = chosen_observations(args.map)
        schema = minari_schema(args.source, chosen)
        rows = read_minari(args.source, chosen, **options)
        source |= {"mapping": {"observations": list(chosen)}} if chosen else {}
    _check_environment(args, schema)
    return schema, rows, source


def _open_exorl(
    args: argparse.Namespace, source: dict[str, Any], report: Any
) -> tuple[Any, Iterator[Any], dict[str, Any]]:
    """Label ExORL's episodes; return their schema, rows and description."""
    from dipole_ray.data.sources.exorl import exorl_schema, find_episodes, read_exorl

    if args.env is None:
        raise ConfigError(f"{args.source}: ExORL's episodes are rewarded for a task; {_name_a_task()}")
    files = find_episodes(args.source)
    schema = exorl_schema(files)
    _check_environment(args, schema)
    rows = read_exorl(files, exorl_labels(args, files), non_finite=args.non_finite, report=report)
    return schema, rows, source | {"file": str(args.source)}


def exorl_labels(args: argparse.Namespace, files: list[Path]) -> Iterator[np.ndarray]:
    """Have the rewards of the task that was named, in parallel and kept as a run keeps them; return each episode's."""
    from dipole_ray.envs.exorl.rewards import label_episodes, rewards_of

    cache = (args.cache or CACHE).expanduser()
    return rewards_of(label_episodes(args.env, files, cache, num_workers=args.workers))


def relabel_for(env_id: str | None) -> Any:
    """Return the labelling of an OGBench task; other environments' files bring their own rewards."""
    if env_id is None or "singletask" not in env_id:
        return None
    from dipole_ray.envs.relabel import ogbench_relabel

    return partial(ogbench_relabel, env_id)


def _check_environment(args: argparse.Namespace, schema: Any) -> None:
    """Refuse data whose dimensions are not those of the environment that was named."""
    expected = environment(args.env)[0]
    if expected is not None:
        from dipole_ray.prepare import require_dimensions

        remedy = "name the environment that made this data with --env"
        require_dimensions(args.source, schema, expected, args.env, remedy)
