"""The algorithm of a run folder: built from the run's config, on the ring that belongs to what it continues from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from dipole_ray.checkpoint import Checkpoint
from dipole_ray.config import RunConfig
from dipole_ray.rllib.algorithm import DIPOLE, RING_FILE
from dipole_ray.rllib.config import DIPOLEConfig


def build_algorithm(
    config: RunConfig, dataset: Path | None, folder: Path, checkpoint: Checkpoint | None, **learner: Any
) -> DIPOLE:
    """Return the algorithm, on the ring that belongs to the checkpoint, or else on an empty one.

    Args:
        config: The run's config.
        dataset: Folder of the offline dataset, or None.
        folder: The run's folder.
        checkpoint: What the caller restores into the algorithm next; None for a run that starts.
        **learner: RLlib's settings of the learner, such as `num_cpus_per_learner`.
    """
    replay = folder / "replay"
    rllib = DIPOLEConfig.from_run(config, None if dataset is None else str(dataset), str(replay))
    rllib.learners(**learner)
    if checkpoint is None:
        shutil.rmtree(replay, ignore_errors=True)  # of a run that ended before its first checkpoint
        return cast(DIPOLE, rllib.build_algo())
    ring = checkpoint.metadata["replay"]["online"]
    if ring is not None and config.training.replay_capacity is None:
        rllib.training(replay_capacity=ring["capacity"])  # a run that is made longer keeps the ring it has
    if (replay / RING_FILE).exists():
        checkpoint.metadata["replay_directory"] = str(replay)  # a copy of a run folder has a ring of its own
    return cast(DIPOLE, rllib.build_algo())
