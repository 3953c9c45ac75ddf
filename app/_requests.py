"""What to ask, which models, and in which order: the steps that the sync and the async API share."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from app._answers import (
    MALFORMED,
    MODEL_HEADER,
    REQUEST_ID_HEADER,
    Events,
    Said,
    by_answer,
    errors_translated,
    text_of,
    usage_of,
    vector_of,
)
from app._deadline import until
from app._errors import (
    ContentRefusedError,
    FallbackFailedError,
    LLMError,
    ProviderError,
    RequestError,
    RequestRejectedError,
    StreamInterruptedError,
)
from app._steps import Answer, Steps, opened, read
from app._tracing import Span
from app._types import (
    DEFAULT_MODEL,
    ChatCompletionOptions,
    ChatCompletionResult,
    ChatMessage,
    EmbeddingResult,
    Usage,
    checked,
    cleaned,
    seconds,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from uuid import UUID

    import httpx2

    from app.organizations import Organization

logger = logging.getLogger("app")

PRIMARY_SHARE = 0.6
"""The share of the time that the preferred model may use if there is a fallback."""
DRAIN_SECONDS = 0.5
"""How long the end of a stream may arrive after its last event: only then can its connection be reused."""
PARTS = {"content", "tool_calls", "refusal"}
"""An answer's message has at least one of these."""
CHAT_COMPLETIONS, EMBEDDINGS = "/chat/completions", "/embeddings"
"""Sent and read without the OpenAI SDK's models, which would double the time of a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One request to one model, and the time it may take."""

    model: str
    messages: Sequence[ChatMessage]
    options: ChatCompletionOptions
    requested_model: str
    deadline: float
    """The time by which the answer, or its first content, must be there; by time.monotonic()."""
    last_deadline: float
    """The time by which a stream that has begun must end: it can no longer fall back."""
    organization: str | None = None
    """The id of the organization for which it is sent."""

    def opened(self, *, stream: bool) -> Steps[httpx2.Response]:
        """Send the request."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [message.body() for message in self.messages],
            **self.options.body(),
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return opened(CHAT_COMPLETIONS, body, self.deadline, organization=self.organization)

    def result(
        self, said: Said, usage: Usage | None, headers: Mapping[str, str], completion_id: str | None
    ) -> ChatCompletionResult:
        return ChatCompletionResult(
            content=said.content,
            model=headers.get(MODEL_HEADER, self.model),
            usage=usage,
            requested_model=self.requested_model,
            used_fallback=self.model != self.requested_model,
            finish_reason=said.finish_reason,
            request_id=headers.get(REQUEST_ID_HEADER, completion_id),
            tool_calls=said.tool_calls,
            refusal=said.refusal,
        )


def completion(attempt: Attempt) -> Steps[ChatCompletionResult]:
    """Ask one model for a whole answer."""
    if attempt.options.stream:
        stream = yield from streamed(Stream, attempt)
        while (yield from stream.more()):
            pass
        return stream.result
    span = Span("chat", attempt.model)
    with span.part():
        response = yield from attempt.opened(stream=False)
        body = yield from read(response, attempt.model, attempt.deadline)
        try:
            found = json.loads(body)
            choice = found["choices"][0]
            said = Said()
            said.add(choice["message"], choice.get("finish_reason"))
            if not choice["message"].keys() & PARTS:
                raise KeyError
            result = attempt.result(
                said, usage_of(found.get("usage")), response.headers, text_of(found.get("id")) or None
            )
        except MALFORMED:
            raise ProviderError(
                f"{attempt.model} answered with no completion: try again", model=attempt.model
            ) from None
        span.answered(result)
    span.end()
    return result


Kind = TypeVar("Kind", bound="Stream")


def streamed(kind: type[Kind], attempt: Attempt) -> Steps[Kind]:
    """Ask one model, and wait for the first content of its answer: a failure before that can fall back."""
    span = Span("chat", attempt.model)
    with span.part():
        response = yield from attempt.opened(stream=True)
    stream = kind(attempt, response, span)
    yield from stream.begin()
    return stream


class Stream:
    """An answer as it arrives, for both the sync and the async API."""

    def __init__(self, attempt: Attempt, response: httpx2.Response, span: Span) -> None:
        self.response = response
        self.pieces: Iterator[bytes] | AsyncIterator[bytes] | None = None
        """The iterator over the response, once reading has begun."""
        self._attempt = attempt
        self._span = span
        self._events = Events()
        self._said = Said()
        self._waiting: deque[str] = deque()
        """Texts that have arrived but have not been read by the caller yet."""
        self._usage: Usage | None = None
        self._completion_id: str | None = None
        self._is_done = self._is_closed = False
        self._failure: LLMError | None = None
        self._result: ChatCompletionResult | None = None

    @property
    def result(self) -> ChatCompletionResult:
        """The whole answer. Raises RuntimeError before the stream has been read to its end."""
        if self._result is None:
            raise RuntimeError("read the stream to its end first")
        return self._result

    def begin(self) -> Steps[None]:
        """Wait for the first content."""
        if first := (yield from self.more()):
            self._waiting.appendleft(first)

    def more(self) -> Steps[str]:
        """The next text, once it is there; an empty one at the end."""
        if not self._waiting:
            try:
                with self._span.part():
                    yield from self._arrived()
            except BaseException as error:
                if isinstance(error, LLMError):
                    self._failure = error
                if not isinstance(error, GeneratorExit):  # which forbids waiting
                    yield from self.closed()
                raise
        return self.at_hand()

    def at_hand(self) -> str:
        """The next text if it has arrived; otherwise an empty one."""
        return self._waiting.popleft() if self._waiting else ""

    def closed(self) -> Steps[None]:
        """End the request, wherever it is."""
        self._is_done = self._is_closed = True
        self._waiting.clear()
        self._span.end()
        yield lambda io: io.close(self.response)

    def _arrived(self) -> Steps[None]:
        """Wait for more text, or the end."""
        while not self._waiting:
            if self._failure is not None:
                self._fail(self._failure)
            if self._is_done:
                if not self._is_closed:
                    yield from self._ended()
                return
            try:
                piece = yield from self._piece(
                    self._attempt.last_deadline if self._said.texts else self._attempt.deadline
                )
                self._is_done = not piece
                for data in self._events.of(piece):
                    if data.startswith(b"[DONE]"):
                        self._is_done = True
                        break
                    self._add(data)
            except LLMError as error:  # text that arrived before comes first
                self._failure = error

    def _piece(self, deadline: float) -> Steps[bytes]:
        with errors_translated(self._attempt.model), until(deadline):
            piece: bytes = yield lambda io: io.piece(self)
        return piece

    def _add(self, data: bytes) -> None:
        """Process an event."""
        model = self._attempt.model
        try:
            chunk = json.loads(data)
            if error := chunk.get("error"):
                raise by_answer(error, None, self.response.headers, model)
            self._completion_id = text_of(chunk.get("id")) or self._completion_id
            if usage := chunk.get("usage"):
                self._usage = usage_of(usage) or self._usage
            for choice in chunk["choices"]:
                if text := self._said.add(choice["delta"], choice.get("finish_reason")):
                    self._waiting.append(text)
        except MALFORMED:
            raise ProviderError(
                f"{model} sent something that is not part of an answer: try again", model=model
            ) from None

    def _ended(self) -> Steps[None]:
        """Make the result, unless the stream ended before the answer did."""
        model = self._attempt.model
        if self._said.finish_reason is None:
            self._fail(ProviderError(f"{model} stopped before its answer was finished: try again", model=model))
        deadline = min(self._attempt.last_deadline, time.monotonic() + DRAIN_SECONDS)
        with suppress(LLMError):
            while (yield from self._piece(deadline)):
                pass
        self._result = self._attempt.result(self._said, self._usage, self.response.headers, self._completion_id)
        self._span.answered(self._result)
        yield from self.closed()

    def _fail(self, error: LLMError) -> NoReturn:
        """Raise `error`; after the first content, one that carries what had arrived."""
        if not self._said.texts or isinstance(error, StreamInterruptedError):
            raise error
        content = self._said.content
        raise StreamInterruptedError(
            f"the answer broke off after {len(content)} characters: {error}", content=content
        ) from error


def embeddings(texts: Sequence[str], model: str, timeout: float | None) -> Steps[list[EmbeddingResult]]:
    """Ask for vectors, in one request. They arrive as numbers or in base64, as each provider likes.

    The request does not say which, because Ollama, Vertex and Bedrock refuse `encoding_format`.
    """
    lines, deadline = cleaned(texts), time.monotonic() + seconds(timeout)
    span = Span("embeddings", model)
    with span.part():
        response = yield from opened(EMBEDDINGS, {"model": model, "input": lines}, deadline)
        body = yield from read(response, model, deadline)
        try:
            found = json.loads(body)
            data = sorted(found["data"], key=lambda each: each.get("index", 0))
            vectors = [vector_of(each["embedding"]) for each in data]
        except MALFORMED:
            raise ProviderError(f"{model} answered with no embeddings: try again", model=model) from None
        if len(vectors) != len(lines):
            raise ProviderError(f"{model} embedded {len(vectors)} of {len(lines)} texts: try again", model=model)
        served = response.headers.get(MODEL_HEADER, model)
        span.tell(model=served, usage=usage_of(found.get("usage")))
    span.end()
    return [EmbeddingResult(embedding=vector, model=served, dimensions=len(vector)) for vector in vectors]


def ask_model(
    messages: Sequence[ChatMessage],
    options: ChatCompletionOptions | None,
    ask: Callable[[Attempt], Steps[Answer]],
) -> Steps[Answer]:
    """Ask one model."""
    options = options or ChatCompletionOptions()
    model = options.model or DEFAULT_MODEL
    deadline = time.monotonic() + seconds(options.timeout)
    return ask(
        Attempt(
            model=model,
            messages=checked(messages),
            options=options,
            requested_model=model,
            deadline=deadline,
            last_deadline=deadline,
        )
    )


def ask_for_organization(
    organization_id: UUID | str,
    messages: Sequence[ChatMessage],
    options: ChatCompletionOptions | None,
    ask: Callable[[Attempt], Steps[Answer]],
) -> Steps[Answer]:
    """Ask the organization's preferred model, and its fallback once if that can help."""
    started = time.monotonic()
    options = options or ChatCompletionOptions()
    allowed = seconds(options.timeout)
    messages = checked(messages)
    with until(started + allowed):
        organization: Organization = yield lambda io: io.organization(organization_id)
    model, fallback = options.model or organization.llm_model, organization.llm_fallback_model
    alone = fallback is None or fallback == model
    primary = Attempt(
        model=model,
        messages=messages,
        options=options,
        requested_model=model,
        deadline=started + allowed * (1 if alone else PRIMARY_SHARE),
        last_deadline=started + allowed,
        organization=str(organization.id),
    )
    try:
        return (yield from ask(primary))
    except RequestError as error:
        if fallback is None or not should_fall_back(error, model=model, fallback=fallback):
            raise
        logger.warning(
            "organization %s: %s failed (%s), asking %s instead; request %s",
            organization.id,
            model,
            f"status {error.status}" if error.status else type(error).__name__,
            fallback,
            error.request_id or "-",
        )
        try:
            return (yield from ask(replace(primary, model=fallback, deadline=primary.last_deadline)))
        except StreamInterruptedError:
            raise
        except LLMError as fallback_error:
            raise FallbackFailedError(error, fallback_error, fallback_model=fallback) from fallback_error


def should_fall_back(error: LLMError, *, model: str, fallback: str | None) -> bool:
    """Whether asking `fallback` may help after `model` failed with `error`.

    The table and its reasons are in docs/decisions/0005-when-to-fall-back.md.
    """
    if fallback is None or fallback == model:
        return False
    return isinstance(error, RequestError) and not isinstance(error, (ContentRefusedError, RequestRejectedError))
