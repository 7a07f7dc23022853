"""Nothing leaks: half an hour of a real small distributed run is flat in memory, descriptors, threads and objects.

`DIPOLE_SOAK_MINUTES` sets the length; `DIPOLE_SOAK_OUT` names a folder that takes the samples, the table of slopes and
a picture of them. The run is a process of its own that takes a third of a core (see `soak`), so that other tests may
run beside it (see `make chaos`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.conftest import Measured
from tests.chaos.slopes import OURS, Samples, draw, leaks, read_samples, replaced, table, trend

MINUTES = float(os.environ.get("DIPOLE_SOAK_MINUTES", "30"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(MINUTES * 60.0 + 600.0)]


def test_half_an_hour_of_training_leaves_everything_flat(tmp_path: Path, measured: Measured) -> None:
    folder = Path(os.environ.get("DIPOLE_SOAK_OUT") or tmp_path).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    assert not (folder / "samples.csv").exists(), f"{folder} has a soak already: name another DIPOLE_SOAK_OUT"
    with (folder / "soak.log").open("w") as log:
        command = [sys.executable, "-m", "tests.chaos.soak", str(MINUTES), str(folder)]
        ended = subprocess.run(command, stdout=log, stderr=log, timeout=MINUTES * 60.0 + 500.0, check=False)
    assert ended.returncode == 0, (folder / "soak.log").read_text()[-3000:]
    samples = read_samples(folder / "samples.csv")
    (folder / "slopes.txt").write_text(table(samples) + "\n")
    draw(samples, folder / "samples.png")
    record(samples, measured)
    assert replaced(samples) == [], "processes died"
    assert leaks(samples) == [], table(samples)
    for part in ("checkpoints", "replay"):  # metrics.jsonl and mlflow.db grow with the run, by design
        assert trend(*samples[f"run/{part}_disk_mb"]).high < 0.05, part


def record(samples: Samples, measured: Measured) -> None:
    """Record the slopes of the processes that are ours, the object store, and what the soak itself took."""
    minutes = samples["run/iterations"][0][-1]
    for series, points in samples.items():
        owner, quantity = series.rsplit("/", 1)
        name = owner.split("[")[0]
        if quantity == "rss_mb" and name in (*OURS, "gcs_server"):
            bar = "upper bound < 1" if name in OURS else "Ray's own, not judged"
            measured("L1", f"{name}: memory", trend(*points).slope, "MB/min", bar=bar)
        if quantity in ("descriptors", "threads", "objects") and name in (*OURS, "object store"):
            moves = trend(*points)
            measured("L1", f"{name}: {quantity}, last third minus first", moves.last - moves.first, "", bar="0")
    cpu_s = sum(values[-1] - values[0] for name, (_, values) in samples.items() if name.endswith("/cpu_s"))
    measured("L1", "share of one core that the soak took", cpu_s / (60.0 * minutes), "", bar="about 1/3")
    measured("L1", "iterations", float(samples["run/iterations"][1][-1]), "", bar="")
