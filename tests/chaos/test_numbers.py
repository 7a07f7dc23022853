"""N1 and N2 where workers and learner are processes of their own: what is not finite is neither stored nor applied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dipole_ray.columns import Schema
from dipole_ray.data.dataset import write_dataset
from dipole_ray.errors import NonFiniteError
from tests.chaos.conftest import Measured
from tests.chaos.kit import assert_every_row_once, config, ring_rows, train_until
from tests.synthetic import random_trajectory

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("cluster")]

WANTED = 3


def test_nan_of_one_worker_of_four(faults: Path, measured: Measured) -> None:
    """Every 100th step of one worker's environments gives NaN: that row is rejected, counted, and never stored."""
    algorithm = config(workers=4).build_algo()
    (faults / "nan").touch()
    dropped = healthy = 0.0
    while dropped < WANTED:
        assert algorithm.env_steps < 20_000, "no NaN arrived"
        algorithm.train()
        dropped += algorithm.group_metrics["rollout/dropped_env_steps"]
        healthy = max(healthy, algorithm.experience.num_workers)
    (faults / "nan").unlink()
    train_until(algorithm, lambda a: a.learner_steps > 50)
    rows = ring_rows(algorithm.replay_directory / "online.arrow")
    assert all(np.isfinite(values).all() for values in rows.values())
    assert_every_row_once(algorithm)
    assert healthy == 4, "a NaN costs a row, not a worker"
    assert algorithm.group_metrics["system/skipped_updates"] == 0
    measured("N1", "rows with NaN from a worker, stored", 0, "rows", bar="0")
    measured("N1", "rows with NaN from a worker, rejected and counted", dropped, "rows", bar=f">= {WANTED}")
    algorithm.stop()


def test_a_learner_process_that_gives_up_says_why_and_where_the_batch_is(tmp_path: Path, measured: Measured) -> None:
    pieces = [random_trajectory(np.random.default_rng(seed), 50, 2, 2) for seed in range(8)]
    for piece in pieces:  # finite, so it may be stored; its square is not
        piece["rewards"] = np.where(piece["remaining"] > 0, 1e30, 0.0).astype(np.float32)
    write_dataset(tmp_path / "data", pieces, Schema(2, 2), {})
    run = tmp_path / "run"
    algorithm = config(
        workers=1, dataset=tmp_path / "data", offline_learner_steps=1000, replay_directory=str(run / "replay")
    ).build_algo()
    before = algorithm.learner.agent_state()
    with pytest.raises(NonFiniteError, match="10 updates in a row, none of them applied") as raised:
        for _ in range(5):
            algorithm.train()
    path = run / "failures" / "nonfinite-batch-10.safetensors"
    assert str(path) in str(raised.value)
    assert load_file(path)["rewards"].max() >= 1e30
    after = algorithm.learner._read("agent_state")  # another call, submitted ahead, has failed as well
    kept = [name for name in before if name.startswith(("networks.", "optimizer."))]
    changed = [name for name in kept if not bool((before[name] == after[name]).all())]
    assert kept and not changed
    measured("N2", "tensors changed by ten updates that were not finite", len(changed), "tensors", bar="0")
    algorithm.stop()
