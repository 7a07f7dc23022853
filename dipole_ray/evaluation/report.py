"""The result of an evaluation as people and programs read it: terminal table and JSON.

An evaluation maps a phase (`offline`, `online`) to rows, one a cell of the grid; `evaluation.json` in a run
folder is exactly that.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NotRequired, TypedDict

from rich.console import Console

from dipole_ray import tables
from dipole_ray.errors import DatasetError, counted
from dipole_ray.files.durable import read_json, write_text
from dipole_ray.tables import DASH, with_interval

FILE_NAME = "evaluation.json"
"""Name of the JSON file inside a run folder."""

SCORE = "pdms"
"""Which of the scores of plans is the return."""
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
        "scores": NotRequired[dict[str, float]],
        "score_errors": NotRequired[dict[str, float | None]],
    },
)
"""One cell: means with the ends of their intervals. `omega` is None for BC, `success` where the task defines none,
an interval where a single episode cannot give one. Lengths are in environment steps; success and fractions lie in
[0, 1]. `scores` are the means of what a plan is scored by, in [0, 1], and `score_errors` their standard errors, with
the scenes of one log as one draw; None where all are of one log."""

Evaluation = Mapping[str, Sequence[Row]]
"""Phase name to rows."""
Chosen = tuple[float, int] | None
"""Omega and candidates that the preset named before the run; their rows are marked."""

_PHASES = ("clone", "offline", "online")


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


def print_table(
    evaluation: Evaluation, *, chosen: Chosen = None, title: str = "", console: Console | None = None
) -> None:
    """Print the rows, `title` above them; without colour and at 100 columns where the output is not a terminal."""
    found = [(phase, row) for phase in phases_of(evaluation) for row in sort_rows(evaluation[phase])]
    rows = [row for _, row in found]
    has_success = any(row["success"] is not None for row in rows)
    measures = ["success", "return", "length"] if has_success else ["return", "length"]
    measures = next((list(row["scores"]) for row in rows if "scores" in row), measures)
    places = [(phase, row["candidates"]) for phase, row in found]
    ruled = [index for index, (place, following) in enumerate(pairwise(places)) if place != following]
    marked = [index for index, row in enumerate(rows) if is_chosen(row, chosen)]
    cells = []
    for index, (phase, row) in enumerate(found):
        label = "" if index and found[index - 1][0] == phase else phase
        arrow = "<" if index in marked else ""  # reads where there is no colour, too
        cells.append([label, *_cells(row, measures), arrow])
    head, numbers = ["phase", "method", "omega", "cand.", *measures, ""], range(2, 4 + len(measures))
    caption = _caption(rows, chosen if marked else None)
    made = tables.terminal_table(head, cells, numbers=numbers, marked=marked, ruled=ruled, title=title, caption=caption)
    tables.print_table(made, 100, console)


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write the rows as JSON, replacing an older file atomically."""
    write_text(path, json.dumps(evaluation, indent=1, allow_nan=False) + "\n")


def read_evaluation(path: Path) -> dict[str, list[Row]]:
    """Read what `write_evaluation` wrote; DatasetError if the file is missing or not of this layout."""
    try:
        stored = read_json(path)
        for phase, rows in stored.items():
            for row in rows:
                if missing := sorted(Row.__required_keys__ - row.keys()):
                    raise ValueError(f"a row of '{phase}' lacks {', '.join(missing)}")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DatasetError(f"{path}: not a readable evaluation ({error}); run 'dipole evaluate' again") from error
    return dict(stored)


def _cells(row: Row, measures: Sequence[str]) -> list[str]:
    """Return method, omega, candidates and measures as texts."""
    returns = (row["return"], row["return_low"], row["return_high"])
    largest = max(abs(value) for value in returns if value is not None)
    # Three digits that matter: small returns (sums of dense rewards below 10) need decimals, large ones none.
    form = ".0f" if largest >= 100 else ".1f" if largest >= 10 else ".2f"
    texts = {
        "success": with_interval(row["success"], row["success_low"], row["success_high"], ".2f"),
        "return": with_interval(*returns, form),
        "length": with_interval(row["length"], row["length_low"], row["length_high"], ".0f"),
    }
    for name, mean in row.get("scores", {}).items():
        error = row["score_errors"][name] if name == SCORE else None
        texts[name] = f"{100 * mean:.1f}" + ("" if error is None else f" +- {100 * error:.1f}")
    omega = DASH if row["omega"] is None else f"{row['omega']:g}"
    return [row["method"], omega, str(row["candidates"]), *(texts[measure] for measure in measures)]


def _caption(rows: Sequence[Row], marked: Chosen) -> str:
    """Say what the brackets, the counts and the mark mean."""
    if not rows:
        return "no rows"
    episodes = sorted({row["episodes"] for row in rows})
    counts = counted(episodes[0], "episode") if len(episodes) == 1 else f"{episodes[0]} to {episodes[-1]} episodes"
    text = f"Mean [{rows[0]['confidence']:.0%} interval] of {counts} per row"
    if any("scores" in row for row in rows):
        text = f"Percent, means of {counts.replace('episode', 'scene')} per row, +- standard error over logs"
    elif any(row["success"] is not None for row in rows):
        text += "; Wilson for success, BCa bootstrap for the rest"
    text += "."
    if marked is not None:
        text += f"\n< omega {marked[0]:g} and {counted(marked[1], 'candidate')}, chosen before the run."
    return text
