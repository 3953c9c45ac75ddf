"""What LiteLLM changes beyond translating it."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator

HELPERS, FACTORY, ANTHROPIC = (
    f"litellm.{name}"
    for name in (
        "litellm_core_utils.core_helpers",
        "litellm_core_utils.prompt_templates.factory",
        "llms.anthropic.chat.transformation",
    )
)
BUDGET, MOST = 1024, 64000


def newer(finish_reason: str) -> str:
    """As releases of today map the reasons of providers."""
    return {"max_tokens": "length", "tool_use": "tool_calls"}.get(finish_reason, "stop")


def older(finish_reason: str) -> str:
    """As LiteLLM 1.55.0 does."""
    return {"max_tokens": "length", "tool_use": "tool_calls", "end_turn": "stop"}.get(finish_reason, finish_reason)


class Newer:
    """LiteLLM's way to Anthropic, as far as it is worked on."""

    def update_optional_params_with_thinking_tokens(
        self, non_default_params: dict[str, Any], optional_params: dict[str, Any]
    ) -> None:
        if "max_tokens" not in non_default_params:
            optional_params["max_tokens"] = BUDGET + 4096

    def get_max_tokens_for_model(self, model: str) -> int:
        return {"claude": MOST}.get(model, 4096)

    def transform_request(self, model: str, messages: Any, optional_params: dict[str, Any]) -> Any:
        return {"model": model, "messages": messages, **optional_params}


class Older:
    """1.55.0 knows nothing of it."""


@pytest.fixture(params=[(newer, Newer), (older, Older)], ids=["newer", "older"])
def litellm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    maps, config = request.param
    maps.__name__ = "map_finish_reason"
    parts = SimpleNamespace(
        helpers=SimpleNamespace(map_finish_reason=maps),
        importing=SimpleNamespace(map_finish_reason=maps),
        factory=SimpleNamespace(),
        config=type("Config", (config,), {}),
    )
    if config is Newer:
        parts.factory._EMPTY_TEXT_PLACEHOLDER = "[a sentence]"
        parts.factory._sanitize_empty_text_content = lambda message: {**message, "content": "[a sentence]"}
    monkeypatch.setitem(sys.modules, HELPERS, parts.helpers)
    monkeypatch.setitem(sys.modules, "litellm.importing", parts.importing)
    monkeypatch.setitem(sys.modules, FACTORY, parts.factory)
    monkeypatch.setitem(sys.modules, ANTHROPIC, SimpleNamespace(AnthropicConfig=parts.config))
    monkeypatch.syspath_prepend(PROJECT / "litellm")
    importlib.import_module("translation_fixes").install()
    yield parts
    sys.modules.pop("translation_fixes")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("pause_turn", "pause_turn"),
        ("a-word-of-tomorrow", "a-word-of-tomorrow"),
    ],
)
def test_why_an_answer_ended_is_passed_on_as_the_provider_said_it(
    litellm: SimpleNamespace, said: str, told: str
) -> None:
    """Wherever LiteLLM calls the function: where it is defined, and where it was imported earlier."""
    assert litellm.helpers.map_finish_reason(said) == told
    assert litellm.importing.map_finish_reason(said) == told


def test_no_sentence_is_written_for_a_blank_message(litellm: SimpleNamespace) -> None:
    blank = {"role": "user", "content": ""}
    sanitize = getattr(litellm.factory, "_sanitize_empty_text_content", dict)
    assert sanitize(blank) == blank
    assert getattr(litellm.factory, "_EMPTY_TEXT_PLACEHOLDER", "") == ""


@pytest.mark.parametrize(
    ("model", "limits", "limit"),
    [
        ("claude", {}, MOST),
        ("claude", {"max_tokens": 500}, 500),
        ("one-that-litellm-does-not-know", {}, BUDGET + 4096),
    ],
)
def test_thinking_takes_nothing_of_an_answer_without_a_limit(
    litellm: SimpleNamespace, model: str, limits: dict[str, int], limit: int
) -> None:
    """The limit is LiteLLM's limit without thinking, unless its own guess is higher; a caller's limit stays."""
    config = litellm.config()
    if not isinstance(config, Newer):
        assert vars(litellm.config).keys() <= {"__module__", "__doc__"}
        return
    options = {**limits}
    config.update_optional_params_with_thinking_tokens(non_default_params=limits, optional_params=options)
    sent = config.transform_request(model=model, messages=[], optional_params=options)
    assert sent["max_tokens"] == limit
