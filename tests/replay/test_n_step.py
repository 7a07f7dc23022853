"""A sampled n-step transition is exactly what the definition says, and never crosses an end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipole_ray.columns import Schema
from dipole_ray.data.dataset import write_dataset
from dipole_ray.data.schema import Rows, concatenate
from dipole_ray.replay.n_step import gather_n_step
from dipole_ray.replay.replay import Replay
from tests.synthetic import random_trajectory

SCHEMA = Schema(3, 2)


def brute_force(trajectories: list[Rows], n_step: int, discount: float) -> list[dict[str, np.ndarray]]:
    """Walk every window step by step, as one would on paper."""
    expected = []
    for rows in trajectories:
        length = len(rows["rewards"]) - 1
        for start in range(length):
            total, steps = 0.0, 0
            while True:
                total += discount**steps * float(rows["rewards"][start + steps])
                steps += 1
                is_over = rows["masks"][start + steps - 1] == 0 or start + steps == length
                if is_over or steps == n_step:
                    break
            expected.append(
                {
                    "observations": rows["observations"][start],
                    "actions": rows["actions"][start],
                    "rewards": np.float32(total),
                    "masks": rows["masks"][start + steps - 1],
                    "next_observations": rows["observations"][start + steps],
                    "discounts": np.float32(discount**steps),
                }
            )
    return expected


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    n_step=st.integers(1, 9),
    discount=st.sampled_from([0.0, 0.9, 1.0]),
    mask_rate=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_windows_equal_the_definition(
    lengths: list[int], n_step: int, discount: float, mask_rate: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    trajectories = [random_trajectory(random, length, mask_rate=mask_rate) for length in lengths]
    rows = concatenate(trajectories)
    batch = gather_n_step(rows, np.flatnonzero(rows["remaining"]), discount ** np.arange(n_step + 1.0))
    for index, expected in enumerate(brute_force(trajectories, n_step, discount)):
        for name, value in expected.items():
            np.testing.assert_allclose(batch[name][index], value, rtol=1e-6, atol=1e-6, err_msg=name)
            assert batch[name].dtype == np.float32


@pytest.mark.parametrize("segment_rows", [10_000, 40])
def test_every_transition_is_drawn_and_no_other(tmp_path: Path, segment_rows: int) -> None:
    """One file or several: the same set of windows, all of them, drawn about equally often."""
    random = np.random.default_rng(0)
    trajectories = [random_trajectory(random, length) for length in (5, 17, 1, 30, 12, 9, 21)]
    write_dataset(tmp_path / "data", trajectories, SCHEMA, {}, segment_rows=segment_rows)
    replay = Replay(schema=SCHEMA, offline=[tmp_path / "data"], n_step=3, discount=0.9)
    expected = brute_force(trajectories, 3, 0.9)
    place = {row["observations"].tobytes(): index for index, row in enumerate(expected)}
    batch = replay.sample(95, num_batches=200)
    drawn = np.array([place[observation.tobytes()] for observation in batch["observations"]])
    assert batch.pop("is_offline").all()
    for name, values in batch.items():
        np.testing.assert_allclose(values, np.stack([row[name] for row in expected])[drawn], rtol=1e-6, atol=1e-6)
    counts = np.bincount(drawn, minlength=len(expected))
    assert len(counts) == replay.num_offline == 95
    assert counts.min() > 120 and counts.max() < 280
