"""`result.json`: what one run measured, in a few kilobytes, taken from its metrics."""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dipole_ray.cores import usable_cores
from dipole_ray.errors import DatasetError
from dipole_ray.evaluation.cells import cell_key, cells_with_chosen, chosen_cell
from dipole_ray.files.durable import read_json
from dipole_ray.files.provenance import git_commit, package_versions
from dipole_ray.rllib.sections import TrainingConfig
from dipole_ray.runs.config import RunConfig
from dipole_ray.tracking.metrics_file import read_metrics

RESULT_FILE = "result.json"
FORMAT = 1
FINISHED, DIVERGED = "finished", "diverged"
SCORES = ("success", "return", "length", "action_bound_fraction")
# Training series whose last value, median and maximum are kept, as far as a method has them
DIAGNOSTICS = (
    *("actor/effective_sample_fraction", "actor/advantage_std", "system/grad_norm", "system/skipped_updates"),
    *("actor/weight_q05", "actor/weight_q25", "actor/weight_q50", "actor/weight_q75", "actor/weight_q95"),
    *("critic/loss", "value/loss", "critic/q_mean", "value/v_mean"),
)
POLICY_LOSS = "actor/loss"  # and all that begin so


def result_of(folder: Path, config: RunConfig, *, status: str, error: str | None) -> dict[str, Any]:
    """Return the result of a run folder; `status` is `finished` or `diverged`, `error` says why it ended early.

    `phase` is the one in which the run ended, `cells` are the ways of acting by key, `chosen` is the key of the
    config's own one, `evaluations` have the scores by cell, `diagnostics` are end, median and maximum of training
    series.
    """
    lines = read_metrics(folder)
    cells = {cell_key(cell): cell for cell in cells_with_chosen(config.evaluation, config.agent)}
    training_s = sum(line.get("time/iteration_s") or 0.0 for line in lines)
    updates = int(lines[-1]["learner_steps"]) if lines else 0
    evaluations = _evaluations(lines, list(cells))
    return {
        "format": FORMAT,
        "ended": datetime.now(UTC).date().isoformat(),
        "commit": git_commit(),
        "machine": _machine(),
        "versions": package_versions(),
        "status": status,
        "error": error,
        "phase": _phase(config.training, evaluations),
        "learner_steps": updates,
        "env_steps": int(lines[-1]["env_steps"]) if lines else 0,
        "training_s": _rounded(training_s),
        "evaluation_s": _rounded(sum(line.get("time/evaluation_s") or 0.0 for line in lines)),
        "updates_per_s": _rounded(updates / training_s) if training_s else None,
        "chosen": cell_key(chosen_cell(config.agent)),
        "cells": {key: asdict(cell) for key, cell in cells.items()},
        "evaluations": evaluations,
        "diagnostics": _diagnostics(lines),
    }


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result in a run folder, None where there is none; DatasetError where it is damaged."""
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    try:
        return dict(read_json(path, version=FORMAT))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: not readable ({error}); remove it, and the run ends anew") from None


def _machine() -> str:
    """Return what computes in this process: a run without a GPU of its own sees none."""
    parts = [platform.machine(), f"{usable_cores()} cores"]
    return ", ".join([*parts, torch.cuda.get_device_name()] if torch.cuda.is_available() else parts)


def _phase(training: TrainingConfig, evaluations: Sequence[dict[str, Any]]) -> str:
    """Return the phase in which a run ended; the evaluation at the end of the offline phase is still a part of it."""
    steps = training.learner_steps_before_online
    is_through = not steps or any(item["learner_steps"] >= steps for item in evaluations)
    return "online" if training.online_env_steps and is_through else "offline"


def _evaluations(lines: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return every evaluation of the whole grid, oldest first."""
    found = []
    for line in lines:
        scores = {key: {name: _rounded(line.get(f"eval/{name}/{key}")) for name in SCORES} for key in keys}
        if all(score["return"] is not None for score in scores.values()):
            steps = {name: int(line[name]) for name in ("learner_steps", "env_steps")}
            found.append({"phase": "online" if line["env_steps"] else "offline", **steps, "scores": scores})
    return found


def _diagnostics(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return the last value, the median and the maximum of training series."""
    names = {name for line in lines for name in line if name in DIAGNOSTICS or name.startswith(POLICY_LOSS)}
    found = {}
    for name in sorted(names):
        values = [line[name] for line in lines if line.get(name) is not None]
        if values:
            shown = {"last": values[-1], "median": statistics.median(values), "max": max(values)}
            found[name] = {kind: _rounded(value) for kind, value in shown.items()}
    return found


def _rounded(value: float | None) -> float | None:
    """Return a number with six significant digits, which no interval over seeds is finer than."""
    return None if value is None else float(f"{value:.6g}")
