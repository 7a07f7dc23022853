"""Heartbeats of rollout workers: they tell long work from an environment that never returns.

A deadline on a whole request would end healthy workers: a fragment of a slow simulator or one cell of an evaluation
may take many minutes, and the first request also builds the environments. *One call* of one environment never takes
long. So a worker notes each return of a call in the cluster's key-value store, and the driver reads the notes of
workers that owe an answer: a worker inside a call could not be asked.
"""

import contextlib
import time
from typing import Any

import gymnasium
import ray

from dipole_ray.rllib.core_privates import read_beat, write_beat

BEATS = 20  # notes, and readings, within one deadline: a silence is known to a tenth of it


class Heartbeat:
    """The worker's side."""

    def __init__(self, actor: str, stall_s: float) -> None:
        """Beat for the actor with the id `actor`, often enough for a deadline of `stall_s`."""
        self._actor, self._every_s, self._next = actor, stall_s / BEATS, 0.0

    def beat(self) -> None:
        """Note that this worker lives, unless it just did: 0.3 ms a note."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._every_s
            with contextlib.suppress(ray.exceptions.RayError):  # a store out of reach is no reason to lose an episode
                write_beat(self._actor, str(time.time_ns()))


class Watched(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that beats at every return from a call."""

    def __init__(self, env: gymnasium.Env, heartbeat: Heartbeat) -> None:
        super().__init__(env)
        self._heartbeat = heartbeat
        heartbeat.beat()  # the construction was a call as well

    def reset(self, **kwargs: Any) -> Any:
        """Reset the environment."""
        result = self.env.reset(**kwargs)
        self._heartbeat.beat()
        return result

    def step(self, action: Any) -> Any:
        """Step the environment."""
        result = self.env.step(action)
        self._heartbeat.beat()
        return result


class Silence:
    """The driver's side: for how long one worker has been silent.

    It is known by the driver's clock alone: the clocks of two machines may differ.
    """

    def __init__(self, actor: str, stall_s: float) -> None:
        """Listen to the actor with the id `actor`, often enough for a deadline of `stall_s`."""
        self._actor, self._every_s = actor, stall_s / BEATS
        self._beat: bytes | None = None
        self.reset()

    def reset(self) -> None:
        """Count from now: the worker is being asked for something."""
        self._heard = self._read = time.monotonic()  # it lived then or later; its note was read then

    def seconds(self) -> float:
        """Return the seconds since the worker's last heartbeat, at most a tenth of the deadline too many."""
        now = time.monotonic()
        if now - self._read >= self._every_s:
            beat = read_beat(self._actor)
            if beat != self._beat:
                # It beat after the reading before; if that is long ago, nobody was waiting for it then.
                self._beat, self._heard = beat, max(self._read, now - 2 * self._every_s)
            self._read = now
        return now - self._heard
