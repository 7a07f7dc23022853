"""The driver's side of the learner: updates submitted ahead, reports in order, versioned weights.

Several learners get every call, with the same reference to its batches, and hold the same state after it; what is
read is read from the first.

A learner's process may die at any call. Every wait for it then raises `LearnerDied`; `start_again` puts others in
the place of all, which have the networks' first weights until they are given a state (see `recovery.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.rllib.core.learner.learner_group import LearnerGroup
from torch import Tensor

from dipole_ray.agents.data_parallel import RankLost
from dipole_ray.rllib.learner import UpdateReport
from dipole_ray.rllib.placement import learner_resources, require_room
from dipole_ray.rllib.waiting import wait_for, wait_for_all

IN_FLIGHT = 2
"""Calls queued at the learner: one computing, one waiting with its batches, so that it never idles on the driver."""


class LearnerDied(Exception):
    """A learner's process is gone, and with it every update since the last checkpoint."""


@dataclass(frozen=True, slots=True)
class PublishedPolicy:
    """The weights rollout workers act with."""

    version: int
    """Counts publications; it never goes back, also when the learner restarts from a checkpoint."""
    state: Any
    """The tensors, or a reference to them in Ray's object store."""


class LearnerClient:
    """Submits update calls to the local learner, or to all remote ones, of an RLlib LearnerGroup."""

    def __init__(self, group: LearnerGroup, batch_size: int) -> None:
        self._group = group
        self._batch_size = batch_size
        self._pending: deque[tuple[list[Any], Any]] = deque()
        self.policy = PublishedPolicy(0, None)
        self.deaths_in_a_row = 0
        """Learners lost since the last one that finished an update."""

    @property
    def is_remote(self) -> bool:
        """Whether the learner is an actor of its own."""
        return bool(self._group.is_remote)

    def submit(self, batches: Any, *, publish: bool) -> list[UpdateReport]:
        """Queue one call; return the reports of calls that had to finish first.

        Args:
            batches: Arrays from the replay or a reference to them.
            publish: Make the weights after this call the next policy version.
        """
        if not self.is_remote:
            here = wait_for(batches, "the replay: sample") if isinstance(batches, ray.ObjectRef) else batches
            report, state = self._group._learner.update_on(here, self._batch_size, publish)
            self._set_policy(state)
            return [report]
        finished = [self._finish_oldest()] if len(self._pending) >= IN_FLIGHT else []
        calls = [learner.update_on.options(num_returns=2) for learner in self._group._workers]
        answers = [call.remote(batches, self._batch_size, publish and i == 0) for i, call in enumerate(calls)]
        self._pending.append(([report for report, _ in answers], answers[0][1] if publish else None))
        return finished

    def drain(self) -> list[UpdateReport]:
        """Wait until no call is in flight; return their reports."""
        return [self._finish_oldest() for _ in range(len(self._pending))]

    def fit_observations(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Set what the agent normalizes observations with, before its first update, and publish it."""
        self._call("fit_observations", mean, std)
        self.publish()

    def publish(self) -> None:
        """Take the learner's present weights as the next policy version."""
        self._set_policy(self._read("policy_state"))

    def continue_versions(self, version: int) -> None:
        """Number the policies from beyond `version`, the last one published before a restart."""
        self.policy = PublishedPolicy(max(self.policy.version, version) + 1, self.policy.state)

    def agent_state(self) -> dict[str, Tensor]:
        """Return the agent's complete state, after all submitted updates."""
        assert not self._pending, "drain() before reading the agent's state"
        state: dict[str, Tensor] = self._read("agent_state")
        return state

    def load_agent_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue exactly from a state returned by `agent_state`, and publish its weights."""
        self.drain()
        self._call("load_agent_state", ray.put(dict(state)) if self.is_remote else dict(state))
        self.publish()

    def start_again(self) -> LearnerGroup:
        """Put new learners in the place of all, forgetting the calls in flight, and return their group.

        One that lives on is of no use without the dead one, and may wait for it for ever: it is killed. The
        published policy stays what it is: workers go on acting with it meanwhile.

        Raises:
            LearnerDied: One of the new ones did not live through its start.
            ResourcesUnavailable: No node has room for them within a minute.
        """
        self._pending.clear()
        self.deaths_in_a_row += 1
        dead, config = self._group, self._group.config
        dead._backend_executor.shutdown(graceful_termination=False)
        dead._is_shut_down = True
        require_room([("learner", config.num_learners, learner_resources(config))])
        try:
            self._group = config.build_learner_group(rl_module_spec=dead._module_spec)
        except ray.exceptions.RayActorError as error:
            raise LearnerDied(str(error).splitlines()[0]) from None
        return self._group

    def _finish_oldest(self) -> UpdateReport:
        """Wait for the oldest call; its weights become the published policy."""
        report_refs, policy_ref = self._pending.popleft()
        report: UpdateReport = _answers(report_refs, "update")[0]
        self.deaths_in_a_row = 0
        self._set_policy(policy_ref)
        return report

    def _set_policy(self, state: Any) -> None:
        """Publish `state`, if there is one, under the next version."""
        if state is not None:
            self.policy = PublishedPolicy(self.policy.version + 1, state)

    def _call(self, method: str, *args: Any) -> None:
        """Call a method of every learner and wait."""
        if not self.is_remote:
            getattr(self._group._learner, method)(*args)
        else:
            _answers([getattr(learner, method).remote(*args) for learner in self._group._workers], method)

    def _read(self, method: str) -> Any:
        """Return what a method of the first learner returns."""
        if not self.is_remote:
            return getattr(self._group._learner, method)()
        return _answers([getattr(self._group._workers[0], method).remote()], method)[0]


def _answers(references: list[Any], method: str) -> list[Any]:
    """Return the learners' answers; never silent for long."""
    try:
        return wait_for_all(references, f"the learner: {method}")
    except (ray.exceptions.RayActorError, RankLost) as error:
        raise LearnerDied(str(error).splitlines()[0]) from None
