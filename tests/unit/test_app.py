"""The client and the service, against a fake gateway: the same tests for both faces."""

from __future__ import annotations

import asyncio
import base64
import inspect
import itertools
import json
import logging
import os
import re
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx2
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import app
from app import _answers, _http, _requests, _settings, _types, aio, organizations
from app._made_once import PerLoop, PerProcess
from tests.faces import FACES, Face
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = "sk-the-key-of-this-test"
PROMPT = "the-prompt-of-this-test"
HELLO = [app.ChatMessage("user", PROMPT)]
ORGANIZATION = organizations.Organization(
    UUID(int=7), "acme", "gpt-4o", "claude-3-5-sonnet", datetime(2026, 1, 1, tzinfo=UTC)
)
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def completion(content: str = "hi", **changes: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": USAGE,
    } | changes


def chunk(text: str | None = None, finish_reason: str | None = None, usage: dict[str, int] | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish_reason}
    choices = [choice] if text or finish_reason or usage is None else []
    data = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": choices}
    return f"data: {json.dumps(data | ({'usage': usage} if usage else {}))}\n\n"


def sse(*events: str) -> httpx2.Response:
    return httpx2.Response(200, content="".join(events), headers={"content-type": "text/event-stream"})


def error(status: int, message: str = "", code: str | None = None) -> httpx2.Response:
    kind = "budget_exceeded" if message.startswith("The budget") else None  # as litellm/limits.py
    body = {"message": message, "type": kind, "param": None, "code": code or str(status)}
    return httpx2.Response(status, json={"error": body}, headers={"x-litellm-call-id": "call-9"})


class Gateway:
    """Answers requests by a function of the requested model, and keeps them."""

    def __init__(self) -> None:
        self.requests: list[httpx2.Request] = []
        self.answer: Callable[[dict[str, Any]], httpx2.Response] = lambda _body: httpx2.Response(
            200, json=completion()
        )

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        return self.answer(json.loads(request.content))

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.content) for request in self.requests]


