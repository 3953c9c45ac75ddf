"""Callers that ask as fast as they are answered, light enough that a small machine's CPU goes to what is measured.

Each keeps one HTTP/1.1 connection, sends a request that was built once, and parses an answer only to find its end: an
HTTP client library takes many times the CPU time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OK = b"HTTP/1.1 200 "
HEAD_ENDS = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"
STREAM_ENDED = b"data: [DONE]"
TIMEOUT_SECONDS = 120
RETRY_SECONDS = 0.1
SETTLED_ANSWERS = 20
"""After this many good answers in a row a gateway counts as ready."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a request goes, and what it is."""

    url: str
    path: str = "/v1/chat/completions"
    headers: Mapping[str, str]
    body: Mapping[str, object]

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), parts.port or 80

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))

    def request(self) -> bytes:
        """The whole request, as it is sent each time."""
        content = json.dumps(self.body).encode()
        headers = {
            "host": urlsplit(self.url).netloc,
            "content-type": "application/json",
            "content-length": len(content),
            **self.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + content


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one request."""

    ended: float
    """When, on the monotonic clock."""
    seconds: float
    failure: str
    """Why there is no good answer; empty if there is one."""


@dataclass(kw_only=True)
class Load:
    """What callers saw."""

    seconds: float
    """From the first request to the last answer."""
    own_cpu_seconds: float
    """The CPU time that the callers themselves took."""
    answers: list[Answer] = field(default_factory=list)

    @property
    def good(self) -> list[float]:
        """How long each good answer took, in seconds."""
        return [answer.seconds for answer in self.answers if not answer.failure]

    @property
    def failures(self) -> list[str]:
        return [answer.failure for answer in self.answers if answer.failure]

    @property
    def per_second(self) -> float:
        return len(self.good) / self.seconds


class Connection(asyncio.Protocol):
    """One connection, with one request on it at a time."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[bytes] | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if is_whole(self._received) and self._answered is not None and not self._answered.done():
            self._answered.set_result(bytes(self._received))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError("closed before the answer was whole"))

    async def ask(self, request: bytes) -> bytes:
        """Send a request and return the whole answer. Raises OSError when the connection is lost before its end."""
        assert self._transport is not None
        self._received.clear()
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def is_whole(answer: bytes | bytearray) -> bool:
    """Whether an answer is complete, by the length in its head or by its last chunk."""
    head_ends = answer.find(HEAD_ENDS)
    if head_ends < 0:
        return False
    head = bytes(answer[:head_ends]).lower()
    _, named, rest = head.partition(b"\r\ncontent-length:")
    if named:
        return len(answer) - head_ends - len(HEAD_ENDS) >= int(rest.split(b"\r\n", 1)[0])
    return answer.endswith(LAST_CHUNK)


def failure_of(answer: bytes, *, streamed: bool) -> str:
    """Why a complete answer is not a good one; empty if it is."""
    if not answer.startswith(OK):
        return answer[-200:].decode(errors="replace")
    return "the stream has no end" if streamed and STREAM_ENDED not in answer else ""


class Caller:
    """Asks one target over and over."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._request = target.request()
        self._connection = Connection()

    async def ask(self) -> Answer:
        """Ask once; the time includes connecting, if needed."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if not self._connection.is_open:
                    loop = asyncio.get_running_loop()
                    _, self._connection = await loop.create_connection(Connection, *self._target.address)
                answer = await self._connection.ask(self._request)
            failure = failure_of(answer, streamed=self._target.streamed)
        except (OSError, TimeoutError) as error:
            failure = repr(error)
            self.close()
        ended = time.monotonic()
        return Answer(ended, ended - started, failure)

    def close(self) -> None:
        self._connection.close()


async def load(targets: Sequence[Target], concurrent: int, seconds: float) -> Load:
    """Let callers ask for some time, each again as soon as it is answered; they take the targets in turn.

    Each asks at least once. Answers that are under way at the end are awaited and counted: to ignore them would
    ignore the slow ones.
    """
    callers = [Caller(target) for target, _ in zip(itertools.cycle(targets), range(concurrent), strict=False)]
    answers: list[Answer] = []
    started, cpu = time.monotonic(), time.process_time()

    async def ask_on(caller: Caller) -> None:
        answers.append(await caller.ask())
        while time.monotonic() < started + seconds:
            answers.append(await caller.ask())

    await asyncio.gather(*map(ask_on, callers))
    seen = Load(seconds=time.monotonic() - started, own_cpu_seconds=time.process_time() - cpu, answers=answers)
    for caller in callers:
        caller.close()
    return seen


async def settle(target: Target) -> None:
    """Wait until a gateway answers several times in a row. Raises TimeoutError if it does not."""
    caller = Caller(target)
    in_a_row, deadline = 0, time.monotonic() + TIMEOUT_SECONDS
    while in_a_row < SETTLED_ANSWERS:
        answer = await caller.ask()
        in_a_row = 0 if answer.failure else in_a_row + 1
        if answer.failure:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{target.url} does not answer: {answer.failure}")
            await asyncio.sleep(RETRY_SECONDS)
    caller.close()


async def side_by_side(targets: Mapping[str, Target], requests: int) -> dict[str, list[float]]:
    """Ask the targets in turn, one request each, again and again; return how long each answer took, in seconds.

    Raises RuntimeError for an answer that is not good.
    """
    callers = {name: Caller(target) for name, target in targets.items()}
    took: dict[str, list[float]] = {name: [] for name in targets}
    for number in range(requests + 1):
        for name, caller in callers.items():
            answer = await caller.ask()
            if answer.failure:
                raise RuntimeError(f"{name}: {answer.failure}")
            if number:  # the first one connects
                took[name].append(answer.seconds)
    for caller in callers.values():
        caller.close()
    return took
