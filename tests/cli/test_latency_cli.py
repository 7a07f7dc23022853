"""`dipole latency` on a checkpoint: every setting with its times, the best for a rate, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipole_ray.cli import main
from dipole_ray.serving.latency import Latency, best_for
from tests.cli.test_evaluate_cli import saved_run, small


def row(candidates: int, steps: int | None, p99_ms: float) -> Latency:
    return Latency(
        device="cpu", batch=1, candidates=candidates, steps=steps, p50_ms=1.0, p95_ms=1.0, p99_ms=p99_ms, calls=20
    )


def test_the_best_setting_is_the_one_with_most_candidates_times_steps_whose_p99_fits() -> None:
    rows = [row(1, 10, 3.0), row(16, 3, 9.9), row(4, 10, 8.0), row(32, 10, 10.1)]
    assert best_for(rows, 100.0) == rows[1]
    assert best_for(rows, 99.0) == rows[3]
    assert best_for(rows, 1000.0) is None
    assert best_for([row(2, None, 2.0), row(4, None, 3.0), row(4, None, 2.5)], 100.0) == row(4, None, 2.5)


def test_every_setting_is_measured_and_the_best_for_the_rate_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, table = saved_run(tmp_path / "run", small()), tmp_path / "latency.json"
    words = ["--steps", "1", "3", "--candidates", "2", "--batch", "1", "5", "--device", "cpu", "--calls", "20"]
    words += ["--solver", "midpoint", "--json", str(table)]
    assert main(["latency", str(run), "--hz", "0.01", *words]) == 0
    written = json.loads(table.read_text())
    assert [(one["batch"], one["candidates"], one["steps"]) for one in written["rows"]] == [
        (1, 2, 1),
        (1, 2, 3),
        (5, 2, 1),
        (5, 2, 3),
    ]
    assert all(0 < one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"] and one["calls"] == 20 for one in written["rows"])
    assert {name: one["steps"] for name, one in written["best"].items()} == {"cpu, 1 state": 3, "cpu, 5 states": 3}
    out = capsys.readouterr().out
    assert "cpu, 1 state at 0.01 Hz (100000.00 ms): 2 candidates x 3 steps (p99 " in out
    assert main(["latency", str(run), "--hz", "1e9", *words]) == 0
    assert "no setting fits; the fastest is 2 candidates x " in capsys.readouterr().out


def test_a_policy_without_a_flow_has_no_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_fql = {"bootstrap": "policy", "beta": 1.0, "advantage_normalization": "none"}
    run, table = saved_run(tmp_path / "run", small(algorithm="fql", **of_fql)), tmp_path / "latency.json"
    assert main(["latency", str(run), "--candidates", "1", "2", "--calls", "20", "--json", str(table)]) == 0
    assert {one["steps"] for one in json.loads(table.read_text())["rows"]} == {None}


@pytest.mark.parametrize(
    "words, said",
    [
        (["--hz", "0"], "--hz 0.0: give a finite number above 0"),
        (["--steps", "0"], "steps: found (0,); give whole numbers of at least 1"),
        (["--device", "tpu"], "device 'tpu': torch has"),
        (["--calls", "5"], "calls: found 5; give at least 20"),
        (["--json", "nowhere/x.json"], "the folder does not exist; make it first"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["latency", str(saved_run(tmp_path / "run", small())), *words]) == 2
    assert said in capsys.readouterr().err


def test_no_bar_is_shown_of_what_does_not_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "nowhere" in said and "measuring" not in said
