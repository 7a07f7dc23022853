"""The tables and the picture of `benchmarks.driving.study`, from the scores of every plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import write_record
from dipole_ray.data.clusters import clustered_errors

MEASURES = ("nc", "dac", "ep", "ttc", "c", "ddc", "pdms")
SHOWN = ("nc", "dac", "ep", "ttc", "c", "pdms")
ON_TEST = "dipole on the test scenes"
NAMES = ("dipole", "exp", "policy gradient", ON_TEST, f"{ON_TEST} and their drivers")
GUIDED = (NAMES[0], *NAMES[3:])
HERE, THERE = "SUMO-OSM, not NAVSIM", "NAVSIM v1 navtest (needs OpenScene data: 0 scenes scored here)"
PUBLISHED = """\
| DP-VLA, imitation | 98.0 | 97.0 | 82.5 | 94.3 | 100 | 88.3 |
| DIPOLE trained on navtrain | 98.2 | 98.0 | 83.6 | 95.2 | 100 | 89.7 |
| DIPOLE trained on navtest itself | 99.2 | 98.7 | 94.2 | 95.6 | 99.8 | 94.8 |"""


@dataclass(frozen=True, slots=True)
class Cell:
    """What one way to act scored in the same scenes, by seed."""

    method: str
    omega: float | None
    candidates: int
    seeds: tuple[int, ...]
    scores: np.ndarray
    """(seeds, scenes, 7)"""
    clone: np.ndarray
    """what the clones scored with one plan a scene, in the same form"""
    logs: np.ndarray
    """(scenes,)"""

    def row(self) -> dict[str, Any]:
        """Return its means in percent, with errors over logs and seeds, and the difference to the clone's scores."""
        percent, clone, place = 100 * self.scores, self.clone, MEASURES.index("pdms")
        of_seeds, clone_seeds = percent[..., place].mean(axis=1), 100 * clone[..., place].mean(axis=1)
        over = (percent[..., place] - 100 * clone[..., place]).mean(axis=0)
        pairs = dict(zip(MEASURES, percent.mean(axis=(0, 1)).tolist(), strict=True))
        return {
            **{"method": self.method, "omega": self.omega, "candidates": self.candidates, **pairs},
            "seeds": list(self.seeds),
            "error_over_logs": float(clustered_errors(percent.mean(axis=0), self.logs)[place]),
            "error_over_seeds": _error(of_seeds),
            "pdms_by_seed": of_seeds.tolist(),
            "over_clone": float(over.mean()),
            "over_clone_error_over_logs": float(clustered_errors(over[:, None], self.logs)[0]),
            "over_clone_by_seed": (of_seeds - clone_seeds).tolist(),
        }


def file_of(runs: Path, method: str, seed: int) -> Path:
    """Return where the scores of a method and a seed lie."""
    return runs / f"{method.replace(' ', '_')}-seed{seed}.npz"


def _scores(path: Path) -> Any:
    return np.load(path, allow_pickle=False)


