"""A suite as its file gives it: every (method, task, seed) is one ordinary run, with a folder named by its config.

Its file has four sections: `suite` (name, seeds, metric), `base` (a run, as in a file of `dipole train`; `from:
quickstart` begins with a preset), `tasks` and `methods` (by name, what differs from the base in them).
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from dipole_ray import settings
from dipole_ray.bench.checks import require_alike_evaluations, require_measured
from dipole_ray.bench.config import MethodConfig, SuiteConfig, TaskConfig, require_name
from dipole_ray.bench.job import Job
from dipole_ray.errors import ConfigError
from dipole_ray.runs.config import RunConfig, read_yaml, with_base

SUITES = Path(__file__).resolve().parent / "suites"
PAPER_FILE = SUITES / "paper_numbers.yaml"
SECTIONS = ("suite", "base", "tasks", "methods")
EPISODES_APART = 10_000  # evaluation seeds between two training seeds; more than any run's evaluations

Config = TypeVar("Config", TaskConfig, MethodConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """Methods x tasks x seeds."""

    config: SuiteConfig  # how they are run and compared
    mapping: Mapping[str, Any]  # the file's sections as plain values, with the overrides for tasks and methods in them
    tasks: Mapping[str, TaskConfig]  # by name, in the file's order
    methods: Mapping[str, MethodConfig]  # by name, in the file's order
    overrides: tuple[str, ...] = ()  # `key=value` of a run, on top of everything

    @property
    def folder(self) -> Path:
        """Folder of all runs."""
        task = next(iter(self.tasks))
        method = next(name for name in self.methods if self.is_run(task, name))
        return self.job(task, method, self.config.seeds[0]).folder.parents[2]

    def jobs(self, only: Mapping[str, Sequence[str]] | None = None) -> list[Job]:
        """Return the runs, seed by seed, so that an unfinished suite has something of every method.

        `only` has the names of `method`, `task` and `seed` that are wanted; ConfigError where nothing is called so.
        """
        chosen = self._chosen(only or {})
        seeds = [seed for seed in self.config.seeds if str(seed) in chosen["seed"]]
        tasks = [name for name in self.tasks if name in chosen["task"]]
        trained = [name for name in self.methods if self.methods[name].runs_of is None and name in chosen["method"]]
        places = product(seeds, tasks, trained)
        return [self.job(task, method, seed) for seed, task, method in places if self.is_run(task, method)]

    def is_run(self, task: str, method: str) -> bool:
        """Return whether a method is among those of a task."""
        return not self.tasks[task].only or method in self.tasks[task].only

    def job(self, task: str, method: str, seed: int) -> Job:
        """Return the run of a method on a task with a seed."""
        trained = self.methods[method].runs_of or method
        parts = (
            self.mapping["base"],
            _run_part(self.mapping["tasks"][task], TaskConfig),
            _run_part(self.mapping["methods"][trained], MethodConfig),
            self.tasks[task].methods.get(trained, {}),
        )
        mapping: dict[str, Any] = {"evaluation": {"trajectories": 0}, "tracking": {"mlflow": False}}
        for part in parts:
            mapping = settings.merge(mapping, part)
        try:
            config = RunConfig.from_mapping(settings.apply_overrides(mapping, self.overrides))
        except ConfigError as error:
            raise ConfigError(f"suite {self.config.name}, task {task}, method {trained}: {error}") from None
        if config.seeds:
            raise ConfigError(f"suite {self.config.name}: seeds is {list(config.seeds)}: set them as suite.seeds")
        folder = Path(config.folder).expanduser().resolve() / "bench" / self.config.name / task / trained
        # One cell of many: in one process, evaluated over the grid, on episodes that all methods have with this seed.
        config = config.changed(
            name=f"{task}-{trained}-seed-{seed}",
            folder=str(folder),
            seed=seed,
            evaluation={"seed": config.evaluation.seed + EPISODES_APART * seed, "interval_grid": True, "videos": 0},
            learner={"remote": False, "num_learners": 1, "num_threads": max(1, int(self.config.resources.cpus))},
            rollout={"num_workers": 0},
        )
        return Job(task=task, method=trained, seed=seed, config=config)

    def _chosen(self, only: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Return all names by kind, or those asked for."""
        known = {"method": [*self.methods], "task": [*self.tasks], "seed": [str(seed) for seed in self.config.seeds]}
        for kind, names in only.items():
            if kind not in known:
                raise ConfigError(f"--only {kind}=...: choose by {', '.join(known)}")
            for name in names:
                if name not in known[kind]:
                    raise ConfigError(f"--only {kind}={name}: not in the suite{_nearest(name, known[kind])}")
        chosen = {**known, **{kind: list(names) for kind, names in only.items()}}
        chosen["method"] += [runs for name in chosen["method"] if (runs := self.methods[name].runs_of)]
        return chosen


def suites() -> dict[str, Path]:
    """Return the suites that come with the project, by name."""
    return {path.stem: path for path in sorted(SUITES.glob("*.yaml")) if path != PAPER_FILE}


def published(table: str) -> dict[str, Any]:
    """Return a table of published numbers, with its source; ConfigError where there is no such table."""
    known = read_yaml(PAPER_FILE)
    if table not in known:
        raise ConfigError(f"suite.paper is '{table}': {PAPER_FILE.name} has {', '.join(known)}")
    return dict(known[table])


