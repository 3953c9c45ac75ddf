"""The lane for streams, as far as it needs no LiteLLM: how events are read, and what is kept of an answer."""

from __future__ import annotations

import importlib.metadata
import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import test_guard

if TYPE_CHECKING:
    from collections.abc import Sequence

programs = test_guard.programs
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1).filter(str.strip)
NOISE = st.sampled_from(["", ": ping", "event: chunk", "id: 7", "retry: 10"])


@pytest.fixture(scope="module")
def streams(programs: dict[str, Any]) -> Any:
    """The module, as LiteLLM's process has it."""
    return programs["streams"]


def read(streams: Any, pieces: Sequence[bytes]) -> list[str]:
    reader = streams.EventReader()
    found = [data for piece in pieces for data in reader.feed(piece)]
    return [*found, *reader.close()]


@given(
    events=st.lists(st.tuples(TEXTS, NOISE)),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=st.sets(st.integers(0, 400)),
)
def test_events_are_the_same_however_their_bytes_are_cut(
    streams: Any, events: list[tuple[str, str]], end: str, cuts: set[int]
) -> None:
    """Also in the middle of a line ending or a character, with comments, names and ids in between."""
    sent = "".join(f"{noise}{end}data: {text}{end}{end}" for text, noise in events).encode()
    bounds = [0, *sorted(cut for cut in cuts if 0 < cut < len(sent)), len(sent)]
    pieces = [sent[start:stop] for start, stop in pairwise(bounds)]
    assert read(streams, pieces) == [text for text, _ in events]


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        (b"data: one\ndata: two\n\n", ["one\ntwo"]),
        (b"data:one\n\n", ["one"]),
        (b"data:\n\ndata\n\ndata: one\n\n", ["one"]),
        (b"data: [DONE]", ["[DONE]"]),
        (b"data: [DONE]\n", ["[DONE]"]),
        (b"<html>\n<body>data: no</body>\n", []),
        (b"", []),
    ],
)
def test_data_is_what_the_standard_says(streams: Any, sent: bytes, events: list[str]) -> None:
    """Lines of data are one text, one blank after the colon is not data; the last event may have no blank line."""
    assert read(streams, [sent]) == events


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "1", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}


def test_an_answer_is_kept_in_few_chunks_however_many_it_came_in(streams: Any) -> None:
    """What LiteLLM is given at the end: the text, each call of a tool, the end."""
    answer = streams.Answer()
    answer.add(chunk({"role": "assistant", "content": ""}))
    for number in range(1000):
        answer.add(chunk({"content": f"{number} "}))
    answer.add(chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x"'}}]}))
    answer.add(chunk({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}))
    answer.add(chunk({}, "tool_calls", usage={"total_tokens": 3}))
    text, call, arguments, end = answer.events()
    assert text["choices"][0]["delta"] == {
        "role": "assistant",
        "content": "".join(f"{number} " for number in range(1000)),
    }
    assert call["choices"][0]["delta"]["tool_calls"][0]["id"] == "a"
    assert arguments["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] == '{"x": 1}'
    assert (end["choices"][0]["finish_reason"], end["usage"]) == ("tool_calls", {"total_tokens": 3})


def test_an_answer_is_finished_when_each_of_its_choices_is(streams: Any) -> None:
    answer = streams.Answer()
    assert not answer.is_finished()
    answer.add(chunk({"content": "one"}))
    answer.add({"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]})
    assert not answer.is_finished()
    answer.add(chunk({}, "length"))
    assert answer.is_finished()


def test_chunks_are_written_as_json_under_the_model_that_litellm_says(streams: Any) -> None:
    """LiteLLM's proxy puts a name before each event that it makes; to it, events that arrived together are one."""
    bodies = [
        {"id": "1", "model": "gpt-4o", "choices": [{"delta": {"content": text}}]} for text in ("half: \ud83d", "b")
    ]
    event = streams.Event.of([dict(body) for body in bodies], {})
    assert event.model == "gpt-4o"
    sent = f"data: {event.model_copy(update={'model': 'alias'}).model_dump_json(exclude_none=True)}\n\n"
    assert sent.isascii()
    assert [json.loads(data) for data in read(streams, [sent.encode()])] == [
        {**body, "model": "alias"} for body in bodies
    ]


@pytest.mark.parametrize(
    "value",
    ["plain", "half: \ud83d", "é", "\u2028", "\x00\x7f", -9999.0, 1e-07, 2**64 - 1, None, ["a"]],
)
def test_chunks_are_read_and_written_without_a_change(value: Any, streams: Any) -> None:
    """As ASCII, which no client splits in the wrong place."""
    body = {"id": "1", "choices": [{"index": 0, "delta": {"content": value}}]}
    for data in (streams.written([body]), json.dumps(body)):
        assert data.isascii()
        assert streams._parsed(data) == body


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_in_json_reaches_the_caller_as_null(word: str, streams: Any) -> None:
    """As from LiteLLM's own way: SDKs of JavaScript could not read the chunk."""
    assert json.loads(streams.written([streams._parsed(f'{{"logprob": {word}}}')])) == {"logprob": None}


def test_a_release_that_it_was_not_proven_with_is_left_alone(
    streams: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says so, in one line."""
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.107.0")
    assert not streams.install(enabled=True)
    (line,) = caplog.messages
    assert line == "Fast streams are off: not proven with LiteLLM 1.107.0, only with 1.55.0, 1.106.12, 1.108.14."


def test_turned_off_it_says_nothing(streams: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert not streams.install(enabled=False)
    assert caplog.messages == []
