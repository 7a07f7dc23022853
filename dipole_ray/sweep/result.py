"""What a sweep leaves behind: leaderboard, pictures, and the best config as a file that `dipole train` takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.table import Table
from rich.text import Text

from dipole_ray.evaluation.report import Row
from dipole_ray.files.durable import json_text, write_text
from dipole_ray.plots.sweep import Line, Point, draw_parallel, draw_surface
from dipole_ray.stopping import StopRequests
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.records import SweepRecords, TrialRecord
from dipole_ray.tables import DASH, terminal_table, with_interval

BEST_FILE = "best.yaml"
SCORES = ("selected", "reported")  # a trial's scores on the selecting and on the reporting episodes

Board = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class SweepResult:
    """How a sweep ended."""

    plan: Plan
    folder: Path
    finished: bool  # False after a request to stop
    board: Board  # the trials, best first, as in `leaderboard.json`
    failed: dict[str, str]  # why trials failed, by name
    files: list[Path]  # what was written: leaderboard, pictures, best config
    view_command: str | None  # what shows the sweep in MLflow
    stops: StopRequests = field(default_factory=StopRequests)  # the signals that asked it to stop


def write_result(
    plan: Plan, records: SweepRecords, *, finished: bool, stops: StopRequests, view_command: str | None
) -> SweepResult:
    """Write leaderboard, pictures and best config from what the trials have so far."""
    folder, board = records.folder, leaderboard(plan, records)
    files: list[Path] = []
    if board:
        files.append(write_text(folder / "leaderboard.json", json_text(board)))
        files.append(write_text(folder / "leaderboard.csv", to_csv(plan, board)))
        files += _draw(plan, folder, board)
        if board[0]["status"] == "done":
            files.append(write_text(folder / BEST_FILE, best_config(plan, board[0])))
    failed = {record.id: record.error or "unknown" for record in records.having("failed")}
    return SweepResult(plan, folder, finished, board, failed, files, view_command, stops)


def leaderboard(plan: Plan, records: SweepRecords) -> Board:
    """Return the trials that have a result, best first; those that reached the last rung come before the others.

    The order is by the selecting episodes alone, as the choice was: ordering by the reporting ones would select on
    them too. Each has the scores of its last rung, and in `rows` the whole grid on the selecting episodes.
    """
    sweep, grid = plan.sweep, plan.sweep.evaluation

    def order(item: tuple[TrialRecord, dict[str, Any]]) -> tuple[bool, bool, float, float, str]:
        record, best = item[0], item[1]["best"]
        # A success and a return are not compared: a trial that told none has not succeeded.
        is_other = sweep.metric == "score" and best["success"] is None
        return record.status != "done", is_other, -sweep.gain(sweep.score(best)), -best["return"], record.id

    def scored(row: Row | None, seed: int) -> dict[str, Any] | None:
        if row is None:  # only trials that reached the last rung are reported
            return None
        numbers: Mapping[str, Any] = row
        low, high = (numbers[f"{sweep.measure(row)}_{end}"] for end in ("low", "high"))
        return {"value": sweep.score(row), "low": low, "high": high, "episodes": row["episodes"], "seed": seed}

    found = [(record, last) for record in records.trials.values() for last in records.results(record.id)[-1:]]
    board = []
    for rank, (record, last) in enumerate(sorted(found, key=order), start=1):
        best, trial = last["best"], {"rank": rank, "trial": record.id, "status": record.status}
        cell = {"omega": best["omega"], "candidates": best["candidates"], "metric": sweep.measure(best)}
        scores = {"selected": scored(best, grid.select_seed), "reported": scored(last["report"], grid.report_seed)}
        trial |= {"rung": int(last["rung"]), "values": record.values, "stacked": last.get("stacked", 1)}
        board.append({**trial, **cell, **scores, "run_id": record.run_id, "rows": last["rows"]})
    return board


def to_csv(plan: Plan, board: Board) -> str:
    """Return the leaderboard as CSV, one line a trial."""
    lines = []
    for item in board:
        ends = {f"{kind}_{end}": value for kind in SCORES for end, value in (item[kind] or {}).items()}
        lines.append({**item, **item["values"], **ends})
    scores = [f"{kind}_{end}" for kind in SCORES for end in ("value", "low", "high")]
    names = ["rank", "trial", "status", "rung", *plan.space, "omega", "candidates", "metric", *scores, "run_id"]
    # As objects, or a column of whole numbers with a gap would become one of fractions.
    text: str = pd.DataFrame(lines, columns=names, dtype=object).to_csv(index=False, lineterminator="\n")
    return text


def table(plan: Plan, board: Board, most: int = 20) -> Table:
    """Return the terminal table of the first `most` trials."""
    names = [key.rpartition(".")[2] for key in plan.space]
    head = ["", "trial", *names, "omega", "cand.", f"{board[0]['metric']}, selected", "reported", ""]
    rows = []
    for item in board[:most]:
        values = [item["values"].get(key) for key in plan.space]
        settings = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        omega = DASH if item["omega"] is None else f"{item['omega']:g}"
        state = "" if item["status"] == "done" else f"{item['status']} at rung {item['rung']}"
        scores = [_shown(item[kind]) for kind in SCORES]
        rows.append([str(item["rank"]), item["trial"], *settings, omega, str(item["candidates"]), *scores, state])
    more = f" {len(board) - most} more are in leaderboard.csv." if len(board) > most else ""
    grid = plan.sweep.evaluation
    caption = (
        f"Selected: mean [interval] of {grid.select_episodes} episodes, by which cell and trial were chosen.\n"
        f"Reported: {grid.report_episodes} other episodes of that cell; quote these.{more}"
    )
    marked = [0] if board[0]["status"] == "done" else []
    return terminal_table(head, rows, numbers=(len(head) - 3, len(head) - 2), marked=marked, caption=Text(caption))


def _shown(score: dict[str, Any] | None) -> str:
    if score is None:
        return DASH
    size = abs(score["value"])
    return with_interval(score["value"], score["low"], score["high"], f".{2 if size < 10 else 1 if size < 100 else 0}f")


def best_config(plan: Plan, best: dict[str, Any]) -> str:
    """Return the best trial's run as YAML, acting with its best omega and candidates."""
    config = plan.run_config(best["values"]).to_mapping()
    config["name"] = f"{plan.sweep.name}-best"
    config["agent"]["num_candidates"] = best["candidates"]
    if best["omega"] is not None:
        config["agent"]["omega"] = best["omega"]
    quoted = best["reported"] or best["selected"]
    settings = ", ".join(f"{key}={value}" for key, value in best["values"].items())
    score = f"{best['metric']} {quoted['value']:.4g} over {quoted['episodes']} episodes"
    lines = [
        f"# {best['trial']} of the sweep {plan.sweep.name} ({plan.digest()}): {settings}",
        f"# {score} that nothing was chosen by",
    ]
    if plan.sweep.scheduler == "pbt":
        lines.append("# PBT: the settings at the end of a schedule; a run that has them from its start is another run")
    return "\n".join([*lines, yaml.safe_dump(config, sort_keys=False)])


def _draw(plan: Plan, folder: Path, board: Board) -> list[Path]:
    """Draw a surface for every setting that varies, and all of them as parallel coordinates."""
    look: dict[str, Any] = {"label": board[0]["metric"], "mode": plan.sweep.mode, "title": folder.name}
    pictures = []
    whole = [item for item in board if item["status"] == "done"] or board
    for key in plan.space:
        points = [
            Point(item["values"][key], row["omega"], row["candidates"], plan.sweep.score(row))
            for item in whole
            for row in item["rows"]
            if row["omega"] is not None
        ]
        if len({repr(point.setting) for point in points}) > 1:
            name = key.rpartition(".")[2]
            pictures.append(draw_surface(points, folder / f"surface-{name}.png", setting=name, **look))
    lines = []
    for item in board:
        settings = {**item["values"], "omega": item["omega"], "candidates": item["candidates"]}
        lines.append(Line(settings, item["selected"]["value"], item["status"]))
    if len(lines) > 1:
        pictures.append(draw_parallel(lines, folder / "parallel.png", **look))
    return pictures
