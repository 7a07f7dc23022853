"""What makes a downloaded file fit for use: its checksum, or, where nobody publishes one, a sound structure.

What a download found out stays in `NAME.json` beside the file: the checksum there holds for every later download.
"""

import hashlib
import re
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath

from dipole_ray.data.download.catalogue import Contents
from dipole_ray.data.download.request import TransferError, address, get
from dipole_ray.data.sources.npz import MAX_EXPANSION, SMALL_BYTES, read_headers
from dipole_ray.data.sources.ogbench import count_rows
from dipole_ray.errors import DatasetError
from dipole_ray.files.durable import read_json, write_json

OnBytes = Callable[[int], None]  # called with the bytes read so far

_CHUNK_BYTES = 1 << 20
_MAX_SUMS_BYTES = 1 << 20
_MAX_SUMS_S = 60.0
_EPISODE = re.compile(r"(.*/)?episode_\d+_\d+\.npz")
_PLAIN = re.compile(r"([0-9a-fA-F]{64})(?:\s+\*?(\S.*))?")
_TAGGED = re.compile(r"SHA256 \((.+)\) = ([0-9a-fA-F]{64})")


class WrongFile(DatasetError):
    """A file that arrived whole and is not what it should be."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """A SHA-256 and who vouches for it."""

    sha256: str
    origin: str


def sha256_of(path: Path, on_bytes: OnBytes) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest, count = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            count += len(chunk)
            on_bytes(count)
    return digest.hexdigest()


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
    return Checksum(sha256, origin) if re.fullmatch(r"[0-9a-f]{64}", sha256) else None


def write_record(final: Path, sha256: str, verified: str, url: str | None) -> None:
    """Record a verified file's checksum, what the verification rests on and where the file came from."""
    about = {"sha256": sha256, "verified": verified, "url": url, "date": date.today().isoformat()}
    write_json(record_path(final), about)


def published_checksum(base: str, path: str, timeout_s: float) -> Checksum | None:
    """Return the checksum that lies beside a file on its server, in `FILE.sha256` or `SHA256SUMS`; None = none there.

    A server that cannot be asked has not said that there is none: that is a TransferError.
    """
    folder, _, name = path.rpartition("/")
    for sums in (f"{path}.sha256", f"{folder}/SHA256SUMS".lstrip("/")):
        try:
            text = _small_text(address(base, sums), timeout_s)
        except TransferError as error:
            if error.status in (401, 403, 404, 410):
                continue
            raise
        found = _find_sum(text, name, may_be_bare=sums.endswith(".sha256"))
        if found is not None:
            return Checksum(found, f"published in {sums.rpartition('/')[2]} beside it")
    return None


def _small_text(url: str, timeout_s: float) -> str:
    data, deadline = bytearray(), time.monotonic() + _MAX_SUMS_S
    answer = get(url, timeout_s)
    with answer.response:
        for chunk in answer.chunks():
            data += chunk
            if len(data) > _MAX_SUMS_BYTES:
                return ""
            if time.monotonic() > deadline:
                raise TransferError(f"sent its checksum for longer than {_MAX_SUMS_S:g} s", retry=False)
    return data.decode("utf-8", errors="replace")


def _find_sum(text: str, name: str, *, may_be_bare: bool) -> str | None:
    """Return the checksum of `name` in the output of sha256sum, plain or tagged."""
    for line in text.splitlines():
        tagged, plain = _TAGGED.fullmatch(line.strip()), _PLAIN.fullmatch(line.strip())
        found, of = (tagged[2], tagged[1]) if tagged else (plain[1], plain[2]) if plain else ("", "")
        if found and (PurePosixPath(of).name == name if of else may_be_bare):
            return found.lower()
    return None


def check_structure(path: Path, contents: Contents, on_bytes: OnBytes) -> str:
    """Check that a file without checksum is whole and of its kind; return what was found, for the user to read.

    Every member is read to its end and so checked against its CRC-32; nothing is extracted or unpickled.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members)
            count = 0
            for member in members:
                with archive.open(member) as stream:
                    while chunk := stream.read(_CHUNK_BYTES):
                        count += len(chunk)
                        on_bytes(count)
        if contents == "ogbench":
            return f"{count_rows(path)} rows in {len(read_headers(path))} arrays, each as its CRC-32 says"
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        # NotImplementedError is zipfile's, of a compression it does not know
        raise WrongFile(f"is not a whole {path.suffixes[0]} file ({error})") from error
    except WrongFile:
        raise
    except DatasetError as error:
        raise WrongFile(str(error).removeprefix(f"{path}: ")) from error
    episodes = sum(_EPISODE.fullmatch(member.filename) is not None for member in members)
    if not episodes:
        raise WrongFile(f"holds no episodes among its {len(members)} members, so it is no ExORL archive")
    return f"{episodes} episodes, each as its CRC-32 says"


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that would be harmful to read or to unpack."""
    declared, size = sum(member.file_size for member in members), path.stat().st_size
    if declared > max(SMALL_BYTES, MAX_EXPANSION * size):
        raise WrongFile(f"declares {declared} bytes in {size} bytes on disk and is refused as a decompression bomb")
    for member in members:
        place = PurePosixPath(member.filename.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or (member.external_attr >> 16) & 0o170000 == 0o120000:
            raise WrongFile(f"holds the member '{member.filename}', which would be unpacked elsewhere, and is refused")
