"""The learning curves of a run, read from its metrics.jsonl."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dipole_ray.errors import DatasetError
from dipole_ray.plots import style
from dipole_ray.tracking.metrics_file import read_lines

Numbers = NDArray[np.float64]

_SMOOTH_ABOVE = 60  # curves with more points are smoothed by a moving median


@dataclass(frozen=True, slots=True)
class Metrics:
    """The lines of a metrics file, in the order of learner steps."""

    lines: tuple[Mapping[str, Any], ...]

    def series(self, key: str) -> tuple[Numbers, Numbers]:
        """Return learner steps and values of the lines that hold a finite `key`."""
        found = [(line["learner_steps"], line.get(key)) for line in self.lines]
        points = [(x, y) for x, y in found if isinstance(y, int | float) and math.isfinite(y)]
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

    def cloned(self) -> float | None:
        """Return the learner steps at which the clone phase ended, if there was one: it trains no critic."""
        cloned = [line for line in self.lines if "actor/loss_bc" in line and "critic/loss" not in line]
        return float(cloned[-1]["learner_steps"]) if cloned else None

    def switch(self) -> tuple[float, int] | None:
        """Return the learner steps at which the online phase began and the environment steps it took, if it did."""
        online = [line for line in self.lines if line.get("env_steps", 0) > 0]
        offline = [line for line in self.lines if not line.get("env_steps", 0)]
        if not online:
            return None
        start = (offline[-1] if offline else online[0])["learner_steps"]
        return float(start), int(max(line["env_steps"] for line in online))


def read_metrics(path: Path) -> Metrics:
    """Read a metrics file; DatasetError where it is missing or damaged, as of `read_lines`."""
    return Metrics(tuple(sorted(read_lines(path), key=lambda line: float(line["learner_steps"]))))


def draw_curves(metrics: Metrics, path: Path, *, title: str = "") -> Path:
    """Draw evaluation, rollouts, losses, values and weights over learner steps, save them as PNG, and return `path`.

    Panels and keys without data are left out; the clone and the online phase are shaded.

    Raises:
        DatasetError: If the file holds nothing that has a panel.
    """
    panels = panels_of(metrics)
    if not panels:
        raise DatasetError("the metrics hold no evaluation, rollout, loss, value or weight to draw")
    columns, cloned, switch = min(3, len(panels)), metrics.cloned(), metrics.switch()
    rows = math.ceil(len(panels) / columns)
    size = 3.6 * columns + 0.2, 2.5 * rows + (0.4 if title else 0.1)
    with style.picture(path, size, (rows, columns), title=title) as (_, grid):
        for axes, (name, draw) in zip(grid.flat, panels, strict=False):
            draw(axes, metrics)
            axes.set_title(name)
            style.count_along_x(axes)
            if cloned is not None:
                style.shade_phase(axes, 0.0, cloned, style.GREY)
                axes.annotate("clone", (0.0, 0.02), fontsize=7, color=style.GREY, xycoords=("data", "axes fraction"))
            if switch is not None:
                style.shade_phase(axes, switch[0], metrics.end)
                corner: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": "right", "va": "bottom"}
                text = f"online: {style.thousands(switch[1])} env steps"
                axes.annotate(text, (metrics.end, 1.0), fontsize=7, color=style.GREY, **corner)
            axes.set_xlim(0, max(1.0, metrics.end))
        for axes in grid.flat[len(panels) - columns : len(panels)]:  # the lowest of each column
            axes.set_xlabel("learner steps")
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
    return path


def panels_of(metrics: Metrics) -> list[tuple[str, Callable[[Axes, Metrics], None]]]:
    """Return title and drawing of every panel that the metrics hold something for."""
    return [(name, draw) for name, keys, draw in _PANELS if any(metrics.keys(key) for key in keys)]


def _draw_evaluation(axes: Axes, metrics: Metrics, measure: str) -> None:
    """Draw one measure: evaluation with its interval, and the rollouts of training."""
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
    axes.set_ylabel("success rate" if measure == "success" else "return per episode")
    axes.legend()


_LABELS = {"critic/q_mean": "mean Q", "value/v_mean": "mean V", "critic/loss": "critics", "value/loss": "value"}


def _draw_keys(axes: Axes, metrics: Metrics, pattern: str, ylabel: str, log: bool = False) -> None:
    """Draw a line for each key that matches; logarithmic only where all are positive."""
    smooth = []
    for key, colour in zip(metrics.keys(pattern), style.CYCLE, strict=False):
        label = _LABELS.get(key, key.split("/")[1].removeprefix("loss_").replace("_", " "))
        smooth.append(_draw_line(axes, *metrics.series(key), colour, label))
    lowest, highest = np.quantile(np.concatenate(smooth), (0.01, 0.99))
    if log and lowest > 0:
        # The first batches, and single ones later, lie decades away from the course of the curve.
        axes.set(yscale="log", ylim=(lowest / 2, highest * 2))
    axes.set_ylabel(ylabel)
    axes.legend()


_QUANTILE = r"actor/weight_q\d+"


def _draw_weights(axes: Axes, metrics: Metrics) -> None:
    """Draw the quantiles of the positive weight as nested bands around the median."""
    keys = {int(key.rpartition("q")[2]): key for key in metrics.keys(_QUANTILE)}
    levels = sorted(keys)
    for low, high in list(zip(levels, reversed(levels), strict=True))[: len(levels) // 2]:
        x, bottom = metrics.series(keys[low])
        other, top = metrics.series(keys[high])
        if np.array_equal(x, other):
            look: dict[str, Any] = {"color": style.PURPLE, "alpha": 0.22, "linewidth": 0}
            axes.fill_between(x, _smooth(bottom), _smooth(top), label=f"{low}\u2013{high} %", **look)
    if 50 in keys:
        x, median = metrics.series(keys[50])
        axes.plot(x, _smooth(median), color=style.PURPLE, label="median")
    axes.set(ylim=(-0.02, 1.22), yticks=np.linspace(0, 1, 6), ylabel="weight of the positive policy")
    axes.legend(loc="upper left", ncols=3, columnspacing=1.2)


def _draw_line(axes: Axes, x: Numbers, y: Numbers, colour: str, label: str) -> Numbers:
    """Draw a line, faintly with its moving median on top where the points are many; return what stands out."""
    smooth = _smooth(y)
    if smooth is not y:
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.7)
    axes.plot(x, smooth, color=colour, label=label)
    return smooth


def _smooth(y: Numbers) -> Numbers:
    """Return the moving median over a fiftieth of the run, or `y` itself where the points are few."""
    if len(y) <= _SMOOTH_ABOVE:
        return y
    width = max(5, len(y) // 50)
    padded = np.pad(y, (width // 2, width - 1 - width // 2), "edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1))


_draw_losses = partial(_draw_keys, log=True)
_LOSSES, _VALUES = r"(critic|value)/loss.*", r"critic/q_mean|value/v_mean"
_PANELS: Sequence[tuple[str, tuple[str, ...], Callable[[Axes, Metrics], None]]] = (
    ("Success", ("eval/success", "rollout/success"), partial(_draw_evaluation, measure="success")),
    ("Return", ("eval/return", "rollout/return"), partial(_draw_evaluation, measure="return")),
    ("Weights", (_QUANTILE,), _draw_weights),
    ("Policy losses", (r"actor/loss.*",), partial(_draw_losses, pattern=r"actor/loss.*", ylabel="flow matching loss")),
    ("Value losses", (_LOSSES,), partial(_draw_losses, pattern=_LOSSES, ylabel="loss")),
    ("Values", (_VALUES,), partial(_draw_keys, pattern=_VALUES, ylabel="value (scaled reward)")),
)
"""Title, the keys of which at least one must be there, and how to draw it."""
