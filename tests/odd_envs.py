"""Environments of a person of their own, each odd in one way: `tests.odd_envs:Always-v0` and others."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import PendulumEnv

Step = tuple[Any, Any, Any, Any, Any]
STEPS = 4


class Walk(gymnasium.Env[np.ndarray, np.ndarray]):
    """Four steps on a line; it is solved where the last action is not negative. Asserts what it is given."""

    observation_space: gymnasium.Space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space: gymnasium.Space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.count = 0
        return self.observed(), {}

    def step(self, action: np.ndarray) -> Step:
        assert self.action_space.contains(action), action
        self.count += 1
        is_over = self.count == STEPS
        return self.observed(), -1.0, is_over, False, self.told(is_over, bool(np.ravel(action)[0] >= 0))

    def observed(self) -> Any:
        return np.full(2, self.count, np.float32)

    def told(self, is_over: bool, is_solved: bool) -> Any:
        """Return the info of a step."""
        return {}


class Always(Walk):
    """Tells success at every step."""

    def told(self, is_over: bool, is_solved: bool) -> Any:
        return {"is_success": np.bool_(is_over and is_solved)}


class LastStep(Walk):
    """Tells success at the last step."""

    def told(self, is_over: bool, is_solved: bool) -> Any:
        return {"is_success": is_solved} if is_over else {}


class WhenSolved(Walk):
    """Tells success where there is one."""

    def told(self, is_over: bool, is_solved: bool) -> Any:
        return {"success": True} if is_over and is_solved else {}


class WhenSolvable(WhenSolved):
    """Tells success where there is one and it can be had."""

    def __init__(self, solvable: bool = True) -> None:
        self.solvable = solvable

    def told(self, is_over: bool, is_solved: bool) -> Any:
        return {"success": True} if is_over and self.solvable else {}


class NoneUntilOver(Walk):
    """Tells None until the last step, and another key that is always None."""

    def told(self, is_over: bool, is_solved: bool) -> Any:
        return {"success": None, "is_success": np.array([is_solved]) if is_over else None}


class OneDict(Walk):
    """Gives the same dict at every step."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = {}

    def told(self, is_over: bool, is_solved: bool) -> Any:
        self.info["is_success"] = is_over and is_solved
        return self.info


class Wide(Walk):
    """Has bounds that no arithmetic in float32 or float64 hits."""

    def __init__(self, dtype: str = "float32", seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        low = rng.uniform(-10, 1, 16).astype(dtype)
        self.action_space = gymnasium.spaces.Box(low, low + rng.uniform(0.001, 10, 16).astype(dtype), dtype=dtype)


class Ints(Walk):
    """Observes whole numbers."""

    observation_space = gymnasium.spaces.Box(0, 10, (2,), np.int64)

    def observed(self) -> Any:
        return np.full(2, self.count)


class Far(Walk):
    """Observes a place in metres from the equator, in float64, and moves it by centimetres."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def step(self, action: np.ndarray) -> Step:
        self.place += 0.03 * float(action[0])
        return super().step(action)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        gymnasium.Env.reset(self, seed=seed)
        self.place = 5.4e6 + self.np_random.uniform(0, 20)
        return super().reset(seed=seed)

    def observed(self) -> Any:
        return np.array([self.count, self.place])


class Table(Walk):
    """Has the dimensions of the tables that tests write."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def observed(self) -> Any:
        return np.full(3, self.count, np.float32)


class Massive(Walk):
    """Takes an argument."""

    def __init__(self, mass: float) -> None:
        self.mass = mass

    def observed(self) -> Any:
        return np.full(2, self.mass, np.float32)


class Fails(Walk):
    """Fails in its constructor."""

    def __init__(self) -> None:
        raise KeyError("gripper")


class FailsInStep(Walk):
    """Fails at its first step."""

    def told(self, is_over: bool, is_solved: bool) -> Any:
        return {}["gripper"]


class OldReset(Walk):
    """Returns from reset what it did before gymnasium."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class OldStep(Walk):
    """Returns from step what it did before gymnasium."""

    def step(self, action: np.ndarray) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class OtherShape(Walk):
    """Observes more than it says."""

    def observed(self) -> Any:
        return np.zeros(3, np.float32)


class VectorReward(Walk):
    """Gives a reward in an array."""

    def step(self, action: np.ndarray) -> Step:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, np.array([reward]), terminated, truncated, info


class NaNReward(Walk):
    """Gives a reward that is no number."""

    def step(self, action: np.ndarray) -> Step:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("nan"), terminated, truncated, info


class InfiniteObservation(Walk):
    """Observes infinity."""

    def observed(self) -> Any:
        return np.array([0.0, np.inf], np.float32)


class BreaksLater(PendulumEnv):
    """Fails at the third step of every episode."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.count = 0
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> Any:
        self.count += 1
        if self.count == 3:
            raise OSError("motor offline")
        return super().step(action)


class NoInfo(Walk):
    """Gives no info."""

    def told(self, is_over: bool, is_solved: bool) -> Any:
        return None


class Wordy(Walk):
    """Tells success in a word."""

    def told(self, is_over: bool, is_solved: bool) -> Any:
        return {"success": "yes"}


class Counts(Walk):
    """Tells how often it succeeded."""

    def told(self, is_over: bool, is_solved: bool) -> Any:
        return {"success": 2}


class Leaves(Walk):
    """Ends the process where it lacks something."""

    def __init__(self) -> None:
        raise SystemExit("no licence")


class FarReward(Walk):
    """Gives a reward that no float32 holds."""

    def step(self, action: np.ndarray) -> Step:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, 1e300, terminated, truncated, info


class NoActions(Walk):
    """Takes actions without a number."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (0,), np.float32)


for kind in (Counts, Leaves, FarReward, NoActions):
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=100)
for kind in (Always, LastStep, WhenSolved, NoneUntilOver, OneDict, Wide, Ints, Far, Table, Massive, Fails, FailsInStep):
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=100)
for kind in (OldReset, OldStep, OtherShape, VectorReward, NaNReward, InfiniteObservation, NoInfo, Wordy, BreaksLater):
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=100)
gymnasium.register("WhenSolvable-v0", WhenSolvable, max_episode_steps=100)
gymnasium.register("Endless-v0", Walk)
