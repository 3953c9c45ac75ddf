"""The sync face: each call waits in its caller's thread."""

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
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self
    from uuid import UUID

    import httpx2
    from openai import OpenAI


def create_llm_client() -> OpenAI:
    """Return a new OpenAI client of the gateway; this is cheap, because all clients share one connection pool.

    Closing it leaves the pool open. It repeats no request that reached the gateway. Raises NotConfiguredError.
    """
    from openai import OpenAI  # noqa: PLC0415 -- takes half a second, and nothing else here needs it

    settings = Settings.load()
    return OpenAI(
        base_url=settings.base_url, api_key=settings.required_api_key(), http_client=_http.shared.get(), max_retries=0
    )


def chat_completion(
    messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionResult:
    """Ask a model, `gpt-4o` unless the options name one. Raises LLMError, and ValueError for bad arguments."""
    return _run(ask_model(messages, options, completion))


def stream_chat_completion(
    messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionStream:
    """Ask a model and return its answer as it comes, once the first of it is there.

    Raises as `chat_completion` does; iterating raises StreamInterruptedError.
    """
    return _run(ask_model(messages, options, partial(streamed, ChatCompletionStream)))


def chat_completion_for_org(
    organization_id: UUID | str, messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionResult:
    """Ask the organization's model, unless the options name one; its fallback model, once, where that may help.

    The rule is in docs/decisions/0005-when-to-fall-back.md. One deadline covers the organization's read from the
    database and both. Raises LLMError: FallbackFailedError when both failed, OrganizationNotFoundError,
    DatabaseUnavailableError, and those of `chat_completion`.
    """
    return _run(ask_for_organization(organization_id, messages, options, completion))


def stream_chat_completion_for_org(
    organization_id: UUID | str, messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionStream:
    """As `chat_completion_for_org`, with the answer as it comes. It falls back before the first content only."""
    return _run(ask_for_organization(organization_id, messages, options, partial(streamed, ChatCompletionStream)))


def generate_embedding(
    text: str, model: str = DEFAULT_EMBEDDING_MODEL, *, timeout: float | None = None
) -> EmbeddingResult:
    """Return a text as a vector; line breaks count as spaces. Raises LLMError, and ValueError for an empty text.

    `timeout` is the seconds within which it must be there; None is 600.
    """
    return generate_embeddings([text], model, timeout=timeout)[0]


def generate_embeddings(
    texts: Sequence[str], model: str = DEFAULT_EMBEDDING_MODEL, *, timeout: float | None = None
) -> list[EmbeddingResult]:
    """Return texts as vectors, in their order, with one request. Otherwise like `generate_embedding`."""
    return _run(embeddings(texts, model, timeout))


class ChatCompletionStream(Stream):
    """An answer as it comes: iterate over its texts, then read `result`. Close it to leave early.

    The time that its request may take goes on while it is read.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if text := self.at_hand() or _run(self.more()):
            return text
        raise StopIteration

    def close(self) -> None:
        """End the request."""
        _run(self.closed())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def close() -> None:
    """Close this module's connections, as at the end of a program; the next call opens new ones."""
    _http.close()
    organizations.close()


class _Io(Io):
    def organization(self, organization_id: UUID | str) -> organizations.Organization:
        return organizations.get(organization_id)

    def send(self, request: Mapping[str, Any]) -> httpx2.Response:
        pool = _http.shared.get()
        return pool.send(pool.build_request(**request), stream=True)

    def read(self, response: httpx2.Response) -> bytes:
        return response.read()

    def piece(self, stream: Stream) -> bytes:
        if stream.pieces is None:
            stream.pieces = stream.response.iter_bytes()
        return next(cast("Iterator[bytes]", stream.pieces), b"")

    def close(self, response: httpx2.Response) -> None:
        response.close()


_io = _Io()


def _run(steps: Steps[Answer]) -> Answer:
    """Run the steps, and wait for each in turn."""
    try:
        step = next(steps)
        while True:
            try:
                came = step(_io)
            except BaseException as error:  # noqa: BLE001 -- the steps decide, and raise what they do not handle
                step = steps.throw(error)
            else:
                step = steps.send(came)
    except StopIteration as done:
        return cast("Answer", done.value)
