"""The paths that each release of LiteLLM serves, from the table of docs/clients.md, and those it really serves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import httpx2

from tests.stack_config import PROJECT

if TYPE_CHECKING:
    import ssl

SECONDS = 60.0
FORMS = ("edits", "transcriptions", "translations")
FILE = {"unknown": ("empty", b"")}
NOT_SERVED = re.compile(r"gateway( runs,)? does not serve")
"""The errors of edge and guard for a path. A provider's own 404 differs: the request got through."""
WORD = re.compile(r"\b(GET|POST|DELETE)\b|`(/[^`]+)`")


def told(version: str) -> dict[tuple[str, str], bool]:
    """Whether a release serves a method and path, as the table has it."""
    text = (PROJECT / "docs/clients.md").read_text(encoding="utf-8")
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    column = next(number for number, title in enumerate(head) if title.endswith(version))
    served: dict[tuple[str, str], bool] = {}
    for row in rows:
        methods: list[str] = []
        before_path = False
        for method, path in WORD.findall(row[0]):
            if method:
                methods = [method] if before_path else [*methods, method]
            before_path = bool(path)
            served |= {(each, path): row[column] == "yes" for each in methods if path}
    return served


def served(url: str, key: str, trusting: ssl.SSLContext | None = None) -> dict[tuple[str, str], bool]:
    """Whether the gateway at a URL serves what the table lists. Each is asked with a model and nothing else."""
    found: dict[tuple[str, str], bool] = {}
    for method, path in told(""):
        form = path.endswith(FORMS)
        asked: dict[str, Any] = (
            {"data": {"model": "gpt-4o"}, "files": FILE} if form else {"json": {"model": "gpt-4o"}}
        )
        # A connection for each: 1.55.0 drops one after what it cannot answer.
        answer = httpx2.request(
            method,
            url + path.replace("NAME", "gpt-4o").replace("ID", "resp_none"),
            headers={"authorization": f"Bearer {key}"},
            **(asked if method == "POST" else {}),
            verify=trusting or True,
            timeout=SECONDS,
        )
        found[method, path] = not NOT_SERVED.search(answer.text)
    return found
