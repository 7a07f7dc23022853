"""Pendulum-v1 data of mixed quality: an energy-shaping swing-up that is overruled more or less often."""

from typing import Any

import numpy as np

from dipole_ray.collect.episode import Collector, Columns, env_seed
from dipole_ray.data.schema import close_trajectory
from dipole_ray.envs.make import EnvConfig, make_env

# Torque in N m per unit of missing energy (per unit of inertia): above 0.1 it is nearly always the largest.
ENERGY_GAIN = 1.0
BALANCE_GAINS = (8.0, 2.0)  # torque in N m per radian and per radian/s near the top
OVERRULED_FRACTION = (0.4, 1.0)  # range of the share of an episode's stretches in which the controller is overruled
ACTION_NOISE = 0.3  # standard deviation of the noise on every action, whose range is [-1, 1]
HOLD_STEPS = 10  # mean length of a stretch, in steps of 0.05 s; one random torque fills an overruled one


def teacher_action(observation: np.ndarray) -> float:
    """Return the controller's action in [-1, 1] for an observation (cos, sin, angular velocity).

    Pumps energy until it is that of the upright rest, then balances.
    """
    cosine, sine, velocity = (float(value) for value in observation)
    if cosine > 0.9:
        torque = -BALANCE_GAINS[0] * np.arctan2(sine, cosine) - BALANCE_GAINS[1] * velocity
    else:
        # Energy per unit of inertia of a rod of 1 m, zero at the upright rest: g = 10 m/s2, so 3 g / 2 l = 15 / s2.
        energy = 0.5 * velocity**2 + 15.0 * (cosine - 1.0)
        torque = -ENERGY_GAIN * energy * (np.sign(velocity) or 1.0)
    return float(np.clip(torque / 2.0, -1.0, 1.0))


class PendulumCollector(Collector):
    """Plays the swing-up controller, overruled by random torques for a share of time drawn anew each episode."""

    def __init__(self, **kwargs: Any) -> None:
        """Open Pendulum with arguments of its own."""
        super().__init__(make_env(EnvConfig(id="Pendulum-v1", kwargs=kwargs)))

    def episode(self, seed: np.random.SeedSequence, num_transitions: int) -> Columns:
        """Return one episode, T+1 rows as a dataset holds them."""
        rng = np.random.default_rng(seed)
        overruled_fraction = rng.uniform(*OVERRULED_FRACTION)
        observations = np.empty((num_transitions + 1, 3), np.float32)
        actions = np.empty((num_transitions, 1), np.float32)
        rewards = np.empty(num_transitions, np.float32)
        observations[0], _ = self._env.reset(seed=env_seed(seed))
        random_torque: float | None = None
        for step in range(num_transitions):
            if step == 0 or rng.random() < 1.0 / HOLD_STEPS:
                random_torque = rng.uniform(-1.0, 1.0) if rng.random() < overruled_fraction else None
            action = teacher_action(observations[step]) if random_torque is None else random_torque
            actions[step] = np.clip(action + rng.normal(0.0, ACTION_NOISE), -1.0, 1.0)
            observations[step + 1], rewards[step], _, _, _ = self._env.step(actions[step])
        # Pendulum never terminates: every step may be bootstrapped.
        return close_trajectory(observations, actions, rewards, np.ones(num_transitions, np.float32))
