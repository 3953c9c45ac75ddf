"""A stream that ends before its answer does is an error, no matter who translates it.

If a provider has not said why a stream ended, LiteLLM ends it with "stop": half an answer, or a page of HTML instead
of one, then looks complete. Streams that litellm/streams.py passes on are checked there.
"""

from __future__ import annotations

import importlib
from typing import Any

PROVIDERS = {
    "anthropic", "bedrock", "cohere_chat", "fireworks_ai", "gemini", "groq", "mistral", "ollama_chat", "openrouter",
    "vertex_ai", "vertex_ai_beta", "xai",
}  # fmt: skip
"""Those whose whole streams were seen to say why they end, by LiteLLM's name (tests/provider_table.py)."""


def install() -> None:
    """Make LiteLLM raise where it would invent an end, which its wrapper of streams does in one place."""
    litellm = importlib.import_module("litellm")
    wrapper = importlib.import_module("litellm.litellm_core_utils.streaming_handler").CustomStreamWrapper
    make_up = wrapper.finish_reason_handler

    def end(self: Any) -> Any:
        said = self.received_finish_reason or self.intermittent_finish_reason
        if not said and self.custom_llm_provider in PROVIDERS:
            message = "The provider's stream ended before its answer: it did not say why it ended."
            raise litellm.APIConnectionError(
                message=message, llm_provider=self.custom_llm_provider, model=self.model or ""
            )
        return make_up(self)

    wrapper.finish_reason_handler = end
