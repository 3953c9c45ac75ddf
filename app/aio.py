"""The same as `app`, for asyncio: the same names, to be awaited, with the same results and errors.

Connections belong to the running event loop. `await close()` at its end, as in an application's lifespan.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import httpx2
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk

from app import organizations
from app._client import CONNECT_ATTEMPTS, LIMITS, TIMEOUT
from app._errors import LLMError
from app._requests import (
    CHAT_COMPLETIONS,
    EMBEDDINGS,
    Answer,
    Attempt,
    Plan,
    Received,
    checked,
    cleaned,
    embedding_results,
    errors_translated,
    plan,
    plan_for,
)
from app._settings import Settings
from app._tracing import span
from app._types import (
    DEFAULT_EMBEDDING_MODEL,
    ChatCompletionOptions,
    ChatCompletionResult,
    ChatMessage,
    EmbeddingResult,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType
    from typing import Self
    from uuid import UUID


__all__ = [
    "ChatCompletionStream",
    "chat_completion",
    "chat_completion_for_org",
    "close",
    "create_llm_client",
    "generate_embedding",
    "generate_embeddings",
    "stream_chat_completion",
    "stream_chat_completion_for_org",
]


class _Pool(httpx2.AsyncClient):
    """As app._client's pool."""

    async def aclose(self) -> None:
        """Leave the pool open."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()


_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()


def _pool() -> _Pool:
    loop = asyncio.get_running_loop()
    if loop not in _pools:
        for closed in [each for each in _pools if each.is_closed()]:
            del _pools[closed]
        transport = httpx2.AsyncHTTPTransport(retries=CONNECT_ATTEMPTS, limits=LIMITS)
        _pools[loop] = _Pool(transport=transport, timeout=TIMEOUT, follow_redirects=True)
    return _pools[loop]


def create_llm_client() -> AsyncOpenAI:
    """As `app.create_llm_client`; needs a running event loop."""
    settings = Settings.load()
    return AsyncOpenAI(
        base_url=settings.base_url, api_key=settings.required_api_key(), http_client=_pool(), max_retries=0
    )


async def chat_completion(
    messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionResult:
    """As `app.chat_completion`."""
    return await _run(plan(messages, options), _outcome)


async def stream_chat_completion(
    messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionStream:
    """As `app.stream_chat_completion`."""
    return await _run(plan(messages, options), ChatCompletionStream.open)


async def chat_completion_for_org(
    organization_id: UUID | str, messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionResult:
    """As `app.chat_completion_for_org`."""
    return await _for_org(organization_id, messages, options, _outcome)


async def stream_chat_completion_for_org(
    organization_id: UUID | str, messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionStream:
    """As `app.stream_chat_completion_for_org`."""
    return await _for_org(organization_id, messages, options, ChatCompletionStream.open)


async def generate_embedding(text: str, model: str = DEFAULT_EMBEDDING_MODEL) -> EmbeddingResult:
    """As `app.generate_embedding`."""
    return (await generate_embeddings([text], model))[0]


async def generate_embeddings(texts: Sequence[str], model: str = DEFAULT_EMBEDDING_MODEL) -> list[EmbeddingResult]:
    """As `app.generate_embeddings`."""
    lines = cleaned(texts)
    client = create_llm_client()
    with span("embeddings", model), errors_translated(model, str(client.base_url)):
        body = {"model": model, "input": lines, "encoding_format": "float"}
        answer = await client.post(EMBEDDINGS, cast_to=httpx2.Response, body=body)
        return embedding_results(answer, model=model, count=len(lines))


class ChatCompletionStream:
    """As `app.ChatCompletionStream`, iterated with `async for`."""

    def __init__(self, chunks: AsyncStream[ChatCompletionChunk], received: Received, url: str) -> None:
        self._chunks = chunks
        self._received = received
        self._url = url
        self._first: str | None = None
        self._result: ChatCompletionResult | None = None

    @classmethod
    async def open(cls, attempt: Attempt) -> Self:
        """Ask, and wait for the first content."""
        client = create_llm_client()
        url = str(client.base_url)
        with errors_translated(attempt.model, url):
            chunks = await client.post(
                CHAT_COMPLETIONS,
                cast_to=ChatCompletionChunk,
                body=attempt.body(stream=True),
                options={"timeout": attempt.timeout()},
                stream=True,
                stream_cls=AsyncStream[ChatCompletionChunk],
            )
            stream = cls(chunks, Received(attempt, chunks.response.headers), url)
        stream._first = await stream._advance()
        return stream

    async def _advance(self) -> str:
        try:
            with errors_translated(self._received.attempt.model, self._url):
                async for chunk in self._chunks:
                    if text := self._received.add(chunk):
                        return text
        except LLMError as error:
            await self.close()
            self._received.fail(error)
        self._result = self._received.result()
        return ""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        text, self._first = self._first, None
        if text is None:
            text = await self._advance()
        if not text:
            raise StopAsyncIteration
        return text

    @property
    def result(self) -> ChatCompletionResult:
        """The whole answer. Raises RuntimeError before the stream has been read to its end."""
        if self._result is None:
            raise RuntimeError("read the stream to its end first")
        return self._result

    async def close(self) -> None:
        """End the request."""
        await self._chunks.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def close() -> None:
    """Close this module's connections of the running event loop; the next call opens new ones."""
    pool = _pools.pop(asyncio.get_running_loop(), None)
    if pool is not None:
        await httpx2.AsyncClient.aclose(pool)
    await organizations.close_async()


async def _outcome(attempt: Attempt) -> ChatCompletionResult:
    if attempt.options.stream:
        async with await ChatCompletionStream.open(attempt) as stream:
            async for _ in stream:
                pass
            return stream.result
    client = create_llm_client()
    with errors_translated(attempt.model, str(client.base_url)):
        answer = await client.post(
            CHAT_COMPLETIONS, cast_to=httpx2.Response, body=attempt.body(), options={"timeout": attempt.timeout()}
        )
        return attempt.result(answer)


async def _for_org(
    organization_id: UUID | str,
    messages: Sequence[ChatMessage],
    options: ChatCompletionOptions | None,
    ask: Callable[[Attempt], Awaitable[Answer]],
) -> Answer:
    started = time.monotonic()
    checked(messages)
    organization = await organizations.get_async(organization_id)
    return await _run(plan_for(organization, messages, options, started), ask)


async def _run(plan: Plan[Answer], ask: Callable[[Attempt], Awaitable[Answer]]) -> Answer:
    try:
        attempt = next(plan)
        while True:
            try:
                with span("chat", attempt.model):
                    answer = await ask(attempt)
            except LLMError as error:
                attempt = plan.throw(error)
            else:
                attempt = plan.send(answer)
    except StopIteration as done:
        return cast("Answer", done.value)
