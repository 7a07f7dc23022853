"""The report of a suite: NAME.md with tables, NAME.json with every run's numbers, NAME.csv with scores, NAME-*.png.

The JSON holds all that tables and pictures are made of, so that they can be made again without the runs.
"""

import json
import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dipole_ray import settings
from dipole_ray.bench import tables
from dipole_ray.bench.config import MethodConfig, SuiteConfig, TaskConfig
from dipole_ray.bench.job import require_same_data
from dipole_ray.bench.pictures import draw
from dipole_ray.bench.scores import Scores
from dipole_ray.bench.suite import Suite, load_suite, published
from dipole_ray.cores import usable_cores
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.evaluation.statistics import RESAMPLES
from dipole_ray.files.durable import read_json, write_text
from dipole_ray.files.provenance import git_commit, package_versions

FORMAT = 1
_MAX_BYTES = 1 << 26

_HOW = """\
A score is the mean over the last {evaluations} of a phase, of {episodes} episodes each, which every seed has of its
own. Numbers are means over seeds with 95 % stratified bootstrap intervals: percentiles of {resamples:,} resamples of
the seeds within each task; with few seeds they are somewhat too narrow. Runs of one seed share initial networks,
batches and episodes, so a difference of means is taken, and resampled, within seeds. `omega` stood in the file before
the run. "Tuned omega" is, for each seed, the omega with the best mean score over the *other* seeds, so that no number
was chosen by the episodes, or the networks, that it is reported on. 1 candidate is without rejection sampling. A
diverged run counts with {worst}."""


def write_report(source: str, overrides: Sequence[str], out: Path) -> list[Path]:
    """Write the report of a suite, or again that of a report's own JSON file, into the folder `out`; tables come first.

    `overrides` are what the runs had on top of the suite's file.

    Raises:
        ConfigError: No run has a result yet.
        DatasetError: A file is damaged.
    """
    data = read_report(Path(source)) if source.endswith(".json") else collect(load_suite(source, overrides), source)
    scores = scores_of(data)
    if not scores.runs:
        command = shlex.join(["dipole", "bench", "run", source, *overrides])
        raise ConfigError(f"{source}: no run has a result yet; start it with: {command}")
    out.mkdir(parents=True, exist_ok=True)
    name = scores.config.name
    pictures = draw(scores, out)
    files = {
        "md": markdown(data, scores, pictures),
        "json": as_json(data),
        "csv": scores.frame().to_csv(index=False, lineterminator="\n"),
    }
    return [*(write_text(out / f"{name}.{kind}", text) for kind, text in files.items()), *pictures]


def collect(suite: Suite, source: str) -> dict[str, Any]:
    """Return everything that a report is made of, from the runs that have a result."""
    found = [(job, job.stored()) for job in suite.jobs()]
    require_same_data(found, current=False)
    table = suite.config.paper
    # Places on one machine's disk are nobody else's.
    shaping = [word for word in suite.overrides if word.partition("=")[0] not in ("folder", "data.path", "data.cache")]
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["dipole", "bench", "run", source, *shaping]),
        "machine": f"{platform.machine()}, {usable_cores()} cores",
        "versions": package_versions(),
        "commit": git_commit(),
        "planned": len(found),
        "suite": settings.to_mapping(suite.config),
        "tasks": {name: settings.to_mapping(task) for name, task in suite.tasks.items()},
        "methods": {name: settings.to_mapping(method) for name, method in suite.methods.items()},
        "file": _finite(suite.mapping),
        "episodes": found[0][0].config.evaluation.episodes,
        "paper": published(table) if table is not None else None,
        "runs": [result for _, result in found if result is not None],
    }


def _finite(value: Any) -> Any:
    """Return plain values with infinity as a suite's file has it, `.inf`, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return f"{'-' * (value < 0)}.inf" if isinstance(value, float) and math.isinf(value) else value


def scores_of(data: Mapping[str, Any]) -> Scores:
    """Return the scores in a report's data."""
    return Scores(
        config=settings.from_mapping(SuiteConfig, data["suite"], "suite"),
        tasks={name: settings.from_mapping(TaskConfig, item) for name, item in data["tasks"].items()},
        methods={name: settings.from_mapping(MethodConfig, item) for name, item in data["methods"].items()},
        runs={(run["task"], run["method"], run["seed"]): run for run in data["runs"]},
    )


def read_report(path: Path) -> dict[str, Any]:
    """Read a report's JSON file; DatasetError where it is missing or damaged."""
    try:
        return dict(read_json(path, _MAX_BYTES, FORMAT))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: not a readable report ({error}); write it again from the runs") from None


