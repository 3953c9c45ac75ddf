"""A stream whose provider has not said why it ended."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator


class MadeUpError(Exception):
    """LiteLLM's own."""

    def __init__(self, *, message: str, llm_provider: str, model: str) -> None:
        super().__init__(f"{llm_provider} {model}: {message}")


class Wrapper:
    """LiteLLM's wrapper of streams, as far as it is worked on."""

    def __init__(self, provider: str, said: str | None, each: str | None = None) -> None:
        self.custom_llm_provider, self.received_finish_reason, self.intermittent_finish_reason = provider, said, each
        self.model = "m"

    def finish_reason_handler(self) -> str:
        return self.received_finish_reason or self.intermittent_finish_reason or "stop"


@pytest.fixture
def wrapper(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Any]]:
    kind = type("Wrapped", (Wrapper,), {})
    module = SimpleNamespace(CustomStreamWrapper=kind)
    monkeypatch.setitem(sys.modules, "litellm", SimpleNamespace(APIConnectionError=MadeUpError))
    monkeypatch.setitem(sys.modules, "litellm.litellm_core_utils.streaming_handler", module)
    monkeypatch.syspath_prepend(PROJECT / "litellm")
    importlib.import_module("stream_endings").install()
    yield kind
    sys.modules.pop("stream_endings")


@pytest.mark.parametrize(
    ("provider", "said", "each", "end"),
    [
        ("anthropic", "length", None, "length"),
        ("vertex_ai_beta", None, "stop", "stop"),  # which says it at each piece
        ("anthropic", None, None, None),
        ("bedrock", "", None, None),
        ("of-tomorrow", None, None, "stop"),
    ],
)
def test_no_end_is_made_up_for_a_provider_that_says_why_its_streams_end(
    wrapper: type[Any], provider: str, said: str | None, each: str | None, end: str | None
) -> None:
    """Other providers may not say so in a form that LiteLLM reads."""
    if end is not None:
        assert wrapper(provider, said, each).finish_reason_handler() == end
        return
    with pytest.raises(MadeUpError, match=f"{provider} m: The provider's stream ended before its answer"):
        wrapper(provider, said, each).finish_reason_handler()
