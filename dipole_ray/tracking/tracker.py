"""What a run says of itself: metrics go to `metrics.jsonl`, and from there to MLflow.

The file comes first and alone decides what the run's metrics are. Training appends and goes on; an outage, a slow
server or a restart of MLflow costs it nothing, and what MLflow has missed is delivered from the file later.
"""

import json
import math
import os
import shlex
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISVTX
from typing import Any, Literal, Self, SupportsFloat

from dipole_ray.errors import ConfigError
from dipole_ray.files.place import absolute
from dipole_ray.tracking.metrics_file import METRICS_FILE, MetricsFile
from dipole_ray.tracking.mlflow_feed import MlflowFeed
from dipole_ray.tracking.mlflow_server import redacted, sqlite_uri

FLOAT32_MAX = 3.4028234663852886e38
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
CLOSING_S: dict[RunStatus, float] = {"FINISHED": 30.0, "FAILED": 30.0, "KILLED": 15.0}
"""Longest wait for MLflow at the end of a run; whoever asks one to stop kills it soon, often after 30 s in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where the metrics go besides `metrics.jsonl`, which every run writes."""

    mlflow: bool = True
    """Feed MLflow as well."""
    tracking_uri: str | None = None
    """MLflow server or database; null = MLFLOW_TRACKING_URI, else SQLite in `mlflow.db` beside the folder of runs."""
    experiment: str = "dipole_ray"
    """MLflow experiment the run appears in; made if missing."""

    def __post_init__(self) -> None:
        """Reject an address that cannot be one."""
        if not self.experiment.strip():
            remedy = "give a name, or turn MLflow off with tracking.mlflow=false"
            raise ConfigError(f"tracking.experiment is empty: {remedy}")
        uri = self.tracking_uri
        if uri is not None and not uri.strip():
            raise ConfigError("tracking.tracking_uri is empty: give an address, or null for the default")
        if uri is not None and redacted(uri) != uri:
            why = "holds credentials, and a run's config is stored in many places"
            remedy = "set the address as MLFLOW_TRACKING_URI in the environment instead"
            raise ConfigError(f"tracking.tracking_uri ({redacted(uri)}) {why}: {remedy}")
        if uri is not None and not self.mlflow:
            raise ConfigError("tracking.tracking_uri is set but tracking.mlflow is false: drop one of them")

    def resolve_uri(self, runs_dir: Path) -> str:
        """Return the MLflow address that holds for runs in `runs_dir`."""
        given = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        return located_uri(given) if given else sqlite_uri(_database(runs_dir.resolve()))


def _database(runs_dir: Path) -> Path:
    """Return MLflow's database: beside the folder of runs, so that there is nothing but runs in it.

    It is inside where an earlier version has put it, and where the place beside is not the user's own, such as `/tmp`.
    """
    inside, above = runs_dir / "mlflow.db", runs_dir.parent
    there = next(folder for folder in (above, *above.parents) if folder.exists())
    is_own = there.stat().st_uid == os.getuid() and os.access(there, os.W_OK) and not there.stat().st_mode & S_ISVTX
    return above / inside.name if is_own and not inside.exists() else inside


def located_uri(uri: str, start: str | Path = "") -> str:
    """Return an MLflow address with its file or folder, if it names one, absolute (see `absolute`).

    Raises:
        ConfigError: A database in memory, with which everything in it would be gone.
    """
    if uri.strip("/") == "sqlite:" or uri.startswith("sqlite:///:memory:"):
        why = "names no file, so MLflow would keep the run in memory and lose it"
        raise ConfigError(
            f"tracking.tracking_uri or MLFLOW_TRACKING_URI is '{uri}', which {why}: write sqlite:///FILE.db"
        )
    if uri == "databricks":  # MLflow's own name for a server
        return uri
    scheme = next((one for one in ("sqlite:///", "file:") if uri.startswith(one)), "")
    place = uri.removeprefix(scheme)
    is_relative = not place.startswith("/") and (scheme or ":" not in uri)
    return f"{scheme}{absolute(place, start)}" if is_relative else uri


