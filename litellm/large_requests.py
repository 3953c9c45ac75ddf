"""Room for large requests: a replica handles as many at once as fit in its memory; the others wait unread.

LiteLLM keeps several copies of a body, and works with it in the one thread that every other request needs. Waiting
requests are not read: what has not been sent yet stays with the client, and small requests pass.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from answers import OVERLOADED, TOO_SLOW, Refusal, current

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

MEGABYTE = 1_000_000
LARGE = MEGABYTE
"""Bytes: smaller bodies need no room."""
LONG = 100_000
"""Characters of a text that is not written out in debug lines."""
DEFAULT_MB = 32
WAIT_SECONDS = 60
"""Less than clients and load balancers wait for an answer, so that they are told."""
ARRIVAL_SECONDS = 120
"""The time for the rest of a large body, because others wait for its room."""


class Room:
    """Room for this many bytes of large bodies; first come, first served."""

    def __init__(self, size: int, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self.size = self.free = size
        self.wait_seconds = wait_seconds
        self.line, self.change = asyncio.Lock(), asyncio.Condition()

    @asynccontextmanager
    async def taken(self, size: int | None) -> AsyncIterator[None]:
        """Room for a body of `size` bytes; one that is larger than the room, or unknown, has it alone.

        Raises Refusal where there is none for too long.
        """
        size = min(size or self.size, self.size)
        try:
            async with asyncio.timeout(self.wait_seconds), self.line, self.change:
                await self.change.wait_for(lambda: self.free >= size)
                self.free -= size
        except TimeoutError:
            message = "The gateway has as many large requests as it can take. Try again."
            raise Refusal(message, code="overloaded", status=OVERLOADED) from None
        try:
            yield
        finally:
            self.free += size
            async with self.change:
                self.change.notify_all()


class Text(str):  # noqa: SLOT000 -- what it is represented by is kept
    """A long text of a request, which LiteLLM's debug lines do not write out.

    LiteLLM 1.55.0 makes them of the whole request, ten times, whether or not they are on: most of its work on a large
    one. Anything made from the representation of a text, such as a cache key, still distinguishes texts.
    """

    @functools.cached_property
    def _represented(self) -> str:
        digest = hashlib.sha256(self.encode("utf-8", "surrogatepass")).hexdigest()
        return f"<{len(self)} characters, SHA-256 {digest}>"

    def __repr__(self) -> str:
        return self._represented

    def __deepcopy__(self, _: object) -> Text:
        return self


def short_in_debug_lines(value: Any) -> Any:
    """A large body's values, of which the long texts are each a `Text`. Changes lists and objects in place."""
    if isinstance(value, str):
        return Text(value) if len(value) > LONG else value
    if isinstance(value, dict):
        for key, inner in value.items():
            value[key] = short_in_debug_lines(inner)
    elif isinstance(value, list) and value and not isinstance(value[0], int):  # millions of tokens are left alone
        value[:] = map(short_in_debug_lines, value)
    return value


def sparing(loads: Callable[[bytes | str], Any]) -> Callable[[bytes | str], Any]:
    """A reader of JSON whose large bodies cost LiteLLM's debug lines nothing."""

    @functools.wraps(loads)
    def read(body: bytes | str) -> Any:
        value = loads(body)
        return short_in_debug_lines(value) if len(body) > LARGE else value

    return read


def of_this_replica() -> Room:
    """The room that the stack config leaves for large bodies."""
    return Room(int(os.environ.get("LLM_GATEWAY_LARGE_BODIES_MB", DEFAULT_MB)) * MEGABYTE)


async def read(
    receive: Callable[[], Awaitable[dict[str, Any]]],
    headers: Mapping[bytes, bytes],
    take: Callable[[int | None], Awaitable[None]],
) -> bytes | None:
    """The whole body; None if the client left before its end. The edge limits its size.

    `take` is awaited with its size before a large one is read, or with None where one of unknown length grows large.
    Raises Refusal for one that does not arrive in time.
    """
    announced = headers.get(b"content-length", b"")
    length = int(announced) if announced.isdigit() else None
    try:
        async with asyncio.timeout(None) as limit:
            if length is not None and length > LARGE:
                await take(length)
                limit.reschedule(asyncio.get_running_loop().time() + ARRIVAL_SECONDS)
            parts, size = [], 0
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if length is None and size > LARGE and limit.when() is None:
                    await take(None)
                    limit.reschedule(asyncio.get_running_loop().time() + ARRIVAL_SECONDS)
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        late = "The request did not arrive in time."
        raise Refusal(late, code="request_timeout", status=TOO_SLOW) from None


def spare_the_count() -> None:
    """Stop LiteLLM 1.55.0 from counting the tokens of a large prompt, twice, which takes seconds.

    It counts to send the same prompt to the same deployment again, where the provider may have kept it.
    """
    router = importlib.import_module("litellm.router")
    counted = getattr(router, "is_prompt_caching_valid_prompt", None)
    if counted is None:
        return

    @functools.wraps(counted)
    def worth_keeping(*arguments: Any, **options: Any) -> bool:
        exchange = current.get()
        return not (exchange is not None and exchange.large) and bool(counted(*arguments, **options))

    router.is_prompt_caching_valid_prompt = worth_keeping
