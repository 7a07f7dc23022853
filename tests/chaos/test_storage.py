"""Storage that fails: writes cut short at a byte, bits that flip, a disk that is full or read-only.

Datasets and checkpoints are there whole or not at all; what is damaged is found before it is used; and a run waits for
its disk instead of dying of it. The online ring, which is written in place, has tests of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dipole_ray.collect import collect
from dipole_ray.columns import Schema
from dipole_ray.data.dataset import MANIFEST, OfflineDataset, open_dataset, write_dataset
from dipole_ray.data.schema import Rows
from dipole_ray.errors import CheckpointError, DatasetError
from dipole_ray.files.checkpoint import newest_valid, read_checkpoint
from dipole_ray.tracking.metrics_file import read_metrics
from tests.chaos.conftest import Measured
from tests.chaos.kit import wait_until
from tests.cli.commands import LAUNCH, dipole, environment, write_config
from tests.files.test_checkpoint import assert_whole, in_child, save
from tests.synthetic import random_trajectory

pytestmark = pytest.mark.chaos

SCHEMA = Schema(3, 2)
NUM_FILES = 10
HALF_WRITTEN = (".writing-*", ".removing-*", ".replaced-*", "*.tmp", "*.partial")
DEADLINE_S = 120.0


def trajectories(seed: int) -> list[Rows]:
    """Return trajectories that become a file each, under `write`."""
    random = np.random.default_rng(seed)
    return [random_trajectory(random, int(random.integers(80, 120))) for _ in range(NUM_FILES)]


def write(directory: Path, pieces: list[Rows] | Iterator[Rows]) -> None:
    """Write one file a trajectory, in the place of whatever dataset is there."""
    write_dataset(directory, pieces, SCHEMA, {"file": "robot.parquet"}, overwrite=True, segment_rows=1)


def assert_rows(dataset: OfflineDataset, pieces: list[Rows], without: int | None = None) -> None:
    """Every served row is bitwise what was written, and no other file than `without` is missing."""
    expected = [piece for index, piece in enumerate(pieces) if index != without]
    assert len(dataset.segments) == len(expected)
    for segment, piece in zip(dataset.segments, expected, strict=True):
        for name, values in piece.items():
            assert np.array_equal(segment.columns[name], values), (segment.entry.name, name)


# ---- D1: a write cut short at a byte ----


def die_at(offset: int) -> None:
    """From here on the kernel ends this process inside write(2), when a file has grown to exactly `offset` bytes.

    It is a SIGKILL at a byte: SIGXFSZ with its default action ends the process there and then, no handler, no
    `finally` and no flush runs, and the bytes before it are with the operating system.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (offset, offset))


