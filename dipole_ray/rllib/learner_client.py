"""The driver's side of the learner: updates submitted ahead, reports in order, versioned weights.

RLlib and its users find it as `algo.learner_group`. Several learners get every call, with the same reference to its
batches, and hold the same state after it; what is read is read from the first.

A learner's process may die at any call. Every wait for it then raises `LearnerDied`, and `replace` goes on with other
learners, from the run's newest valid checkpoint or from the first weights. Only the learner goes back: the replay
keeps every row, the workers go on acting with the policy last published, and the environment steps stay counted.
Updates made after the checkpoint are lost: offline they are made again, because the phase ends at a number of updates;
online they are not owed again, so that no burst of updates follows.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner_group import LearnerGroup
from torch import Tensor

from dipole_ray.agents.adapter_files import join, split, without_texts
from dipole_ray.agents.data_parallel import RankLost
from dipole_ray.errors import CheckpointError, ConfigError, ResourcesUnavailable
from dipole_ray.files.checkpoint import Checkpoint, newest_valid, read_checkpoint, steps_of
from dipole_ray.rllib.core_privates import prefer_node
from dipole_ray.rllib.experience import PublishedPolicy
from dipole_ray.rllib.learner import DIPOLELearner, UpdateReport
from dipole_ray.rllib.placement import learners_of, node_for_learners, require_room
from dipole_ray.rllib.privates import give_learners
from dipole_ray.rllib.waiting import wait_for
from dipole_ray.spans import spanned

logger = logging.getLogger(__name__)

IN_FLIGHT = 2  # calls queued at the learner: one computing, one waiting with its batches, so that it never idles
PUBLISH_INTERVAL_S = 0.5  # between two policies of learners in actors: each is a copy of all that acts
MAX_DEATHS = 5  # learners lost without one finished update between them, after which the run ends


class LearnerDied(Exception):
    """A learner's process is gone, and with it every update since the last checkpoint."""


def _refuse(sentence: str) -> Callable[..., Any]:
    def refused(self: LearnerGroup, *args: Any, **kwargs: Any) -> Any:
        """Raise, and say what to call instead."""
        raise ConfigError(sentence)

    return refused


