"""Who is stopped early and who is replaced: Tune's schedulers, made to go on where an earlier session ended."""

from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from dipole_ray.rllib.privates import asha_rungs
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.records import SweepRecords
from dipole_ray.sweep.scoring import gain
from dipole_ray.sweep.search import tune_space
from dipole_ray.sweep.trainable import TRIAL

RUNG = "rung"  # what counts as time: a trial that is continued counts on, where Tune's own count would begin anew


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
    sweep = plan.sweep
    if sweep.scheduler == "asha":
        grace, factor = sweep.asha.grace_rungs, sweep.asha.reduction_factor
        settings = {"max_t": sweep.rungs, "grace_period": grace, "reduction_factor": factor}
        asha = ContinuedASHA(RUNG, metric="score", mode=sweep.mode, **settings)
        for trial in records.trials:
            for result in records.results(trial):
                asha.remember(trial, int(result["rung"]), gain(float(result["score"]), sweep))
        return asha
    if sweep.scheduler == "pbt":
        space = plan.space

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
    return FIFOScheduler()
