"""Lay the small and the large policy beside each other: tables and a picture of all trainings.

    python -m benchmarks.gradients.report build/gradients/*.json --out benchmarks/results

Writes gradients.md, gradients.png, and what the given files hold as gradients_small-DATE.json and
gradients_gpu-DATE.json, from which the same is made again. Trainings that ended before their time are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gradients.cases import Case, Run, cases_of, millions, ratio, title_of, whole
from benchmarks.gradients.measure import BETAS, SCHEMES
from benchmarks.gradients.picture import panels_of
from dipole_ray.plots.panels import draw_panels


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


def to_cloning(of: Callable[[Run], float | None], runs: dict[int, Run], cloning: dict[int, Run]) -> str:
    """Return a number over that of cloning on the same batches, over seeds."""
    return over_seeds([ratio(of(run), of(cloning[seed])) for seed, run in runs.items() if seed in cloning])


def gradient(run: Run) -> float | None:
    """Return the median of pi+'s gradient per parameter."""
    found: float | None = run["gradient"]["median"]
    return found


def last_error(run: Run) -> float | None:
    """Return the held-out error after the last update."""
    found: float | None = run["held_out"]["error"][-1]
    return found


def overview(cases: dict[Case, dict[str, dict[int, Run]]], of: Callable[[Run], float | None]) -> str:
    """Return the table of all networks side by side: a number over that of cloning."""
    lines = [f"| | {' | '.join(map(title_of, cases))} |", f"|---|{'--:|' * len(cases)}"]
    lines.append(f"| pi+'s trained numbers | {' | '.join(map(millions, cases.values()))} |")
    for scheme in SCHEMES:
        cells = []
        for runs in cases.values():
            own, cloning = runs.get(scheme.name), runs.get(SCHEMES[0].name, {})
            cells.append("-" if own is None else to_cloning(of, own, cloning))
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
            over_seeds(list(map(gradient, own))),
            over_seeds([ratio(run["gradient"]["max"], run["gradient"]["median"]) for run in own]),
            over_seeds([run["effective"]["median"] for run in own]),
            over_seeds([run["loss"]["median"] for run in own]),
            over_seeds(list(map(last_error, own))),
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

            own = [to_cloning(of, runs[name], cloning) if name in runs else "-" for name in shown]
            start = over_seeds([of(run) for run in cloning.values()])
            lines.append(f"| {title_of(case)} | {kind} | {spread['parameters']} | {start} | {' | '.join(own)} |")
    return "\n".join(lines)


def text(parts: Sequence[dict[str, Any]], cases: dict[Case, dict[str, dict[int, Run]]]) -> str:
    """Return the report."""
    made, measured = [], whole([run for part in parts for run in part["runs"]])
    for part in parts:
        where = f"{part['date']}, {part.get('machine') or part['gpu']}, torch {part['versions']['torch']}"
        short = [f"{run['network']}, {run['scheme']}" for run in part["runs"] if run not in measured]
        counts = f"{len(part['runs'])} trainings, clones of {part['clone_updates']} updates"
        counts += f"; cut short by the end of the time and left out: {' and '.join(short)}" if short else ""
        counts += f"; {part['note']}" if "note" in part else ""
        made.append(f"- `{part['command']}`: {where}, commit {str(part['commit'])[:7]}; {counts}")
    sections = [f"## {title_of(case)}\n\n{before(runs)}\n\n{table(runs)}\n" for case, runs in cases.items()]
    last = f"## Groups of parameters, beta {BETAS[1]:g}\n\nGradient norm per parameter of cloning; others times it."
    first = (
        "## pi+'s gradient, times that of cloning on the same batches\n\nMedian of updates, over seeds [least, most]."
        f"\n\n{overview(cases, gradient)}\n\n## Held-out error after the last update, times that of cloning\n\n"
        f"{overview(cases, last_error)}"
    )
    picture = "![](gradients.png)\n"
    blocks = ["# Gradients under sigmoid and exp weights, small and large policies\n", *made, HOW, ABOUT, picture]
    return "\n".join([*blocks, first, "", *sections, last, "", by_kind(cases), ""])


HOW = """
    S=build/gradients
    python -m benchmarks.driving.judged_plans koenigs_wusterhausen-0 --held-out ingolstadt-0 --out $S/plans.npz
    python -m benchmarks.gradients.small --plans $S/plans.npz --out $S
    bash benchmarks/gpu/gradients.sh $S/plans.npz $S
    bash benchmarks/gpu/gradients.sh $S/plans.npz $S 0 --seconds 105 --parts base small tiny-adapted
    python -m benchmarks.gradients.report $S/*.json --out benchmarks/results
"""
ABOUT = """All numbers are of pi+, the field that both schemes have: the norm of its gradient over the square root of
the number of trained parameters (before Adam, which divides by a running scale), the share of a batch of 128 that its
weights leave in use, (sum w)^2 / (B sum w^2), its weighted loss, and its unweighted squared error on held-out rows.
Cloning weighs all rows by 1, in the same networks; the picture shows gradient and loss over cloning's median, and only
networks that were trained by all schemes. Bands reach from the lowest to the largest update of any seed; of one seed
the line is every single update. Trainings that the end of the time cut short are left out.

- **pointmaze**: 50 000 rows, critics as in the suite `small_beta` learning at the same time, advantage divided by its
  running deviation, from scratch; held-out rows are of another draw of the collector. A seed draws networks, noise and
  batches.
- **driving**: 1000 scenes recorded from SUMO (`SUMO-OSM, not NAVSIM`), in each ten plans of a clone (an MLP on the
  status) with noise 0.05 and the driven one, judged by their PDM score. The advantage is group-normalised, at most 3.16
  with 11 plans, so that a ceiling of 100 cuts nothing at beta 1. Every scheme begins with the same clone of the driven
  plans; a seed draws batches and noise. The MLP sees the status alone, heads the status and 64 tokens of what is
  around, so that size is not all they differ in; learning rates are 3e-4, of the head base 1e-4. Held out are 200
  scenes of another city.
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
    panels, columns = panels_of(cases)
    draw_panels(panels, options.out / "gradients.png", columns=columns)
    for side in ("small", "gpu"):
        if own := [part for part in parts if ("gpu" in part) == (side == "gpu")]:
            file = options.out / f"gradients_{side}-{max(part['date'] for part in own)}.json"
            file.write_text(json.dumps({"parts": own}) + "\n")
    (options.out / "gradients.md").write_text(text(parts, cases))
    print(overview(cases, gradient))


if __name__ == "__main__":
    main()
