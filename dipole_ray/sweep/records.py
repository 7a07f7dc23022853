"""`sweep.json`: what a sweep has done. It alone, with each trial's own `trial.json`, decides what is left to do.

Tune's state files are not read: they are pickles, and one that was cut short would lose the sweep. Trials that are
finished here are never given to Tune again; the others are, and go on from the checkpoint in their own folder.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dipole_ray.errors import CheckpointError
from dipole_ray.files.durable import read_json, write_json, write_text
from dipole_ray.files.lock import LOCK, FolderLock
from dipole_ray.files.place import original_of, place_of
from dipole_ray.sweep.space import Values

SWEEP_FILE, TRIAL_FILE, TRIALS = "sweep.json", "trial.json", "trials"
SCORE_FILE = "score_kind"  # in the sweep's folder: no trial is compared by a success with another by its return
LOCK_WAIT_S = 60.0
STOP_FILE = "stop"  # in the sweep's folder: its trials save and end
FORMAT = 1
DATA = "data.path"  # the setting whose value is a place, not what shapes a result

TrialStatus = Literal["planned", "running", "done", "stopped", "failed"]
ENDED: tuple[TrialStatus, ...] = ("done", "stopped")  # all rungs reached, or stopped by the scheduler: not tried again
_MAX_BYTES = 1 << 28
_log = logging.getLogger(__name__)
_NOTES = {"values", "rung", "run_id", "checkpoint", "results", "finished"}  # keys of a whole `trial.json`


@dataclass(kw_only=True, slots=True)
class TrialRecord:
    """One trial."""

    id: str  # name of the trial and of its folder
    values: Values  # its settings by dotted key; PBT changes them
    status: TrialStatus = "planned"  # `failed` trials are tried again by the next start
    rung: int = 0  # evaluations finished
    score: float | None = None  # the metric at the last rung, of the best cell
    run_id: str | None = None  # MLflow's id of its run
    checkpoint: str | None = None  # its newest checkpoint
    error: str | None = None  # why it failed


@dataclass(kw_only=True, slots=True)
class SweepRecords:
    """The sweep's file in memory; `save` writes it whole."""

    folder: Path
    plan: dict[str, Any]  # the plan's mapping
    run_key: str = field(default_factory=lambda: uuid.uuid4().hex)  # finds the sweep's MLflow run, for trials too
    created_s: float = field(default_factory=time.time)  # when the sweep was first started, seconds since 1970
    trials: dict[str, TrialRecord] = field(default_factory=dict)  # in their order

    @staticmethod
    def open(folder: Path, plan: dict[str, Any]) -> SweepRecords:
        """Return the sweep that stands in the folder, with what its trials wrote down last; or a new one."""
        path = folder / SWEEP_FILE
        if not path.exists():
            return SweepRecords(folder=folder, plan=plan)
        try:
            stored = read_json(path, _MAX_BYTES, FORMAT)
            key, created_s = _run_key(folder, stored), float(stored["created_s"])
            trials = {item["id"]: TrialRecord(**item) for item in stored["trials"]}
            moved = _moved(*(one.get("space", {}) for one in (stored["plan"], plan)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            remedy = f"put a whole one back, or remove {folder} to start the sweep anew"
            raise CheckpointError(f"{path}: not readable ({error}); {remedy}") from None
        records = SweepRecords(folder=folder, plan=plan, run_key=key, created_s=created_s, trials=trials)
        for record in trials.values():  # trials may have gone on after the sweep's own process
            if DATA in record.values:
                record.values[DATA] = moved.get(record.values[DATA], record.values[DATA])
            notes = records.refresh(record)
            if notes.get("finished"):
                record.status = "done"
            elif not notes or record.status not in (*ENDED, "failed"):
                record.status = "planned"
        return records

    def add(self, values: Values) -> TrialRecord:
        """Add a trial."""
        record = TrialRecord(id=f"trial-{len(self.trials):03d}", values=values)
        self.trials[record.id] = record
        return record

    def having(self, *statuses: TrialStatus) -> list[TrialRecord]:
        """Return the trials in one of these states."""
        return [record for record in self.trials.values() if record.status in statuses]

    def unfinished(self) -> list[TrialRecord]:
        """Return the trials that still have something to do, those that are furthest first."""
        return sorted(self.having("planned", "running", "failed"), key=lambda record: -record.rung)

    def trial_folder(self, trial: str) -> Path:
        """Return the run folder of a trial."""
        return self.folder / TRIALS / trial

    def notes(self, trial: str) -> dict[str, Any]:
        """Return what a trial wrote down itself; nothing where that cannot be read (its checkpoint has it too)."""
        try:
            notes = read_json(self.trial_folder(trial) / TRIAL_FILE, _MAX_BYTES)
            return notes if notes.keys() >= _NOTES else {}
        except (OSError, ValueError, AttributeError):
            return {}

    def results(self, trial: str) -> list[dict[str, Any]]:
        """Return what a trial measured at each of its rungs, oldest first."""
        return list(self.notes(trial).get("results", ()))

    def refresh(self, record: TrialRecord) -> dict[str, Any]:
        """Take a trial's own notes, which are the newest there are, into its record, and return them."""
        notes = self.notes(record.id)
        if notes:
            own = {key: record.values[key] for key in (DATA,) if key in record.values}  # the data may have moved since
            record.values, record.rung = {**notes["values"], **own}, int(notes["rung"])
            record.run_id, record.checkpoint = notes["run_id"], notes["checkpoint"]
            if notes["results"]:
                record.score = float(notes["results"][-1]["score"])
        return notes

    def save(self) -> None:
        """Write `sweep.json`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        head = {
            "format": FORMAT,
            **place_of(self.folder),
            "run_key": self.run_key,
            "created_s": self.created_s,
            "plan": self.plan,
        }
        write_json(self.folder / SWEEP_FILE, {**head, "trials": list(map(asdict, self.trials.values()))})


def settled_score(sweep: Path, kind: str) -> str:
    """Return what all scores of a sweep are, `success` or `return`: the `kind` of the trial that was scored first."""
    place = sweep / SCORE_FILE
    with FolderLock(sweep, LOCK_WAIT_S, f".{SCORE_FILE}{LOCK}"):
        if not place.exists():
            write_text(place, kind)
    return place.read_text(encoding="utf-8").strip()


def _moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return where the data of a space lies now, by where it lay: equal sweeps name the same data in one order."""
    old, new = ([one for listed in space.get(DATA, {}).values() for one in listed] for space in (before, now))
    return dict(zip(old, new, strict=False))


def _run_key(folder: Path, stored: dict[str, Any]) -> str:
    """Return the key of a sweep's MLflow run: another one for a copy of a sweep."""

    def is_twin(elsewhere: Path) -> bool:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return bool(read_json(elsewhere / SWEEP_FILE, _MAX_BYTES)["run_key"] == stored["run_key"])
        return False

    if (original := original_of(folder, stored, is_twin)) is None:
        return str(stored["run_key"])
    _log.warning("%s is a copy of %s; it has an MLflow run of its own", folder, original)
    return uuid.uuid4().hex
