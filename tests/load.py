"""A steady, mixed load on a gateway, with each request counted. Drills break things under it."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

REQUESTS_PER_SECOND = int(os.environ.get("RATE", "12"))
"""The rate in CI, where the load shares two cores with what it tests: `make drill RATE=25` when there is time."""
MOST_IN_FLIGHT = 64
"""On a machine that cannot keep up the rate, requests wait here and do not pile up in the gateway."""
TIMEOUT_SECONDS = 60
CONNECT_SECONDS = 5
"""A machine without power does not refuse connections: callers with another machine to ask give up after this
time."""
NOT_LOOKED_UP = "its key could not be looked up"
REPEATS, REPEAT_SECONDS = 2, 5
"""How often OpenAI's SDKs repeat a request, and when it is to be repeated (`Retry-After`)."""
STREAM_ENDED = "data: [DONE]"
MESSAGES = [{"role": "user", "content": "hello"}]
MIX = (
    ("chat", "/v1/chat/completions", {"model": "gpt-4o", "messages": MESSAGES}),
    ("stream", "/v1/chat/completions", {"model": "claude-3-5-sonnet", "messages": MESSAGES, "stream": True}),
    (
        "embedding",
        "/v1/embeddings",
        {"model": "text-embedding-3-small", "input": "hello", "encoding_format": "float"},
    ),
    ("chat", "/v1/chat/completions", {"model": "claude-3-5-sonnet", "messages": MESSAGES}),
)


OF_A_PROVIDER = re.compile(r"litellm\..*(OpenAI|Anthropic)Exception")
"""How LiteLLM says that a provider failed."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a fault may cost callers at most."""

    in_flight_may_fail: bool = False
    """Whether requests that were under way may fail, because the machine with them is lost."""
    streams_may_break: bool = False
    """Whether a stream that had begun may break off: nobody can repeat it."""
    provider_may_fail: bool = False
    """Whether the gateway may answer that a provider failed, because the change also affects the provider."""
    gap_seconds: float = 0.0
    """How long requests may fail."""

    def __str__(self) -> str:
        if self.gap_seconds:
            return f"back in {self.gap_seconds:.0f} s"
        if self.in_flight_may_fail:
            return "what was in flight"
        if self.provider_may_fail:
            return "the provider's failures"
        return "streams may break" if self.streams_may_break else "nothing fails"


NOTHING_FAILS = Bound()
STREAMS_MAY_BREAK = Bound(streams_may_break=True)
IN_FLIGHT_MAY_FAIL = Bound(in_flight_may_fail=True, streams_may_break=True)


@dataclass
class Report:
    """What became of the requests of a load."""

    sent: int = 0
    failures: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    """Streams that broke off after their first byte."""
    in_flight: list[str] = field(default_factory=list)
    """Requests that failed and were under way when something was broken."""
    beside: list[str] = field(default_factory=list)
    """Why each request beside the load failed; empty for one that succeeded."""
    successes: list[float] = field(default_factory=list)
    """When each request that succeeded had its answer."""
    broken: float = 0.0
    """When something was broken."""
    last_failure: float = 0.0
    repeated: int = 0
    """Requests with another key that were sent again, as SDKs do, because a replica could not look the key up."""

    @property
    def longest_gap(self) -> float:
        """The longest time without an answer, in seconds."""
        ended = sorted(self.successes)
        return max((after - before for before, after in itertools.pairwise(ended)), default=0.0)

    @property
    def recovery(self) -> float:
        """Seconds from the fault to the last request that failed because of it."""
        return max(0.0, self.last_failure - self.broken) if self.broken else 0.0

    def beyond(self, bound: Bound) -> list[str]:
        """What callers noticed beyond the bound."""
        if bound.gap_seconds:
            seconds = max(self.longest_gap, self.recovery)
            return [f"requests failed for {seconds:.1f} s"] if seconds > bound.gap_seconds else []
        allowed = [
            *([] if bound.in_flight_may_fail else self.in_flight),
            *([] if bound.streams_may_break else self.cut),
        ]
        failures = [it for it in self.failures if not (bound.provider_may_fail and OF_A_PROVIDER.search(it))]
        return [*failures, *allowed]


