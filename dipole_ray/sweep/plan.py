"""A whole sweep as its file gives it: settings, space and base run, checked together before anything starts."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dipole_ray import settings
from dipole_ray.errors import ConfigError
from dipole_ray.files.provenance import digest
from dipole_ray.runs.config import FIXED, RunConfig, located, located_value, presets, read_yaml, with_base
from dipole_ray.runs.prepare import content_of
from dipole_ray.sweep.config import SweepConfig
from dipole_ray.sweep.records import DATA
from dipole_ray.sweep.space import Domain, Values, draw, read_domain

_log = logging.getLogger(__name__)

SECTIONS = ("sweep", "space", "run")
# Settings that the grid of the evaluation covers, and under which name
ACTING = {"agent.omega": "omegas", "agent.num_candidates": "candidates"}
# Sections of a run that no trial may have of its own, with the remedy
OF_THE_SWEEP = {
    "name": "trials are named by the sweep",
    "seeds": "a trial has one seed: vary it with seed: {grid: [0, 1]} in the space",
    "folder": "set it for all trials with folder=PATH",
    "evaluation": "trials are scored by sweep.evaluation",
    "tracking": "set it for all trials with tracking.KEY=VALUE",
    "checkpoint": "set it for all trials with checkpoint.KEY=VALUE",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a sweep is; equal plans are the same sweep."""

    sweep: SweepConfig  # how trials are chosen and scored
    space: Mapping[str, Domain]  # what varies, by dotted key
    run: Mapping[str, Any]  # the base run's mapping, as in a file of `dipole train`

    def run_config(self, values: Values) -> RunConfig:
        """Return the run's config with a trial's values in it; ConfigError where they contradict others."""
        run = self.run
        for key, nested in values.items():
            for name in reversed(key.split(".")):
                nested = {name: nested}
            run = settings.merge(run, nested)
        return RunConfig.from_mapping(run)

    def trial_config(self, values: Values, trial: str, trials: Path) -> RunConfig:
        """Return the config of a trial's run: scored on the sweep's grid, with iterations no longer than a rung."""
        config, grid = self.run_config(values), self.sweep.evaluation
        rung = math.ceil(self.total_steps(config) / self.sweep.rungs)
        evaluation = {"omegas": grid.omegas, "candidates": grid.candidates, "bc": False, "seed": grid.select_seed}
        evaluation |= {"episodes": grid.select_episodes, "every_learner_steps": 0, "trajectories": 0, "videos": 0}
        iterations = ("learner_steps_per_iteration", "env_steps_per_iteration")
        training = {name: min(getattr(config.training, name), rung) for name in iterations}
        threads = config.learner.num_threads
        if threads is None:  # a trial shares its machine with others
            resources = self.sweep.resources
            threads = max(1, int(resources.learner_cpus if config.learner.actors else resources.trial_cpus))
        places = {"name": trial, "folder": str(trials)}
        return config.changed(**places, evaluation=evaluation, training=training, learner={"num_threads": threads})

    @staticmethod
    def total_steps(config: RunConfig) -> int:
        """Return the updates before the online phase and the environment steps of that phase together."""
        return config.training.learner_steps_before_online + config.training.online_env_steps

    def trials(self) -> list[Values]:
        """Return the values of all trials that are known before the first result; none where Optuna proposes them."""
        sweep = self.sweep
        return [] if sweep.search == "optuna" else draw(self.space, num_samples=sweep.num_samples, seed=sweep.seed)

    @property
    def num_trials(self) -> int:
        """How many trials there will be."""
        return self.sweep.num_samples if self.sweep.search == "optuna" else len(self.trials())

    def to_mapping(self) -> dict[str, Any]:
        """Return the plan as nested plain values that `from_mapping` reads back."""
        space = {key: domain.to_plain() for key, domain in self.space.items()}
        return {"sweep": settings.to_mapping(self.sweep), "space": space, "run": settings.merge({}, self.run)}

    def digest(self, *, content: bool = True) -> str:
        """Return 8 hex digits of everything that shapes the result; not of where it runs, lies or is written down.

        Data counts by its content; by its place, as in earlier versions, where `content` is false.
        """
        mapping = self.to_mapping()
        del mapping["sweep"]["resources"]
        run = self.run_config({}).to_mapping()
        del run["data"]["cache"]
        for name in ("kwargs", "success"):  # they came later: what was swept before keeps its folder
            if not run["env"][name]:
                del run["env"][name]
        if content:
            if run["data"]["path"] is not None:
                run["data"]["path"] = content_of(run["data"]["path"])
            if DATA in mapping["space"]:
                mapping["space"][DATA] = {
                    kind: [content_of(one) for one in listed] for kind, listed in mapping["space"][DATA].items()
                }
        mapping["run"] = {key: value for key, value in run.items() if key not in ("folder", "tracking", "name")}
        return digest(mapping)

    @property
    def folder(self) -> Path:
        """The sweep's folder: the same plan finds what it has done before."""
        runs = Path(self.run_config({}).folder).expanduser().resolve()
        before = runs / f"{self.sweep.name}-{self.digest(content=False)}"
        return before if before.is_dir() else runs / f"{self.sweep.name}-{self.digest()}"


