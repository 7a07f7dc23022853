"""The table of recovery times says what was measured, judges it by its bar, and hides no miss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recovery import holds, main, order


def line(row: str, what: str, value: Any, unit: str, bar: str, time: float = 1_700_000_000.0) -> str:
    """Return one line as the chaos tests write it."""
    return json.dumps({"row": row, "what": what, "value": value, "unit": unit, "bar": bar, "time": time})


MEASUREMENTS = [
    line("R1", "differences after 10 kills", 0, "things", "0"),
    line("C10", "a later row", 1.0, "s", "<= 2 s"),
    *(line("C4", "learner killed: updates again", value, "s", "<= 30 s") for value in (6.0, 31.0, 8.0)),
    line("C7", "node lost", 75.0, "s", "<= 60 s + detection"),
    line("D2", "flips found", 199, "found", "200 of 200"),
    line("C9", "return after the kills", -20.5, "", ">= -22.1, 95 % prediction interval", time=1_700_000_600.0),
]


def test_table_and_json_from_a_file_of_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "chaos.jsonl"
    source.write_text("\n".join(MEASUREMENTS) + "\n")
    main([str(source), "--out", str(tmp_path / "results")])
    text = (tmp_path / "results" / "recovery.md").read_text()
    assert text in capsys.readouterr().out
    rows = [part.split(" | ") for part in text.splitlines() if part.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows] == ["C4", "C7", "C9", "C10", "D2", "R1"]
    assert rows[0][1:] == ["learner killed: updates again", "3", "8 s", "6 to 31", "<= 30 s", "**no**, 1 of 3 |"]
    assert [row[-1] for row in rows[1:]] == ["- |", "yes |", "yes |", "**no**, 1 of 1 |", "yes |"]
    assert "missed: C4 (learner killed: updates again); D2 (flips found)." in text and "3 bars hold" in text
    assert "2023-11-14" in text and "10 min" in text and "cores" in text and "`make chaos`" in text
    result = json.loads((tmp_path / "results" / "recovery-2023-11-14.json").read_text())
    assert result["entries"][0]["values"] == [6.0, 31.0, 8.0] and {"torch", "dipole_ray"} <= result["versions"].keys()


@pytest.mark.parametrize(
    ("value", "unit", "bar", "expected"),
    [
        (30.0, "s", "<= 30 s", True),
        (1.0, "", "< 1", False),
        (0.8, "of the rate", ">= 0.75", True),
        (50, "cuts", "50 of 50", True),
        (1, "rows", "0", False),
        (0.5, "%", "< 1 %", True),
        (0.5, "s", "none", None),
        (0.5, "MB/min", "upper bound < 1", None),
        (2.0, "lines", "0 lost, 0 duplicates", None),
        (3.0, "s", "<= 1 min", None),
    ],
)
def test_bars_are_judged_only_where_they_are_numbers_of_the_same_unit(
    value: float, unit: str, bar: str, expected: bool | None
) -> None:
    assert holds(value, unit, bar) is expected


def test_rows_stand_in_the_order_of_the_plan() -> None:
    assert sorted(["L1", "R1", "C10", "C2", "D1", "what", "T1"], key=order) == [
        "C2", "C10", "D1", "T1", "R1", "L1", "what"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"), [(None, "no such file"), ("", "empty"), ("{}", "line 1"), ("[1]", "line 1"), ("x", "line 1")]
)
def test_files_without_measurements_end_in_a_sentence(tmp_path: Path, content: str | None, said: str) -> None:
    source = tmp_path / "chaos.jsonl"
    if content is not None:
        source.write_text(content)
    with pytest.raises(SystemExit, match=said):
        main([str(source)])
