"""What a run asks of its disk: room for its checkpoints at the start, and a pause instead of an end when a write fails.

A full disk, a quota, an I/O error or a folder that became read-only is somebody's to mend while the run waits, with
nothing lost. The run therefore stands still: it logs one error, tries the same write again after 1, 2, 4, ... up to
60 s, says once a minute that it still waits, and goes on by itself when the write succeeds.
"""

import contextlib
import errno
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.files.checkpoint import Contents
from dipole_ray.files.durable import format_bytes

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
SILENCE_S = 60.0  # longest wait without a word
SLICE_S = 0.1  # how soon Ctrl-C is seen
# Refusals of a disk that somebody can mend while the run waits; a missing folder, say, is none of them.
PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
PASSING |= {errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN, errno.EBUSY}  # of a network's disk
JOB_COPIES = "working_dir_files"  # Ray's folder for them, under `/tmp/ray/session_.../runtime_resources`
PAUSED = (
    "%s. Training is paused, without new rows and updates: free space or make the folder writable, and it goes on by "
    "itself. It waits for up to %g minutes (checkpoint.retry_minutes); Ctrl-C ends the run instead"
)

_log = logging.getLogger(__name__)


def require_lasting(place: Path, key: str) -> None:
    """Raise ConfigError for a place in the copy of the working directory that `ray job submit --working-dir` makes.

    The setting `key` names it: a folder of results, or data that other nodes read, which have that copy elsewhere.
    """
    if JOB_COPIES in (found := place.expanduser().resolve()).parts:
        raise ConfigError(
            f"{key} is {found}, in the copy of your working directory that Ray made for this job and deletes later: "
            f"give an absolute path, {key}=/..., on storage that every node of the cluster sees"
        )


def persist(write: Callable[[], object], *, retry_minutes: float, interrupted: Sized) -> None:
    """Call `write`, which writes whole or not at all, again and again while the disk refuses.

    It waits for the disk for `retry_minutes` (0 = not at all); `interrupted` grows with requests to stop, which end it.

    Raises:
        CheckpointError: The disk still refuses after that time.
        KeyboardInterrupt: Ctrl-C while waiting.
    """
    start, presses, wait_s, is_paused = time.monotonic(), len(interrupted), FIRST_WAIT_S, False
    status = ["a write to the run's folder has not come back"]
    with _word_each_minute(status):
        while True:
            try:
                write()
                break
            except (OSError, CheckpointError) as error:
                refusal = error if isinstance(error, OSError) else error.__cause__
                if not isinstance(refusal, OSError) or refusal.errno not in PASSING:  # a bug, say: waiting helps nobody
                    raise
                ours: Exception = error
                if isinstance(error, OSError):
                    found = f"{error.filename or 'the run folder'}: cannot be written ({error.strerror or error})"
                    remedy = "free space or make the folder writable, then go on with 'dipole train --resume'"
                    ours = CheckpointError(f"{found}; {remedy}")
                if time.monotonic() - start >= 60 * retry_minutes:
                    raise ours from refusal
            if not is_paused:
                _log.error(PAUSED, str(ours).partition(";")[0], retry_minutes)
            is_paused = True
            status[0] = f"training is paused, the disk refuses a write ({refusal.strerror or refusal}),"
            until = min(time.monotonic() + wait_s, start + 60 * retry_minutes)
            while time.monotonic() < until:  # in slices, so that Ctrl-C is seen
                if len(interrupted) > presses:
                    _log.warning("stopped during the pause: what came after the last checkpoint is lost")
                    raise KeyboardInterrupt
                time.sleep(min(SLICE_S, until - time.monotonic()))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
    if is_paused:
        _log.warning("the disk took the write; training goes on after %.0f s", time.monotonic() - start)


def checkpoint_bytes(contents: Contents, metadata: Mapping[str, Any]) -> int:
    """Return about how many bytes a checkpoint of this content takes."""
    sizes = (
        len(one) if isinstance(one, str) else sum(each.nbytes for each in one.values()) for one in contents.values()
    )
    return sum(sizes) + len(json.dumps(metadata))


def require_room(folder: Path, checkpoint_bytes: int, num_checkpoints: int) -> None:
    """Raise CheckpointError where the disk cannot hold so many more checkpoints, before a run trains for hours."""
    free, needed = shutil.disk_usage(folder).free, checkpoint_bytes * num_checkpoints
    if needed > free:
        raise CheckpointError(
            f"{folder}: the run needs {format_bytes(needed)} ({needed} bytes) for {num_checkpoints} checkpoints of "
            f"{format_bytes(checkpoint_bytes)}, those of checkpoint.keep and one being written, and the disk has "
            f"{format_bytes(free)} ({free} bytes) free; free space, lower checkpoint.keep, or choose another disk "
            "with folder=PATH"
        )


@contextlib.contextmanager
def _word_each_minute(status: Sequence[str]) -> Iterator[None]:
    """Log the first entry of `status` for every minute that the block takes; a thread, because a write may hang."""
    finished, start = threading.Event(), time.monotonic()

    def speak() -> None:
        while not finished.wait(SILENCE_S):
            _log.warning("%s for %.0f s", status[0], time.monotonic() - start)

    speaker = threading.Thread(target=speak, name="storage", daemon=True)
    speaker.start()
    try:
        yield
    finally:
        finished.set()
        speaker.join()
