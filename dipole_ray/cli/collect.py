"""`dipole data collect`: datasets made on the spot by seeded controllers and explorers."""

import argparse
from pathlib import Path
from shlex import quote
from typing import Any

from dipole_ray.cli.command import add_command
from dipole_ray.errors import ConfigError

COLLECT_HELP = """\
Make a dataset on the spot with a seeded scripted collector, in parallel through Ray tasks.

examples:
  dipole data collect pointmaze-medium-navigate-v0 --transitions 50000 --seed 0 --out DIR
  dipole data collect cube-single-play-v0 --transitions 100000 --seed 0 --out DIR --workers 8
  dipole data collect Pendulum-v1 --transitions 50000 --seed 0 --out DIR
  dipole data collect Pendulum-v1 env.kwargs.g=9.81 --transitions 50000 --out DIR   # an argument of the environment

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


def add_collect(commands: Any) -> None:
    """Add `collect` to the commands of `dipole data`."""
    parser = add_command(commands, "collect", run_collect, COLLECT_HELP)
    names = (
        "an OGBench dataset name or Pendulum-v1, and env.kwargs.KEY=VALUE; or exorl and its domain: walker, quadruped, "
        "cheetah or jaco"
    )
    parser.add_argument("names", metavar="NAME", nargs="+", help=names)
    parser.add_argument("--algo", choices=("rnd", "random"), help="exorl only: who chooses the actions (default: rnd)")
    steps = "transitions (steps) to make"
    parser.add_argument("--transitions", "--steps", metavar="N", type=int, required=True, help=steps)
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="seed (default: 0)")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the files")
    parser.add_argument("--workers", metavar="W", type=int, help="Ray tasks at a time (default: the whole cluster)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there; exorl begins anew")


def run_collect(args: argparse.Namespace) -> int:
    """Collect a dataset and say what to do next."""
    from dipole_ray.collect import collect

    settings = [word for word in args.names if "=" in word]
    name, *domains = [word for word in args.names if word not in settings] or [""]
    if name == "exorl":
        if settings:
            raise ConfigError(f"{settings[0]} has no effect on ExORL's domains, which take no arguments; leave it out")
        return _collect_exorl(args, domains)
    if domains or args.algo:
        what = f"domain '{domains[0]}'" if domains else f"--algo {args.algo}"
        raise ConfigError(f"{what} has no effect on '{name}': only exorl has domains; leave it out")
    kwargs = _kwargs_of(name, settings)
    how: Any = {"num_workers": args.workers, "overwrite": args.overwrite, "env_kwargs": kwargs}
    paths = collect(name, args.transitions, args.seed, args.out, **how)
    print(*paths, sep="\n")
    task = "-singletask-".join(name.rsplit("-", 1))
    same = "".join(f" {quote(word)}" for word in settings)
    use = f"import {paths[0]} --env {task} --out DIR{same}" if paths[0].suffix == ".npz" else f"inspect {paths[0]}"
    print(f"next: dipole data {use}")
    return 0


def _kwargs_of(name: str, words: list[str]) -> dict[str, Any]:
    """Return the environment's arguments that `env.kwargs...=VALUE` words give."""
    from dipole_ray.envs.make import EnvConfig
    from dipole_ray.settings import apply_overrides, from_mapping

    if other := [word for word in words if not word.startswith(("env.kwargs=", "env.kwargs."))]:
        raise ConfigError(f"'{other[0]}' has no effect on a collector; give env.kwargs.KEY=VALUE, or leave it out")
    given: dict[str, Any] = apply_overrides({"env": {"id": name}}, words)["env"]
    return from_mapping(EnvConfig, given, "env").kwargs


def _collect_exorl(args: argparse.Namespace, domains: list[str]) -> int:
    """Collect ExORL episodes and say what to do next."""
    from dipole_ray.collect.exorl import collect_exorl
    from dipole_ray.envs.exorl.tasks import DOMAINS, task_ids

    if len(domains) != 1:
        found = f"{' '.join(domains)} are several domains" if domains else "the domain is missing"
        raise ConfigError(f"collect exorl DOMAIN: {found}; name one of {', '.join(DOMAINS)}")
    domain, algorithm = domains[0], args.algo or "rnd"
    how = {"num_workers": args.workers, "overwrite": args.overwrite}
    folder = collect_exorl(domain, algorithm, args.transitions, args.seed, args.out, **how)
    print(folder)
    tasks = [name for name in task_ids() if name.startswith(f"exorl/{domain}-")]
    print(f"next: dipole train {quote(f'data.path={folder}')} env.id={tasks[0]}   (or {', '.join(tasks[1:])})")
    return 0
