"""A trial as Ray Tune runs it, and what it reserves: every actor's bundle in one placement group."""

import platform
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from dipole_ray.errors import ConfigError
from dipole_ray.files.durable import read_json
from dipole_ray.rllib.placement import Resources, require_capacity
from dipole_ray.runs.config import RunConfig
from dipole_ray.stopping import Stopped, spare_this_process
from dipole_ray.sweep.group import TrialGroup, names_in
from dipole_ray.sweep.plan import Plan, from_mapping
from dipole_ray.sweep.records import SWEEP_FILE, TRIALS, SweepRecords
from dipole_ray.sweep.space import Values
from dipole_ray.sweep.trial import TrialRun

# Keys of Tune's config beside the settings: the sweep's folder and the trial's name. PBT copies the whole config, name
# and all: who a trial is says Tune's own name of it, which `name_of` gives.
SWEEP, TRIAL = "sweep", "trial"

LESS = "sweep.resources, rollout.num_workers, rollout.cpus_per_worker, learner.remote=false"

Bundle = tuple[str, int, Resources]  # a kind of process, how many of it, and what each reserves


class SweepTrial(tune.Trainable):
    """Tune's side of a trial; one step is one rung."""

    run: TrialRun | TrialGroup | None = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Return the placement group of a trial with these settings."""
        plan, _ = read_sweep(Path(config[SWEEP]))
        bundles = trial_bundles(plan, plan.run_config(values_of(config)))
        each = [dict(resources) for _, count, resources in bundles for _ in range(count)]
        return tune.PlacementGroupFactory(each, strategy="PACK")

    def setup(self, config: dict[str, Any]) -> None:
        """Remember the settings alone: Tune starts actors that it then replaces by a reused one without a word."""
        spare_this_process()

    def step(self) -> dict[str, Any]:
        """Train to the next rung."""
        try:
            return self._begun().advance()
        except Stopped:
            while True:  # all is saved: the sweep ends this process, and any answer would be taken for a result
                time.sleep(1.0)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Put the trial's state where Tune, that is PBT, hands it to another trial; of a group nobody takes it."""
        if isinstance(run := self._begun(), TrialRun):
            run.export(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Take over what another trial saved."""
        run = self._begun()
        assert isinstance(run, TrialRun), "a plan with PBT has no groups"
        run.take_over(Path(checkpoint))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial, or the same with other settings: only the process is kept."""
        self.cleanup()
        return True

    def cleanup(self) -> None:
        """End the trial's processes."""
        if self.run is not None:
            self.run.close()
            self.run = None

    def _begun(self) -> TrialRun | TrialGroup:
        """Return the trial, or the group, begun or continued in its own folder at the first call."""
        if self.run is None:
            folder = Path(self.config[SWEEP])
            plan, run_key = read_sweep(folder)
            values = values_of(self.config)
            learner = learner_settings(plan, plan.run_config(values))
            names, place = names_in(self.trial_name), folder / TRIALS
            if len(names) == 1:
                self.run = TrialRun(self.trial_name, values, plan, place, run_key=run_key, **learner)
            else:  # Tune has the values of the first; and where the group is tried again, some may be at their end
                trials = SweepRecords.open(folder, plan.to_mapping()).trials
                left = [name for name in names if trials[name].status != "done"] or names[-1:]
                self.run = TrialGroup(
                    {name: trials[name].values for name in left}, plan, place, run_key=run_key, **learner
                )
        return self.run


def name_of(trial: Any) -> str:
    """Return the name that Tune shall call a trial by: ours."""
    return str(trial.config[TRIAL])


def values_of(config: dict[str, Any]) -> Values:
    """Return the settings in Tune's config."""
    return {key: value for key, value in config.items() if key not in (SWEEP, TRIAL)}


def read_sweep(folder: Path) -> tuple[Plan, str]:
    """Return the plan and the MLflow key of the sweep in a folder that all nodes see."""
    try:
        stored = read_json(folder / SWEEP_FILE, 1 << 28)
    except FileNotFoundError:
        why = f"not on the node {platform.node()}: trials run on all nodes of the cluster"
        remedy = "set folder=PATH to a place on storage that every node sees under this name"
        raise ConfigError(f"{folder / SWEEP_FILE}: {why}, so {remedy}") from None
    return from_mapping(stored["plan"]), str(stored["run_key"])


def trial_bundles(plan: Plan, config: RunConfig) -> list[Bundle]:
    """Return what a trial reserves; the replay reserves nothing (0 CPU), it runs beside the trial's process."""
    resources, actors = plan.sweep.resources, config.learner.actors
    gpus = learner_settings(plan, config)["num_gpus_per_learner"]
    own = {"CPU": resources.trial_cpus} | ({"GPU": gpus} if gpus and not actors else {})
    bundles: list[Bundle] = [("process of the trial", 1, own)]
    if actors:
        bundles.append(("learner", actors, {"GPU": gpus} if gpus else {"CPU": resources.learner_cpus}))
    if config.rollout.num_workers:
        bundles.append(("rollout workers", config.rollout.num_workers, {"CPU": config.rollout.cpus_per_worker}))
    return bundles


def learner_settings(plan: Plan, config: RunConfig) -> dict[str, Any]:
    """Return RLlib's settings for the resources of the learner."""
    gpus = plan.sweep.resources.learner_gpus
    if gpus is None:
        gpus = 1.0 if ray.is_initialized() and ray.cluster_resources().get("GPU", 0.0) >= 1 else 0.0
    if gpus:
        return {"num_gpus_per_learner": gpus}
    cpus = {"num_cpus_per_learner": plan.sweep.resources.learner_cpus} if config.learner.actors else {}
    return {"num_gpus_per_learner": 0, **cpus}


def require_placeable(plan: Plan, trials: list[tuple[str, Values]]) -> None:
    """Raise ResourcesUnavailable where the cluster could never hold all processes of a trial."""
    for trial, values in trials:
        require_capacity(trial_bundles(plan, plan.run_config(values)), trial, LESS)
