"""Stored actions are the environment's with its bounds at -1 and 1, in every format, or it is said why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from dipole_ray.columns import Schema
from dipole_ray.data.dataset import open_dataset, write_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import concatenate
from dipole_ray.data.sources.actions import ActionScale
from dipole_ray.data.sources.formats import FORMATS
from dipole_ray.data.sources.reading import Arrays, ImportReport, Reading
from dipole_ray.envs.make import EnvConfig, env_dims
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.runs.config import DataConfig
from dipole_ray.runs.prepare import prepare_dataset
from tests.data.test_exorl import dipole
from tests.data.test_inspect import SCHEMA, good
from tests.synthetic import ogbench_arrays, transition_columns, write_d4rl, write_ogbench, write_table

BOUNDS = np.float32([[-0.4, -3.0], [0.4, 1.0]])  # of the environment, least and greatest
ENV = "NarrowBounds-v0"


class NarrowBounds(gymnasium.Env):
    """Three numbers observed, two actions of other ranges than [-1, 1]."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-9, 9, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(*BOUNDS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(3, np.float32), 0.0, False, False, {}


gymnasium.register(ENV, NarrowBounds, max_episode_steps=50)
UNIT = "UnitBounds-v0"
gymnasium.register(UNIT, lambda: gymnasium.wrappers.RescaleAction(NarrowBounds(), -1, 1), max_episode_steps=50)


def recorded(change: Callable[[np.ndarray], np.ndarray] = lambda actions: actions) -> Arrays:
    columns = transition_columns(np.random.default_rng(0), [50] * 30)
    columns["timeouts"] |= columns["terminals"]
    low, high = BOUNDS
    columns["actions"] = change(low + (columns["actions"] + 1) / 2 * (high - low)).astype(np.float32)
    return columns


def ogbench_of(columns: Arrays) -> Arrays:
    arrays = ogbench_arrays(np.random.default_rng(0), [50] * 30, 3) | {"rewards": np.zeros(30 * 51, np.float32)}
    arrays["actions"] = np.insert(columns["actions"], np.arange(50, 1501, 50), 0, axis=0)
    return arrays


