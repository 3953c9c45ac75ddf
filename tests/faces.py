"""The module's sync and async faces behind one set of calls, so that one test checks both."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import app
from app import aio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


Answer = TypeVar("Answer")


class Face(Protocol):
    """What both faces offer."""

    def chat(self, *arguments: Any) -> app.ChatCompletionResult: ...

    def chat_for_org(self, *arguments: Any) -> app.ChatCompletionResult: ...

    def stream(self, *arguments: Any) -> tuple[list[str], app.ChatCompletionResult]: ...

    def stream_for_org(self, *arguments: Any) -> tuple[list[str], app.ChatCompletionResult]: ...

    def embed(self, *arguments: Any, **options: Any) -> app.EmbeddingResult: ...

    def embed_many(self, *arguments: Any, **options: Any) -> list[app.EmbeddingResult]: ...


class Sync:
    """`app`."""

    chat = staticmethod(app.chat_completion)
    chat_for_org = staticmethod(app.chat_completion_for_org)
    embed = staticmethod(app.generate_embedding)
    embed_many = staticmethod(app.generate_embeddings)

    def stream(self, *arguments: Any) -> tuple[list[str], app.ChatCompletionResult]:
        return self._read(app.stream_chat_completion(*arguments))

    def stream_for_org(self, *arguments: Any) -> tuple[list[str], app.ChatCompletionResult]:
        return self._read(app.stream_chat_completion_for_org(*arguments))

    def _read(self, stream: app.ChatCompletionStream) -> tuple[list[str], app.ChatCompletionResult]:
        with stream:
            return list(stream), stream.result


class Aio:
    """`app.aio`, with each call in its own event loop, which is left clean."""

    def _run(self, call: Callable[..., Awaitable[Answer]], arguments: Sequence[Any]) -> Answer:
        async def main() -> Answer:
            try:
                return await call(*arguments)
            finally:
                await aio.close()

        return asyncio.run(main())

    def chat(self, *arguments: Any) -> app.ChatCompletionResult:
        return self._run(aio.chat_completion, arguments)

    def chat_for_org(self, *arguments: Any) -> app.ChatCompletionResult:
        return self._run(aio.chat_completion_for_org, arguments)

    def embed(self, *arguments: Any, **options: Any) -> app.EmbeddingResult:
        return self._run(partial(aio.generate_embedding, **options), arguments)

    def embed_many(self, *arguments: Any, **options: Any) -> list[app.EmbeddingResult]:
        return self._run(partial(aio.generate_embeddings, **options), arguments)

    def stream(self, *arguments: Any) -> tuple[list[str], app.ChatCompletionResult]:
        return self._run(self._read, (aio.stream_chat_completion, arguments))

    def stream_for_org(self, *arguments: Any) -> tuple[list[str], app.ChatCompletionResult]:
        return self._run(self._read, (aio.stream_chat_completion_for_org, arguments))

    async def _read(
        self, call: Callable[..., Awaitable[aio.ChatCompletionStream]], arguments: Sequence[Any]
    ) -> tuple[list[str], app.ChatCompletionResult]:
        async with await call(*arguments) as stream:
            return [text async for text in stream], stream.result


FACES: tuple[Face, ...] = (Sync(), Aio())
