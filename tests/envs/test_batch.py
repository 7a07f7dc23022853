import numpy as np

from dipole_ray.envs.batch import EnvBatch
from dipole_ray.envs.make import make_env
from tests.envs.families import PENDULUM, POINTMAZE


def test_a_batch_steps_exactly_the_named_environments_as_single_ones_would() -> None:
    batch = EnvBatch([make_env(POINTMAZE) for _ in range(3)])
    singles = [make_env(POINTMAZE) for _ in range(3)]
    found = batch.reset([2, 0, 1], seeds=[12, 10, 11])
    expected = {index: singles[index].reset(seed=10 + index)[0] for index in range(3)}
    assert np.array_equal(found, np.stack([expected[2], expected[0], expected[1]]))
    rng = np.random.default_rng(0)
    for indices in ([0, 1, 2], [1], [2, 1], [0, 2]):
        actions = rng.uniform(-1, 1, (len(indices), 2)).astype(np.float32)
        observations, rewards, terminated, truncated, successes = batch.step(indices, actions)
        for row, index in enumerate(indices):
            observation, reward, *flags, info = singles[index].step(actions[row])
            assert np.array_equal(observations[row], observation) and rewards[row] == reward
            assert [terminated[row], truncated[row]] == flags and successes[row] == info["success"]
    batch.close()


def test_success_is_nan_where_a_task_defines_none() -> None:
    batch = EnvBatch([make_env(PENDULUM) for _ in range(2)])
    batch.reset([0, 1], seeds=[0, 1])
    observations, rewards, *_, successes = batch.step([0, 1], np.zeros((2, 1), np.float32))
    assert observations.dtype == rewards.dtype == np.float32
    assert np.isnan(successes).all()
