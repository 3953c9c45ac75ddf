"""The types of arguments and results."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

Role = Literal["system", "user", "assistant", "tool"]
Parts = Sequence[Mapping[str, Any]]
"""Content in parts, each in OpenAI's form: `{"type": "image_url", "image_url": {"url": "data:…"}}`."""

DEFAULT_MODEL = "gpt-4o"
DEFAULT_EMBEDDING_MODEL = "text-embedding-3-small"
DEFAULT_TIMEOUT_SECONDS = 600.0
"""As long as LiteLLM itself waits for a provider (litellm/config.yaml)."""
HIGHEST_TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function call that a model requests. Send its result in a message with the role `tool` and its id."""

    id: str
    name: str
    arguments: str = field(repr=False)
    """JSON as the model wrote it, which may be invalid: check it before you use it."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation. Raises ValueError for an invalid one."""

    role: Role
    content: str | Parts = field(repr=False)
    """A text, or parts in OpenAI's form: text and images."""
    tool_calls: Sequence[ToolCall] = field(default=(), kw_only=True)
    """For an assistant's message: the calls in its result."""
    tool_call_id: str | None = field(default=None, kw_only=True)
    """For a message with the role `tool`: the call that its content answers."""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"role must be one of {', '.join(get_args(Role))}, not {self.role!r}")
        if not isinstance(self.content, str) and not _are_parts(self.content):
            raise ValueError(
                f"content must be a string or a list of parts, each with a type, not {type(self.content).__name__}"
            )
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("a message of role tool, and no other, needs tool_call_id: its call's id")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only a message of role assistant has tool_calls")

    def body(self) -> dict[str, Any]:
        """The message in OpenAI's form."""
        content = self.content if isinstance(self.content, str) else [dict(part) for part in self.content]
        said: dict[str, Any] = {"role": self.role, "content": content}
        if self.tool_calls:
            said |= {"content": content or None, "tool_calls": [_called(call) for call in self.tool_calls]}
        return said if self.tool_call_id is None else said | {"tool_call_id": self.tool_call_id}


def _are_parts(content: object) -> bool:
    return (
        isinstance(content, Sequence)
        and bool(content)
        and all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in content)
    )


def _called(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletionOptions:
    """Options of a request. Raises ValueError for values that no model accepts."""

    model: str | None = None
    """The model's name at the gateway; None means the organization's, or else the default model."""
    stream: bool = False
    """Stream the answer to this process; the result is the same."""
    temperature: float | None = None
    """0 to 2; None means the model's own default."""
    max_tokens: int | None = None
    """The most tokens that the answer may have. The gateway sends it under the name that the model accepts."""
    reasoning_effort: str | None = None
    """How much a reasoning model thinks first: `low`, `medium`, `high`, or another level that it supports."""
    response_format: Mapping[str, Any] | None = field(default=None, repr=False)
    """What the answer must be, in OpenAI's form: `{"type": "json_object"}`, or a `json_schema`."""
    seed: int | None = None
    """Asks for the same answer to the same question, as far as the model can."""
    stop: str | Sequence[str] | None = None
    """Texts at which the answer ends."""
    tools: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    """Functions that the model may call, in OpenAI's form; the result's `tool_calls` has the calls that it
    requests."""
    tool_choice: str | Mapping[str, Any] | None = None
    """`auto`, `none`, `required`, or the one function to call, in OpenAI's form."""
    timeout: float | None = None
    """Seconds within which the answer must be complete, counted from the call; None means 600.

    This includes the read of the organization from the database, a fallback, and every other wait.
    """

    def __post_init__(self) -> None:
        if self.model is not None and not (isinstance(self.model, str) and self.model.strip()):
            raise ValueError("model must be a name, or None for the default")
        if self.temperature is not None and not (
            isinstance(self.temperature, (int, float)) and 0 <= self.temperature <= HIGHEST_TEMPERATURE
        ):
            raise ValueError(f"temperature must be from 0 to {HIGHEST_TEMPERATURE:g}, not {self.temperature}")
        if self.max_tokens is not None and not (isinstance(self.max_tokens, int) and self.max_tokens >= 1):
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        for name, kinds, what in _KINDS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise ValueError(f"{name} must be {what}, not {type(value).__name__}")
        if not all(isinstance(tool, Mapping) for tool in self.tools):
            raise ValueError("tools must be a list of functions in OpenAI's form")
        seconds(self.timeout)

    def body(self) -> dict[str, Any]:
        """The options for OpenAI's API, under its names."""
        names = ("temperature", "max_tokens", *(name for name, *_ in _KINDS), "tools")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value not in (None, (), [])}


_KINDS: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("reasoning_effort", (str,), "a word, such as low or high"),
    ("response_format", (Mapping,), "an object in OpenAI's form"),
    ("seed", (int,), "a whole number"),
    ("stop", (str, Sequence), "a string, or a list of strings"),
    ("tool_choice", (str, Mapping), "a word, or an object in OpenAI's form"),
)
"""Check the options that have a fixed form."""


def seconds(timeout: float | None) -> float:
    """How long a call may take. Raises ValueError for an invalid time."""
    if timeout is None:
        return DEFAULT_TIMEOUT_SECONDS
    if not (isinstance(timeout, (int, float)) and timeout > 0 and math.isfinite(timeout)):
        raise ValueError(f"timeout must be more than 0 seconds, not {timeout}")
    return timeout


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the provider counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletionResult:
    """An answer."""

    content: str = field(repr=False)
    """The text; empty if there are only `tool_calls` or a `refusal`."""
    model: str
    """The name of the model that answered, as callers call it."""
    usage: Usage | None
    """None if the provider did not count."""
    requested_model: str
    """The model that was asked first."""
    used_fallback: bool
    finish_reason: str | None
    """Why the model stopped: `stop`, `length`, `content_filter`, …"""
    request_id: str | None
    """The gateway's id of the request, which is also in its log."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The function calls that the model requests before it goes on."""
    refusal: str | None = field(default=None, repr=False)
    """Why the model refuses to answer, in its own words, if the provider sends this separately from the content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingResult:
    """A text as a vector."""

    embedding: tuple[float, ...]
    model: str
    dimensions: int


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
