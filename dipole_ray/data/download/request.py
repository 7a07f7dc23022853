"""One HTTP request as downloads need it: http and https only, redirects watched, silence limited, no secret shown.

The standard library is enough: `urllib.request` brings proxies and certificate checks, `http.client` a timeout on every
single receive. Redirects are followed by hand, so that none leaves http(s), https or the credentials' own host.
"""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
import string
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from dipole_ray.errors import DatasetError

MAX_REDIRECTS = 5
MAX_RETRY_AFTER_S = 30.0
_CHUNK_BYTES = 1 << 18
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class TransferError(DatasetError):
    """A request that brought no file, or not all of it."""

    def __init__(
        self, what: str, *, retry: bool, is_stall: bool = False, status: int | None = None, after_s: float | None = None
    ) -> None:
        """Say what happened, whether the same server may be asked again, and how long it wants to be left alone."""
        super().__init__(what)
        self.retry, self.is_stall, self.status, self.after_s = retry, is_stall, status, after_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A server's answer, whose body is still to be read; a context manager that closes the connection."""

    response: Any
    start: int
    """The offset in the file at which the body begins."""
    total: int | None
    """Length of the whole file, where the server says it."""
    validator: str | None
    """What identifies this version of the file for a later `If-Range`: a strong ETag, or else a safe Last-Modified."""
    sha256: str | None
    """The checksum of the file, where the server names it in its headers, as Hugging Face does for large files."""
    timeout_s: float

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.response.close()

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            TransferError: If the connection breaks, falls silent for `timeout_s`, or ends before the file does.
        """
        position = self.start
        while True:
            try:
                chunk = self.response.read1(_CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _broken(error, self.timeout_s) from error
            if not chunk:
                break
            position += len(chunk)
            yield chunk
        if self.total is not None and position != self.total:
            raise TransferError(f"the body ended at byte {position} of {self.total}", retry=True)


def address(base: str, path: str) -> str:
    """Return the URL of `path` below a base URL; a query, such as a storage token, stays behind it."""
    parts = urlsplit(base)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{path}", fragment=""))


def shown(url: str) -> str:
    """Return `url` without what may be secret: user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def get(url: str, timeout_s: float, *, start: int = 0, validator: str | None = None) -> Answer:
    """Ask for a file, from byte `start` on if it is still the version that `validator` names, else from its beginning.

    Raises:
        TransferError: If the server cannot be reached, refuses, or redirects to where we do not follow.
    """
    if start and validator:
        try:
            answer = _ask(url, timeout_s, {"Range": f"bytes={start}-", "If-Range": validator})
        except TransferError as error:
            if error.status != 416:
                raise
        else:
            if answer.start == 0 or (answer.start == start and _is_version(answer.response.headers, validator)):
                return answer
            answer.response.close()
    answer = _ask(url, timeout_s, {})
    if answer.start:
        answer.response.close()
        raise TransferError("sent a part of the file although all of it was asked for", retry=False)
    return answer


def _ask(url: str, timeout_s: float, headers: dict[str, str]) -> Answer:
    """Send one request and follow its redirects."""
    sha256 = None
    for _ in range(MAX_REDIRECTS + 1):
        try:
            response = _opener().open(_request(url, headers), timeout=timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                sha256 = sha256 or _linked_sha256(error.headers)
                location = error.headers.get("Location")
                if error.code not in _REDIRECTS or not location:
                    raise _refused(error) from None
            url = _redirected(url, location)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _broken(error, timeout_s) from error
        else:
            return _answer(response, sha256 or _linked_sha256(response.headers), timeout_s)
    raise TransferError(f"redirected more than {MAX_REDIRECTS} times", retry=False)


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that knows http, https and the environment's proxies, and follows nothing by itself."""
    opener = urllib.request.OpenerDirector()
    opener.addheaders = [("User-Agent", "dipole_ray")]
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _request(url: str, headers: dict[str, str]) -> urllib.request.Request:
    """Return a request whose user and password are in a header, not in the address."""
    parts = urlsplit(url)
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
    for name, value in headers.items():
        request.add_header(name, value)
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_header("Authorization", f"Basic {base64.b64encode(secret).decode()}")
    return request


def _redirected(url: str, location: str) -> str:
    """Return where a redirect leads; the credentials of `url` go along only to the same origin."""
    here = urlsplit(url)
    bare = urlunsplit(here._replace(netloc=here.netloc.rpartition("@")[2]))
    target = location
    try:
        target = quote(urljoin(bare, location), safe=string.punctuation)
        there = urlsplit(target)
        is_http = there.scheme in ("http", "https") and bool(there.hostname) and there.port != 0
    except ValueError:
        is_http = False
    if not is_http:
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)", target)
        kind = f"a {scheme[0]}: address" if scheme and scheme[0] not in ("http", "https") else "no valid address"
        raise TransferError(f"redirects to {kind}, not followed", retry=False)
    if here.scheme == "https" and there.scheme == "http":
        raise TransferError("redirects from https to plain http, not followed", retry=False)
    if here.username is not None and there.username is None and _origin(here) == _origin(there):
        return urlunsplit(there._replace(netloc=here.netloc))
    return target


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port


