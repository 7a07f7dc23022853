"""R2: what differs from the saved run is a hard error or stands in one warning that names it; nothing is silent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dipole_ray.collect import collect
from dipole_ray.errors import CheckpointError, ConfigError, DipoleError
from dipole_ray.files.checkpoint import STATE_FILE, _checksum, newest_valid, read_checkpoint
from dipole_ray.runs.config import load
from dipole_ray.runs.start import resume_run, start_run
from tests.cli.commands import write_config
from tests.rllib.small import config

pytestmark = pytest.mark.usefixtures("cluster", "no_pictures")

Change = Callable[[Path], list[str]]
"""Changes something about the run in a folder, and returns the settings to resume with."""


@pytest.fixture(scope="module")
def saved(cluster: None, pendulum: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run; tests work on copies."""
    folder = tmp_path_factory.mktemp("saved")
    write_config(
        folder / "small.yaml",
        data={"path": str(pendulum)},
        training={"offline_learner_steps": 20, "online_env_steps": 60},
        evaluation={"episodes": 1, "omegas": [1.0], "candidates": [1]},
    )
    return start_run(load(folder / "small.yaml", [f"folder={folder}"])).folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy of the run, free to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def settings(*overrides: str) -> Change:
    """Resume with other settings."""
    return lambda run: list(overrides)


def other_data(run: Path) -> list[str]:
    """Name another dataset of the same environment."""
    return [f"data.path={collect('Pendulum-v1', 500, 1, run / 'other', progress=False)[0]}"]


def moved_data(run: Path) -> list[str]:
    """Name the same dataset at another place."""
    path = Path(load(run / "run.yaml").data.path or "")
    return [f"data.path={shutil.copytree(path, run / 'moved')}"]


def replaced_data(run: Path) -> list[str]:
    """Put other files where the dataset was: the setting is the same."""
    path = moved_data(run)[0].removeprefix("data.path=")
    read_and_write_state(run, lambda state: state["metadata"]["run"]["data"].update(path=path))
    shutil.rmtree(path)
    shutil.move(collect("Pendulum-v1", 500, 1, run / "other", progress=False)[0], path)
    return [f"data.path={path}"]


def older_packages(run: Path) -> list[str]:
    """Say in the checkpoint that it was written with other packages."""
    read_and_write_state(run, lambda state: state["versions"].update(dipole_ray="0.0.1", torch="2.0.0"))
    return []


def more_threads(run: Path) -> list[str]:
    """Say in the checkpoint that the learner, left automatic, had eight threads."""
    read_and_write_state(run, lambda state: state["metadata"]["algorithm"].update(learner_num_threads=8))
    return []


