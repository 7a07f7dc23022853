"""ExORL's tasks: what their environments promise, and rewards of recorded states that equal the environment's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dipole_ray.envs.exorl import rewards
from dipole_ray.envs.exorl.rewards import exorl_rewards, reward_of
from dipole_ray.envs.exorl.tasks import DOMAINS, TARGETS, domain_of, task_ids
from dipole_ray.envs.make import EnvConfig, env_dims, make_env
from dipole_ray.errors import ConfigError, DatasetError


def play(env_id: str, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the states (T, P) that random actions lead to and the environment's own rewards (T,)."""
    env = make_env(env_id)
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    rows = [env.step(rng.uniform(-1, 1, env.action_space.shape)) for _ in range(steps)]
    env.close()
    return np.stack([info["physics"] for *_, info in rows]), np.array([reward for _, reward, *_ in rows])


def test_there_are_nine_published_tasks_and_jacos_bottom_targets() -> None:
    assert len(task_ids()) == 11
    for domain in DOMAINS.values():
        dims = env_dims(f"exorl/{domain.name}-{domain.tasks[0]}")
        found = (dims.observation_dim, dims.action_dim, dims.max_episode_steps, dims.has_success)
        assert found == (domain.observation_dim, domain.action_dim, domain.episode_steps, False)


@pytest.mark.parametrize("env_id", task_ids())
def test_rewards_of_recorded_states_are_the_environments_own(env_id: str) -> None:
    """Bitwise, in any order, and also for states that were recorded under another task of the domain."""
    states, expected = play(env_id, seed=1, steps=200)
    order = np.random.default_rng(0).permutation(len(states))
    found = exorl_rewards(env_id, states[order])
    assert np.abs(found - expected[order]).max() == 0
    assert len(np.unique(expected)) > 40, "the reward hardly moves: nothing was compared"
    other = next(name for name in task_ids() if domain_of(name) is domain_of(env_id) and name != env_id)
    assert np.array_equal(play(other, seed=1, steps=20)[0], states[:20])


@pytest.mark.parametrize("target", TARGETS)
def test_jacos_reward_is_full_within_five_centimetres_of_its_target(target: str) -> None:
    from dm_control.utils.rewards import tolerance

    states, reward = play(f"exorl/jaco-{target}", seed=0, steps=100)
    env = make_env(f"exorl/jaco-{target}")
    env.reset(seed=0)
    simulation = env.unwrapped.simulation
    hands = []
    for state in states:
        reward_of(simulation, state)
        hands.append(simulation.physics.bind(simulation.task.hand.tool_center_point).xpos.copy())
    x, y = ("left", "right").index(target.split("_")[2]), ("bottom", "top").index(target.split("_")[1])
    goal = [0.18 * x - 0.09, 0.18 * y - 0.09, 0.001]
    distances = np.linalg.norm(np.array(hands) - goal, axis=1)
    np.testing.assert_allclose(reward, [tolerance(d, bounds=(0, 0.05), margin=0.05) for d in distances], rtol=1e-12)


def test_running_backward_is_rewarded_linearly_up_to_ten_metres_per_second() -> None:
    states, forward = play("exorl/cheetah-run", seed=2, steps=100)
    backward = exorl_rewards("exorl/cheetah-run_backward", states)
    assert ((forward > 0) != (backward > 0)).all() and 0 < backward.max() < 1
    env = make_env("exorl/cheetah-run")
    env.reset(seed=0)
    simulation = env.unwrapped.simulation
    for state, reward in zip(states[:20], backward, strict=False):
        reward_of(simulation, state)
        assert reward == pytest.approx(max(0.0, -simulation.physics.speed() / 10))


@pytest.mark.parametrize(("env_id", "steps"), [("exorl/walker-run", 1000), ("exorl/jaco-reach_top_right", 250)])
def test_an_episode_is_truncated_at_its_length_and_never_terminates(env_id: str, steps: int) -> None:
    env = make_env(env_id)
    env.reset(seed=0)
    flags = [env.step(np.zeros(env.action_space.shape))[2:4] for _ in range(steps)]
    assert flags == [(False, False)] * (steps - 1) + [(False, True)]
    short = make_env(EnvConfig(id=env_id, max_episode_steps=3))
    short.reset(seed=0)
    assert [short.step(np.zeros(short.action_space.shape))[3] for _ in range(3)] == [False, False, True]


