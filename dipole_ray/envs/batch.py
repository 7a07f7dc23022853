"""Many copies of one environment stepped together by one batched policy call.

A plain list: for these environments a vector of processes costs more in messages than it wins, so parallelism is one
process a core, each with a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
import numpy as np


class EnvBatch:
    """`num_envs` environments addressed by index; none resets by itself.

    Shapes: `n` the number of indices of a call, `O` observation, `A` action.
    """

    def __init__(self, envs: Sequence[gymnasium.Env]) -> None:
        """Take one environment or more, all of one kind."""
        self.envs = list(envs)
        self.observation_dim = int(np.prod(self.envs[0].observation_space.shape or ()))
        self.action_dim = int(np.prod(self.envs[0].action_space.shape or ()))

    def __len__(self) -> int:
        return len(self.envs)

    def reset(self, indices: Sequence[int] | np.ndarray, seeds: Sequence[int | None]) -> np.ndarray:
        """Start episodes in the environments `indices`, seeded in turn by `seeds`; returns observations (n, O)."""
        observations = np.empty((len(indices), self.observation_dim), np.float32)
        for row, (index, seed) in enumerate(zip(indices, seeds, strict=True)):
            observations[row] = self.envs[index].reset(seed=seed)[0]
        return observations

    def step(
        self, indices: Sequence[int] | np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step the environments `indices` with `actions` (n, A) in [-1, 1].

        Returns:
            Next observations float32 (n, O), rewards float32 (n,), terminated bool (n,), truncated bool (n,), and
            successes float32 (n,), NaN where the task does not define success.
        """
        n = len(indices)
        next_observations = np.empty((n, self.observation_dim), np.float32)
        rewards = np.empty(n, np.float32)
        terminated = np.empty(n, bool)
        truncated = np.empty(n, bool)
        successes = np.full(n, np.nan, np.float32)
        for row, (index, action) in enumerate(zip(indices, actions, strict=True)):
            outcome = self.envs[index].step(action)
            next_observations[row], rewards[row], terminated[row], truncated[row], info = outcome
            successes[row] = info.get("success", np.nan)
        return next_observations, rewards, terminated, truncated, successes

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()
