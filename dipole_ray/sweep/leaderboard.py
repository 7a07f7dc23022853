"""The trials of a sweep in their order, each with its best cell on the selecting and on the reporting episodes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from dipole_ray.report import Row
from dipole_ray.sweep.ledger import Ledger
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.scoring import gain, interval_of, measure_of, metric_of
from dipole_ray.sweep.space import Values


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A trial's line."""

    trial: str
    """Its name."""
    status: str
    """`done`, `stopped`, ..."""
    rung: int
    """Evaluations finished; scores are those of the last."""
    values: Values
    """Its settings by dotted key."""
    best: Row
    """The best cell on the selecting episodes."""
    rows: Sequence[Row]
    """The whole grid on the selecting episodes."""
    report: Row | None
    """The same cell on the reporting episodes; only of trials that reached the last rung."""
    run_id: str | None
    """MLflow's id."""


def standings(plan: Plan, ledger: Ledger) -> list[Standing]:
    """Return the trials that have a result, best first; those that reached the last rung come before the others.

    The order is by the selecting episodes alone, as the choice was: ordering by the reporting ones would select on
    them too.
    """
    found = []
    for record in ledger.trials.values():
        results = ledger.results(record.id)
        if results:
            last = results[-1]
            found.append(
                Standing(
                    trial=record.id,
                    status=record.status,
                    rung=int(last["rung"]),
                    values=record.values,
                    best=last["best"],
                    rows=last["rows"],
                    report=last["report"],
                    run_id=record.run_id,
                )
            )
    sweep = plan.sweep

    def rank(item: Standing) -> tuple[bool, float, float, str]:
        score = gain(metric_of(item.best, sweep.metric), sweep)
        return item.status != "done", -score, -item.best["return"], item.trial

    return sorted(found, key=rank)


def to_plain(plan: Plan, board: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return the leaderboard as JSON values."""
    grid, metric = plan.sweep.evaluation, plan.sweep.metric

    def scored(row: Row | None, seed: int) -> dict[str, Any] | None:
        if row is None:
            return None
        low, high = interval_of(row, metric)
        return {"value": metric_of(row, metric), "low": low, "high": high, "episodes": row["episodes"], "seed": seed}

    return [
        {
            "rank": rank,
            "trial": item.trial,
            "status": item.status,
            "rung": item.rung,
            "values": item.values,
            "omega": item.best["omega"],
            "candidates": item.best["candidates"],
            "metric": measure_of(item.best, metric),
            "selected": scored(item.best, grid.select_seed),
            "reported": scored(item.report, grid.report_seed),
            "run_id": item.run_id,
            "rows": list(item.rows),
        }
        for rank, item in enumerate(board, start=1)
    ]


def to_csv(plan: Plan, board: Sequence[Standing]) -> str:
    """Return the leaderboard as CSV, one line a trial."""
    text = io.StringIO()
    scores = [f"{kind}_{end}" for kind in ("selected", "reported") for end in ("value", "low", "high")]
    names = ["rank", "trial", "status", "rung", *plan.space, "omega", "candidates", "metric", *scores, "run_id"]
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for line in to_plain(plan, board):
        for kind in ("selected", "reported"):
            line.update({f"{kind}_{end}": value for end, value in (line[kind] or {}).items()})
        writer.writerow({**line, **line["values"]})
    return text.getvalue()


def table(plan: Plan, board: Sequence[Standing], most: int = 20) -> Table:
    """Return the terminal table.

    Args:
        plan: The sweep.
        board: From `standings`.
        most: Lines shown.
    """
    grid, metric = plan.sweep.evaluation, plan.sweep.metric
    result = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", "trial", *(key.rpartition(".")[2] for key in plan.space), "omega", "cand."):
        result.add_column(name, no_wrap=True)
    measure = measure_of(board[0].best, metric) if board else metric
    result.add_column(f"{measure}, selected", justify="right", no_wrap=True)
    result.add_column("reported", justify="right", no_wrap=True)
    result.add_column("", no_wrap=True)
    for rank, item in enumerate(board[:most], start=1):
        settings = [_short(item.values.get(key)) for key in plan.space]
        cell = ["-" if item.best["omega"] is None else f"{item.best['omega']:g}", str(item.best["candidates"])]
        state = "" if item.status == "done" else f"{item.status} at rung {item.rung}"
        numbers = [_with_interval(item.best, metric), _with_interval(item.report, metric)]
        cells = [str(rank), item.trial, *settings, *cell, *numbers, state]
        is_best = rank == 1 and item.status == "done"
        result.add_row(*(Text(cell) for cell in cells), style="bold green" if is_best else None)
    more = f" {len(board) - most} more are in leaderboard.csv." if len(board) > most else ""
    result.caption = Text(
        f"Selected: mean [interval] of {grid.select_episodes} episodes, by which cell and trial were chosen.\n"
        f"Reported: {grid.report_episodes} other episodes of that cell; quote these.{more}"
    )
    result.caption_justify = "left"
    return result


def _with_interval(row: Row | None, metric: str) -> str:
    """Return a score with its interval."""
    if row is None:
        return "-"
    value, (low, high) = metric_of(row, metric), interval_of(row, metric)
    form = "{:.2f}" if abs(value) < 10 else "{:.1f}" if abs(value) < 100 else "{:.0f}"
    if low is None or high is None:
        return form.format(value)
    return f"{form.format(value)} [{form.format(low)}, {form.format(high)}]"


def _short(value: Any) -> str:
    """Return a setting in a few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
