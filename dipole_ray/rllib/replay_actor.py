"""The replay behind one face, in this process or in an actor of its own.

The actor is the ring's only writer. Fragments come to it by way of the driver, which then owns
their rows and can hand them in again whoever dies; batches leave it as references that the driver only passes on.

When its process dies, Ray starts another one and repeats the calls that were not answered. The new process takes the
ring up again with every row that was acknowledged, knows whose inserts they are, and so counts none twice; batches
that are still to come are then drawn with random numbers that were not used before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dipole_ray.data.replay import Replay
from dipole_ray.data.schema import Schema
from dipole_ray.errors import DatasetError
from dipole_ray.rllib.waiting import wait_for


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
    run: str | None = None

    def open(self) -> Replay:
        """Open the replay's files in this process."""
        return Replay(
            schema=Schema(self.observation_dim, self.action_dim),
            offline=[Path(path) for path in self.offline],
            online=None if self.online is None else Path(self.online),
            capacity=self.capacity,
            n_step=self.n_step,
            discount=self.discount,
            offline_fraction=self.offline_fraction,
            seed=self.seed,
            run=self.run,
        )


class ReplayHost:
    """A `Replay` as an actor's methods, with what the driver asks for in one call."""

    def __init__(self, spec: ReplaySpec) -> None:
        self._replay = spec.open()

    def insert(self, rows: Mapping[str, np.ndarray], worker: int, incarnation: int, sequence: int) -> int:
        """Append one fragment unless it is there already; return the transitions ever inserted."""
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
        self._env_steps = 0
        self._host: Any = _start(spec) if remote else ReplayHost(spec)
        self._call("sizes")  # opening errors surface here

    def insert(self, rows: Any, worker: int, incarnation: int, sequence: int) -> int:
        """Append one fragment, given as arrays or as a reference to them, unless it is there already.

        Returns:
            Transitions ever inserted, these included: right also when the first answer was lost with the actor.

        Raises:
            DatasetError: If the actor came back without rows that it had acknowledged.
        """
        total = int(self._call("insert", rows, worker, incarnation, sequence))
        if total < self._env_steps:
            raise DatasetError(
                f"the replay had acknowledged {self._env_steps} environment steps and came back with {total}: its ring "
                "or the journal beside it was replaced or deleted; resume from a checkpoint"
            )
        self._env_steps = total
        return total

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
        self._env_steps = int(state["env_steps_inserted"])

    def close(self) -> None:
        """Flush, unmap, and end the actor."""
        try:
            self._call("close")
        finally:
            if self._remote:
                ray.kill(self._host)

    def _call(self, method: str, *args: Any) -> Any:
        """Call the host and wait for its answer."""
        bound = getattr(self._host, method)
        return wait_for(bound.remote(*args), f"the replay: {method}") if self._remote else bound(*args)


def _start(spec: ReplaySpec) -> Any:
    """Start the actor on this node, where the ring's file is, and have Ray restart it there."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # num_cpus=0: inside Tune every bundle is spoken for, and a gather is not worth a core.
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(ReplayHost)
    return actor.remote(replace(spec, run=uuid4().hex))
