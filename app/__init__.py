"""Answers from the team's LLM gateway: chat completions, embeddings, and each organization's preferred model.

    from app import ChatMessage, chat_completion
    chat_completion([ChatMessage("user", "hello")]).content

Settings are the environment variables LITELLM_URL, LITELLM_API_KEY and DATABASE_URL, or `.env`. `app.aio` has the
same names for asyncio, `app.organizations` the organizations, `app.migrations` the schema. Nothing here connects
before the first call, and importing costs nothing: OpenAI's client is loaded when it is first needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app._client import (
        ChatCompletionStream,
        chat_completion,
        chat_completion_for_org,
        close,
        create_llm_client,
        generate_embedding,
        generate_embeddings,
        stream_chat_completion,
        stream_chat_completion_for_org,
    )
    from app._errors import (
        BudgetExceededError,
        ContentRefusedError,
        ContextTooLongError,
        DatabaseUnavailableError,
        FallbackFailedError,
        GatewayRefusedKeyError,
        GatewayUnreachableError,
        LLMError,
        ModelUnknownError,
        NotConfiguredError,
        OrganizationNotFoundError,
        ProviderError,
        RateLimitedError,
        RequestError,
        RequestRejectedError,
        StreamInterruptedError,
        TimedOutError,
    )
    from app._settings import Settings
    from app._types import (
        ChatCompletionOptions,
        ChatCompletionResult,
        ChatMessage,
        EmbeddingResult,
        ToolCall,
        Usage,
    )

__all__ = [
    "BudgetExceededError",
    "ChatCompletionOptions",
    "ChatCompletionResult",
    "ChatCompletionStream",
    "ChatMessage",
    "ContentRefusedError",
    "ContextTooLongError",
    "DatabaseUnavailableError",
    "EmbeddingResult",
    "FallbackFailedError",
    "GatewayRefusedKeyError",
    "GatewayUnreachableError",
    "LLMError",
    "ModelUnknownError",
    "NotConfiguredError",
    "OrganizationNotFoundError",
    "ProviderError",
    "RateLimitedError",
    "RequestError",
    "RequestRejectedError",
    "Settings",
    "StreamInterruptedError",
    "TimedOutError",
    "ToolCall",
    "Usage",
    "chat_completion",
    "chat_completion_for_org",
    "close",
    "create_llm_client",
    "generate_embedding",
    "generate_embeddings",
    "stream_chat_completion",
    "stream_chat_completion_for_org",
]


def __getattr__(name: str) -> object:
    """Load a public name's module when the name is first used."""
    if name in __all__:
        for module in ("app._errors", "app._types", "app._settings", "app._client"):
            if hasattr(found := import_module(module), name):
                globals()[name] = getattr(found, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