def read_and_write_state(run: Path, change: Callable[[dict], None]) -> None:
    """Change `state.json` of the newest checkpoint, keeping it valid."""
    newest = newest_valid(run / "checkpoints")
    assert newest is not None
    state = json.loads((newest / STATE_FILE).read_text())
    change(state)
    del state["checksum"]
    (newest / STATE_FILE).write_text(json.dumps({**state, "checksum": _checksum(state)}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(settings("env.id=MountainCarContinuous-v0"), "env.id: Pendulum-v1 -> Mount", id="environment"),
        pytest.param(settings("seed=3"), "seed: 0 -> 3", id="seed"),
        pytest.param(settings("agent.hidden_dims=[8]"), "agent.hidden_dims: [16, 16] -> [8]", id="network"),
        pytest.param(settings("agent.num_critics=3"), "agent.num_critics: 2 -> 3", id="critics"),
        pytest.param(settings("agent.weight_scheme=cfgrl"), "agent.weight_scheme: dipole -> cfgrl", id="method"),
        pytest.param(settings("agent.train_bc=false"), "agent.train_bc: True -> False", id="another field"),
        pytest.param(
            settings("agent.observation_normalization=dataset"), "none -> dataset", id="what the networks are fed"
        ),
        pytest.param(settings("seed=3", "agent.num_critics=3"), "num_critics: 2 -> 3; seed: 0 -> 3", id="two at once"),
        pytest.param(other_data, "offline files", id="dataset"),
        pytest.param(replaced_data, "offline files", id="files under the same name"),
        pytest.param(settings("data.path=/nowhere"), "/nowhere", id="dataset that is gone"),
        pytest.param(settings("rollout.envs_per_worker=3"), "rollout.envs_per_worker=2", id="running episodes"),
        pytest.param(settings("training.replay_capacity=5000"), "capacity", id="replay capacity"),
    ],
)
def test_what_a_checkpoint_cannot_be_continued_with_is_an_error(
    run: Path, change: Change, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error names it, nothing in the run's folder changes, and the run can still be resumed as it was."""
    overrides = change(run)
    kept = ("checkpoints", "metrics.jsonl", "evaluation.json", "run.yaml")
    files = [path for name in kept for path in (run / name, *run.glob(f"{name}/**/*")) if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(DipoleError) as caught:
        resume_run(run, overrides)
    assert said in str(caught.value)
    assert not [text for text in caplog.messages if text.startswith("resumed")], "a warning said it went on"
    assert {path: path.read_bytes() for path in before} == before
    if change is not replaced_data:
        assert resume_run(run, []).finished


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(settings(), [], id="nothing"),
        pytest.param(settings("agent.beta=5"), ["agent.beta: 3.0 -> 5.0"], id="beta"),
        pytest.param(
            settings("agent.beta=5", "training.updates_per_env_step=1"),
            ["agent.beta: 3.0 -> 5.0", "training.updates_per_env_step: 0.5 -> 1.0"],
            id="two at once",
        ),
        pytest.param(moved_data, ["data.path: "], id="the same data elsewhere"),
        pytest.param(
            older_packages, ["version of dipole_ray: 0.0.1 -> ", "version of torch: 2.0.0 -> "], id="older versions"
        ),
        pytest.param(more_threads, ["learner_num_threads: 8 -> 1"], id="threads of another machine"),
    ],
)
def test_what_may_change_stands_in_one_warning(
    run: Path, change: Change, named: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert resume_run(run, change(run)).finished
    warnings = [text for text in caplog.messages if text.startswith("resumed with changes: ")]
    assert len(warnings) == bool(named)
    parts = warnings[0].removeprefix("resumed with changes: ").split("; ") if warnings else []
    assert len(parts) == len(named) and all(part.startswith(name) for part, name in zip(parts, named, strict=True))


def test_copy_of_a_run_continues_with_its_own_rows(saved: Path, run: Path) -> None:
    """The run it was copied from is gone on since, or broken, or away: the copy has a ring of its own."""
    original = Path(shutil.copytree(saved, run.parent / "original"))
    read_and_write_state(run, lambda state: state["metadata"].update(replay_directory=str(original / "replay")))
    ring = original / "replay" / "online.arrow"
    ring.write_bytes(b"\0" * ring.stat().st_size)
    assert resume_run(run, ["training.online_env_steps=120"]).finished
    assert read_checkpoint(run / "checkpoints").metadata["env_steps"] == 120


def test_run_that_never_saved_begins_anew_in_its_folder(
    run: Path, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines and rows of the first attempt are not counted; with damaged checkpoints nothing is thrown away."""
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints" / ".writing-000000020-1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="seed: 0 -> 3"):
        resume_run(run, ["seed=3"])
    assert resume_run(run, []).finished
    assert any("starts from the beginning" in text for text in caplog.messages)
    agents = [(newest_valid(folder / "checkpoints") or folder) / "agent.safetensors" for folder in (run, saved)]
    assert agents[0].read_bytes() == agents[1].read_bytes()
    lines = [(folder / "metrics.jsonl").read_text().count("\n") for folder in (run, saved)]
    assert lines[0] == lines[1]
    for file in run.glob("checkpoints/*/agent.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of its checkpoints is whole"):
        resume_run(run, [])


def test_rllibs_own_restore_refuses_and_names_too(
    pendulum: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    algorithm = config(pendulum).build_algo()
    try:
        path = algorithm.save_to_path(tmp_path / "saved")
        algorithm.restore_from_path(path)
        assert not [text for text in caplog.messages if text.startswith("resumed")]
    finally:
        algorithm.stop()
    algorithm = config(pendulum, beta=5.0).build_algo()
    try:
        algorithm.restore_from_path(path)
        assert [text for text in caplog.messages if text.startswith("resumed")] == [
            "resumed with changes: agent.beta: 3.0 -> 5.0"
        ]
    finally:
        algorithm.stop()
    other = config(pendulum)
    other.environment("Pendulum-v1", env_config={"max_episode_steps": 50})
    algorithm = other.build_algo()
    try:
        with pytest.raises(ConfigError, match=r"env\.max_episode_steps"):
            algorithm.restore_from_path(path)
    finally:
        algorithm.stop()
