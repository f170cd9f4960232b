"""Downloads over HTTP that go on where they stopped, and are whole or not there.

The bytes grow in ``<name>.part``; ``<name>.part.json`` beside it says of which version of which
address they are, so that what another version would append to is thrown away (RFC 9110, If-Range).
A file gets its name in one rename, after its length and its sha256 were checked.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from harness.errors import HarnessError, InfraError
from harness.store.durable import fsync_path
from harness.store.keys import file_digest
from harness.vbench.parts import Part, Version, check_space, opened, part_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from email.message import Message
    from pathlib import Path

    Report = Callable[[int, int], None]  # bytes that are here, bytes in all (0: not known)

IDLE_ATTEMPTS = 4
PAUSE_S = 1.0
TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 20
_HUB = "https://huggingface.co"
_HUB_DIGEST = "X-Linked-Etag"  # sha256 of a large file, on the hub's answer before it redirects
_TRY_AGAIN = (408, 425, 429)
_AGAIN = (
    "check the network and type the same command again: it goes on from there; "
    "without a network: --from FOLDER"
)
_BY_HAND = "fetch it by hand into a folder and give that: --from FOLDER"


class _StoppedError(Exception):
    """A transfer ended for a reason that may pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is known beforehand of a file.

    Attributes:
        sha256: Its sha256 or the first digits of it; empty where not known.
        bytes: Its size; 0 where not known.
        hint: What is likely when another file comes; empty for a damaged transfer.
    """

    sha256: str = ""
    bytes: int = 0
    hint: str = ""


def download(
    urls: Sequence[str], target: Path, wanted: Wanted | None = None, report: Report | None = None
) -> str:
    """Fetch a file from the first address that gives it.

    Args:
        urls: Addresses of the same content.
        target: Where it shall lie.
        wanted: What is known of it.
        report: Called while it grows.

    Returns:
        The address it came from.

    Raises:
        HarnessError: No address gives the file, or what it gives is another one.
        InfraError: The disk is full.
    """
    failures: list[HarnessError] = []
    for url in urls:
        try:
            with opened(target) as part:
                _fetch(_mirrored(url), part, wanted or Wanted(), report)
                part.publish(target)
            return url
        except InfraError:
            raise
        except HarnessError as cause:
            failures.append(cause)
    if len(failures) == 1:
        raise failures[0]
    reasons = "; ".join(failure.message for failure in failures)
    raise HarnessError(f"no address gives '{target.name}': {reasons}", failures[-1].hint)


def extract(archive: Path, member: str, target: Path) -> None:
    """Take one member out of a zip archive.

    Raises:
        HarnessError: The archive is damaged or has no such member.
        InfraError: There is no room for it.
    """
    temporary = part_path(target)
    try:
        with zipfile.ZipFile(archive) as pack, pack.open(member) as source:
            check_space(target.parent, pack.getinfo(member).file_size, target.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK_BYTES)
                file.flush()
                os.fsync(file.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as cause:
        temporary.unlink(missing_ok=True)
        raise HarnessError(
            f"'{archive}' does not hold '{member}' ({cause})", f"remove it; {_BY_HAND}"
        ) from cause
    temporary.replace(target)
    fsync_path(target.parent)


def _mirrored(url: str) -> str:
    """The address at the hub's mirror, where the variable that its own client reads names one."""
    mirror = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    return mirror + url.removeprefix(_HUB) if url.startswith(f"{_HUB}/") else url


def _fetch(url: str, part: Part, wanted: Wanted, report: Report | None) -> None:
    """Fill a part until it is whole, and check it."""
    idle, most = 0, part.size
    while True:
        try:
            _transfer(url, part, wanted, report)
            break
        except _StoppedError as cause:
            idle = 0 if part.size > most else idle + 1
            most = max(most, part.size)
            if idle >= IDLE_ATTEMPTS:
                raise HarnessError(f"'{url}': {cause}", _AGAIN) from cause
            time.sleep(PAUSE_S * 2**idle)
    found, announced = file_digest(part.path), part.version.sha256 if part.version else ""
    known = wanted.sha256 or announced
    if not found.startswith(known):
        part.discard()
        raise HarnessError(
            f"'{url}' gave a file whose sha256 is {found[:12]}..., not {known[:12]}...",
            f"{wanted.hint or 'try again'}; if it stays so, {_BY_HAND}",
        )


