"""Weights are published when they are asked for, or every half second at most, and what acts is never left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from torch import Tensor

from dipole_ray.rllib.learner import DIPOLELearner
from dipole_ray.rllib.learner_client import PUBLISH_INTERVAL_S, LearnerClient
from tests.rllib.small import config

BATCH = 16


class Clock:
    """Stands still until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def batches() -> dict[str, np.ndarray]:
    """Return two random batches of Pendulum's shapes."""
    random = np.random.default_rng(0)
    widths = {"observations": (3,), "actions": (1,), "next_observations": (3,), "rewards": (), "masks": ()}
    return {name: random.uniform(-1, 1, (2 * BATCH, *width)).astype(np.float32) for name, width in widths.items()}


@pytest.fixture
def client(request: pytest.FixtureRequest, cluster: None, pendulum: Path) -> Iterator[tuple[LearnerClient, Clock]]:
    """The learner of a run with so many learner actors and rollout workers, and its clock."""
    learners, workers = request.param
    made, clock = config(pendulum, learners=learners, workers=workers, batch_size=BATCH), Clock()
    made.validate()
    made.freeze()
    found = LearnerClient(made, clock)
    found.fit_observations(np.zeros(3, np.float32), np.ones(3, np.float32))
    yield found, clock
    found.shutdown()


def acts_newest(client: LearnerClient) -> bool:
    """Return whether the published weights are those after all updates."""
    state = client.policy.state
    found: dict[str, Tensor] = ray.get(state) if isinstance(state, ray.ObjectRef) else state
    learned = client.agent_state()
    return all(torch.equal(tensor, learned[f"networks.{name}"]) for name, tensor in found.items())


@pytest.mark.parametrize("client", [(0, 0)], indirect=True, ids=["in this process"])
def test_a_learner_here_copies_its_weights_once_each_time_they_are_asked_for(
    client: tuple[LearnerClient, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, _ = client
    copies: list[int] = []
    copy: Callable[[DIPOLELearner], dict[str, Tensor]] = DIPOLELearner.policy_state
    monkeypatch.setattr(DIPOLELearner, "policy_state", lambda self: copies.append(1) or copy(self))
    for asked in range(1, 4):
        for _ in range(5):
            learner.submit(batches(), publish=True)
        assert acts_newest(learner) and acts_newest(learner)
        assert len(copies) == asked
    version = learner.policy.version
    learner.submit(batches(), publish=False)
    assert learner.policy.version == version, "updates of the offline phase publish nothing"


@pytest.mark.parametrize("client", [(1, 1)], indirect=True, ids=["an actor, with a worker"])
def test_a_learner_in_an_actor_publishes_every_half_second_at_most_and_what_it_did_last_once_it_is_done(
    client: tuple[LearnerClient, Clock],
) -> None:
    learner, clock = client
    first = learner.policy.version
    for call in range(40):  # a second and a half, half a call before the interval's end
        clock.now = 100.0 + (call + 0.5) / 40 * 1.5
        learner.submit(batches(), publish=True)
        assert learner.policy.version - first <= (clock.now - 100.0) / PUBLISH_INTERVAL_S
    learner.drain()
    assert learner.policy.version - first == 2 and not acts_newest(learner)
    clock.now += PUBLISH_INTERVAL_S
    assert learner.policy.version - first == 3 and acts_newest(learner)
    assert learner.policy.version - first == 3, "nothing is new"
