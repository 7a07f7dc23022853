"""One writer a folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path
from typing import IO

from dipole_ray.errors import ConfigError

POLL_S, SILENCE_S = 0.2, 30.0

_log = logging.getLogger(__name__)


class FolderLock:
    """Holds `folder/.lock`; a killed sweep's actors may live on for seconds, and two writers would mix two runs."""

    def __init__(self, folder: Path, wait_s: float) -> None:
        """Take the lock.

        Args:
            folder: What is written into; made if missing.
            wait_s: How long to wait for another process to end.

        Raises:
            ConfigError: Another process has it after that time, or the file system has no locks.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = (folder / ".lock").open("a+", encoding="utf-8")
        start = told = time.monotonic()
        while not self._taken():
            if time.monotonic() - start >= wait_s:
                self._file.seek(0)
                who = self._file.read(100).strip() or "unknown"
                self._file.close()
                raise ConfigError(f"{folder}: another process writes there (process {who}); wait for it or end it")
            if time.monotonic() - told >= SILENCE_S:
                _log.warning("%s: waiting for another process that still writes there", folder)
                told = time.monotonic()
            time.sleep(POLL_S)
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Give the lock back; twice does nothing."""
        self._file.close()

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            self._file.close()
            raise ConfigError(
                f"{self._file.name}: this file system locks no files ({error.strerror}), so two processes could mix "
                "two runs: mount NFS as version 4, or choose another place with folder=PATH"
            ) from error
        return True
