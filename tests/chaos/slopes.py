"""Whether a series of samples is flat: a robust slope with its confidence interval, and counts that do not creep."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

WARM_UP = 0.2
"""Share of a soak that is not looked at: allocators, caches and the replay's ring fill first."""
MAX_PER_MINUTE = {"rss_mb": 1.0, "used_mb": 1.0, "spilled_mb": 1.0, "objects": 0.5}
"""What the upper bound of a slope must stay below; the objects of a running update come and go by the dozen."""
OURS = ("driver", "learner", "replay", "rollout worker")

Samples = dict[str, tuple[np.ndarray, np.ndarray]]
"""Minutes and values by series; a series is called `process[pid]/quantity`."""


@dataclass(frozen=True, slots=True)
class Trend:
    """How a series moves after its warm-up."""

    slope: float
    """Theil-Sen: the median of the slopes between all pairs of samples, per minute."""
    low: float
    high: float
    """Bounds of its 95 % confidence interval."""
    first: float
    last: float
    """Medians of the first and the last third."""


def trend(minutes: np.ndarray, values: np.ndarray, warm_up: float = WARM_UP) -> Trend:
    """Return the trend of a series that starts at minute 0."""
    kept = minutes >= warm_up * minutes[-1]
    x, y = minutes[kept], values[kept]
    if len(x) > 600:  # every pair is looked at, so hours are thinned out
        chosen = np.linspace(0, len(x) - 1, 600).astype(int)
        x, y = x[chosen], y[chosen]
    slope, _, low, high = stats.theilslopes(y, x)
    third = max(1, len(y) // 3)
    return Trend(float(slope), float(low), float(high), float(np.median(y[:third])), float(np.median(y[-third:])))


def leaks(samples: Samples) -> list[str]:
    """Return a sentence for every series of ours, and of the object store, that is not flat."""
    found = []
    for series, (minutes, values) in samples.items():
        owner, quantity = series.rsplit("/", 1)
        process = owner.split("[")[0]
        if process not in (*OURS, "object store"):
            continue
        moves = trend(minutes, values)
        text = f"{series}: {moves.slope:+.3f} a minute ({moves.low:+.3f} to {moves.high:+.3f}), "
        text += f"{moves.first:g} in the first third and {moves.last:g} in the last"
        creeps = quantity in MAX_PER_MINUTE and moves.high >= MAX_PER_MINUTE[quantity]
        if creeps or (quantity in ("descriptors", "threads") and moves.last > moves.first):
            found.append(text)
    return found


def replaced(samples: Samples) -> list[str]:
    """Return the processes of ours that were not there from the first sample to the last."""
    length = max(minutes[-1] for minutes, _ in samples.values())
    memory = {name: span for name, (span, _) in samples.items() if name.endswith("/rss_mb")}
    ours = {name: span for name, span in memory.items() if name.split("[")[0] in OURS}
    return [name for name, span in ours.items() if span[0] > 0.5 or span[-1] < length - 0.5]


def read_samples(file: Path) -> Samples:
    """Return the series in a `samples.csv`."""
    series: dict[str, list[tuple[float, float]]] = {}
    with file.open(newline="") as stream:
        for row in csv.DictReader(stream):
            series.setdefault(row["series"], []).append((float(row["minutes"]), float(row["value"])))
    return {name: (np.array(points)[:, 0], np.array(points)[:, 1]) for name, points in series.items()}


def table(samples: Samples) -> str:
    """Return all trends as lines for a person."""
    rows = [f"{'series':<40} {'per minute':>11} {'95 % interval':>21} {'first':>9} {'last':>9}"]
    for series, (minutes, values) in sorted(samples.items()):
        if len(minutes) > 10:
            t = trend(minutes, values)
            rows.append(
                f"{series:<40} {t.slope:>+11.4f} {t.low:>+10.4f} {t.high:>+10.4f} {t.first:>9.5g} {t.last:>9.5g}"
            )
    return "\n".join(rows)


def draw(samples: Samples, file: Path) -> None:
    """Draw memory, descriptors, threads and the object store over time, each with its slope."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    quantities = ("rss_mb", "descriptors", "threads", "used_mb", "objects", "disk_mb")
    figure, axes = plt.subplots(len(quantities), 1, figsize=(10, 3.2 * len(quantities)), sharex=True)
    for axis, quantity in zip(axes, quantities, strict=True):
        axis.set_ylabel(quantity)
        for series, (minutes, values) in sorted(samples.items()):
            if series.endswith(quantity) and len(minutes) > 10:
                label = f"{series.removesuffix(quantity).strip('/_')} {trend(minutes, values).slope:+.3f}/min"
                axis.plot(minutes, values, linewidth=0.9, label=label)
        axis.axvspan(0, WARM_UP * axis.get_xlim()[1], color="0.93", zorder=0)
        if axis.lines:
            axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[-1].set_xlabel("minutes")
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)
