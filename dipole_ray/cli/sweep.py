"""`dipole sweep`: trials over any setting, scored over omega and candidates, continued by the same command."""

import argparse
import shlex
from typing import Any

from dipole_ray.cli.command import add_command, print_files, to_cluster

_EPILOG = """\
examples:
  dipole sweep smoke                                  two trials, under a minute on two free cores
  dipole sweep beta_expectile sweep.rungs=8
  dipole sweep omega_free training.offline_learner_steps=20000 'space.agent.beta={grid: [1, 3, 10]}'
  dipole sweep my_sweep.yaml folder=runs/sweeps --address 10.0.0.1:6379

a sweep's file has three sections:
  sweep:                        how trials are chosen and scored; `dipole sweep --help-config` explains every key
    search: random              grid (all combinations), random, or optuna
    num_samples: 8
    scheduler: asha             none, asha (stops the worse early), or pbt (replaces them by copies of the better)
    evaluation: {omegas: [0, 0.5, 1, 2], candidates: [1, 16]}
  space:                        what varies: any key of `dipole train --help-config`
    agent.beta: {loguniform: [0.3, 30]}
    agent.expectile: {choice: [0.7, 0.9]}
  run:                          the base run: a preset or file, and keys on top
    from: quickstart
    training: {online_env_steps: 0}

omega and the number of candidates cost no training, so they make no trials: at every rung each trial is scored on the
whole grid of them from one checkpoint. The best cell is chosen on one set of episodes and reported on another.

KEY=VALUE sets a key of the run (agent.shift=1), of the sweep (sweep.rungs=8) or of the space (space.KEY={...}).
The same command again continues a sweep that was stopped or killed, and delivers what MLflow missed.
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the parsers of `dipole`."""
    text = "Run trials over any setting with Ray Tune."
    summary = "try many settings; continue a sweep that was stopped"
    parser = add_command(subparsers, "sweep", run_sweep_command, text, help=summary, epilog=_EPILOG)
    parser.add_argument("source", nargs="?", metavar="PRESET|FILE.yaml", help="what to run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings on top")
    parser.add_argument("--address", help="Ray cluster to run on (default: RAY_ADDRESS, or a local one)")
    parser.add_argument("--help-config", action="store_true", help="explain every setting of a sweep and stop")


def run_sweep_command(arguments: argparse.Namespace) -> int:
    """Run or continue the sweep, then print what came of it; 128 + the signal's number if stopped, 1 if all failed."""
    from dipole_ray.errors import ConfigError
    from dipole_ray.runs.config import presets
    from dipole_ray.settings import describe
    from dipole_ray.sweep.config import SweepConfig

    if arguments.help_config:
        print(*describe(SweepConfig, "sweep"), sep="\n")
        return 0
    from dipole_ray.sweep.driver import run_sweep
    from dipole_ray.sweep.plan import load_plan
    from dipole_ray.sweep.result import table
    from dipole_ray.tables import print_table

    if arguments.source is None or "=" in arguments.source:
        raise ConfigError(f"nothing to sweep: name a preset ({', '.join(presets(sweeps=True))}) or a YAML file")
    result = run_sweep(load_plan(arguments.source, arguments.overrides))
    if result.board:
        print_table(table(result.plan, result.board), width=140)
    for trial, error in result.failed.items():
        print(f"failed    {trial}: {error}")
    print(f"\nsweep     {result.folder}")
    print_files(result.files)
    if result.view_command is not None:
        print(f"mlflow    {result.view_command}")
    if not result.finished:
        words = shlex.join([arguments.source, *arguments.overrides, *to_cluster(arguments)])
        print(f"\nstopped; continue with the same command:\n  dipole sweep {words}")
        return result.stops.exit_status
    best = result.folder / "best.yaml"
    if best in result.files:
        trial = result.folder / "trials" / result.board[0]["trial"]
        train = shlex.join(["dipole", "train", str(best), *to_cluster(arguments)])
        print(f"\nnext:\n  {train}\n  dipole evaluate {shlex.quote(str(trial))}")
    return 0 if result.board else 1
