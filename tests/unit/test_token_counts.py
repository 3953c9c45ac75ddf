"""The tokens of a prompt are counted once."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit import test_guard

programs = test_guard.programs
UTILS, BUILDER = "litellm.utils", "litellm.litellm_core_utils.streaming_chunk_builder_utils"
CHAT = [{"role": "user", "content": "Hello"}]


class Counter:
    """LiteLLM's counting, in a module and in one that imported it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> None:
        self.counted: list[tuple[Any, ...]] = []

        def token_counter(model: str = "", **options: Any) -> int:
            self.counted.append((model, options))
            return len(model) + len(str(options))

        self.own = token_counter
        self.utils = SimpleNamespace(token_counter=token_counter, **attributes)
        self.builder = SimpleNamespace(token_counter=token_counter)
        monkeypatch.setitem(sys.modules, UTILS, self.utils)
        monkeypatch.setitem(sys.modules, BUILDER, self.builder)


@pytest.fixture
def older(programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Counter:
    """LiteLLM 1.55.0's, worked on."""
    made = Counter(monkeypatch, openai_token_counter=None)
    programs["token_counts"].install()
    return made


def test_a_prompt_is_counted_once_for_all_who_ask(older: Counter) -> None:
    expected = older.own("gpt-4o", messages=CHAT)
    older.counted.clear()
    assert older.utils.token_counter("gpt-4o", messages=CHAT) == expected
    assert older.builder.token_counter("gpt-4o", messages=[dict(CHAT[0])]) == expected
    assert len(older.counted) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "user", "content": "Hello!"}]},
        {"messages": [*CHAT, *CHAT]},
        {"messages": CHAT, "tools": [{"type": "function"}]},
        {"text": "Hello"},
        {"messages": CHAT, "model": "claude-3-5-sonnet"},
    ],
    ids=["another text", "more", "with tools", "a text", "for another model"],
)
def test_another_one_is_counted_by_itself(other: dict[str, Any], older: Counter) -> None:
    older.utils.token_counter("gpt-4o", messages=CHAT)
    asked = {"model": "gpt-4o", **other}
    assert older.utils.token_counter(**asked) == older.own(**asked)


@pytest.mark.parametrize("text", ["half a pair: \ud83d", object()], ids=["half a surrogate pair", "an object"])
def test_what_is_not_json_is_counted_each_time(text: object, older: Counter) -> None:
    for count in (1, 2):
        older.utils.token_counter("gpt-4o", text=text)
        assert len(older.counted) == count


def test_only_the_last_counts_are_kept(older: Counter, programs: dict[str, Any]) -> None:
    for number in range(programs["token_counts"].KEPT + 1):
        older.utils.token_counter("gpt-4o", text=str(number))
    older.counted.clear()
    older.utils.token_counter("gpt-4o", text=str(programs["token_counts"].KEPT))
    assert older.counted == []
    older.utils.token_counter("gpt-4o", text="0")
    assert len(older.counted) == 1


def test_releases_that_count_once_are_left_alone(programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    newer = Counter(monkeypatch)
    programs["token_counts"].install()
    assert newer.utils.token_counter is newer.own
