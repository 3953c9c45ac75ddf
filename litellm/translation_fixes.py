"""LiteLLM translates. What it changes beyond that is undone, so that provider and caller get what the other sent.

- Why an answer ended: some reasons that LiteLLM turns into "stop" do not mean that the answer is complete. The caller
  gets the provider's own word; a full context is "length".
- A blank message, which Anthropic refuses: newer releases write a sentence of their own in its place.
- How long an answer to `reasoning_effort` may be where the caller sets no limit: newer releases leave older Claude
  models a tenth of what they may write otherwise.
"""

from __future__ import annotations

import importlib
from typing import Any

from patching import put_in_place

OPENAIS = {"model_context_window_exceeded": "length", "refusal": "content_filter"}
"""OpenAI's word for one of a provider's."""
STOP = "stop"
WHOLE = {STOP, "stop_sequence", "end_turn", "COMPLETE", "eos_token", "eos", "STOP", "FINISH_REASON_UNSPECIFIED"}
"""The words of providers that do mean it."""


class Made(int):
    """A limit that LiteLLM made up."""


def install() -> None:
    """Put back what the release that runs changes."""
    _put_back_reasons()
    _put_back_blanks()
    _put_back_limits()


def _put_back_reasons() -> None:
    known = importlib.import_module("litellm.litellm_core_utils.core_helpers").map_finish_reason

    def map_finish_reason(finish_reason: Any) -> Any:
        if finish_reason in OPENAIS:
            return OPENAIS[finish_reason]
        mapped = known(finish_reason)
        return finish_reason if mapped == STOP and finish_reason not in WHOLE else mapped

    put_in_place(known.__name__, known, map_finish_reason)


def _put_back_blanks() -> None:
    factory = importlib.import_module("litellm.litellm_core_utils.prompt_templates.factory")
    if hasattr(factory, "_EMPTY_TEXT_PLACEHOLDER"):
        factory._EMPTY_TEXT_PLACEHOLDER = ""  # noqa: SLF001
        factory._sanitize_empty_text_content = lambda message: message  # noqa: SLF001


def _put_back_limits() -> None:
    config = importlib.import_module("litellm.llms.anthropic.chat.transformation").AnthropicConfig
    if not hasattr(config, "update_optional_params_with_thinking_tokens"):
        return
    leave_room, transform = config.update_optional_params_with_thinking_tokens, config.transform_request

    def update_optional_params_with_thinking_tokens(
        self: Any, non_default_params: dict[str, Any], optional_params: dict[str, Any]
    ) -> None:
        before = optional_params.get("max_tokens")
        leave_room(self, non_default_params=non_default_params, optional_params=optional_params)
        if optional_params.get("max_tokens") != before:
            optional_params["max_tokens"] = Made(optional_params["max_tokens"])

    def transform_request(self: Any, model: str, messages: Any, optional_params: dict[str, Any], **rest: Any) -> Any:
        made = optional_params.get("max_tokens")
        if isinstance(made, Made):
            optional_params = {**optional_params, "max_tokens": max(made, self.get_max_tokens_for_model(model))}
        return transform(self, model=model, messages=messages, optional_params=optional_params, **rest)

    config.update_optional_params_with_thinking_tokens = update_optional_params_with_thinking_tokens
    config.transform_request = transform_request