@pytest.fixture(params=FACES, ids=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Face:
    made: Face = request.param
    return made


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gateway:
    made = Gateway()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_URL", "http://gateway.test:4000")
    monkeypatch.setenv("LITELLM_API_KEY", KEY)
    transport = httpx2.MockTransport(made)
    monkeypatch.setattr(_http, "shared", PerProcess(lambda: _http.Pool(transport)))
    monkeypatch.setattr(_http, "per_loop", PerLoop(lambda: _http.AsyncPool(transport), httpx2.AsyncClient.aclose))

    async def found(_id: object) -> organizations.Organization:
        return ORGANIZATION

    monkeypatch.setattr(organizations, "get", lambda _id: ORGANIZATION)
    monkeypatch.setattr(organizations, "get_async", found)
    return made


def test_the_public_names_are_these() -> None:
    """A change of the public API is a deliberate decision, and must be made here too."""
    assert [name for name in app.__all__ if not name.endswith("Error")] == [
        "ChatCompletionOptions",
        "ChatCompletionResult",
        "ChatCompletionStream",
        "ChatMessage",
        "EmbeddingResult",
        "Settings",
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
    assert app.__all__ == sorted(app.__all__)
    assert aio.__all__ == [name for name in app.__all__ if getattr(app, name).__module__ == "app._client"]
    for name in app.__all__:
        assert getattr(app, name).__module__.startswith("app."), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = app.nothing


def test_both_faces_take_the_same_arguments() -> None:
    for name in aio.__all__:
        if name != "ChatCompletionStream":
            assert (
                inspect.signature(getattr(aio, name)).parameters == inspect.signature(getattr(app, name)).parameters
            )


def test_every_error_is_in_the_drawn_tree() -> None:
    from app import _errors  # noqa: PLC0415

    drawn = re.findall(r"^[ │├└─]+(\w+Error)\b", str(_errors.__doc__), re.MULTILINE)
    made = {name for name in app.__all__ if name.endswith("Error")}
    assert set(drawn) == made
    assert all(issubclass(getattr(app, name), app.LLMError) for name in made)


def test_an_answer_becomes_a_result(face: Face, gateway: Gateway) -> None:
    headers = {"x-litellm-model-group": "gpt-4o", "x-litellm-call-id": "call-1"}
    gateway.answer = lambda _: httpx2.Response(200, json=completion("hi"), headers=headers)
    assert face.chat(HELLO) == app.ChatCompletionResult(
        content="hi",
        model="gpt-4o",
        usage=app.Usage(1, 2, 3),
        requested_model="gpt-4o",
        used_fallback=False,
        finish_reason="stop",
        request_id="call-1",
    )


def test_a_request_says_what_the_options_say_and_nothing_else(face: Face, gateway: Gateway) -> None:
    face.chat(HELLO)
    face.chat(HELLO, app.ChatCompletionOptions(model="m", temperature=0, max_tokens=5, timeout=3))
    sent = {"messages": [{"role": "user", "content": PROMPT}]}
    assert gateway.bodies == [{"model": "gpt-4o", **sent}, {"model": "m", "temperature": 0, "max_tokens": 5, **sent}]
    assert gateway.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert str(gateway.requests[0].url) == "http://gateway.test:4000/v1/chat/completions"
    assert gateway.requests[1].extensions["timeout"]["read"] == pytest.approx(3, abs=0.5)


WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CALL = app.ToolCall("call_abc123", "get_weather", '{"city": "Paris"}')


def test_a_request_has_what_todays_models_take(face: Face, gateway: Gateway) -> None:
    """Options have the names of OpenAI's API; messages can have images, function calls and their results."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [
        app.ChatMessage("user", [{"type": "text", "text": PROMPT}, image]),
        app.ChatMessage("assistant", "", tool_calls=(CALL,)),
        app.ChatMessage("tool", "18 C", tool_call_id=CALL.id),
    ]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    options = app.ChatCompletionOptions(
        reasoning_effort="low",
        response_format={"type": "json_object"},
        seed=7,
        stop=["END"],
        tools=[WEATHER],
        tool_choice=choice,
    )
    face.chat(messages, options)
    called = {"id": CALL.id, "type": "function", "function": {"name": CALL.name, "arguments": CALL.arguments}}
    assert gateway.bodies == [
        {
            "model": "gpt-4o",
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": PROMPT}, image]},
                {"role": "assistant", "content": None, "tool_calls": [called]},
                {"role": "tool", "content": "18 C", "tool_call_id": CALL.id},
            ],
            "reasoning_effort": "low",
            "response_format": {"type": "json_object"},
            "seed": 7,
            "stop": ["END"],
            "tools": [WEATHER],
            "tool_choice": choice,
        }
    ]


RECORDED = yaml.safe_load((PROJECT / "demo/answers/openai.yaml").read_text())


@pytest.mark.parametrize(
    ("name", "content", "calls", "refusal", "finish_reason"),
    [
        ("plain", "Good morning.", (), None, "stop"),
        ("tools", "", (CALL,), None, "tool_calls"),
        ("refusal", "", (), "I'm sorry, I cannot assist with that.", "stop"),
    ],
)
def test_a_recorded_answer_is_read_whole_and_as_a_stream(  # noqa: PLR0913, PLR0917 -- a row has these columns
    face: Face,
    gateway: Gateway,
    name: str,
    content: str,
    calls: tuple[app.ToolCall, ...],
    refusal: str | None,
    finish_reason: str,
) -> None:
    """Text, function calls and refusal, as in OpenAI's documentation (demo/answers/openai.yaml)."""
    stream = "stream" if name == "plain" else f"{name}_stream"
    events = [f"data: {json.dumps(event)}\n\n" for event in RECORDED[stream]]

    def answer(asked: dict[str, Any]) -> httpx2.Response:
        return sse(*events, "data: [DONE]\n\n") if asked.get("stream") else httpx2.Response(200, json=RECORDED[name])

    gateway.answer = answer
    for result in (face.chat(HELLO), face.chat(HELLO, app.ChatCompletionOptions(stream=True)), face.stream(HELLO)[1]):
        assert (result.content, result.tool_calls, result.refusal) == (content, calls, refusal)
        assert (result.finish_reason, result.usage) == (finish_reason, app.Usage(19, 10, 29))


def test_a_refusal_is_found_where_litellm_has_it(face: Face, gateway: Gateway) -> None:
    """LiteLLM 1.106 moves the refusal of a whole answer."""
    message = {"role": "assistant", "content": None, "provider_specific_fields": {"refusal": "I cannot."}}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    gateway.answer = lambda _: httpx2.Response(200, json=completion(choices=[choice]))
    assert face.chat(HELLO).refusal == "I cannot."


def test_a_parameter_that_is_not_taken_is_named(face: Face, gateway: Gateway) -> None:
    """By the gateway or the provider. A name that may be somebody's text is not repeated."""
    said = RECORDED["errors"][400]["error"]
    for param, match in (
        ("max_tokens", "does not accept `max_tokens`"),
        (f"{PROMPT} and more", "rejected the request"),
    ):
        gateway.answer = lambda _, param=param: httpx2.Response(400, json={"error": {**said, "param": param}})  # type: ignore[misc]
        with pytest.raises(app.RequestRejectedError, match=match) as caught:
            face.chat(HELLO)
        assert PROMPT not in str(caught.value)


def test_a_stream_yields_text_and_ends_with_the_same_result(face: Face, gateway: Gateway) -> None:
    gateway.answer = lambda _: sse(
        chunk(), chunk("a"), chunk("b"), chunk(None, "stop"), chunk(usage=USAGE), "data: [DONE]\n\n"
    )
    texts, result = face.stream(HELLO)
    assert texts == ["a", "b"]
    assert (result.content, result.usage, result.finish_reason) == ("ab", app.Usage(1, 2, 3), "stop")
    assert face.chat(HELLO, app.ChatCompletionOptions(stream=True)) == result
    assert all(body["stream"] and body["stream_options"] == {"include_usage": True} for body in gateway.bodies)


def test_usage_may_come_with_the_last_content(face: Face, gateway: Gateway) -> None:
    both = json.loads(chunk("b", "stop").removeprefix("data: ")) | {"usage": USAGE}
    gateway.answer = lambda _: sse(chunk("a"), f"data: {json.dumps(both)}\n\n", "data: [DONE]\n\n")
    assert face.stream(HELLO)[1].usage == app.Usage(1, 2, 3)


def test_an_answer_without_content_is_an_answer(face: Face, gateway: Gateway) -> None:
    gateway.answer = lambda _: sse(chunk(None, "content_filter"), "data: [DONE]\n\n")
    assert face.stream(HELLO)[1].finish_reason == "content_filter"


def test_a_stream_that_breaks_off_gives_what_had_arrived(face: Face, gateway: Gateway) -> None:
    failed = 'data: {"error": {"message": "litellm.APIError: gone", "code": "500"}}\n\n'
    for ends in ([failed], []):
        gateway.answer = lambda _, ends=ends: sse(chunk("a"), chunk("b"), *ends)  # type: ignore[misc]
        with pytest.raises(app.StreamInterruptedError, match="after 2 characters") as caught:
            face.stream(HELLO)
        assert caught.value.content == "ab"


def test_a_stream_left_early_has_no_result(gateway: Gateway) -> None:
    gateway.answer = lambda _: sse(chunk("a"), chunk("b"), chunk(None, "stop"))
    with app.stream_chat_completion(HELLO) as stream:
        assert next(stream) == "a"
        with pytest.raises(RuntimeError, match="to its end first"):
            _ = stream.result
    assert list(stream) == []


def test_a_stream_that_failed_stays_failed(gateway: Gateway) -> None:
    gateway.answer = lambda _: sse(chunk("a"), "data: {}\n\n", chunk("b"))
    stream = app.stream_chat_completion(HELLO)
    assert next(stream) == "a"
    for _ in range(2):
        with pytest.raises(app.StreamInterruptedError, match="after 1 characters"):
            next(stream)


@pytest.mark.parametrize(
    "first", ["data: not json\n\n", "data: {}\n\n", chunk("a").replace('{"content": "a"}', "null")]
)
def test_a_stream_that_begins_with_no_answer_falls_back(face: Face, gateway: Gateway, first: str) -> None:
    whole = sse(chunk("ok"), chunk(None, "stop"), "data: [DONE]\n\n")
    gateway.answer = lambda body: sse(first, chunk("b")) if body["model"] == "gpt-4o" else whole
    with pytest.raises(app.ProviderError, match="not part of an answer"):
        face.stream(HELLO)
    assert face.stream_for_org(ORGANIZATION.id, HELLO)[1].model == "claude-3-5-sonnet"


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@given(data=st.data())
def test_events_may_be_cut_anywhere(line_end: str, data: st.DataObject) -> None:
    """Comments and other fields are skipped, all line endings of the standard work, and data may have many lines."""
    lines = [": ping", "", "event: x", "data: one", "id: 1", "", "data:two", "data: more", "", "", "data: [DONE]"]
    sent = line_end.join(lines).encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sent) - 1))))
    events = _answers.Events()
    pieces = [sent[start:end] for start, end in itertools.pairwise([0, *cuts, len(sent)])]
    assert [event for piece in [*pieces, b""] for event in events.of(piece)] == [b"one", b"two\nmore", b"[DONE]"]


