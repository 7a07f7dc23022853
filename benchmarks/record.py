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


def write_record(out: Path, name: str, command: str, numbers: dict[str, Any], title: str, tables: str) -> None:
    """Write `numbers` with their provenance as `{name}-{date}.json`, and `tables` for a person as `{name}.md`."""
    date = datetime.now(UTC).date().isoformat()
    record = {
        "date": date,
        "command": command,
        "machine": f"{platform.machine()}, {usable_cores()} cores",
        "versions": package_versions(),
        "commit": git_commit(),
        **numbers,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}-{date}.json").write_text(json.dumps(record, indent=1) + "\n")
    about = f"{date}, {record['machine']}; commit {str(record['commit'])[:7]}."
    (out / f"{name}.md").write_text(f"# {title}\n\n{about}\n\n    {command}\n\n{tables.strip()}\n")


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, 95 % bootstrap interval over seeds, and the values."""
    interval = bootstrap_interval(np.array(values))
    return {"mean": float(np.mean(values)), "low": interval.low, "high": interval.high, "per_seed": list(values)}


def brief(numbers: dict[str, Any], digits: int = 2) -> str:
    """Return a summary as `mean [low, high]`."""
    return f"{numbers['mean']:.{digits}f} [{numbers['low']:.{digits}f}, {numbers['high']:.{digits}f}]"
