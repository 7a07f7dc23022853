"""Signs of life of rollout workers: they tell a long piece of work from an environment that never returns.

A deadline on a whole request would shoot healthy workers: a fragment of a slow simulator or one cell of an evaluation
may take many minutes, and the first request also builds the environments. What never takes long is *one call* of one
environment. So each worker notes in the cluster's key-value store that a call came back, and the driver reads that of
workers that owe an answer; a worker busy in a call could not be asked.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import gymnasium
import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

NAMESPACE = "dipole_ray.pulse"
BEATS = 20
"""Notes, and readings, within one deadline: a silence is known to a tenth of it."""


class Pulse:
    """The worker's side."""

    def __init__(self, actor: str, stall_s: float) -> None:
        """Beat for the actor with the id `actor`, often enough for a deadline of `stall_s`."""
        self._actor = actor
        self._every_s = stall_s / BEATS
        self._next = 0.0

    def beat(self) -> None:
        """Note that this worker lives, unless it just did: 0.3 ms a note."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._every_s
            with contextlib.suppress(ray.exceptions.RayError):  # a store out of reach is no reason to lose an episode
                _internal_kv_put(self._actor, str(time.time_ns()), namespace=NAMESPACE)


class Watched(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose every return from a call is a sign of life."""

    def __init__(self, env: gymnasium.Env, pulse: Pulse) -> None:
        super().__init__(env)
        self._pulse = pulse
        pulse.beat()  # the construction was a call as well

    def reset(self, **kwargs: Any) -> Any:
        """Reset the environment."""
        result = self.env.reset(**kwargs)
        self._pulse.beat()
        return result

    def step(self, action: Any) -> Any:
        """Step the environment."""
        result = self.env.step(action)
        self._pulse.beat()
        return result


@dataclass(slots=True)
class _Heard:
    """What the driver knows of one worker, by the driver's clock alone: those of two machines may differ."""

    last: float
    """The worker lived at this time or later."""
    read: float
    """When its note was read last."""
    note: bytes | None = None


class Silence:
    """The driver's side: for how long nothing was heard of a worker."""

    def __init__(self, stall_s: float) -> None:
        self._every_s = stall_s / BEATS
        self._heard: dict[str, _Heard] = {}

    def end(self, actor: str) -> None:
        """Count anew from now: the worker is being asked for something."""
        now = time.monotonic()
        heard = self._heard.setdefault(actor, _Heard(now, now))
        heard.last = heard.read = now

    def of(self, actor: str) -> float:
        """Return the seconds since the worker's last sign of life, at most a tenth of the deadline too many."""
        now = time.monotonic()
        heard = self._heard[actor]
        if now - heard.read >= self._every_s:
            note = _internal_kv_get(actor, namespace=NAMESPACE)
            if note != heard.note:
                # It beat after the reading before; if that is long ago, nobody was waiting for it then.
                heard.note, heard.last = note, max(heard.read, now - 2 * self._every_s)
            heard.read = now
        return now - heard.last
