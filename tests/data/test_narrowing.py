"""Numbers that float32 cannot tell apart are named, and an offset that is subtracted first is written down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import concatenate
from dipole_ray.data.sources.reading import Arrays
from dipole_ray.errors import ConfigError
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
