"""The pictures of a report: learning curves, omega curves, intervals, and scores over a suite's axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from dipole_ray.bench.board import Board, Point, Way
from dipole_ray.bench.statistics import (
    Statistic,
    estimate,
    interquartile_mean,
    interval,
    mean,
    probability_of_improvement,
)
from dipole_ray.plots import style
from dipole_ray.plots.intervals import Column, Estimate, draw_intervals
from dipole_ray.plots.panels import Line, Panel, draw_panels

Sample = NDArray[np.float64]

_PALETTE = (*style.CYCLE, style.GREY, style.INK)
_SHADES = ("Blues", "Oranges", "Greens", "Purples")
_DIAGNOSTICS = (
    ("effective sample fraction", "actor/effective_sample_fraction", "median", False),
    ("gradient norm, median", "system/grad_norm", "median", True),
    ("gradient norm, highest", "system/grad_norm", "max", True),
)


_MOST_BANDS = 8
"""Learning curves with a band each in one panel; more cover one another."""


def draw(board: Board, out: Path) -> list[Path]:
    """Draw every picture that the suite has numbers for, and return the files."""
    name, phase, colours = board.config.name, board.phases()[-1], _colours(board)
    pictures = []
    if curves := _curves(board, colours):
        columns = len(board.candidates()) * math.ceil(len(board.tasks) / 4)
        pictures.append(draw_panels(curves, out / f"{name}-curves.png", columns=columns, title=name))
    if omegas := _omega_curves(board, colours, phase):
        columns = len(board.candidates()) + 1
        pictures.append(draw_panels(omegas, out / f"{name}-omega.png", columns=columns, title=f"{name}, {phase}"))
    if axis := _over_axis(board, phase):
        pictures.append(draw_panels(axis, out / f"{name}-axis.png", columns=3, title=f"{name}, {phase}"))
    columns_ = _intervals(board, colours, phase)
    if any(column.estimates for column in columns_):
        pictures.append(draw_intervals(columns_, out / f"{name}-intervals.png", title=f"{name}, {phase}"))
    return pictures


def _colours(board: Board) -> dict[str, str]:
    """Return a colour a method: shades along the axis within a series, else the palette."""
    colours = {}
    series = list(dict.fromkeys(method.series for method in board.methods.values() if method.series))
    for number, one in enumerate(series):
        members = sorted((name for name, m in board.methods.items() if m.series == one), key=lambda n: _x(board, n))
        shades = mpl.colormaps[_SHADES[number % len(_SHADES)]](np.linspace(0.4, 0.95, len(members)))
        colours.update({name: to_hex(shade) for name, shade in zip(members, shades, strict=True)})
    others = [name for name in board.methods if name not in colours]
    return colours | {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(others)}


def _x(board: Board, method: str) -> float:
    return board.methods[method].x or 0.0


def _unit(board: Board) -> str:
    return "success (%)" if board.config.metric == "success" else "return"


def _ylim(board: Board) -> tuple[float, float] | None:
    return (-4, 104) if board.config.metric == "success" else None


# ---- learning curves ----


def _curves(board: Board, colours: Mapping[str, str]) -> list[Panel]:
    """Return a panel a task and number of candidates: the named omega of every method over updates."""
    panels = []
    for task in board.tasks:
        for count in board.candidates():
            lines, switch = [], None
            for method in board.methods:
                key = board.named_key(task, method, count)
                if key is None:
                    continue
                curves = board.curve(task, method, key)
                points = [point for curve in curves.values() for point in curve]
                offline = [point.learner_steps for point in points if point.phase == "offline"]
                if offline and any(point.phase == "online" for point in points):
                    switch = float(max(offline))
                lines += _curve(board.label(method), colours[method], curves)
            if len(lines) > _MOST_BANDS:
                lines = [replace(line, low=(), high=()) for line in lines]
            title = f"{task}, {Way('named', count)}" if len(board.tasks) > 1 else str(Way("named", count))
            panels.append(
                Panel(
                    title=title,
                    xlabel="updates",
                    ylabel=_unit(board),
                    lines=lines,
                    ylim=_ylim(board),
                    online_from=switch,
                )
            )
    return panels if any(panel.lines for panel in panels) else []


def _curve(label: str, colour: str, curves: Mapping[int, Sequence[Point]]) -> list[Line]:
    """Return the mean and band over seeds at each evaluation."""
    scores: dict[int, list[float]] = {}
    for curve in curves.values():
        for point in curve:
            scores.setdefault(point.learner_steps, []).append(point.score)
    if not scores:
        return []
    at = sorted(scores)
    return [_line(label, colour, at, [np.array(scores[step]) for step in at])]


def _line(label: str, colour: str, x: Sequence[float], samples: Sequence[Sample], *, dashed: bool = False) -> Line:
    """Return a line through the means of samples, with their intervals as its band."""
    middle = [estimate(mean, [sample]) for sample in samples]
    ends = [interval(mean, [sample]) for sample in samples]
    low = [at if math.isnan(end.low) else end.low for at, end in zip(middle, ends, strict=True)]
    high = [at if math.isnan(end.high) else end.high for at, end in zip(middle, ends, strict=True)]
    return Line(label=label, colour=colour, x=list(x), y=middle, low=low, high=high, dashed=dashed)


# ---- omega ----


def _omega_curves(board: Board, colours: Mapping[str, str], phase: str) -> list[Panel]:
    """Return, for every task with an omega grid, scores over omega by candidates, and shares of actions at the bound.

    Methods without omega are levels.
    """
    panels = []
    for task in board.tasks:
        counts = board.candidates()
        grids = {method: board.omegas(task, method, counts[0]) for method in board.methods}
        if not any(len(grid) > 1 for grid in grids.values()):
            continue
        ticks = sorted({omega for grid in grids.values() if len(grid) > 1 for omega in grid})
        prefix = f"{task}, " if len(board.tasks) > 1 else ""
        for count in counts:
            lines = [
                line for method in board.methods for line in _omega_line(board, task, method, count, phase, colours)
            ]
            panels.append(
                Panel(
                    title=f"{prefix}{Way('named', count)}",
                    xlabel="greediness \u03c9",
                    ylabel=_unit(board),
                    lines=lines,
                    ylim=_ylim(board),
                    ticks=ticks,
                )
            )
        bounds = [line for method in board.methods for line in _bound_lines(board, task, method, phase, colours)]
        panels.append(
            Panel(
                title=f"{prefix}actions at the bound",
                xlabel="greediness \u03c9",
                ylabel="share of components",
                lines=bounds,
                ylim=(-0.03, 1.03),
                ticks=ticks,
            )
        )
    return panels


def _omega_line(board: Board, task: str, method: str, count: int, phase: str, colours: Mapping[str, str]) -> list[Line]:
    grid = board.omegas(task, method, count)
    if len(grid) > 1:
        scores = {omega: board.finals(task, method, key, phase) for omega, key in sorted(grid.items())}
        samples = {omega: np.array(list(found.values())) for omega, found in scores.items() if found}
        return [_line(board.label(method), colours[method], list(samples), list(samples.values()))] if samples else []
    level = board.scores(task, method, Way("named", count), phase)
    return (
        [Line(label=board.label(method), colour=colours[method], x=(), y=[float(level.mean())])] if len(level) else []
    )


def _bound_lines(board: Board, task: str, method: str, phase: str, colours: Mapping[str, str]) -> list[Line]:
    """Return the share of actions at the clip bound over omega, dashed with one candidate."""
    lines = []
    for count in board.candidates():
        samples = {}
        for omega, key in sorted(board.omegas(task, method, count).items()):
            runs = board.results(task, method).values()
            last = [[item for item in run["evaluations"] if item["phase"] == phase][-1:] for run in runs]
            shares = [item["scores"][key]["action_bound_fraction"] for items in last for item in items]
            if shares:
                samples[omega] = np.array(shares)
        if len(samples) > 1:
            dashed = count == 1
            lines.append(
                _line(
                    board.label(method) + (", 1 candidate" if dashed else ""),
                    colours[method],
                    list(samples),
                    list(samples.values()),
                    dashed=dashed,
                )
            )
    return lines


# ---- a suite's own axis ----


def _over_axis(board: Board, phase: str) -> list[Panel]:
    """Return scores and diagnostics over every axis of a suite, one line a series."""
    axes: dict[str, dict[str, str]] = {}
    for method in board.methods.values():
        axis = method.axis or board.config.axis
        if axis is not None and method.series is not None:
            colours = axes.setdefault(axis, {})
            colours.setdefault(method.series, _PALETTE[len(colours) % len(_PALETTE)])
    return [panel for axis, colours in axes.items() for panel in _axis_panels(board, phase, axis, colours)]


def _axis_panels(board: Board, phase: str, axis: str, colours: Mapping[str, str]) -> list[Panel]:
    panels = []
    for task in board.tasks:
        prefix = f"{task}, " if len(board.tasks) > 1 else ""
        drawn: list[tuple[str, str, bool, list[Line]]] = []
        for count in board.candidates():
            way = Way("named", count)
            samples = {one: _points(board, one, partial(board.scores, task, way=way, phase=phase)) for one in colours}
            drawn.append((str(way), _unit(board), False, _series_lines(samples, colours)))
        for words, key, kind, log in _DIAGNOSTICS:
            samples = {one: _points(board, one, partial(_diagnostic, board, task, key, kind)) for one in colours}
            drawn.append((words, "", log, _series_lines(samples, colours)))
        drawn.append(("weight, median and 5 to 95 %", "", True, _weight_lines(board, task, colours)))
        xs = sorted({x for *_, lines in drawn for line in lines for x in line.x})
        is_wide = len(xs) > 2 and _is_wide(xs)
        panels += [
            Panel(
                title=prefix + words,
                xlabel=axis,
                ylabel=unit,
                lines=lines,
                ylim=_ylim(board) if unit else None,
                ticks=xs if is_wide else _apart(xs),
                log=(is_wide, log and _is_wide([y for line in lines for y in line.y])),
            )
            for words, unit, log, lines in drawn
            if lines
        ]
    return panels


def _is_wide(values: Sequence[float]) -> bool:
    """Return whether values are better read on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > 20


