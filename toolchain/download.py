"""Downloads files from a host that may be slow, unreachable, or not the one that it claims to be."""

from __future__ import annotations

import hashlib
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future
from http.client import HTTPException
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from pathlib import Path

    from toolchain.progress import Step

STALL_SECONDS = 30.0
"""How long a download that has begun may stall."""
CHECKSUMS = {40: "sha1", 64: "sha256"}
"""The hash that Pulumi lists for plugins and for the CLI, by its length."""


class DownloadError(Exception):
    """The host did not give a file; the message says why."""


class UnreachableError(DownloadError):
    """The host does not answer, so there is no point in asking it for other files."""


def _open(url: str, seconds: float) -> HTTPResponse:
    """Open a URL; no read may wait longer than `seconds`. Raises DownloadError."""
    try:
        answer: HTTPResponse = urllib.request.urlopen(url, timeout=seconds)  # noqa: S310 -- file:// may be a mirror
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url}: {error}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise UnreachableError(f"{url}: {error}") from error
    return answer


def read(url: str, *, within: float) -> bytes:
    """Read a small file within some seconds; name resolution alone may take many. Raises DownloadError."""
    content: Future[bytes] = Future()

    def ask() -> None:
        try:
            content.set_result(_open(url, within).read())
        except Exception as error:  # noqa: BLE001 -- it is raised in the caller's thread
            content.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return content.result(within)
    except (OSError, HTTPException) as error:
        raise UnreachableError(f"{url}: no answer within {within:.0f} s") from error


def fetch(url: str, target: Path, expected: str, step: Step) -> None:
    """Download to `target` and compare the checksum. Raises DownloadError."""
    digest = hashlib.new(CHECKSUMS[len(expected)])
    try:
        with _open(url, STALL_SECONDS) as answer, target.open("wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)
                digest.update(block)
                step.note(f"{file.tell() / 1e6:.0f} MB")
    except (OSError, HTTPException) as error:
        raise DownloadError(f"{url}: {error}") from error
    if digest.hexdigest() != expected:
        raise DownloadError(f"{url}: its checksum is {digest.hexdigest()}, but the release lists {expected}")
