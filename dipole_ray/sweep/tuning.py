"""Tune's search and scheduler, made to go on where an earlier session ended: who comes, is stopped, or is replaced."""

import logging
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

from dipole_ray.rllib.privates import asha_rungs
from dipole_ray.sweep.group import grouped, names_in
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.records import ENDED, SweepRecords
from dipole_ray.sweep.space import Domain
from dipole_ray.sweep.trainable import SWEEP, TRIAL

RUNG = "rung"  # what counts as time: a trial that is continued counts on, where Tune's own count would begin anew


def search_of(plan: Plan, records: SweepRecords) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return Tune's `param_space`, and the part of its `TuneConfig` that says how it is searched."""
    most = plan.sweep.resources.max_concurrent
    if plan.sweep.search == "optuna":
        search = ContinuedOptuna(plan, records)
        limited = search if most is None else ConcurrencyLimiter(search, max_concurrent=most)
        return {}, {"search_alg": limited, "num_samples": search.num_left}
    values = {record.id: record.values for record in records.unfinished()}
    # Trials are listed, not drawn, so that another start gives the very same ones; PBT allows no searcher for that.
    names = grouped(values, plan.sweep.resources.stacked)
    space: dict[str, Any] = {SWEEP: str(records.folder), TRIAL: tune.grid_search(names)}
    for key in plan.space:
        space[key] = tune.sample_from(lambda spec, key=key: values[names_in(spec.config[TRIAL])[0]][key])
    return space, {"max_concurrent_trials": most}


class ContinuedOptuna(Searcher):
    """Asks Optuna's TPE sampler, which knows all trials that have ended, after those that were left unfinished."""

    def __init__(self, plan: Plan, records: SweepRecords) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        super().__init__(metric="score", mode=plan.sweep.mode)
        self._plan, self._records = plan, records
        self._waiting = records.unfinished()
        self._asked: dict[str, str] = {}  # name of each trial given to Tune, by Tune's id
        self._proposed: set[str] = set()  # Tune's ids of what Optuna proposed in this session, and so knows already
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("ray.tune.search.optuna").setLevel(logging.ERROR)
        # Another seed in each session: the same one would propose the first trials again.
        seed = plan.sweep.seed + 1000 * len(records.trials)
        self._optuna = OptunaSearch(tune_space(plan.space), metric="score", mode=plan.sweep.mode, seed=seed)
        for record in records.having(*ENDED):
            if record.score is not None:
                self._optuna.add_evaluated_point(record.values, record.score)

    @property
    def num_left(self) -> int:
        """Trials that Tune will be given."""
        return len(self._waiting) + self._plan.num_trials - len(self._records.trials)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the config of the next trial; None where Optuna waits for results."""
        if self._waiting:
            record = self._waiting.pop(0)
        elif self.num_left:
            values = self._optuna.suggest(trial_id)
            if values is None:
                return None
            record = self._records.add(dict(values))
            self._records.save()
            self._proposed.add(trial_id)
        else:
            return str(Searcher.FINISHED)  # type: ignore[return-value]  # how Tune wants it
        self._asked[trial_id] = record.id
        return {SWEEP: str(self._records.folder), TRIAL: record.id, **record.values}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna what a trial gave; one of an earlier session as a point of its own."""
        trial = self._asked.pop(trial_id, None)
        if trial_id in self._proposed:
            self._optuna.on_trial_complete(trial_id, result, error)
        elif trial is not None and result is not None and not error:
            self._optuna.add_evaluated_point(self._records.trials[trial].values, result["score"])

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the records have everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""


def tune_space(space: Mapping[str, Domain]) -> dict[str, Any]:
    """Return the space in Tune's words."""
    words = {"uniform": tune.uniform, "loguniform": tune.loguniform}
    return {
        key: tune.choice(list(domain.values)) if domain.is_list else words[domain.kind](*domain.values)
        for key, domain in space.items()
    }


class ContinuedASHA(ASHAScheduler):
    """ASHA that compares with the results of earlier sessions too."""

    def remember(self, trial: str, rung: int, score: float) -> None:
        """Take a result of an earlier session; higher scores are better here."""
        for milestone, recorded in asha_rungs(self):
            if rung >= milestone and trial not in recorded:
                recorded[trial] = score
                break

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Give what is remembered of a trial to its successor, or it would be compared with itself."""
        super().on_trial_add(tune_controller, trial)
        for _, recorded in asha_rungs(self):
            if trial.config[TRIAL] in recorded:
                recorded[trial.trial_id] = recorded.pop(trial.config[TRIAL])


def scheduler_of(plan: Plan, records: SweepRecords) -> TrialScheduler:
    """Return the scheduler that the plan names."""
    sweep, space = plan.sweep, plan.space
    if sweep.scheduler == "asha":
        grace, factor = sweep.asha.grace_rungs, sweep.asha.reduction_factor
        settings = {"max_t": sweep.rungs, "grace_period": grace, "reduction_factor": factor}
        asha = ContinuedASHA(RUNG, metric="score", mode=sweep.mode, **settings)
        for trial in records.trials:
            for result in records.results(trial):
                asha.remember(trial, int(result["rung"]), sweep.gain(float(result["score"])))
        return asha
    if sweep.scheduler == "none":
        return FIFOScheduler()

    def within(config: dict[str, Any]) -> dict[str, Any]:
        """Keep mutated values in their ranges: an expectile of 0.9 times 1.2 is none."""
        return {key: space[key].clip(value) if key in space else value for key, value in config.items()}

    lists = {key: list(domain.values) for key, domain in space.items() if domain.is_list}
    return PopulationBasedTraining(
        RUNG,
        metric="score",
        mode=sweep.mode,
        perturbation_interval=sweep.pbt.interval_rungs,
        hyperparam_mutations={**tune_space(space), **lists},
        quantile_fraction=sweep.pbt.quantile,
        resample_probability=sweep.pbt.resample_probability,
        custom_explore_fn=within,
        log_config=False,
    )
