"""The table fits, marks what was chosen before the run, and survives the way to JSON and back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from dipole_ray.errors import DatasetError
from dipole_ray.evaluation.report import (
    BC,
    Row,
    phases_of,
    print_table,
    read_evaluation,
    sort_rows,
    write_evaluation,
)


def row(omega: float | None, candidates: int, *, success: float | None = 0.9, length: float = 262.0) -> Row:
    return {
        "method": BC if omega is None else "DIPOLE",
        "omega": omega,
        "candidates": candidates,
        "episodes": 50,
        "success": success,
        "success_low": None if success is None else max(success - 0.1, 0.0),
        "success_high": None if success is None else min(success + 0.1, 1.0),
        "return": -length,
        "return_low": -length - 20,
        "return_high": -length + 20,
        "length": length,
        "length_low": length - 20,
        "length_high": length + 20,
        "confidence": 0.95,
        "action_bound_fraction": 0.1,
    }


ROWS = [row(omega, count) for omega in (2.0, None, 0.5, 0.0, 1.0) for count in (16, 1)]


def printed(width: int = 100, **rows: list[Row]) -> str:
    stream = io.StringIO()
    print_table(rows, chosen=(1.0, 16), title="maze", console=Console(file=stream, width=width, no_color=True))
    return stream.getvalue()


def test_rows_read_bc_first_and_omega_rising_within_a_number_of_candidates() -> None:
    order = [(r["candidates"], r["omega"]) for r in sort_rows(ROWS)]
    assert order == [(count, omega) for count in (1, 16) for omega in (None, 0.0, 0.5, 1.0, 2.0)]
    assert phases_of({"online": ROWS, "offline": ROWS}) == ["offline", "online"]


def test_the_table_fits_100_columns_with_long_numbers_and_cuts_nothing() -> None:
    text = printed(offline=[row(0.5, 16, length=50_000.0)], online=ROWS)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    assert "…" not in text
    assert "-50000 [-50020, -49980]" in text
    assert "0.90 [0.80, 1.00]" in text
    assert text.index("offline") < text.index("online")


def test_the_chosen_rows_are_marked_and_no_others() -> None:
    text = printed(offline=ROWS, online=ROWS)
    marked = [line.split() for line in text.splitlines() if line.rstrip().endswith("<")]
    assert len(marked) == 2
    assert all(cells[1:3] == ["1", "16"] for cells in marked)
    assert "omega 1 and 16 candidates, chosen before the run" in text
    assert "\x1b" not in text


def test_tasks_without_success_have_no_such_column() -> None:
    text = printed(offline=[row(0.0, 1, success=None)])
    assert "success" not in text
    assert "Wilson" not in text


def test_json_rows_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    write_evaluation(path, {"offline": ROWS, "online": ROWS[:1]})
    assert read_evaluation(path) == {"offline": ROWS, "online": ROWS[:1]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["evaluation.json"]
    issue_keys = {"method", "omega", "candidates", "episodes", "success", "return", "length"}
    assert issue_keys <= json.loads(path.read_text())["offline"][0].keys()


@pytest.mark.parametrize("text", ["", "[]", '{"offline": [{"method": "BC"}]}', '{"offline": 3}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"evaluation\.json"):
        read_evaluation(path)
