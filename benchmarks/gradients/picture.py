"""The picture of all trainings: small and large networks beside each other, on the same axes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.gradients.cases import Case, Run, millions, ratio, title_of
from benchmarks.gradients.measure import BETAS, SCHEMES
from dipole_ray.plots import style
from dipole_ray.plots.panels import Line, Panel

SHADES = {
    "sigmoid": ("#9CCBE8", style.BLUE, "#003B5C"),
    "exp, uncut": ("#F2B48A", style.VERMILLION, "#7A3500"),
    "exp, cut at 100": ("#A8DDCB", style.GREEN, "#00513B"),
}
COLOURS = {SCHEMES[0].name: style.GREY}
COLOURS |= {
    f"{kind}, beta {beta:g}": colour
    for kind, colours in SHADES.items()
    for beta, colour in zip(BETAS, colours, strict=True)
}
QUANTITIES = {
    "gradient": "gradient of pi+, times cloning's",
    "effective": "effective share of the batch",
    "loss": "weighted loss, times cloning's",
    "held_out": "held-out error, times that before",
}
AS_MULTIPLES = "gradient", "loss"
"""What pictures show over the median of cloning, so that networks of all sizes lie on the same axis."""


def curve(quantity: str, name: str, runs: dict[int, Run], cloning: dict[int, Run]) -> Line:
    """Return the median over seeds, in a band from the lowest to the largest single value."""
    parts = []
    for seed, run in runs.items():
        if quantity == "held_out":
            error = run["held_out"]["error"]
            parts.append((run["held_out"]["update"], *[over(error, error[0])] * 2))
        else:
            unit = cloning[seed][quantity]["median"] if quantity in AS_MULTIPLES else 1.0
            found = run[quantity]["curve"]
            parts.append((found["update"], over(found["median"], unit), over(found["most"], unit)))
    longest = max(parts, key=lambda part: len(part[0]))[0]
    places, middles, lows, highs = [], [], [], []
    for place, update in enumerate(longest):
        here = [(part[1][place], part[2][place]) for part in parts if place < len(part[0])]
        known = [pair for pair in here if None not in pair]
        if known:
            places.append(update)
            middles.append(statistics.median(middle for middle, _ in known))
            lows.append(min(middle for middle, _ in known))
            highs.append(max(most for _, most in known))
    return Line(label=name, colour=COLOURS[name], x=places, y=middles, low=lows, high=highs)


def over(values: Sequence[float | None], unit: float | None) -> list[float | None]:
    """Return numbers in this unit."""
    return [ratio(value, unit) for value in values]


def is_shown(case: Case, cases: dict[Case, dict[str, dict[int, Run]]]) -> bool:
    """Whether the network was trained by all schemes of its task, and by cloning with every seed."""
    runs, most = cases[case], max(len(cases[each]) for each in cases if each[0] == case[0])
    cloned = runs.get(SCHEMES[0].name, {}).keys()
    return len(runs) == most and all(own.keys() <= cloned for own in runs.values())


def panels_of(cases: dict[Case, dict[str, dict[int, Run]]]) -> tuple[list[Panel], int]:
    """Return a row of panels for each quantity, on the same axis for all networks of a task, and how many it has."""
    cases = {case: runs for case, runs in cases.items() if is_shown(case, cases)}
    found, heads = [], {}
    for case, runs in cases.items():
        seeds = len(next(iter(runs.values())))
        heads[case] = f"{title_of(case)}\n{millions(runs)} weights trained, {seeds} seed{'s' if seeds > 1 else ''}"
    for quantity, ylabel in QUANTITIES.items():
        lines = {
            case: [
                curve(quantity, each.name, runs[each.name], runs[SCHEMES[0].name])
                for each in SCHEMES
                if each.name in runs
            ]
            for case, runs in cases.items()
        }
        limits, is_wide = {}, {}
        for task in {case[0] for case in cases}:
            own_lines = [line for case, own in lines.items() if case[0] == task for line in own]
            seen = [value for line in own_lines for value in (*line.y, *line.high) if value > 0]
            is_wide[task] = style.is_wide(seen)
            ends = (min(seen) / 1.3, max(seen) * 1.3) if is_wide[task] else (0.95 * min(seen), 1.02 * max(seen))
            limits[task] = ends
        found += [
            Panel(
                title=heads[case] if quantity == next(iter(QUANTITIES)) else "",
                xlabel="update",
                ylabel=ylabel if case == next(iter(cases)) else "",
                lines=own,
                ylim=limits[case[0]],
                log=(False, is_wide[case[0]]),
            )
            for case, own in lines.items()
        ]
    return found, len(cases)