def load_suite(source: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite by its name in `suites()` or the path of a YAML file.

    `overrides` on top are `suite.seeds=[0]`, `tasks.NAME.KEY=...`, `methods.NAME.KEY=...`, or a key of all runs.
    ConfigError where a file, key or value is wrong; the nearest valid one is named.
    """
    path = suites().get(str(source), Path(source))
    if not path.is_file():
        raise ConfigError(f"no suite or file '{source}': the suites are {', '.join(suites())}; a file is given by path")
    mapping = read_yaml(path)
    ours = [word for word in overrides if word.partition(".")[0] in ("suite", "tasks", "methods")]
    mapping = settings.apply_overrides(mapping, ours)
    mapping["suite"] = {"name": path.stem, **(mapping.get("suite") or {})}
    mapping["base"] = with_base(mapping.get("base"))
    return from_mapping(mapping, tuple(word for word in overrides if word not in ours))


def from_mapping(mapping: Mapping[str, Any], overrides: tuple[str, ...] = ()) -> Suite:
    """Build a suite from the plain values of its sections and check every run of it; ConfigError as `load_suite`."""
    for key in mapping:
        if key not in SECTIONS:
            raise ConfigError(f"unknown section '{key}' of a suite{_nearest(key, SECTIONS)}")
    plain = {key: _section(key, mapping.get(key)) for key in SECTIONS}
    tasks = {name: _typed("tasks", name, values, TaskConfig) for name, values in plain["tasks"].items()}
    methods = {name: _typed("methods", name, values, MethodConfig) for name, values in plain["methods"].items()}
    for kind, names in (("tasks", tasks), ("methods", methods)):
        if not names:
            raise ConfigError(f"the suite has no {kind}: name at least one under '{kind}:'")
    own = settings.from_mapping(SuiteConfig, plain["suite"], "suite")
    suite = Suite(config=own, mapping=plain, tasks=tasks, methods=methods, overrides=overrides)
    _require_known(suite)
    _require_trained(suite)
    if suite.config.paper is not None:
        published(suite.config.paper)
    for task in tasks:
        suite.config.span(tasks[task], f"tasks.{task}")
        for method in filter(lambda name: suite.is_run(task, name), methods):
            config = suite.job(task, method, suite.config.seeds[0]).config
            try:
                require_alike_evaluations(config, suite.config.evaluations)
                require_measured(method, methods[method], config)
            except ConfigError as error:
                raise ConfigError(f"suite {suite.config.name}, task {task}, method {method}: {error}") from None
    return suite


def _require_known(suite: Suite) -> None:
    """Raise ConfigError where something names a method that the suite does not have."""
    methods = suite.methods
    asked = [("suite.baseline", suite.config.baseline)]
    asked += [(f"methods.{name}.runs_of", method.runs_of) for name, method in methods.items()]
    asked += [(f"tasks.{name}.methods", key) for name, task in suite.tasks.items() for key in task.methods]
    asked += [(f"tasks.{name}.only", key) for name, task in suite.tasks.items() for key in task.only]
    for key, name in asked:
        if name is not None and name not in methods:
            raise ConfigError(f"{key} is '{name}', no method of the suite{_nearest(name, list(methods))}")
    for name, method in methods.items():
        if method.x is not None and (not (method.axis or suite.config.axis) or method.series is None):
            raise ConfigError(f"methods.{name}.x is {method.x}, on no axis: name suite.axis and methods.{name}.series")
        if method.runs_of and methods[method.runs_of].runs_of:
            raise ConfigError(f"methods.{name}.runs_of is '{method.runs_of}', which has no runs of its own either")
        if method.runs_of and _run_part(suite.mapping["methods"][name], MethodConfig):
            raise ConfigError(f"methods.{name} has the runs of '{method.runs_of}', so keys of a run mean nothing in it")


def _require_trained(suite: Suite) -> None:
    """Raise ConfigError where a task asks of a method without runs of its own what only runs can give."""
    for name, task in suite.tasks.items():
        for key in (*task.only, *task.methods):
            runs = suite.methods[key].runs_of
            if runs is not None and key in task.only and runs not in task.only:
                found = f"has '{key}', which shows the runs of '{runs}', and not '{runs}'"
                raise ConfigError(f"tasks.{name}.only {found}: nothing would be run for it; add '{runs}'")
            if runs is not None and key in task.methods:
                why = f"'{key}' shows the runs of '{runs}', so keys of a run mean nothing in it"
                raise ConfigError(f"tasks.{name}.methods.{key}: {why}; set them in tasks.{name}.methods.{runs}")


def _section(key: str, values: Any) -> dict[str, Any]:
    """Return a section, which may be empty in the file, as may its tasks and methods."""
    if not isinstance(values, Mapping | None):
        raise ConfigError(f"'{key}:' of the suite is {values!r}: a section of keys is needed")
    plain = settings.merge({}, values or {})
    return {name: {} if value is None and key in ("tasks", "methods") else value for name, value in plain.items()}


def _typed(section: str, name: str, values: Any, kind: type[Config]) -> Config:
    """Return what a task or a method has besides keys of a run, and refuse what neither knows."""
    where = f"{section}.{name}"
    require_name(f"the key '{name}' under {section}", str(name))
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {values!r}: a section of keys is needed")
    own: list[str] = _names(kind)
    known = [*own, *_names(RunConfig)]
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown setting '{where}.{key}'{_nearest(key, known)}")
    return settings.from_mapping(kind, {key: value for key, value in values.items() if key in own}, where)


def _run_part(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return the keys of a run in a task or method."""
    return {key: value for key, value in values.items() if key not in _names(kind)}


def _names(kind: type) -> list[str]:
    """Return the names of a section's fields."""
    return [field.name for field in fields(kind)]


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; the nearest is '{near[0]}' of {', '.join(known)}" if near else ""
