"""The trials of a sweep in their order, each with its best cell on the selecting and on the reporting episodes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich.table import Table
from rich.text import Text

from dipole_ray.evaluation.report import Row
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.records import SweepRecords
from dipole_ray.sweep.scoring import gain, interval_of, measure_of, metric_of
from dipole_ray.sweep.space import Values
from dipole_ray.tables import DASH, terminal_table, with_interval


class Standing(NamedTuple):
    """A trial's line."""

    trial: str
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
    """The best cell on the reporting episodes; only of trials that reached the last rung."""
    run_id: str | None
    """MLflow's id."""


def standings(plan: Plan, records: SweepRecords) -> list[Standing]:
    """Return the trials that have a result, best first; those that reached the last rung come before the others.

    The order is by the selecting episodes alone, as the choice was: ordering by the reporting ones would select on
    them too.
    """
    board = []
    for record in records.trials.values():
        for last in records.results(record.id)[-1:]:  # none, if the trial has not come to its first rung
            scores = last["best"], last["rows"], last["report"]
            board.append(Standing(record.id, record.status, int(last["rung"]), record.values, *scores, record.run_id))

    def rank(item: Standing) -> tuple[bool, float, float, str]:
        score = gain(metric_of(item.best, plan.sweep.metric), plan.sweep)
        return item.status != "done", -score, -item.best["return"], item.trial

    return sorted(board, key=rank)


def to_plain(plan: Plan, board: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return the leaderboard as JSON values."""
    grid, metric = plan.sweep.evaluation, plan.sweep.metric

    def scored(row: Row | None, seed: int) -> dict[str, Any] | None:
        if row is None:
            return None
        low, high = interval_of(row, metric)
        return {"value": metric_of(row, metric), "low": low, "high": high, "episodes": row["episodes"], "seed": seed}

    lines = []
    for rank, item in enumerate(board, start=1):
        trial = {"rank": rank, "trial": item.trial, "status": item.status, "rung": item.rung, "values": item.values}
        cell = {"omega": item.best["omega"], "candidates": item.best["candidates"]}
        scores = {
            "metric": measure_of(item.best, metric),
            "selected": scored(item.best, grid.select_seed),
            "reported": scored(item.report, grid.report_seed),
        }
        lines.append({**trial, **cell, **scores, "run_id": item.run_id, "rows": list(item.rows)})
    return lines


def to_csv(plan: Plan, board: Sequence[Standing]) -> str:
    """Return the leaderboard as CSV, one line a trial."""
    lines = to_plain(plan, board)
    for line in lines:
        line |= line["values"]
        for kind in ("selected", "reported"):
            line |= {f"{kind}_{end}": value for end, value in (line[kind] or {}).items()}
    scores = [f"{kind}_{end}" for kind in ("selected", "reported") for end in ("value", "low", "high")]
    names = ["rank", "trial", "status", "rung", *plan.space, "omega", "candidates", "metric", *scores, "run_id"]
    # As objects, or a column of whole numbers with a gap would become one of fractions.
    text: str = pd.DataFrame(lines, columns=names, dtype=object).to_csv(index=False, lineterminator="\n")
    return text


def table(plan: Plan, board: Sequence[Standing], most: int = 20) -> Table:
    """Return the terminal table of the first `most` trials."""
    grid, metric = plan.sweep.evaluation, plan.sweep.metric
    measure = measure_of(board[0].best, metric) if board else metric
    names = [key.rpartition(".")[2] for key in plan.space]
    head = ["", "trial", *names, "omega", "cand.", f"{measure}, selected", "reported", ""]
    rows = []
    for rank, item in enumerate(board[:most], start=1):
        values = [item.values.get(key) for key in plan.space]
        settings = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        omega = DASH if item.best["omega"] is None else f"{item.best['omega']:g}"
        scores = [_score(item.best, metric), _score(item.report, metric)]
        state = "" if item.status == "done" else f"{item.status} at rung {item.rung}"
        rows.append([str(rank), item.trial, *settings, omega, str(item.best["candidates"]), *scores, state])
    more = f" {len(board) - most} more are in leaderboard.csv." if len(board) > most else ""
    caption = (
        f"Selected: mean [interval] of {grid.select_episodes} episodes, by which cell and trial were chosen.\n"
        f"Reported: {grid.report_episodes} other episodes of that cell; quote these.{more}"
    )
    marked = [0] if board and board[0].status == "done" else []
    return terminal_table(head, rows, numbers=(len(head) - 3, len(head) - 2), marked=marked, caption=Text(caption))


def _score(row: Row | None, metric: str) -> str:
    if row is None:
        return DASH
    value = metric_of(row, metric)
    form = ".2f" if abs(value) < 10 else ".1f" if abs(value) < 100 else ".0f"
    return with_interval(value, *interval_of(row, metric), form)
