"""A start of a run reads each file of its dataset for its checksum once, in the process that trains."""

from __future__ import annotations

import collections
import os
from pathlib import Path

import pytest

from dipole_ray.data import segment
from dipole_ray.data.dataset import open_dataset
from dipole_ray.errors import CorruptSegment
from dipole_ray.runs.config import load
from dipole_ray.runs.start import resume_run, start_run
from tests.cli.commands import write_config
from tests.rllib.small import config

pytestmark = pytest.mark.usefixtures("cluster", "no_pictures")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """Counts the files that are read from beginning to end."""
    counted: collections.Counter[str] = collections.Counter()
    original = segment.file_checksum

    def counting(path: Path) -> int:
        counted[path.name] += 1
        return original(path)

    monkeypatch.setattr(segment, "file_checksum", counting)
    return counted


def test_a_run_verifies_its_dataset_once_a_start(
    pendulum: Path, tmp_path: Path, reads: collections.Counter[str]
) -> None:
    write_config(
        tmp_path / "small.yaml",
        data={"path": str(pendulum)},
        training={"offline_learner_steps": 20, "online_env_steps": 0},
        evaluation={"episodes": 1, "omegas": [1.0], "candidates": [1]},
    )
    names = [path.name for path in pendulum.glob("data-*.arrow")]
    run = start_run(load(tmp_path / "small.yaml", [f"folder={tmp_path}"]))
    assert names and reads == dict.fromkeys(names, 1)
    resume_run(run.folder, [])
    assert reads == dict.fromkeys(names, 2), "the next start verifies again"


def test_an_algorithm_without_a_run_verifies_its_dataset_once(pendulum: Path, reads: collections.Counter[str]) -> None:
    config(pendulum, online_env_steps=0).build_algo().stop()
    assert set(reads.values()) == {1}


def test_a_file_that_changes_during_a_start_is_read_again(pendulum: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for path in pendulum.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    file = next(folder.glob("data-*.arrow"))
    with segment.verified_once():
        open_dataset(folder)
        before, content = file.stat(), bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(CorruptSegment, match="checksum mismatch"):
            open_dataset(folder)
