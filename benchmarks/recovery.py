"""Make the table of recovery times from what the chaos tests measured.

    make chaos                                                  # breaks everything and makes the table in build/
    python -m benchmarks.recovery build/chaos.jsonl             # writes it to benchmarks/results/

The tests append one JSON line a measurement to the file named by DIPOLE_CHAOS_RESULTS: row of the plan (C1, D3, ...),
what was measured, value, unit and the bar it is held against. A bar such as "<= 30 s", "< 1", "0" or "50 of 50" is
judged here, for every repetition; one in words ("none", "as C4: 30 s, and detection") is shown and not judged: the
test asserts what it must. Several files, of several machines or days, give one table each: run this once for each.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.learner_speed import machine
from dipole_ray.files.provenance import git_commit, package_versions

FIELDS = {"row": str, "what": str, "value": (int, float), "unit": str, "bar": str, "time": (int, float)}
FAMILIES = "CDNFSTRL"
"""Order of the rows: actors, disk, numbers, datasets, security, trackers, resume, leaks."""
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "": operator.eq,
}
BAR = re.compile(r"(<=|<|>=|>|)\s*(-?\d+(?:\.\d+)?)(?: of \d+)?(?: (?P<unit>[^\s,]+))?(?:,.*)?")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the measurements of a file; ends the program in a sentence where there are none, or a line is none."""
    if not path.is_file():
        sys.exit(f"{path}: no such file; run 'make chaos', or set DIPOLE_CHAOS_RESULTS to this file while testing")
    records = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
            wrong = [name for name, kind in FIELDS.items() if not isinstance(record.get(name), kind)]
        except (ValueError, AttributeError):
            wrong = ["everything"]
        if wrong:
            sys.exit(f"{path}, line {number}: {', '.join(wrong)} is missing or of the wrong type; is it a measurement?")
        records.append(record)
    if not records:
        sys.exit(f"{path}: empty; did the chaos tests run with DIPOLE_CHAOS_RESULTS set to it?")
    return records


def holds(value: float, unit: str, bar: str) -> bool | None:
    """Return whether a value meets its bar; None for a bar in words, or in another unit than the value's."""
    found = BAR.fullmatch(bar.strip())
    if found is None or found["unit"] not in (None, unit):
        return None
    return COMPARISONS[found[1]](value, float(found[2]))


def order(row: str) -> tuple[int, int, str]:
    """Return where a row stands in the plan."""
    number = row[1:]
    family = FAMILIES.find(row[:1]) if number.isdigit() else -1
    return (family, int(number), row) if family >= 0 else (len(FAMILIES), 0, row)


def table(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry for each thing measured, in the order of the plan and then of the tests."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["row"], record["what"], record["unit"]), []).append(record)
    entries = []
    for (row, what, unit), members in groups.items():
        values = [float(record["value"]) for record in members]
        verdicts = [holds(float(record["value"]), unit, record["bar"]) for record in members]
        entries.append(
            {
                "row": row,
                "what": what,
                "unit": unit,
                "n": len(values),
                "median": statistics.median(values),
                "lowest": min(values),
                "highest": max(values),
                "bar": " / ".join(dict.fromkeys(record["bar"] for record in members)),
                "missed": None if None in verdicts else verdicts.count(False),
                "values": values,
            }
        )
    return sorted(entries, key=lambda entry: order(entry["row"]))


def markdown(result: dict[str, Any]) -> str:
    """Return the table a person reads."""
    versions, where = result["versions"], result["machine"]
    names = ("dipole_ray", "python", "ray", "torch")
    verdicts = Counter(_verdict(entry) for entry in result["entries"])
    missed = [f"{entry['row']} ({entry['what']})" for entry in result["entries"] if entry["missed"]]
    lines = [
        "# What the chaos tests measured",
        "",
        f"{result['date']}, {where['cpu']}, {where['cores']} cores, {where['memory_gb']:.0f} GB; "
        f"{', '.join(f'{name} {versions[name]}' for name in names if name in versions)}; commit {result['commit']}. "
        f"First to last measurement: {result['minutes']:.0f} min.",
        "",
        f"Command: `{result['command']}`",
        "",
        f"n repetitions, their median, lowest and highest. {verdicts['yes']} bars hold in every repetition"
        + (f"; missed: {'; '.join(missed)}." if missed else ", none is missed.")
        + " A dash: the bar is in words, or the figure is for information.",
        "",
        "| row | what | n | median | lowest to highest | bar | holds |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    for entry in result["entries"]:
        unit = f" {entry['unit']}" if entry["unit"] else ""
        spread = "" if entry["n"] == 1 else f"{entry['lowest']:.3g} to {entry['highest']:.3g}"
        cells = [entry["row"], entry["what"], str(entry["n"]), f"{entry['median']:.3g}{unit}", spread]
        lines.append("| " + " | ".join([*cells, entry["bar"] or "-", _verdict(entry)]) + " |")
    return "\n".join(lines) + "\n"


def _verdict(entry: dict[str, Any]) -> str:
    if entry["missed"] is None:
        return "-"
    return "yes" if not entry["missed"] else f"**no**, {entry['missed']} of {entry['n']}"


def main(argv: list[str] | None = None) -> None:
    """Read the measurements and write both result files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", type=Path, help="JSON lines that the chaos tests wrote")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the two result files")
    parser.add_argument("--command", default="make chaos", help="what measured, as the table is to say it")
    options = parser.parse_args(argv)
    records = read(options.measurements)
    times = [record["time"] for record in records]
    date = datetime.fromtimestamp(max(times), UTC).date().isoformat()
    result = {
        "date": date,
        "command": options.command,
        "machine": {**machine(), "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9},
        "versions": package_versions(),
        "commit": git_commit(),
        "minutes": (max(times) - min(times)) / 60.0,
        "entries": table(records),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"recovery-{date}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "recovery.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