def _apart(ticks: Sequence[float]) -> list[float]:
    """Return the ticks whose labels do not cover one another."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick - kept[-1] > (ticks[-1] - ticks[0]) / 12:
            kept.append(tick)
    return kept


def _points(board: Board, series: str, measure: Callable[[str], Sample]) -> dict[float, Sample]:
    """Return what `measure` gives for each method of a series, by its place on the axis; nothing where it is empty."""
    found = {m.x: measure(name) for name, m in board.methods.items() if m.series == series and m.x is not None}
    return {x: found[x] for x in sorted(found) if len(found[x])}


def _diagnostic(board: Board, task: str, key: str, kind: str, method: str) -> Sample:
    """Return a training diagnostic of a method's runs."""
    found = [run["diagnostics"].get(key, {}).get(kind) for run in board.results(task, method).values()]
    return np.array([value for value in found if value is not None], np.float64)


def _series_lines(samples: Mapping[str, Mapping[float, Sample]], colours: Mapping[str, str]) -> list[Line]:
    return [_line(one, colours[one], list(at), list(at.values())) for one, at in samples.items() if at]


def _weight_lines(board: Board, task: str, colours: Mapping[str, str]) -> list[Line]:
    """Return the quantiles of the first field's weight at the end of training, medians over seeds."""
    lines = []
    for one in colours:
        levels = [
            _points(board, one, partial(_diagnostic, board, task, f"actor/weight_q{level}", "last"))
            for level in ("50", "05", "95")
        ]
        xs = [x for x in levels[0] if all(x in level for level in levels)]
        middle, low, high = ([max(float(np.median(level[x])), 1e-6) for x in xs] for level in levels)
        if xs:
            lines.append(Line(label=one, colour=colours[one], x=xs, y=middle, low=low, high=high))
    return lines


