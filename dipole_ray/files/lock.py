"""One writer a folder: a lock that ends with the process that holds it, however that ends."""

import errno
import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dipole_ray.errors import ConfigError, FolderTaken

LOCK = ".lock"
POLL_S, PATIENCE_S, SILENCE_S = 0.2, 1.0, 30.0  # between two tries; before the first word; between two of them

# What a file system answers that locks no files, such as NFS without its lock service.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_log = logging.getLogger(__name__)
Say = Callable[[str], None]


class FolderLock(AbstractContextManager["FolderLock"]):
    """Holds `folder/.lock`, which is gone when nobody does: two writers would mix two runs, or two imports."""

    def __init__(self, folder: Path, wait_s: float, name: str = LOCK, say: Say = _log.warning) -> None:
        """Take the lock of a folder, which is made if missing, or of one file in it (`name`).

        While it waits for another process to end, `say` is told in one line for whom.

        Raises:
            FolderTaken: Another process has it after `wait_s`, which may be infinite.
            ConfigError: The file system has no locks.
            OSError: The folder cannot be written.
        """
        self._path = folder / name
        # Any thread may give it back; and a marker file in place of a lock would outlive a killed process.
        self._lock = FileLock(self._path, thread_local=False, fallback_to_soft=False)
        self._missing = 0
        start = time.monotonic()
        told = start + PATIENCE_S - SILENCE_S
        while not self._taken():
            if time.monotonic() - start >= wait_s:
                found = f"another process writes there (process {self._holder()})"
                raise FolderTaken(f"{folder}: {found}; wait for it or end it")
            if time.monotonic() - told >= SILENCE_S:
                what = folder if name == LOCK else folder / name.removeprefix(".").removesuffix(LOCK)
                say(f"{what}: waiting for process {self._holder()}, which writes there")
                told = time.monotonic()
            time.sleep(POLL_S)
        self._path.write_text(str(os.getpid()), encoding="utf-8")

    def release(self) -> None:
        """Give the lock back; twice does nothing."""
        if self._lock.is_locked:
            with suppress(OSError):  # while it is held: whoever waits sees that the file is no longer the one
                self._path.unlink()
            self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _taken(self) -> bool:
        try:
            self._lock.acquire(blocking=False)
        except (Timeout, FileNotFoundError) as error:  # somebody has it; or the folder was removed again
            self._missing = 0 if self._path.exists() else self._missing + 1
            if self._missing * POLL_S > PATIENCE_S:  # a place in which nothing can be made, such as /proc
                raise FileNotFoundError(errno.ENOENT, "no file can be made there", str(self._path)) from error
            return False
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            raise ConfigError(
                f"{self._path}: this file system locks no files ({error.strerror}), so two processes could mix what "
                "they write: mount NFS as version 4, or choose another place"
            ) from error
        return True

    def _holder(self) -> str:
        """Return the process that has the lock, as far as it says."""
        try:
            return self._path.read_text(encoding="utf-8")[:20].strip() or "unknown"
        except OSError:
            return "unknown"
