"""A stack's secrets, and the forms in which one of them may be in a text."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable

SHORTEST = 8
"""The fewest characters of a value, or of one of its lines, to search for. A shorter one, such as the `none` or
`EMPTY` for a server without keys, is not a secret, and is in many texts by chance."""


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A secret of the stack. Its `repr` does not show it, so that no report of a failure does."""

    name: str
    value: str = field(repr=False)
    renew: str
    """The command that puts another value in its place."""


def forms(value: str) -> set[str]:
    """What to search for: the value as it is, in JSON, in a URL, and inside a text in base64.

    Of a value with several lines, as a private key, each line but its `-----` is searched for by itself.
    """
    found = set()
    for line in (line.strip() for line in value.splitlines() if not line.startswith("-----")):
        if len(line) >= SHORTEST:
            found |= {line, json.dumps(line)[1:-1], quote(line, safe=""), quote(line)}
            for text in _base64(line.encode()):
                found |= {text, text.replace("+", "-").replace("/", "_")}
    return found


def _base64(value: bytes) -> Iterable[str]:
    """The characters that do not depend on what is before and after the value, for each place where it may begin."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + value).decode().rstrip("=")
        whole_end = (before + len(value)) % 3 == 0
        yield text[(0, 2, 3)[before] : None if whole_end else -1]


def leaked(secrets: Iterable[Secret], text: str) -> list[Secret]:
    """The secrets that are in a text."""
    return [secret for secret in secrets if any(form in text for form in forms(secret.value))]
