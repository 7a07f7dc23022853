"""One HTTP request as downloads need it: http and https only, redirects watched, silence limited, no secret shown.

`requests` brings proxies, certificate checks, redirects and a timeout on every single receive; what it leaves open is
closed here: redirects stay on http(s) and https, and their bodies, which may never end, are not read.
Retries are `fetch`'s: urllib3's know nothing of a body that broke in the middle and is continued there.
"""

import http.client
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import requests
from urllib3.exceptions import HTTPError

from dipole_ray.data.download.catalogue import is_web_address
from dipole_ray.errors import DatasetError

MAX_REDIRECTS = 5
MAX_RETRY_AFTER_S = 30.0
_CHUNK_BYTES = 1 << 18
_PASSING = (408, 425, 429)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
# What comes of a bad address, host or connection; all of requests' own errors are OSErrors.
_BROKEN = (OSError, HTTPError, http.client.HTTPException, ValueError)


class TransferError(DatasetError):
    """A request that brought no file, or not all of it."""

    def __init__(
        self, what: str, *, retry: bool, is_stall: bool = False, status: int | None = None, after_s: float | None = None
    ) -> None:
        """Say what happened, whether the same server may be asked again, and how long it wants to be left alone."""
        super().__init__(what)
        self.retry, self.is_stall = retry, is_stall
        self.status, self.after_s = status, after_s


@dataclass(frozen=True, slots=True)
class Origin:
    """What the bytes of a file are a part of."""

    url: str  # where they come from, without secrets
    validator: str | None  # names this version in a later `If-Range`: a strong ETag, or else a safe Last-Modified
    total: int | None  # length of the whole file, where the server says it
    sha256: str | None  # where the server names it in its headers, as Hugging Face does for large files


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer, whose body is still to be read."""

    response: requests.Response
    origin: Origin
    start: int  # the offset in the file at which the body begins
    timeout_s: float

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives; TransferError if it breaks, is silent for `timeout_s`, or ends too early."""
        position, body = self.start, self.response.raw
        body.enforce_content_length = False  # what is short is said below, with what has come
        try:
            while chunk := body.read1(_CHUNK_BYTES, decode_content=False):
                position += len(chunk)
                yield chunk
        except _BROKEN as error:
            raise _broken(error, self.timeout_s) from error
        if self.origin.total not in (None, position):
            raise TransferError(f"the body ended at byte {position} of {self.origin.total}", retry=True)


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
            # The part of another version, if the server has ignored `If-Range`, is not taken.
            name = "ETag" if validator.startswith('"') else "Last-Modified"
            found = answer.response.headers.get(name, validator if name == "Last-Modified" else None)
            if answer.start == 0 or (answer.start == start and found == validator):
                return answer
            answer.response.close()
    answer = _ask(url, timeout_s, {})
    if answer.start:
        answer.response.close()
        raise TransferError("sent a part of the file although all of it was asked for", retry=False)
    return answer


class _Session(requests.Session):
    """Follows redirects, which keep the credentials of an address on its own origin, but not everywhere."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where an answer redirects to; TransferError where we do not go."""
        location: str | None = super().get_redirect_target(resp)
        if location is None:
            return None
        resp.close()  # or its body would be read to the end, which may never come
        target = location
        with suppress(ValueError):
            target = urljoin(resp.url, location)
        if not is_web_address(target):
            scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)", target)
            kind = f"a {scheme[0]}: address" if scheme and scheme[0] not in ("http", "https") else "no valid address"
            raise TransferError(f"redirects to {kind}, not followed", retry=False)
        if urlsplit(resp.url).scheme == "https" and urlsplit(target).scheme == "http":
            raise TransferError("redirects from https to plain http, not followed", retry=False)
        return location


