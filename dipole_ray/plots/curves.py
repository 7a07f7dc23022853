"""The learning curves of a run, read from its metrics.jsonl."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dipole_ray.errors import DatasetError
from dipole_ray.plots import style
from dipole_ray.tracking.metrics_file import read_lines

_SMOOTH_ABOVE = 60
"""Curves with more points than this are smoothed by a moving median."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """The lines of a metrics file, in the order of learner steps."""

    lines: tuple[Mapping[str, Any], ...]

    def series(self, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return learner steps and values of the lines that hold a finite `key`."""
        points = [
            (float(line["learner_steps"]), float(line[key]))
            for line in self.lines
            if isinstance(line.get(key), int | float) and math.isfinite(line[key])
        ]
        x, y = np.array(points, np.float64).reshape(-1, 2).T
        return x, y

    def keys(self, pattern: str) -> list[str]:
        """Return the keys that match a regular expression as a whole and hold a finite number, sorted."""
        names = {name for line in self.lines for name in line if re.fullmatch(pattern, name)}
        return sorted(name for name in names if len(self.series(name)[0]))

    @property
    def end(self) -> float:
        """Learner steps of the last line."""
        return max(float(line["learner_steps"]) for line in self.lines)

    def switch(self) -> tuple[float, int] | None:
        """Return the learner steps at which the online phase began and the environment steps it took, if it did."""
        online = [line for line in self.lines if line.get("env_steps", 0) > 0]
        if not online:
            return None
        offline = [line["learner_steps"] for line in self.lines if not line.get("env_steps", 0)]
        start = float(max(offline)) if offline else float(online[0]["learner_steps"])
        return start, int(max(line.get("env_steps", 0) for line in online))


def read_metrics(path: Path) -> Metrics:
    """Read a metrics file; a last line cut short by a killed process is left out.

    Raises:
        DatasetError: If the file is missing, or another line is not a JSON object with `learner_steps`.
    """
    return Metrics(tuple(sorted(read_lines(path), key=lambda line: float(line["learner_steps"]))))


def has_curves(metrics: Metrics) -> bool:
    """Tell whether the metrics hold anything that `draw_curves` has a panel for."""
    return bool(_panels_of(metrics))