class LearnerClient(LearnerGroup):
    """Starts the learner in this process, or one or several as actors, and calls them."""

    def __init__(self, config: AlgorithmConfig, clock: Callable[[], float] = time.monotonic) -> None:
        if not issubclass(config.learner_class, DIPOLELearner):
            raise ConfigError(f"learner_class is {config.learner_class.__name__}: it must derive from DIPOLELearner")
        self.config = config
        self._batch_size = config.agent_settings().batch_size
        self._pending: deque[tuple[list[Any], Any]] = deque()
        self._published = PublishedPolicy(0, None)  # what was published last
        self._is_outdated = False  # whether updates that were to be published were not
        self._clock, self._due_s = clock, -math.inf
        # Without workers nothing depends on the clock, and a resumed run goes on exactly: every call publishes.
        self._interval_s = PUBLISH_INTERVAL_S if config.num_env_runners else 0.0
        self._deaths_in_a_row = 0  # learners lost since the last one that finished an update
        self._adapter_config: dict[str, Any] | None = None  # PEFT's, once a checkpoint is written
        self.backbone: dict[str, Tensor] | None = None  # that was cloned in this run, once it is frozen
        self._shared_backbone: list[Any] | None = None
        self.learners: list[Any] = []  # the one of this process, or the actors
        self._start()

    @property
    def policy(self) -> PublishedPolicy:
        """What to act with: the weights published last, or newer ones if they are there and may be published.

        A learner in this process publishes when it is asked for, here. One in an actor publishes with its calls, as
        often as `PUBLISH_INTERVAL_S` allows, and here what its last calls left, once they are done.
        """
        if self._is_outdated and (not self.is_remote or (self._is_due() and not self._is_busy())):
            self.publish()
        return self._published

    @spanned("update")
    def submit(self, batches: Any, *, publish: bool) -> list[UpdateReport]:
        """Queue one call on batches or a reference to them; return the reports of calls that it waited for.

        Those that `publish` change what acts, now or with a later call, see `policy`.
        """
        self._is_outdated |= publish
        if not self.is_remote:
            here = wait_for([batches], "the replay: sample")[0] if isinstance(batches, ray.ObjectRef) else batches
            report, _ = self.learners[0].update_on(here, self._batch_size)
            return [report]
        publish = publish and self._is_due()
        if publish:
            self._is_outdated, self._due_s = False, self._clock() + self._interval_s
        finished = [self._finish_oldest()] if len(self._pending) >= IN_FLIGHT else []
        # Two answers, so that the driver passes the weights on without ever fetching them.
        calls = [learner.update_on.options(num_returns=2) for learner in self.learners]
        answers = [call.remote(batches, self._batch_size, publish and i == 0) for i, call in enumerate(calls)]
        self._pending.append(([report for report, _ in answers], answers[0][1] if publish else None))
        return finished

    @spanned("update")
    def drain(self) -> list[UpdateReport]:
        """Wait until no call is in flight; return their reports."""
        return [self._finish_oldest() for _ in range(len(self._pending))]

    def fit_observations(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Set what the agent normalizes observations with, before its first update, and publish it."""
        self._call(self.learners, "fit_observations", mean, std)
        self.publish()

    @spanned("publish")
    def publish(self) -> None:
        """Make the weights after all submitted updates the next policy version."""
        self.drain()
        self._publish_backbone()
        self._set_policy(self._call(self.learners[:1], "policy_state"))
        self._is_outdated, self._due_s = False, self._clock() + self._interval_s

    def _publish_backbone(self) -> None:
        """Take a backbone that was cloned in this run, once it is frozen, so that workers and checkpoints get it."""
        if self.backbone is None and self.config.training_settings().clone_learner_steps:
            self.backbone = self._call(self.learners[:1], "backbone")
            if self.backbone is not None:
                self._shared_backbone = [ray.put(self.backbone) if ray.is_initialized() else self.backbone]

    def continue_versions(self, version: int) -> None:
        """Number the policies from beyond `version`, the last one published before a restart."""
        newest = self.policy
        self._published = PublishedPolicy(max(newest.version, version) + 1, newest.state, newest.backbone)

    def agent_state(self) -> dict[str, Tensor]:
        """Return the agent's complete state, after all submitted updates."""
        self.drain()
        return dict(self._call(self.learners[:1], "agent_state"))

    def agent_files(self) -> dict[str, dict[str, Tensor] | str]:
        """Return the agent's complete state as the files of a checkpoint."""
        state = self.agent_state()
        if self._adapter_config is None:
            self._adapter_config = dict(self._call(self.learners[:1], "adapter_config"))
        self._publish_backbone()
        return split(state, self._adapter_config, self.backbone)

    def load_agent_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue exactly from a state returned by `agent_state`, and publish its weights."""
        self._load("load_agent_state", state)

    # ---- a learner that dies ----

    def replace(self, death: LearnerDied, newest: Path | None, steps: int, begin: Callable[[], None]) -> int:
        """Start other learners from the newest valid checkpoint, and return the updates that they have made.

        One warning names what is lost of the `steps` so far. `newest` is the checkpoint written or restored last;
        without one, `begin` prepares learners with the first weights.

        Raises:
            CheckpointError: The run has saved before, and none of its checkpoints is left and whole.
            ResourcesUnavailable: Learners die one after the other, or no node has room for them within a minute.
        """
        while self._deaths_in_a_row < MAX_DEATHS:
            checkpoint = None if newest is None else _valid_checkpoint(newest)
            saved_steps, source = 0, "its first weights (no checkpoint was written yet)"
            if checkpoint is not None:
                saved_steps, source = checkpoint.learner_steps, str(checkpoint.path)
            logger.warning(
                "the learner died (%s); another starts from %s: %d updates are lost", death, source, steps - saved_steps
            )
            try:
                self.start_again()
                if checkpoint is None:
                    begin()
                else:
                    self.load_agent_state(join(checkpoint.tensors))
            except LearnerDied as next_death:
                death = next_death
            else:
                return saved_steps
        raise ResourcesUnavailable(
            f"the learner's process was lost {MAX_DEATHS} times without one update in between, the last time with: "
            f"{death}; usually memory ran out: lower agent.batch_size or training.learner_steps_per_call, or give "
            "the run a larger machine, then go on with --resume"
        )

    def start_again(self) -> None:
        """Replace all learners by new ones, with the first weights, and forget the calls in flight.

        One that lives on is of no use without the dead one, and may wait for it for ever: it is killed.
        """
        self._deaths_in_a_row += 1
        self.shutdown()
        require_room([learners_of(self.config)])
        try:
            self._start()
        except (ray.exceptions.RayActorError, RuntimeError) as error:  # of torch, where it could not reach the others
            raise LearnerDied(str(error).splitlines()[0]) from None

    def networks(self) -> dict[str, np.ndarray]:
        """Return the networks after all updates submitted so far."""
        found: dict[str, np.ndarray] = self._call(self.learners[:1], "module_state")
        return found

    def load_networks(self, networks: Mapping[str, np.ndarray]) -> None:
        """Go on with such networks; optimizer and counters stay as they are."""
        self._load("load_module_state", networks)

    # ---- RLlib's learner group ----

    def __del__(self) -> None:
        """Do nothing: RLlib's group would end learners that it never started."""

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return the networks as RLlib names them and, unless `components` asks for less, the agent's whole state."""
        state: dict[str, Any] = {COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: self.networks()}}
        if components is None and not not_components:
            state["agent"] = join(without_texts(self.agent_files()))
        return {COMPONENT_LEARNER: state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        learner = state.get(COMPONENT_LEARNER, {})
        if "agent" in learner:
            self.load_agent_state(learner["agent"])
        elif COMPONENT_RL_MODULE in learner:
            self.load_networks(learner[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID])

    def get_stats(self) -> dict[str, Any]:
        """Return RLlib's counts; no row is ever dropped here."""
        return {"learner_group_ts_dropped_lifetime": 0, "actor_manager_num_outstanding_async_reqs": len(self._pending)}

    def shutdown(self) -> None:
        """End the actors, and forget the calls in flight."""
        self._pending.clear()
        for learner in self.learners if self.is_remote else []:
            ray.kill(learner)

    update = _refuse("DIPOLE's learner takes its batches from the replay: call algo.train()")
    add_module = remove_module = _refuse("DIPOLE trains one agent: no module can be added to it or removed from it")
    save_to_path = restore_from_path = load_module_state = _refuse(
        "the learner is saved with its algorithm: call algo.save_to_path(FOLDER) and algo.restore_from_path(FOLDER)"
    )

    # ---- inside ----

    def _start(self) -> None:
        """Start the learners, beside this process if they fit, and have them build their agents together."""
        if not self.is_remote:
            self.learners = [self.config.learner_class(self.config)]
            self.learners[0].build()
        else:
            _, size, resources = learners_of(self.config)
            options = {"num_cpus": resources.pop("CPU"), "num_gpus": resources.pop("GPU"), "resources": resources}
            node = node_for_learners(self.config)
            if node is not None:
                options["scheduling_strategy"] = prefer_node(node)
            actor_class, config = ray.remote(**options)(self.config.learner_class), ray.put(self.config)
            self.learners = [actor_class.remote(config) for _ in range(size)]
            address = wait_for([self.learners[0].address.remote()], "the learner: start")[0] if size > 1 else None
            builds = [learner.build.remote(rank, size, address) for rank, learner in enumerate(self.learners)]
            wait_for(builds, "the learner: build")
        give_learners(self, self.learners)

    def _finish_oldest(self) -> UpdateReport:
        """Wait for the oldest call; its weights become the published policy."""
        report_refs, policy_ref = self._pending.popleft()
        report: UpdateReport = _answers(report_refs, "update")[0]
        self._deaths_in_a_row = 0
        self._set_policy(policy_ref)
        return report

    def _set_policy(self, state: Any) -> None:
        """Publish `state`, if there is one, under the next version."""
        if state is not None:
            self._published = PublishedPolicy(self._published.version + 1, state, self._shared_backbone)

    def _is_due(self) -> bool:
        """Return whether the last publication is long enough ago."""
        return self._clock() >= self._due_s

    def _is_busy(self) -> bool:
        """Return whether a learner has not finished what it was given."""
        calls = [report for reports, _ in self._pending for report in reports]
        return bool(ray.wait(calls, num_returns=len(calls), timeout=0.0)[1]) if calls else False

    def _load(self, method: str, state: Mapping[str, Any]) -> None:
        """Hand a state to every learner and publish the weights."""
        self.drain()
        self.backbone = self._shared_backbone = None
        self._call(self.learners, method, ray.put(dict(state)) if self.is_remote else dict(state))
        self.publish()

    def _call(self, learners: list[Any], method: str, *args: Any) -> Any:
        """Call a method of `learners` and return the first one's answer, once all have answered."""
        bound = [getattr(learner, method) for learner in learners]
        return _answers([call.remote(*args) for call in bound], method)[0] if self.is_remote else bound[0](*args)


def _answers(references: list[Any], method: str) -> list[Any]:
    """Return the learners' answers; never silent for long."""
    try:
        return wait_for(references, f"the learner: {method}")
    except (ray.exceptions.RayActorError, RankLost) as error:
        raise LearnerDied(str(error).splitlines()[0]) from None


def _valid_checkpoint(newest: Path) -> Checkpoint:
    """Return the checkpoint to go back to: `newest`, or where it is damaged the one before it."""
    path = newest_valid(newest.parent, not_after=steps_of(newest))
    if path is None:
        raise CheckpointError(f"{newest}: the learner died, and no valid checkpoint is left to go back to; train anew")
    return read_checkpoint(path)
