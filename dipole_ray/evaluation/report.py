"""The result of an evaluation as people and programs read it: terminal table, Markdown, JSON.

An evaluation maps a phase (`offline`, `online`) to rows, one a cell of the grid; `evaluation.json` in a run
folder is exactly that.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from dipole_ray import tables
from dipole_ray.errors import DatasetError
from dipole_ray.files.durable import read_json, write_text
from dipole_ray.tables import DASH, markdown_table, terminal_table, with_interval

FILE_NAME = "evaluation.json"
"""Name of the JSON file inside a run folder."""

BC = "BC"
"""Method name of the rows of the behaviour-cloned policy."""

Row = TypedDict(
    "Row",
    {
        "method": str,
        "omega": float | None,
        "candidates": int,
        "episodes": int,
        "success": float | None,
        "success_low": float | None,
        "success_high": float | None,
        "return": float,
        "return_low": float | None,
        "return_high": float | None,
        "length": float,
        "length_low": float | None,
        "length_high": float | None,
        "confidence": float,
        "action_bound_fraction": float,
    },
)
"""One cell: means with the ends of their intervals. `omega` is None for BC, `success` where the task defines none,
an interval where a single episode cannot give one. Lengths are in environment steps; success and fractions lie in
[0, 1]."""

Evaluation = Mapping[str, Sequence[Row]]
"""Phase name to rows."""
Chosen = tuple[float, int] | None
"""Omega and candidates that the preset named before the run; their rows are marked."""

_PHASES = ("offline", "online")
_NOTE = "chosen before the run"


def sort_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows by number of candidates, BC first, then omega rising, so that omega reads down a column."""
    return sorted(rows, key=lambda row: (row["candidates"], row["method"] != BC, row["method"], row["omega"] or 0.0))


def phases_of(evaluation: Evaluation) -> list[str]:
    """Return the phases that hold rows, offline before online before any other."""
    known = [phase for phase in _PHASES if evaluation.get(phase)]
    return known + [phase for phase in evaluation if phase not in _PHASES and evaluation[phase]]


def is_chosen(row: Row, chosen: Chosen) -> bool:
    """Tell whether a row is the one that the preset named before the run."""
    return chosen is not None and (row["omega"], row["candidates"]) == chosen


def table(evaluation: Evaluation, *, chosen: Chosen = None, title: str = "") -> Table:
    """Return the terminal table, `title` above it; it fits 100 columns."""
    found, has_success = _sorted(evaluation)
    cells: list[list[str]] = []
    marked, ruled, previous = [], [], ("", 0)
    for phase, row in found:
        if cells and (phase, row["candidates"]) != previous:
            ruled.append(len(cells) - 1)
        label = "" if phase == previous[0] else phase
        previous = phase, row["candidates"]
        arrow = ""
        if is_chosen(row, chosen):
            marked.append(len(cells))
            arrow = "<"  # reads where there is no colour, too
        cells.append([label, *_cells(row, has_success), arrow])
    measures, caption = _measures(has_success), _caption([row for _, row in found], chosen)
    head, numbers = ["phase", "method", "omega", "cand.", *measures, ""], range(2, 4 + len(measures))
    return terminal_table(head, cells, numbers=numbers, marked=marked, ruled=ruled, title=title, caption=caption)


def print_table(
    evaluation: Evaluation, *, chosen: Chosen = None, title: str = "", console: Console | None = None
) -> None:
    """Print the table; without colour and at 100 columns where the output is not a terminal."""
    tables.print_table(table(evaluation, chosen=chosen, title=title), 100, console)


def markdown(evaluation: Evaluation, *, chosen: Chosen = None) -> str:
    """Return the same table in Markdown, the chosen rows in bold."""
    found, has_success = _sorted(evaluation)
    rows = []
    for phase, row in found:
        cells = [phase, *_cells(row, has_success)]
        rows.append([f"**{cell}**" for cell in cells] if is_chosen(row, chosen) else cells)
    lines = markdown_table(["phase", "method", "omega", "candidates", *_measures(has_success)], rows, words=2)
    caption = _caption([row for _, row in found], None)
    if chosen is not None:
        caption += f" Bold: omega {chosen[0]:g} and {_count(chosen[1], 'candidate')}, {_NOTE}."
    return "\n".join([*lines, "", caption]) + "\n"


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write the rows as JSON, replacing an older file atomically."""
    rows = {phase: list(rows) for phase, rows in evaluation.items()}
    write_text(path, json.dumps(rows, indent=1, allow_nan=False) + "\n")


def read_evaluation(path: Path) -> dict[str, list[Row]]:
    """Read what `write_evaluation` wrote; DatasetError if the file is missing or not of this layout."""
    try:
        stored = read_json(path)
        required = Row.__required_keys__
        for phase, rows in stored.items():
            for row in rows:
                if missing := sorted(required - row.keys()):
                    raise ValueError(f"a row of '{phase}' lacks {', '.join(missing)}")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DatasetError(f"{path}: not a readable evaluation ({error}); run 'dipole evaluate' again") from error
    return dict(stored)


def _sorted(evaluation: Evaluation) -> tuple[list[tuple[str, Row]], bool]:
    """Return the rows in the order of the table, each with its phase, and whether the task defines success."""
    found = [(phase, row) for phase in phases_of(evaluation) for row in sort_rows(evaluation[phase])]
    return found, any(row["success"] is not None for _, row in found)


def _measures(has_success: bool) -> list[str]:
    return (["success"] if has_success else []) + ["return", "length"]


def _cells(row: Row, has_success: bool) -> list[str]:
    """Return method, omega, candidates and measures as texts."""
    success = with_interval(row["success"], row["success_low"], row["success_high"], ".2f")
    returns = (row["return"], row["return_low"], row["return_high"])
    largest = max(abs(value) for value in returns if value is not None)
    # Three digits that matter: small returns (sums of dense rewards below 10) need decimals, large ones none.
    form = ".0f" if largest >= 100 else ".1f" if largest >= 10 else ".2f"
    length = with_interval(row["length"], row["length_low"], row["length_high"], ".0f")
    omega = DASH if row["omega"] is None else f"{row['omega']:g}"
    measures = ([success] if has_success else []) + [with_interval(*returns, form), length]
    return [row["method"], omega, str(row["candidates"]), *measures]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _caption(rows: Sequence[Row], chosen: Chosen) -> str:
    """Say what the brackets, the counts and the mark mean."""
    if not rows:
        return "no rows"
    episodes = sorted({row["episodes"] for row in rows})
    counts = _count(episodes[0], "episode") if len(episodes) == 1 else f"{episodes[0]} to {episodes[-1]} episodes"
    text = f"Mean [{rows[0]['confidence']:.0%} interval] of {counts} per row"
    if any(row["success"] is not None for row in rows):
        text += "; Wilson for success, BCa bootstrap for the rest"
    text += "."
    if chosen is not None and any(is_chosen(row, chosen) for row in rows):
        text += f"\n< omega {chosen[0]:g} and {_count(chosen[1], 'candidate')}, {_NOTE}."
    return text
