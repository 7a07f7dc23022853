"""The acting loop: chunks of actions are taken one after another, end with their episode, and survive a resume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from dipole_ray.envs.acting import Act, ActingLoop, Episode
from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.envs.standard import StandardEnv
from tests.envs.families import PENDULUM, POINTMAZE

LIMITS = (5, 7, 30)
"""Time limits of the environments: no multiple of a chunk, so that episodes end within one."""
H = 4


class Chunks:
    """Plans H actions that only the observation decides, and notes how many environments each call was about."""

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim
        self.rows: list[int] = []

    def __call__(self, observations: np.ndarray, episodes: Sequence[Episode] = ()) -> np.ndarray:
        """Return chunks (B, H, A)."""
        self.rows.append(len(observations))
        angles = observations[:, :1, None] * 7 + np.arange(H)[None, :, None] + np.arange(self.action_dim) / 3
        return np.asarray(np.sin(angles), np.float32)


def envs_of(env: str) -> list[StandardEnv]:
    """Return environments that end at different steps."""
    return [make_env(EnvConfig(id=env, max_episode_steps=limit)) for limit in LIMITS]


def loop_of(env: str, act: Act, counts: list[int]) -> ActingLoop:
    """Return a loop before its start, whose episodes are seeded by environment and number; `counts` goes with them."""

    def following(i: int) -> Episode:
        counts[i] += 1
        return Episode(seed=100 * i + counts[i])

    return ActingLoop(envs_of(env), act, following)


def alone(env: str, i: int, act: Act, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return observations and actions of environment `i`, asked every H steps and at every start."""
    single = make_env(EnvConfig(id=env, max_episode_steps=LIMITS[i]))
    observations: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    left: list[np.ndarray] = []
    episode, over = 0, True
    for _ in range(steps):
        if over:
            episode += 1
            observation, left = single.reset(seed=100 * i + episode)[0], []
        left = left or list(act(observation[None], [])[0])
        observations.append(observation)
        actions.append(left.pop(0))
        observation, _, terminated, truncated, _ = single.step(actions[-1])
        over = terminated or truncated
    return np.stack(observations), np.stack(actions)


def test_a_step_is_exactly_what_each_environment_does_alone() -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (15, 3, 2)).astype(np.float32)
    drawn = iter(actions)
    waiting = {i: [Episode(seed=10 + i)] for i in range(3)}
    loop = ActingLoop(
        envs_of(POINTMAZE), lambda *_: next(drawn)[loop_rows], lambda i: waiting[i].pop() if waiting[i] else None
    )
    singles = envs_of(POINTMAZE)
    before = {i: single.reset(seed=10 + i)[0] for i, single in enumerate(singles)}
    loop.start([2, 0, 1])
    for step in range(15):
        loop_rows = sorted(loop.episodes)
        found = loop.step()
        assert found.indices == loop_rows == ([0, 1, 2] if step < 5 else [1, 2] if step < 7 else [2])
        assert not found.broken.any() and found.next_observations.dtype == np.float32
        for row, i in enumerate(found.indices):
            after, reward, terminated, truncated, info = singles[i].step(actions[step, i])
            assert np.array_equal(found.observations[row], before[i]) and found.rewards[row] == reward
            assert np.array_equal(found.next_observations[row], after) and found.terminated[row] == terminated
            assert found.done[row] == (terminated or truncated) and found.episodes[row].success == info["success"]
            before[i] = after


def test_success_is_nan_where_a_task_defines_none() -> None:
    loop = loop_of(PENDULUM, Chunks(1), [0, 0, 0])
    loop.start(range(3))
    assert all(np.isnan(episode.success) for episode in loop.step().episodes)


@pytest.mark.parametrize(("env", "action_dim"), [(PENDULUM, 1), (POINTMAZE, 2)])
def test_chunks_are_the_policy_asked_every_h_steps_and_at_every_start(env: str, action_dim: int) -> None:
    policy = Chunks(action_dim)
    loop = loop_of(env, policy, [0, 0, 0])
    loop.start(range(3))
    steps = [loop.step() for _ in range(40)]
    for i in range(3):
        observations, actions = alone(env, i, Chunks(action_dim), 40)
        assert np.array_equal(np.stack([step.observations[i] for step in steps]), observations)
        assert np.array_equal(np.stack([step.actions[i] for step in steps]), actions)
    # Asked at steps 0 and 4 of each episode of 5, 0 and 4 of 7, and 0, 4, ..., 28 of 30.
    assert sum(policy.rows) == 8 * 2 + (5 * 2 + 2) + (8 + 3)
    assert len(policy.rows) < 40, "steps at which every environment has a planned action ask nobody"


def test_an_answer_without_a_chunk_is_one_action() -> None:
    policy = Chunks(1)
    loop = loop_of(PENDULUM, lambda observations, _: policy(observations)[:, 0], [0, 0, 0])
    loop.start(range(3))
    for _ in range(10):
        step = loop.step()
        assert np.array_equal(step.actions, Chunks(1)(step.observations)[:, 0])
    assert policy.rows == [3] * 10


@pytest.mark.parametrize("steps", range(5, 9))
def test_running_episodes_go_on_exactly_within_their_chunks(steps: int) -> None:
    counts = [0, 0, 0]
    loop = loop_of(POINTMAZE, Chunks(2), counts)
    loop.start(range(3))
    for _ in range(steps):
        loop.step()
    arrays, seeds = loop.state()
    assert sum(name.startswith("planned") for name in arrays) > 0, "saved within a chunk"
    resumed = loop_of(POINTMAZE, Chunks(2), list(counts))
    resumed.load_state(arrays, seeds)
    for _ in range(40):
        before, after = loop.step(), resumed.step()
        assert np.array_equal(before.actions, after.actions)
        assert np.array_equal(before.next_observations, after.next_observations)
        assert before.episodes == after.episodes, "seed, length, return and success"


def test_an_environment_that_has_nothing_left_to_play_is_left_out() -> None:
    waiting = [Episode(seed=seed) for seed in range(4)]
    loop = ActingLoop(envs_of(PENDULUM), Chunks(1), lambda _: waiting.pop() if waiting else None)
    loop.start(range(3))
    rows = []
    while loop.episodes:
        rows.append(loop.step().indices)
    assert rows == [[0, 1, 2]] * 7 + [[0, 2]] * 3 + [[2]] * 20
