"""MLflow gets each metric once, sooner or later, whatever happens to it, and training does not wait for it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dipole_ray.tracking.metrics_file import read_metrics
from dipole_ray.tracking.mlflow_feed import RUN_KEY_TAG
from dipole_ray.tracking.mlflow_server import connect, sqlite_file
from dipole_ray.tracking.tracker import CLOSING_S, TrackingConfig
from tests.tracking.small import DEAD_URI, log_lines, start


@pytest.fixture(autouse=True)
def no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests away from a server that the environment names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs whose MLflow database is made once, which takes seconds."""
    return tmp_path_factory.mktemp("user") / "runs"


def mlflow_run(run_dir: Path) -> tuple[Any, Any]:
    """Return the MLflow client and run of a run folder."""
    state = json.loads((run_dir / "mlflow.json").read_text())
    client = connect(state["tracking_uri"])
    return client, client.get_run(state["run_id"])


def history(run_dir: Path, metric: str) -> list[tuple[int, float]]:
    """Return (step, value) of a metric as MLflow has it."""
    client, run = mlflow_run(run_dir)
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def wait_until(condition: Callable[[], bool], limit_s: float = 120.0) -> None:
    """Wait for a condition that other threads or processes bring about."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.02)


def test_mlflow_has_metrics_by_both_counters_parameters_tags_and_artifacts(runs: Path) -> None:
    run_dir = runs / "whole"
    folder = run_dir / "checkpoints" / "000000009"
    with start(run_dir, tags={"config_hash": "abc"}) as tracker:
        log_lines(tracker, range(10))
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        (run_dir / "maze.png").write_bytes(b"png")
        tracker.artifact(run_dir / "maze.png", "pictures")
        tracker.artifact(folder, "checkpoints")
        tracker.artifact(run_dir / "gone.png")
    client, run = mlflow_run(run_dir)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"agent.beta": "1.0", "agent.hidden_dims": "[64, 64]", "seed": "0"}
    assert run.data.tags["config_hash"] == "abc"
    assert run.data.tags["version.torch"] == torch.__version__
    assert history(run_dir, "critic/loss") == [(step, float(step)) for step in range(10)]
    assert history(run_dir, "env_steps")[-1] == (9, 70.0)
    assert history(run_dir, "by_env_steps/rollout/return") == [((step - 2) * 10, float(step)) for step in range(3, 10)]
    listed = [item.path for item in client.list_artifacts(run.info.run_id, "checkpoints/000000009")]
    assert listed == ["checkpoints/000000009/state.json"]
    assert (
        runs.parent / "mlartifacts" / run.info.run_id / "artifacts" / "pictures" / "maze.png"
    ).read_bytes() == b"png"


def test_a_resume_continues_the_run_and_sends_no_step_twice(runs: Path) -> None:
    run_dir = runs / "resumed"
    with start(run_dir) as tracker:
        log_lines(tracker, range(5))
        state = tracker.sync()
        log_lines(tracker, range(5, 8))  # these updates are lost: the checkpoint is from before them
    first_id = mlflow_run(run_dir)[1].info.run_id
    changed = {"agent": {"beta": 5.0, "hidden_dims": [64, 64]}, "seed": 0, "added": True}
    tracker = start(run_dir, parameters=changed, resume=True, state=state)
    log_lines(tracker, range(5, 12), offset=0.5)
    tracker.close("KILLED", timeout_s=60)
    assert [line["critic/loss"] for line in read_metrics(run_dir)] == [
        *range(5),
        *(step + 0.5 for step in range(5, 12)),
    ]
    _, run = mlflow_run(run_dir)
    assert (run.info.run_id, run.info.status) == (first_id, "KILLED")
    assert [step for step, _ in history(run_dir, "critic/loss")] == list(range(12))
    assert [step for step, _ in history(run_dir, "by_env_steps/rollout/return")] == list(range(10, 100, 10))
    assert (run.data.params["agent.beta"], run.data.params["added"]) == ("1.0", "true")
    assert run.data.tags["changed.agent.beta"] == "5.0"


def test_a_batch_whose_reply_was_lost_is_not_sent_again_with_other_values(runs: Path) -> None:
    run_dir = runs / "unnoted"
    tracker = start(run_dir)
    state = tracker.sync()
    wait_until(lambda: (run_dir / "mlflow.json").exists() and bool(_feed_state(run_dir)["run_id"]))
    before = (run_dir / "mlflow.json").read_bytes()
    log_lines(tracker, range(5))
    tracker.close("KILLED", timeout_s=60)
    (run_dir / "mlflow.json").write_bytes(before)  # as after a kill between the server's commit and our note of it
    with start(run_dir, resume=True, state=state) as tracker:
        log_lines(tracker, range(8), offset=0.5)
    assert history(run_dir, "critic/loss") == [(step, step + 0.5 * (step > 4)) for step in range(8)]
    assert len(read_metrics(run_dir)) == 8


def test_a_learner_that_went_back_to_its_checkpoint_sends_no_step_twice(runs: Path) -> None:
    run_dir = runs / "went-back"
    with start(run_dir) as tracker:
        log_lines(tracker, range(10))
        log_lines(tracker, range(6, 14), offset=0.5)
    assert [line["learner_steps"] for line in read_metrics(run_dir)] == [*range(10), *range(6, 14)]
    assert history(run_dir, "critic/loss") == [(step, step + 0.5 * (step > 9)) for step in range(14)]


def test_a_run_made_late_by_a_call_given_up_is_removed(runs: Path) -> None:
    run_dir = runs / "twin"
    with start(run_dir) as tracker:
        log_lines(tracker, range(3))
    client, run = mlflow_run(run_dir)
    tags = {RUN_KEY_TAG: _feed_state(run_dir)["run_key"]}
    twin = client.create_run(run.info.experiment_id, tags=tags)
    with start(run_dir, resume=True) as tracker:
        log_lines(tracker, range(3, 6))
    assert mlflow_run(run_dir)[1].info.run_id == run.info.run_id
    assert client.get_run(twin.info.run_id).info.lifecycle_stage == "deleted"
    assert [step for step, _ in history(run_dir, "critic/loss")] == list(range(6))


def test_a_deleted_run_is_replaced_with_its_whole_history(runs: Path) -> None:
    run_dir = runs / "deleted"
    with start(run_dir) as tracker:
        log_lines(tracker, range(3))
    client, run = mlflow_run(run_dir)
    client.delete_run(run.info.run_id)
    with start(run_dir, resume=True) as tracker:
        log_lines(tracker, range(3, 6))
    assert mlflow_run(run_dir)[1].info.run_id != run.info.run_id
    assert [step for step, _ in history(run_dir, "critic/loss")] == list(range(6))


def test_a_run_whose_creation_was_cut_short_is_found_again(runs: Path) -> None:
    run_dir = runs / "cut"
    with start(run_dir) as tracker:
        log_lines(tracker, range(3))
    run_id = mlflow_run(run_dir)[1].info.run_id
    state = json.loads((run_dir / "mlflow.json").read_text())
    (run_dir / "mlflow.json").write_text(json.dumps({**state, "run_id": None, "offset": 0}))
    with start(run_dir, resume=True) as tracker:
        log_lines(tracker, range(3, 5))
    assert mlflow_run(run_dir)[1].info.run_id == run_id
    assert [step for step, _ in history(run_dir, "critic/loss")] == list(range(5))


def test_a_killed_process_leaves_nothing_out_and_nothing_twice(runs: Path) -> None:
    run_dir = runs / "killed"
    code = (
        "import sys, itertools; from pathlib import Path\n"
        "from dipole_ray.tracking.tracker import Tracker, TrackingConfig\n"
        "tracker = Tracker(Path(sys.argv[1]), TrackingConfig(), run_name='killed', parameters={})\n"
        "for step in itertools.count():\n"
        "    tracker.log({f'actor/{name}': step for name in range(20)}, env_steps=0, learner_steps=step)\n"
        "    if step == 200: input()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(run_dir)], stdin=subprocess.PIPE)
    wait_until(lambda: _delivered_bytes(run_dir) > 0)  # in the middle of its first batches
    child.kill()
    child.communicate()
    assert _delivered_bytes(run_dir) > 0
    start(run_dir, resume=True, parameters={}).close()
    lines = len(read_metrics(run_dir))
    assert lines > 0
    assert history(run_dir, "actor/7") == [(step, float(step)) for step in range(lines)]


@pytest.mark.slow
def test_a_copy_of_a_run_folder_is_a_run_of_its_own_and_a_moved_one_is_not(runs: Path) -> None:
    """Two folders that go on from one point would else write into one MLflow run."""
    with start(runs / "first") as tracker:
        log_lines(tracker, range(3))
    first = mlflow_run(runs / "first")[1].info.run_id
    shutil.copytree(runs / "first", runs / "copy")
    with start(runs / "copy", resume=True) as tracker:
        log_lines(tracker, range(3, 6))
    assert mlflow_run(runs / "copy")[1].info.run_id != first
    assert [step for step, _ in history(runs / "copy", "critic/loss")] == list(range(6))
    assert [step for step, _ in history(runs / "first", "critic/loss")] == list(range(3))
    (runs / "first").rename(runs / "moved")
    with start(runs / "moved", resume=True) as tracker:
        log_lines(tracker, range(3, 5))
    assert mlflow_run(runs / "moved")[1].info.run_id == first


def test_a_copy_on_another_machine_is_a_run_of_its_own_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is nothing there to see the original by."""
    (tmp_path / "file").touch()

    def key(folder: Path) -> str:
        tracker = start(folder, TrackingConfig(tracking_uri="sqlite:////dev/null/mlflow.db"), resume=True)
        tracker.artifact(tmp_path / "file")
        tracker.close()
        return str(_feed_state(folder)["run_key"])

    first = key(tmp_path / "run")
    copy = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(platform, "node", lambda: "other")
    assert key(tmp_path / "elsewhere") == first and "is a copy of" not in caplog.text
    own = key(copy)
    assert own != first and f"copy is a copy of {tmp_path}/run on " in caplog.text
    assert key(copy) == own


