"""The replay in an actor of its own, behind the face that it has in this process, and the datasets that it samples.

The actor is the ring's only writer. Fragments come to it by way of the driver, which then owns
their rows and can hand them in again whoever dies; batches leave it as references that the driver only passes on.

When its process dies, Ray starts another one and repeats the calls that were not answered. The new process takes the
ring up again with every row that was acknowledged, knows whose inserts they are, and so counts none twice; batches
that are still to come are then drawn with random numbers that were not used before.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.offline.offline_data import OfflineData
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dipole_ray.collect.convert import converted
from dipole_ray.columns import Schema, require_fit
from dipole_ray.cores import usable_memory
from dipole_ray.data.dataset import read_manifest
from dipole_ray.envs.make import env_dims
from dipole_ray.envs.scenes import DRIVE
from dipole_ray.errors import CheckpointError, ConfigError, DatasetError, warn_once
from dipole_ray.files.checkpoint import Checkpoint
from dipole_ray.files.durable import format_bytes
from dipole_ray.replay.replay import Replay
from dipole_ray.rllib.sections import TrainingConfig
from dipole_ray.rllib.waiting import wait_for
from dipole_ray.spans import spanned

RING_FILE = "online.arrow"
MEMORY_SHARE = 0.7  # of the memory that a ring may take beside everything else

_log = logging.getLogger(__name__)


class ArrowOfflineData(OfflineData):
    """The datasets named by `input_`, as `DIPOLEConfig.offline_data` takes them; the replay verifies and samples them.

    Other data that `dipole data import` takes is converted once, for the environment, into a cache.

    RLlib's own class turns every row into a Python episode (36 k rows per CPU-second against 11 M for a gather).
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        inputs = config.input_ if isinstance(config.input_, list) else [config.input_]
        given = [Path(path).expanduser().resolve() for path in inputs]
        self.paths = tuple(str(converted(path, config.env_settings())) for path in given)
        schemas = [read_manifest(Path(path)).schema for path in self.paths]
        self.schema = schemas[0]
        for path, schema in zip(self.paths, schemas, strict=True):
            remedy = "datasets of one run must have the same observations and actions"
            require_fit(schema.as_seen, self.schema.as_seen, what=path, whom=self.paths[0], remedy=remedy)
        self.replay: Any = None

    def sample(self, num_samples: int, return_iterator: bool = False, num_shards: int = 0) -> dict[str, np.ndarray]:
        """Return `num_samples` transitions drawn by the algorithm's replay."""
        if return_iterator or num_shards > 1:
            raise DatasetError("DIPOLE samples whole batches, without iterators or shards: call sample(num_samples)")
        batch: Any = self.replay.sample(num_samples, 1)
        return dict(ray.get(batch)) if isinstance(batch, ray.ObjectRef) else batch


class ReplayClient:
    """The driver's side of the actor: what a run calls of a `Replay`."""

    def __init__(self, **settings: Any) -> None:
        """Open a replay with the settings of `Replay`, but a `run` of its own, on this node, where the ring is."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # num_cpus=0: inside Tune every bundle is spoken for, and a gather is not worth a core.
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Replay)
        self._replay = actor.remote(**settings, run=uuid4().hex)
        self._env_steps = 0
        self._call("sizes")  # opening errors surface here

    @spanned("insert")
    def insert(self, rows: Any, worker: int, incarnation: int, sequence: int) -> int:
        """Append one fragment, arrays or a reference to them, unless it is there already.

        Returns the transitions ever inserted, these included: right also when the first answer died with the actor.

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

    @spanned("sample")
    def sample(self, batch_size: int, num_batches: int) -> Any:
        """Return at once a reference to batches being gathered."""
        return self._replay.sample.remote(batch_size, num_batches)

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
            ray.kill(self._replay)

    def _call(self, method: str, *args: Any) -> Any:
        return wait_for([getattr(self._replay, method).remote(*args)], f"the replay: {method}")[0]


