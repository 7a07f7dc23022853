"""What the evaluated policies of `benchmarks.gpu.cell` come to: tables, pictures, and how to read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.cell.fields import METHODS
from dipole_ray.evaluation.statistics import mean, mean_difference, stratified_interval, wilson_interval
from dipole_ray.plots import style
from dipole_ray.plots.panels import Line, Panel, draw_panels
from dipole_ray.tables import markdown_table, with_interval

Row = dict[str, Any]
LABELS = {"full": "two networks", "scratch-16": "lora-16 from scratch", "clone": "cloned backbone"}
NAMES = {"cell": "gpu_cell", "study": "gpu_cell_adapters"}
TITLES = {
    "cell": "A cell of the paper's protocol: cube-single, task 2",
    "study": "Adapters against two networks on cube-single, task 2, from the same advantages",
}
READING = {
    "cell": """\
One training seed, so intervals are Wilson's over episodes and say nothing of the spread over seeds. Omega 4, as behind
the published videos of this task, and 32 candidates were named before; the other rows are the same networks. BC with 32
candidates is the best of the clone by the same critics, which had a policy's bootstrap: not IFQL, whose critics learn
by IQL alone.""",
    "study": """\
All methods learn from the same advantages, of the cell's critics after the updates that `training.advantages` in the
JSON file tells: what differs is the fields, there are no critics of their own and no best of many candidates. Two
networks and adapters have 2 x 256. `lora-r` lies on a backbone cloned before, for 20 000 updates that are not counted
here and that the others never had; "from scratch" is rank 16 on a backbone as it was drawn. A training seed has
networks, batches and start states of its own, which are the same for all methods: `success` has 95 % bootstrap
intervals over seeds, somewhat too narrow with five, and the last column is the difference within seeds; it is worth
more than two intervals side by side. All numbers are per cent.""",
}


def share_of(successes: Sequence[bool]) -> tuple[float, float, float]:
    """Return the share of successes and the ends of Wilson's interval, in per cent."""
    ends = wilson_interval(sum(successes), len(successes))
    return 100 * float(np.mean(successes)), 100 * ends.low, 100 * ends.high


def updates_of(rows: Sequence[Row]) -> list[int]:
    """Return the numbers of updates that rows are of, rising."""
    return sorted({row["updates"] for row in rows})


def over_seeds(rows: Sequence[Row], updates: int) -> dict[tuple[str, float | None], list[Row]]:
    """Return the study's rows by method and omega, each by seed."""
    found: dict[tuple[str, float | None], list[Row]] = {}
    for row in sorted((row for row in rows if row["updates"] == updates), key=lambda row: row["seed"]):
        method = "clone" if row["omega"] is None else row["run"].rpartition("-seed")[0]
        found.setdefault((method, row["omega"]), []).append(row)
    order = ["clone", *METHODS]
    return dict(sorted(found.items(), key=lambda item: (item[0][1] or 0.0, order.index(item[0][0]))))


def scores_of(rows: Sequence[Row]) -> list[np.ndarray]:
    """Return the success of each seed in per cent, of the study's one task."""
    return [np.array([100 * np.mean(row["success"]) for row in rows])]


def table_of_cell(rows: Sequence[Row]) -> str:
    """Return success by updates, policy and candidates, in per cent."""
    lines, counts = [], sorted({row["candidates"] for row in rows})
    for updates in updates_of(rows):
        own = {(row["omega"], row["candidates"]): row["success"] for row in rows if row["updates"] == updates}
        for omega in sorted({omega for omega, _ in own}, key=lambda omega: -1 if omega is None else omega):
            name, shown = ("BC", "-") if omega is None else ("DIPOLE", f"{omega:g}")
            shares = [with_interval(*share_of(own[omega, count]), ".0f") for count in counts]
            lines.append([f"{updates:,}".replace(",", " "), name, shown, *shares, str(len(own[omega, counts[0]]))])
    head = ["updates", "policy", "omega", *(style.candidates_text(count) for count in counts), "episodes"]
    return "\n".join(markdown_table(head, lines, words=2))


