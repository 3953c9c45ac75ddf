"""OpenAI's SDK looks only through requests that it may change; what it makes of each stays the same."""

from __future__ import annotations

import asyncio
import importlib
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from openai import NOT_GIVEN, Omit
from openai._utils import PropertyInfo
from openai.types import EmbeddingCreateParams
from openai.types.audio import TranscriptionCreateParams
from openai.types.chat import ChatCompletionMessage, CompletionCreateParams
from typing_extensions import TypedDict

from tests.unit import test_guard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Transform = Callable[[object, object], Awaitable[object]]

programs = test_guard.programs


CARD = TypedDict("CARD", {"card_id": Annotated[str, PropertyInfo(alias="cardID")]})  # noqa: UP013 -- else vulture
CARDS = TypedDict("CARDS", {"model": str, "cards": list[CARD]})  # noqa: UP013 -- finds fields that nobody uses
"""A request, with parts of which a field has another name in the provider's API."""
CHAT = {
    "model": "gpt-4o",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hello"}, {"type": "image_url", "image_url": {"url": "x"}}],
        },
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "", "its own": None},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}},
    "temperature": 0.5,
    "stop": NOT_GIVEN,
    "top_p": Omit(),
    "a parameter of a provider": [1, 2.5, False],
}


@pytest.fixture
def looked_through(
    programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Transform, Transform, list[Any]]:
    """What the SDK does with a request, what it does now, and the requests that it still looks through."""
    transform = importlib.import_module(programs["request_types"].TRANSFORM)
    sdks, seen = transform.async_transform, []

    async def look_through(data: object, expected_type: object) -> object:
        seen.append(data)
        return await sdks(data, expected_type)

    monkeypatch.setattr(transform, "async_transform", look_through)
    programs["request_types"].install()
    return sdks, transform.async_maybe_transform, seen


@pytest.mark.parametrize(
    ("request_", "kind", "is_looked_through"),
    [
        pytest.param(CHAT, CompletionCreateParams, False, id="a chat completion"),
        pytest.param({"model": "m", "input": [[1, 2], [3]]}, EmbeddingCreateParams, False, id="embeddings"),
        pytest.param({"model": "whisper-1", "file": b"sound"}, TranscriptionCreateParams, True, id="bytes"),
        pytest.param(
            {"model": "m", "messages": [ChatCompletionMessage(role="assistant", content="Hello")]},
            CompletionCreateParams,
            True,
            id="an object of the SDK's",
        ),
        pytest.param(
            {"model": "m", "cards": [{"card_id": "1"}]},
            CARDS,
            True,
            id="a field with another name",
        ),
    ],
)
def test_a_request_is_what_the_sdk_makes_of_it(
    request_: dict[str, Any],
    kind: object,
    is_looked_through: bool,  # noqa: FBT001 -- a parameter of the test
    looked_through: tuple[Transform, Transform, list[Any]],
) -> None:
    sdks, now, seen = looked_through
    expected = asyncio.run(_called(sdks, request_, kind))
    assert asyncio.run(_called(now, request_, kind)) == expected
    assert bool(seen) == is_looked_through


def test_a_deep_value_is_the_sdks_to_handle(looked_through: tuple[Transform, Transform, list[Any]]) -> None:
    _, now, seen = looked_through
    deep: dict[str, Any] = {}
    for _ in range(sys.getrecursionlimit()):
        deep = {"inner": deep}
    made = asyncio.run(_called(now, {"model": "gpt-4o", "its own": deep}, CompletionCreateParams))
    assert made["its own"] is deep
    assert len(seen) == 1


def test_an_sdk_of_another_build_is_left_alone(programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM starts without the gain."""
    other = SimpleNamespace(async_transform=None)
    monkeypatch.setitem(sys.modules, programs["request_types"].TRANSFORM, other)
    programs["request_types"].install()
    assert vars(other) == {"async_transform": None}


async def _called(transform: Transform, request: object, kind: object) -> Any:
    return await transform(request, kind)