def test_an_embedding_counts_its_dimensions_and_folds_line_breaks(face: Face, gateway: Gateway) -> None:
    gateway.answer = lambda body: httpx2.Response(
        200,
        json={
            "object": "list",
            "model": "m",
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
            "data": [
                {"object": "embedding", "index": index, "embedding": [index, 0.5]}
                for index in reversed(range(len(body["input"])))
            ],
        },
    )
    assert face.embed("a\r\nb\nc") == app.EmbeddingResult(
        embedding=(0.0, 0.5), model="text-embedding-3-small", dimensions=2
    )
    assert [each.embedding[0] for each in face.embed_many(["a", "b", "c"])] == [0.0, 1.0, 2.0]
    assert gateway.bodies[0]["input"] == ["a b c"]
    assert set(gateway.bodies[0]) == {"model", "input"}  # Ollama, Vertex and Bedrock refuse `encoding_format`
    face.embed_many(["a"], "m", timeout=3)
    assert gateway.requests[-1].extensions["timeout"]["read"] == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize(
    ("given", "vector"),
    [
        ([1, 0.5], (1.0, 0.5)),
        (base64.b64encode(struct.pack("<3f", 1, 0.5, -2)).decode(), (1.0, 0.5, -2.0)),
        ("", ()),
    ],
)
def test_a_vector_comes_as_numbers_or_in_base64(
    face: Face, gateway: Gateway, given: object, vector: tuple[float, ...]
) -> None:
    """Each provider chooses, because the request does not say; some number the texts, and some do not."""
    gateway.answer = lambda _: httpx2.Response(200, json={"data": [{"embedding": given}]})
    found = face.embed("a")
    assert (found.embedding, found.dimensions) == (vector, len(vector))