def _error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def rows_of(runs: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return the rows of a table, the clone first; each method is compared with the clone of the seeds that it has."""
    found = [cell for name in NAMES for cell in _cells(runs, name, seeds)]
    return [cell.row() for cell in sorted(found, key=lambda cell: cell.method != "clone")]


def _cells(runs: Path, name: str, seeds: Sequence[int]) -> Iterator[Cell]:
    """Yield what a method scored in every way to act; with the first method's, what the clone scored."""
    tables = {seed: _scores(path) for seed in seeds if (path := file_of(runs, name, seed)).is_file()}
    if not tables:
        return
    first = next(iter(tables.values()))
    clone = np.stack([_scores(file_of(runs, NAMES[0], seed))["bc|None|1"] for seed in tables])
    ways = [key.split("|") for key in first.files if key.startswith(("guided|", "bc|"))]
    for policy, omega, candidates in sorted(ways, key=lambda way: (int(way[2]), way[0], way[1])):
        if policy == "bc" and name != NAMES[0]:
            continue
        scores = np.stack([table[f"{policy}|{omega}|{candidates}"] for table in tables.values()])
        method, logs = "clone" if policy == "bc" else name, first["logs"]
        chosen = float(omega) if method in GUIDED else None
        yield Cell(method, chosen, int(candidates), tuple(tables), scores, clone, logs)


def _lines(rows: Sequence[dict[str, Any]], chosen: float) -> list[str]:
    lines = [
        "| method | omega | plans | NC | DAC | EP | TTC | C | PDMS | over logs | over seeds | beyond the clone |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        omega = "" if row["omega"] is None else f"{row['omega']:g}{' (chosen)' if row['omega'] == chosen else ''}"
        seeds = "" if row["error_over_seeds"] is None else f"{row['error_over_seeds']:.1f}"
        beyond = f"{row['over_clone']:+.1f} +- {row['over_clone_error_over_logs']:.1f}"
        beyond = "" if row["method"] == "clone" and row["candidates"] == 1 else beyond
        numbers = " | ".join(f"{row[name]:.1f}" for name in SHOWN)
        head = f"| {row['method']} | {omega} | {row['candidates']} | {numbers}"
        lines.append(f"{head} | {row['error_over_logs']:.1f} | {seeds} | {beyond} |")
    return lines


def write_study(out: Path, runs: Path, seeds: Sequence[int], sizes: Sequence[int], chosen: float) -> None:
    """Write `drive_study.md`, `.json` and `.png` of the runs that are finished."""
    anchors, rows = _scores(runs / "anchors.npz"), rows_of(runs, seeds)
    others = {
        name: {"scores": (100 * anchors[name].mean(axis=0)).tolist()}
        | {"error_over_logs": float(100 * clustered_errors(anchors[name], anchors["logs"])[-1])}
        for name in anchors.files
        if name != "logs"
    }
    ended = {path.stem: _ended(_scores(path)) for path in sorted(runs.glob("*-seed*.npz"))}
    learned = " + ".join(map(str, sizes[:-2]))
    text = [
        f"`{HERE}`: {learned} scenes to learn from, {sizes[-2]} for validation, {sizes[-1]} for the test. Percent, with"
    ]
    text += ["standard errors over logs (of the mean over seeds) and over seeds; differences are paired by scene.", ""]
    text += [f"## {HERE}, test", "", *_lines(rows, chosen)]
    for name, known in others.items():
        numbers = " | ".join(f"{known['scores'][MEASURES.index(one)]:.1f}" for one in SHOWN)
        text.append(f"| {name} | | 1 | {numbers} | {known['error_over_logs']:.1f} | | |")
    text += ["", f"## {THERE}", "", "Published by the paper, none of it measured here:", ""]
    text += ["| policy | NC | DAC | EP | TTC | C | PDMS |", "|---|--:|--:|--:|--:|--:|--:|", PUBLISHED, ""]
    text += [
        "## Where each run ended",
        "",
        "Validation is that of the early stop; of the rows on the test scenes it is the test.",
        "",
    ]
    text += ["| run | rounds | clone | method |", "|---|--:|--:|--:|"]
    shown = {name: {key: "" if x is None else f"{x:.1f}" for key, x in one.items()} for name, one in ended.items()}
    text += [f"| {name} | {one['rounds']} | {one['clone']} | {one['method']} |" for name, one in shown.items()]
    numbers = {"label": HERE, "scenes": list(sizes), "seeds": list(seeds), "omega_chosen": chosen}
    numbers |= {"rows": rows, "anchors": others, "ended": ended}
    command = f"python -m benchmarks.driving.study --seeds {' '.join(map(str, seeds))}"
    write_record(out, "drive_study", command, numbers, "Driving over seeds", "\n".join(text))
    draw(out / "drive_study.png", rows, others)


def _ended(table: Any) -> dict[str, float | None]:
    """Return in which round a run ended, and what the clone and the method then scored in validation."""
    found = {key.partition("|")[2]: 100 * float(table[key]) for key in table.files if key.startswith("validation|")}
    clone = found.pop("BC", None)  # a policy gradient's own network is no backbone to act with
    return {"rounds": float(table["rounds"]), "clone": clone, "method": next(iter(found.values()))}


def draw(path: Path, rows: Sequence[dict[str, Any]], anchors: dict[str, Any]) -> None:
    """Draw the score over omega."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for method in GUIDED:
        for candidates, style in ((1, "-o"), (16, "--s")):
            own = [row for row in rows if row["method"] == method and row["candidates"] == candidates]
            if own:
                x, y, e = zip(*((r["omega"], r["pdms"], r["error_over_logs"]) for r in own), strict=True)
                label = f"{method}, {'one plan' if candidates == 1 else f'best of {candidates} by the learned score'}"
                axes.errorbar(x, y, e, fmt=style, capsize=3, label=label)
    for row in rows:
        if row["omega"] is None and row["candidates"] == 1:
            axes.axhline(row["pdms"], linestyle=":", color="gray")
            axes.annotate(row["method"], (4.05, row["pdms"]), fontsize=8)
    for name in ("human", "PDM-Closed"):
        level = anchors[name]["scores"][-1]
        axes.axhline(level, linestyle="-.", color="lightgray")
        axes.annotate(name, (4.05, level), fontsize=8)
    axes.set_xlabel("omega")
    axes.set_ylabel(f"PDMS, test ({HERE})")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
