"""`dipole bench run | report | list`: benchmarks of methods x tasks x seeds, continued by the same command."""

import argparse
import shlex
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from dipole_ray.cli.command import add_command, print_files, to_cluster
from dipole_ray.errors import ConfigError, counted

_RUN = """\
Run what is left of a suite: each (method, task, seed) is one ordinary run, several at a time as Ray tasks.

examples:
  dipole bench run smoke                                     minutes on two cores; shows that everything works
  dipole bench run small_pointmaze --only seed=0,1           a part; the rest another time
  dipole bench run small_pointmaze --only method=dipole,fql --only seed=3
  dipole bench run my_suite.yaml suite.seeds=[0,1] training.offline_learner_steps=1000
  dipole bench run paper_ogbench suite.resources='{cpus: 4, gpus: 0.25}' --address auto

The same command continues a suite that was stopped or killed: what is finished is not run again, what was interrupted
goes on from its newest checkpoint. A changed setting makes new runs beside the old ones. A run whose numbers become
infinite is a result (diverged), one that fails for another reason is tried again by the next start, and one that
another command trains is left to it. `dipole bench list SUITE` says how far a suite is.

KEY=VALUE sets a key of every run (training.offline_learner_steps=1000), of the suite (suite.seeds=[0]), of one task
(tasks.NAME.agent.omega=2) or of one method (methods.NAME.agent.beta=3); give `report` the same ones.
`dipole bench list --help-config` explains the keys of a suite's file.
"""

_REPORT = """\
Write tables and pictures of suites, from whatever runs are there: NAME.md, NAME.json and NAME-*.png.

examples:
  dipole bench report smoke
  dipole bench report small_pointmaze small_walker --out benchmarks/results
  dipole bench report benchmarks/results/smoke.json --out again      from the report's own numbers, without the runs
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the parsers of `dipole`."""
    parser = subparsers.add_parser("bench", help="benchmarks: methods x tasks x seeds, tables and pictures")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = add_command(commands, "run", run_bench, _RUN)
    run.add_argument("suite", metavar="SUITE|FILE.yaml", help="what to run; `dipole bench list` names the suites")
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings on top")
    part = "a part: of method, task or seed"
    run.add_argument("--only", metavar="KIND=NAME,...", action="append", default=[], help=part)
    run.add_argument("--address", help="Ray cluster to run on (default: RAY_ADDRESS, or a local one)")
    report = add_command(commands, "report", report_bench, _REPORT)
    report.add_argument("suites", nargs="+", metavar="SUITE|FILE", help="suites, or JSON files of reports")
    report.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the settings that the runs had on top")
    report.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the files")
    listing = commands.add_parser("list", help="name the suites, or say how far one is")
    listing.add_argument("suite", nargs="?", metavar="SUITE|FILE.yaml", help="say how far its runs are; starts nothing")
    listing.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the settings that the runs have on top")
    listing.add_argument("--help-config", action="store_true", help="explain every key of a suite's file and stop")
    listing.set_defaults(run=list_bench)


def run_bench(arguments: argparse.Namespace) -> int:
    """Run the suite; status 1 if a run failed."""
    from dipole_ray.bench.driver import run_suite
    from dipole_ray.bench.group import ELSEWHERE, FAILED
    from dipole_ray.bench.result import DIVERGED
    from dipole_ray.bench.suite import load_suite

    suite, parts = load_suite(arguments.suite, arguments.overrides), defaultdict[str, list[str]](list)
    for word in arguments.only:  # such as method=dipole,fql
        kind, _, names = word.partition("=")
        if not names:
            raise ConfigError(f"--only {word}: write KIND=NAME,NAME, such as --only method=dipole,fql")
        parts[kind] += names.split(",")
    options = [*(f"--only={word}" for word in arguments.only), *to_cluster(arguments)]
    words = shlex.join([arguments.suite, *options, *arguments.overrides])
    try:
        result = run_suite(suite, parts)
    except KeyboardInterrupt:
        print(f"\nstopped; continue with the same command:\n  dipole bench run {words}")
        raise
    for status in (DIVERGED, ELSEWHERE, FAILED):
        for line in result.errors(status):
            print(f"{status:9} {line}")
    failed, elsewhere = len(result.errors(FAILED)), len(result.errors(ELSEWHERE))
    print(f"runs      {suite.folder}: {result.finished} with a result, {failed} failed")
    if elsewhere:
        are = "is" if elsewhere == 1 else "are"
        print(f"          {elsewhere} {are} trained by another command: this one does not wait for it")
    print(f"\nnext:\n  {shlex.join(['dipole', 'bench', 'report', arguments.suite, *arguments.overrides])}")
    return 1 if failed else 0


def report_bench(arguments: argparse.Namespace) -> int:
    """Write the reports and print their tables."""
    from dipole_ray.bench.report import write_report

    overrides = [*arguments.overrides, *(word for word in arguments.suites if "=" in word)]
    names = [word for word in arguments.suites if "=" not in word]
    made = [name for name in names if name.endswith(".json")]
    if overrides and made:
        why = f"{made[0]} holds what was measured, which {overrides[0]} cannot change"
        raise ConfigError(f"{why}: leave it out, or name the suite instead of the file")
    for name in names:
        written = write_report(name, overrides, arguments.out)
        print(written[0].read_text())
        print_files(written)
    return 0


def list_bench(arguments: argparse.Namespace) -> int:
    """Print the suites, or how far one is, or every key of their files."""
    from dipole_ray.bench.config import MethodConfig, SuiteConfig, TaskConfig
    from dipole_ray.bench.driver import progress_by_method
    from dipole_ray.bench.suite import load_suite, suites
    from dipole_ray.settings import describe

    if arguments.help_config:
        for kind, where in ((SuiteConfig, "suite"), (TaskConfig, "tasks.NAME"), (MethodConfig, "methods.NAME")):
            print(*describe(kind, where), sep="\n")
        print("base, tasks.NAME, methods.NAME: and every key of a run\n    `dipole train --help-config` explains them.")
        return 0
    if arguments.suite is not None:
        found = progress_by_method(load_suite(arguments.suite, arguments.overrides))
        for name, counts in [*found.items(), ("in all", sum(found.values(), Counter()))]:
            print(f"{name}: {', '.join(f'{count} {status}' for status, count in counts.items())}")
        return 0
    for name in suites():
        suite = load_suite(name)
        seeds = len(suite.config.seeds)
        jobs = suite.jobs({"seed": [str(suite.config.seeds[0])]})
        updates = counted(seeds * sum(job.updates for job in jobs), "update", ",.0f")
        print(f"{name}: {counted(seeds * len(jobs), 'run')}, {updates}\n    {suite.config.question}")
    return 0