def test_runs_that_start_at_once_share_a_new_database(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dipole_ray.tracking.tracker import Tracker, TrackingConfig\n"
        "tracker = Tracker(Path(sys.argv[1]), TrackingConfig(), run_name=sys.argv[1], parameters={})\n"
        "for step in range(100): tracker.log({'critic/loss': step}, env_steps=0, learner_steps=step)\n"
        "tracker.close(timeout_s=300)\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "runs" / f"run-{seed}")]) for seed in range(2)
    ]
    assert [child.wait() for child in children] == [0, 0]
    for seed in range(2):
        assert history(tmp_path / "runs" / f"run-{seed}", "critic/loss") == [(step, float(step)) for step in range(100)]
    assert len(mlflow_run(tmp_path / "runs" / "run-0")[0].search_runs(["1"])) == 2


def test_a_database_whose_making_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / ".mlflow.db.new").write_bytes(b"half a database")
    (tmp_path / ".mlflow.db.new-journal").write_bytes(b"of another one")
    with start(tmp_path / "runs" / "run") as tracker:
        log_lines(tracker, range(2))
    assert [step for step, _ in history(tmp_path / "runs" / "run", "critic/loss")] == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db", "runs"]


def _delivered_bytes(run_dir: Path) -> int:
    """Return how far MLflow is, according to the run folder."""
    return int(_feed_state(run_dir)["offset"]) if (run_dir / "mlflow.json").exists() else 0


