"""A run of three phases: the backbone is cloned, then pi+ and pi- are adapters on it, offline and online."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipole_ray.collect import collect
from dipole_ray.files.checkpoint import read_checkpoint
from dipole_ray.plots.curves import read_metrics
from tests.cli.commands import dipole_here, write_config

pytestmark = pytest.mark.usefixtures("cluster")

ADAPTED = ("agent.adapters.rank=2", "agent.backbone.dtype=bfloat16", "training.clone_learner_steps=30")


def test_three_phases_are_trained_evaluated_drawn_and_resumed_exactly(tmp_path: Path) -> None:
    data = collect("Pendulum-v1", 1000, 0, tmp_path / "data", progress=False)[0]
    write_config(tmp_path / "small.yaml", data={"path": str(data)})
    whole = dipole_here("train", "small.yaml", *ADAPTED, "folder=whole", "checkpoint.keep=9", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    shorter = ("training.offline_learner_steps=0", "training.online_env_steps=0")  # the clone phase alone
    begun = dipole_here("train", "small.yaml", *ADAPTED, *shorter, "folder=parts", cwd=tmp_path)
    assert begun.returncode == 0, begun.stderr
    (run,), (parts,) = ((tmp_path / name).glob("small-*") for name in ("whole", "parts"))
    assert json.loads((parts / "evaluation.json").read_text()).keys() == {"clone"}
    resumed = dipole_here("train", "--resume", str(parts), "training.offline_learner_steps=60", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr

    ends = [read_checkpoint(one / "checkpoints" / "000000090") for one in (run, parts)]
    learned = ends[1].tensors.keys() - {"rollout"}
    assert len(learned) == 4  # the agent, two adapters and the backbone
    for name in learned:
        tensors = ends[1].tensors[name]
        assert all((tensor == ends[0].tensors[name][key]).all() for key, tensor in tensors.items()), name
    stored = json.loads((run / "evaluation.json").read_text())
    assert list(stored) == ["clone", "offline", "online"]
    assert {row["method"] for row in stored["clone"]} == {"BC", "DIPOLE"}
    assert len(stored["clone"]) < len(stored["offline"])
    metrics = read_metrics(run / "metrics.jsonl")
    assert metrics.cloned() == 30.0 and metrics.switch() == (90.0, 240)
    assert all(phase in whole.stderr + whole.stdout for phase in ("clone", "offline", "online"))
    assert (run / "curves.png").is_file()
    refused = dipole_here("train", "--resume", str(run), "training.clone_learner_steps=40", cwd=tmp_path)
    assert refused.returncode and "training.clone_learner_steps: 30 -> 40" in refused.stderr
