"""Bad input to `dipole train`: status 2, one sentence that says what to do, and nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dipole_ray.cli import main
from dipole_ray.collect import collect
from dipole_ray.runs.config import presets
from tests.cli.commands import write_config
from tests.synthetic import ogbench_arrays, transition_columns, write_ogbench, write_table

TASK = "pointmaze-medium-navigate-singletask-task1-v0"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of Pendulum."""
    return collect("Pendulum-v1", 400, 0, tmp_path_factory.mktemp("data") / "out", progress=False)[0]


def files(folder: Path) -> list[str]:
    """Return every file under a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that runs `dipole WORDS`, checks how a refusal must look, and returns its sentence."""

    def refused(*words: str | Path) -> str:
        monkeypatch.chdir(tmp_path)
        before = files(tmp_path)
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        shown = capsys.readouterr()
        errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in shown.err + shown.out
        assert files(tmp_path) == before, "something was left behind"
        return errors[0]

    return refused


def truncated_npz(folder: Path, data: Path) -> list[str]:
    path = write_ogbench(folder / "maze.npz", ogbench_arrays(np.random.default_rng(0), [20, 30], 2, 2))
    path.write_bytes(path.read_bytes()[:-200])
    return [f"data.path={path}", f"env.id={TASK}"]


def other_environments_npz(folder: Path, data: Path) -> list[str]:
    path = write_ogbench(folder / "maze.npz", ogbench_arrays(np.random.default_rng(0), [20, 30], 2, 2))
    return [f"data.path={path}", "env.id=cube-single-play-singletask-v0"]


def non_finite_npz(folder: Path, data: Path) -> list[str]:
    arrays = ogbench_arrays(np.random.default_rng(0), [20, 30], 2, 2)
    arrays["observations"][3] = np.nan
    return [f"data.path={write_ogbench(folder / 'maze.npz', arrays)}", f"env.id={TASK}"]


def wide_actions_npz(folder: Path, data: Path) -> list[str]:
    arrays = ogbench_arrays(np.random.default_rng(0), [20, 30], 2, 2)
    arrays["actions"][7] = 1.5
    return [f"data.path={write_ogbench(folder / 'maze.npz', arrays)}", f"env.id={TASK}"]


def damaged_dataset(folder: Path, data: Path) -> list[str]:
    """A copy of a dataset, one byte in its middle flipped."""
    copy = folder / "copy"
    copy.mkdir()
    for path in data.iterdir():
        content = bytearray(path.read_bytes())
        if path.suffix == ".arrow":
            content[len(content) // 2] ^= 1
        (copy / path.name).write_bytes(bytes(content))
    return [f"data.path={copy}"]


def run_folder_is_a_file(folder: Path, data: Path) -> list[str]:
    (folder / "runs").write_text("in the way")
    return ["folder=runs"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (truncated_npz, "maze.npz"),
        (other_environments_npz, "the file was made in another environment"),
        (non_finite_npz, "maze.npz"),
        (wide_actions_npz, "[-1, 1]"),
        (damaged_dataset, "copy"),
        (run_folder_is_a_file, "choose another place with folder=PATH"),
        (lambda folder, data: ["folder=/proc/runs"], "run folder /proc/runs"),
        (lambda folder, data: [f"data.path={folder / 'nowhere'}"], "nowhere"),
        (lambda folder, data: [f"data.path={folder / 'nowhere.npz'}"], "no such file"),
        (lambda folder, data: ["agent.betta=3"], "agent.beta"),
        (lambda folder, data: ["agent.beta=steep"], "agent.beta"),
        (lambda folder, data: ["agent.beta=-1"], "agent.beta: found -1"),
        (lambda folder, data: ["agent.preset=smal"], "choose one of paper, small"),
        (lambda folder, data: ["training.offline_fraction=2"], "give a share in [0, 1]"),
        (lambda folder, data: ["env.id=Pendulun-v1"], "Pendulum-v1"),
        (lambda folder, data: ["env.id=MountainCarContinuous-v0"], "'MountainCarContinuous-v0' has 2 and 1"),
        (lambda folder, data: ["data.collect_transitions=100"], "drop one of them"),
        (lambda folder, data: ["data.path=null"], "there is no dataset"),
        (lambda folder, data: ["beta 3"], "beta 3"),
        (lambda folder, data: ["=3"], "=3"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    make: Callable[[Path, Path], list[str]],
    said: str,
    data: Path,
    tmp_path: Path,
    refuse: Callable[..., str],
) -> None:
    config = write_config(tmp_path / "run.yaml", data={"path": str(data), "cache": str(tmp_path / "cache")})
    overrides = make(tmp_path, data)
    assert said in refuse("train", config, *overrides)


def test_missing_and_malformed_files(tmp_path: Path, refuse: Callable[..., str]) -> None:
    assert "quickstart" in refuse("train", "quickstrat")
    assert "name a preset" in refuse("train")
    (tmp_path / "broken.yaml").write_text("agent: [unclosed")
    assert "not readable as YAML" in refuse("train", "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    assert "a mapping of sections is needed" in refuse("train", "list.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not readable as YAML" in refuse("train", "binary.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert "env" in refuse("train", "empty.yaml")
    assert "this is no run" in refuse("train", "--resume", tmp_path)


def test_nan_reward_and_wide_actions_are_refused_at_import(tmp_path: Path, refuse: Callable[..., str]) -> None:
    """Rows that training could not use never become a dataset."""
    for name, spoil, said in (("nan", np.nan, "rewards"), ("wide", 7.0, "actions")):
        columns = transition_columns(np.random.default_rng(0), [50, 60])
        columns["rewards" if name == "nan" else "actions"][4] = spoil
        path = write_table(tmp_path / f"{name}.parquet", columns)
        sentence = refuse(
            "data", "import", path, "--out", tmp_path / name,
            "--map", "rewards=rewards", "--map", "terminals=terminals", "--map", "timeouts=timeouts",
            "--map", "next_observations=next_observations",
        )  # fmt: skip
        assert said in sentence and name in sentence


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["train", "--help"], ["evaluate", "--help"], ["data", "--help"], ["doctor", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--resume" in shown and "--help-config" in shown and "--omega" in shown and "dipole doctor" in shown
    assert main(["train", "--help-config"]) == 0
    explained = capsys.readouterr().out
    for key in ("agent.beta", "training.updates_per_env_step", "env.id", "rollout.num_workers", "tracking.mlflow"):
        assert f"{key}: " in explained
    assert "agent.preset" in explained


def test_presets_that_the_help_names_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "dipole train quickstart" in capsys.readouterr().out and "quickstart" in presets()


def test_settings_may_follow_options(refuse: Callable[..., str]) -> None:
    """argparse alone refuses `FILE --address X KEY=VALUE`."""
    assert "agent.beta" in refuse("train", "quickstart", "--address", "local", "agent.betta=5")
    with pytest.raises(SystemExit, match="2"):
        main(["train", "quickstart", "--adress", "local"])
