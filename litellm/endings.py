"""A stream that ends before its answer does is an error, no matter who translates it.

LiteLLM ends each stream with "stop" where its provider has not said why it ended: half an answer, or a page of HTML
in place of one, then looks whole. Streams that litellm/streams.py hands on are looked at there.
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
    """Have LiteLLM raise where it would make up an end, which its wrapper of streams does in one place."""
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
