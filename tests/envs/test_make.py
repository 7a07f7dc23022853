import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from dipole_ray.envs.gl import DEBIAN_PACKAGES
from dipole_ray.envs.make import EnvConfig, env_dims, make_env
from dipole_ray.envs.standard import StandardEnv
from dipole_ray.errors import ConfigError, NonFiniteError
from tests.envs.families import ANTMAZE, CUBE, DIMS, EXORL, JACO, PENDULUM, POINTMAZE, PUZZLE, SCENE, TELEPORT, WALKER

Trajectory = tuple[np.ndarray, np.ndarray]


@pytest.mark.parametrize("env_id", DIMS)
def test_every_family_has_float32_vectors_and_actions_in_the_unit_range(env_id: str) -> None:
    dims = env_dims(env_id)
    assert (dims.observation_dim, dims.action_dim, dims.max_episode_steps, dims.has_success) == DIMS[env_id]
    env = make_env(env_id)
    assert env.observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (dims.observation_dim,), np.float32)
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (dims.action_dim,), np.float32)
    observation, _ = env.reset(seed=0)
    for action in (np.ones(dims.action_dim), -np.ones(dims.action_dim)):
        assert observation.dtype == np.float32 and env.observation_space.contains(observation)
        observation, reward, terminated, truncated, info = env.step(action)
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        assert isinstance(info.get("success", 0.0), float) and ("success" in info) == dims.has_success
    env.close()


def roll(env: StandardEnv, seed: int, steps: int = 40) -> Iterator[tuple[np.ndarray, float]]:
    """Yield (observation, reward) of an episode whose actions are drawn from `seed`."""
    rng = np.random.default_rng(seed)
    yield env.reset(seed=seed)[0], 0.0
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        yield observation, reward
        if terminated or truncated:
            return


def stacked(steps: Iterator[tuple[np.ndarray, float]]) -> Trajectory:
    observations, rewards = zip(*steps, strict=True)
    return np.stack(observations), np.asarray(rewards)


def same(left: Trajectory, right: Trajectory) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("env_id", [POINTMAZE, TELEPORT, ANTMAZE, CUBE, SCENE, PUZZLE, WALKER, EXORL, JACO, PENDULUM])
def test_seed_and_actions_alone_make_the_trajectory(env_id: str) -> None:
    """Fresh or used, alone or interleaved with another environment and with draws from the global stream."""
    first, second = make_env(env_id), make_env(env_id)
    alone = stacked(roll(first, seed=3))
    other = stacked(roll(first, seed=4))
    assert not same(alone, other)
    np.random.seed(12)
    expected_draws = np.random.RandomState(12).uniform(size=len(alone[0]))
    draws, mixed = [], []
    for left, right in zip(roll(second, seed=3), roll(first, seed=4), strict=True):
        draws.append(np.random.uniform())
        mixed.append((left, right))
    assert same(alone, stacked(left for left, _ in mixed)), "a fresh environment beside another one differs"
    assert same(other, stacked(right for _, right in mixed)), "a used environment beside another one differs"
    assert np.array_equal(draws, expected_draws), "the process's own global stream was disturbed"
    first.close()
    second.close()


def test_reset_without_a_seed_goes_on_in_the_seeded_stream() -> None:
    starts = []
    for _ in range(2):
        env = make_env(POINTMAZE)
        starts.append(np.stack([env.reset(seed=5)[0], env.reset()[0], env.reset()[0]]))
    assert np.array_equal(starts[0], starts[1])
    assert len(np.unique(starts[0], axis=0)) == 3


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting.*")
def test_wrapping_leaves_the_physics_alone() -> None:
    plain, ours = gymnasium.make(PENDULUM), make_env(PENDULUM)
    plain.reset(seed=1), ours.reset(seed=1)
    for action in np.linspace(-1.2, 1.2, 9, dtype=np.float32):
        expected = plain.step(np.array([2.0 * action]))
        found = ours.step(np.array([action]))
        assert np.array_equal(found[0], expected[0].astype(np.float32))
        assert found[1] == pytest.approx(float(expected[1]), abs=1e-6)
    import ogbench

    plain, ours = ogbench.make_env_and_datasets(CUBE, env_only=True), make_env(CUBE)
    theirs, mine = plain.reset(seed=1)[0], ours.reset(seed=1)[0]
    for action in np.linspace(-1, 1, 50, dtype=np.float32).reshape(10, 5):
        # OGBench warms its scene up with unseeded actions, whose traces the solver's warm start carries on.
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
        theirs, mine = plain.step(action)[0], ours.step(action)[0]


def test_success_is_judged_before_or_after_the_action() -> None:
    outcomes = {}
    for timing in ("pre", "post", None):
        env = make_env(EnvConfig(id=POINTMAZE, success_timing=timing))
        env.reset(seed=0)
        maze: Any = env.unwrapped
        maze.set_xy(np.asarray(maze.cur_goal_xy) - [1.1, 0.0])
        steps = [env.step(np.array([1.0, 0.0])) for _ in range(2)]
        outcomes[timing] = [(reward, ended, info["success"]) for _, reward, ended, _, info in steps]
    goal_reached, not_yet = (0.0, True, 1.0), (-1.0, False, 0.0)
    assert outcomes["post"][0] == goal_reached
    assert outcomes["pre"] == outcomes[None] == [not_yet, goal_reached]