def _feed_state(run_dir: Path) -> dict[str, Any]:
    """Return what the run folder remembers of MLflow."""
    return dict(json.loads((run_dir / "mlflow.json").read_text()))


def test_without_mlflow_training_goes_on_and_a_later_resume_delivers(
    runs: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = runs / "down"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD_URI)
    tracker = start(run_dir)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracker.view_command == "http://127.0.0.1:9"
    log_lines(tracker, range(4))
    wait_until(lambda: bool(caplog.records))
    log_lines(tracker, range(4, 6))
    tracker.artifact(run_dir / "metrics.jsonl")
    tracker.close(timeout_s=0.1)
    assert [line["learner_steps"] for line in read_metrics(run_dir)] == list(range(6))
    assert read_metrics(run_dir)[-1]["system/tracking_failures"] >= 1
    outage, closing = caplog.messages
    assert "training goes on" in outage
    assert "6 lines of metrics and 1 artifacts were not delivered" in closing and "--resume" in closing
    start(run_dir, resume=True, parameters={"tracking": {"tracking_uri": DEAD_URI}}).close()
    assert [step for step, _ in history(run_dir, "critic/loss")] == list(range(6))
    client, run = mlflow_run(run_dir)
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["metrics.jsonl"]
    assert run.data.params == {"tracking.tracking_uri": "http://127.0.0.1:9"}
    assert not any("secret" in text for text in (*caplog.messages, (run_dir / "mlflow.json").read_text()))


