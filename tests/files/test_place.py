"""A copy of a folder is told from the folder itself, moved, restored, or seen from another node."""

import platform
import shutil
from pathlib import Path

import pytest

from dipole_ray.files.place import original_of, place_of


def test_a_copy_is_told_from_a_moved_folder_here_and_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inodes are seen alike by every node that shares a disk, and no copy has its original's."""
    run = tmp_path / "run"
    run.mkdir()
    noted = place_of(run)
    copy, moved = Path(shutil.copytree(run, tmp_path / "copy")), tmp_path / "moved"
    assert original_of(run, noted, Path.is_dir) is None
    assert original_of(copy, noted, Path.is_dir) == str(run)
    run.rename(moved)
    assert original_of(moved, noted, Path.is_dir) is None
    assert original_of(copy, noted, Path.is_dir) is None, "moved to another disk of this machine, or restored"
    monkeypatch.setattr(platform, "node", lambda: "other")
    assert original_of(moved, noted, Path.is_dir) is None, "a shared disk"
    assert original_of(copy, noted, Path.is_dir) == f"{run} on {noted['host']}"
    copy.rename(run)
    assert original_of(run, noted, Path.is_dir) == f"{run} on {noted['host']}", "at the same path"
    assert original_of(run, {}, Path.is_dir) is None and original_of(run, {"folder": str(run)}, Path.is_dir) is None
