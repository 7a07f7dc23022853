"""The thread that feeds MLflow from a run's `metrics.jsonl`.

`run_dir/mlflow.json` remembers the MLflow run, how far the file is delivered, and which files wait to be sent.
Delivery may be repeated, but no (metric, step) arrives twice: a point is sent only if its step is beyond the last
one that MLflow has of that metric. `mlflow.json` remembers those steps, and after every failure and at every start
the server is asked for them, because a reply that was lost leaves a batch there that was not noted here.

So where a run repeats steps, MLflow keeps the first values and `metrics.jsonl` has all of them: after a resume has cut
the file back and written its end anew, and after a learner that died inside a run went back to its last checkpoint.
The steps without new points are then at most those between two checkpoints.

A run asks for at most one batch a second, so that a server takes many runs; only a run that is closing does not wait.

MLflow's step is `learner_steps`. From the first environment step on, `rollout/` and `eval/` metrics also appear as
`by_env_steps/<name>` with `env_steps` as their step, and `env_steps` is itself a metric.
"""

from __future__ import annotations

import json
import logging
import random
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipole_ray.files.durable import read_json, write_json
from dipole_ray.files.place import original_of, place_of
from dipole_ray.files.provenance import git_commit, package_versions
from dipole_ray.settings import flatten
from dipole_ray.tracking.metrics_file import METRICS_FILE
from dipole_ray.tracking.mlflow_server import connect, experiment_of, reason_of, redacted, remedy_of, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STATE_FILE = "mlflow.json"
RUN_KEY_TAG = "dipole.run_key"
PARENT_TAG = "mlflow.parentRunId"
BY_ENV_STEPS_GROUPS = ("rollout/", "eval/")
BATCH_INTERVAL_S = 1.0
MAX_PAUSE_S = 60.0
# The limits of MLflow's REST interface for one log_batch.
MAX_METRICS, MAX_PARAMETERS, MAX_NAME, MAX_TEXT = 1000, 100, 250, 6000

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class FeedState:
    """What must survive a restart of the process, stored in `mlflow.json`."""

    tracking_uri: str  # without credentials
    experiment: str
    run_key: str  # tag of the MLflow run, known before it is made: one whose creation was cut short is found by it
    folder: str | None = None  # where the run's folder is (see `place_of`): a copy of it is a run of its own
    host: str | None = None
    inode: int | None = None
    run_id: str | None = None  # MLflow's id of the run, once it is known
    offset: int = 0  # bytes of `metrics.jsonl` that are delivered
    delivered: dict[str, int] = field(default_factory=dict)  # last step delivered, by MLflow metric
    artifacts: list[list[str]] = field(default_factory=list)  # what waits to be sent, each with its folder in MLflow


