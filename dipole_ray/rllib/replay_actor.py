"""The replay behind one face, in this process or in an actor of its own.

The actor is the ring's only writer. Fragments come to it, and batches leave it, as object references: the
driver hands them on without ever holding a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from dipole_ray.data.replay import Replay
from dipole_ray.data.schema import Schema


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplaySpec:
    """Everything a replay is opened with (see `Replay`)."""

    observation_dim: int
    action_dim: int
    offline: tuple[str, ...]
    online: str | None
    capacity: int
    n_step: int
    discount: float
    offline_fraction: float | None
    seed: int

    def open(self) -> Replay:
        """Open the replay's files in this process."""
        return Replay(
            schema=Schema(observation_dim=self.observation_dim, action_dim=self.action_dim),
            offline=[Path(path) for path in self.offline],
            online=None if self.online is None else Path(self.online),
            capacity=self.capacity,
            n_step=self.n_step,
            discount=self.discount,
            offline_fraction=self.offline_fraction,
            seed=self.seed,
        )


class ReplayHost:
    """A `Replay` as an actor's methods, with what the driver asks for in one call."""

    def __init__(self, spec: ReplaySpec) -> None:
        self._replay = spec.open()

    def insert(self, rows: Mapping[str, np.ndarray], worker: int, incarnation: int, sequence: int) -> int:
        """Append one fragment; return the transitions accepted (0 for one already there)."""
        return self._replay.insert(dict(rows), worker=worker, incarnation=incarnation, sequence=sequence)

    def sample(self, batch_size: int, num_batches: int) -> dict[str, np.ndarray]:
        """Return `num_batches` consecutive batches, leading dimension `num_batches * batch_size`."""
        return self._replay.sample(batch_size, num_batches)

    def sizes(self) -> dict[str, int]:
        """Return how many transitions can be sampled."""
        return {"offline": self._replay.num_offline, "online": self._replay.num_online}

    def observation_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation (O,) of the offline observations."""
        return self._replay.observation_statistics()

    def state(self) -> dict[str, Any]:
        """Return the manifest and the sampler's state."""
        return self._replay.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state`."""
        self._replay.load_state(state)

    def close(self) -> None:
        """Flush and unmap the files."""
        self._replay.close()


class ReplayClient:
    """The driver's side: the same calls whether the replay lives here or in an actor."""

    def __init__(self, spec: ReplaySpec, *, remote: bool) -> None:
        self._remote = remote
        # num_cpus=0: inside Tune every bundle is spoken for, and a gather is not worth a core.
        self._host: Any = ray.remote(num_cpus=0)(ReplayHost).remote(spec) if remote else ReplayHost(spec)
        self._call("sizes")  # opening errors surface here

    def insert(self, rows: Any, worker: int, incarnation: int, sequence: int) -> int:
        """Append one fragment, given as arrays or as a reference to them; return the transitions accepted."""
        return int(self._call("insert", rows, worker, incarnation, sequence))

    def sample(self, batch_size: int, num_batches: int) -> Any:
        """Return batches, or at once a reference to batches being gathered."""
        method = self._host.sample
        return method.remote(batch_size, num_batches) if self._remote else method(batch_size, num_batches)

    def sizes(self) -> dict[str, int]:
        """Return how many offline and online transitions can be sampled."""
        return dict(self._call("sizes"))

    def observation_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation (O,) of the offline observations."""
        mean, std = self._call("observation_statistics")
        return mean, std

    def state(self) -> dict[str, Any]:
        """Return the manifest and the sampler's state, JSON-able."""
        return dict(self._call("state"))

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state`; later rows are dropped."""
        self._call("load_state", state)

    def close(self) -> None:
        """Flush, unmap, and end the actor."""
        self._call("close")
        if self._remote:
            ray.kill(self._host)

    def _call(self, method: str, *args: Any) -> Any:
        """Call the host and wait for its answer."""
        bound = getattr(self._host, method)
        if not self._remote:
            return bound(*args)
        try:
            return ray.get(bound.remote(*args))
        except ray.exceptions.RayTaskError as error:
            raise error.cause or error from None
