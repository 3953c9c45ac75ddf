"""What has to be waited for on the way to an answer.

Both faces run the same steps: generators that yield calls of the methods of an `Io`, and are sent what came of each.
So each rule is written once, in app/_requests.py, and the faces differ only in how they wait.
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
"""What has to be waited for, one after another, and what comes of it all."""


class Io:
    """What steps wait for: a face does each by its own means, at once or to be awaited."""

    def organization(self, organization_id: UUID | str) -> Any:  # noqa: ANN401 -- an Organization, or one to be awaited
        raise NotImplementedError

    def send(self, request: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Send a request; the answer's head is there then."""
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
"""A URL, which takes httpx2 longer to parse than a request to build; of one gateway there are two."""


def opened(
    path: str, body: Mapping[str, Any], deadline: float, *, organization: str | None = None
) -> Steps[httpx2.Response]:
    """Ask, and return the answer, of which the head is there. Raises its LLMError if it is none.

    `organization` is on whose behalf: the gateway counts by it, and tells no provider.
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