def open_replay(
    config: AlgorithmConfig, data: ArrowOfflineData | None, directory: Path, held: int | None = None
) -> Replay | ReplayClient:
    """Open files and ring, in an actor when anything else is remote; ConfigError where the data do not fit.

    `held` is the capacity of the ring that is there, see `ring_rows`.
    """
    training, agent, dims = config.training_settings(), config.agent_settings(), env_dims(config.env_settings())
    if data is not None:
        whom, remedy = f"'{config.env}'", "give the environment the data was collected in"
        require_fit(data.schema, dims.schema, what=data.paths[0], whom=whom, remedy=remedy, error=ConfigError)
    capacity = ring_rows(config, held) if training.online_env_steps else 0
    schema = data.schema if data is not None and data.schema.tables else dims.schema
    schema = schema.keeping(agent.kept_columns(schema.actions.shape[-1]))
    note_ring(schema, capacity)
    is_remote = config.num_env_runners > 0 or config.num_learners > 0
    replay = (ReplayClient if is_remote else Replay)(
        schema=schema,
        offline=() if data is None else data.paths,
        online=directory / RING_FILE if training.online_env_steps else None,
        capacity=capacity,
        n_step=agent.n_step,
        discount=agent.discount,
        offline_fraction=training.offline_fraction,
        seed=config.seed or 0,
    )
    if data is not None:
        data.replay = replay
    return replay


def note_ring(schema: Schema, capacity: int, memory: float | None = None) -> None:
    """Say what an online ring takes where observations are more than vectors; warn where the memory is too small.

    A ring is a mapped file, and batches are drawn from all over it: what the memory does not hold comes from the disk.
    """
    if schema.is_flat or not capacity:
        return
    size, memory = capacity * schema.row_bytes, usable_memory() if memory is None else memory
    takes = f"the online ring of {capacity} rows takes {format_bytes(size)}, {schema.row_bytes} bytes a row"
    _log.info("%s; each observation is stored once", takes)
    if size > MEMORY_SHARE * memory:
        fits = int(MEMORY_SHARE * memory / schema.row_bytes)
        found = f"this machine gives {format_bytes(int(memory))} of memory, so that batches would be read from the disk"
        warn_once(f"{takes}; {found}; set training.replay_capacity={fits} or less")


def copy_ring(replay: Replay | ReplayClient, source: Path, target: Path) -> bool:
    """Close `replay` and copy another ring from `source` over its own; False, and nothing done, where there is none."""
    ring, own = source / RING_FILE, target / RING_FILE
    if ring.resolve() == own.resolve() or not ring.exists() or not own.exists():
        return False
    replay.close()
    shutil.copyfile(ring, own)
    return True


def ring_rows(config: AlgorithmConfig, held: int | None = None) -> int:
    """Return the ring's rows: as set; or else as `held` by the ring there is; or else with room for all online steps.

    That is two rows a step, also of those by which an iteration overshoots: each may end its trajectory, and a closing
    row follows.
    """
    training: TrainingConfig = config.training_settings()
    fragment, envs = int(config.get_rollout_fragment_length()), config.num_envs_per_env_runner
    if config.env == DRIVE:  # each plan of a group is a trajectory with a closing row
        envs, fragment = envs * fragment * config.env_settings().driving.group_size, 1
    if (capacity := training.replay_capacity) is not None:
        if capacity < (least := envs * (fragment + 1)):
            found = f"a worker delivers {least} rows or more at a time ({envs} x {fragment} steps and closing rows)"
            remedy = f"set at least {2 * envs * fragment}, or null for all online steps"
            raise ConfigError(f"training.replay_capacity is {capacity}, and {found}; {remedy}")
        return capacity
    per_delivery: int = envs * fragment * max(1, config.num_env_runners)
    rows = 2 * (training.online_env_steps + training.env_steps_per_iteration + 2 * per_delivery)
    if held is not None and held < rows:
        _log.warning(
            "training.replay_capacity is null, but the online ring keeps the %d rows that it was made with, where %d "
            "hold all %d online steps in any case; should it be full, the oldest transitions are overwritten",
            held,
            rows,
            training.online_env_steps,
        )
    return rows if held is None else held


def require_present(checkpoint: Checkpoint, datasets: Sequence[str], here: Path | None = None) -> None:
    """Raise CheckpointError, which names all, where something that a checkpoint needs outside itself is missing.

    The ring may lie where the checkpoint says or, for a run that was copied, `here`.
    """
    needed = {f"the dataset {path}": Path(path).exists() for path in datasets}
    state, ring = checkpoint.metadata["replay"]["online"], Path(checkpoint.metadata["replay_directory"]) / RING_FILE
    if state is not None and state["rows_written"]:
        needed[f"the online rows {ring}"] = ring.exists() or (here is not None and (here / RING_FILE).exists())
    if not all(needed.values()):
        found = ", ".join(f"{what} ({'there' if is_there else 'missing'})" for what, is_there in needed.items())
        raise CheckpointError(
            f"{checkpoint.path} needs outside itself {found}: bring back what is missing, or say where it is by "
            "DIPOLE.from_checkpoint(path, input_=FOLDER, replay_directory=FOLDER); to act, load_policy needs neither"
        )
