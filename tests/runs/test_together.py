"""Seeds in one process: each run is what it would be alone, bitwise, or to rounding where updates are stacked."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dipole_ray.collect import collect
from dipole_ray.errors import ConfigError
from dipole_ray.files.checkpoint import read_checkpoint
from dipole_ray.rllib.learner import DIPOLELearner
from dipole_ray.runs import together
from dipole_ray.runs.config import RunConfig, load
from dipole_ray.runs.run import Run
from dipole_ray.runs.start import resume_runs, start_run, start_runs
from dipole_ray.serving.policy import load_policy
from dipole_ray.tracking.metrics_file import read_metrics
from tests.cli.commands import dipole_here, write_config
from tests.runs.test_run import final_agent, iterations, only


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a config that names it."""
    folder = tmp_path_factory.mktemp("user")
    data = collect("Pendulum-v1", 1000, 0, folder / "data", progress=False)[0]
    write_config(folder / "small.yaml", data={"path": str(data)})
    return folder


@pytest.fixture(scope="module")
def alone(cluster: None, folder: Path) -> dict[int, Path]:
    """Two uninterrupted runs of one seed each, by seed."""
    return {seed: start_run(load(folder / "small.yaml", [f"seed={seed}", f"folder={folder}/alone"])).folder
            for seed in (0, 3)}  # fmt: skip


def stack_updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stack updates as on a GPU; return the list that is told how many members each call had."""
    seen: list[int] = []
    whole = DIPOLELearner.update_on

    def update_on(self: DIPOLELearner, *args: Any, **kwargs: Any) -> Any:
        report, policy = whole(self, *args, **kwargs)
        seen.append(int(report.metrics.get("system/stacked_members", 1)))
        return report, policy

    monkeypatch.setattr(DIPOLELearner, "update_on", update_on)
    monkeypatch.setattr(together, "can_stack", lambda sessions: True)
    return seen


@pytest.fixture(scope="module")
def stacked(cluster: None, folder: Path) -> dict[int, Path]:
    """The uninterrupted runs of two seeds whose updates are stacked, by seed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = stack_updates(monkeypatch)
        runs = start_runs(load(folder / "small.yaml", ["seeds=[0,3]", f"folder={folder}/stacked"]))
    assert set(seen) == {2}, "in both phases, each update is one step of both"
    return {run.config.seed: run.folder for run in runs}


def seeds_of(folder: Path, pattern: str) -> dict[int, Path]:
    """Return the folders of runs by seed."""
    return {int(path.name.rpartition("-")[2]): path for path in folder.glob(pattern)}