def table_of_study(rows: Sequence[Row]) -> str:
    """Return success by method and omega with intervals over seeds, and differences from two networks by seed."""
    lines = []
    for updates in updates_of(rows):
        found = over_seeds(rows, updates)
        for (method, omega), own in found.items():
            scores, full = scores_of(own), scores_of(found.get(("full", omega), []))
            apart = "-"
            if method != "full" and len(full[0]) == len(own):
                ends = stratified_interval(mean_difference, scores, full, paired=True)
                apart = with_interval(float(mean_difference(scores, full)), *ends, "+.0f")
            episodes = [success for row in own for success in row["success"]]
            _, low, high = share_of(episodes)
            share = with_interval(float(mean(scores)), *stratified_interval(mean, scores), ".0f")
            words = [LABELS.get(method, method), "-" if omega is None else f"{omega:g}", share]
            words += [f"{low:.0f} to {high:.0f}", ", ".join(f"{one:.0f}" for one in scores[0]), str(len(episodes))]
            lines.append([f"{updates:,}".replace(",", " "), *words, apart])
    head = ["updates", "method", "omega", "success", "Wilson", "by seed", "episodes", "difference from two networks"]
    return "\n".join(markdown_table(head, lines, words=2))


def _curve(curve: Sequence[dict[str, float]], title: str, ylabel: str, keys: dict[str, str]) -> Panel:
    x = [point["updates"] for point in curve]
    lines = [
        Line(label=label, colour=colour, x=x, y=[point[key] for point in curve])
        for (label, key), colour in zip(keys.items(), style.CYCLE, strict=False)
    ]
    return Panel(title=title, xlabel="updates", ylabel=ylabel, lines=lines)


def panels_of_cell(rows: Sequence[Row], training: dict[str, Any]) -> list[Panel]:
    """Return what was told of training over updates, and success over omega."""
    curve = training["curve"]
    panels = [
        _curve(curve, "critics", "", {"mean Q": "critic/q_mean", "mean V": "value/v_mean"}),
        _curve(
            curve, "advantages of batches", "", {"deviation": "actor/advantage_std", "mean": "actor/advantage_mean"}
        ),
        _curve(curve, "losses of fields", "", {name: f"actor/loss_{name}" for name in ("positive", "negative", "bc")}),
    ]
    for count in sorted({row["candidates"] for row in rows}):
        lines = []
        for updates, colour in zip(updates_of(rows), style.CYCLE, strict=False):
            own = [row for row in rows if (row["updates"], row["candidates"]) == (updates, count)]
            own = sorted((row for row in own if row["omega"] is not None), key=lambda row: row["omega"])
            middle, low, high = zip(*(share_of(row["success"]) for row in own), strict=True)
            label, x = f"{style.thousands(updates)} updates", [row["omega"] for row in own]
            lines.append(Line(label=label, colour=colour, x=x, y=middle, low=low, high=high))
        text = style.candidates_text(count)
        panels.append(Panel(title=text, xlabel="greediness ω", ylabel="success (%)", ylim=(-4, 104), lines=lines))
    return panels


def panels_of_study(rows: Sequence[Row], training: dict[str, Any]) -> list[Panel]:
    """Return success over omega by method, with intervals over seeds."""
    panels = []
    for updates in updates_of(rows):
        found, lines = over_seeds(rows, updates), []
        for method, colour in zip(METHODS, style.CYCLE, strict=False):
            own = {omega or 0.0: scores_of(some) for (name, omega), some in found.items() if name == method}
            if own:
                middle = [float(mean(scores)) for scores in own.values()]
                ends = [stratified_interval(mean, scores) for scores in own.values()]
                band: dict[str, Any] = {"low": [end.low for end in ends], "high": [end.high for end in ends]}
                lines.append(Line(label=LABELS.get(method, method), colour=colour, x=[*own], y=middle, **band))
        if ("clone", None) in found:
            level = float(mean(scores_of(found["clone", None])))
            lines.append(Line(label=LABELS["clone"], colour=style.GREY, x=(), y=[level], dashed=True))
        title = f"{style.thousands(updates)} updates"
        axes: dict[str, Any] = {"xlabel": "greediness ω", "ylabel": "success (%)", "ylim": (-4, 104)}
        ticks = sorted({omega for _, omega in found if omega is not None})
        panels.append(Panel(title=title, lines=lines, ticks=ticks, **axes))
    return panels


TABLES = {"cell": table_of_cell, "study": table_of_study}
PANELS = {"cell": panels_of_cell, "study": panels_of_study}


def draw(part: str, rows: Sequence[Row], training: dict[str, Any], out: Path) -> Path:
    """Draw the picture of a part."""
    panels = PANELS[part](rows, training)
    return draw_panels(panels, out / f"{NAMES[part]}.png", columns=min(3, len(panels)), title="cube-single, task 2")


def trained_text(training: dict[str, Any]) -> str:
    """Return where and from what policies were trained."""
    versions = ", ".join(f"{name} {number}" for name, number in training["versions"].items())
    where = f"{training['gpu']}, {training['cores']} cores; commit {str(training['commit'])[:7]}; {versions}"
    rows = f"{training['rows']} transitions with {training['successes']} successes"
    return f"Trained on {training['date']}: {where}. {rows}. `{training['command']}`"