def test_a_server_that_is_not_a_gateway_is_reported(face: Face, gateway: Gateway) -> None:
    """Something else answers at LITELLM_URL: a web page instead of a completion."""
    gateway.answer = lambda _: httpx2.Response(200, html="<h1>hello</h1>")
    for ask in (lambda: face.chat(HELLO), lambda: face.embed("a")):
        with pytest.raises(app.ProviderError, match="with no"):
            ask()


def test_a_message_does_not_show_its_content() -> None:
    assert PROMPT not in repr(HELLO)


def test_a_missing_embedding_is_an_error(face: Face, gateway: Gateway) -> None:
    empty = {"object": "list", "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}, "data": []}
    gateway.answer = lambda _: httpx2.Response(200, json=empty)
    with pytest.raises(app.ProviderError, match="embedded 0 of 1 texts"):
        face.embed("a")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda face: face.chat([]), "no messages"),
        (lambda face: face.chat("hello"), "list of ChatMessage"),
        (lambda face: face.chat([{"role": "user", "content": "x"}]), "must be ChatMessage, not dict"),
        (lambda face: face.chat_for_org(UUID(int=1), "hello"), "list of ChatMessage"),
        (lambda face: face.embed(" \n"), "is empty"),
        (lambda face: face.embed_many([]), "no texts"),
        (lambda face: face.embed_many("text"), "list of strings"),
        (lambda face: face.embed_many([1]), "must be a string, not int"),
    ],
)
def test_bad_input_is_refused_before_any_request(
    face: Face, gateway: Gateway, call: Callable[[Face], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(face)
    assert gateway.requests == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: app.ChatMessage("bot", "x"), "role must be one of system, user, assistant, tool"),  # type: ignore[arg-type]
        (lambda: app.ChatMessage("user", None), "content must be a string"),  # type: ignore[arg-type]
        (lambda: app.ChatMessage("user", ["x"]), "content must be a string or a list of parts"),  # type: ignore[list-item]
        (lambda: app.ChatMessage("user", []), "content must be a string or a list of parts"),
        (lambda: app.ChatMessage("tool", "18 C"), "needs tool_call_id"),
        (lambda: app.ChatMessage("user", "x", tool_call_id="1"), "needs tool_call_id"),
        (lambda: app.ChatMessage("user", "x", tool_calls=[CALL]), "only a message of role assistant"),
        (lambda: app.ChatCompletionOptions(seed="1"), "seed must be a whole number"),  # type: ignore[arg-type]
        (lambda: app.ChatCompletionOptions(stop=1), "stop must be a string"),  # type: ignore[arg-type]
        (lambda: app.ChatCompletionOptions(reasoning_effort=1), "must be a word"),  # type: ignore[arg-type]
        (lambda: app.ChatCompletionOptions(response_format="json"), "must be an object"),  # type: ignore[arg-type]
        (lambda: app.ChatCompletionOptions(tools="x"), "must be a list of functions"),  # type: ignore[arg-type]
        (lambda: app.ChatCompletionOptions(temperature=2.1), "temperature must be from 0 to 2"),
        (lambda: app.ChatCompletionOptions(temperature=float("nan")), "temperature must be"),
        (lambda: app.ChatCompletionOptions(max_tokens=0), "max_tokens must be at least 1"),
        (lambda: app.ChatCompletionOptions(timeout=0), "timeout must be more than 0"),
        (lambda: app.ChatCompletionOptions(model=" "), "model must be a name"),
        (lambda: app.ChatCompletionOptions(model=5), "model must be a name"),  # type: ignore[arg-type]
        (lambda: app.ChatCompletionOptions(temperature="hot"), "temperature must be"),  # type: ignore[arg-type]
        (lambda: app.ChatCompletionOptions(max_tokens=1.5), "max_tokens must be"),  # type: ignore[arg-type]
        (lambda: app.ChatCompletionOptions(timeout=float("inf")), "timeout must be"),
    ],
)
def test_types_refuse_what_no_model_takes(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@given(role=st.sampled_from(["system", "user", "assistant"]), content=st.text())
def test_any_text_is_a_message(role: Any, content: str) -> None:
    assert app.ChatMessage(role, content).content == content


@given(text=st.text(min_size=1))
def test_a_cleaned_text_is_one_line_or_refused(text: str) -> None:
    if not text.strip():
        with pytest.raises(ValueError, match="empty"):
            _types.cleaned([text])
    else:
        assert not re.search(r"[\r\n]", _types.cleaned([text])[0])


def test_types_are_frozen_and_slotted() -> None:
    message = app.ChatMessage("user", "x")
    with pytest.raises(FrozenInstanceError):
        message.content = "y"  # type: ignore[misc]
    for kind in (
        app.ChatMessage,
        app.ChatCompletionOptions,
        app.Usage,
        app.ChatCompletionResult,
        app.EmbeddingResult,
    ):
        assert "__slots__" in vars(kind), kind


QUOTED = "litellm.BadRequestError: OpenAIException - Error code: {} - {{'error': 'x'}}"
FAILURES: list[tuple[str, int, str, str | None, type[app.LLMError], bool]] = [
    ("rate limit", 429, "litellm.RateLimitError: x", None, app.RateLimitedError, True),
    ("provider failed", 500, "litellm.APIError: x", None, app.ProviderError, True),
    ("provider overloaded", 503, "litellm.ServiceUnavailableError: x", None, app.ProviderError, True),
    ("bad gateway", 502, "x", "bad_gateway", app.ProviderError, True),
    ("timeout at LiteLLM", 408, "litellm.Timeout: x", None, app.TimedOutError, True),
    ("timeout at the edge", 504, "x", "gateway_timeout", app.TimedOutError, True),
    ("conflict", 409, "litellm.APIError: x", None, app.ProviderError, True),
    ("model gone at the provider", 404, "litellm.NotFoundError: x", None, app.ModelUnknownError, True),
    ("unknown model", 404, "The model 'x' is not served here.", "model_not_found", app.ModelUnknownError, True),
    (
        "context window",
        400,
        "litellm.ContextWindowExceededError: litellm.BadRequestError: Error code: 400",
        None,
        app.ContextTooLongError,
        True,
    ),
    ("provider's 401", 401, "litellm.AuthenticationError: x", None, app.ProviderError, True),
    ("provider's 403", 400, QUOTED.format(403), None, app.ProviderError, True),
    ("quoted 429", 400, QUOTED.format(429), None, app.RateLimitedError, True),
    ("gateway's 401", 401, "The API key is missing", "invalid_api_key", app.GatewayRefusedKeyError, False),
    ("gateway's 403", 403, "not allowed", None, app.GatewayRefusedKeyError, False),
    ("budget", 429, "The budget of this key is used up.", "insufficient_quota", app.BudgetExceededError, False),
    ("a provider's quota", 429, "litellm.RateLimitError: quota", "insufficient_quota", app.RateLimitedError, True),
    ("no database", 503, "The gateway's database", "database_unavailable", app.GatewayUnreachableError, False),
    ("a provider's budget", 500, "litellm.APIError: our budget was exceeded in Q3", None, app.ProviderError, True),
    ("a provider's text", 500, "litellm.APIError: Invalid model name", None, app.ProviderError, True),
    ("no replica", 503, "No replica of the gateway", "service_unavailable", app.GatewayUnreachableError, False),
    ("content policy", 400, "litellm.ContentPolicyViolationError: x", None, app.ContentRefusedError, False),
    ("other 400", 400, QUOTED.format(400), None, app.RequestRejectedError, False),
    ("422", 422, "litellm.UnprocessableEntityError: x", None, app.RequestRejectedError, False),
]


@pytest.mark.parametrize(
    ("status", "said", "code", "kind", "falls_back"), [row[1:] for row in FAILURES], ids=[row[0] for row in FAILURES]
)
def test_every_row_of_the_fallback_table(  # noqa: PLR0913, PLR0917 -- a row has these columns
    face: Face,
    gateway: Gateway,
    caplog: pytest.LogCaptureFixture,
    status: int,
    said: str,
    code: str | None,
    kind: type[app.LLMError],
    falls_back: bool,  # noqa: FBT001
) -> None:
    """Each answer of the gateway becomes one error, and the app falls back once, with one warning, or not at all."""

    def answer(body: dict[str, Any]) -> httpx2.Response:
        if body["model"] == "gpt-4o":
            return error(status, said, code)
        return httpx2.Response(200, json=completion("from the fallback"))

    gateway.answer = answer
    with pytest.raises(kind) as caught:
        face.chat(HELLO)
    assert len(str(caught.value).splitlines()) == 1
    caplog.clear()
    if falls_back:
        result = face.chat_for_org(ORGANIZATION.id, HELLO)
        assert (result.content, result.used_fallback) == ("from the fallback", True)
        assert (result.requested_model, result.model) == ("gpt-4o", "claude-3-5-sonnet")
        assert [record.levelno for record in caplog.records if record.name == "app"] == [logging.WARNING]
        assert str(ORGANIZATION.id) in caplog.text
        assert "call-9" in caplog.text
    else:
        with pytest.raises(kind):
            face.chat_for_org(ORGANIZATION.id, HELLO)
        assert [body["model"] for body in gateway.bodies] == ["gpt-4o"] * 2
    for secret in (KEY, PROMPT):
        assert secret not in caplog.text + str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (500, "litellm.APIError: APIError: OpenAIException - Connection error."),
        (500, "litellm.APIConnectionError: Cannot connect to host localhost:11434 ssl:default [Connect call failed]"),
        (500, "litellm.InternalServerError: AnthropicException - All connection attempts failed. Handle with `…`."),
        (503, "litellm.ServiceUnavailableError: CohereException - [Errno -3] Temporary failure in name resolution"),
    ],
)
def test_an_error_says_that_the_provider_cannot_be_reached(
    face: Face, gateway: Gateway, status: int, said: str
) -> None:
    gateway.answer = lambda _: error(status, said, None)
    with pytest.raises(app.ProviderError, match="the gateway cannot connect to the provider of gpt-4o"):
        face.chat(HELLO)