class MlflowFeed:
    """One daemon thread that brings a run's metrics, parameters and artifacts to MLflow, retrying for ever."""

    def __init__(
        self,
        run_dir: Path,
        *,
        uri: str,
        experiment: str,
        run_name: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        metrics_bytes: int,
        run_key: str | None = None,
        parent_key: str | None = None,
        again: str,
    ) -> None:
        """Start the thread, with the arguments of `Tracker` and the length that its file has after any cut."""
        self.failures = 0  # deliveries that failed so far
        self.wake = threading.Event()  # to be set where there is something new
        self._run_dir, self._uri, self._again = run_dir, uri, again
        self._experiment, self._run_name = experiment, run_name
        self._parameters = {_name(key): _text(value) for key, value in flatten(parameters).items()}
        self._tags, self._run_key, self._parent_key = dict(tags), run_key, parent_key
        self.state = self._load_state(metrics_bytes)
        self._client: MlflowClient  # with the id of the experiment, while the run is open
        self._experiment_id, self._is_open = "", False
        self._failing, self._next_batch_s = 0, 0.0
        self.is_refused = False  # by what does not pass by itself
        self._status, self._lock = "FINISHED", threading.Lock()
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow-feed", daemon=True)
        self._thread.start()

    def artifact(self, path: Path, folder: str) -> None:
        """Queue a file or folder."""
        with self._lock:
            self.state.artifacts.append([str(path.resolve()), folder])
        try:
            self._save_state()
        except OSError as error:
            self._report(error)
        self.wake.set()

    def close(self, status: str, timeout_s: float) -> None:
        """Deliver the rest, end the MLflow run with `status`, and warn of what is left after `timeout_s`.

        Nobody waits where MLflow refused what it was sent last, and does so again.
        """
        self._status = status
        self._closing.set()
        self.wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive() or self.is_refused:
            self._given_up.set()
            with self._lock, (self._run_dir / METRICS_FILE).open("rb") as file:
                file.seek(self.state.offset)
                lines, artifacts = sum(1 for _ in file), len(self.state.artifacts)
            late = "" if self.is_refused else f" within {timeout_s:g} s"
            late = f"{lines} lines of metrics and {artifacts} artifacts were not delivered{late}"
            then = "that is mended" if self.is_refused else "it answers"
            again = f"they are in {self._run_dir}, and once {then}, {self._again} delivers them"
            _log.warning(f"MLflow at {redacted(self._uri)}: {late}; {again}")

    def _run(self) -> None:
        """Deliver whenever there is something new, at most once a second; pause longer after each failure."""
        while not self._given_up.is_set():
            closing = self._closing.is_set()  # read first: lines written before the closing are then seen below
            self.wake.clear()
            try:
                self._deliver()
                self.is_refused = False
                if closing and not self._given_up.is_set():
                    if self.failures:
                        self._find_run()  # which removes a twin
                    self._client.set_terminated(self.state.run_id, self._status)
                    return
            except Exception as error:  # whatever a tracker does, training goes on
                if self._given_up.is_set():  # what was not delivered has been said
                    return
                self._is_open = False  # look the run up again: the server may have lost it
                self._report(error)
                if closing and self.is_refused:
                    return
                pause_s = min(2.0 ** min(self._failing - 1, 10), MAX_PAUSE_S)
                pause_s *= random.uniform(0.5, 1.0)  # not all the trials of a sweep at once, again and again
                self._given_up.wait(1.0) if closing else self._closing.wait(pause_s)
                continue
            self._failing = 0
            self.wake.wait()
            self._closing.wait(max(0.0, self._next_batch_s - time.monotonic()))

    def _deliver(self) -> None:
        """Bring everything that is new to MLflow; raises whatever MLflow raises."""
        if not self._is_open:
            self._open_run()
        from mlflow.entities import Metric  # not before `connect` has set what MLflow reads when it is imported

        for points, offset in self._batches():
            if self._given_up.is_set():
                return
            self._closing.wait(max(0.0, self._next_batch_s - time.monotonic()))
            if points:
                self._client.log_batch(self.state.run_id, metrics=[Metric(*point) for point in points])
            self._next_batch_s = time.monotonic() + BATCH_INTERVAL_S
            with self._lock:
                self.state.offset = offset
                self.state.delivered.update((name, step) for name, _, _, step in points)
            self._save_state()
        while self.state.artifacts:
            path, folder = self.state.artifacts[0]
            if Path(path).exists():
                self._client.log_artifact(self.state.run_id, path, folder or None)
            else:
                _log.warning("%s is gone and was not sent to MLflow", path)
            with self._lock:
                self.state.artifacts.pop(0)
            self._save_state()

    def _open_run(self) -> None:
        """Find the MLflow run, or make it, and log its parameters and tags."""
        self._client = connect(self._uri)
        self._experiment_id = self._find_experiment()
        if self._parent_key is not None:
            above = self._runs_of(self._parent_key)
            if not above:
                raise LookupError("the run above this one is not there yet")  # so delivery is tried again
            self._tags[PARENT_TAG] = str(above[0].info.run_id)
        run = self._find_run()
        if run is None:
            self._save_state()  # the key first, so that a run made by a call that never returns is found again
            # The parent at once, or the run would stand alone for a while; the other tags follow with the parameters.
            tags = {RUN_KEY_TAG: self.state.run_key}
            tags |= {key: value for key, value in self._tags.items() if key == PARENT_TAG}
            run = self._client.create_run(self._experiment_id, tags=tags, run_name=self._run_name)
        elif run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")
        self.state.run_id = run.info.run_id
        self._log_parameters(run)
        with self._lock:
            for latest in run.data._metric_objs:  # no public name has the step
                self.state.delivered[latest.key] = max(latest.step, self.state.delivered.get(latest.key, -1))
        self._save_state()
        self._is_open = True

    def _find_experiment(self) -> str:
        """Return the experiment's id; make the experiment if it is missing."""
        found = experiment_of(self._client, self._uri, self._experiment)
        if found is None:
            # Without a server in between, MLflow would put artifacts below the current folder, wherever that is.
            database = sqlite_file(self._uri)
            beside = None if database is None else (database.parent / "mlartifacts").as_uri()
            try:
                return str(self._client.create_experiment(self._experiment, artifact_location=beside))
            except Exception:
                found = self._client.get_experiment_by_name(self._experiment)  # another run made it meanwhile?
                if found is None:
                    raise
        return str(found.experiment_id)

    def _runs_of(self, run_key: str) -> list[Run]:
        """Return the experiment's runs that bear a key."""
        return list(self._client.search_runs([self._experiment_id], f"tags.`{RUN_KEY_TAG}` = '{run_key}'"))

    def _find_run(self) -> Run | None:
        """Return the MLflow run of this run folder; a deleted one is replaced, with everything delivered anew."""
        runs, known = self._runs_of(self.state.run_key), self.state.run_id
        kept = next((run for run in runs if known in (None, run.info.run_id)), None)
        for twin in runs:
            if kept is not None and twin is not kept:  # made by a call that was given up and came through after all
                self._client.delete_run(twin.info.run_id)
        if kept is None and known is not None:
            _log.warning("the MLflow run %s is gone; a new one takes the whole history", known)
            run_key = self._run_key or uuid.uuid4().hex
            with self._lock:
                self.state = replace(self.state, run_key=run_key, run_id=None, offset=0, delivered={})
        return kept

    def _log_parameters(self, run: Run) -> None:
        """Log parameters that are new; MLflow never changes one, so a different value becomes a tag."""
        from mlflow.entities import Param, RunTag

        known = dict(run.data.params)
        new = [Param(name, value) for name, value in self._parameters.items() if name not in known]
        changed = {f"changed.{k}": v for k, v in self._parameters.items() if k in known and known[k] != v}
        versions = {f"version.{name}": version for name, version in package_versions().items()}
        source = {"mlflow.source.name": "dipole train", "mlflow.source.git.commit": git_commit()}
        every = {**versions, **source, **self._tags, **changed}
        tags = [RunTag(_name(key), _text(value)) for key, value in every.items() if value is not None]
        for start in range(0, max(len(new), len(tags)), MAX_PARAMETERS):
            chunk = slice(start, start + MAX_PARAMETERS)
            self._client.log_batch(run.info.run_id, params=new[chunk], tags=tags[chunk])
        self._next_batch_s = time.monotonic() + BATCH_INTERVAL_S

    def _batches(self) -> Iterator[tuple[list[tuple[str, float, int, int]], int]]:
        """Yield new points (metric, value, time in ms, step), as many as MLflow takes, and the offset after them."""
        points: list[tuple[str, float, int, int]] = []
        seen, offset = dict(self.state.delivered), self.state.offset
        with (self._run_dir / METRICS_FILE).open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                for point in _points(json.loads(line)):
                    if point[3] <= seen.get(point[0], -1):
                        continue
                    if len(points) == MAX_METRICS:
                        # The offset stays before this line; its points sent here are passed over by `delivered`.
                        yield points, offset
                        points = []
                    points.append(point)
                    seen[point[0]] = point[3]
                offset += len(line)
        if offset != self.state.offset:
            yield points, offset

    def _report(self, error: Exception) -> None:
        """Count a failure, and warn of the first in a row."""
        self.failures += 1
        self._failing += 1
        remedy = remedy_of(error)
        was_refused, self.is_refused = self.is_refused, bool(remedy)
        if self._failing == 1 or self.is_refused > was_refused:
            found = f"MLflow at {redacted(self._uri)} takes no metrics ({reason_of(error)})"
            found += f": {remedy}" if remedy else ""
            _log.warning(f"{found}; training goes on, metrics.jsonl is complete, and delivery is tried again")

    def _load_state(self, metrics_bytes: int) -> FeedState:
        """Return the stored state; a new one if there is none or MLflow is elsewhere now."""
        run_key, uri = self._run_key or uuid.uuid4().hex, redacted(self._uri)
        place = place_of(self._run_dir)
        fresh = FeedState(tracking_uri=uri, experiment=self._experiment, run_key=run_key, **place)
        try:
            state = FeedState(**read_json(self._run_dir / STATE_FILE))
            state.offset = min(state.offset, metrics_bytes)
        except FileNotFoundError:
            return fresh
        except (OSError, ValueError, TypeError) as error:
            _log.warning("%s is unreadable (%s); a new MLflow run is made", self._run_dir / STATE_FILE, error)
            return fresh
        original = original_of(self._run_dir, asdict(state), lambda folder: _key_in(folder) == state.run_key)
        there, here = state.folder or place["folder"], place["folder"]
        state = replace(state, artifacts=[[path.replace(there, here, 1), to] for path, to in state.artifacts], **place)
        if original is not None:
            _log.warning("%s is a copy of %s; it has an MLflow run of its own", here, original)
            return replace(fresh, artifacts=state.artifacts)
        if (state.tracking_uri, state.experiment) != (fresh.tracking_uri, fresh.experiment):
            before, now = (f"{one.tracking_uri} ({one.experiment})" for one in (state, fresh))
            _log.warning("MLflow was %s and is now %s; a new MLflow run there takes the whole history", before, now)
            return replace(fresh, artifacts=state.artifacts)
        return state

    def _save_state(self) -> None:
        """Replace `mlflow.json` at once and for good."""
        with self._lock:
            write_json(self._run_dir / STATE_FILE, asdict(self.state))


def _key_in(run_dir: Path) -> str | None:
    """Return the key of the MLflow run that a folder's metrics go to; None where no folder tells one."""
    try:
        return str(read_json(run_dir / STATE_FILE)["run_key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _points(line: Mapping[str, Any]) -> Iterator[tuple[str, float, int, int]]:
    """Yield (metric, value, time in ms, step) for everything in one line of `metrics.jsonl`."""
    time_ms, env_steps, learner_steps = round(line["time"] * 1000), line["env_steps"], line["learner_steps"]
    for key, value in line.items():
        if key in ("time", "learner_steps") or value is None:
            continue
        yield _name(key), value, time_ms, learner_steps
        if env_steps and key.startswith(BY_ENV_STEPS_GROUPS):
            yield _name(f"by_env_steps/{key}"), value, time_ms, env_steps


def _name(key: str) -> str:
    """Return a name that MLflow accepts: letters, digits, `_-. :/`, no empty or dotted path parts."""
    parts = re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII).split("/")
    return "/".join(part for part in parts if part.strip(". "))[:MAX_NAME] or "_"


def _text(value: Any) -> str:
    """Return a parameter or tag as MLflow takes it; the config may hold an address with a password."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return redacted(text)[:MAX_TEXT]