def draw_curves(metrics: Metrics, path: Path, *, title: str = "") -> Path:
    """Draw evaluation, rollouts, losses, values and weights over learner steps and save them as PNG.

    Panels without data are left out, and so are keys; the online phase is shaded.

    Args:
        metrics: From `read_metrics`.
        path: The PNG to write.
        title: Headline.

    Returns:
        `path`.

    Raises:
        DatasetError: If the file holds nothing that has a panel.
    """
    panels = _panels_of(metrics)
    if not panels:
        raise DatasetError("the metrics hold no evaluation, rollout, loss, value or weight to draw")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with style.look():
        figure = style.new_figure(3.6 * columns + 0.2, 2.5 * rows + (0.4 if title else 0.1))
        grid = figure.subplots(rows, columns, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(panels):
                axes.set_visible(False)
                continue
            name, draw = panels[index]
            draw(axes, metrics)
            axes.set_title(name)
            style.thousands(axes)
            _shade_online(axes, metrics)
            axes.set_xlim(0, max(1.0, metrics.end))
            if index >= len(panels) - columns:
                axes.set_xlabel("learner steps")
        if title:
            figure.suptitle(title, fontsize=10.5, fontweight="bold")
        return style.save(figure, path)


def _panels_of(metrics: Metrics) -> list[tuple[str, Callable[[Axes, Metrics], None]]]:
    return [(name, draw) for name, keys, draw in _PANELS if any(metrics.keys(key) for key in keys)]


def _draw_evaluation(measure: str) -> Callable[[Axes, Metrics], None]:
    """Return a panel of one measure: evaluation with its interval, and the rollouts of training."""

    def draw(axes: Axes, metrics: Metrics) -> None:
        x, y = metrics.series(f"rollout/{measure}")
        if len(x):
            _draw_line(axes, x, y, style.GREY, "training rollouts")
        x, y = metrics.series(f"eval/{measure}")
        if len(x):
            axes.plot(x, y, color=style.BLUE, marker="o", markersize=4, clip_on=False, zorder=5, label="evaluation")
        at_low, low = metrics.series(f"eval/{measure}_low")
        at_high, high = metrics.series(f"eval/{measure}_high")
        if len(at_low) and np.array_equal(at_low, at_high):
            axes.fill_between(at_low, low, high, color=style.BLUE, alpha=0.16, linewidth=0)
        if measure == "success":
            axes.set_ylim(-0.05, 1.05)
        axes.set_ylabel({"success": "success rate", "return": "return per episode"}[measure])
        axes.legend()

    return draw


_LABELS = {"critic/q_mean": "mean Q", "value/v_mean": "mean V", "critic/loss": "critics", "value/loss": "value"}


def _draw_keys(pattern: str, ylabel: str, log: bool = False) -> Callable[[Axes, Metrics], None]:
    """Return a panel with one line for each key that matches; logarithmic only where all are positive."""

    def draw(axes: Axes, metrics: Metrics) -> None:
        smooth = []
        for key, colour in zip(metrics.keys(pattern), style.CYCLE, strict=False):
            label = _LABELS.get(key, key.split("/")[1].removeprefix("loss_").replace("_", " "))
            smooth.append(_draw_line(axes, *metrics.series(key), colour, label))
        lowest, highest = np.quantile(np.concatenate(smooth), (0.01, 0.99))
        if log and lowest > 0:
            # The first batches, and single ones later, lie decades away from the course of the curve.
            axes.set_yscale("log")
            axes.set_ylim(lowest / 2, highest * 2)
        axes.set_ylabel(ylabel)
        axes.legend()

    return draw


_QUANTILE = re.compile(r"actor/weight_q(\d+)")


def _draw_weights(axes: Axes, metrics: Metrics) -> None:
    """Draw the quantiles of the positive weight as nested bands around the median."""
    keys = {int(match.group(1)): key for key in metrics.keys(_QUANTILE.pattern) if (match := _QUANTILE.fullmatch(key))}
    levels = sorted(keys)
    for low, high in zip(levels, reversed(levels), strict=True):
        if low >= high:
            break
        x, bottom = metrics.series(keys[low])
        other, top = metrics.series(keys[high])
        if np.array_equal(x, other):
            label = f"{low}\u2013{high} %"
            axes.fill_between(
                x, _smooth(bottom), _smooth(top), color=style.PURPLE, alpha=0.22, linewidth=0, label=label
            )
    if 50 in keys:
        x, median = metrics.series(keys[50])
        axes.plot(x, _smooth(median), color=style.PURPLE, label="median")
    axes.set_ylim(-0.02, 1.22)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_ylabel("weight of the positive policy")
    axes.legend(loc="upper left", ncols=3, columnspacing=1.2)


def _draw_line(
    axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], colour: str, label: str
) -> NDArray[np.float64]:
    """Draw a line, faintly with its moving median on top where the points are many; return what stands out."""
    smooth = _smooth(y)
    if smooth is not y:
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.7)
    axes.plot(x, smooth, color=colour, label=label)
    return smooth


def _smooth(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the moving median over a fiftieth of the run, or `y` itself where the points are few."""
    if len(y) <= _SMOOTH_ABOVE:
        return y
    width = max(5, len(y) // 50)
    padded = np.pad(y, (width // 2, width - 1 - width // 2), "edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1))


def _shade_online(axes: Axes, metrics: Metrics) -> None:
    switch = metrics.switch()
    if switch is None:
        return
    start, env_steps = switch
    axes.axvspan(start, metrics.end, color=style.SKY, alpha=0.10, linewidth=0, zorder=0)
    axes.axvline(start, color=style.GREY, linewidth=0.9, linestyle=(0, (2, 2)))
    text = "online: " + f"{env_steps:,} env steps".replace(",", "\u2009")
    axes.annotate(
        text,
        (metrics.end, 1.0),
        xycoords=("data", "axes fraction"),
        ha="right",
        va="bottom",
        fontsize=7,
        color=style.GREY,
    )


_PANELS: Sequence[tuple[str, tuple[str, ...], Callable[[Axes, Metrics], None]]] = (
    ("Success", ("eval/success", "rollout/success"), _draw_evaluation("success")),
    ("Return", ("eval/return", "rollout/return"), _draw_evaluation("return")),
    ("Weights", (_QUANTILE.pattern,), _draw_weights),
    ("Policy losses", (r"actor/loss.*",), _draw_keys(r"actor/loss.*", "flow matching loss", log=True)),
    ("Value losses", (r"(critic|value)/loss.*",), _draw_keys(r"(critic|value)/loss.*", "loss", log=True)),
    ("Values", (r"critic/q_mean|value/v_mean",), _draw_keys(r"critic/q_mean|value/v_mean", "value (scaled reward)")),
)
"""Title, the keys of which at least one must be there, and how to draw it."""
