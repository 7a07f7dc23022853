"""The tables of a report in Markdown: scores, comparisons, published numbers beside ours, the switch, the training."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from dipole_ray.bench.result import DIVERGED
from dipole_ray.bench.scores import Point, Scores, Way, ended_in
from dipole_ray.evaluation.statistics import (
    Samples,
    Statistic,
    estimate,
    interquartile_mean,
    mean,
    mean_difference,
    probability_of_improvement,
    stratified_interval,
)
from dipole_ray.tables import DASH, markdown_table, with_interval

_TRAINING = (
    ("gradient norm", "system/grad_norm", "median"),
    ("its highest", "system/grad_norm", "max"),
    ("effective sample fraction", "actor/effective_sample_fraction", "median"),
    ("weight 5 %", "actor/weight_q05", "last"),
    ("50 %", "actor/weight_q50", "last"),
    ("95 %", "actor/weight_q95", "last"),
)


def score_table(scores: Scores, phase: str) -> list[str]:
    """Return the scores of every method on every task, for each way of acting."""
    ways = scores.ways()
    rows = []
    for task, method in scores.pairs():
        results = scores.results(task, method).values()
        cells = [_shown(mean, [scores.of(task, method, way, phase)]) for way in ways]
        lost = sum(run["status"] == DIVERGED for run in results)
        seeds = f"{len(results)}, {lost} diverged" if lost else str(len(results))
        rows.append([task, scores.label(method), _named_omega(scores, task, method), *cells, seeds])
    return markdown_table(["task", "method", "omega", *map(str, ways), "seeds"], rows, words=2)


def tuned_table(scores: Scores, phase: str) -> list[str]:
    """Return which omegas the other seeds chose, where there was a choice."""
    rows, counts = [], scores.candidates()
    for task, method in scores.pairs():
        chosen = [[omega for omega, _ in scores.tuned(task, method, count, phase).values()] for count in counts]
        if any(chosen):
            rows.append([task, scores.label(method), *(", ".join(f"{x:g}" for x in row) or DASH for row in chosen)])
    return markdown_table(["task", "method", *(f"omega, {Way('named', count)}" for count in counts)], rows, words=4)


def comparison_tables(scores: Scores, phase: str) -> list[str]:
    """Return, by group of tasks (or task) and for all together, IQM, difference and probability of improvement."""
    is_grouped = any(task.group is not None for task in scores.tasks.values())
    groups = {**({} if is_grouped else {task: [task] for task in scores.tasks}), **scores.groups()}
    lines = []
    for group, tasks in groups.items():
        for way in scores.compared_ways():
            rows = [row for method in scores.methods if (row := _compared(scores, method, way, phase, tasks))]
            if len(rows) > 1 or (rows and len(tasks) > 1):
                lines += ["", f"**{group}**, {way}:", ""]
                head = ["method", "candidates", "mean", "IQM", "difference of means", "probability of improvement"]
                lines += markdown_table(head, rows, words=1)
    return lines


def _compared(scores: Scores, method: str, way: Way, phase: str, tasks: Sequence[str]) -> list[str] | None:
    """Return a method's row, against the baseline acting in the same way."""
    alone = scores.compared([method], way, phase, tasks)
    if alone is None:
        return None
    counts = sorted({way.candidates or scores.own_candidates(task, method) for task in tasks})
    row = [scores.label(method), ", ".join(map(str, counts))]
    row += [_shown(mean, *alone), _shown(interquartile_mean, *alone)]
    is_same = scores.is_baseline(method, way, tasks)
    both = None if is_same else scores.compared([method, scores.baseline], way, phase, tasks)
    if both is None:
        return [*row, DASH, DASH]
    difference = _shown(mean_difference, *both, paired=True, sign="+")
    return [*row, difference, _shown(probability_of_improvement, *both, digits=2)]


def paper_table(scores: Scores, published: Mapping[str, Mapping[str, float]], phase: str) -> list[str]:
    """Return the published numbers of our tasks or groups, ours in brackets where a method has the same name.

    `NAME_1` is the method without rejection sampling; all others act with the candidates of their own.
    """
    names = {**{task: [task] for task in scores.tasks}, **scores.groups()}
    columns = list(dict.fromkeys(column for row in published.values() for column in row))
    rows = []
    for name, tasks in names.items():
        if name in published:
            cells = []
            for column in columns:
                number, own = published[name].get(column), _ours(scores, column, phase, tasks)
                shown = DASH if number is None else f"{number:g}"
                cells.append(shown if own is None else f"{shown} ({_number(own)})")
            rows.append([name, *cells])
    heads = [f"{column[:-2]}, 1 candidate" if column.endswith("_1") else column for column in columns]
    return markdown_table(["", *heads], rows, words=1) if rows else []


