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
    names = "an OGBench dataset name or Pendulum-v1; or exorl and its domain: walker, quadruped, cheetah or jaco"
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

    name, *domains = args.names
    if name == "exorl":
        return _collect_exorl(args, domains)
    if domains or args.algo:
        what = f"domain '{domains[0]}'" if domains else f"--algo {args.algo}"
        raise ConfigError(f"{what} has no effect on '{name}': only exorl has domains; leave it out")
    paths = collect(name, args.transitions, args.seed, args.out, num_workers=args.workers, overwrite=args.overwrite)
    print(*paths, sep="\n")
    task = "-singletask-".join(name.rsplit("-", 1))
    use = f"import {paths[0]} --env {task} --out DIR" if paths[0].suffix == ".npz" else f"inspect {paths[0]}"
    print(f"next: dipole data {use}")
    return 0


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
