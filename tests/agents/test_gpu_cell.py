"""`benchmarks.gpu.cell` trains where there is neither a simulator nor Ray; what it saves acts where there are."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu.cell import carried, fields, learner, policies
from dipole_ray.columns import Schema
from dipole_ray.data.dataset import write_dataset
from dipole_ray.data.schema import Rows, close_trajectory, concatenate
from dipole_ray.replay.replay import Replay
from dipole_ray.serving.policy import TrainedPolicy, load_policy

SCHEMA, STATE = Schema(28, 5), np.zeros((1, 28), np.float32)
MISSING = "ray", "mujoco", "ogbench", "gymnasium", "dm_control", "mlflow"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """Return a dataset that was packed and unpacked, and its rows as they were."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("cell")
    pieces = [
        close_trajectory(
            rng.normal(size=(steps + 1, 28)).astype(np.float32),
            rng.uniform(-1, 1, (steps, 5)).astype(np.float32),
            rng.normal(size=steps).astype(np.float32),
            np.ones(steps, np.float32),
        )
        for steps in (30, 50)
    ]
    write_dataset(folder / "made", pieces, SCHEMA, {"format": "test"})
    carried.pack(folder / "made", folder / "rows.parquet")
    carried.unpack(folder / "rows.parquet", folder / "rows")
    return folder / "rows", concatenate(pieces)


def test_what_travels_is_bitwise_what_was_packed_and_its_transitions_are_the_replays(data: tuple[Path, Rows]) -> None:
    folder, rows = data
    replay = Replay(schema=SCHEMA, offline=[folder])
    theirs, ours = replay._gather(np.arange(replay.num_offline)), learner.transitions(rows)
    assert len(ours["rewards"]) == 80
    for name, column in ours.items():
        assert np.array_equal(column, theirs[name]), name


def brought_home(there: Path, run: str, here: Path) -> TrainedPolicy:
    """Return the policy of a run that was packed where it learned, and unpacked."""
    here.mkdir()
    policies.pack([there / run], there, here / "packed.tar")
    policies.unpack(here / "packed.tar", here)
    return load_policy(here / run)


def test_a_policy_of_the_cell_acts_after_it_was_brought_home_as_it_did_where_it_learned(
    data: tuple[Path, Rows], tmp_path: Path
) -> None:
    batch = learner.transitions(data[1])
    agent = learner.paper_agent(SCHEMA, 0, "cpu", hidden_dims=(8,), batch_size=16)
    saved = {4: lambda: policies.save(tmp_path / "cell", agent, SCHEMA)}
    learner.train(agent, batch, 4, time.time() + 60, at=saved, seed=0, call=2)
    assert learner.advantages(agent, batch).shape == (80,)
    home = brought_home(tmp_path, "cell", tmp_path / "here")
    assert home.learner_steps == 4 and home.env.id == policies.ENVIRONMENT
    for way in ({"omega": 4.0}, {"policy": "bc"}):
        actions = [
            each.sample_actions(STATE, num_candidates=32, generator=noise, **way) for each in (agent, home.policy)
        ]
        torch.testing.assert_close(*actions)


@pytest.mark.slow
def test_adapters_of_the_study_act_after_they_were_brought_home_as_the_backbone_they_lie_on(
    data: tuple[Path, Rows], tmp_path: Path
) -> None:
    folder, backbone, end = data[0], tmp_path / "backbone", time.time() + 60
    fields.train("clone", 0, folder, backbone, marks=[2], until=end)
    found = fields.train("lora-4", 0, folder, tmp_path / "lora-4-seed0", marks=[1, 2], until=0.0, backbone=backbone)
    assert found["updates"] == 0  # no time was left, and what there is is saved
    adapted = brought_home(tmp_path, "lora-4-seed0", tmp_path / "here").policy
    # Untrained adapters add nothing: guided by any omega the policy is the backbone.
    ways = ({"omega": 1.0}, {"policy": "bc"})
    torch.testing.assert_close(
        *(adapted.sample_actions(STATE, num_candidates=1, generator=noise, **way) for way in ways)
    )


def noise(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_it_needs_neither_ray_nor_a_simulator() -> None:
    lines = ["import sys", f"sys.modules.update(dict.fromkeys({MISSING}))", "import benchmarks.gpu.cell.__main__"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=Path(__file__).parents[2], timeout=600)