def die_in(name: str, offset: int) -> None:
    """`die_at`, but only once the file `name` is opened."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and Path(str(arguments[0])).name == name:
            die_at(offset)

    sys.addaudithook(hook)


def test_a_dataset_cut_short_at_any_byte_leaves_the_old_one(tmp_path: Path, measured: Measured) -> None:
    """D1: 40 offsets spread over ten data files and 10 over the manifest, while an older dataset is replaced."""
    directory, old, new = tmp_path / "data", trajectories(0), trajectories(1)
    write(tmp_path / "sizes", new)
    sizes = [entry.bytes for entry in open_dataset(tmp_path / "sizes").manifest.files]
    manifest_bytes = (tmp_path / "sizes" / MANIFEST).stat().st_size
    write(directory, old)
    before = open_dataset(directory).manifest
    ends = np.cumsum(sizes)
    cuts = [(int(np.searchsorted(ends, at, "right")), int(at)) for at in np.linspace(0, ends[-1] - 1, 40).astype(int)]
    cases = [(file, at - (int(ends[file - 1]) if file else 0)) for file, at in cuts]
    cases += [(NUM_FILES, int(at)) for at in np.linspace(0, manifest_bytes - 1, 10)]
    assert {file for file, _ in cases} == set(range(NUM_FILES + 1))
    for file, offset in cases:

        def killed_writer(file: int = file, offset: int = offset) -> None:
            if file == NUM_FILES:
                die_in(f".{MANIFEST}.tmp", offset)

            def rows() -> Iterator[Rows]:
                for index, piece in enumerate(new):
                    if index == file + 1:  # the trajectory asked for next is what ends file number `file`
                        die_at(offset)
                    yield piece
                if file == NUM_FILES - 1:
                    die_at(offset)

            write(directory, rows())

        assert in_child(killed_writer) == -signal.SIGXFSZ
        torn = directory / (f".{MANIFEST}.tmp" if file == NUM_FILES else f".data-{file:05d}.arrow.tmp")
        assert torn.stat().st_size == offset, "cut at exactly this byte"
        found = open_dataset(directory, strict=True)
        assert found.manifest == before
        assert_rows(found, old)
    write(directory, new)
    assert_rows(open_dataset(directory, strict=True), new)
    assert len(list(directory.iterdir())) == NUM_FILES + 1, "the next write clears what the killed ones left"
    measured("D1", "dataset writes cut at a byte: old one whole, of 50", len(cases), "cuts", bar="50 of 50")


def test_a_checkpoint_cut_short_at_any_byte_leaves_the_old_one(tmp_path: Path, measured: Measured) -> None:
    """D1: 50 offsets over all three files, the manifest among them; the older checkpoint is the newest valid one."""
    first = save(tmp_path, 1)
    sizes = {file.name: file.stat().st_size for file in first.iterdir()}
    cases = [(name, int(at)) for name, size in sizes.items() for at in np.linspace(0, size - 50, 17)][:50]
    for name, offset in cases:

        def killed_writer(name: str = name, offset: int = offset) -> None:
            die_in(name, offset)
            save(tmp_path, 2)

        assert in_child(killed_writer) == -signal.SIGXFSZ
        (torn,) = tmp_path.glob(f".writing-*/{name}")
        assert torn.stat().st_size == offset, "cut at exactly this byte"
        assert newest_valid(tmp_path) == first and assert_whole(first) == 1
    assert assert_whole(save(tmp_path, 2)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000001", "000000002"]
    measured("D1", "checkpoint writes cut at a byte: old one whole, of 50", len(cases), "cuts", bar="50 of 50")


# ---- D2: bits flip, files are cut ----


def damage(file: Path, case: int, random: np.random.Generator, *, margin: int = 0) -> Callable[[], object]:
    """Flip one bit of a file, or cut it every fourth time, at a random place; return what mends it."""
    whole = file.read_bytes()
    position = int(random.integers(len(whole) - margin))
    changed = bytearray(whole)
    changed[position] ^= 1 << int(random.integers(8))
    file.write_bytes(whole[:position] if case % 4 == 3 else bytes(changed))
    return lambda: file.write_bytes(whole)


def test_every_damaged_file_of_a_dataset_is_found_named_and_left_out(
    tmp_path: Path, measured: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    """D2: 200 flips and cuts over ten data files and the manifest; the other nine are served, bit for bit."""
    directory, pieces = tmp_path / "data", trajectories(0)
    write(directory, pieces)
    manifest = open_dataset(directory).manifest
    first_rows = np.cumsum([0, *(entry.rows for entry in manifest.files)])
    files = [*(directory / entry.name for entry in manifest.files), directory / MANIFEST]
    random, found = np.random.default_rng(0), 0
    for case in range(200):
        index = case % len(files)
        # The manifest ends in a newline, whose loss changes nothing.
        mend = damage(files[index], case, random, margin=2 if index == NUM_FILES else 0)
        caplog.clear()
        if index == NUM_FILES:
            with pytest.raises(DatasetError, match=str(files[index])):
                open_dataset(directory)
        else:
            dataset = open_dataset(directory)
            assert [item.entry for item in dataset.quarantined] == [manifest.files[index]]
            assert_rows(dataset, pieces, without=index)
            (said,) = caplog.messages
            lost = f"rows {first_rows[index]} to {first_rows[index + 1] - 1}: {files[index]}"
            assert lost in said and f"of {manifest.num_rows} rows" in said and "data import robot.parquet" in said
        found += 1
        mend()
    assert_rows(open_dataset(directory, strict=True), pieces)
    measured("D2", "flips and cuts of dataset files found at open, of 200", found, "found", bar="200 of 200")


def test_every_damaged_checkpoint_is_found_and_the_one_before_it_used(tmp_path: Path, measured: Measured) -> None:
    """D2: 200 flips and cuts over the three files of the newest of two checkpoints."""
    first, newest = save(tmp_path, 1), save(tmp_path, 2)
    files, random, found = sorted(newest.iterdir()), np.random.default_rng(1), 0
    for case in range(200):
        file = files[case % len(files)]
        mend = damage(file, case, random)
        with pytest.raises(CheckpointError, match=str(file)):
            read_checkpoint(newest)
        assert newest_valid(tmp_path) == first
        found += 1
        mend()
    assert assert_whole(newest_valid(tmp_path)) == 2
    measured("D2", "flips and cuts of checkpoints found at open, of 200", found, "found", bar="200 of 200")


# ---- D3: the disk is full; D4: it is read-only ----


@contextlib.contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    """A real file system of that size, where the tests may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave_bytes: int) -> Path:
    """Fill the file system up to `leave_bytes` and return the file that does it."""
    ballast = disk / "ballast"
    with ballast.open("wb") as stream, contextlib.suppress(OSError):
        while True:
            os.write(stream.fileno(), bytes(1 << 16))
    os.truncate(ballast, ballast.stat().st_size - leave_bytes)
    return ballast


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only for everybody, root included."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_while_a_dataset_is_written_leaves_the_old_one(tmp_path: Path, measured: Measured) -> None:
    """D3, segments: an import that does not fit fails in one sentence, with nothing of it left."""
    with mounted(tmp_path / "disk", 2) as disk:
        old = trajectories(0)
        write(disk / "data", old)
        before = sorted(path.name for path in (disk / "data").iterdir())
        random = np.random.default_rng(2)
        endless = (random_trajectory(random, 1000) for _ in range(10_000))
        with pytest.raises(DatasetError, match=r"No space left on device.*nothing of it was kept: free space"):
            write(disk / "data", endless)
        assert sorted(path.name for path in (disk / "data").iterdir()) == before
        assert_rows(open_dataset(disk / "data", strict=True), old)
    measured("D3", "full disk during an import: old dataset whole", 1, "of 1", bar="1 of 1")


