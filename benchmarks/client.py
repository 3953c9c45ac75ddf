"""What the app module adds to a request, against a stub that answers at once: the client's own time."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import openai

import app
from app import _http, aio, migrations, organizations
from benchmarks.containers import database_server, new_database
from benchmarks.measure import Readings, alternating, percentile
from benchmarks.stub import stub
from infra.migration import FOLDER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from uuid import UUID

    import docker
    from openai.types.chat import ChatCompletionMessageParam

    from benchmarks.measure import Comparison
    from toolchain.progress import Step

    Calls = dict[tuple[str, str], Callable[[], object]]
    """The calls, by quantity and contender; a call that measures a first token returns its seconds."""
    AsyncCalls = dict[tuple[str, str], Callable[[], Awaitable[object]]]

CONCURRENT = (1, 16, 256)
LEAST_CALLS = 32
"""How many calls of each kind a round makes, plus one for each concurrent caller."""
PROGRAM_STARTS = 3

KEY = "sk-of-a-stub"
CHAT, EMBEDDING, FIRST_TOKEN = "chat completion", "embedding", "first token of a stream"
STREAM_CPU = "CPU time of a stream"
"""The CPU time of a whole stream, in this process: a first token waits for the connection pool more than for the
client."""
BARE, ONE, EACH = "httpx2, one pool", "OpenAI, one client", "OpenAI, a client a call"
FOR_ORG = "chat_completion_for_org"
START = "start of a program"
SENT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
MESSAGES = [app.ChatMessage("user", "hello")]
HEADERS = {"authorization": f"Bearer {KEY}"}
CHAT_BODY: dict[str, object] = {"model": "m", "messages": SENT}
STREAM_BODY = {**CHAT_BODY, "stream": True}
EMBEDDING_BODY: dict[str, object] = {"model": "m", "input": "hello", "encoding_format": "float"}
CHAT_PATH, EMBEDDING_PATH = "/v1/chat/completions", "/v1/embeddings"


def first_token(begin: Callable[[], AbstractContextManager[Iterable[object]]]) -> Callable[[], float]:
    """A call that reads a stream to its end and returns how long its first content took, in seconds."""

    def call() -> float:
        started = time.perf_counter()
        with begin() as stream:
            chunks = iter(stream)
            next(chunks)
            took = time.perf_counter() - started
            for _ in chunks:
                pass
        return took

    return call


def first_token_async(
    begin: Callable[[], AbstractAsyncContextManager[AsyncIterator[object]]],
) -> Callable[[], Awaitable[float]]:
    """As `first_token`."""

    async def call() -> float:
        started = time.perf_counter()
        await asyncio.sleep(0)  # all at once: this includes waiting for what the others do before their first wait
        async with begin() as chunks:
            await anext(chunks)
            took = time.perf_counter() - started
            async for _ in chunks:
                pass
        return took

    return call


@contextmanager
def sync_calls(url: str, organization: UUID) -> Iterator[Calls]:
    """Every kind of call, for threads."""

    def new() -> object:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            return client.chat.completions.create(model="m", messages=SENT)

    @contextmanager
    def bare_stream() -> Iterator[Iterator[object]]:
        with bare.stream("POST", CHAT_PATH, json=STREAM_BODY) as answer:
            yield answer.iter_lines()

    with (
        httpx2.Client(base_url=url, headers=HEADERS, limits=_http.LIMITS) as bare,
        openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as one,
    ):
        yield {
            (CHAT, BARE): lambda: bare.post(CHAT_PATH, json=CHAT_BODY).raise_for_status().json(),
            (CHAT, ONE): lambda: one.chat.completions.create(model="m", messages=SENT),
            (CHAT, EACH): new,
            (CHAT, "chat_completion"): lambda: app.chat_completion(MESSAGES),
            (CHAT, FOR_ORG): lambda: app.chat_completion_for_org(organization, MESSAGES),
            (EMBEDDING, BARE): lambda: bare.post(EMBEDDING_PATH, json=EMBEDDING_BODY).raise_for_status().json(),
            (EMBEDDING, ONE): lambda: one.embeddings.create(model="m", input="hello", encoding_format="float"),
            (EMBEDDING, "generate_embedding"): lambda: app.generate_embedding("hello"),
            (FIRST_TOKEN, BARE): first_token(bare_stream),
            (FIRST_TOKEN, ONE): first_token(
                lambda: one.chat.completions.create(model="m", messages=SENT, stream=True)
            ),
            (FIRST_TOKEN, "stream_chat_completion"): first_token(lambda: app.stream_chat_completion(MESSAGES)),
        }


@asynccontextmanager
async def async_calls(url: str, organization: UUID) -> AsyncIterator[AsyncCalls]:
    """The same, for tasks of an event loop."""

    async def post(path: str, body: dict[str, object]) -> object:
        return (await bare.post(path, json=body)).raise_for_status().json()

    async def new() -> object:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            return await client.chat.completions.create(model="m", messages=SENT)

    @asynccontextmanager
    async def bare_stream() -> AsyncIterator[AsyncIterator[object]]:
        async with bare.stream("POST", CHAT_PATH, json=STREAM_BODY) as answer:
            yield answer.aiter_lines()

    @asynccontextmanager
    async def one_stream() -> AsyncIterator[AsyncIterator[object]]:
        async with await one.chat.completions.create(model="m", messages=SENT, stream=True) as chunks:
            yield aiter(chunks)

    @asynccontextmanager
    async def our_stream() -> AsyncIterator[AsyncIterator[object]]:
        async with await aio.stream_chat_completion(MESSAGES) as texts:
            yield texts

    async with (
        httpx2.AsyncClient(base_url=url, headers=HEADERS, limits=_http.LIMITS) as bare,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as one,
    ):
        yield {
            (CHAT, BARE): lambda: post(CHAT_PATH, CHAT_BODY),
            (CHAT, ONE): lambda: one.chat.completions.create(model="m", messages=SENT),
            (CHAT, EACH): new,
            (CHAT, "chat_completion"): lambda: aio.chat_completion(MESSAGES),
            (CHAT, FOR_ORG): lambda: aio.chat_completion_for_org(organization, MESSAGES),
            (EMBEDDING, BARE): lambda: post(EMBEDDING_PATH, EMBEDDING_BODY),
            (EMBEDDING, ONE): lambda: one.embeddings.create(model="m", input="hello", encoding_format="float"),
            (EMBEDDING, "generate_embedding"): lambda: aio.generate_embedding("hello"),
            (FIRST_TOKEN, BARE): first_token_async(bare_stream),
            (FIRST_TOKEN, ONE): first_token_async(one_stream),
            (FIRST_TOKEN, "stream_chat_completion"): first_token_async(our_stream),
        }
        await aio.close()


def now() -> tuple[float, float]:
    """The time, and the CPU time that this process has used; in seconds."""
    return time.perf_counter(), time.process_time()


def add(  # noqa: PLR0913 -- all by name
    readings: Readings,
    mode: str,
    kind: tuple[str, str],
    concurrent: int,
    *,
    results: list[object],
    started: tuple[float, float],
) -> None:
    """Record a round's result: the elapsed time per call, or for streams the median time to the first token."""
    quantity, contender = kind
    passed, used = (1000 * (after - before) for after, before in zip(now(), started, strict=True))
    value = passed / len(results)
    if quantity == FIRST_TOKEN:
        value = 1000 * percentile((took for took in results if isinstance(took, float)), 50)
        readings.add(f"{STREAM_CPU}, {mode}", contender, concurrent, used / len(results))
    readings.add(f"{quantity}, {mode}", contender, concurrent, value)


