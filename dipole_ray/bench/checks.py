"""What is refused of a suite before hours are spent on it: a score that no evaluation would give."""

import math

from dipole_ray.bench.config import MethodConfig
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.cells import cells_of, chosen_cell
from dipole_ray.runs.config import RunConfig


def require_alike_evaluations(config: RunConfig, evaluations: int) -> None:
    """Raise ConfigError unless both phases of a run have so many evaluations, all of the same number of episodes."""
    episodes, between = config.evaluation.episodes, config.evaluation.interval_episodes
    if evaluations > 1 and episodes != between:
        why = f"a score is the mean over the last suite.evaluations={evaluations} of a phase, which must be alike"
        raise ConfigError(
            f"evaluation.interval_episodes is {between} and evaluation.episodes {episodes}: {why}: set "
            f"interval_episodes={episodes}, or suite.evaluations=1"
        )
    for phase, count in planned_evaluations(config).items():
        if count < evaluations:
            every = f"evaluation.every_learner_steps={config.evaluation.every_learner_steps}"
            raise ConfigError(
                f"suite.evaluations is {evaluations}, and the {phase} phase has {count} (with {every}, at most one an "
                f"iteration and one at the end): evaluate more often, or set suite.evaluations={count}"
            )


def planned_evaluations(config: RunConfig) -> dict[str, int]:
    """Return how many evaluations a run has, by phase: after iterations that pass a multiple of the interval, and last.

    The run has no rollout workers, as all runs of suites.
    """
    training, rollout = config.training, config.rollout
    per_delivery = rollout.envs_per_worker * rollout.fragment_steps
    per_iteration = math.ceil(training.env_steps_per_iteration / per_delivery) * per_delivery
    offline, ratio = training.offline_learner_steps, training.updates_per_env_step
    every, found = config.evaluation.every_learner_steps, {}
    for phase, total, iteration, updates, start in (
        ("offline", offline, training.learner_steps_per_iteration, 1.0, training.clone_learner_steps),
        ("online", training.online_env_steps, per_iteration, ratio, training.learner_steps_before_online),
    ):
        if total:
            before_last = math.ceil(total / iteration) - 1
            passed = int(start + before_last * iteration * updates) // every - start // every if every else 0
            found[phase] = min(before_last, passed) + 1
    return found


def require_measured(name: str, method: MethodConfig, config: RunConfig) -> None:
    """Raise ConfigError unless what a method shows, and acts with, is evaluated in its runs."""
    cells, own = cells_of(config.evaluation, config.agent), chosen_cell(config.agent)
    counts = sorted({cell.candidates for cell in cells})
    omegas = sorted({cell.omega for cell in cells if cell.omega is not None})
    for count in method.candidates:
        if count not in counts:
            found = f"methods.{name}.candidates has {count}, and evaluation.candidates {counts}"
            raise ConfigError(f"{found}: its scores would be missing; add it there, or take it out here")
    if method.omega is not None and method.omega not in omegas:
        found = f"methods.{name}.omega is {method.omega:g}, and its runs are evaluated with {omegas or 'no omega'}"
        remedy = "add it to evaluation.omegas where the method is guided, or take it out here"
        raise ConfigError(f"{found}: its scores would be missing; {remedy}")
    if own.candidates not in counts:
        found = f"agent.num_candidates is {own.candidates}, and evaluation.candidates {counts}"
        remedy = "add it there, or set agent.num_candidates to one of them"
        raise ConfigError(f"{found}: the others would not be compared with it; {remedy}")
    if own not in cells:
        found = f"agent.omega is {config.agent.omega:g}, and evaluation.omegas {omegas}"
        remedy = "add it there, or set agent.omega to one of them"
        raise ConfigError(f"{found}: scores of the omega named beforehand would be missing; {remedy}")
