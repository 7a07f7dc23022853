"""The pictures of a report: learning curves, omega curves, intervals, and scores over a suite's axis."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from dipole_ray.bench.scores import Point, Scores, Way
from dipole_ray.evaluation.statistics import (
    Numbers,
    Samples,
    Statistic,
    estimate,
    interquartile_mean,
    mean,
    probability_of_improvement,
    stratified_interval,
)
from dipole_ray.plots import style
from dipole_ray.plots.panels import Column, Estimate, Line, Panel, draw_intervals, draw_panels

_PALETTE = (*style.CYCLE, style.GREY, style.INK)
_SHADES = ("Blues", "Oranges", "Greens", "Purples")
_DIAGNOSTICS = (
    ("effective sample fraction", "actor/effective_sample_fraction", "median", False),
    ("gradient norm, median", "system/grad_norm", "median", True),
    ("gradient norm, highest", "system/grad_norm", "max", True),
)
_MOST_BANDS = 8  # learning curves with a band each in one panel; more cover one another


def draw(scores: Scores, out: Path) -> list[Path]:
    """Draw every picture that the suite has numbers for, and return the files."""
    pictures = _Pictures(scores, scores.phases()[-1])
    name, files = scores.config.name, []
    title, counts = f"{name}, {pictures.phase}", len(scores.candidates())
    for kind, panels, columns, headline in (
        ("curves", pictures.curves(), counts * math.ceil(len(scores.tasks) / 4), name),
        ("omega", pictures.omega_curves(), counts + 1, title),
        ("axis", pictures.over_axis(), 3, title),
    ):
        if panels:
            files.append(draw_panels(panels, out / f"{name}-{kind}.png", columns=columns, title=headline))
    intervals = pictures.intervals()
    if any(column.estimates for column in intervals):
        files.append(draw_intervals(intervals, out / f"{name}-intervals.png", title=title))
    return files


@dataclass(frozen=True)
class _Pictures:
    """What is drawn of a suite's scores."""

    scores: Scores
    phase: str  # the last one; only learning curves show every phase

    @cached_property
    def colours(self) -> dict[str, str]:
        """A colour a method: shades along the axis within a series, else the palette."""
        methods, colours = self.scores.methods, {}
        series = list(dict.fromkeys(method.series for method in methods.values() if method.series))
        for number, one in enumerate(series):
            members = sorted((n for n, m in methods.items() if m.series == one), key=lambda n: methods[n].x or 0.0)
            shades = mpl.colormaps[_SHADES[number % len(_SHADES)]](np.linspace(0.4, 0.95, len(members)))
            colours.update({name: to_hex(shade) for name, shade in zip(members, shades, strict=True)})
        others = [name for name in methods if name not in colours]  # those that stand on no axis
        return colours | {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(others)}

    @property
    def unit(self) -> str:
        """What a score is counted in."""
        return "success (%)" if self.scores.config.metric == "success" else "return"

    def panel(self, task: str, words: str, lines: Sequence[Line], **changes: Any) -> Panel:
        """Return a panel of scores, unless `changes` say otherwise; it names the task where there are several."""
        title = f"{task}, {words}" if len(self.scores.tasks) > 1 else words
        ylim = (-4, 104) if self.scores.config.metric == "success" else None
        return Panel(**{"title": title, "lines": lines, "ylabel": self.unit, "ylim": ylim} | changes)

    def line(self, method: str, samples: Mapping[float, Numbers], words: str = "", **changes: Any) -> Line:
        """Return a method's line through the means of samples."""
        return _line(self.scores.label(method) + words, self.colours[method], samples, **changes)

    # ---- learning curves ----

    def curves(self) -> list[Panel]:
        """Return a panel a task and number of candidates: the named omega of every method over updates."""
        panels = []
        for task, count in product(self.scores.tasks, self.scores.candidates()):
            lines, switch = [], None
            for method in self.scores.methods:
                points = pd.DataFrame(chain(*self.scores.curve(task, method, count).values()), columns=Point._fields)
                ends = points.groupby("phase")["learner_steps"].max()
                if len(ends) > 1:  # it went online, where its offline phase ended
                    switch = float(ends["offline"])
                if len(points):
                    by_step = points.groupby("learner_steps")["score"]
                    lines.append(self.line(method, {step: scores.to_numpy() for step, scores in by_step}))
            if len(lines) > _MOST_BANDS:
                lines = [replace(line, low=(), high=()) for line in lines]
            panels.append(self.panel(task, str(Way("named", count)), lines, xlabel="updates", online_from=switch))
        return panels if any(panel.lines for panel in panels) else []

    # ---- omega ----

    def omega_curves(self) -> list[Panel]:
        """Return, for tasks with an omega grid, scores over omega by candidates, and shares of actions at the bound."""
        panels = []
        counts, methods = self.scores.candidates(), self.scores.methods
        for task in self.scores.tasks:
            grids = [self.scores.omegas(task, method, counts[0]) for method in methods]
            ticks = sorted({omega for grid in grids if len(grid) > 1 for omega in grid})
            if not ticks:
                continue
            look = {"xlabel": "greediness \u03c9", "ticks": ticks}
            for count in counts:
                lines = [line for method in methods for line in self._omega_line(task, method, count)]
                panels.append(self.panel(task, str(Way("named", count)), lines, **look))
            bounds = [line for method in methods for line in self._bound_lines(task, method)]
            look |= {"ylabel": "share of components", "ylim": (-0.03, 1.03)}
            panels.append(self.panel(task, "actions at the bound", bounds, **look))
        return panels

    def _omega_line(self, task: str, method: str, count: int) -> list[Line]:
        """Return scores over omega; a level for a method without omega."""
        grid = sorted(self.scores.omegas(task, method, count).items())
        if len(grid) > 1:
            found = {omega: self.scores.finals(task, method, key, self.phase) for omega, key in grid}
            samples = {omega: np.array(list(values.values())) for omega, values in found.items() if values}
            return [self.line(method, samples)] if samples else []
        level = self.scores.of(task, method, Way("named", count), self.phase)
        look: dict[str, Any] = {"label": self.scores.label(method), "colour": self.colours[method]}
        return [Line(**look, x=(), y=[float(level.mean())])] if len(level) else []

    def _bound_lines(self, task: str, method: str) -> list[Line]:
        """Return the share of actions at the clip bound over omega, dashed with one candidate."""
        lines, items = [], []
        for run in self.scores.results(task, method).values():
            items += [item for item in run["evaluations"] if item["phase"] == self.phase][-1:]
        for count in self.scores.candidates():
            grid = sorted(self.scores.omegas(task, method, count).items())
            if items and len(grid) > 1:
                samples = {o: np.array([i["scores"][key]["action_bound_fraction"] for i in items]) for o, key in grid}
                lines.append(self.line(method, samples, ", 1 candidate" if count == 1 else "", dashed=count == 1))
        return lines

    # ---- a suite's own axis ----

    def over_axis(self) -> list[Panel]:
        """Return scores and diagnostics over every axis of a suite, one line a series."""
        axes: dict[str, dict[str, str]] = {}
        for method in self.scores.methods.values():
            axis = method.axis or self.scores.config.axis
            if axis is not None and method.series is not None:
                colours = axes.setdefault(axis, {})
                colours.setdefault(method.series, _PALETTE[len(colours) % len(_PALETTE)])
        return [p for axis, found in axes.items() for task in self.scores.tasks for p in self._axis(task, axis, found)]

    def _axis(self, task: str, axis: str, colours: Mapping[str, str]) -> list[Panel]:
        """Return the panels of one task over one axis; `colours` are those of the series."""

        def lines_of(measure: Callable[[str], Numbers]) -> list[Line]:
            samples = {one: self._points(one, measure) for one in colours}
            return [_line(one, colours[one], found) for one, found in samples.items() if found]

        of, other = partial(self.scores.of, task, phase=self.phase), {"ylabel": "", "ylim": None}
        ways = [Way("named", count) for count in self.scores.candidates()]
        drawn: list[tuple[str, dict[str, Any], bool, list[Line]]] = []
        drawn += [(str(way), {}, False, lines_of(partial(of, way=way))) for way in ways]
        for words, key, kind, log in _DIAGNOSTICS:
            drawn.append((words, other, log, lines_of(partial(self._diagnostic, task, key, kind))))
        drawn.append(("weight, median and 5 to 95 %", other, True, self._weight_lines(task, colours)))
        xs = sorted({x for *_, lines in drawn for line in lines for x in line.x})
        is_wide = len(xs) > 2 and style.is_wide(xs)
        look: dict[str, Any] = {"xlabel": axis, "ticks": xs if is_wide else _apart(xs)}
        panels = []
        for words, changes, log, lines in drawn:
            if lines:
                scales = (is_wide, log and style.is_wide([y for line in lines for y in line.y]))
                panels.append(self.panel(task, words, lines, log=scales, **look, **changes))
        return panels

    def _points(self, series: str, measure: Callable[[str], Numbers]) -> dict[float, Numbers]:
        """Return what `measure` gives for each method of a series, by its place on the axis; nothing where empty."""
        methods = self.scores.methods.items()
        found = {m.x: measure(name) for name, m in methods if m.series == series and m.x is not None}
        return {x: found[x] for x in sorted(found) if len(found[x])}

    def _diagnostic(self, task: str, key: str, kind: str, method: str) -> Numbers:
        """Return a training diagnostic of a method's runs."""
        found = [run["diagnostics"].get(key, {}).get(kind) for run in self.scores.results(task, method).values()]
        return np.array([value for value in found if value is not None], np.float64)

    def _weight_lines(self, task: str, colours: Mapping[str, str]) -> list[Line]:
        """Return the quantiles of the first field's weight at the end of training, medians over seeds."""
        lines = []
        for one in colours:
            keys = [f"actor/weight_q{level}" for level in ("50", "05", "95")]
            levels = [self._points(one, partial(self._diagnostic, task, key, "last")) for key in keys]
            xs = [x for x in levels[0] if all(x in level for level in levels)]
            # The axis is logarithmic, and a weight may be 0.
            middle, low, high = ([max(float(np.median(level[x])), 1e-6) for x in xs] for level in levels)
            if xs:
                lines.append(Line(label=one, colour=colours[one], x=xs, y=middle, low=low, high=high))
        return lines

    # ---- intervals ----

    def intervals(self) -> list[Column]:
        """Return IQM and probability of improvement by candidates, of the methods that have scores in all tasks."""
        scores, tasks, ways = self.scores, list(self.scores.tasks), self.scores.compared_ways()
        unit = "% of a full score" if len(tasks) > 1 else self.unit
        limits = (-3.0, 103.0) if scores.config.metric == "success" else None
        columns = []
        for way in ways:
            rows = self._estimates(interquartile_mean, way, [(method,) for method in scores.methods])
            columns.append(Column(title=f"IQM, {way}", xlabel=unit, estimates=rows, limits=limits))
        look: dict[str, Any] = {"xlabel": f"than {scores.label(scores.baseline)}", "limits": (-0.03, 1.03)}
        for way in ways:
            others = [method for method in scores.methods if not scores.is_baseline(method, way, tasks)]
            rows = self._estimates(probability_of_improvement, way, [(name, scores.baseline) for name in others])
            columns.append(Column(title=f"P(better), {way}", estimates=rows, reference=0.5, **look))
        return columns

    def _estimates(self, statistic: Statistic, way: Way, compared: Sequence[tuple[str, ...]]) -> list[Estimate]:
        """Return a statistic of the first of some methods, or against a second, where all tasks have scores."""
        rows = []
        for names in compared:
            samples, first = self.scores.compared(names, way, self.phase, list(self.scores.tasks)), names[0]
            if samples is not None:
                rows.append(Estimate(self.scores.label(first), *_with_ends(statistic, *samples), self.colours[first]))
        return rows


def _line(label: str, colour: str, samples: Mapping[float, Numbers], **changes: Any) -> Line:
    """Return a line through the means of samples, with their intervals as its band."""
    middle, low, high = zip(*(_with_ends(mean, [sample]) for sample in samples.values()), strict=True)
    return Line(label=label, colour=colour, x=list(samples), y=middle, low=low, high=high, **changes)


def _with_ends(statistic: Statistic, *methods: Samples) -> tuple[float, float, float]:
    """Return a statistic and the ends of its interval, which are the statistic itself where nothing is resampled."""
    value, (low, high) = estimate(statistic, *methods), stratified_interval(statistic, *methods)
    return (value, value, value) if math.isnan(low) else (value, low, high)


def _apart(ticks: Sequence[float]) -> list[float]:
    """Return the ticks whose labels do not cover one another: a twelfth of the axis apart."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick - kept[-1] > (ticks[-1] - ticks[0]) / 12:
            kept.append(tick)
    return kept
