"""`dipole train`: a run from a preset or a YAML file, or the continuation of one."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipole_ray.cli.command import add_command, print_files, to_cluster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dipole_ray.runs.config import RunConfig
    from dipole_ray.runs.run import Run

_EPILOG = """\
examples:
  dipole train quickstart
  dipole train quickstart agent.beta=5 agent.omega=0.5 seed=1
  dipole train my_run.yaml training.online_env_steps=0
  dipole train my_run.yaml seeds=[0,1,2,3]
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
    parser.add_argument(
        "--resume", metavar="RUN", nargs="+", help="continue the run in this folder; of several, all in one process"
    )
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
    words = [word for word in (arguments.source, *arguments.overrides) if word is not None]
    folders = [Path(word) for word in arguments.resume or () if "=" not in word or Path(word).is_dir()]
    words += [word for word in arguments.resume or () if Path(word) not in folders]
    source = words.pop(0) if words and "=" not in words[0] else None
    if folders and source is not None:
        raise ConfigError(f"'{source}' and --resume: a resumed run has its own config; give only KEY=VALUE with it")
    if arguments.resume is not None and not folders:
        raise ConfigError(f"--resume {' '.join(arguments.resume)}: name the folder of a run first")
    if not folders and source is None and not words:
        raise ConfigError(f"nothing to train: name a preset ({', '.join(presets())}), a YAML file, or KEY=VALUE")
    config = None if folders else load(source, words)  # a mistake in it is told before seconds of imports

    from dipole_ray.runs.profile import profiled
    from dipole_ray.runs.session import RUN_FILE, typed
    from dipole_ray.runs.start import resume_runs, start_runs

    with profiled(arguments.profile):
        runs = resume_runs(folders, words) if config is None else start_runs(config)
    started = [str(typed(runs[0].folder) / RUN_FILE)] if folders else [*filter(None, [source])]
    _show(runs, [*started, *words], to_cluster(arguments))
    return 0 if all(run.finished for run in runs) else runs[0].stops.exit_status


def _show(runs: "Sequence[Run]", given: list[str], cluster: list[str]) -> None:
    """Print the runs' tables, files, and what to do next.

    Given are the words of a command that starts such runs, and those that send one to the same cluster.
    """
    from dipole_ray.evaluation.report import print_table
    from dipole_ray.runs.run import resume_command
    from dipole_ray.runs.session import typed

    for run in runs:
        folder = typed(run.folder)
        if run.evaluation:
            print_table(run.evaluation, chosen=run.chosen, title=folder.name)
    left = [run for run in runs if not run.finished]
    if left:
        print(f"\nstopped; continue with:\n  {shlex.join([*shlex.split(resume_command(left)), *cluster])}")
        return
    for run in runs:
        print(f"\nrun       {typed(run.folder)}")
        print_files(run.pictures)
    run, folder = runs[0], typed(runs[0].folder)
    if run.tracker.view_command is not None:
        print(f"mlflow    {run.tracker.view_command}")
    print("\nnext:")
    candidates = " --candidates 1 32" if run.config.agent.has_critic else ""
    grid = f" --omega 0 1 3{candidates}" if run.chosen is not None else ""
    print(f"  {shlex.join(['dipole', 'evaluate', str(folder)])}{grid} --episodes 50")
    print(f"  {_another([one.config for one in runs], [*given, *cluster])}")
    print("  dipole train --help-config    # every setting, explained")


def _another(configs: "Sequence[RunConfig]", given: list[str]) -> str:
    """Return the command that trains runs again, `given` the same words, with one setting changed."""
    agent = configs[0].agent
    if agent.algorithm != "fql" and agent.weight_scheme in ("dipole", "exp"):
        change, meaning = f"agent.beta={3 * agent.beta:g}", "steeper weights"
    elif len(configs) > 1:
        following = max(config.seed for config in configs) + 1
        change, meaning = f"seeds={[*range(following, following + len(configs))]}".replace(" ", ""), "other seeds"
    else:
        change, meaning = f"seed={configs[0].seed + 1}", "another seed"
    kept = [word for word in given if word.partition("=")[0] != change.partition("=")[0]]
    return f"{shlex.join(['dipole', 'train', *kept, change])}    # {meaning}"
