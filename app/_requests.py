"""What a request and its answer are, whichever way they travel: shared by the sync and the async face."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import httpx2
import openai

from app._errors import (
    ContentRefusedError,
    ContextTooLongError,
    FallbackFailedError,
    GatewayRefusedKeyError,
    GatewayUnreachableError,
    LLMError,
    ModelUnknownError,
    ProviderError,
    RateLimitedError,
    RequestError,
    RequestRejectedError,
    StreamInterruptedError,
    TimedOutError,
)
from app._gateway import GATEWAY_MEND, KEY_MEND
from app._types import (
    DEFAULT_MODEL,
    DEFAULT_TIMEOUT_SECONDS,
    ChatCompletionOptions,
    ChatCompletionResult,
    ChatMessage,
    EmbeddingResult,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from openai.types.chat import ChatCompletionChunk

    from app.organizations import Organization

Answer = TypeVar("Answer")

logger = logging.getLogger("app")

PRIMARY_SHARE = 0.6
"""How much of the time the preferred model may take when there is a fallback."""
CONNECT_SECONDS = 5.0
CHAT_COMPLETIONS, EMBEDDINGS = "/chat/completions", "/embeddings"
"""Asked by path and read as JSON where the answer comes whole: OpenAI's models would double the time of a call."""
MODEL_HEADER = "x-litellm-model-group"
REQUEST_ID_HEADER = "x-litellm-call-id"
LATE = "{model} did not answer in time: allow more, or ask for less"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One request to one model, and the time it may take."""

    model: str
    messages: Sequence[ChatMessage]
    options: ChatCompletionOptions
    requested_model: str
    deadline: float
    """By when the answer, or its first content, must be there; by time.monotonic()."""
    last_deadline: float
    """By when a stream that has begun must end: nothing is left to fall back to then."""

    @property
    def seconds_left(self) -> float:
        """The time until the deadline. Raises TimedOutError when there is none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise self.timed_out()
        return left

    def timed_out(self) -> TimedOutError:
        """The error for an answer that did not come in time."""
        return TimedOutError(LATE.format(model=self.model), model=self.model)

    def timeout(self) -> httpx2.Timeout:
        """The time that is left. Raises TimedOutError when there is none."""
        left = self.seconds_left
        return httpx2.Timeout(left, connect=min(left, CONNECT_SECONDS))

    def body(self, *, stream: bool = False) -> dict[str, Any]:
        """The request, as OpenAI's API takes it."""
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in self.messages],
        }
        if self.options.temperature is not None:
            arguments["temperature"] = self.options.temperature
        if self.options.max_tokens is not None:
            arguments["max_tokens"] = self.options.max_tokens
        if stream:
            arguments |= {"stream": True, "stream_options": {"include_usage": True}}
        return arguments

    def result(self, answer: httpx2.Response) -> ChatCompletionResult:
        """The result that a whole answer makes."""
        try:
            completion = answer.json()
            choice, usage = completion["choices"][0], completion.get("usage")
            return self._result(
                choice["message"]["content"] or "",
                Usage(usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) if usage else None,
                choice.get("finish_reason"),
                answer.headers,
                completion.get("id"),
            )
        except (ValueError, LookupError, TypeError):
            raise ProviderError(f"{self.model} answered with no completion: ask again", model=self.model) from None

    def _result(
        self,
        content: str,
        usage: Usage | None,
        finish_reason: str | None,
        headers: Mapping[str, str],
        completion_id: str | None,
    ) -> ChatCompletionResult:
        return ChatCompletionResult(
            content=content,
            model=headers.get(MODEL_HEADER, self.model),
            usage=usage,
            requested_model=self.requested_model,
            used_fallback=self.model != self.requested_model,
            finish_reason=finish_reason,
            request_id=headers.get(REQUEST_ID_HEADER, completion_id),
        )


@dataclass(slots=True)
class Received:
    """What has arrived of a streamed answer."""

    attempt: Attempt
    headers: Mapping[str, str]
    texts: list[str] = field(default_factory=list)
    usage: Usage | None = None
    finish_reason: str | None = None
    completion_id: str | None = None

    def add(self, chunk: ChatCompletionChunk) -> str:
        """Take a chunk and return its text. Raises TimedOutError after the deadline."""
        if time.monotonic() > (self.attempt.last_deadline if self.texts else self.attempt.deadline):
            raise self.attempt.timed_out()
        self.completion_id = chunk.id or self.completion_id
        if (usage := chunk.usage) is not None:
            self.usage = Usage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
        text = ""
        for choice in chunk.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
            text += choice.delta.content or ""
        if text:
            self.texts.append(text)
        return text

    def result(self) -> ChatCompletionResult:
        """The result, once the stream has ended. Raises for a stream that ended before the answer did."""
        if self.finish_reason is None:
            model = self.attempt.model
            self.fail(ProviderError(f"{model} ended its answer unfinished: ask again", model=model))
        return self.attempt._result(  # noqa: SLF001 -- both make the same result
            "".join(self.texts), self.usage, self.finish_reason, self.headers, self.completion_id
        )

    def fail(self, error: LLMError) -> NoReturn:
        """Raise `error`; after the first content, one that carries what had arrived."""
        if not self.texts:
            raise error
        raise StreamInterruptedError(
            f"the answer broke off after {sum(map(len, self.texts))} characters: {error}", content="".join(self.texts)
        ) from error


