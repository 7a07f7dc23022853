"""The smallest sweep that still goes through everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dipole_ray.settings import merge
from dipole_ray.sweep.plan import Plan, from_mapping
from tests.cli.commands import SMALL

GRID = {"omegas": [0.0, 1.0], "candidates": [1, 2], "select_episodes": 2, "report_episodes": 3}
SWEEP: dict[str, Any] = {"name": "small", "rungs": 2, "evaluation": GRID, "resources": {"trial_cpus": 0.5}}
SPACE: dict[str, Any] = {"agent.beta": {"grid": [1.0, 5.0]}}
OFFLINE = {"training": {"offline_learner_steps": 40, "online_env_steps": 0}}
PBT = {"search": "random", "scheduler": "pbt", "num_samples": 3, "pbt": {"quantile": 0.34}}
POPULATION: dict[str, Any] = {
    "agent.beta": {"loguniform": [0.5, 20.0]},
    "agent.expectile": {"uniform": [0.6, 0.95]},
    "agent.learning_rate": {"loguniform": [1e-4, 3e-3]},
}


def sweep_mapping(data: Path, folder: Path, *, space: dict[str, Any] = SPACE, **parts: Any) -> dict[str, Any]:
    """Return a sweep's mapping, `parts` being what its sections `sweep` and `run` have on top."""
    run = merge(SMALL, {"data": {"path": str(data)}, "folder": str(folder), **OFFLINE})
    return {"sweep": merge(SWEEP, parts.get("sweep", {})), "space": space, "run": merge(run, parts.get("run", {}))}


def small_plan(data: Path, folder: Path, **parts: Any) -> Plan:
    """Return the plan of `sweep_mapping`."""
    return from_mapping(sweep_mapping(data, folder, **parts))


def write_sweep(path: Path, mapping: dict[str, Any]) -> Path:
    """Write a sweep's file."""
    path.write_text(yaml.safe_dump(mapping))
    return path