@pytest.mark.parametrize("place", ["file", "long" * 64], ids=["a file", "a name too long"])
def test_nobody_waits_for_a_database_where_no_folder_can_be(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    tracker = start(tmp_path / "run", TrackingConfig(tracking_uri=f"sqlite:///{tmp_path}/{place}/mlflow.db"))
    log_lines(tracker, range(2))
    began = time.monotonic()
    tracker.close(timeout_s=60)
    assert time.monotonic() - began < 20
    assert "choose another address" in caplog.text and "once that is mended" in caplog.messages[-1]


def test_a_server_that_never_answers_does_not_hold_training_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a run that is asked to stop; nor does the thread say anything after the end, when the connection breaks."""
    monkeypatch.setitem(CLOSING_S, "KILLED", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tracker = start(tmp_path / "run", TrackingConfig(tracking_uri=uri))
        log_lines(tracker, range(1000))
        tracker.close("KILLED")
        said = list(caplog.messages)
    assert tracker._feed is not None
    tracker._feed._thread.join(60)
    assert caplog.messages == said and "not delivered within 0.1 s" in said[-1]
    assert len(read_metrics(tmp_path / "run")) == 1000


def _serve(database: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    """Start a real MLflow server and return once it listens."""
    store = ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(database.parent / "store")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *store]
    with log.open("ab") as stream:
        server = subprocess.Popen([*command, "--workers", "1"], stdout=stream, stderr=stream, start_new_session=True)

    def listens() -> bool:
        assert server.poll() is None, log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens)
    return server


@pytest.fixture
def port() -> Iterator[int]:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = int(taken.getsockname()[1])
    yield number


@pytest.mark.slow
def test_a_server_killed_and_restarted_gets_the_whole_history(
    tmp_path: Path, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir, database, log = tmp_path / "run", tmp_path / "server.db", tmp_path / "server.log"
    server = _serve(database, port, log)
    tracker = start(run_dir, TrackingConfig(tracking_uri=f"http://127.0.0.1:{port}"))
    try:
        log_lines(tracker, range(50))
        wait_until(lambda: _delivered_bytes(run_dir) == (run_dir / "metrics.jsonl").stat().st_size)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log_lines(tracker, range(50, 100))
        wait_until(lambda: "training goes on" in caplog.text)
        tracker.artifact(run_dir / "metrics.jsonl", "files")
        server = _serve(database, port, log)
        log_lines(tracker, range(100, 150))
        tracker.close(timeout_s=120)
        assert history(run_dir, "critic/loss") == [(step, float(step)) for step in range(150)]
        client, run = mlflow_run(run_dir)
        assert run.info.status == "FINISHED"
        assert [item.path for item in client.list_artifacts(run.info.run_id, "files")] == ["files/metrics.jsonl"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_deleted_experiment_is_said_at_once_with_the_remedy(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for it at the end, and what is promised holds: once it is back, the resume delivers."""
    with start(runs / "before", TrackingConfig(experiment="gone")) as tracker:
        log_lines(tracker, range(1))
    client, run = mlflow_run(runs / "before")
    client.delete_experiment(run.info.experiment_id)
    run_dir = runs / "refused it's"
    tracker = start(run_dir, TrackingConfig(experiment="gone"))
    log_lines(tracker, range(3))
    wait_until(lambda: bool(caplog.messages))
    began = time.monotonic()
    tracker.close(timeout_s=60)
    assert time.monotonic() - began < 20
    said, left = caplog.messages
    assert "'gone' was deleted" in said and "mlflow experiments restore --experiment-id" in said
    command = f"dipole train --resume {shlex.quote(str(run_dir))}"
    assert "3 lines of metrics" in left and f"once that is mended, '{command}' delivers" in left
    client.restore_experiment(run.info.experiment_id)
    start(run_dir, TrackingConfig(experiment="gone"), resume=True).close()
    assert [step for step, _ in history(run_dir, "critic/loss")] == [0, 1, 2]


def test_folders_of_any_name_have_a_database(tmp_path: Path) -> None:
    runs = tmp_path / "what? 100%25 & it's"
    tracker = start(runs / "run")
    log_lines(tracker, range(2))
    tracker.close()
    assert (runs.parent / "mlflow.db").is_file() and [step for step, _ in history(runs / "run", "critic/loss")] == [
        0,
        1,
    ]
    command = shlex.split(tracker.view_command or "")
    assert sqlite_file(command[-1]) == runs.parent / "mlflow.db"