def raising(kind: Callable[[], Exception]) -> Callable[[dict[str, Any]], httpx2.Response]:
    def answer(_body: dict[str, Any]) -> httpx2.Response:
        raise kind()

    return answer


@pytest.mark.parametrize(
    ("failure", "kind", "falls_back"),
    [
        (lambda: httpx2.ReadTimeout("x"), app.TimedOutError, True),
        (lambda: httpx2.RemoteProtocolError("x"), app.ProviderError, True),
        (lambda: httpx2.ReadError("x"), app.ProviderError, True),
        (lambda: httpx2.ConnectError("x"), app.GatewayUnreachableError, False),
        (lambda: httpx2.ConnectTimeout("x"), app.GatewayUnreachableError, False),
        (lambda: httpx2.PoolTimeout("x"), app.TimedOutError, True),
        (lambda: httpx2.DecodingError("x"), app.ProviderError, True),
        (lambda: httpx2.TooManyRedirects("x"), app.ProviderError, True),
    ],
)
def test_a_broken_connection_is_told_apart_from_none(
    face: Face,
    gateway: Gateway,
    failure: Callable[[], Exception],
    kind: type[app.LLMError],
    falls_back: bool,  # noqa: FBT001
) -> None:
    gateway.answer = raising(failure)
    with pytest.raises(kind):
        face.chat(HELLO)
    with pytest.raises(app.FallbackFailedError if falls_back else kind):
        face.chat_for_org(ORGANIZATION.id, HELLO)


