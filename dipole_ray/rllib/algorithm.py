"""DIPOLE as an RLlib Algorithm: one loop for the offline and the online phase.

Offline, the learner takes K updates a call from the dataset. Online, workers collect fragments, the replay takes
them, and every inserted environment step owes the learner `updates_per_env_step` updates. Workers and learner
overlap: while the learner works off one fragment, the workers collect the next. The same code runs in one
process (`num_env_runners=0, num_learners=0`), where each call simply finishes before the next begins.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS
from ray.tune.result import TRAINING_ITERATION
from torch import Tensor

from dipole_ray.agents.adapter_files import join
from dipole_ray.envs.make import env_dims
from dipole_ray.envs.scenes import DRIVE
from dipole_ray.errors import CheckpointError
from dipole_ray.evaluation.play import CellResult
from dipole_ray.evaluation.report import Row
from dipole_ray.evaluation.table import rows_of, tells_success
from dipole_ray.files.checkpoint import Checkpoint, entries_of, read_checkpoint, write_checkpoint
from dipole_ray.files.resume import config_differences, guard_resume, version_differences, warn_of
from dipole_ray.replay.update_ratio import UpdateRatio
from dipole_ray.rllib.config import DIPOLEConfig
from dipole_ray.rllib.experience import Experience, FragmentReport
from dipole_ray.rllib.learner import UpdateReport
from dipole_ray.rllib.learner_client import LearnerClient, LearnerDied
from dipole_ray.rllib.metrics import RecentEpisodes, iteration_metrics, under_rllibs_keys
from dipole_ray.rllib.placement import (
    SpreadEnvRunnerGroup,
    evaluators_of,
    learners_of,
    require_room,
    require_trial,
    workers_of,
)
from dipole_ray.rllib.privates import rllibs_setup, writable_results
from dipole_ray.rllib.replay_actor import copy_ring, open_replay, require_present
from dipole_ray.rllib.rllib_keys import refuse_arguments
from dipole_ray.rllib.rollouts import Rollouts
from dipole_ray.rllib.sections import require_judged
from dipole_ray.rllib.workers import require_found_by_workers

logger = logging.getLogger(__name__)

ROLLOUT_FILE = "rollout"

Result = TypeVar("Result")


class DIPOLE(Algorithm):
    """Dichotomous diffusion policy optimization, offline to online."""

    config: DIPOLEConfig

    @classmethod
    def get_default_config(cls) -> DIPOLEConfig:
        """Return the config with the paper's settings."""
        return DIPOLEConfig()

    @classmethod
    def default_resource_request(cls, config: Any) -> Any:
        """Return what a trial of Tune's reserves; ResourcesUnavailable where the cluster could never hold it."""
        request = super().default_resource_request(config)
        require_trial(request.bundles)
        return request

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._is_trial = kwargs.get("storage") is not None  # RLlib drops what Tune says of a trial, its id too
        with writable_results():
            super().__init__(*args, **kwargs)

    def setup(self, config: Any) -> None:
        """Build workers and learner as RLlib does, then open the replay beside them."""
        require_room([workers_of(self.config), evaluators_of(self.config), learners_of(self.config)])
        require_found_by_workers(self.config)
        with rllibs_setup(SpreadEnvRunnerGroup):
            super().setup(config)
        self._training = self.config.training_settings()
        self._agent = self.config.agent_settings()
        self._update_ratio = UpdateRatio(self._training.updates_per_env_step)
        self.learner_steps = self.env_steps = 0
        self.score: float | None = None  # none before the first evaluation
        # Whether the task is known to define success, and whether scores are: None until the first, but in a Tuner
        self.has_success = env_dims(self.config.env_settings()).has_success
        self.is_score_success = self.has_success if self._is_trial else None
        self._has_warned = False
        self.interrupted: Sized = ()
        # Of an iteration that a request to stop cut short: the next one, also after a resume, does only what is left.
        self.is_cut_short, self._done_of_iteration = False, 0  # updates offline, environment steps online
        self.recent = RecentEpisodes()
        self.group_metrics: dict[str, float] = {}
        self.replay = open_replay(self.config, self.offline_data, self.replay_directory)
        self.learner: LearnerClient = self.learner_group
        self.learner_restarts = self.lost_updates = 0
        # The checkpoint, written or restored last, that a learner goes back to when its process dies.
        self.restart_point: Path | None = None
        self._with_learner(self._begin_learning)
        self.experience = self.make_experience(self.env_runner_group)
        self._call_back("on_algorithm_init", metrics_logger=self.metrics)

    def _call_back(self, name: str, **arguments: Any) -> None:
        """Call the user's callbacks of one name in this process."""
        functions = getattr(self.config, f"callbacks_{name}")
        make_callback(name, self.callbacks, functions, kwargs={"algorithm": self, **arguments})

    def make_experience(self, group: EnvRunnerGroup) -> Experience:
        """Return the source of experience: environments stepped, or plans judged, by the workers of `group`.

        A subclass may bring another one: neither the loop nor replay and learner know the difference.
        """
        require_judged(self._agent, self._training, str(self.config.env))
        if self.config.env == DRIVE:
            from dipole_ray.rllib.scene_runner import SceneRollouts  # needs the extra `driving`

            return SceneRollouts(group, self.config)
        return Rollouts(group, self.config)

    @property
    def replay_directory(self) -> Path:
        """Folder of the online ring: the run's own, or the trial's."""
        return Path(self.config.replay_directory or Path(self.logdir) / "replay")

    def _begin_learning(self) -> None:
        """Give a learner with fresh networks what it needs before its first update, and publish its weights."""
        if self._agent.observation_normalization == "dataset":
            self.learner.fit_observations(*self.replay.observation_statistics())
        else:
            self.learner.publish()

    def end_early_on(self, interrupted: Sized) -> None:
        """End the iteration at hand after the call at hand when `interrupted` grows."""
        self.interrupted = self.experience.interrupted = interrupted

    # ---- the loop ----

    @property
    def phase(self) -> str:
        """`clone` while the backbone is cloned, `offline` while updates on the dataset alone remain, then `online`."""
        if self.learner_steps < self._training.clone_learner_steps:
            return "clone"
        before = self._training.learner_steps_before_online
        is_offline = self.learner_steps < before or not self._training.online_env_steps
        return "offline" if is_offline else "online"

    @property
    def is_within_iteration(self) -> bool:
        """Whether updates or steps of an iteration are left: a stop cut it short, maybe before a resume, or a death."""
        return self._done_of_iteration > 0

    def step(self) -> dict[str, Any]:
        """Run one iteration, with its evaluation where one is due, and return the results of both."""
        results: dict[str, Any] = super().step()
        if self.score is None and self.config.evaluation_interval and self.is_actor():
            # Tune ends at a first result without the metric that it compares trials by.
            results[EVALUATION_RESULTS] = self.evaluate()
        if self.score is not None:  # RLlib's own metrics are closed before the evaluation of an iteration
            results["score"] = self.score
        return results

    def training_step(self) -> None:
        """Run one iteration of the present phase; see the module's docstring."""
        start = time.perf_counter()
        fragments: list[FragmentReport] = []
        updates: list[UpdateReport] = []
        self.is_cut_short = False
        try:
            updates = self._offline_iteration() if self.phase != "online" else self._online_iteration(fragments)
        except LearnerDied as death:  # the iteration ends early; its fragments are in the replay
            self._replace_learner(death)
            if self.phase != "online":  # its updates are taken anew; online, the next iteration does what is left
                self._done_of_iteration = 0
        self._log(updates, fragments, wall_s=time.perf_counter() - start)

    def _offline_iteration(self) -> list[UpdateReport]:
        """Take the next updates on the dataset, stopping exactly at the end of the phase."""
        left, before = self._training.end_of(self.phase) - self.learner_steps, self.learner_steps
        steps = self._training.learner_steps_per_iteration - self._done_of_iteration
        steps = min(left, steps) if left > 0 else steps
        updates = self._update(steps, publish=False) + self.learner.drain()
        made = self.learner_steps - before
        self._done_of_iteration += made
        self._end_iteration(is_whole=made >= steps)
        return updates

    def _end_iteration(self, *, is_whole: bool) -> None:
        """Keep what was done in an iteration that was cut short."""
        self.is_cut_short, self._done_of_iteration = not is_whole, 0 if is_whole else self._done_of_iteration

    def _online_iteration(self, fragments: list[FragmentReport]) -> list[UpdateReport]:
        """Gather, insert, and submit the updates owed; the learner works while the next fragments are collected."""
        if not self._update_ratio.updates_done and not self.env_steps:  # offline updates publish nothing
            self.learner.publish()
        updates = self._update_owed()  # what an iteration that was cut short left
        wanted = self._training.env_steps_per_iteration
        for report in self.experience.gather(lambda: self.learner.policy) if self._done_of_iteration < wanted else ():
            fragments.append(report)
            if report.env_steps:
                total = self.replay.insert(report.rows, report.worker, report.incarnation, report.sequence)
                self._done_of_iteration += total - self.env_steps
                self.env_steps = total
            self.recent.note(report)
            updates += self._update_owed()
            if self._done_of_iteration >= wanted or self.interrupted:
                break
        self._end_iteration(is_whole=self._done_of_iteration >= wanted and not self._update_ratio.due(self.env_steps))
        return updates

    def _update_owed(self) -> list[UpdateReport]:
        """Take the updates that the environment steps so far are owed."""
        return self._update(self._update_ratio.due(self.env_steps), publish=True, online=True)

    def _update(self, steps: int, *, publish: bool, online: bool = False) -> list[UpdateReport]:
        """Submit `steps` updates in calls of `learner_steps_per_call`; return the reports that came back.

        Fewer are made where the run is asked to stop.
        """
        reports: list[UpdateReport] = []
        while steps > 0 and not self.interrupted:
            k = min(steps, self._training.learner_steps_per_call)
            reports += self.learner.submit(self.replay.sample(self._agent.batch_size, k), publish=publish)
            self.learner_steps += k
            if online:
                self._update_ratio.record(k)
            steps -= k
        return reports

    def publish_weights(self) -> None:
        """Publish the learner's weights after all its updates."""
        self._with_learner(self.learner.publish)

    def networks(self) -> dict[str, np.ndarray]:
        """Return the networks after all updates, for `go_back_to`."""
        return self._with_learner(self.learner.networks)

    def go_back_to(self, networks: dict[str, np.ndarray]) -> None:
        """Go on with networks of before; optimizer and counters stay as they are."""
        self._with_learner(lambda: self.learner.load_networks(networks))

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Evaluate as RLlib does; again, with another learner, if the learner dies meanwhile."""
        return self._with_learner(lambda: super(DIPOLE, self).evaluate(parallel_train_future))

    # ---- a learner that dies ----

    def _with_learner(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns; where the learner dies during it, repeat it with another learner."""
        while True:
            try:
                return work()
            except LearnerDied as death:
                self._replace_learner(death)

    def _replace_learner(self, death: LearnerDied) -> None:
        """Go on with another learner and count the updates that are lost."""
        made = self.learner_steps
        self.learner_steps = self.learner.replace(death, self.restart_point, made, self._begin_learning)
        self.learner_restarts += 1
        self.lost_updates += made - self.learner_steps

    # ---- metrics ----

    def rows(self, results: Sequence[CellResult]) -> list[Row]:
        """Return the rows of played cells; once one episode of the run told its success, all have one."""
        self.has_success = self.has_success or tells_success(results)
        return rows_of(results, self._agent, self.config.evaluation_settings().confidence, self.has_success)

    def settle_score(self) -> bool:
        """Return whether scores are successes, as far as known when the run is first scored: they never change over."""
        if self.is_score_success is None:
            self.is_score_success = self.has_success
        elif self.has_success and not self.is_score_success and not self._has_warned:
            self._has_warned = True
            what = f"environment '{self.config.env}' tells success, and told none before the first score"
            logger.warning("%s: scores stay returns; with env.success=true a run has successes from the start", what)
        return self.is_score_success

    def note_score(self, row: Row) -> None:
        """Take the evaluation of the chosen cell as the score that sweeps maximise: its success where there is one."""
        self.score = float((row["success"] if self.settle_score() else row["return"]) or 0.0)

    def _log(self, updates: list[UpdateReport], fragments: list[FragmentReport], *, wall_s: float) -> None:
        """Log under our `group/name`s and under RLlib's usual keys."""
        num_workers, version = self.experience.num_workers, self.learner.policy.version
        metrics = iteration_metrics(updates, fragments, wall_s, num_workers, version)
        if self.learner_restarts:
            metrics["learner/restarts"] = float(self.learner_restarts)
            metrics["learner/lost_updates"] = float(self.lost_updates)
        self.has_success = self.has_success or self.recent.tells_success
        metrics |= self.recent.metrics(self.has_success) | self.experience.metrics()
        metrics.update({f"replay/{name}": float(count) for name, count in self.replay.sizes().items()})
        if self.env_steps:
            metrics["replay/updates_per_env_step"] = self._update_ratio.updates_done / self.env_steps
        self.group_metrics = metrics
        batch_size = self._agent.batch_size
        for key, value in under_rllibs_keys(metrics, self.learner_steps, self.env_steps, batch_size).items():
            self.metrics.log_value(key, value, window=1)  # the last value as it is, no mean over iterations
        if logged := [report.logged for report in fragments if report.logged]:
            self.metrics.aggregate(logged, key=ENV_RUNNER_RESULTS)

    # ---- checkpoints: our own format (safetensors and JSON) behind RLlib's calls ----

    def checkpoint_contents(self) -> tuple[dict[str, dict[str, Tensor] | str], dict[str, Any]]:
        """Return what lies in each file, and the metadata, of everything needed to continue."""
        contents = self._with_learner(self.learner.agent_files)
        metadata: dict[str, Any] = {
            "algorithm": self.config.to_plain(),
            **env_dims(self.config.env_settings()).schema.to_json(),
            "learner_steps": self.learner_steps,
            "env_steps": self.env_steps,
            "done_of_iteration": self._done_of_iteration,
            "owed_updates": self._update_ratio.due(self.env_steps),
            "num_episodes": self.recent.count,
            "iteration": self.iteration - int(self.is_cut_short),
            "policy_version": self.learner.policy.version,
            "score": self.score,
            "success": {"is_known": self.has_success, "is_score": self.has_success and self.is_score_success},
            "recent": self.recent.values,
            "limiter": self._update_ratio.state(),  # named as in checkpoints of the time when it was called so
            "replay": self.replay.state(),
            "replay_directory": str(self.replay_directory),
        }
        source = self.experience.state()
        if source is not None:
            contents[ROLLOUT_FILE], metadata["rollout"] = source
        return contents, metadata

    def restore_contents(self, checkpoint: Checkpoint) -> None:
        """Continue exactly from a checkpoint, whatever this algorithm did before."""
        metadata = checkpoint.metadata
        with entries_of(checkpoint):
            require_present(checkpoint, (), here=self.replay_directory)
            self._with_learner(lambda: self.learner.load_agent_state(join(checkpoint.tensors)))
            self.restart_point = checkpoint.path
            self.learner_steps, self.env_steps = int(metadata["learner_steps"]), int(metadata["env_steps"])
            self._done_of_iteration = int(metadata.get("done_of_iteration", 0))
            self.score = None if metadata["score"] is None else float(metadata["score"])
            self.recent = RecentEpisodes(int(metadata["num_episodes"]), metadata["recent"])
            success = metadata.get("success", {})  # older versions did not write it
            self.has_success = self.has_success or bool(success.get("is_known"))
            self.is_score_success = self.is_score_success if self.score is None else success.get("is_score")
            self.set_state({TRAINING_ITERATION: int(metadata["iteration"])})
            self._update_ratio.load_state(metadata["limiter"], int(metadata.get("owed_updates", 0)))
            if copy_ring(self.replay, Path(metadata["replay_directory"]), self.replay_directory):
                held = metadata["replay"]["online"]["capacity"]
                self.replay = open_replay(self.config, self.offline_data, self.replay_directory, held)
            self.replay.load_state(metadata["replay"])
            self.learner.continue_versions(int(metadata["policy_version"]))
            tensors = checkpoint.tensors.get(ROLLOUT_FILE)
            self.experience.restore(None if tensors is None else (tensors, metadata["rollout"]), self.env_steps)
        self._call_back("on_checkpoint_loaded")

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Continue from a checkpoint's folder, as Tune asks."""
        self.restore_from_path(checkpoint_dir)

    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """Write a checkpoint into the folder `path` and return it."""
        given = {key: value for key, value in kwargs.items() if key != "use_msgpack"}  # Tune's own
        refuse_arguments("save_to_path", **given)
        if path is None:
            raise CheckpointError("save_to_path needs the folder to write: algo.save_to_path('checkpoints/mine')")
        contents, metadata = self.checkpoint_contents()
        self.restart_point = write_checkpoint(
            Path(path).expanduser().absolute(), self.learner_steps, contents, metadata
        )
        return str(self.restart_point)

    def restore_from_path(self, path: Any, **kwargs: Any) -> None:
        """Continue from a folder written by `save_to_path`; what differs from this config is refused or named."""
        refuse_arguments("restore_from_path", **kwargs)
        checkpoint = read_checkpoint(Path(path))
        with entries_of(checkpoint):
            saved = DIPOLEConfig.from_plain(checkpoint.metadata["algorithm"]).to_plain()
        differences = guard_resume(saved, self.config.to_plain(), fixed=("env",))
        self.restore_contents(checkpoint)
        warn_of(differences + version_differences(checkpoint.versions))

    @classmethod
    def from_checkpoint(
        cls,
        path: Any,
        filesystem: Any = None,
        *,
        input_: Any = None,
        replay_directory: Any = None,
        **kwargs: Any,
    ) -> DIPOLE:
        """Build the algorithm a checkpoint came from and continue it; nothing is unpickled.

        Outside itself a checkpoint needs its datasets, and the ring with the online rows once there are some. To act
        from it, `load_policy` needs neither.

        Args:
            path: A folder written by `save_to_path`, or a run's.
            filesystem: Must be None: the folder lies on a disk.
            input_: Folder or folders of the datasets, where they are elsewhere now.
            replay_directory: Folder of the ring, where it is elsewhere now.
            **kwargs: What RLlib knows beside these is refused.

        Raises:
            CheckpointError: There is none, or what it needs is missing.
        """
        refuse_arguments("from_checkpoint", filesystem=filesystem, **kwargs)
        checkpoint = read_checkpoint(Path(path))
        with entries_of(checkpoint):
            plain = dict(checkpoint.metadata["algorithm"])
            if input_ is not None:
                plain["input"] = [input_] if isinstance(input_, str | Path) else list(input_)
            if replay_directory is not None:
                checkpoint.metadata["replay_directory"] = str(Path(replay_directory).expanduser().absolute())
            config = DIPOLEConfig.from_plain(plain)
            require_present(checkpoint, config.to_plain()["input"])
        algorithm: DIPOLE = config.build_algo()
        algorithm.restore_contents(checkpoint)
        lost = config_differences(checkpoint.metadata["algorithm"], config.to_plain())
        lost = [one for one in lost if one.key == "callbacks"]
        warn_of(lost + version_differences(checkpoint.versions))
        return algorithm

    # ---- life cycle ----

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Tell RLlib which workers came back; the source brings them in, as waiting for one here would hold all up."""
        back: list[int] = env_runner_group.probe_unhealthy_env_runners(timeout_seconds=0.0)
        return sorted({*back, *self.experience.came_back()}) if env_runner_group is self.env_runner_group else back

    def cleanup(self) -> None:
        """End every actor and close the replay's files."""
        if getattr(self, "replay", None) is not None:
            self.replay.close()
        if getattr(self, "experience", None) is not None:
            self.experience.stop()
        super().cleanup()
        if not self._is_trial:  # outside Tune nothing but a ring is ever put into RLlib's own folder
            with contextlib.suppress(OSError):
                Path(self.logdir).rmdir()