def _answer(response: Any, sha256: str | None, timeout_s: float) -> Answer:
    """Read what the headers of a good answer say."""
    headers, start, total = response.headers, 0, response.length
    encoding = headers.get("Content-Encoding", "identity")
    if response.status not in (200, 206) or encoding != "identity":
        response.close()
        what = f"HTTP {response.status}" if encoding == "identity" else f"content encoded as '{encoding}'"
        raise TransferError(f"answered with {what}, not with the file", retry=False)
    if response.status == 206:
        found = _RANGE.fullmatch(headers.get("Content-Range", ""))
        start = int(found[1]) if found else -1
        total = int(found[2]) if found and found[2] != "*" else None
    return Answer(
        response=response,
        start=start,
        total=total,
        validator=_validator(headers),
        sha256=sha256,
        timeout_s=timeout_s,
    )


def _validator(headers: Message) -> str | None:
    """Return what may stand in `If-Range` (RFC 9110, 13.1.5): a strong ETag, or a date that no later change shares."""
    etag = headers.get("ETag")
    if etag is not None:
        return etag if etag.startswith('"') else None
    try:
        age = parsedate_to_datetime(headers["Date"]) - parsedate_to_datetime(headers["Last-Modified"])
        return str(headers["Last-Modified"]) if age.total_seconds() >= 1 else None
    except (TypeError, ValueError):
        return None


def _is_version(headers: Message, validator: str) -> bool:
    """Whether a part belongs to the version that was asked for; a server may have ignored `If-Range`."""
    name = "ETag" if validator.startswith('"') else "Last-Modified"
    return headers.get(name, validator if name == "Last-Modified" else None) == validator


def _linked_sha256(headers: Message) -> str | None:
    """Return the SHA-256 that Hugging Face names for a large file, in the answer that redirects to its store."""
    found = _SHA256.fullmatch(headers.get("X-Linked-ETag", "").strip('"'))
    return found[0] if found else None


def _refused(error: urllib.error.HTTPError) -> TransferError:
    """Return a refusal by status; some are passing, and may say for how long."""
    passing = error.code >= 500 or error.code in _PASSING
    what, after_s = f"HTTP {error.code} {http.client.responses.get(error.code, '')}".rstrip(), None
    asked = error.headers.get("Retry-After", "")
    if passing and asked.isdecimal():
        after_s = float(asked)
        if after_s > MAX_RETRY_AFTER_S:
            return TransferError(f"{what}, to be asked again in {asked} s", retry=False, status=error.code)
    return TransferError(what, retry=passing, status=error.code, after_s=after_s)


def _broken(error: Exception, timeout_s: float) -> TransferError:
    """Return what a failed connection means, in words that name no address."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return TransferError(f"sent nothing for {timeout_s:g} s", retry=True, is_stall=True)
    if isinstance(reason, ssl.SSLCertVerificationError):
        what = f"its certificate is not accepted ({reason.verify_message}); SSL_CERT_FILE names other authorities"
        return TransferError(what, retry=False)
    if isinstance(reason, socket.gaierror):
        return TransferError("its name cannot be resolved", retry=True)
    if isinstance(reason, ConnectionRefusedError):
        return TransferError("refused the connection", retry=True)
    if isinstance(reason, (ConnectionError, http.client.IncompleteRead)):
        return TransferError("broke the connection", retry=True)
    if isinstance(reason, OSError):
        return TransferError(f"cannot be reached ({reason.strerror or type(reason).__name__})", retry=True)
    return TransferError(f"broke the rules of HTTP ({type(reason).__name__})", retry=True)