class Load:
    """Requests at a steady rate, as far as the machine allows: chat completions, streams, embeddings in turn."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        other_keys: Sequence[str] = (),
        rate: float = REQUESTS_PER_SECOND,
        transport: Callable[[], httpx2.AsyncBaseTransport] | None = None,
    ) -> None:
        """`key` may be changed while the load runs, like a client's rotated key.

        `other_keys` take turns with it, each with every kind of request. `transport` creates the transport, instead
        of HTTP to the URL's own address.
        """
        self._transport = transport
        self.url = url
        self.key = key
        self._other_keys = other_keys
        self.report = Report()
        self.rate = rate
        self._also: SimpleQueue[tuple[str, dict[str, object]]] = SimpleQueue()
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Send requests while the block runs, from a second's worth of answers before it on."""
        thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        thread.start()
        try:
            self.await_successes(round(self.rate))
            yield self
        finally:
            self._ended.set()
            thread.join()

    def await_successes(self, count: int) -> None:
        """Wait for that many more answers. Raises TimeoutError when they do not come."""
        wanted = len(self.report.successes) + count
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(self.report.successes) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the gateway does not answer: {self.report.failures[-3:]}")
            time.sleep(1 / self.rate)

    def send_also(self, path: str, body: dict[str, object]) -> None:
        """Send a request beside the load."""
        self._also.put((path, body))

    async def _run(self) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
        transport = self._transport() if self._transport else None
        timeout = httpx2.Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS)
        async with httpx2.AsyncClient(
            base_url=self.url, timeout=timeout, limits=limits, transport=transport, trust_env=False
        ) as client:
            next_at = time.monotonic()
            room = asyncio.Semaphore(MOST_IN_FLIGHT)
            async with asyncio.TaskGroup() as group:
                for number in itertools.count():
                    await room.acquire()
                    if self._ended.is_set():
                        break
                    turn, place = divmod(number, len(MIX))
                    keys = (self.key, *self._other_keys)
                    task = group.create_task(self._one(client, keys[turn % len(keys)], *MIX[place]))
                    task.add_done_callback(lambda _: room.release())
                    while not self._also.empty():
                        group.create_task(self._aside(client, *self._also.get()))
                    next_at = max(next_at + 1 / self.rate, time.monotonic())
                    await asyncio.sleep(next_at - time.monotonic())

    async def _one(self, client: httpx2.AsyncClient, key: str, kind: str, path: str, body: dict[str, object]) -> None:
        self.report.sent += 1
        started = time.monotonic()
        begun, failure = await self._ask(client, key, path, body)
        for _ in range(REPEATS):
            if key == self.key or not failure.startswith(NOT_LOOKED_UP):
                break
            self.report.repeated += 1
            await asyncio.sleep(REPEAT_SECONDS)
            begun, failure = await self._ask(client, key, path, body)
        ended = time.monotonic()
        if not failure:
            self.report.successes.append(ended)
            return
        self.report.last_failure = ended
        if begun and kind == "stream":
            where = self.report.cut
        else:
            where = self.report.in_flight if started < self.report.broken else self.report.failures
        whose = "" if key == self.key else " of another key"
        where.append(f"{kind}{whose} after {ended - started:.2f} s: {failure}")

    async def _aside(self, client: httpx2.AsyncClient, path: str, body: dict[str, object]) -> None:
        _, failure = await self._ask(client, self.key, path, body)
        self.report.beside.append(failure)

    @staticmethod
    async def _ask(client: httpx2.AsyncClient, key: str, path: str, body: dict[str, object]) -> tuple[bool, str]:
        """Send a request; return whether a good answer began, and why it is not complete (empty if it is)."""
        begun = False
        try:
            async with client.stream("POST", path, json=body, headers={"authorization": f"Bearer {key}"}) as answer:
                begun = answer.status_code == httpx2.codes.OK
                text = (await answer.aread()).decode()
        except httpx2.HTTPError as error:
            return begun, repr(error)
        whole = begun and (STREAM_ENDED in text or not body.get("stream"))
        if whole:
            return begun, ""
        unknown = answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE and "database_unavailable" in text
        return begun, f"{NOT_LOOKED_UP if unknown else f'status {answer.status_code}'}: {text}"