def test_the_unit_range_of_actions_spans_jacos_own() -> None:
    env = make_env("exorl/jaco-reach_top_left")
    inner = env.unwrapped.action_space
    assert np.allclose(inner.high, [0.63] * 3 + [0.84] * 3 + [5.0] * 3, atol=0.01)
    states = []
    for action in (np.full(9, 0.5), np.full(9, 0.5) * inner.high):
        env.reset(seed=0)
        (env if not states else env.unwrapped).step(action.astype(np.float32))
        states.append(env.unwrapped.simulation.physics.state())
    np.testing.assert_allclose(states[0], states[1], atol=1e-6)


def test_impossible_states_have_no_reward_and_leave_the_others_alone() -> None:
    states, expected = play("exorl/walker-walk", seed=0, steps=10)
    states[3, 2], states[5, 0], states[7] = np.nan, np.inf, 1e200
    found = exorl_rewards("exorl/walker-walk", states)
    assert np.isnan(found[[3, 5, 7]]).all()
    kept = np.delete(np.arange(10), [3, 5, 7])
    assert np.array_equal(found[kept], expected[kept])


def test_states_of_another_domain_and_other_tasks_are_refused() -> None:
    states = play("exorl/walker-walk", seed=0, steps=2)[0]
    with pytest.raises(DatasetError, match="another domain"):
        exorl_rewards("exorl/quadruped-walk", states)
    with pytest.raises(DatasetError, match="float64"):
        exorl_rewards("exorl/walker-walk", states.astype(np.float32))
    with pytest.raises(ConfigError, match="no ExORL task"):
        exorl_rewards("dm_control/walker-walk", states)
    with pytest.raises(ConfigError, match="'exorl/walker-walk'"):
        make_env("exorl/walker-wlk")


def test_rewards_are_computed_once_and_an_interrupted_labelling_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.synthetic import write_exorl

    monkeypatch.setattr(rewards, "BLOCK_STEPS", 40)
    states, expected = play("exorl/walker-walk", seed=0, steps=150)
    files = [write_exorl(tmp_path / "buffer", i, 24, 6, states[30 * i - (i > 0) : 30 * i + 30]) for i in range(5)]
    labelled: list[str] = []
    label = rewards.label

    def count(block: rewards.Block) -> np.ndarray:
        labelled.append(str(block))
        if len(labelled) == 2:
            raise KeyboardInterrupt
        return label(block)

    monkeypatch.setattr(rewards, "label", count)
    with pytest.raises(KeyboardInterrupt):
        rewards.label_episodes("exorl/walker-walk", files, tmp_path, progress=False)
    blocks = rewards.label_episodes("exorl/walker-walk", files, tmp_path, progress=False)
    assert len(blocks) == 3 and len(labelled) == 4
    found = np.concatenate(list(rewards.rewards_of(blocks)))
    assert np.array_equal(found, expected[1:].astype(np.float32))
    moved = tmp_path / "elsewhere"
    (tmp_path / "buffer").rename(moved)
    again = [moved / path.name for path in files]
    rewards.label_episodes("exorl/walker-walk", again, tmp_path, progress=False)
    assert len(labelled) == 4, "the same states were labelled twice"
    blocks[1].kept.write_bytes(b"\x93NUMPY")
    rewards.label_episodes("exorl/walker-walk", again, tmp_path, progress=False)
    assert len(labelled) == 5, "a damaged file was believed"
    rewards.label_episodes("exorl/walker-run", again, tmp_path, progress=False)
    write_exorl(moved, 2, 24, 6, states[:31])
    rewards.label_episodes("exorl/walker-walk", again, tmp_path, progress=False)
    assert len(labelled) == 11, "another task or other states were not labelled anew"
