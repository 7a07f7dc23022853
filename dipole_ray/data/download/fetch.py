"""Fetch one file from the first mirror that delivers it; only a verified file ever has its final name.

A broken transfer is continued where it broke, at once or by a later command; a mirror that does not help is left.
"""

import errno
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dipole_ray.data.download import checks
from dipole_ray.data.download.catalogue import RemoteFile
from dipole_ray.data.download.checks import Checksum, WrongFile
from dipole_ray.data.download.request import Origin, TransferError, address, get, shown
from dipole_ray.errors import DatasetError
from dipole_ray.files.durable import commit_file, format_bytes, read_json, write_json
from dipole_ray.files.lock import LOCK, FolderLock
from dipole_ray.progress import Progress

MAX_WAIT_S = 8.0
_RENEWING_BYTES = 1 << 20  # an attempt that gets this much further than any before renews all retries
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long one mirror is tried."""

    timeout_s: float = 30.0  # silence after which a server counts as stalled
    retries: int = 4  # further attempts after one that got no further
    first_wait_s: float = 1.0  # wait before the second attempt; it doubles from one to the next, up to 8 s


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A file that is there and verified."""

    path: Path  # where it lies
    sha256: str  # its checksum, to be pinned
    size: int  # its length in bytes
    verified: str  # what the verification rests on, for the user to read
    url: str | None  # where it came from, without secrets; None if it was there already


class Partial:
    """`NAME.part` and, beside it, `NAME.part.json`; both outlive the process, however it ends."""

    def __init__(self, final: Path) -> None:
        """Find what an earlier attempt left for the file `final`."""
        self.path, self._about = (final.with_name(f"{final.name}{end}") for end in (".part", ".part.json"))
        self.origin: Origin | None = None
        with suppress(OSError, ValueError, TypeError):
            self.origin = Origin(**read_json(self._about))

    @property
    def size(self) -> int:
        """Bytes that are there and of known origin."""
        return self.path.stat().st_size if self.origin is not None and self.path.exists() else 0

    def size_of(self, url: str) -> int:
        """Return how many bytes of `url` are there; none if what is there is of another."""
        return self.size if self.origin is not None and self.origin.url == shown(url) else 0

    def begin(self, origin: Origin) -> None:
        """Drop what is there and note what comes now; in this order, so that never two versions are joined."""
        with self.path.open("wb") as stream:
            os.fsync(stream.fileno())
        self.origin = origin
        write_json(self._about, asdict(origin))

    def discard(self) -> None:
        """Remove everything."""
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)
        self.origin = None


def download(
    file: RemoteFile,
    bases: Sequence[str],
    folder: Path,
    *,
    sha256: str | None = None,
    patience: Patience | None = None,
    say: Callable[[str], None] = print,
) -> Downloaded:
    """Make sure that `file` is in `folder`, verified; what arrives of it is kept, to be continued.

    Args:
        file: What to fetch.
        bases: Base URLs of mirrors, in the order to try them; one that a partial file is from goes first.
        folder: Where it is kept, below the file's own path.
        sha256: The checksum it must have; by default the one recorded by an earlier download or published beside it.
        patience: How long one mirror is tried.
        say: Told in one line what goes wrong and what is done about it.

    Raises:
        DatasetError: If no mirror delivers the file, or it cannot be written.
    """
    final = folder.expanduser() / file.path
    pinned = Checksum(sha256=sha256, origin="given by you") if sha256 else None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(final.parent, math.inf, f".{final.name}{LOCK}", say)
        with lock, Progress(file.name, unit="kB") as progress:
            return _Transfer(file, final, patience or Patience(), say, progress, pinned).run(bases)
    except OSError as error:
        remedy = "choose another folder with --out"
        if error.errno in _FULL:
            remedy = f"what arrived is kept; free some space and give the same command again, or {remedy}"
        raise DatasetError(f"{final}: cannot be written ({error.strerror or error}); {remedy}") from error