def markdown(data: Mapping[str, Any], scores: Scores, pictures: Sequence[Path]) -> str:
    """Return the report for a person."""
    config, runs = scores.config, data["runs"]
    unit = "success rate in per cent" if config.metric == "success" else "undiscounted return"
    evaluating, training = (sum(float(run[f"{what}_s"]) for run in runs) for what in ("evaluation", "training"))
    hours, share = (evaluating + training) / 3600, evaluating / max(evaluating + training, 1e-9)
    machines = sorted({run.get("machine", data["machine"]) for run in runs})  # old results do not name theirs
    missing = f" **{data['planned'] - len(runs)} runs have no result yet.**" if data["planned"] > len(runs) else ""
    lines = [f"# {config.name}", "", config.question, ""]
    most = max((run.get("stacked", 1) for run in runs), default=1)
    shared = f" Up to {most} runs shared a process, and its time: updates/s are each run's own." if most > 1 else ""
    lines += [
        f"{data['date']}, {' and '.join(machines)}; {_origin(runs)}. {len(runs)} of {data['planned']} runs, "
        f"{hours:.2f} hours of runs' time, of which {share:.0%} evaluating. Scores: {unit}.{shared}{missing}",
        "",
        f"    {data['command']}",
    ]
    for phase in scores.phases():
        lines += ["", f"## Scores after the {phase} phase", "", *tables.score_table(scores, phase)]
        tuned = tables.tuned_table(scores, phase)
        if len(tuned) > 2:
            lines += ["", "Omegas that the other seeds chose, seed by seed:", "", *tuned]
        compared = tables.comparison_tables(scores, phase)
        if compared:
            lines += ["", f"## Compared with {scores.label(scores.baseline)}, {phase}", *compared]
        if data["paper"] is not None:
            lines += _beside_the_paper(data["paper"], scores, phase)
    switch = tables.switch_table(scores)
    if switch:
        lines += ["", "## The switch to the online phase", "", *switch]
    lines += ["", "## Training (medians over seeds)", "", *tables.training_table(scores)]
    lines += ["", *(f"![{path.stem}]({path.name})" for path in pictures)]
    lines += ["", "## How to read this", "", _how(data, scores), "", _versions(data), ""]
    return "\n".join(lines)


def _origin(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return which code made the runs, and when."""
    whole = {str(run.get("commit") or "unknown") for run in runs}
    commits = sorted({commit[:7] + commit[40:] for commit in whole})  # the rest says whether files were changed
    days = sorted({run["ended"] for run in runs if run.get("ended")})
    when = f" from {days[0]} to {days[-1]}" if len(days) > 1 else f" of {days[0]}" if days else ""
    return f"runs{when} by commit {', '.join(commits)}"


def _beside_the_paper(paper: Mapping[str, Any], scores: Scores, phase: str) -> list[str]:
    """Return the published numbers of the phase, ours in brackets."""
    if not paper.get(phase):
        return []
    steps = sorted({run["learner_steps"] for run in scores.runs.values()})
    updates = " to ".join(f"{count:,}" for count in dict.fromkeys((steps[0], steps[-1])))
    ours = f"Ours in brackets: {updates} updates on the data that the suite's file names."
    table = tables.paper_table(scores, paper[phase], phase)
    return ["", f"## Beside published numbers, {phase}", "", f"{paper['source']} {ours}", "", *table]


def _how(data: Mapping[str, Any], scores: Scores) -> str:
    count = scores.config.evaluations
    worst = "no success" if scores.config.metric == "success" else "the lowest score that any run of its task had"
    evaluations = "evaluation" if count == 1 else f"{count} evaluations"
    return _HOW.format(evaluations=evaluations, episodes=data["episodes"], resamples=RESAMPLES, worst=worst)


def _versions(data: Mapping[str, Any]) -> str:
    """Return the versions that the runs were made with."""
    found: dict[str, set[str]] = {}
    for run in data["runs"]:
        for name, version in run.get("versions", data["versions"]).items():
            found.setdefault(name, set()).add(version)
    return "Versions: " + ", ".join(f"{name} {' and '.join(sorted(found[name]))}" for name in found) + "."


def as_json(data: Mapping[str, Any]) -> str:
    """Return the data as JSON with one run a line."""
    head = json.dumps({key: value for key, value in data.items() if key != "runs"}, indent=1, allow_nan=False)
    runs = ",\n".join(json.dumps(run, separators=(",", ":"), allow_nan=False) for run in data["runs"])
    return head.removesuffix("\n}") + ',\n "runs": [\n' + runs + "\n]\n}\n"