class Tracker:
    """The metrics of one run; every method but the constructor keeps tracker trouble to itself."""

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        *,
        run_name: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        resume: bool = False,
        state: Mapping[str, Any] | None = None,
        run_key: str | None = None,
        parent_key: str | None = None,
        again: str | None = None,
    ) -> None:
        """Open `run_dir/metrics.jsonl` and start to feed MLflow, which takes no time of the caller's.

        Args:
            run_dir: Folder of the run; made if missing.
            config: Whether and where MLflow is.
            run_name: Name in MLflow.
            parameters: The run's config, nested or flat; logged once, later differences become tags.
            tags: Further tags, such as the config's digest; versions and git commit are added anyway.
            resume: Continue the file and the MLflow run that are there.
            state: What `sync` returned for the checkpoint that is resumed: lines after it are cut off. None: all stay.
            run_key: Key of the MLflow run, where runs below this one must find it.
            parent_key: Key of the MLflow run that this one is shown under, such as a trial's sweep.
            again: What delivers later what MLflow does not take now, in words; None: the resume of a run.

        Raises:
            ConfigError: The folder cannot be written, or holds metrics already and `resume` is false.
        """
        run_dir = absolute(run_dir)
        path = run_dir / METRICS_FILE
        if not resume and path.exists():
            raise ConfigError(f"{path} exists already: resume that run, or give the new one another name")
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._file = MetricsFile(path, keep_bytes=None if state is None else int(state["metrics_bytes"]))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose a folder that can") from error
        self._lock = threading.Lock()
        uri = config.resolve_uri(run_dir.parent)
        self.uri = redacted(uri) if config.mlflow else None  # without credentials; None where MLflow is off
        self._feed: MlflowFeed | None = None
        if config.mlflow:
            self._feed = MlflowFeed(
                run_dir,
                uri=uri,
                experiment=config.experiment,
                run_name=run_name,
                parameters=parameters,
                tags=tags or {},
                metrics_bytes=self._file.size,
                run_key=run_key,
                parent_key=parent_key,
                again=again or f"'dipole train --resume {shlex.quote(str(run_dir))}'",
            )

    def __enter__(self) -> Self:
        """Return itself; leaving the block closes it with the status that fits."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close as finished, killed (Ctrl-C) or failed."""
        self.close("FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def log(self, metrics: Mapping[str, SupportsFloat | None], *, env_steps: int, learner_steps: int) -> None:
        """Append one line at the run's steps so far; it is with the operating system when this returns.

        `metrics` are numbers (Python's, numpy's, 0-d tensors) by `group/name`; None and non-finite ones become null.
        `time`, `env_steps` and `learner_steps` are the line's own.
        """
        own = {"time": round(time.time(), 3), "env_steps": int(env_steps), "learner_steps": int(learner_steps)}
        line = {**own, **{name: _finite(value) for name, value in metrics.items() if name not in own}}
        if self._feed is not None and self._feed.failures:
            line["system/tracking_failures"] = self._feed.failures
        with self._lock:
            self._file.append(json.dumps(line).encode() + b"\n")
        if self._feed is not None:
            self._feed.wake.set()

    @property
    def view_command(self) -> str | None:
        """The command, or address, that shows the run in MLflow; None where MLflow is off or refuses the run."""
        if self.uri is None or (self._feed is not None and self._feed.is_refused):
            return None
        if self.uri.startswith("http"):  # the run's own page, for MLflow itself opens on one for language models
            return self.uri if self.run_id is None else f"{self.uri.rstrip('/')}/#/runs/{self.run_id}"
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}"

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, once it is known."""
        return None if self._feed is None else self._feed.state.run_id

    def sync(self) -> dict[str, Any]:
        """Flush all lines to the disk, and return what a checkpoint must store for `Tracker(state=...)`."""
        with self._lock:
            return {"metrics_bytes": self._file.sync()}

    def artifact(self, path: Path, folder: str = "") -> None:
        """Queue a file or folder for MLflow, under `folder` there; it is sent as it is when its turn comes."""
        if self._feed is not None:
            self._feed.artifact(path, folder)

    def close(self, status: RunStatus = "FINISHED", timeout_s: float | None = None) -> None:
        """Deliver what is left and end the MLflow run; say what was not delivered in time: a later resume does it.

        None waits as long as `CLOSING_S` has for the status.
        """
        with self._lock:
            self._file.close()
        if self._feed is not None:
            self._feed.close(status, CLOSING_S[status] if timeout_s is None else timeout_s)


def _finite(value: SupportsFloat | None) -> float | None:
    """Return a metric as a float, or None where there is no number: a float maximum stands for infinity."""
    number = math.nan if value is None else float(value)
    return number if abs(number) < FLOAT32_MAX else None
