"""The demo provider answers in the forms that SDKs read."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import tracemalloc
from typing import Any

import httpx2
import pytest

from demo import provider


def ask(path: str, **body: object) -> httpx2.Response:
    async def send() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=provider.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://demo") as client:
            return await client.post(path, json=body)

    return asyncio.run(send())


def test_a_long_message_is_counted_whole_and_repeated_in_part() -> None:
    """A list of all its words, or one piece of the answer for each word, would use up the container's memory."""
    text = "word " * 100_000
    tracemalloc.start()
    answer = ask("/v1/chat/completions", model="gpt-4o", messages=[{"role": "user", "content": text}]).json()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer["usage"]["prompt_tokens"] == 100_000
    assert len(answer["choices"][0]["message"]["content"]) < 20_000
    assert peak < 12 * len(text)


def embedded(**body: object) -> list[Any]:
    answer = ask("/v1/embeddings", model="text-embedding-3-small", **body).json()
    return [item["embedding"] for item in answer["data"]]


def test_an_embedding_is_packed_when_base64_is_asked_for() -> None:
    """As little-endian float32: SDKs ask for this by default, and read any answer as that."""
    ((numbers,), (packed,)) = embedded(input="hello"), embedded(input="hello", encoding_format="base64")
    assert len(numbers) == 1536
    assert struct.unpack("<1536f", base64.b64decode(packed)) == pytest.approx(numbers, rel=1e-6)


@pytest.mark.parametrize(
    ("given", "count"), [("a", 1), (["a"], 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2), ([], 0)]
)
def test_there_is_an_embedding_for_each_input(given: object, count: int) -> None:
    """A list of tokens is one input."""
    assert len(embedded(input=given)) == count


def test_a_picture_is_one() -> None:
    first, _ = ask("/v1/images/generations", prompt="a cat", n=2).json()["data"]
    assert base64.b64decode(first["b64_json"]).startswith(b"\x89PNG\r\n")
    (linked,) = ask("/v1/images/generations", prompt="a cat", response_format="url").json()["data"]
    assert linked["url"] == f"data:image/png;base64,{first['b64_json']}"


def test_each_input_is_moderated() -> None:
    results = ask("/v1/moderations", input=["a", "b"]).json()["results"]
    assert [result["flagged"] for result in results] == [False, False]


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/moderations"])
def test_a_fault_is_recognized_in_any_text(path: str) -> None:
    text = "[[demo status=429]]"
    assert ask(path, prompt=text, input=text).status_code == 429


def test_what_it_does_not_serve_it_says() -> None:
    """In OpenAI's form, so that SDKs show the text."""
    answer = ask("/v1/rerank")
    assert answer.status_code == 404
    assert "does not serve /v1/rerank" in answer.json()["error"]["message"]


def shape(given: object) -> object:
    """What has which fields, whatever their values are."""
    if isinstance(given, dict):
        return {name: shape(value) for name, value in given.items()}
    return [shape(each) for each in given] if isinstance(given, list) else type(given)


def streamed(path: str, **body: object) -> list[dict[str, Any]]:
    lines = ask(path, stream=True, stream_options={"include_usage": True}, **body).text.split("\n")
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [json.loads(each) for each in data if each != "[DONE]"]


OPENAI, ANTHROPIC = provider.ANSWERS["openai"], provider.ANSWERS["anthropic"]
FORMS = [
    ("/v1/chat/completions", OPENAI, "plain"),
    ("/v1/chat/completions", OPENAI, "tools"),
    ("/v1/chat/completions", OPENAI, "refusal"),
    ("/v1/responses", OPENAI["responses"], "plain"),
    ("/v1/responses", OPENAI["responses"], "tools"),
    ("/v1/messages", ANTHROPIC, "plain"),
    ("/v1/messages", ANTHROPIC, "tools"),
]


@pytest.mark.parametrize(("path", "recorded", "kind"), FORMS)
def test_an_answer_has_the_form_of_the_recorded_one(path: str, recorded: dict[str, Any], kind: str) -> None:
    messages = [{"role": "user", "content": f"[[demo answer={kind}]] Good"}]
    body = {"model": "m", "messages": messages, "input": messages}
    assert shape(ask(path, **body).json()) == shape(recorded[kind])
    shapes = [shape(each) for each in recorded[provider.STREAM[kind]]]
    told = [shape(each) for each in streamed(path, **body)]
    assert [each for each in told if each not in shapes] == []
    assert [each for each in shapes if each not in told] == []
    assert (told[0], told[-1]) == (shapes[0], shapes[-1])


def test_it_counts_tokens_as_anthropic_does() -> None:
    """The same number as in an answer to the same messages, in the field of Anthropic's API."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "How are you?"}]}
    counted = ask("/v1/messages/count_tokens", **asked).json()
    assert counted == {"input_tokens": ask("/v1/messages", **asked).json()["usage"]["input_tokens"]}


def test_a_response_tells_its_text_in_words_and_whole() -> None:
    """As OpenAI's Responses do: in pieces, then again in each closing event, and with the usage."""
    body = {"model": "gpt-4o", "input": "good morning"}
    whole = ask("/v1/responses", **body).json()
    text = whole["output"][0]["content"][0]["text"]
    assert text.endswith("You said: good morning")
    events = streamed("/v1/responses", **body)
    assert "".join(event["delta"] for event in events if event["type"].endswith(".delta")) == text
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    last = events[-1]["response"]
    assert (last["output"], last["model"], last["usage"]) == (whole["output"], "gpt-4o", whole["usage"])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_it_says_which_answer_it_does_not_have(path: str) -> None:
    messages = [{"role": "user", "content": "[[demo answer=poem]]"}]
    answer = ask(path, model="m", messages=messages, input=messages)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "The demo provider has no answer poem."


def test_a_stream_is_cut_after_as_many_chunks_as_are_told() -> None:
    """A ping, which Anthropic sends when it likes, is not counted."""
    chunks = [f"event: {kind}\n\n" for kind in ("message_start", "ping", "content_block_delta", "message_stop")]
    sent: list[str] = []

    async def read() -> None:
        async for chunk in provider.cut_short(chunks, provider.Fault(cut=2)):
            sent.append(chunk)

    with pytest.raises(provider.BrokenOffError):
        asyncio.run(read())
    assert sent == chunks[:3]
