"""The same as `app`, for asyncio: the same names as coroutines, with the same results and errors.

Connections belong to the running event loop and are closed with it; `await close()` closes them earlier, for example
in an application's lifespan. If a task is cancelled, its request at the gateway ends.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

from app import _http, organizations
from app._requests import Stream, ask_for_organization, ask_model, completion, embeddings, streamed
from app._settings import Settings
from app._steps import Answer, Io, Steps
from app._types import (
    DEFAULT_EMBEDDING_MODEL,
    ChatCompletionOptions,
    ChatCompletionResult,
    ChatMessage,
    EmbeddingResult,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
    from typing import Self
    from uuid import UUID

    import httpx2
    from openai import AsyncOpenAI


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


def create_llm_client() -> AsyncOpenAI:
    """As `app.create_llm_client`; needs a running event loop."""
    from openai import AsyncOpenAI  # noqa: PLC0415 -- as in app._client

    settings = Settings.load()
    return AsyncOpenAI(
        base_url=settings.base_url,
        api_key=settings.required_api_key(),
        http_client=_http.per_loop.get(),
        max_retries=0,
    )


async def chat_completion(
    messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionResult:
    """As `app.chat_completion`."""
    return await _run(ask_model(messages, options, completion))


async def stream_chat_completion(
    messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionStream:
    """As `app.stream_chat_completion`."""
    return await _run(ask_model(messages, options, partial(streamed, ChatCompletionStream)))


async def chat_completion_for_org(
    organization_id: UUID | str, messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionResult:
    """As `app.chat_completion_for_org`."""
    return await _run(ask_for_organization(organization_id, messages, options, completion))


async def stream_chat_completion_for_org(
    organization_id: UUID | str, messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionStream:
    """As `app.stream_chat_completion_for_org`."""
    return await _run(
        ask_for_organization(organization_id, messages, options, partial(streamed, ChatCompletionStream))
    )


async def generate_embedding(
    text: str, model: str = DEFAULT_EMBEDDING_MODEL, *, timeout: float | None = None
) -> EmbeddingResult:
    """As `app.generate_embedding`."""
    return (await generate_embeddings([text], model, timeout=timeout))[0]


async def generate_embeddings(
    texts: Sequence[str], model: str = DEFAULT_EMBEDDING_MODEL, *, timeout: float | None = None
) -> list[EmbeddingResult]:
    """As `app.generate_embeddings`."""
    return await _run(embeddings(texts, model, timeout))


class ChatCompletionStream(Stream):
    """As `app.ChatCompletionStream`, iterated with `async for`."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if text := self.at_hand() or await _run(self.more()):
            return text
        raise StopAsyncIteration

    async def close(self) -> None:
        """End the request."""
        await _run(self.closed())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def close() -> None:
    """Close this module's connections of the running event loop; the next call opens new ones."""
    await _http.per_loop.close()
    await organizations.close_async()


class _Io(Io):
    async def organization(self, organization_id: UUID | str) -> organizations.Organization:
        return await organizations.get_async(organization_id)

    async def send(self, request: Mapping[str, Any]) -> httpx2.Response:
        pool = _http.per_loop.get()
        return await pool.send(pool.build_request(**request), stream=True)

    async def read(self, response: httpx2.Response) -> bytes:
        return await response.aread()

    def piece(self, stream: Stream) -> Awaitable[bytes]:
        if stream.pieces is None:
            stream.pieces = stream.response.aiter_bytes()
        return anext(cast("AsyncIterator[bytes]", stream.pieces), b"")

    async def close(self, response: httpx2.Response) -> None:
        await response.aclose()


_io = _Io()


async def _run(steps: Steps[Answer]) -> Answer:
    """As app._client's."""
    try:
        step = next(steps)
        while True:
            try:
                came = await step(_io)
            except BaseException as error:  # noqa: BLE001 -- a cancellation too: the steps end the request
                step = steps.throw(error)
            else:
                step = steps.send(came)
    except StopIteration as done:
        return cast("Answer", done.value)