def run_sync(calls: Calls, concurrent: int, readings: Readings, kind: tuple[str, str]) -> None:
    """One round of one kind, by threads."""
    with ThreadPoolExecutor(concurrent) as threads:
        for measured in (False, True):  # the first time connects
            started = now()
            results = list(threads.map(lambda _: calls[kind](), range(max(LEAST_CALLS, concurrent))))
            if measured:
                add(readings, "sync", kind, concurrent, results=results, started=started)


async def run_async(calls: AsyncCalls, concurrent: int, readings: Readings, kind: tuple[str, str]) -> None:
    """One round of one kind, by tasks."""
    share = max(LEAST_CALLS, concurrent) // concurrent

    async def one_after_another() -> list[object]:
        return [await calls[kind]() for _ in range(share)]

    for measured in (False, True):
        started = now()
        shares = await asyncio.gather(*(one_after_another() for _ in range(concurrent)))
        results = list(itertools.chain.from_iterable(shares))
        if measured:
            add(readings, "async", kind, concurrent, results=results, started=started)


def run_starts(readings: Readings) -> None:
    """A round of programs that start and end, compared with one that does nothing."""
    llmctl = str(Path(sys.executable).with_name("llmctl"))
    for name, command in {
        "python, nothing": [sys.executable, "-c", "pass"],
        "import app": [sys.executable, "-c", "import app"],
        "llmctl --help": [llmctl, "--help"],
    }.items():
        started = time.perf_counter()
        for _ in range(PROGRAM_STARTS):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        readings.add(START, name, "once", 1000 * (time.perf_counter() - started) / PROGRAM_STARTS)


@contextmanager
def configured(url: str, database_url: str) -> Iterator[UUID]:
    """Make the app module use a stub and a new database; return an organization in it."""
    settings = {"LITELLM_URL": url, "LITELLM_API_KEY": KEY, "DATABASE_URL": database_url}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        migrations.up(database_url, FOLDER)
        yield organizations.create("benchmark").id
    finally:
        app.close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run(engine: docker.DockerClient, rounds: int, step: Step) -> list[Comparison]:
    """Measure every kind of call, sync and async."""
    readings = Readings()
    with (
        stub() as url,
        database_server(engine) as server,
        configured(url, new_database(server)) as organization,
        sync_calls(url, organization) as calls,
        asyncio.Runner() as runner,
    ):
        clients = AsyncExitStack()
        awaited = runner.run(clients.enter_async_context(async_calls(url, organization)))
        kinds = [(mode, at_once, kind) for mode in ("sync", "async") for at_once in CONCURRENT for kind in calls]
        for mode, at_once, kind in alternating(rounds, kinds):
            step.note(f"{kind[0]}, {mode}, {kind[1]}, {at_once} at once")
            if mode == "sync":
                run_sync(calls, at_once, readings, kind)
            else:
                runner.run(run_async(awaited, at_once, readings, kind))
        runner.run(clients.aclose())
        for _ in range(rounds):
            run_starts(readings)
    return [
        *(
            readings.comparison(
                f"{quantity}, {mode}",
                unit="ms a call",
                points="calls at once",
                baseline=BARE,
                chart="lines" if quantity == CHAT else None,
            )
            for quantity, mode in (
                (q, m) for q in (CHAT, FIRST_TOKEN, STREAM_CPU, EMBEDDING) for m in ("sync", "async")
            )
        ),
        readings.comparison(START, unit="ms", points="", baseline="python, nothing"),
    ]