FILES: dict[str, Callable[[Path, Arrays], Path]] = {
    "parquet": lambda folder, columns: write_table(folder / "own.parquet", columns),
    "feather": lambda folder, columns: write_table(folder / "own.feather", columns),
    "npz": lambda folder, columns: write_ogbench(folder / "own.npz", ogbench_of(columns)),
    "hdf5": lambda folder, columns: write_d4rl(folder / "own.hdf5", columns),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_bounds_of_the_environment_become_the_unit_range_in_every_format(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = recorded()
    path = FILES[kind](tmp_path, columns)
    assert dipole("import", path, "--env", ENV, "--out", tmp_path / "out") == 0
    assert "scaled to [-1, 1] from [-0.4, -3] ... [0.4, 1]" in capsys.readouterr().out
    dataset = open_dataset(tmp_path / "out")
    rows = concatenate(list(dataset.iter_rows()))
    stored = rows["actions"][rows["remaining"] > 0]
    low, high = BOUNDS
    np.testing.assert_allclose(low + (stored + 1) / 2 * (high - low), columns["actions"], atol=1e-4)
    assert np.allclose(dataset.source["action_bounds"], BOUNDS)
    for place in (path, tmp_path / "out"):
        bounds = (low.astype(float), high.astype(float))
        assert not [
            f
            for f in inspect_dataset(place, Reading(action_bounds=bounds)).findings
            if f.level != "info" and f.where != "rewards"
        ]


@pytest.mark.parametrize("kind", FILES)
def test_what_passes_a_bound_is_refused_or_clipped_and_counted(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def noisy(actions: np.ndarray) -> np.ndarray:
        actions[[7, 100], 1] = 1.25, -3.5
        return actions

    path = FILES[kind](tmp_path, recorded(noisy))
    told = r"[12] of \d+ actions lie outside \[-3, 1\], the first at row 7 \(1.25 in dimension 1\).*--clip"
    with pytest.raises(DatasetError, match=told):
        dipole("import", path, "--env", ENV, "--out", tmp_path / "out")
    assert dipole("import", path, "--env", ENV, "--out", tmp_path / "out", "--clip-actions") == 0
    assert "2 with an action clipped to its bounds" in capsys.readouterr().out
    rows = concatenate(list(open_dataset(tmp_path / "out").iter_rows()))
    assert rows["actions"][rows["remaining"] > 0][[7, 100], 1] == pytest.approx([1, -1], abs=1e-4)
    assert open_dataset(tmp_path / "out").source["clip_actions"] is True
    assert dipole("inspect", path, "--env", ENV) == 1 and dipole("inspect", path, "--env", ENV, "--clip-actions") == 0
    assert "2 transitions have an action outside its bounds" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="leave them out, or inspect its original"):
        dipole("inspect", tmp_path / "out", "--clip-actions")


@pytest.mark.parametrize("kind", FILES)
def test_actions_that_were_scaled_before_are_taken_when_it_is_said(tmp_path: Path, kind: str) -> None:
    columns = recorded(lambda actions: (actions - BOUNDS[0]) / (BOUNDS[1] - BOUNDS[0]) * 2 - 1)
    path = FILES[kind](tmp_path, columns)
    with pytest.raises(DatasetError, match=r"outside \[-0.4, 0.4\].*--actions-are unit if they were scaled before"):
        dipole("import", path, "--env", ENV, "--out", tmp_path / "out")
    assert dipole("import", path, "--env", ENV, "--out", tmp_path / "out", "--actions-are", "unit") == 0
    rows = concatenate(list(open_dataset(tmp_path / "out").iter_rows()))
    np.testing.assert_allclose(rows["actions"][rows["remaining"] > 0], columns["actions"], atol=1e-4)


def test_bounds_that_do_not_fit_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_table(tmp_path / "own.parquet", recorded(lambda actions: actions * [1, 0.3]))
    assert dipole("import", path, "--out", tmp_path / "unknown") == 0
    assert "nothing says the bounds of the actions" in capsys.readouterr().out
    assert dipole("import", path, "--env", ENV, "--out", tmp_path / "known") == 0
    capsys.readouterr()
    for folder, env, told in (
        ("unknown", ENV, "actions were imported without them, as lying in [-1, 1] already"),
        (
            "known",
            UNIT,
            "actions were scaled to [-1, 1] from [-0.4, -3] ... [0.4, 1], and the environment's",
        ),
    ):
        assert dipole("inspect", tmp_path / folder, "--env", env) == 0
        assert told in " ".join(capsys.readouterr().out.split())
        prepare_dataset(DataConfig(path=str(tmp_path / folder)), EnvConfig(id=env))
        assert told in caplog.text
        caplog.clear()
    prepare_dataset(DataConfig(path=str(tmp_path / "known")), EnvConfig(id=ENV))
    assert not caplog.text


def test_numbers_that_look_scaled_or_unscaled_are_named(tmp_path: Path) -> None:
    """Pendulum's torque lies in [-2, 2]; a dataset of before does not say what its actions were scaled from."""
    columns = transition_columns(np.random.default_rng(0), [50] * 30)
    path = write_table(tmp_path / "own.parquet", columns)
    wide = (np.full(2, -2.0), np.full(2, 2.0))
    inspection = inspect_dataset(path, Reading(action_bounds=wide))
    assert any("no recorded action leaves [-1, 1]" in finding.what for finding in inspection.findings)
    inspection = inspect_dataset(path, Reading(action_bounds=wide, actions_are="unit"))
    assert not any("action" in finding.what for finding in inspection.findings)
    pieces = [piece | {"actions": piece["actions"] * np.float32(0.4)} for piece in good(np.random.default_rng(0))]
    write_dataset(tmp_path / "before", pieces, SCHEMA, {})
    narrow = (np.full(2, -0.4), np.full(2, 0.4))
    inspection = inspect_dataset(tmp_path / "before", Reading(action_bounds=narrow))
    assert any("as if they had never been scaled" in finding.what for finding in inspection.findings)


def test_a_dimension_of_one_value_and_one_without_bounds_are_no_damage(tmp_path: Path) -> None:
    largest = float(np.finfo(np.float32).max)
    reading = Reading(action_bounds=(np.array([5.0, -largest]), np.array([5.0, largest])))
    columns = transition_columns(np.random.default_rng(0), [50] * 30)
    columns["actions"][:, 0] = 5.0
    path = write_table(tmp_path / "own.parquet", columns)
    rows = concatenate(list(FORMATS["table"].rows(path, reading)))
    stored = rows["actions"][rows["remaining"] > 0]
    assert (stored[:, 0] == 0).all()
    np.testing.assert_allclose(stored[:, 1], columns["actions"][:, 1], atol=2e-5)
    told = " ".join(finding.what for finding in inspect_dataset(path, reading).findings)
    assert "dimension 0 of the actions can have one value only" in told
    assert "nothing bounds dimension 1 of the actions" in told
    columns["actions"][3, 0] = 4.0
    with pytest.raises(DatasetError, match=r"outside \[5, 5\], the first at row 3 \(4 in dimension 0\)"):
        list(FORMATS["table"].rows(write_table(path, columns), reading))


def test_bounds_of_the_environment_are_those_that_import_takes() -> None:
    assert np.allclose(env_dims(ENV).action_bounds, BOUNDS)


def test_data_of_another_environment_is_said_to_be_that(tmp_path: Path) -> None:
    unit = (np.full(3, -1.0), np.full(3, 1.0))
    path = FILES["hdf5"](tmp_path, recorded(lambda actions: actions / 3))
    inspection = inspect_dataset(path, Reading(action_bounds=unit), expected=Schema(11, 3))
    assert inspection.findings[0].what.startswith("observations have 3 and actions 2 dimensions, the environment has")
    assert inspection.figures["transitions"] == 1500


@pytest.mark.parametrize("low", [0.1, -1e6, 3e4])
def test_what_float32_rounds_past_close_bounds_is_no_noise(low: float) -> None:
    """A table of float32 cannot hold the bounds of an environment that has them in float64."""
    high = low + 1e-7 * abs(low)
    scale, report = ActionScale(bounds=(np.array([low]), np.array([high])), owner="the environment"), ImportReport()
    actions = np.array([[low], [high]], np.float32)
    kept = scale.finish(scale.stored(actions, Path("log")), np.arange(2), Path("log"), report)
    assert (np.abs(kept) <= 1).all() and not report.clipped_transitions
    far = scale.stored(actions + np.float32(1e-5 * low), Path("log"))
    with pytest.raises(DatasetError, match="2 of 2 actions lie outside"):
        scale.finish(far, np.arange(2), Path("log"), report)
