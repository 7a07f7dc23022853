"""`dipole train`: a run from a preset or a YAML file, or the continuation of one."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipole_ray.cli.command import add_command, print_files, to_cluster

if TYPE_CHECKING:
    from dipole_ray.runs.config import RunConfig

_EPILOG = """\
examples:
  dipole train quickstart
  dipole train quickstart agent.beta=5 agent.omega=0.5 seed=1
  dipole train my_run.yaml training.online_env_steps=0
  dipole train --resume runs/quickstart-20260101-120000

KEY=VALUE changes any setting (values are YAML); `dipole train --help-config` explains every key.
Ctrl-C, SIGTERM and SIGHUP end it within seconds with a checkpoint, and it prints the command that continues.
To use a running Ray cluster, give --address or set RAY_ADDRESS.
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the parsers of `dipole`."""
    text = "Train DIPOLE from an offline dataset and fine-tune it online."
    summary = "train a policy: offline phase, online phase, evaluation"
    parser = add_command(subparsers, "train", run_train, text, help=summary, epilog=_EPILOG)
    parser.add_argument("source", nargs="?", metavar="PRESET|FILE.yaml", help="what to run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings on top")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="continue the run in this folder")
    parser.add_argument("--address", help="Ray cluster to run on (default: RAY_ADDRESS, or a local one)")
    parser.add_argument(
        "--profile", metavar="FILE", type=Path, help="write a trace of the run that ui.perfetto.dev opens"
    )
    parser.add_argument("--help-config", action="store_true", help="explain every setting and stop")


def run_train(arguments: argparse.Namespace) -> int:
    """Train, then print the table, the pictures and what to do next; 128 + the signal's number if it was stopped."""
    from dipole_ray.errors import ConfigError
    from dipole_ray.runs.config import RunConfig, load, presets
    from dipole_ray.settings import describe

    if arguments.help_config:
        print(*describe(RunConfig), sep="\n")
        return 0
    from dipole_ray.evaluation.report import print_table
    from dipole_ray.runs.profile import profiled
    from dipole_ray.runs.run import resume_run, start_run
    from dipole_ray.runs.session import RUN_FILE, typed

    words = [word for word in (arguments.source, *arguments.overrides) if word is not None]
    source = words.pop(0) if words and "=" not in words[0] else None
    if arguments.resume is not None and source is not None:
        raise ConfigError(f"'{source}' and --resume: a resumed run has its own config; give only KEY=VALUE with it")
    if arguments.resume is None and source is None and not words:
        raise ConfigError(f"nothing to train: name a preset ({', '.join(presets())}), a YAML file, or KEY=VALUE")
    with profiled(arguments.profile):
        run = start_run(load(source, words)) if arguments.resume is None else resume_run(arguments.resume, words)
    folder, cluster = typed(run.folder), to_cluster(arguments)
    if run.evaluation:
        print_table(run.evaluation, chosen=run.chosen, title=folder.name)
    if not run.finished:
        print(f"\nstopped; continue with:\n  {shlex.join([*shlex.split(run.resume_command), *cluster])}")
        return run.stops.exit_status
    print(f"\nrun       {folder}")
    print_files(run.pictures)
    if run.tracker.view_command is not None:
        print(f"mlflow    {run.tracker.view_command}")
    print("\nnext:")
    grid = " --omega 0 1 3 --candidates 1 32" if run.chosen is not None else ""
    print(f"  {shlex.join(['dipole', 'evaluate', str(folder)])}{grid} --episodes 50")
    given = [*filter(None, [source]), *words] if arguments.resume is None else [str(folder / RUN_FILE), *words]
    print(f"  {_another(run.config, [*given, *cluster])}")
    print("  dipole train --help-config    # every setting, explained")
    return 0


def _another(config: "RunConfig", given: list[str]) -> str:
    """Return the command that trains a run again, `given` the same words, with one setting changed."""
    agent = config.agent
    if agent.algorithm != "fql" and agent.weight_scheme in ("dipole", "exp"):
        change, meaning = f"agent.beta={3 * agent.beta:g}", "steeper weights"
    else:
        change, meaning = f"seed={config.seed + 1}", "another seed"
    kept = [word for word in given if word.partition("=")[0] != change.partition("=")[0]]
    return f"{shlex.join(['dipole', 'train', *kept, change])}    # {meaning}"
