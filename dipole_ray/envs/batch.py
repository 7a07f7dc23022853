"""Many copies of one environment stepped together by one batched policy call.

A plain list: for these environments a vector of processes costs more in messages than it wins, so parallelism is one
process a core, each with a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
import numpy as np

Floats = type[np.float32] | type[np.float64]


class EnvBatch:
    """Environments addressed by index; none resets by itself.

    Shapes: `n` the number of indices of a call, `O` observation, `A` action.
    """

    def __init__(self, envs: Sequence[gymnasium.Env], rewards: Floats = np.float32) -> None:
        """Take one environment or more, all of one kind; `rewards` is the type in which rewards are returned."""
        self.envs = list(envs)
        self._rewards = rewards

    def __len__(self) -> int:
        return len(self.envs)

    @property
    def observation_dim(self) -> int:
        """Length of the observation vector."""
        return int(np.prod(self.envs[0].observation_space.shape or ()))

    @property
    def action_dim(self) -> int:
        """Length of the action vector."""
        return int(np.prod(self.envs[0].action_space.shape or ()))

    def reset(self, indices: Sequence[int] | np.ndarray, seeds: Sequence[int | None]) -> np.ndarray:
        """Start episodes in the environments `indices`, seeded in turn by `seeds`; returns observations (n, O)."""
        first = [self.envs[index].reset(seed=seed)[0] for index, seed in zip(indices, seeds, strict=True)]
        return np.asarray(first, np.float32)

    def step(
        self, indices: Sequence[int] | np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step the environments `indices` with `actions` (n, A) in [-1, 1].

        Returns:
            Next observations float32 (n, O), rewards (n,), terminated bool (n,), truncated bool (n,), and successes
            float32 (n,), NaN where the task does not define success.
        """
        stepped = [self.envs[index].step(action) for index, action in zip(indices, actions, strict=True)]
        observations, rewards, terminated, truncated, infos = zip(*stepped, strict=True)
        return (
            np.asarray(observations, np.float32),
            np.asarray(rewards, self._rewards),
            np.asarray(terminated, bool),
            np.asarray(truncated, bool),
            np.asarray([info.get("success", np.nan) for info in infos], np.float32),
        )

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()