def test_each_seed_is_bitwise_the_run_alone(folder: Path, alone: dict[int, Path]) -> None:
    ended = dipole_here("train", "small.yaml", "seeds=[0,3]", "folder=both", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    runs = seeds_of(folder, "both/small-*-seed-*")
    assert runs.keys() == {0, 3}
    for seed, run in runs.items():
        assert final_agent(run) == final_agent(alone[seed])
        assert (run / "evaluation.json").read_text() == (alone[seed] / "evaluation.json").read_text()
        assert iterations(run) == iterations(alone[seed])
        settings = [load(each / "run.yaml").changed(folder="", data={"cache": ""}) for each in (run, alone[seed])]
        assert settings[0] == settings[1]
        assert list(run.glob("*.png")), "pictures"
        assert str(run.relative_to(folder)) in ended.stdout
    assert "seeds=[0,3]" in ended.stdout and "agent.beta=9" in ended.stdout
    assert load_policy(runs[3]).policy.sample_actions(np.zeros((1, 3), np.float32)).shape == (1, 1)


@pytest.mark.slow
def test_stacked_runs_are_those_alone_to_rounding(alone: dict[int, Path], stacked: dict[int, Path]) -> None:
    for seed, run in stacked.items():
        left, right = (read_checkpoint(each / "checkpoints") for each in (alone[seed], run))
        for name, tensor in left.tensors["agent"].items():
            torch.testing.assert_close(right.tensors["agent"][name], tensor, rtol=1e-3, atol=1e-4, msg=name)
        assert right.metadata["replay"]["sampler"] == left.metadata["replay"]["sampler"]
        assert iterations(run) == iterations(alone[seed])


@pytest.mark.slow
@pytest.mark.parametrize("is_stacked", [False, True])
def test_a_stop_and_a_resume_of_all_change_nothing(
    folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, is_stacked: bool
) -> None:
    whole = request.getfixturevalue("stacked" if is_stacked else "alone")
    if is_stacked:
        stack_updates(monkeypatch)
    update, calls = DIPOLELearner.update_on, []

    def update_on(self: DIPOLELearner, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        if len(calls) == 3:  # in the middle of an iteration; stacked, between the calls of the two
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, *args, **kwargs)

    monkeypatch.setattr(DIPOLELearner, "update_on", update_on)
    first = start_runs(load(folder / "small.yaml", ["seeds=[0,3]", f"folder={folder}/stopped-{is_stacked}"]))
    assert not any(run.finished for run in first) and first[0].stops.exit_status == 143
    assert 0 < sum(run.algorithm.learner_steps for run in first) < 120
    resumed = resume_runs([run.folder for run in first], [])
    assert all(run.finished for run in resumed)
    for run in resumed:
        assert final_agent(run.folder) == final_agent(whole[run.config.seed])


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_fails_ends_alone(folder: Path, alone: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    logged = Run.log

    def log(self: Run, *args: Any, **kwargs: Any) -> None:
        if self.config.seed == 1 and self.steps[0] >= 40:
            raise OSError("as a disk that is pulled out")
        logged(self, *args, **kwargs)

    monkeypatch.setattr(Run, "log", log)
    with pytest.raises(OSError, match="pulled out") as raised:
        start_runs(load(folder / "small.yaml", ["seeds=[1,3]", f"folder={folder}/failing"]))
    assert "1 of 2 runs" in "".join(raised.value.__notes__)
    run = only(folder, "failing/small-*-seed-3")
    assert final_agent(run) == final_agent(alone[3])
    assert read_metrics(only(folder, "failing/small-*-seed-1"))[-1]["learner_steps"] < 60


@pytest.mark.usefixtures("no_pictures")
def test_a_stacked_run_whose_updates_are_not_finite_ends_alone(
    folder: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = stack_updates(monkeypatch)
    update = DIPOLELearner.update_on

    def update_on(self: DIPOLELearner, batches: Any, *args: Any, **kwargs: Any) -> Any:
        if self.config.seed == 1:
            batches = {**batches, "rewards": batches["rewards"] * float("nan")}
        return update(self, batches, *args, **kwargs)

    monkeypatch.setattr(DIPOLELearner, "update_on", update_on)
    config = load(folder / "small.yaml", ["seeds=[0,1,3]", f"folder={folder}/diverging"])
    with pytest.raises(Exception, match="10 updates in a row"):
        start_runs(config)
    assert seen[:2] == [3, 3] and set(seen[2:]) == {2}, "the others go on as two"
    for seed in (0, 3):
        run = only(folder, f"diverging/small-*-seed-{seed}")
        assert read_checkpoint(run / "checkpoints").metadata["env_steps"] == 240
    assert list(folder.glob("diverging/small-*-seed-1/failures/*.safetensors"))


@pytest.mark.usefixtures("no_pictures")
def test_runs_whose_updates_cannot_be_stacked_go_on_alone(
    folder: Path, alone: dict[int, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a network's operation, or a graph's capture, does not allow it."""
    seen = stack_updates(monkeypatch)
    monkeypatch.setattr(torch, "vmap", lambda *args, **kwargs: 1 / 0)
    words = ["seeds=[0,3]", f"folder={folder}/unstacked", "training.online_env_steps=0"]
    runs = start_runs(load(folder / "small.yaml", words))
    assert "updates are not stacked, each run goes on alone: ZeroDivisionError" in caplog.text and set(seen) == {1}
    assert [run.steps for run in runs] == [(60, 0), (60, 0)]


def test_seeds_that_contradict_others_are_refused_with_the_remedy(folder: Path) -> None:
    for words, message in (
        (["seeds=[0,1]", "seed=2"], "drop one"),
        (["seeds=[1,1]"], "different whole numbers"),
        (["seeds=[0,1]", "rollout.num_workers=1"], r"rollout.num_workers=0 learner.remote=false"),
        (["seeds=[0,1]", "learner.remote=true"], r"rollout.num_workers=0 learner.remote=false"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(folder / "small.yaml", words)
    with pytest.raises(ConfigError, match="start_runs"):
        start_run(load(folder / "small.yaml", ["seeds=[0,1]"]))
    assert "seeds" not in RunConfig.from_mapping(load(folder / "small.yaml").to_mapping()).to_mapping()
