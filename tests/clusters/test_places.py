"""Places on the disk, where a job works in a copy of the working directory and trials on other nodes."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from dipole_ray.errors import ConfigError
from dipole_ray.files.lock import FolderLock
from dipole_ray.runs.config import load
from dipole_ray.runs.start import start_run
from dipole_ray.settings import merge
from dipole_ray.sweep.driver import run_sweep
from dipole_ray.sweep.plan import Plan, from_mapping
from dipole_ray.sweep.trainable import read_sweep
from tests.sweep.small import SPACE, sweep_mapping

DELETED = "in the copy of your working directory that Ray made for this job and deletes later: give an absolute path"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `ray job submit --working-dir` has its command work."""
    copy = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    return copy


def plan(path: str, folder: str, space: dict[str, Any] = SPACE, **run: Any) -> Plan:
    return from_mapping(sweep_mapping(Path(path), Path(folder), space=space, run=run))


def test_a_job_does_not_write_its_results_where_ray_deletes_them(job: Path) -> None:
    with pytest.raises(ConfigError, match=f"^folder is .*/runs, {DELETED}, folder=/"):
        start_run(load("quickstart"))
    with pytest.raises(ConfigError, match=f"^folder is .*/runs, {DELETED}, folder=/"):
        run_sweep(plan("/data", "runs"))
    assert list(job.iterdir()) == []


def test_trials_are_not_sent_to_data_that_only_one_node_has_there(job: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.path is .*/here, {DELETED}, data\.path=/"):
        run_sweep(plan("here", str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


def test_the_same_command_finds_its_sweep_from_another_copy(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's copy is called by its content, which any edit changes."""
    first = plan("/data", "/runs", data={"cache": "cache"})
    (job.parent / "_ray_pkg_fedcba9876543210").mkdir()
    monkeypatch.chdir(job.parent / "_ray_pkg_fedcba9876543210")
    assert plan("/data", "/runs", data={"cache": "cache"}).folder == first.folder
    assert plan("/other", "/runs", data={"cache": "cache"}).folder != first.folder


def test_data_that_varies_is_found_by_trials_in_other_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mapping = merge(sweep_mapping(Path("/data"), Path("/runs")), {})
    made = from_mapping({**mapping, "space": {"data.path": {"grid": ["here", "/there"]}}})
    assert [values["data.path"] for values in made.trials()] == [str(tmp_path / "here"), "/there"]


def test_a_node_that_lacks_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.json: not on the node .*folder=PATH to a place on storage"):
        read_sweep(tmp_path)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What NFS without a lock service answers; no other file system here refuses, so the call is replaced."""

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"\.lock: this file system locks no files \(No locks available\)"):
        FolderLock(tmp_path, 60.0)
