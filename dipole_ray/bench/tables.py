"""The tables of a report in Markdown: scores, comparisons, published numbers beside ours, the switch, the training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dipole_ray.bench.board import Board, Point, Way, ended_in
from dipole_ray.bench.result import DIVERGED
from dipole_ray.bench.statistics import (
    Scores,
    Statistic,
    estimate,
    interquartile_mean,
    interval,
    mean,
    mean_difference,
    probability_of_improvement,
)

DASH = "-"
_TRAINING = (
    ("gradient norm", "system/grad_norm", "median"),
    ("its highest", "system/grad_norm", "max"),
    ("effective sample fraction", "actor/effective_sample_fraction", "median"),
    ("weight 5 %", "actor/weight_q05", "last"),
    ("50 %", "actor/weight_q50", "last"),
    ("95 %", "actor/weight_q95", "last"),
)


def score_table(board: Board, phase: str) -> list[str]:
    """Return the scores of every method on every task, for each way of acting."""
    ways = board.ways()
    rows = []
    for task in board.tasks:
        for method in board.methods:
            results = board.results(task, method)
            if not results:
                continue
            cells = [with_interval(mean, [board.scores(task, method, way, phase)]) for way in ways]
            lost = sum(run["status"] == DIVERGED for run in results.values())
            seeds = f"{len(results)}" + (f", {lost} diverged" if lost else "")
            rows.append([task, board.label(method), _named_omega(board, task, method), *cells, seeds])
    return table(["task", "method", "omega", *(str(way) for way in ways), "seeds"], rows, text=2)


def tuned_table(board: Board, phase: str) -> list[str]:
    """Return which omegas the other seeds chose, where there was a choice."""
    rows = []
    for task in board.tasks:
        for method in board.methods:
            counts = board.candidates()
            chosen = [[omega for omega, _ in board.tuned(task, method, count, phase).values()] for count in counts]
            if any(chosen):
                rows.append([task, board.label(method), *(", ".join(f"{x:g}" for x in row) or DASH for row in chosen)])
    return table(["task", "method", *(f"omega, {Way('named', count)}" for count in board.candidates())], rows, text=4)


def comparison_tables(board: Board, phase: str) -> list[str]:
    """Return, by group of tasks (or task) and for all together, IQM, difference and probability of improvement."""
    is_grouped = any(task.group is not None for task in board.tasks.values())
    groups = {**({} if is_grouped else {task: [task] for task in board.tasks}), **board.groups()}
    lines = []
    for group, tasks in groups.items():
        for way in board.compared_ways():
            rows = [row for method in board.methods if (row := _compared(board, method, way, phase, tasks))]
            if len(rows) > 1 or (rows and len(tasks) > 1):
                lines += ["", f"**{group}**, {way}:", ""]
                head = ["method", "candidates", "mean", "IQM", "difference of means", "probability of improvement"]
                lines += table(head, rows, text=1)
    return lines


def _compared(board: Board, method: str, way: Way, phase: str, tasks: Sequence[str]) -> list[str] | None:
    """Return a method's row, against the baseline acting in the same way."""
    alone = board.compared([method], way, phase, tasks)
    if alone is None:
        return None
    counts = {way.candidates or board.own_candidates(task, method) for task in tasks}
    row = [board.label(method), ", ".join(map(str, sorted(filter(None, counts))))]
    row += [with_interval(mean, *alone), with_interval(interquartile_mean, *alone)]
    is_same = board.is_baseline(method, way, tasks)
    both = None if is_same else board.compared([method, board.baseline], way, phase, tasks)
    if both is None:
        return [*row, DASH, DASH]
    return [
        *row,
        with_interval(mean_difference, *both, paired=True, sign="+"),
        with_interval(probability_of_improvement, *both, digits=2),
    ]


def paper_table(board: Board, published: Mapping[str, Mapping[str, float]], phase: str) -> list[str]:
    """Return the published numbers of our tasks or groups, ours in brackets where a method has the same name.

    `NAME_1` is the method without rejection sampling; all others act with the candidates of their own.
    """
    names = {**{task: [task] for task in board.tasks}, **board.groups()}
    columns = list(dict.fromkeys(column for row in published.values() for column in row))
    rows = []
    for name, tasks in names.items():
        if name in published:
            ours = [_ours(board, column, phase, tasks) for column in columns]
            numbers = [published[name].get(column) for column in columns]
            rows.append([name, *(_beside(number, own) for number, own in zip(numbers, ours, strict=True))])
    heads = [f"{column[:-2]}, 1 candidate" if column.endswith("_1") else column for column in columns]
    return table(["", *heads], rows, text=1) if rows else []


def _ours(board: Board, column: str, phase: str, tasks: Sequence[str]) -> float | None:
    """Return the mean score of ours over tasks for a column of the paper's."""
    method, count = (column[:-2], 1) if column.endswith("_1") else (column, None)
    if method not in board.methods:
        return None
    scores = [board.scores(task, method, Way("named", count), phase) for task in tasks]
    return estimate(mean, scores) if all(len(task) for task in scores) else None