@dataclass
class _Transfer:
    """One download, while this process is the only one that works on the file."""

    file: RemoteFile
    final: Path
    patience: Patience
    say: Callable[[str], None]
    progress: Progress
    pinned: Checksum | None

    def __post_init__(self) -> None:
        self.partial, self.recorded = Partial(self.final), checks.read_record(self.final)
        self.is_joined = False  # of pieces that arrived one after the other

    def run(self, bases: Sequence[str]) -> Downloaded:
        """Return the file that is there already, or try the mirrors."""
        if self.final.exists() and (found := self._existing()) is not None:
            return found
        failures = []
        bases = sorted(bases, key=lambda base: not self.partial.size_of(address(base, self.file.path)))
        for position, base in enumerate(bases, start=1):
            try:
                return self._from_mirror(base, is_last=position == len(bases))
            except TransferError as error:
                failures.append(f"{shown(address(base, self.file.path))}: {error}")
                if position < len(bases):
                    self.say(f"{failures[-1]}; going on to the next mirror")
        raise DatasetError(self._end_message(failures))

    def _existing(self) -> Downloaded | None:
        """Return the file that has the final name if it is sound; a wrong one is set aside, never deleted."""
        try:
            found = self._verify(self.final, None, "no checksum of it is known")
        except WrongFile as error:
            aside = self.final.with_name(f"{self.final.name}.refused")
            self.final.replace(aside)
            self.say(f"{self.final}: {error}; set aside as {aside.name}, to be downloaded again")
            return None
        return self._finish(*found, None)

    def _from_mirror(self, base: str, is_last: bool) -> Downloaded:
        """Try one mirror until it has delivered the file, or has failed too often without getting further."""
        url = address(base, self.file.path)
        failures, furthest = 0, self.partial.size_of(url)
        while True:
            try:
                self._receive(url)
                published, doubt = (None, "") if self.pinned or self.recorded else self._published(base)
                return self._finish(*self._verify(self.partial.path, published, doubt), shown(url))
            except WrongFile as error:
                # Joined pieces may have been one too many; a file that came in one piece is what this mirror has.
                failure = TransferError(str(error), retry=self.is_joined)
                self.partial.discard()
            except TransferError as error:
                failure = error
            if not failure.retry or (failure.is_stall and not is_last):
                raise failure
            if self.partial.size >= furthest + _RENEWING_BYTES:
                failures, furthest = 0, self.partial.size
            failures += 1
            if failures > self.patience.retries:
                raise TransferError(f"{failure} ({failures} attempts)" if failures > 1 else str(failure), retry=False)
            wait_s = failure.after_s or min(self.patience.first_wait_s * 2 ** (failures - 1), MAX_WAIT_S)
            self.say(
                f"{shown(url)}: {failure}; {format_bytes(self.partial.size)} are here, "
                f"attempt {failures + 1} of {self.patience.retries + 1} in {wait_s:g} s"
            )
            time.sleep(wait_s)

    def _receive(self, url: str) -> None:
        """Bring the partial file to its end, from where it stands if the server still has that version."""
        start, origin = self.partial.size_of(url), self.partial.origin
        self.is_joined = start > 0
        if start and origin is not None and origin.total == start:
            return
        validator = origin.validator if origin is not None else None
        answer = get(url, self.patience.timeout_s, start=start, validator=validator)
        with answer.response:
            if answer.start == 0:
                if start:
                    self.say(f"{shown(url)}: the file is another one now, or cannot be continued; starting over")
                self.is_joined = False
                self.partial.begin(answer.origin)
            count, total = answer.start, answer.origin.total
            needed, free = (total or count) - count, shutil.disk_usage(self.final.parent).free
            if needed > free:
                sizes = f"{format_bytes(needed)} are still to come and {format_bytes(free)} are free"
                raise OSError(errno.ENOSPC, f"no space left on the disk: {sizes}")
            self.progress.begin(f"download {self.file.name}", total and total // 1000, count // 1000)
            # Unbuffered, so that a killed process has kept what it received.
            with self.partial.path.open("ab", buffering=0) as stream:
                for chunk in answer.chunks():
                    stream.write(chunk)
                    count += len(chunk)
                    self.progress.update(count // 1000)

    def _published(self, base: str) -> tuple[Checksum | None, str]:
        """Return the mirror's own checksum, or why there is none."""
        origin = self.partial.origin
        if origin is not None and origin.sha256 is not None:
            return Checksum(sha256=origin.sha256, origin="named by its server"), ""
        self.progress.begin(f"ask for the checksum of {self.file.name}", None)
        try:
            found = checks.published_checksum(base, self.file.path, self.patience.timeout_s)
        except TransferError as error:
            return None, f"its checksum could not be asked for ({error})"
        return found, "its server publishes no checksum"

    def _verify(self, path: Path, published: Checksum | None, doubt: str) -> tuple[str, str]:
        """Return the SHA-256 of `path` and what its verification rests on; WrongFile if it must not be used."""
        expected = self.pinned or self.recorded or published
        self.progress.begin(f"verify {self.file.name}", path.stat().st_size // 1000)
        digest = checks.sha256_of(path, self._show)
        if expected is None:
            self.progress.begin(f"check {self.file.name}", None)
            found = checks.check_structure(path, self.file.contents, self._show)
            return digest, f"{doubt}; verified by its structure: {found}"
        if digest != expected.sha256:
            raise WrongFile(f"wrong checksum, its SHA-256 is {digest} and not {expected.sha256} as {expected.origin}")
        return digest, f"its SHA-256 is as {expected.origin}"

    def _show(self, count: int) -> None:
        self.progress.update(count // 1000)

    def _finish(self, digest: str, verified: str, url: str | None) -> Downloaded:
        """Keep the checksum for later, and give what came from `url` its final name."""
        if self.recorded is None or digest != self.recorded.sha256:  # a record that was relied on stays as it is
            checks.write_record(self.final, digest, verified, url)
        if url is not None:
            commit_file(self.partial.path, self.final)
        self.partial.discard()
        return Downloaded(self.final, digest, self.final.stat().st_size, verified, url)

    def _end_message(self, failures: list[str]) -> str:
        lines = [f"{self.file.name} could not be downloaded:", *(f"  {failure}" for failure in failures)]
        if self.partial.size:
            kept = f"{format_bytes(self.partial.size)} are kept in {self.partial.path}"
            lines.append(f"{kept}; the same command continues there, or name another mirror with --base-url URL")
        elif self.recorded is not None and not self.pinned and any("wrong checksum" in text for text in failures):
            lines.append(f"if the file was published anew, remove {checks.record_path(self.final)} and try again")
        else:
            lines.append("name another mirror with --base-url URL, or try again later")
        return "\n".join(lines)