def test_both_failed_is_one_error_that_names_both(face: Face, gateway: Gateway) -> None:
    gateway.answer = lambda body: error(429 if body["model"] == "gpt-4o" else 500)
    for ask in (face.chat_for_org, face.stream_for_org):
        with pytest.raises(app.FallbackFailedError) as caught:
            ask(ORGANIZATION.id, HELLO)
        assert isinstance(caught.value.primary, app.RateLimitedError)
        assert isinstance(caught.value.fallback, app.ProviderError)
        assert "gpt-4o" in str(caught.value)
        assert "claude-3-5-sonnet" in str(caught.value)


@pytest.mark.parametrize("fallback", [None, "gpt-4o"])
def test_without_another_model_the_first_error_is_the_answer(fallback: str | None) -> None:
    failed = app.ProviderError("x", model="gpt-4o")
    assert not _requests.should_fall_back(failed, model="gpt-4o", fallback=fallback)


def test_a_stream_falls_back_before_its_first_content_only(face: Face, gateway: Gateway) -> None:
    whole = sse(chunk("ok"), chunk(None, "stop"), "data: [DONE]\n\n")
    early = sse(chunk(), 'data: {"error": {"message": "litellm.APIError: gone", "code": "500"}}\n\n')
    late = sse(chunk("a"), 'data: {"error": {"message": "litellm.APIError: gone", "code": "500"}}\n\n')
    gateway.answer = lambda body: early if body["model"] == "gpt-4o" else whole
    assert face.stream_for_org(ORGANIZATION.id, HELLO)[1].model == "claude-3-5-sonnet"
    gateway.answer = lambda body: late if body["model"] == "gpt-4o" else whole
    with pytest.raises(app.StreamInterruptedError):
        face.stream_for_org(ORGANIZATION.id, HELLO)