def _beside(number: float | None, own: float | None) -> str:
    shown = DASH if number is None else f"{number:g}"
    return shown if own is None else f"{shown} ({number_text(own)})"


def switch_table(board: Board) -> list[str]:
    """Return what the step from offline to online did to the named omega; all differences are within a seed."""
    rows, count = [], board.config.evaluations
    for task in board.tasks:
        for method in board.methods:
            for candidates in board.candidates():
                key = board.named_key(task, method, candidates)
                if key is None:
                    continue
                runs, curves = board.results(task, method), board.curve(task, method, key)
                came = [curve for seed, curve in curves.items() if ended_in(runs[seed]) == "online"]
                found = [row for curve in came if (row := switch_of(curve, count))]
                if found:
                    before, first, after, until = np.array(found, np.float64).T
                    changes = [with_interval(mean, [values - before], sign="+") for values in (first, after)]
                    scores = [with_interval(mean, [values]) for values in (before, first, after)]
                    cells = [scores[0], scores[1], changes[0], f"{np.median(until):,.0f}", scores[2], changes[1]]
                    rows.append([task, board.label(method), str(candidates), *cells])
    head = ["task", "method", "candidates", "before", "first online", "change", "up to env step", "last", "change"]
    return table(head, rows, text=2) if rows else []


def switch_of(curve: Sequence[Point], count: int) -> tuple[float, float, float, int] | None:
    """Return a run's mean scores over its last `count` evaluations offline, its first and its last ones online.

    Means of as many evaluations each: a lowest one of many would be low by chance alone. And the environment step that
    the first ones end at. None where a phase has fewer evaluations.
    """
    offline = [point.score for point in curve if point.phase == "offline"]
    online = [point for point in curve if point.phase == "online"]
    if min(len(offline), len(online)) < count:
        return None
    before, first, last = offline[-count:], online[:count], online[-count:]
    scores = [float(np.mean(part)) for part in (before, [p.score for p in first], [p.score for p in last])]
    return scores[0], scores[1], scores[2], first[-1].env_steps


def training_table(board: Board) -> list[str]:
    """Return cost and diagnostics, medians over seeds; shares of actions at the bound at the least and most omega."""
    rows = []
    for task in board.tasks:
        for method, entry in board.methods.items():
            runs = list(board.results(task, method).values())
            if not runs or entry.runs_of is not None:
                continue
            values = [
                _median([run["diagnostics"].get(key, {}).get(kind) for run in runs]) for _, key, kind in _TRAINING
            ]
            rate = _median([run["updates_per_s"] for run in runs])
            lost = str(sum(run["status"] == DIVERGED for run in runs))
            rows.append([task, board.label(method), rate, *values, _at_bound(board, task, method, runs), lost])
    head = ["task", "method", "updates/s", *(name for name, _, _ in _TRAINING), "actions at the bound", "diverged"]
    return table(head, rows, text=2)


def _at_bound(board: Board, task: str, method: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the share of actions at the bound with one candidate, at the lowest and the highest omega."""
    keys = [key for key, cell in board.cells(task, method).items() if cell["candidates"] == 1]
    shares = []
    for key in dict.fromkeys([*keys[:1], *keys[-1:]]):
        last = [run["evaluations"][-1]["scores"][key] for run in runs if run["evaluations"]]
        shares.append(_median([scores["action_bound_fraction"] for scores in last]))
    return " to ".join(shares) or DASH


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return number_text(float(np.median(known))) if known else DASH


def _named_omega(board: Board, task: str, method: str) -> str:
    shown = board.methods[method].omega
    if shown is not None:
        return f"{shown:g}"
    for run in board.results(task, method).values():
        cell = run["cells"][run["chosen"]]
        if len(board.omegas(task, method, cell["candidates"])) > 1 or cell["omega"]:
            return f"{cell['omega']:g}"
    return DASH


def with_interval(
    statistic: Statistic, *methods: Scores, paired: bool = False, digits: int | None = None, sign: str = ""
) -> str:
    """Return `estimate [low, high]`, the estimate alone where there is one seed, a dash where there is none."""
    if any(not len(task) for scores in methods for task in scores):
        return DASH
    value, (low, high) = estimate(statistic, *methods), interval(statistic, *methods, paired=paired)
    if math.isnan(low):
        return number_text(value, digits, sign)
    largest = max(abs(value), abs(low), abs(high))
    digits = _digits(largest) if digits is None else digits
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def number_text(value: float, digits: int | None = None, sign: str = "") -> str:
    """Return a number with two or three digits that matter."""
    if digits is None and (value == 0 or not 1e-3 <= abs(value) < 1e6):
        return f"{value:{sign}.2g}"
    return f"{value:{sign}.{_digits(abs(value)) if digits is None else digits}f}"


def _digits(largest: float) -> int:
    return 0 if largest >= 200 else 1 if largest >= 10 or not largest else 2 if largest >= 1 else 3


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text: int) -> list[str]:
    """Return a Markdown table whose first `text` columns are words and the others numbers."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * text + "--:|" * (len(head) - text)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