Plan = Generator[Attempt, Answer, Answer]
"""What to ask, one attempt after another: it is sent each answer, or has the attempt's LLMError thrown in."""


def plan(messages: Sequence[ChatMessage], options: ChatCompletionOptions | None) -> Plan[Answer]:
    """Ask one model."""
    options = options or ChatCompletionOptions()
    model = options.model or DEFAULT_MODEL
    deadline = time.monotonic() + _seconds(options)
    return (
        yield Attempt(
            model=model,
            messages=checked(messages),
            options=options,
            requested_model=model,
            deadline=deadline,
            last_deadline=deadline,
        )
    )


def plan_for(
    organization: Organization,
    messages: Sequence[ChatMessage],
    options: ChatCompletionOptions | None,
    started: float,
) -> Plan[Answer]:
    """Ask the organization's preferred model, and its fallback once where that can help.

    `started` is when the caller began, by time.monotonic(): reading the organization is part of the deadline.
    """
    options = options or ChatCompletionOptions()
    model, fallback = options.model or organization.llm_model, organization.llm_fallback_model
    seconds = _seconds(options)
    alone = fallback is None or fallback == model
    primary = Attempt(
        model=model,
        messages=checked(messages),
        options=options,
        requested_model=model,
        deadline=started + seconds * (1 if alone else PRIMARY_SHARE),
        last_deadline=started + seconds,
    )
    try:
        return (yield primary)
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
        second = Attempt(
            model=fallback,
            messages=primary.messages,
            options=options,
            requested_model=model,
            deadline=started + seconds,
            last_deadline=started + seconds,
        )
        try:
            return (yield second)
        except StreamInterruptedError:
            raise
        except LLMError as fallback_error:
            raise FallbackFailedError(error, fallback_error, fallback_model=fallback) from fallback_error


def should_fall_back(error: LLMError, *, model: str, fallback: str | None) -> bool:
    """Whether asking `fallback` may help after `model` failed with `error`.

    The table and its reasons stand in docs/decisions/0005-when-to-fall-back.md.
    """
    if fallback is None or fallback == model:
        return False
    return isinstance(error, RequestError) and not isinstance(error, (ContentRefusedError, RequestRejectedError))