# ---- intervals ----


def _intervals(board: Board, colours: Mapping[str, str], phase: str) -> list[Column]:
    """Return IQM and probability of improvement by candidates, of the methods that have scores in all tasks."""
    unit = "% of a full score" if len(board.tasks) > 1 else _unit(board)
    columns = []
    for way in board.compared_ways():
        rows = [_estimate(board, method, colours, interquartile_mean, way, phase) for method in board.methods]
        limits = (-3.0, 103.0) if board.config.metric == "success" else None
        found = [row for row in rows if row is not None]
        columns.append(Column(title=f"IQM, {way}", xlabel=unit, estimates=found, limits=limits))
    for way in board.compared_ways():
        others = [method for method in board.methods if not board.is_baseline(method, way, list(board.tasks))]
        rows = [
            _estimate(board, method, colours, probability_of_improvement, way, phase, board.baseline)
            for method in others
        ]
        columns.append(
            Column(
                title=f"P(better), {way}",
                xlabel=f"than {board.label(board.baseline)}",
                estimates=[row for row in rows if row is not None],
                reference=0.5,
                limits=(-0.03, 1.03),
            )
        )
    return columns


def _estimate(
    board: Board,
    method: str,
    colours: Mapping[str, str],
    statistic: Statistic,
    way: Way,
    phase: str,
    other: str | None = None,
) -> Estimate | None:
    names = [name for name in (method, other) if name is not None]
    scores = board.compared(names, way, phase, list(board.tasks))
    if scores is None:
        return None
    value, (low, high) = estimate(statistic, *scores), interval(statistic, *scores)
    ends = (value, value) if math.isnan(low) else (low, high)
    return Estimate(label=board.label(method), value=value, low=ends[0], high=ends[1], colour=colours[method])
