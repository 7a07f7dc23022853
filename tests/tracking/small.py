"""A tracker with few parameters and lines of two metrics, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dipole_ray.tracking.tracker import Tracker, TrackingConfig

DEAD_URI = "http://user:secret@127.0.0.1:9"
PARAMETERS = {"agent": {"beta": 1.0, "hidden_dims": [64, 64]}, "seed": 0}


def start(run_dir: Path, config: TrackingConfig | None = None, **options: Any) -> Tracker:
    """Return a tracker for `run_dir`."""
    options = {"parameters": PARAMETERS, **options}
    return Tracker(run_dir, config or TrackingConfig(), run_name=run_dir.name, **options)


def log_lines(tracker: Tracker, learner_steps: range, offset: float = 0.0) -> None:
    """Log one line for each of `learner_steps`; the online phase begins at 3."""
    for step in learner_steps:
        metrics = {"critic/loss": step + offset, "rollout/return": step - offset}
        tracker.log(metrics, env_steps=max(0, step - 2) * 10, learner_steps=step)
