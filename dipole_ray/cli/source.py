"""What `dipole data import` and `inspect` are told about data in anybody's format: options and environment."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dipole_ray.errors import ConfigError

if TYPE_CHECKING:
    from dipole_ray.columns import Schema
    from dipole_ray.data.sources.reading import Reading

CACHE = Path("~/.cache/dipole_ray")  # where a run keeps converted data too, unless data.cache says otherwise


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only some kinds of data know; `check_options` refuses them elsewhere."""
    columns = "table column(s) for one meaning, or the entries of Minari's dict observations; repeatable"
    parser.add_argument("--map", metavar="MEANING=COLUMN", action="append", default=[], help=columns)
    limit = "d4rl only: time limit of trajectories in a file without timeouts (default: that of --env)"
    parser.add_argument("--max-episode-steps", metavar="N", type=int, help=limit)
    parser.add_argument("--workers", metavar="W", type=int, help="exorl only: Ray tasks at a time (default: all cores)")
    parser.add_argument("--cache", metavar="DIR", type=Path, help=f"exorl only: keeps rewards (default: {CACHE})")


def check_options(args: argparse.Namespace, path: Path, kind: str) -> None:
    """Refuse options that have no effect on this kind of data, and environments that there are not."""
    from dipole_ray.data.sources.formats import FORMATS

    takes = FORMATS[kind].takes if kind in FORMATS else frozenset()
    if args.map and not takes & {"mapping", "observations"}:
        raise ConfigError(f"--map is for tables; {kind} data has fixed names: leave --map out")
    if args.max_episode_steps is not None and ("max_episode_steps" not in takes or args.max_episode_steps < 1):
        what = "it is the time limit, at least 1, of D4RL files without timeouts; leave it out"
        raise ConfigError(f"--max-episode-steps {args.max_episode_steps} of {kind} data: {what}")
    for option in [name for name in ("workers", "cache") if getattr(args, name) is not None]:
        if "labels" not in takes:
            raise ConfigError(f"--{option} is for rewarding ExORL's episodes, and this is {kind} data; leave it out")
        if args.env is None:
            raise ConfigError(f"--{option} is for rewarding {path} for a task; {name_a_task()}")
    if args.env is None:
        return
    from dipole_ray.envs.registry import family

    if family(args.env) != "exorl" and "labels" in takes:
        why = f"ExORL's episodes are rewarded for a task, and '{args.env}' is none of theirs"
        raise ConfigError(f"{path}: {why}; {name_a_task()}")


def name_a_task() -> str:
    """Return what to do where a task of ExORL's is missing."""
    from dipole_ray.envs.exorl.tasks import task_ids

    return f"name one with --env: {', '.join(task_ids())}"


def reading_of(
    args: argparse.Namespace, kind: str, on_labelled: Callable[[], object] = lambda: None
) -> tuple[Reading, Schema | None]:
    """Return how data of this kind, a format or `dataset`, is read, and the dimensions that it must have.

    `check_options` has checked `args`; `on_labelled` is called as soon as the rewards of ExORL's episodes are there.
    """
    from dipole_ray.data.sources.formats import FORMATS
    from dipole_ray.data.sources.mapping import TableMapping
    from dipole_ray.data.sources.minari import chosen_observations
    from dipole_ray.data.sources.reading import Reading
    from dipole_ray.envs.make import env_dims
    from dipole_ray.runs.prepare import reading_for

    takes = FORMATS[kind].takes if kind in FORMATS else frozenset()
    reading, expected = Reading(), None
    if args.env is not None:
        dims, cache = env_dims(args.env), (args.cache or CACHE).expanduser()
        reading, expected = reading_for(args.env, dims, cache, args.workers, on_labelled), dims.schema
    return replace(
        reading,
        mapping=TableMapping.from_pairs(args.map) if args.map and "mapping" in takes else None,
        observations=chosen_observations(args.map) if "observations" in takes else (),
        max_episode_steps=args.max_episode_steps or reading.max_episode_steps,
    ), expected
