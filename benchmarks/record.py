"""What every dated result carries beside its numbers: when, where, with what, and by which command."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.cores import usable_cores
from dipole_ray.evaluation.statistics import bootstrap_interval
from dipole_ray.files.provenance import git_commit, package_versions


def provenance(command: str) -> dict[str, Any]:
    """Return when and where numbers were measured, with what, and by which command."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "machine": f"{_processor()}, {usable_cores()} cores",
        "versions": package_versions(),
        "commit": git_commit(),
    }


def _processor() -> str:
    """Return the processor's name, or its kind where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {names[0]}" if names else platform.machine()


def write_json(path: Path | None, command: str, numbers: dict[str, Any]) -> None:
    """Write numbers with their provenance to a file, if one was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**provenance(command), **numbers}, indent=1) + "\n", encoding="utf-8")


def write_record(out: Path, name: str, command: str, numbers: dict[str, Any], title: str, tables: str) -> None:
    """Write `numbers` with their provenance as `{name}-{date}.json`, and `tables` for a person as `{name}.md`."""
    record = {**provenance(command), **numbers}
    write_json(out / f"{name}-{record['date']}.json", command, numbers)
    about = f"{record['date']}, {record['machine']}; commit {str(record['commit'])[:7]}."
    (out / f"{name}.md").write_text(f"# {title}\n\n{about}\n\n    {command}\n\n{tables.strip()}\n")


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, 95 % bootstrap interval over seeds, and the values."""
    interval = bootstrap_interval(np.array(values))
    return {"mean": float(np.mean(values)), "low": interval.low, "high": interval.high, "per_seed": list(values)}


def brief(numbers: dict[str, Any], digits: int = 2) -> str:
    """Return a summary as `mean [low, high]`."""
    return f"{numbers['mean']:.{digits}f} [{numbers['low']:.{digits}f}, {numbers['high']:.{digits}f}]"
