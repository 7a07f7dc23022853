"""Leaderboard, pictures and best config follow from what the trials wrote down."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from dipole_ray.plots.sweep import Line, Point, draw_parallel, draw_surface, surface_of
from dipole_ray.runs.config import load
from dipole_ray.stopping import StopRequests
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.records import TRIAL_FILE, SweepRecords
from dipole_ray.sweep.result import leaderboard, table, write_result
from tests.sweep.small import small_plan

SPACE = {"agent.beta": {"grid": [1.0, 5.0, 20.0]}}


def row(omega: float, candidates: int, success: float | None, mean: float, episodes: int = 20) -> dict[str, Any]:
    """Return a row as an evaluation would give it."""
    spread = None if success is None else 0.1
    return {
        "method": "DIPOLE",
        "omega": omega,
        "candidates": candidates,
        "episodes": episodes,
        "success": success,
        "success_low": None if success is None else success - spread,
        "success_high": None if success is None else success + spread,
        "return": mean,
        "return_low": mean - 1,
        "return_high": mean + 1,
        "length": 100.0,
        "length_low": 90.0,
        "length_high": 110.0,
        "confidence": 0.95,
        "action_bound_fraction": 0.0,
    }


def write_trial(records: SweepRecords, values: dict[str, Any], rows: list[Any], report: Any, *, rung: int = 2) -> None:
    """Add a trial that ended at `rung` with these rows."""
    record = records.add(values)
    best = records_plan(records).sweep.best(rows)
    results = [{"rung": rung, "score": best["return"], "best": best, "rows": rows, "report": report}]
    record.status = "done" if rung == 2 else "stopped"
    folder = records.trial_folder(record.id)
    folder.mkdir(parents=True)
    notes = {
        "values": values,
        "rung": rung,
        "run_id": "r",
        "checkpoint": "c",
        "finished": rung == 2,
        "results": results,
    }
    (folder / TRIAL_FILE).write_text(json.dumps(notes))


def records_plan(records: SweepRecords) -> Plan:
    from dipole_ray.sweep.plan import from_mapping

    return from_mapping(records.plan)


@pytest.fixture
def ended(tmp_path: Path) -> tuple[Plan, SweepRecords]:
    """A sweep with a lucky trial, an honest one, and one that was stopped while it led."""
    plan = small_plan(tmp_path, tmp_path, space=SPACE)
    records = SweepRecords(folder=plan.folder, plan=plan.to_mapping())
    records.folder.mkdir(parents=True)
    lucky = [row(0.0, 1, None, -50.0), row(1.0, 2, None, -10.0)]
    honest = [row(0.0, 1, None, -20.0), row(1.0, 2, None, -21.0)]
    write_trial(records, {"agent.beta": 1.0}, honest, row(0.0, 1, None, -19.0, 50))
    write_trial(records, {"agent.beta": 5.0}, lucky, row(1.0, 2, None, -40.0, 50))
    write_trial(records, {"agent.beta": 20.0}, [row(0.0, 1, None, -5.0)], None, rung=1)
    return plan, records


def test_order_is_by_the_selecting_episodes_alone(ended: tuple[Plan, SweepRecords]) -> None:
    board = leaderboard(*ended)
    assert [item["trial"] for item in board] == ["trial-001", "trial-000", "trial-002"]
    assert (board[0]["selected"]["value"], board[0]["reported"]["value"]) == (-10.0, -40.0)


def test_files_hold_both_numbers(ended: tuple[Plan, SweepRecords]) -> None:
    plan, records = ended
    result = write_result(plan, records, finished=True, stops=StopRequests(), view_command=None)
    names = {path.name for path in result.files}
    assert names == {"leaderboard.json", "leaderboard.csv", "surface-beta.png", "parallel.png", "best.yaml"}
    board = json.loads((result.folder / "leaderboard.json").read_text())
    assert board[0]["selected"] == {"value": -10.0, "low": -11.0, "high": -9.0, "episodes": 20, "seed": 1000}
    assert board[0]["reported"] == {"value": -40.0, "low": -41.0, "high": -39.0, "episodes": 50, "seed": 2000}
    assert board[2]["reported"] is None and board[2]["status"] == "stopped"
    lines = list(csv.DictReader((result.folder / "leaderboard.csv").open()))
    assert [line["agent.beta"] for line in lines] == ["5.0", "1.0", "20.0"]
    assert (lines[0]["selected_value"], lines[0]["reported_value"]) == ("-10.0", "-40.0")
    for name in ("surface-beta.png", "parallel.png"):
        assert np.ptp(imread(result.folder / name)) > 0.5, "something is drawn"


def test_best_config_is_one_that_train_takes(ended: tuple[Plan, SweepRecords]) -> None:
    plan, records = ended
    result = write_result(plan, records, finished=True, stops=StopRequests(), view_command=None)
    path = result.folder / "best.yaml"
    config = load(path)
    assert (config.agent.beta, config.agent.omega, config.agent.num_candidates) == (5.0, 1.0, 2)
    assert config.name == "small-best" and config.env.id == "Pendulum-v1"
    assert config.agent.batch_size == plan.run_config({}).agent.batch_size
    assert path.read_text().startswith("# trial-001 of the sweep small") and "-40" in path.read_text().splitlines()[1]


def test_the_table_says_what_to_quote(ended: tuple[Plan, SweepRecords]) -> None:
    plan, _ = ended
    console = Console(width=140, record=True, no_color=True, file=io.StringIO())
    console.print(table(plan, leaderboard(*ended)))
    text = console.export_text()
    assert "-10.0 [-11.0, -9.0]" in text and "-40.0 [-41.0, -39.0]" in text and "stopped at rung 1" in text
    assert "mean [interval] of 2 episodes" in text and "quote these" in text


def test_ties_go_to_return_then_to_the_cheaper_cell(tmp_path: Path) -> None:
    sweep = small_plan(tmp_path, tmp_path).sweep
    rows: list[Any] = [row(2.0, 16, 1.0, -5.0), row(1.0, 1, 1.0, -5.0), row(0.5, 1, 1.0, -9.0), row(0.0, 1, 0.9, 0.0)]
    best = sweep.best(rows)
    assert (best["omega"], best["candidates"]) == (1.0, 1)


def test_surfaces_average_trials_and_share_rows_where_values_are_many(tmp_path: Path) -> None:
    twice = [Point(1.0, 0.0, 1, 2.0), Point(1.0, 0.0, 1, 4.0), Point(3.0, 1.0, 1, 7.0)]
    names, omegas, counts, means = surface_of(twice)
    assert (names, omegas, counts) == (["1", "3"], [0.0, 1.0], [1])
    assert means[0, 0, 0] == 3.0 and means[0, 1, 1] == 7.0 and np.isnan(means[0, 0, 1])
    many = [Point(float(value), 0.0, 1, float(value)) for value in range(40)]
    names, _, _, means = surface_of(many)
    assert len(names) == 8 and names[0] == "0\u20134"
    assert means[0, 0, 0] == 2.0
    assert draw_surface(many + twice, tmp_path / "s.png", setting="beta", label="return").stat().st_size > 5000
    words = [Point(word, 0.0, count, 1.0) for word in ("exp", "dipole") for count in (1, 16)]
    assert draw_surface(words, tmp_path / "w.png", setting="weight_scheme", label="return", mode="min").exists()


def test_parallel_coordinates_take_numbers_words_and_a_single_value(tmp_path: Path) -> None:
    lines = [
        Line({"beta": 0.1, "scheme": "exp", "omega": None, "same": 3}, 0.5, "done"),
        Line({"beta": 100.0, "scheme": "dipole", "omega": 1.0, "same": 3}, 0.9, "stopped"),
    ]
    assert draw_parallel(lines, tmp_path / "p.png", label="success").stat().st_size > 5000