def test_options_may_name_another_model_than_the_organizations(face: Face, gateway: Gateway) -> None:
    face.chat_for_org(ORGANIZATION.id, HELLO, app.ChatCompletionOptions(model="mini"))
    assert gateway.bodies[0]["model"] == "mini"


def test_the_gateway_is_told_on_whose_behalf_it_is_asked_and_no_provider_is(face: Face, gateway: Gateway) -> None:
    """In a header, also for the fallback and for streams: the body does not change."""
    face.chat(HELLO, app.ChatCompletionOptions(model="gpt-4o"))
    gateway.answer = lambda body: error(500) if body["model"] == "gpt-4o" else httpx2.Response(200, json=completion())
    face.chat_for_org(ORGANIZATION.id, HELLO)
    gateway.answer = lambda _: sse(chunk("ok"), chunk(None, "stop"), "data: [DONE]\n\n")
    face.stream_for_org(ORGANIZATION.id, HELLO)
    told = [request.headers.get("x-llm-organization") for request in gateway.requests]
    assert told == [None, *[str(ORGANIZATION.id)] * 3]
    assert gateway.bodies[0] == gateway.bodies[1]
    assert str(ORGANIZATION.id) not in json.dumps(gateway.bodies)


def test_the_preferred_model_has_60_percent_of_the_time(face: Face, gateway: Gateway) -> None:
    gateway.answer = lambda body: error(500) if body["model"] == "gpt-4o" else httpx2.Response(200, json=completion())
    face.chat_for_org(ORGANIZATION.id, HELLO, app.ChatCompletionOptions(timeout=100))
    reads = [request.extensions["timeout"]["read"] for request in gateway.requests]
    assert reads == [pytest.approx(60, abs=1), pytest.approx(100, abs=1)]


def test_no_time_left_is_a_timeout_without_a_request(gateway: Gateway) -> None:
    attempt = _requests.Attempt(
        model="m",
        messages=HELLO,
        options=app.ChatCompletionOptions(),
        requested_model="m",
        deadline=time.monotonic(),
        last_deadline=time.monotonic(),
    )
    with pytest.raises(app.TimedOutError):
        next(_requests.completion(attempt))
    assert gateway.requests == []


def test_a_client_that_is_closed_leaves_the_pool_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_API_KEY", KEY)
    with app.create_llm_client() as client:
        assert client.max_retries == 0
    client.close()
    assert not _http.shared.get().is_closed
    assert app.create_llm_client() is not client
    pool = _http.shared.get()
    app.close()
    assert pool.is_closed
    assert not _http.shared.get().is_closed
    app.close()


def test_a_forked_process_makes_its_own_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_API_KEY", KEY)
    parent = _http.shared.get()
    if not (child := os.fork()):
        os._exit(0 if _http.shared.get() is not parent else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    app.close()


def test_threads_that_start_at_once_share_one_pool() -> None:
    together = threading.Barrier(50)
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    shared = PerProcess(make)

    def get(_: int) -> object:
        together.wait()
        return shared.get()

    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(get, range(50))) == set(made)
    assert len(made) == 1


def test_every_event_loop_has_its_own_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_API_KEY", KEY)

    async def pool() -> httpx2.AsyncClient:
        async with aio.create_llm_client() as client:
            inside = client._client
        assert not inside.is_closed
        assert _http.per_loop.get() is inside
        return inside

    async def closed() -> httpx2.AsyncClient:
        inside = await pool()
        await aio.close()
        assert inside.is_closed
        assert await pool() is not inside
        return inside

    first, second = asyncio.run(pool()), asyncio.run(closed())
    assert first is not second
    assert first.is_closed, "with its loop"


LOOPS = 32