def _ask(url: str, timeout_s: float, headers: Mapping[str, str]) -> Answer:
    """Send one request and follow its redirects."""
    authorities = ssl.get_default_verify_paths()  # the system's, as SSL_CERT_FILE names them, rather than certifi's
    parts = urlsplit(url)
    with _Session() as session:
        session.max_redirects = MAX_REDIRECTS
        session.headers = {"User-Agent": "dipole_ray", "Accept-Encoding": "identity", **headers}
        # A step that adds nothing, where there are no credentials: else requests looks for some in ~/.netrc.
        session.auth = lambda request: request
        if parts.username is not None:
            session.auth = unquote(parts.username).encode(), unquote(parts.password or "").encode()
        try:
            verify = authorities.cafile or authorities.capath or True
            response = session.get(url, timeout=timeout_s, stream=True, verify=verify)
        except requests.TooManyRedirects:
            raise TransferError(f"redirected more than {MAX_REDIRECTS} times", retry=False) from None
        except _BROKEN as error:
            raise _broken(error, timeout_s) from error
    return _answer(url, response, timeout_s)


def _answer(url: str, response: requests.Response, timeout_s: float) -> Answer:
    """Read what the headers of an answer say, and refuse one that brings no file."""
    headers, start, total = response.headers, 0, response.raw.length_remaining
    if response.status_code not in (200, 206) or headers.get("Content-Encoding", "identity") != "identity":
        response.close()
        raise _refused(response)
    if response.status_code == 206:
        found = _RANGE.fullmatch(headers.get("Content-Range", ""))
        start = int(found[1]) if found else -1
        total = int(found[2]) if found and found[2] != "*" else None
    # Hugging Face names the SHA-256 of a large file in the answer that redirects to its store.
    named = [step.headers.get("X-Linked-ETag", "").strip('"') for step in (*response.history, response)]
    sha256 = next(filter(_SHA256.fullmatch, named), None)
    return Answer(response, Origin(shown(url), _validator(headers), total, sha256), start, timeout_s)


def _validator(headers: Mapping[str, str]) -> str | None:
    """Return what may stand in `If-Range` (RFC 9110, 13.1.5): a strong ETag, or a date that no later change shares."""
    etag = headers.get("ETag")
    if etag is not None:
        return etag if etag.startswith('"') else None
    try:
        age = parsedate_to_datetime(headers["Date"]) - parsedate_to_datetime(headers["Last-Modified"])
        return headers["Last-Modified"] if age.total_seconds() >= 1 else None
    except (KeyError, TypeError, ValueError):
        return None


def _refused(response: requests.Response) -> TransferError:
    """Return why an answer is not the file; some refusals are passing, and may say for how long."""
    status, encoding = response.status_code, response.headers.get("Content-Encoding", "identity")
    if status < 400:
        what = f"HTTP {status}" if encoding == "identity" else f"content encoded as '{encoding}'"
        return TransferError(f"answered with {what}, not with the file", retry=False)
    passing = status >= 500 or status in _PASSING
    what = f"HTTP {status} {http.client.responses.get(status, '')}".rstrip()
    asked = response.headers.get("Retry-After", "")
    after_s = float(asked) if passing and asked.isdecimal() else None
    if after_s is not None and after_s > MAX_RETRY_AFTER_S:
        return TransferError(f"{what}, to be asked again in {asked} s", retry=False, status=status)
    return TransferError(what, retry=passing, status=status, after_s=after_s)


def _broken(error: BaseException, timeout_s: float) -> TransferError:
    """Return what a failed connection means, in words that name no address."""
    causes = [error]  # requests wraps an error of urllib3's, which wraps one of the system's
    for one in causes:
        causes += [more for more in (one.__cause__, one.__context__) if more is not None and more not in causes]

    def caused_by(*kinds: type[BaseException]) -> Any:
        return next((cause for cause in causes if isinstance(cause, kinds)), None)

    if caused_by(TimeoutError):
        return TransferError(f"sent nothing for {timeout_s:g} s", retry=True, is_stall=True)
    if certificate := caused_by(ssl.SSLCertVerificationError):
        what = f"its certificate is not accepted ({certificate.verify_message}); SSL_CERT_FILE names other authorities"
        return TransferError(what, retry=False)
    if caused_by(socket.gaierror):
        return TransferError("its name cannot be resolved", retry=True)
    if caused_by(ConnectionRefusedError):
        return TransferError("refused the connection", retry=True)
    if caused_by(ConnectionError, http.client.IncompleteRead):
        return TransferError("broke the connection", retry=True)
    for cause in causes:
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException):
            return TransferError(f"cannot be reached ({cause.strerror or type(cause).__name__})", retry=True)
    return TransferError(f"broke the rules of HTTP ({type(causes[-1]).__name__})", retry=True)
