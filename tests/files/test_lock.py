"""A lock is waited for where somebody has it, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipole_ray.files import lock
from dipole_ray.files.lock import FolderLock


@pytest.mark.parametrize("folder", ["/proc", "/proc/nobody/made"])
def test_a_lock_that_cannot_be_made_is_not_waited_for(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 0.3)
    with pytest.raises(FileNotFoundError, match="no file can be made there"):
        FolderLock(Path(folder), 20.0, say=pytest.fail)
