"""What goes in and what comes out."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

Role = Literal["system", "user", "assistant"]

DEFAULT_MODEL = "gpt-4o"
DEFAULT_EMBEDDING_MODEL = "text-embedding-3-small"
DEFAULT_TIMEOUT_SECONDS = 600.0
"""As long as LiteLLM itself waits for a provider (litellm/config.yaml)."""
HIGHEST_TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation. Raises ValueError for an unknown role or a content that is no string."""

    role: Role
    content: str = field(repr=False)

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"role must be one of {', '.join(get_args(Role))}, not {self.role!r}")
        if not isinstance(self.content, str):
            raise ValueError(f"content must be a string, not {type(self.content).__name__}")  # noqa: TRY004


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletionOptions:
    """How to ask. Raises ValueError for what no model takes."""

    model: str | None = None
    """The model's name at the gateway; None is the organization's, or else the default model."""
    stream: bool = False
    """Have the answer streamed to this process; the result is the same."""
    temperature: float | None = None
    """0 to 2; None is the model's own default."""
    max_tokens: int | None = None
    """The most tokens that the answer may have."""
    timeout: float | None = None
    """Seconds within which the answer must be there, from the call to the last of it; None is 600.

    The organization's read from the database, a fallback and all that is waited for on the way are included.
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
        seconds(self.timeout)


def seconds(timeout: float | None) -> float:
    """How long a call may take. Raises ValueError for what is no such time."""
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
    model: str
    """The name of the model that answered, as callers name it."""
    usage: Usage | None
    """None where the provider did not count."""
    requested_model: str
    """The model that was asked first."""
    used_fallback: bool
    finish_reason: str | None
    """Why the model stopped: `stop`, `length`, `content_filter`, …"""
    request_id: str | None
    """The gateway's id of the request, to be found in its log."""


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