def test_suite_tasks_keep_order_and_reward_and_only_truncate() -> None:
    from dm_control import suite

    env = make_env(EnvConfig(id=WALKER, max_episode_steps=30))
    raw = suite.load("walker", "walk")
    raw.task._random = np.random.RandomState(np.random.MT19937(7))
    expected = raw.reset()
    observation, _ = env.reset(seed=7)
    for step in range(1, 31):
        parts = [np.ravel(part) for part in expected.observation.values()]
        assert np.array_equal(observation, np.concatenate(parts).astype(np.float32))
        observation, reward, terminated, truncated, _ = env.step(np.full(6, 0.3, np.float32))
        expected = raw.step(np.full(6, np.float32(0.3)))
        assert reward == expected.reward and not terminated and truncated == (step == 30)


@pytest.mark.parametrize("env_id", [POINTMAZE, PENDULUM])
def test_max_episode_steps_truncates(env_id: str) -> None:
    config = EnvConfig(id=env_id, max_episode_steps=4)
    assert env_dims(config).max_episode_steps == 4
    env = make_env(config)
    env.reset(seed=0)
    flags = [env.step(np.zeros(env_dims(env_id).action_dim))[2:4] for _ in range(4)]
    assert flags == [(False, False)] * 3 + [(False, True)]


def test_a_policy_that_diverged_is_not_stepped() -> None:
    env = make_env(PENDULUM)
    env.reset(seed=0)
    with pytest.raises(NonFiniteError, match="diverged"):
        env.step(np.array([np.nan]))


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("Pendulum-v2", "Pendulum-v1"),
        ("pointmaze-medim-navigate-singletask-v0", "pointmaze-medium-navigate-singletask-v0"),
        ("cube-single-navigate-singletask-v0", "cube-single-play-singletask-v0"),
        ("dm_control/walker-wlk", "dm_control/walker-walk"),
        ("exorl/jaco-reach_top_lef", "exorl/jaco-reach_top_left"),
        ("walker-walk", "exorl/walker-walk"),
        ("pointmaze-medium-v0", "goal-conditioned"),
        ("visual-cube-single-navigate-singletask-v0", "visual-cube-single-play-singletask-v0"),
        ("CartPole-v1", "Discrete action space"),
        ("FrozenLake-v1", "Discrete observation space"),
        ("dm_control/lqr-lqr_2_1", "max_episode_steps"),
        ("no_such_module:Env-v0", "no_such_module"),
    ],
)
def test_an_unusable_id_is_refused_with_the_way_out(env_id: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=env_id.replace("[", ".")) as caught:
        make_env(env_id)
    assert hint in str(caught.value)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ConfigError, match="no effect"):
        EnvConfig(id=PENDULUM, success_timing="post")
    with pytest.raises(ConfigError, match="use 'pre', 'post'"):
        EnvConfig(id=POINTMAZE, success_timing="after")
    with pytest.raises(ConfigError, match="at least 1"):
        EnvConfig(id=PENDULUM, max_episode_steps=0)


DRAW = """
from dipole_ray.envs.make import make_env
from dipole_ray.errors import EnvironmentUnavailable
for env_id in ({ids}):
    make_env(env_id)
    try:
        env = make_env(env_id, render=True)
        env.reset(seed=0)
        frame = env.render()
        env.close()
        print(frame.dtype, frame.ndim, frame.shape[2], frame.min() < frame.max())
    except EnvironmentUnavailable as error:
        print("unavailable:", error)
"""


def draw(ids: tuple[str, ...], backend: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "PYOPENGL_PLATFORM")}
    environment |= {"MUJOCO_GL": backend, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", DRAW.format(ids=", ".join(map(repr, ids)) + ",")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_pictures_work_after_state_only_environments_or_say_what_to_install() -> None:
    for line in draw((POINTMAZE, WALKER, CUBE), backend=""):
        assert line == "uint8 3 3 True" or (line.startswith("unavailable") and DEBIAN_PACKAGES in line)
    (line,) = draw((POINTMAZE,), backend="glfw")  # without a display
    assert line.startswith("unavailable") and DEBIAN_PACKAGES in line


def test_missing_drawing_library_is_named() -> None:
    (line,) = draw((PENDULUM,), backend="")
    assert line == "uint8 3 3 True" or (line.startswith("unavailable") and "pygame" in line)


def test_mazes_leave_no_file_and_no_descriptor_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only descriptors on the mazes' own folder count: others of the process come and go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make_env(POINTMAZE).close()
    held = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own is gone by now
            held.append(str(descriptor.readlink()))
    assert [name for name in held if name.startswith(str(tmp_path))] == []
    assert list(tmp_path.iterdir()) == []
