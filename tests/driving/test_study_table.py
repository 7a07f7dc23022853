"""The table of `benchmarks.driving.study`: what is averaged over what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("shapely")

from benchmarks.driving.study_table import MEASURES, rows_of
from dipole_ray.data.clusters import clustered_errors


def test_rows_are_paired_with_the_clone_and_errors_are_over_logs_and_over_seeds(tmp_path: Path) -> None:
    random, logs, seeds = np.random.default_rng(0), np.repeat(["a", "b", "c", "d"], 5), (0, 1, 2)
    clones = random.uniform(0, 1, (3, 20, len(MEASURES)))
    better = clones + np.array([0.1, 0.2, 0.3])[:, None, None] + random.normal(0, 0.01, clones.shape)
    for seed in seeds:
        rows = {"guided|1.0|1": better[seed], "bc|None|1": clones[seed], "logs": logs}
        np.savez(tmp_path / f"dipole-seed{seed}.npz", **rows)
    np.savez(tmp_path / "exp-seed1.npz", **{"guided|0.0|1": clones[1], "bc|None|1": clones[1], "logs": logs})
    clone, dipole, exp = rows_of(tmp_path, seeds)
    assert [row["method"] for row in (clone, dipole, exp)] == ["clone", "dipole", "exp"]
    assert (dipole["omega"], exp["omega"]) == (1.0, None)
    scores = 100 * better[..., -1]
    assert dipole["pdms"] == pytest.approx(scores.mean())
    assert dipole["error_over_logs"] == pytest.approx(clustered_errors(scores.mean(axis=0)[:, None], logs)[0])
    assert dipole["error_over_seeds"] == pytest.approx(scores.mean(axis=1).std(ddof=1) / np.sqrt(3))
    assert dipole["over_clone"] == pytest.approx(20, abs=0.5)
    assert dipole["over_clone_error_over_logs"] < 0.3 < dipole["error_over_logs"], "paired by scene"
    assert exp["over_clone"] == 0.0, "a method of one seed is compared with the clone of that seed"
    assert exp["error_over_seeds"] is None and exp["seeds"] == [1]