def _transfer(url: str, part: Part, wanted: Wanted, report: Report | None) -> None:
    """Ask once for what is not here yet and write what comes."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    request.add_header("User-Agent", "vdit-quant-harness")
    held = part.version
    if held is not None and held.url == url and part.size:
        if held.total == part.size:
            return
        if held.validator:
            request.add_header("Range", f"bytes={part.size}-")
            request.add_header("If-Range", held.validator)
    redirects = _Redirects()
    with _answer(url, urllib.request.build_opener(redirects), request, part) as answer:
        _take_up(url, answer, part, wanted, redirects.sha256)
        _receive(answer, part, report)
    version = part.version
    assert version is not None
    if version.total and part.size != version.total:
        raise _StoppedError(f"ended after {part.size} of {version.total} bytes")


def _answer(
    url: str, opener: urllib.request.OpenerDirector, request: urllib.request.Request, part: Part
) -> http.client.HTTPResponse:
    """Send a request; tell failures that may pass from those that do not."""
    try:
        answer: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as cause:
        with cause:
            if cause.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.discard()
                raise _StoppedError("the host has fewer bytes than it said") from cause
            text = f"the host answers {cause.code} {cause.reason}"
            if cause.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR or cause.code in _TRY_AGAIN:
                raise _StoppedError(text) from cause
            raise HarnessError(f"'{url}': {text}", _BY_HAND) from cause
    except (OSError, http.client.HTTPException) as cause:
        raise _StoppedError(f"no answer ({_short(cause)})") from cause
    return answer


def _take_up(
    url: str, answer: http.client.HTTPResponse, part: Part, wanted: Wanted, sha256: str
) -> None:
    """Decide from the head of an answer where its bytes belong."""
    if answer.headers.get_content_type() == "text/html":
        raise HarnessError(f"'{url}' gave a web page, not a file", _BY_HAND)
    start, total = 0, int(answer.headers.get("Content-Length") or 0)
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        start, total = (int(span[1]), int(span[2])) if span else (-1, 0)
        if part.version is None or (start, total) != (part.size, part.version.total):
            part.discard()
            raise _StoppedError("the host went on with other bytes than asked for")
    elif not total and answer.headers.get("Transfer-Encoding") is None and not wanted.sha256:
        raise HarnessError(f"'{url}' does not say how long the file is", _BY_HAND)
    if wanted.bytes and total and total != wanted.bytes:
        raise HarnessError(f"'{url}' has {total} bytes, the file {wanted.bytes}", _BY_HAND)
    if not start:
        sha256 = sha256 or _announced(answer.headers)
        validator = _validator(answer.headers) if total else ""
        part.begin(Version(url=url, validator=validator, total=total, sha256=sha256))
    check_space(part.path.parent, total - start, part.path.name.removesuffix(".part"))


def _receive(answer: http.client.HTTPResponse, part: Part, report: Report | None) -> None:
    """Append the body of an answer to a part."""
    total = part.version.total if part.version else 0
    part.file.seek(0, os.SEEK_END)
    while True:
        try:
            chunk = answer.read1(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as cause:
            raise _StoppedError(f"broke off after {part.size} bytes ({_short(cause)})") from cause
        if not chunk:
            return
        part.append(chunk)
        if report is not None:
            report(part.size, total)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the digest that the hub announces on the way."""

    sha256 = ""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Follow one."""
        self.sha256 = self.sha256 or _announced(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _announced(headers: Message) -> str:
    """The sha256 that the hub announces for a large file; other hosts have no such header."""
    text = str(headers.get(_HUB_DIGEST, "")).strip('"')
    return text if re.fullmatch("[0-9a-f]{64}", text) else ""


def _validator(headers: Message) -> str:
    """What If-Range may name: a strong entity tag, else the date (RFC 9110, 13.1.5)."""
    tag = str(headers.get("ETag", ""))
    return tag if tag.startswith('"') else str(headers.get("Last-Modified", ""))


def _short(cause: BaseException) -> str:
    reason = getattr(cause, "reason", cause)
    return str(reason) or cause.__class__.__name__
