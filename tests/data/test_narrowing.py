"""Numbers that float32 cannot tell apart are named, and an offset that is subtracted first is written down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole_ray.columns import Schema
from dipole_ray.data.dataset import open_dataset, write_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import close_trajectory, concatenate
from dipole_ray.data.sources.formats import FORMATS
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.reading import Arrays, Reading
from dipole_ray.envs.make import EnvConfig, env_dims
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.replay.replay import Replay
from tests.data.test_exorl import dipole
from tests.synthetic import transition_columns, write_d4rl, write_table

FILES: dict[str, Callable[[Path, Arrays], Path]] = {
    "parquet": lambda folder, columns: write_table(folder / "own.parquet", columns),
    "hdf5": lambda folder, columns: write_d4rl(folder / "own.hdf5", columns),
}


def drive(wide: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    """Return 30 trajectories whose dimension 1 is a function of the step's number."""
    columns = transition_columns(np.random.default_rng(0), [50] * 30)
    columns["timeouts"] |= columns["terminals"]
    for name, later in (("observations", 0), ("next_observations", 1)):
        columns[name] = columns[name].astype(np.float64)
        columns[name][:, 1] = wide(np.arange(1500) + np.arange(1500) // 50 + later)
    return columns


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    "wide", [lambda step: 5.4e6 + 0.03 * step, lambda step: 1.7e9 + 0.1 * step], ids=["utm", "unix"]
)
def test_large_numbers_are_named_and_an_offset_keeps_them_apart(
    tmp_path: Path, kind: str, wide: Callable[[np.ndarray], np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    columns = drive(wide)
    path = FILES[kind](tmp_path, columns)
    assert dipole("import", path, "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "warning: float32 does not tell apart what changes in dimension 1 of the observations" in told
    option = told.partition("--offset ")[2].split()[0]
    inspection = inspect_dataset(path)
    assert inspection.verdict == "warning" and any(option in finding.remedy for finding in inspection.findings)
    assert dipole("import", path, "--out", tmp_path / "less", "--offset", option) == 0
    told = capsys.readouterr().out
    assert "does not tell apart" not in told and "stored less an offset" in told
    dataset, number = open_dataset(tmp_path / "less"), float(option.partition("=")[2])
    assert dataset.source["offset"] == {"1": number}
    rows = concatenate(list(dataset.iter_rows()))
    stored = rows["observations"][rows["remaining"] > 0].astype(np.float64)
    np.testing.assert_allclose(stored[:, 1] + number, columns["observations"][:, 1], rtol=0, atol=1e-3)
    with pytest.raises(ConfigError, match="observations have the dimensions 0 to 2"):
        dipole("import", path, "--out", tmp_path / "no", "--offset", "3=1")
    with pytest.raises(ConfigError, match="write DIM=VALUE"):
        dipole("import", path, "--out", tmp_path / "no", "--offset", "x")


def test_what_float32_rounds_harmlessly_is_not_named(tmp_path: Path) -> None:
    resting = inspect_dataset(write_table(tmp_path / "a.parquet", drive(lambda step: 0.4 + 1e-13 * step)))
    moving = inspect_dataset(write_table(tmp_path / "b.parquet", drive(lambda step: 1000 * np.sin(step))))
    assert not any("float32" in finding.what for inspection in (resting, moving) for finding in inspection.findings)


@pytest.mark.parametrize("kind", FILES)
def test_rewards_are_named_too_and_a_dataset_keeps_what_it_lost(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    columns = drive(lambda step: 0.1 * step)
    columns["rewards"] = 1.7e9 + np.arange(1500) * 0.1  # a clock
    assert dipole("import", FILES[kind](tmp_path, columns), "--out", tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    (text,) = dataset.source["narrowed"]
    assert "what changes in the rewards" in text
    findings = inspect_dataset(tmp_path / "out").findings
    assert any("what changes in the rewards" in finding.what for finding in findings)
    Replay(schema=dataset.schema, offline=[tmp_path / "out"])
    assert f"{tmp_path / 'out'}: {text}" in caplog.messages


def test_names_of_columns_stand_beside_the_numbers_of_dimensions(tmp_path: Path) -> None:
    columns = drive(lambda step: 5.4e6 + 0.03 * step)
    named = {f"x{i}": columns["observations"][:, i] for i in range(3)}
    del columns["observations"], columns["next_observations"]
    path = write_table(tmp_path / "own.parquet", columns | named)
    reading = Reading(mapping=TableMapping(observations=("x2", "x1")))
    told = [finding.what for finding in inspect_dataset(path, reading).findings]
    assert any("dimension 1 ('x1') of the observations" in text for text in told)
    columns["actions"][7] = 3
    named |= {f"a{i}": columns.pop("actions")[:, 1 - i] for i in range(1)} | {"a1": np.zeros(1500)}
    mapping = TableMapping(observations=("x2", "x1"), actions=("a1", "a0"))
    (error,) = inspect_dataset(write_table(path, columns | named), Reading(mapping=mapping)).findings
    assert "the first at row 7 (3 in dimension 1 ('a0'))" in error.what


def test_offsets_name_a_dimension_once_by_its_number_or_its_column(tmp_path: Path) -> None:
    columns = drive(lambda step: 5.4e6 + 0.03 * step)
    named = {name: columns["observations"][:, i] for i, name in enumerate(("east", "north", "up"))}
    del columns["observations"], columns["next_observations"]
    path = write_table(tmp_path / "own.parquet", columns | named)
    words = ["import", path, "--map", "observations=east,north,up", "--offset", "north=5400000"]
    assert dipole(*words, "--out", tmp_path / "out") == 0
    assert open_dataset(tmp_path / "out").manifest.source["offset"] == {"1": 5.4e6}
    for wrong, told in (
        (("--offset", "1=3"), "dimension 1 has an offset already"),
        (("--offset", "down=3"), "the number of a dimension from 0 or one of east, north, up"),
        (("--map", "observations=up"), "observations is mapped twice"),
    ):
        with pytest.raises(ConfigError, match=told):
            dipole(*words, *wrong, "--out", tmp_path / "wrong")


@pytest.mark.parametrize("name", ["rewards", "observations"])
def test_numbers_beyond_float32_are_called_so(tmp_path: Path, name: str) -> None:
    columns = drive(lambda step: 0.03 * step)
    del columns["next_observations"]
    columns[name] = columns[name].astype(np.float64)
    columns[name][7] = 1e39
    path = write_table(tmp_path / "own.parquet", columns)
    with pytest.raises(DatasetError, match=rf"row 7 \({name}\) holds 1e\+39, beyond the 3\.4e38 of float32"):
        list(FORMATS["table"].rows(path, Reading()))
    error = inspect_dataset(path, Reading()).findings[0]
    assert "or a number beyond float32" in error.what and f"row 7 ({name})" in error.where
    list(FORMATS["table"].rows(path, Reading(non_finite="drop")))


def test_rows_of_ones_own_and_datasets_of_rounded_numbers_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was rounded before it came here is seen by its few values; whole numbers are as they were meant."""
    wide = (5.4e6 + 0.03 * np.arange(1501))[:, None]
    for observations in (wide, 100_000.0 + np.arange(1501)[:, None] % 7):
        rows = close_trajectory(observations, np.zeros((1500, 1)), np.zeros(1500), np.ones(1500))
        folder = tmp_path / str(len(caplog.messages))
        write_dataset(folder, [rows], Schema(1, 1), {})
        Replay(schema=Schema(1, 1), offline=[folder])
        findings = [finding.what for finding in inspect_dataset(folder).findings]
        assert any("seem to be rounded" in text for text in findings) == (observations is wide)
    assert sum("rows of one's own" in message for message in caplog.messages) == 1
    assert sum("seem to be rounded" in message for message in caplog.messages) == 1


def test_an_environments_first_steps_show_what_float32_loses() -> None:
    (warning,) = env_dims("tests.odd_envs:Far-v0").warnings
    assert "dimension 1 of its observations" in warning and "env.observation_offset={1: 5400" in warning
    assert env_dims(EnvConfig(id="tests.odd_envs:Far-v0", observation_offset={"1": 5.4e6})).warnings == ()
    assert env_dims("Pendulum-v1").warnings == env_dims("Hopper-v5").warnings == ()


def test_an_offset_of_ones_own_may_have_numbers_for_dimensions_and_names_each_once() -> None:
    given: Any = {0: 1, 2: 5.4e6}
    assert EnvConfig(id="Pendulum-v1", observation_offset=given).observation_offset == {"0": 1.0, "2": 5.4e6}
    with pytest.raises(ConfigError, match="names dimension 0 twice"):
        EnvConfig(id="Pendulum-v1", observation_offset={"0": 1.0, "00": 2.0})


def test_datasets_of_different_bounds_do_not_share_a_replay(tmp_path: Path) -> None:
    rows = close_trajectory(np.zeros((4, 1)), np.zeros((3, 1)), np.zeros(3), np.ones(3))
    bounds = ([[-0.4], [0.4]], [[-0.4], [0.4]], None, "unit", [[-2.0], [2.0]])
    folders = [tmp_path / str(number) for number in range(len(bounds))]
    for folder, one in zip(folders, bounds, strict=True):
        write_dataset(folder, [rows], Schema(1, 1), {"action_bounds": one})
    Replay(schema=Schema(1, 1), offline=folders[:4])
    with pytest.raises(
        DatasetError, match=r"bounds \[\[-2\.0\], \[2\.0\]\], those in .* import both with the same --env"
    ):
        Replay(schema=Schema(1, 1), offline=folders)
