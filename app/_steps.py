"""The waits on the way to an answer.

The sync and the async API run the same steps: generators that yield calls of an `Io`'s methods, and are sent the
result of each. So each rule is written once, in app/_requests.py, and the two differ only in how they wait.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from app._answers import MALFORMED, by_answer, errors_translated, timed_out
from app._deadline import until
from app._http import CONNECT_SECONDS
from app._settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from app._requests import Stream

ORGANIZATION_HEADER = "x-llm-organization"
Answer = TypeVar("Answer")
Steps = Generator[Callable[["Io"], Any], Any, Answer]
"""Steps to wait for, one after another, and their final result."""


class Io:
    """What steps wait for. The sync API does each at once; the async API returns something to await."""

    def organization(self, organization_id: UUID | str) -> Any:  # noqa: ANN401 -- an Organization, or one to be awaited
        raise NotImplementedError

    def send(self, request: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Send a request, and wait for the answer's head."""
        raise NotImplementedError

    def read(self, response: httpx2.Response) -> Any:  # noqa: ANN401
        """Read a whole body."""
        raise NotImplementedError

    def piece(self, stream: Stream) -> Any:  # noqa: ANN401
        """Read the next bytes of a stream; none at its end."""
        raise NotImplementedError

    def close(self, response: httpx2.Response) -> Any:  # noqa: ANN401
        """End a request."""
        raise NotImplementedError


_parsed = lru_cache(maxsize=8)(httpx2.URL)
"""A parsed URL, cached because parsing takes httpx2 longer than building a request; one gateway has two URLs."""


def opened(
    path: str, body: Mapping[str, Any], deadline: float, *, organization: str | None = None
) -> Steps[httpx2.Response]:
    """Send a request, and return the answer once its head is there. Raises the LLMError of an error answer.

    `organization` is the one for which it is sent: the gateway counts by it, and does not tell the provider.
    """
    model, settings = body["model"], Settings.load()
    left = deadline - time.monotonic()
    if left <= 0:
        raise timed_out(model)
    headers = {"authorization": f"Bearer {settings.required_api_key()}"}
    if organization:
        headers[ORGANIZATION_HEADER] = organization
    with errors_translated(model), until(deadline):
        request = {
            "method": "POST",
            "url": _parsed(settings.base_url + path),
            "headers": headers,
            "json": body,
            "timeout": httpx2.Timeout(left, connect=min(left, CONNECT_SECONDS)),
        }
        response: httpx2.Response = yield lambda io: io.send(request)
    if response.is_success:
        return response
    said = yield from read(response, model, deadline)
    try:
        error = json.loads(said)["error"]
    except MALFORMED:
        error = said.decode(errors="replace")
    raise by_answer(error, response.status_code, response.headers, model)


def read(response: httpx2.Response, model: str, deadline: float) -> Steps[bytes]:
    """Read the whole of a body."""
    with errors_translated(model), until(deadline):
        body: bytes = yield lambda io: io.read(response)
    return body
