"""What a sweep leaves behind: leaderboard, pictures, and the best config as a file that `dipole train` takes."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from dipole_ray.files.durable import write_text
from dipole_ray.plots.parallel import Line, draw_parallel
from dipole_ray.plots.surface import Point, draw_surface
from dipole_ray.sweep.leaderboard import Standing, standings, to_csv, to_plain
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.records import SweepRecords
from dipole_ray.sweep.scoring import measure_of, metric_of

BEST_FILE = "best.yaml"


@dataclass(frozen=True, slots=True)
class SweepResult:
    """How a sweep ended."""

    plan: Plan
    folder: Path
    finished: bool  # False after Ctrl-C
    board: list[Standing]  # the trials, best first
    failed: dict[str, str]  # why trials failed, by name
    files: list[Path]  # what was written: leaderboard, pictures, best config
    view_command: str | None  # what shows the sweep in MLflow


def write_result(plan: Plan, records: SweepRecords, *, finished: bool, view_command: str | None) -> SweepResult:
    """Write leaderboard, pictures and best config from what the trials have so far."""
    folder, board = records.folder, standings(plan, records)
    files: list[Path] = []
    if board:
        files.append(write_text(folder / "leaderboard.json", json.dumps(to_plain(plan, board), indent=1) + "\n"))
        files.append(write_text(folder / "leaderboard.csv", to_csv(plan, board)))
        files += _draw(plan, folder, board)
        if board[0].status == "done":
            files.append(write_text(folder / BEST_FILE, best_config(plan, board[0])))
    failed = {record.id: record.error or "unknown" for record in records.having("failed")}
    return SweepResult(plan, folder, finished, board, failed, files, view_command)


def best_config(plan: Plan, best: Standing) -> str:
    """Return the best trial's run as YAML, acting with its best omega and candidates."""
    config = plan.run_config(best.values).to_mapping()
    config["name"] = f"{plan.sweep.name}-best"
    config["agent"]["num_candidates"] = best.best["candidates"]
    if best.best["omega"] is not None:
        config["agent"]["omega"] = best.best["omega"]
    metric, quoted = plan.sweep.metric, best.report or best.best
    settings = ", ".join(f"{key}={value}" for key, value in best.values.items())
    score = f"{measure_of(quoted, metric)} {metric_of(quoted, metric):.4g} over {quoted['episodes']} episodes"
    lines = [
        f"# {best.trial} of the sweep {plan.sweep.name} ({plan.digest()}): {settings}",
        f"# {score} that nothing was chosen by",
    ]
    if plan.sweep.scheduler == "pbt":
        lines.append("# PBT: the settings at the end of a schedule; a run that has them from its start is another run")
    return "\n".join([*lines, yaml.safe_dump(config, sort_keys=False)])


def _draw(plan: Plan, folder: Path, board: list[Standing]) -> list[Path]:
    """Draw a surface for every numeric setting, and all of them as parallel coordinates."""
    metric, title = plan.sweep.metric, folder.name
    label, pictures = measure_of(board[0].best, metric), []
    whole = [item for item in board if item.status == "done"] or board
    for key in plan.space:
        points = [
            Point(item.values[key], row["omega"], row["candidates"], metric_of(row, metric))
            for item in whole
            for row in item.rows
            if row["omega"] is not None
        ]
        if points and len({repr(point.setting) for point in points}) > 1:
            name = key.rpartition(".")[2]
            path = folder / f"surface-{name}.png"
            pictures.append(draw_surface(points, path, setting=name, label=label, mode=plan.sweep.mode, title=title))
    lines = []
    for item in board:
        settings = {**item.values, "omega": item.best["omega"], "candidates": item.best["candidates"]}
        lines.append(Line(settings, metric_of(item.best, metric), item.status))
    if len(lines) > 1:
        path = folder / "parallel.png"
        pictures.append(draw_parallel(lines, path, label=label, mode=plan.sweep.mode, title=title))
    return pictures
