"""The smallest suite that still goes through everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dipole_ray.settings import merge
from tests.cli.commands import SMALL

SUITE: dict[str, Any] = {
    "suite": {"seeds": [0, 1], "metric": "return", "evaluations": 2, "resources": {"cpus": 1}},
    "base": merge(
        SMALL,
        {
            "training": {"offline_learner_steps": 60, "online_env_steps": 0},
            "evaluation": {"every_learner_steps": 20, "interval_episodes": 2, "episodes": 2},
            "agent": {"train_bc": False},
            "env": {"max_episode_steps": 40},
            "checkpoint": {"every_learner_steps": 20},
        },
    ),
    "tasks": {"pendulum": {}},
    "methods": {
        "dipole": {},
        "ifql": {"agent": {"weight_scheme": "bc", "omega": 0.0}},
        "bc": {"runs_of": "ifql", "candidates": [1]},
    },
}
SUITE["base"]["evaluation"]["bc"] = False


def suite_mapping(data: Path | None = None, **sections: Any) -> dict[str, Any]:
    """Return the suite's mapping, with the sections merged on top, or replaced for tasks and methods."""
    mapping = merge(SUITE, {"base": {"data": {"path": str(data or "data")}}})
    for name, values in sections.items():
        mapping[name] = values if name in ("tasks", "methods") else merge(mapping.get(name, {}), values)
    return mapping


def write_suite(path: Path, data: Path, **sections: Any) -> Path:
    """Write the suite's file."""
    path.write_text(yaml.safe_dump(suite_mapping(data, **sections)))
    return path
