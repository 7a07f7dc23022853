"""Paths are meant as they are given, from wherever the process works later."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ray import tune

from dipole_ray import DIPOLE, DIPOLEConfig, Replay, open_dataset, settings
from dipole_ray.bench.suite import from_mapping as suite_of
from dipole_ray.collect import collect
from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.files.checkpoint import newest_valid
from dipole_ray.runs.config import PLACES, RunConfig
from dipole_ray.runs.start import resume_run, start_run
from dipole_ray.serving.policy import load_policy
from dipole_ray.sweep.plan import from_mapping
from dipole_ray.tracking.tracker import Tracker, TrackingConfig, located_uri
from tests.rllib.small import config, train_until

SMALL: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "max_episode_steps": 20},
    "data": {"path": "data", "cache": "cache"},
    "agent": {"preset": "small", "hidden_dims": [8, 8], "batch_size": 8, "denoise_steps": 2},
    "training": {"offline_learner_steps": 10, "online_env_steps": 20, "env_steps_per_iteration": 20},
    "evaluation": {"episodes": 1, "omegas": [1.0], "candidates": [1], "bc": False},
    "tracking": {"mlflow": False},
}


@pytest.fixture
def elsewhere(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a dataset `data`, and another one beside it."""
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    collect("Pendulum-v1", 500, 0, Path("made"), progress=False)[0].rename("data")
    return tmp_path / "elsewhere"


@pytest.mark.usefixtures("no_pictures")
def test_a_run_with_relative_paths_is_resumed_from_another_working_directory(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path.cwd()
    run = start_run(RunConfig.from_mapping({**SMALL, "folder": "runs"}))
    assert run.finished and run.folder.parent == here / "runs", "the printed command serves anywhere"
    written = yaml.safe_load((run.folder / "run.yaml").read_text())
    assert (written["data"]["path"], written["data"]["cache"]) == (str(here / "data"), str(here / "cache"))
    monkeypatch.chdir(elsewhere)
    resumed = resume_run(Path("../here/runs") / run.folder.name, ["training.online_env_steps=40"])
    assert resumed.finished and resumed.algorithm.env_steps >= 40


@pytest.mark.usefixtures("no_pictures")
def test_acting_from_a_checkpoint_needs_neither_ring_nor_dataset(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(RunConfig.from_mapping({**SMALL, "folder": "runs"}))
    shutil.rmtree("data")
    shutil.rmtree(run.folder / "replay")
    monkeypatch.chdir(run.folder.parent.parent)
    assert load_policy(f"runs/{run.folder.name}").path.is_absolute()
    with pytest.raises(CheckpointError, match=r"needs outside itself .*data \(missing\), .*online.arrow \(missing\)"):
        DIPOLE.from_checkpoint(newest_valid(run.folder / "checkpoints"))


def test_an_algorithm_with_relative_paths_is_continued_from_another_working_directory(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path.cwd()
    algorithm = config(Path("data"), online_env_steps=200).training(replay_directory="ring").build_algo()
    train_until(algorithm, lambda one: one.env_steps > 0)
    path = algorithm.save_to_path("checkpoints/mine")
    algorithm.stop()
    monkeypatch.chdir(elsewhere)
    DIPOLE.from_checkpoint(path).stop()
    (here / "data").rename(here / "moved")
    (here / "ring").rename(here / "moved-ring")
    with pytest.raises(CheckpointError, match=r"data \(missing\), the online rows .*ring.* \(missing\): bring back"):
        DIPOLE.from_checkpoint(path)
    again = DIPOLE.from_checkpoint(path, input_="../here/moved", replay_directory="../here/moved-ring")
    assert again.env_steps == algorithm.env_steps and again.replay.sizes() == algorithm.replay.sizes()
    again.stop()
    with pytest.raises(ConfigError, match="'policy_ids' is read by nothing"):
        DIPOLE.from_checkpoint(path, policy_ids=["one"])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("data", "{}/data"),
        (Path("data"), "{}/data"),
        (["a", Path("/b")], ["{}/a", "/b"]),
        (tune.grid_search(["a", "/b"]), {"grid_search": ["{}/a", "/b"]}),
    ],
)
def test_a_dataset_is_meant_relative_to_where_it_is_given(given: Any, meant: Any) -> None:
    here = str(Path.cwd())
    text = yaml.safe_load(yaml.safe_dump(meant).replace("{}", here))
    assert DIPOLEConfig().offline_data(input_=given).input_ == text
    assert DIPOLEConfig().update_from_dict({"input": given}).input_ == text
    assert DIPOLEConfig().training(replay_directory="ring").replay_directory == f"{here}/ring"


def test_a_choice_of_datasets_is_meant_relative_to_where_it_is_given() -> None:
    made = DIPOLEConfig().offline_data(input_=tune.choice(["a", "/b"]))
    assert made.input_.categories == [f"{Path.cwd()}/a", "/b"]


def test_an_input_that_is_no_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="give the folder of a dataset, or a list of folders"):
        DIPOLEConfig().environment("Pendulum-v1").offline_data(input_=lambda context: None).validate()


