"""The reward of any task of a domain for states that were recorded under another one, exactly as a step gives it."""

from contextlib import suppress
from functools import lru_cache

import numpy as np

from dipole_ray.envs.exorl.tasks import PREFIX, Simulation, domain_of, task_ids
from dipole_ray.envs.gl import disable_rendering_by_default
from dipole_ray.errors import ConfigError, DatasetError

LARGEST_STATE = 1e6  # magnitude in a state that is handed to MuJoCo; real ones stay below a few hundred


@lru_cache(maxsize=2)
def _simulation(env_id: str) -> Simulation:
    """Return the task's simulation, built once in a process: jaco's takes half a second."""
    disable_rendering_by_default()
    simulation = Simulation(env_id)
    simulation.seed(0)
    simulation.env.reset()  # jaco's target is put in its place here
    return simulation


def exorl_rewards(env_id: str, physics: np.ndarray) -> np.ndarray:
    """Return the reward of reaching each state.

    Args:
        env_id: For example `exorl/walker-run`.
        physics: (N, P) float64, as in `info["physics"]` or an episode's file.

    Returns:
        (N,) float64, bitwise what the environment's own steps into these states give; NaN where a state is not finite
        or none that the simulation could be in.

    Raises:
        ConfigError: If `env_id` is no ExORL task.
        DatasetError: If the states are not of this domain.
    """
    if env_id not in task_ids():
        raise ConfigError(f"'{env_id}' is no ExORL task: only those ({PREFIX}walker-walk, ...) reward recorded states")
    domain = domain_of(env_id)
    if physics.ndim != 2 or physics.shape[1] != domain.physics_dim or physics.dtype != np.float64:
        raise DatasetError(
            f"cannot label states for '{env_id}': array 'physics' is {physics.dtype} of shape {physics.shape}, "
            f"expected float64 (rows, {domain.physics_dim}); the episodes are of another domain: name theirs with --env"
        )
    simulation = _simulation(env_id)
    from dm_control.rl.control import PhysicsError

    rewards = np.full(len(physics), np.nan)
    for row in np.flatnonzero((np.abs(physics) < LARGEST_STATE).all(axis=1)):  # a comparison with NaN is false
        with suppress(PhysicsError):
            rewards[row] = simulation.reward_of(physics[row])
    return rewards