def checked(messages: object) -> Sequence[ChatMessage]:
    """Return the messages. Raises ValueError for anything that is not a conversation."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise ValueError('messages must be a list of ChatMessage: [ChatMessage("user", "…")]')  # noqa: TRY004
    if not messages:
        raise ValueError("there are no messages")
    for message in messages:
        if not isinstance(message, ChatMessage):
            raise ValueError(f"messages must be ChatMessage, not {type(message).__name__}")  # noqa: TRY004
    return cast("Sequence[ChatMessage]", messages)


def cleaned(texts: Sequence[str]) -> list[str]:
    """Return the texts to embed on one line each. Raises ValueError for an empty one."""
    if isinstance(texts, str):
        raise ValueError("texts must be a list of strings")  # noqa: TRY004
    if not texts:
        raise ValueError("there are no texts to embed")
    lines = []
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"a text to embed must be a string, not {type(text).__name__}")  # noqa: TRY004
        if not text.strip():
            raise ValueError("a text to embed is empty")
        lines.append(re.sub(r"\r\n|\r|\n", " ", text))
    return lines


def embedding_results(answer: httpx2.Response, *, model: str, count: int) -> list[EmbeddingResult]:
    """The results in the order of the texts. Raises ProviderError when one is missing."""
    try:
        data = sorted(answer.json()["data"], key=lambda each: each["index"])
        vectors = [tuple(map(float, each["embedding"])) for each in data]
    except (ValueError, LookupError, TypeError):
        raise ProviderError(f"{model} answered with no embeddings: ask again", model=model) from None
    if len(vectors) != count:
        raise ProviderError(f"{model} embedded {len(vectors)} of {count} texts: ask again", model=model)
    served = answer.headers.get(MODEL_HEADER, model)
    return [EmbeddingResult(embedding=vector, model=served, dimensions=len(vector)) for vector in vectors]


@contextmanager
def errors_translated(model: str, url: str) -> Iterator[None]:
    """Raise this module's errors for those of OpenAI's client. Those may quote prompts and keys: so not as cause."""
    try:
        yield
    except openai.OpenAIError as error:
        raise translated(error, model=model, url=url) from None


def translated(error: openai.OpenAIError, *, model: str, url: str) -> LLMError:
    """The module's own error for one of OpenAI's client.

    Messages hold what the gateway said only where that cannot be a prompt or a key: never the provider's own words.
    """
    match error:
        case openai.APITimeoutError() if isinstance(error.__cause__, (httpx2.ConnectTimeout, httpx2.PoolTimeout)):
            return GatewayUnreachableError(f"no connection to {url} in time: is the stack up? ({GATEWAY_MEND})")
        case openai.APITimeoutError():
            return TimedOutError(LATE.format(model=model), model=model)
        case openai.APIConnectionError() if isinstance(error.__cause__, httpx2.ConnectError):
            return GatewayUnreachableError(f"nothing answers at {url}: is the stack up? ({GATEWAY_MEND})")
        case openai.APIConnectionError():
            return ProviderError(f"the connection was lost before {model} had answered: ask again", model=model)
        case openai.APIError():
            return _by_answer(error, model)
        case _:
            return ProviderError(f"{model} failed: {type(error).__name__}", model=model)


BY_TEXT: tuple[tuple[str, type[RequestError], str], ...] = (
    ("ContextWindowExceededError", ContextTooLongError, "the messages are longer than {model} takes: shorten them"),
    ("ContentPolicyViolationError", ContentRefusedError, "the provider of {model} refused the content: change it"),
    (
        "Invalid model name",
        ModelUnknownError,
        "the gateway serves no model {model}: `llmctl models` lists those it does",
    ),
)
"""What only the text of LiteLLM's answer tells: all of these arrive as status 400."""

OTHERS: tuple[type[RequestError], str] = (
    RequestRejectedError,
    "{model} was asked wrongly (status {status}): the gateway's log says how",
)
KEY_REFUSED = (401, 403)
NO_REPLICA = "service_unavailable"
"""The code of the edge's own 503 (edge/haproxy.cfg)."""

BY_STATUS: dict[int | None, tuple[type[RequestError], str]] = {
    None: (ProviderError, "{model} failed: ask again"),
    404: (ModelUnknownError, "the provider of {model} does not know it: name another model"),
    408: (TimedOutError, LATE),
    409: (ProviderError, "{model} failed for the moment: ask again"),
    429: (RateLimitedError, "too many requests for {model}: wait, then ask again"),
    504: (TimedOutError, LATE),
}


def _by_answer(error: openai.APIError, model: str) -> LLMError:
    said = f"{error.message} {error.body}"
    status = _status(error, said)
    headers: Mapping[str, str] = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    request_id = headers.get(REQUEST_ID_HEADER)
    if status in KEY_REFUSED and "litellm." not in said:
        return GatewayRefusedKeyError(f"the gateway refused LITELLM_API_KEY: {KEY_MEND}")
    if re.search(r"budget.*exceeded", said, re.IGNORECASE):
        return GatewayRefusedKeyError("what LITELLM_API_KEY may spend is used up: raise its budget")
    if error.code == NO_REPLICA:
        return GatewayUnreachableError(f"no replica of the gateway answers: see `llmctl status`, then {GATEWAY_MEND}")
    kind, message = next(
        ((kind, told) for text, kind, told in BY_TEXT if text in said), BY_STATUS.get(status, OTHERS)
    )
    if status in KEY_REFUSED:
        kind, message = ProviderError, "the provider of {model} refused the gateway's key: set a valid one"
    elif (kind, message) == OTHERS and status is not None and status >= httpx2.codes.INTERNAL_SERVER_ERROR:
        kind, message = ProviderError, "the provider of {model} failed (status {status}): ask again"
    return kind(message.format(model=model, status=status), model=model, status=status, request_id=request_id)


def _status(error: openai.APIError, said: str) -> int | None:
    """The HTTP status that tells what went wrong.

    A stream's error has it in its body. LiteLLM turns many errors of OpenAI into a 400 that quotes the real one.
    """
    code = str(error.status_code if isinstance(error, openai.APIStatusError) else error.code)
    if code == "400" and (quoted := re.search(r"litellm\.BadRequestError:.*?Error code: (\d{3})", said)):
        code = quoted[1]
    return int(code) if re.fullmatch(r"[45]\d\d", code) else None


def _seconds(options: ChatCompletionOptions) -> float:
    return options.timeout if options.timeout is not None else DEFAULT_TIMEOUT_SECONDS
