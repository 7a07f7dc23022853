"""A point that walks in a square, `tests.chaos.point_env:Point-v0`: it costs nothing and can be broken.

A file in the folder named by `DIPOLE_CHAOS_FOLDER` breaks it: `raise_on_reset`, `stall` (one step never returns) or
`nan` (every 100th step gives NaN). The first process that sees the file takes it for itself (it writes its own process
id into it), so that exactly one worker is broken; a replacement of that worker is healthy unless the file is named
`raise_on_reset`, which stays with the worker it broke first for as long as it lives. `slow` delays every step of all.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

FOLDER = "DIPOLE_CHAOS_FOLDER"
SLOW_S = 0.002


class Point(gymnasium.Env[np.ndarray, np.ndarray]):
    """Velocity control in [-1, 1]^2; the reward is minus the distance to the origin. Episodes last 50 steps.

    A little noise in each step makes every transition another one, also at the walls, so that duplicates can be told.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self) -> None:
        self._position = np.zeros(2, np.float32)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if is_mine("raise_on_reset"):
            raise ValueError("the gripper is on fire")
        self._position = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self._position.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if is_mine("stall"):
            time.sleep(3600.0)
        if broken("slow").exists():
            time.sleep(SLOW_S)
        moved = np.clip(self._position + 0.1 * np.asarray(action, np.float32), -1.0, 1.0)
        self._position = (moved + self.np_random.normal(0.0, 0.01, 2)).astype(np.float32)
        reward = -float(np.linalg.norm(self._position))
        if self._steps % 100 == 0 and is_mine("nan"):
            reward = float("nan")
        return self._position.copy(), reward, False, False, {}


def broken(fault: str) -> Path:
    """Return the file that breaks environments with `fault`."""
    return Path(os.environ.get(FOLDER, "/nonexistent")) / fault


def is_mine(fault: str) -> bool:
    """Return whether this process is the one that `fault` is for; the first to ask takes it."""
    file = broken(fault)
    if not file.exists():
        return False
    owner = file.with_suffix(".owner")
    try:
        descriptor = os.open(owner, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return owner.read_text() == str(os.getpid())
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)
    return True


gymnasium.register("Point-v0", Point, max_episode_steps=50)
