"""What an earlier download found out about a file, in `NAME.json` beside it: its checksum holds for every later one."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from dipole_ray.data.download.checks import Checksum
from dipole_ray.files.durable import read_json, write_json


def record_path(final: Path) -> Path:
    """Return where the record of a downloaded file lies."""
    return final.with_name(f"{final.name}.json")


def read_record(final: Path) -> Checksum | None:
    """Return the checksum that an earlier download recorded, if one did."""
    try:
        found = read_json(record_path(final))
        sha256, origin = str(found["sha256"]), f"recorded in {record_path(final).name} on {found['date']}"
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Checksum(sha256=sha256, origin=origin) if re.fullmatch(r"[0-9a-f]{64}", sha256) else None


def write_record(final: Path, sha256: str, verified: str, url: str | None) -> None:
    """Record a verified file's checksum, what the verification rests on and where the file came from."""
    about = {"sha256": sha256, "verified": verified, "url": url, "date": date.today().isoformat()}
    write_json(record_path(final), about)
