"""A file that is still arriving: its bytes, and which version on which server they are of."""

import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from dipole_ray.data.download.request import Origin, shown
from dipole_ray.files.durable import read_json, write_json


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
