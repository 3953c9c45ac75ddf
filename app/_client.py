"""The sync face: clients of the gateway over one shared pool of connections, and what is asked through them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import httpx2
from openai import OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

from app import organizations
from app._errors import LLMError
from app._requests import (
    CHAT_COMPLETIONS,
    CONNECT_SECONDS,
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
from app._shared import Shared
from app._tracing import span
from app._types import (
    DEFAULT_EMBEDDING_MODEL,
    DEFAULT_TIMEOUT_SECONDS,
    ChatCompletionOptions,
    ChatCompletionResult,
    ChatMessage,
    EmbeddingResult,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self
    from uuid import UUID


CONNECT_ATTEMPTS = 2
"""How often a connection is tried again; a request that reached the gateway is not repeated."""
LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)


class _Pool(httpx2.Client):
    """Connections that outlive every client that uses them: a TLS context and a connection a call cost 20 ms."""

    def close(self) -> None:
        """Leave the pool open: `with create_llm_client() as client` must not close what others use."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()


TIMEOUT = httpx2.Timeout(DEFAULT_TIMEOUT_SECONDS, connect=CONNECT_SECONDS)


def _open_pool() -> _Pool:
    transport = httpx2.HTTPTransport(retries=CONNECT_ATTEMPTS, limits=LIMITS)
    return _Pool(transport=transport, timeout=TIMEOUT, follow_redirects=True)


_pool = Shared(_open_pool)


def create_llm_client() -> OpenAI:
    """Return a new OpenAI client of the gateway; cheap, as all share one pool of connections.

    Closing it leaves the pool open. It repeats no request that reached the gateway. Raises NotConfiguredError.
    """
    settings = Settings.load()
    return OpenAI(
        base_url=settings.base_url, api_key=settings.required_api_key(), http_client=_pool.get(), max_retries=0
    )


def chat_completion(
    messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionResult:
    """Ask a model, `gpt-4o` unless the options name one. Raises LLMError, and ValueError for bad arguments."""
    return _run(plan(messages, options), _outcome)


def stream_chat_completion(
    messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionStream:
    """Ask a model and return its answer as it comes, once the first of it is there.

    Raises as `chat_completion` does; iterating raises StreamInterruptedError.
    """
    return _run(plan(messages, options), ChatCompletionStream)


def chat_completion_for_org(
    organization_id: UUID | str, messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionResult:
    """Ask the organization's model, unless the options name one; its fallback model, once, where that may help.

    The rule stands in docs/decisions/0005-when-to-fall-back.md. One deadline covers both. Raises LLMError:
    FallbackFailedError when both failed, OrganizationNotFoundError, and those of `chat_completion`.
    """
    return _for_org(organization_id, messages, options, _outcome)


def stream_chat_completion_for_org(
    organization_id: UUID | str, messages: Sequence[ChatMessage], options: ChatCompletionOptions | None = None
) -> ChatCompletionStream:
    """As `chat_completion_for_org`, with the answer as it comes. It falls back before the first content only."""
    return _for_org(organization_id, messages, options, ChatCompletionStream)


def generate_embedding(text: str, model: str = DEFAULT_EMBEDDING_MODEL) -> EmbeddingResult:
    """Return a text as a vector; line breaks count as spaces. Raises LLMError, and ValueError for an empty text."""
    return generate_embeddings([text], model)[0]


def generate_embeddings(texts: Sequence[str], model: str = DEFAULT_EMBEDDING_MODEL) -> list[EmbeddingResult]:
    """Return texts as vectors, in their order, by one request."""
    lines = cleaned(texts)
    client = create_llm_client()
    with span("embeddings", model), errors_translated(model, str(client.base_url)):
        body = {"model": model, "input": lines, "encoding_format": "float"}
        answer = client.post(EMBEDDINGS, cast_to=httpx2.Response, body=body)
        return embedding_results(answer, model=model, count=len(lines))


class ChatCompletionStream:
    """An answer as it comes: iterate over its texts, then read `result`. Close it to leave early."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        client = create_llm_client()
        self._url = str(client.base_url)
        self._result: ChatCompletionResult | None = None
        with errors_translated(attempt.model, self._url):
            self._chunks = client.post(
                CHAT_COMPLETIONS,
                cast_to=ChatCompletionChunk,
                body=attempt.body(stream=True),
                options={"timeout": attempt.timeout()},
                stream=True,
                stream_cls=Stream[ChatCompletionChunk],
            )
        self._received = Received(attempt, self._chunks.response.headers)
        self._first: str | None = self._advance()  # what fails before the first content can fall back

    def _advance(self) -> str:
        """Return the next text, or nothing at the end."""
        try:
            with errors_translated(self._attempt.model, self._url):
                for chunk in self._chunks:
                    if text := self._received.add(chunk):
                        return text
        except LLMError as error:
            self.close()
            self._received.fail(error)
        self._result = self._received.result()
        return ""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        text, self._first = self._first, None
        if text is None:
            text = self._advance()
        if not text:
            raise StopIteration
        return text

    @property
    def result(self) -> ChatCompletionResult:
        """The whole answer. Raises RuntimeError before the stream has been read to its end."""
        if self._result is None:
            raise RuntimeError("read the stream to its end first")
        return self._result

    def close(self) -> None:
        """End the request."""
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _outcome(attempt: Attempt) -> ChatCompletionResult:
    if attempt.options.stream:
        with ChatCompletionStream(attempt) as stream:
            for _ in stream:
                pass
            return stream.result
    client = create_llm_client()
    with errors_translated(attempt.model, str(client.base_url)):
        answer = client.post(
            CHAT_COMPLETIONS, cast_to=httpx2.Response, body=attempt.body(), options={"timeout": attempt.timeout()}
        )
        return attempt.result(answer)


def _for_org(
    organization_id: UUID | str,
    messages: Sequence[ChatMessage],
    options: ChatCompletionOptions | None,
    ask: Callable[[Attempt], Answer],
) -> Answer:
    started = time.monotonic()
    checked(messages)
    organization = organizations.get(organization_id)
    return _run(plan_for(organization, messages, options, started), ask)


def _run(plan: Plan[Answer], ask: Callable[[Attempt], Answer]) -> Answer:
    """Make the attempts that a plan names, until it has its answer."""
    try:
        attempt = next(plan)
        while True:
            try:
                with span("chat", attempt.model):
                    answer = ask(attempt)
            except LLMError as error:
                attempt = plan.throw(error)
            else:
                attempt = plan.send(answer)
    except StopIteration as done:
        return cast("Answer", done.value)


def close() -> None:
    """Close this module's connections, as at the end of a program; the next call opens new ones."""
    if (pool := _pool.take()) is not None:
        httpx2.Client.close(pool)
    organizations.close()