# Settings that are texts, and name no file; those of the agent are names of ways to compute.
NO_PLACES = {"name", "env.id", "env.success_timing", "learner.matmul_precision", "tracking.experiment"}


def test_every_setting_that_is_a_place_is_absolute_in_runs_sweeps_and_suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {doc.key for doc in settings.describe(RunConfig) if doc.type.removesuffix(" or null") in ("text", "a path")}
    texts = {key for key in texts if not key.startswith("agent.") or key.endswith(".path")}
    lists = {"env.driving.scenes", "env.driving.validation"}
    assert (texts - NO_PLACES) | lists == set(PLACES), "a text is a place, or is named above"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///of-the-environment.db")
    run = {**SMALL, "folder": "runs", "data": {"path": "data", "cache": "~/cache"}}
    run["tracking"] = {"mlflow": True, "tracking_uri": "sqlite:///mlflow.db"}
    sweep = {"sweep": {"rungs": 2}, "space": {"data.path": {"grid": ["one", "/two"]}}, "run": run}
    suite = {"suite": {"seeds": [0], "evaluations": 1}, "base": {**run, "env": {}}, "methods": {"m": {}}}
    suite["base"]["agent"] = {**run["agent"], "num_candidates": 1, "omega": 1.0}
    suite["tasks"] = {"pendulum": {"env": run["env"], "full_score": 0, "zero_score": -1000}}
    plan, job = from_mapping(sweep), suite_of(suite).job("pendulum", "m", 0)
    monkeypatch.chdir("/")
    found = [plan.run_config({}), plan.run_config(plan.trials()[0]), job.located]
    assert [one.data.path for one in found] == [f"{tmp_path}/data", f"{tmp_path}/one", f"{tmp_path}/data"]
    for one in found:
        assert one.tracking.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
        assert one.data.cache == str(Path.home() / "cache") and Path(one.folder).is_relative_to(tmp_path / "runs")
    assert TrackingConfig().resolve_uri(tmp_path) == "sqlite:////of-the-environment.db"


def test_what_is_opened_by_a_relative_path_works_from_another_working_directory(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these goes to its files again later: to insert, to recover, to deliver, to read in another process."""
    here = Path.cwd()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    data = open_dataset("data")
    replay = Replay(schema=data.schema, offline=["data"], online="ring.arrow", capacity=100, run="mine")
    tracker = Tracker(Path("run"), TrackingConfig(), run_name="run", parameters={})
    monkeypatch.chdir(elsewhere)
    rows = {name: column[:5] for name, column in next(data.iter_rows()).items()}
    rows["remaining"] = np.arange(4, -1, -1, dtype=rows["remaining"].dtype)
    replay.insert(rows, 1, 0, 0)
    tracker.artifact(here / "data")
    tracker.close()
    replay.close()
    assert data.directory == here / "data" and not list(elsewhere.iterdir())
    assert json.loads((here / "run" / "mlflow.json").read_text())["folder"] == str(here / "run")
    again = Replay(schema=data.schema, online=here / "ring.arrow", capacity=100, run="mine")
    assert again.sizes()["online"] == 4
    again.close()


def test_addresses_of_mlflow_that_name_files_are_absolute() -> None:
    here = Path.cwd()
    assert located_uri("sqlite:///runs.db") == f"sqlite:///{here}/runs.db"
    assert located_uri("file:mlruns") == f"file:{here}/mlruns"
    assert located_uri("mlruns") == f"{here}/mlruns"
    for same in ("sqlite:////a/runs.db", "file:///a", "http://host:5000", "databricks", "/a"):
        assert located_uri(same) == same