def _ours(scores: Scores, column: str, phase: str, tasks: Sequence[str]) -> float | None:
    """Return the mean score of ours over tasks for a column of the paper's."""
    method, count = (column[:-2], 1) if column.endswith("_1") else (column, None)
    if method not in scores.methods:
        return None
    samples = [scores.of(task, method, Way("named", count), phase) for task in tasks]
    return estimate(mean, samples) if all(map(len, samples)) else None


def switch_table(scores: Scores) -> list[str]:
    """Return what the step from offline to online did to the named omega; all differences are within a seed."""
    rows = []
    for (task, method), candidates in product(scores.pairs(), scores.candidates()):
        curves, runs = scores.curve(task, method, candidates), scores.results(task, method)
        came = [curve for seed, curve in curves.items() if ended_in(runs[seed]) == "online"]
        found = [row for curve in came if (row := switch_of(curve, scores.config.evaluations))]
        if found:
            before, first, after, until = np.array(found, np.float64).T
            changes = [_shown(mean, [values - before], sign="+") for values in (first, after)]
            means = [_shown(mean, [values]) for values in (before, first, after)]
            cells = [means[0], means[1], changes[0], f"{np.median(until):,.0f}", means[2], changes[1]]
            rows.append([task, scores.label(method), str(candidates), *cells])
    head = ["task", "method", "candidates", "before", "first online", "change", "up to env step", "last", "change"]
    return markdown_table(head, rows, words=2) if rows else []


def switch_of(curve: Sequence[Point], count: int) -> tuple[float, float, float, int] | None:
    """Return a run's mean scores over its last `count` evaluations offline, its first and its last ones online.

    Means of as many evaluations each: a lowest one of many would be low by chance alone. And the environment step that
    the first ones end at. None where a phase has fewer evaluations.
    """
    offline = [point.score for point in curve if point.phase == "offline"]
    online = [point for point in curve if point.phase == "online"]
    if min(len(offline), len(online)) < count:
        return None
    scores = [point.score for point in online]
    before, first, last = (float(np.mean(part)) for part in (offline[-count:], scores[:count], scores[-count:]))
    return before, first, last, online[count - 1].env_steps


def training_table(scores: Scores) -> list[str]:
    """Return cost and diagnostics, medians over seeds; shares of actions at the bound at the least and most omega."""
    rows = []
    for task, method in scores.pairs():
        runs = list(scores.results(task, method).values())
        if scores.methods[method].runs_of is None:  # else its training is the other's
            last = [run["diagnostics"] for run in runs]
            values = [_median([series.get(key, {}).get(kind) for series in last]) for _, key, kind in _TRAINING]
            rate = _median([run["updates_per_s"] for run in runs])
            lost = str(sum(run["status"] == DIVERGED for run in runs))
            rows.append([task, scores.label(method), rate, *values, _at_bound(scores, task, method, runs), lost])
    head = ["task", "method", "updates/s", *(name for name, _, _ in _TRAINING), "actions at the bound", "diverged"]
    return markdown_table(head, rows, words=2)


def _at_bound(scores: Scores, task: str, method: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the share of actions at the bound with one candidate, at the lowest and the highest omega."""
    keys = [key for key, cell in scores.cells(task, method).items() if cell["candidates"] == 1]
    last = [run["evaluations"][-1]["scores"] for run in runs if run["evaluations"]]
    ends = dict.fromkeys([*keys[:1], *keys[-1:]])
    return " to ".join(_median([rows[key]["action_bound_fraction"] for rows in last]) for key in ends) or DASH


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _number(float(np.median(known))) if known else DASH


def _named_omega(scores: Scores, task: str, method: str) -> str:
    shown, own = scores.methods[method].omega, scores.own_cell(task, method)
    if shown is None and (len(scores.omegas(task, method, own["candidates"])) > 1 or own["omega"]):
        shown = own["omega"]
    return DASH if shown is None else f"{shown:g}"


def _shown(
    statistic: Statistic, *methods: Samples, paired: bool = False, digits: int | None = None, sign: str = ""
) -> str:
    """Return `estimate [low, high]`, the estimate alone where there is one seed, a dash where there is none."""
    if any(not len(task) for samples in methods for task in samples):  # not evaluated in that way
        return DASH
    value, (low, high) = estimate(statistic, *methods), stratified_interval(statistic, *methods, paired=paired)
    if math.isnan(low):
        return _number(value, digits, sign)
    if digits is None:
        digits = _digits(max(abs(value), abs(low), abs(high)))
    return with_interval(value, low, high, f"{sign}.{digits}f")


def _number(value: float, digits: int | None = None, sign: str = "") -> str:
    """Return a number with two or three digits that matter."""
    if digits is None and (value == 0 or not 1e-3 <= abs(value) < 1e6):
        return f"{value:{sign}.2g}"
    return f"{value:{sign}.{_digits(abs(value)) if digits is None else digits}f}"


def _digits(largest: float) -> int:
    return 0 if largest >= 200 else 1 if largest >= 10 or not largest else 2 if largest >= 1 else 3
