"""What an earlier version left on the disk is read and continued: dataset, ring, checkpoint, config and rows.

The folder `written_before` was made at commit 18df4aa, before the package was divided into rooms, by
`dipole data collect Pendulum-v1 --transitions 600` and a run of both phases on it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dipole_ray import open_dataset
from dipole_ray.cli import main
from dipole_ray.files.checkpoint import read_checkpoint
from dipole_ray.serving.policy import load_policy

WRITTEN = Path(__file__).resolve().parent / "written_before"


@pytest.fixture
def run(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in a folder that its relative paths are right for."""
    shutil.copytree(WRITTEN, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here" / "run"


def test_a_run_goes_on_from_its_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "evaluation.json").read_text())
    assert main(["train", "--resume", str(run), "training.online_env_steps=200"]) == 0
    checkpoint = read_checkpoint(run / "checkpoints")
    # Every step beyond the 120 of the first part owes a quarter of an update; no earlier one is made again.
    assert checkpoint.metadata["env_steps"] == 200 and checkpoint.learner_steps == 40 + 200 // 4
    after = json.loads((run / "evaluation.json").read_text())
    assert after["offline"] == before["offline"] and after["online"] != before["online"]
    assert "run       " in capsys.readouterr().out


def test_its_policy_and_its_data_are_read(run: Path) -> None:
    trained = load_policy(run)
    assert (trained.learner_steps, trained.env_steps) == (70, 120)
    rows = next(open_dataset(run.parent / "data").iter_rows(chunk_rows=10))
    actions = trained.policy.sample_actions(rows["observations"][:5].copy(), num_candidates=2)
    assert actions.shape == (5, 1) and bool(actions.isfinite().all())