def test_many_loops_in_threads_of_their_own(gateway: Gateway) -> None:
    """Each thread runs one event loop after another, all of them at once."""
    together = threading.Barrier(LOOPS)

    def ask(_: int) -> list[str]:
        together.wait()
        return [asyncio.run(aio.chat_completion_for_org(ORGANIZATION.id, HELLO)).content for _ in range(12)]

    with ThreadPoolExecutor(LOOPS) as threads:
        assert list(threads.map(ask, range(LOOPS))) == [["hi"] * 12] * LOOPS


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.chdir(tmp_path)
    for name in app.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def test_settings_name_every_problem_and_no_value(nothing_set: pytest.MonkeyPatch) -> None:
    nothing_set.setenv("LITELLM_URL", "not-a-url")
    nothing_set.setenv("DATABASE_URL", "")
    with pytest.raises(app.NotConfiguredError) as caught:
        app.Settings.load()
    assert "LITELLM_URL" in str(caught.value)
    assert "not-a-url" not in str(caught.value)


def test_settings_default_to_the_local_gateway_and_need_a_key_for_a_request(nothing_set: pytest.MonkeyPatch) -> None:
    assert str(app.Settings.load().litellm_url) == "http://localhost:4000/"
    with pytest.raises(app.NotConfiguredError, match="LITELLM_API_KEY is not set"):
        app.create_llm_client()
    with pytest.raises(app.NotConfiguredError, match="DATABASE_URL is not set"):
        organizations.get(UUID(int=1))


def test_settings_follow_the_environment_and_the_file(nothing_set: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing_set.setenv("LITELLM_API_KEY", "one")
    assert app.Settings.load().required_api_key() == "one"
    nothing_set.delenv("LITELLM_API_KEY")
    (tmp_path / ".env").write_text("LITELLM_API_KEY=two\n")
    assert app.Settings.load().required_api_key() == "two"


def test_an_environment_file_that_cannot_be_read_is_one_sentence(
    nothing_set: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_bytes(b"LITELLM_API_KEY=caf\xe9\n")
    with pytest.raises(app.NotConfiguredError, match="is not UTF-8"):
        app.Settings.load()

    def refused() -> None:
        raise PermissionError(13, "Permission denied", ".env")

    (tmp_path / ".env").write_text("")
    nothing_set.setattr(_settings, "Settings", refused)  # as root, who runs this, may read any file
    with pytest.raises(app.NotConfiguredError, match=r'Permission denied.*sudo chown "\$\(id -un\)" \.env'):
        _settings._load((), 1, None)


def test_a_working_folder_may_be_gone(nothing_set: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    nothing_set.chdir(gone)
    gone.rmdir()
    with pytest.raises(app.NotConfiguredError, match="LITELLM_API_KEY is not set"):
        app.chat_completion(HELLO)


@given(value=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_settings_never_show_a_value(value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_API_KEY", f"hidden-{value}")
        patch.setenv("DATABASE_URL", f"hidden-{value}")
        try:
            shown = repr(app.Settings.load())
        except app.NotConfiguredError as error:
            shown = f"{error!r} {error} {error.__cause__}"
        assert "hidden-" not in shown


def test_an_organizations_id_is_a_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("acme", "", 7):
        with pytest.raises(ValueError, match="is a UUID"):
            organizations.get(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("models", "columns"),
    [
        ({}, {}),
        ({"model": None}, {}),
        ({"model": "gpt-4o"}, {"llm_model": "gpt-4o"}),
        ({"fallback": "gpt-4o"}, {"llm_fallback_model": "gpt-4o"}),
        ({"fallback": None}, {"llm_fallback_model": None}),
    ],
)
def test_what_a_new_organization_is_not_given_is_the_databases_default(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Any], columns: dict[str, str | None]
) -> None:
    """It can also be given no fallback, as with `set_models`."""
    made = organizations.Organization(UUID(int=7), "acme", "m", None, datetime.now(UTC))

    def insert(query: str, parameters: tuple[object, ...]) -> organizations.Organization:
        assert f"({', '.join(['name', *columns])}) VALUES" in query
        assert parameters == ("acme", *columns.values())
        return made

    monkeypatch.setattr(organizations, "_one", insert)
    assert organizations.create("acme", **models) is made


@pytest.mark.parametrize(("model", "fallback"), [("", None), ("gpt-4o", " ")])
def test_a_models_name_is_not_empty(model: str, fallback: str | None) -> None:
    """Refused before the database is asked, which would only say that it failed."""
    with pytest.raises(ValueError, match="name must not be empty"):
        organizations.create("acme", model=model, fallback=fallback)
    with pytest.raises(ValueError, match="name must not be empty"):
        organizations.set_models(UUID(int=7), model=model, fallback=fallback)
