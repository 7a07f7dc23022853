"""Lay the small and the large policy beside each other: tables and a picture of all trainings.

    python -m benchmarks.gradients.report build/gradients/*.json --out benchmarks/results

Writes gradients.md, gradients.png and gradients.json, which holds what the given files hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gradients.measure import BETAS, SCHEMES
from dipole_ray.plots import style
from dipole_ray.plots.panels import Line, Panel, draw_panels

Run = dict[str, Any]
Case = tuple[str, str, bool]
"""Task, network, whether by adapters."""

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
    "gradient": "gradient norm per parameter",
    "effective": "effective share of the batch",
    "loss": "weighted loss of pi+",
    "held_out": "held-out error, over that before",
}
ORDER = ("mlp 2 x 128, critics", "mlp 3 x 512", "tiny", "small", "base")


def title_of(case: Case) -> str:
    """Return what a column is called."""
    task, network, adapted = case
    names = {"tiny": "head tiny", "small": "head small", "base": "head base"}
    return f"{task}: {names.get(network, network)}{', adapters r = 16' if adapted else ''}"


def cases_of(runs: Sequence[Run]) -> dict[Case, dict[str, dict[int, Run]]]:
    """Return the runs by case, scheme and seed, small networks first; failed ones are left out."""
    found: dict[Case, dict[str, dict[int, Run]]] = {}
    for run in runs:
        if run.get("gradient"):
            case = run["task"], run["network"], run["adapted"]
            found.setdefault(case, {}).setdefault(run["scheme"], {})[run["seed"]] = run
    return {case: found[case] for case in sorted(found, key=lambda case: (ORDER.index(case[1]), not case[2]))}


def over_seeds(values: Sequence[float | None]) -> str:
    """Return the median over seeds, with the lowest and the highest where there are several."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "not finite"
    middle = brief(statistics.median(numbers))
    return middle if len(numbers) == 1 else f"{middle} [{brief(min(numbers))}, {brief(max(numbers))}]"