def load_plan(source: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a sweep from a preset, by name, or a YAML file, by path.

    Overrides on top are `training.offline_learner_steps=1000`, `sweep.rungs=8` or `space.agent.beta={grid: [1, 3]}`.
    ConfigError where a file, key or value is wrong; the nearest valid key is named.
    """
    mapping = read_yaml(source, presets(sweeps=True))
    if "sweep" not in mapping:
        raise ConfigError(f"'{source}' is a run, no sweep: start it with 'dipole train {source}'")
    mapping = {**mapping, "space": dict(_space_mapping(mapping.get("space")))}
    of: dict[str, list[str]] = {"run": [], "sweep": []}
    for word in overrides:
        section, dot, rest = word.partition(".")
        if section == "space" and dot:  # a setting's dotted key is one key there
            key, _, domain = rest.partition("=")
            mapping["space"][key.strip()] = settings.apply_overrides({}, [f"domain={domain}"])["domain"]
        elif section in of and dot:
            of[section].append(rest)
        else:
            of["run"].append(word)
    run = settings.apply_overrides(with_base(mapping.get("run")), of["run"])
    sweep = settings.apply_overrides(mapping["sweep"] or {}, of["sweep"])
    sweep.setdefault("name", Path(source).stem)
    return from_mapping({**mapping, "sweep": sweep, "run": run})


def from_mapping(mapping: Mapping[str, Any]) -> Plan:
    """Build a plan from nested plain values and check it as a whole; ConfigError as in `load_plan`."""
    for key in mapping:
        if key not in SECTIONS:
            known = ", ".join(SECTIONS)
            raise ConfigError(f"unknown section '{key}' of a sweep: {known} are known; is it under 'run:'?")
    sweep = settings.from_mapping(SweepConfig, mapping["sweep"], "sweep")
    run = located(mapping.get("run") or {})
    space = {key: read_domain(key, value) for key, value in _space_mapping(mapping.get("space")).items()}
    plan = Plan(sweep=sweep, space=space, run=run)
    base = plan.run_config({})
    if base.seeds:
        raise ConfigError(f"run: seeds is {list(base.seeds)}: {OF_THE_SWEEP['seeds']}")
    if sweep.resources.stacked > 1 and (base.learner.actors or base.rollout.num_workers):
        found = f"rollout.num_workers is {base.rollout.num_workers}, learner.remote {base.learner.remote}"
        remedy = "set rollout.num_workers=0 learner.remote=false, or sweep.resources.stacked=1"
        raise ConfigError(
            f"sweep.resources.stacked is {sweep.resources.stacked}, trials in one process: {found}: {remedy}"
        )
    if not space:
        raise ConfigError("space is empty: name what varies, such as agent.beta: {grid: [1, 3, 10]}")
    if plan.total_steps(base) < sweep.rungs:
        raise ConfigError(f"sweep.rungs is {sweep.rungs}, more than the run's {plan.total_steps(base)} steps: lower it")
    for key, domain in space.items():
        _check_key(plan, base, key, domain)
    plan = replace(plan, space={key: _typed(plan, key, domain) for key, domain in space.items()})
    for values in plan.trials():
        plan.run_config(values)
    return plan


def _space_mapping(space: Any) -> Mapping[str, Any]:
    """Return the section `space`, which may be empty in the file."""
    if not isinstance(space, Mapping | None):
        raise ConfigError(f"space is {space!r}: a section is needed, such as space: {{agent.beta: {{grid: [1, 3]}}}}")
    return space or {}


def _check_key(plan: Plan, base: RunConfig, key: str, domain: Domain) -> None:
    """Raise ConfigError where a setting cannot, or need not, make trials."""
    sweep, section = plan.sweep, key.partition(".")[0]
    if section in OF_THE_SWEEP:
        raise ConfigError(f"space: {key} cannot differ between trials: {OF_THE_SWEEP[section]}")
    if domain.kind != "grid" and sweep.search == "grid":
        drawn = f"drawn ({domain.kind}) but sweep.search is 'grid'"
        raise ConfigError(f"space: {key} is {drawn}: set it to random or optuna")
    if domain.kind == "grid" and (sweep.search == "optuna" or sweep.scheduler == "pbt"):
        who = "Optuna proposes values" if sweep.search == "optuna" else "PBT draws its population"
        raise ConfigError(f"space: {key} is a grid, but {who}: write {{choice: [...]}} instead of {{grid: [...]}}")
    if sweep.scheduler == "pbt" and (section != "agent" or key in FIXED):
        why = "cannot change while a trial goes on, as PBT would have it"
        raise ConfigError(f"space: {key} {why}: leave it out, or set sweep.scheduler=asha")
    online = base.training.online_env_steps > 0
    if key in ACTING:
        grid = f"sweep.evaluation.{ACTING[key]}"
        if not online:
            why = f"{key} costs no training, so its trials would all train the same networks"
            remedy = f"put the values into {grid}, which every trial is scored on from one checkpoint"
            raise ConfigError(f"space: {why}: {remedy}")
        said = "space: %s changes only the rollouts of the online phase; every trial is scored on all of %s anyway"
        _log.warning(said, key, grid)
    if key == "agent.denoise_steps" and not online and base.agent.bootstrap == "value":
        raise ConfigError(
            "space: agent.denoise_steps is read by nothing in this training (bootstrap 'value', no online phase), so "
            "its trials would all train the same networks: set the one to act with as agent.denoise_steps=N"
        )


def _typed(plan: Plan, key: str, domain: Domain) -> Domain:
    """Return the domain with its values as the setting takes them (1e-3 is text in YAML), each tried."""
    typed = []
    for value in domain.probes():
        try:
            flat = settings.flatten(plan.run_config({key: value}).to_mapping())
        except ConfigError as error:
            whole = "" if domain.is_list else f"; {domain.kind} draws decimals: use {{choice: [...]}}"
            raise ConfigError(f"space: {error}{whole if 'whole number' in str(error) else ''}") from None
        typed.append(located_value(key, flat.get(key, value)))
    return Domain(domain.kind, tuple(typed)) if domain.is_list else domain