def test_a_run_that_cannot_hold_its_checkpoints_is_refused_at_the_start(tmp_path: Path) -> None:
    """D3, preflight: needed and free bytes in one sentence, and no folder left behind."""
    data = collect("Pendulum-v1", 1000, 0, tmp_path / "data", progress=False)[0]
    config = write_config(tmp_path / "small.yaml", data={"path": str(data)}, agent={"hidden_dims": [256, 256]})
    with mounted(tmp_path / "disk", 8) as disk:
        ended = dipole("train", config, f"folder={disk}/runs", cwd=tmp_path)
        assert ended.returncode == 2, ended.stderr
        (said,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
        assert "for 3 checkpoints of" in said and "bytes) free" in said and "lower checkpoint.keep" in said
        assert list((disk / "runs").iterdir()) == []


class TrainingProcess:
    """`dipole train` in a process of its own, its standard error in a file."""

    def __init__(self, cwd: Path, *words: str) -> None:
        self.said = cwd / f"stderr-{time.monotonic_ns()}"
        with self.said.open("wb") as stream:
            command = [sys.executable, "-c", LAUNCH, "train", *words]
            self.process = subprocess.Popen(
                command, cwd=cwd, env=environment(cwd), stdout=subprocess.DEVNULL, stderr=stream
            )

    def errors(self) -> list[str]:
        """Return the lines at level ERROR."""
        return [line for line in self.said.read_text().splitlines() if line.startswith("ERROR")]

    def count(self, words: str) -> int:
        """Return how often something was said."""
        return self.said.read_text().count(words)

    def wait_for(self, reached: Callable[[], bool], what: str) -> float:
        """Wait until something is so, in a process that lives."""

        def so() -> bool:
            assert self.process.poll() is None, self.said.read_text()
            return reached()

        return wait_until(so, DEADLINE_S, what)


def digest(*paths: Path) -> str:
    """Return a checksum over the names and contents of files, and of all files in folders."""
    files = sorted(file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def saved_steps(run: Path) -> int:
    """Return the updates at the newest checkpoint, -1 before the first."""
    return max((int(path.name) for path in (run / "checkpoints").glob("[0-9]*")), default=-1)


def agent_of(run: Path) -> bytes:
    """Return the agent's file in the newest checkpoint."""
    newest = newest_valid(run / "checkpoints")
    assert newest is not None
    return (newest / "agent.safetensors").read_bytes()


def iterations(run: Path) -> list[tuple[int, int]]:
    """Return updates and environment steps after each iteration in `metrics.jsonl`."""
    return [(line["learner_steps"], line["env_steps"]) for line in read_metrics(run) if "critic/loss" in line]


class Outage:
    """What must hold while a run's disk refuses: it stands still, and what was there before is untouched."""

    def __init__(self, training: TrainingProcess, run: Path) -> None:
        self.training, self.run = training, run
        self.errors, self.resumed = len(training.errors()), training.count("training goes on after")

    def assert_paused(self) -> None:
        """Wait for the pause, then watch it for some seconds."""
        self.training.wait_for(lambda: len(self.training.errors()) > self.errors, "an error that says it is paused")
        checkpoints = self.run / "checkpoints"
        newest = newest_valid(checkpoints)
        assert newest is not None
        state = (self.run / "replay", newest, self.run / "metrics.jsonl")  # online rows, checkpoint, iterations
        before = digest(*state)
        time.sleep(4.0)  # the tries at 1 and 3 s are among them
        assert digest(*state) == before, "it stands still"
        assert newest_valid(checkpoints) == newest
        assert [path for pattern in HALF_WRITTEN for path in self.run.rglob(pattern) if path.is_file()] == []
        assert len(self.training.errors()) == self.errors + 1, "one error"
        assert self.training.errors()[-1].count("Training is paused") == 1

    def wait_until_over(self) -> float:
        """Return the seconds until training goes on."""
        return self.training.wait_for(
            lambda: self.training.count("training goes on after") > self.resumed, "training goes on by itself"
        )


def test_a_run_waits_for_its_disk_and_ends_where_an_undisturbed_one_ends(tmp_path: Path, measured: Measured) -> None:
    """D3, D4: three times full, with more or less room left, once read-only, then Ctrl-C in a pause and a resume.

    MLflow's database lies on the same disk, and its trouble is one warning. The tries come at 1, 3, 7, 15 s, so what
    begins 4 s after the pause is over within some 4 s more.
    """
    data = collect("Pendulum-v1", 1000, 0, tmp_path / "data", progress=False)[0]
    config = write_config(
        tmp_path / "small.yaml",
        data={"path": str(data)},
        training={"online_env_steps": 4000, "offline_learner_steps": 20},
        evaluation={"omegas": [1.0], "candidates": [1]},
        checkpoint={"every_learner_steps": 60},
    )
    undisturbed = dipole("train", config, f"folder={tmp_path}/calm", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    (calm,) = (tmp_path / "calm").iterdir()
    with mounted(tmp_path / "disk", 64) as disk:
        training = TrainingProcess(tmp_path, str(config), f"folder={disk}", "tracking.mlflow=true")
        training.wait_for(lambda: any(saved_steps(run) > 20 for run in disk.glob("small-*")), "a checkpoint online")
        (run,) = disk.glob("small-*")
        for leave_bytes in (0, 8 << 10, 40 << 10):
            outage, ballast = Outage(training, run), fill(disk, leave_bytes)
            outage.assert_paused()
            before = saved_steps(run)
            ballast.unlink()
            took = outage.wait_until_over()
            measured("D3", "space is back: training again, after a pause of 4 s", took, "s", bar="<= 60 s")
            assert took < 60.0
            training.wait_for(lambda before=before: saved_steps(run) > before, "the next checkpoint")  # type: ignore[misc]
        outage = Outage(training, run)
        with read_only(run / "checkpoints"):
            outage.assert_paused()
        measured("D4", "writable again: training again", outage.wait_until_over(), "s", bar="<= 60 s")
        outage, ballast = Outage(training, run), fill(disk, 0)
        outage.assert_paused()
        pressed = time.monotonic()
        training.process.send_signal(signal.SIGINT)
        assert training.process.wait(DEADLINE_S) == 130
        # What takes the time is the end of Ray, not the pause.
        measured("D3", "Ctrl-C in the pause: ended", time.monotonic() - pressed, "s", bar="clean, status 130")
        assert training.count("what came after the last checkpoint is lost") == 1
        assert training.count("Traceback") == 0
        ballast.unlink()
        resumed = dipole("train", "--resume", run, cwd=tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        assert agent_of(run) == agent_of(calm), "no update was lost or made twice"
        assert iterations(run) == iterations(calm), "no line of metrics was lost or written twice"
        assert json.loads((run / "evaluation.json").read_text()) == json.loads((calm / "evaluation.json").read_text())
