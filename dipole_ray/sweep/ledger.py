"""`sweep.json`: what a sweep has done. It alone, with each trial's own `trial.json`, decides what is left to do.

Tune's state files are not read: they are pickles, and one that was cut short would lose the sweep. Trials that are
finished here are never given to Tune again; the others are, and go on from the checkpoint in their own folder.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dipole_ray.errors import CheckpointError
from dipole_ray.files.durable import read_json, write_json
from dipole_ray.sweep.space import Values

SWEEP_FILE, TRIAL_FILE, TRIALS = "sweep.json", "trial.json", "trials"
FORMAT = 1

Status = Literal["planned", "running", "done", "stopped", "failed"]
ENDED: tuple[Status, ...] = ("done", "stopped")
"""States that are not tried again: all rungs reached, or stopped by the scheduler."""

_MAX_BYTES = 1 << 28


@dataclass(kw_only=True, slots=True)
class Record:
    """One trial."""

    id: str
    """Name of the trial and of its folder."""
    values: Values
    """Its settings by dotted key; PBT changes them."""
    status: Status = "planned"
    """`failed` trials are tried again by the next start."""
    rung: int = 0
    """Evaluations finished."""
    score: float | None = None
    """The metric at the last rung, of the best cell."""
    run_id: str | None = None
    """MLflow's id of its run."""
    checkpoint: str | None = None
    """Its newest checkpoint."""
    error: str | None = None
    """Why it failed."""


@dataclass(kw_only=True, slots=True)
class Ledger:
    """The sweep's file in memory; `save` writes it whole."""

    folder: Path
    """The sweep's folder."""
    plan: dict[str, Any]
    """The plan's mapping."""
    run_key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """By which the sweep's MLflow run is found, also by the trials."""
    created_s: float = field(default_factory=time.time)
    """When the sweep was first started, seconds since 1970."""
    trials: dict[str, Record] = field(default_factory=dict)
    """All trials so far, in their order."""

    @staticmethod
    def open(folder: Path, plan: dict[str, Any]) -> Ledger:
        """Return the sweep that stands in the folder, with what its trials wrote down last; or a new one.

        Raises:
            CheckpointError: `sweep.json` is damaged.
        """
        path = folder / SWEEP_FILE
        if not path.exists():
            return Ledger(folder=folder, plan=plan)
        try:
            stored = read_json(path, _MAX_BYTES)
            if stored["format"] != FORMAT:
                raise ValueError(f"format {stored['format']}, this version reads {FORMAT}")
            records = {item["id"]: Record(**item) for item in stored["trials"]}
            ledger = Ledger(
                folder=folder,
                plan=plan,
                run_key=str(stored["run_key"]),
                created_s=float(stored["created_s"]),
                trials=records,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: not readable ({error}); put a whole one back, or remove {folder} to start the sweep anew"
            ) from None
        for record in records.values():
            ledger._catch_up(record)
        return ledger

    def add(self, values: Values) -> Record:
        """Add a trial."""
        record = Record(id=f"trial-{len(self.trials):03d}", values=values)
        self.trials[record.id] = record
        return record

    def unfinished(self) -> list[Record]:
        """Return the trials that still have something to do, those that are furthest first."""
        left = [record for record in self.trials.values() if record.status not in ENDED]
        return sorted(left, key=lambda record: -record.rung)

    def trial_folder(self, trial: str) -> Path:
        """Return the run folder of a trial."""
        return self.folder / TRIALS / trial

    def results(self, trial: str) -> list[dict[str, Any]]:
        """Return what a trial measured at each of its rungs, oldest first."""
        notes = read_trial(self.trial_folder(trial))
        return [] if notes is None else list(notes["results"])

    def save(self) -> None:
        """Write `sweep.json`."""
        stored = {
            "format": FORMAT,
            "run_key": self.run_key,
            "created_s": self.created_s,
            "plan": self.plan,
            "trials": [asdict(record) for record in self.trials.values()],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SWEEP_FILE, stored)

    def _catch_up(self, record: Record) -> None:
        """Take what a trial wrote down after the sweep's process had ended."""
        notes = read_trial(self.trial_folder(record.id))
        if notes is None:
            record.status = "planned"
        else:
            note(record, notes)
            finished = notes["finished"]
            record.status = "done" if finished else record.status if record.status in (*ENDED, "failed") else "planned"


def note(record: Record, notes: dict[str, Any]) -> None:
    """Take a trial's own notes into its record."""
    record.values, record.rung, record.run_id = dict(notes["values"]), int(notes["rung"]), notes["run_id"]
    record.checkpoint = notes["checkpoint"]
    if notes["results"]:
        record.score = float(notes["results"][-1]["score"])


def read_trial(folder: Path) -> dict[str, Any] | None:
    """Return a trial's own notes; None where there are none that can be read (its checkpoint has them too)."""
    try:
        notes = read_json(folder / TRIAL_FILE, _MAX_BYTES)
        return notes if {"values", "rung", "run_id", "checkpoint", "results", "finished"} <= notes.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def records_of(ledger: Ledger, *statuses: Status) -> Iterator[Record]:
    """Yield the trials in one of these states."""
    yield from (record for record in ledger.trials.values() if record.status in statuses)