def brief(value: float) -> str:
    """Return three digits."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e5 else f"{value:.3g}"


def ratio(top: float | None, bottom: float | None) -> float | None:
    """Return a quotient of what is known."""
    return top / bottom if top is not None and bottom else None


def to_cloning(of: Callable[[Run], float | None], runs: dict[int, Run], cloning: dict[int, Run]) -> str:
    """Return a number over that of cloning on the same batches, over seeds."""
    return over_seeds([ratio(of(run), of(cloning[seed])) for seed, run in runs.items() if seed in cloning])


def overview(cases: dict[Case, dict[str, dict[int, Run]]]) -> str:
    """Return the table of all networks side by side: pi+'s gradient over that of cloning."""
    lines = [f"| | {' | '.join(map(title_of, cases))} |", f"|---|{'--:|' * len(cases)}"]
    counts = [next(iter(next(iter(runs.values())).values()))["parameters"] for runs in cases.values()]
    lines.append(f"| pi+'s trained numbers | {' | '.join(f'{count / 1e6:.3g} M' for count in counts)} |")
    for scheme in SCHEMES:
        cells = []
        for runs in cases.values():
            own, cloning = runs.get(scheme.name), runs.get(SCHEMES[0].name, {})
            cells.append("-" if own is None else to_cloning(lambda run: run["gradient"]["median"], own, cloning))
        lines.append(f"| {scheme.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(runs: dict[str, dict[int, Run]]) -> str:
    """Return the table of one case, a row a scheme."""
    heads = ["gradient per parameter", "largest to median", "effective share", "weighted loss", "held-out error, last"]
    heads += ["of plans above their group's mean", "updates", "skipped", "seeds"]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for name in [scheme.name for scheme in SCHEMES if scheme.name in runs]:
        own = list(runs[name].values())
        cells = [
            over_seeds([run["gradient"]["median"] for run in own]),
            over_seeds([ratio(run["gradient"]["max"], run["gradient"]["median"]) for run in own]),
            over_seeds([run["effective"]["median"] for run in own]),
            over_seeds([run["loss"]["median"] for run in own]),
            over_seeds([run["held_out"]["error"][-1] for run in own]),
            over_seeds(better) if any(better := [run["held_out"]["error_of_better"][-1] for run in own]) else "-",
            over_seeds([run["updates"] for run in own]),
            f"{sum(run['skipped'] for run in own)}{', diverged' if any(run['diverged'] for run in own) else ''}",
            str(len(own)),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def before(runs: dict[str, dict[int, Run]]) -> str:
    """Return what the held-out error is before the first update, a sentence."""
    cloning = list(runs.get(SCHEMES[0].name, next(iter(runs.values()))).values())
    first, better = (over_seeds([run["held_out"][key][0] for run in cloning]) for key in ("error", "error_of_better"))
    known = "" if better == "not finite" else f", {better} on plans above their group's mean"
    return f"Held-out error before: {first}{known}."


def by_kind(cases: dict[Case, dict[str, dict[int, Run]]]) -> str:
    """Return the table of groups of parameters: their gradients over cloning's, at the middle beta."""
    shown = [scheme.name for scheme in SCHEMES if scheme.beta == BETAS[1]]
    lines = [
        f"| | group of parameters | number | cloning | {' | '.join(shown)} |",
        f"|---|---|--:|--:|{'--:|' * len(shown)}",
    ]
    for case, runs in cases.items():
        cloning = runs.get(SCHEMES[0].name, {})
        if not cloning:
            continue
        first = next(iter(cloning.values()))["kinds"]
        for kind, spread in first.items():

            def of(run: Run, kind: str = kind) -> float | None:
                found: float | None = run["kinds"][kind]["median"]
                return found

            own = [to_cloning(of, runs.get(name, {}), cloning) for name in shown]
            start = over_seeds([of(run) for run in cloning.values()])
            lines.append(f"| {title_of(case)} | {kind} | {spread['parameters']} | {start} | {' | '.join(own)} |")
    return "\n".join(lines)


def curve(quantity: str, name: str, runs: Sequence[Run]) -> Line:
    """Return the median over seeds, in a band from the lowest to the largest single value."""
    if quantity == "held_out":
        parts = [(run["held_out"]["update"], *[over_first(run["held_out"]["error"])] * 2) for run in runs]
    else:
        parts = [tuple(run[quantity]["curve"][key] for key in ("update", "median", "most")) for run in runs]
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


def over_first(values: Sequence[float | None]) -> list[float | None]:
    """Return numbers over the first of them."""
    return [ratio(value, values[0]) for value in values]


def panels_of(cases: dict[Case, dict[str, dict[int, Run]]]) -> list[Panel]:
    """Return a row of panels for each quantity, on the same axis for all networks."""
    found = []
    for quantity, ylabel in QUANTITIES.items():
        lines = {
            case: [curve(quantity, each.name, list(runs[each.name].values())) for each in SCHEMES if each.name in runs]
            for case, runs in cases.items()
        }
        seen = [value for own in lines.values() for line in own for value in (*line.y, *line.high) if value > 0]
        is_wide = style.is_wide(seen)
        limits = (min(seen) / 1.3, max(seen) * 1.3) if is_wide else (0.95 * min(seen), 1.02 * max(seen))
        found += [
            Panel(
                title=title_of(case) if quantity == next(iter(QUANTITIES)) else "",
                xlabel="update",
                ylabel=ylabel if case == next(iter(cases)) else "",
                lines=own,
                ylim=limits,
                log=(False, is_wide),
            )
            for case, own in lines.items()
        ]
    return found


def text(parts: Sequence[dict[str, Any]], cases: dict[Case, dict[str, dict[int, Run]]]) -> str:
    """Return the report."""
    made = []
    for part in parts:
        where = f"{part['date']}, {part.get('machine') or part['gpu']}, torch {part['versions']['torch']}"
        counts = f"{len(part['runs'])} trainings, clones of {part['clone_updates']} updates"
        made.append(f"- `{part['command']}`: {where}, commit {str(part['commit'])[:7]}; {counts}")
    sections = [f"## {title_of(case)}\n\n{before(runs)}\n\n{table(runs)}\n" for case, runs in cases.items()]
    last = f"## Groups of parameters, beta {BETAS[1]:g}\n\nGradient norm per parameter of cloning; others times it."
    first = (
        "## pi+'s gradient, times that of cloning on the same batches\n\nMedian of updates, over seeds [least, most]."
    )
    picture = "![](gradients.png)\n"
    blocks = ["# Gradients under sigmoid and exp weights, small and large policies\n", *made, HOW, ABOUT, picture]
    return "\n".join([*blocks, first, "", overview(cases), "", *sections, last, "", by_kind(cases), ""])


HOW = """
    S=build/gradients
    python -m benchmarks.driving.judged_plans koenigs_wusterhausen-0 --held-out ingolstadt-0 --out $S/plans.npz
    python -m benchmarks.gradients.small --plans $S/plans.npz --out $S
    bash benchmarks/gpu/gradients.sh $S/plans.npz $S
    python -m benchmarks.gradients.report $S/*.json --out benchmarks/results
"""
ABOUT = """All numbers are of pi+, the field that both schemes have: the norm of its gradient over the square root of
the number of trained parameters (before Adam, which divides by a running scale), the share of a batch of 128 that its
weights leave in use, (sum w)^2 / (B sum w^2), its weighted loss, and its unweighted squared error on held-out rows.
Cloning weighs all rows by 1, in the same networks. Bands reach from the lowest to the largest update of any seed.

- **pointmaze**: 50 000 rows, critics as in the suite `small_beta` learning at the same time, advantage divided by its
  running deviation, from scratch; held-out rows are of another draw of the collector. A seed draws networks, noise and
  batches.
- **driving**: 1000 scenes recorded from SUMO (`SUMO-OSM, not NAVSIM`), in each ten plans of a clone (an MLP on the
  status) with noise 0.05 and the driven one, judged by their PDM score. The advantage is group-normalised, at most 3.16
  with 11 plans, so that a ceiling of 100 cuts nothing at beta 1. Every scheme begins with the same clone of the driven
  plans; a seed draws batches and noise. The MLP sees the status alone, heads the status and 64 tokens of what is
  around. Held out are 200 scenes of another city.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="of gradients.small and gpu.gradients")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    read = [json.loads(file.read_text()) for file in options.files]
    parts = [part for one in read for part in one.get("parts", [one])]
    cases = cases_of([run for part in parts for run in part["runs"]])
    options.out.mkdir(parents=True, exist_ok=True)
    draw_panels(panels_of(cases), options.out / "gradients.png", columns=len(cases))
    (options.out / "gradients.json").write_text(json.dumps({"parts": parts}) + "\n")
    (options.out / "gradients.md").write_text(text(parts, cases))
    print(overview(cases))


if __name__ == "__main__":
    main()
