"""Spans, where OpenTelemetry is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import app
from app import _tracing
from tests.unit.test_app import HELLO, ORGANIZATION, USAGE, Gateway, chunk, completion, error, face, gateway, sse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.faces import Face

__all__ = ["face", "gateway"]  # fixtures

HEADERS = {"x-litellm-model-group": "gpt-4o", "x-litellm-call-id": "call-1"}
ANSWERED = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o",
    "gen_ai.response.id": "call-1",
    "gen_ai.response.finish_reasons": ("stop",),
    "gen_ai.usage.input_tokens": 1,
    "gen_ai.usage.output_tokens": 2,
}


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    assert _tracing.trace is not None
    monkeypatch.setattr(_tracing.trace, "get_tracer", provider.get_tracer)
    yield made
    provider.shutdown()


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    exporter.clear()
    return span


def streamed() -> httpx2.Response:
    answer = sse(chunk("a"), chunk("b"), chunk(None, "stop"), chunk(usage=USAGE), "data: [DONE]\n\n")
    answer.headers.update(HEADERS)
    return answer


def test_a_span_has_the_model_that_answered_and_what_it_counted(
    face: Face, gateway: Gateway, exporter: InMemorySpanExporter
) -> None:
    """Its attributes follow OpenTelemetry's conventions, for whole and for streamed answers."""
    gateway.answer = lambda body: (
        streamed() if body.get("stream") else httpx2.Response(200, json=completion(), headers=HEADERS)
    )
    for ask in (face.chat, face.stream):
        ask(HELLO)
        span = only(exporter)
        assert (span.name, dict(span.attributes or {}), span.status.is_ok) == ("chat gpt-4o", ANSWERED, True)


def test_a_span_of_vectors_counts_their_tokens(face: Face, gateway: Gateway, exporter: InMemorySpanExporter) -> None:
    vectors = {"data": [{"index": 0, "embedding": [1]}], "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    gateway.answer = lambda _: httpx2.Response(200, json=vectors)
    face.embed("a", "m")
    span = only(exporter)
    assert span.name == "embeddings m"
    assert (span.attributes or {})["gen_ai.usage.input_tokens"] == 4


def test_a_span_of_a_stream_ends_with_the_stream(gateway: Gateway, exporter: InMemorySpanExporter) -> None:
    gateway.answer = lambda _: streamed()
    stream = app.stream_chat_completion(HELLO)
    assert next(stream) == "a"
    assert exporter.get_finished_spans() == ()
    assert list(stream) == ["b"]
    assert (only(exporter).attributes or {})["gen_ai.usage.output_tokens"] == 2
    with app.stream_chat_completion(HELLO):
        assert exporter.get_finished_spans() == ()
    assert only(exporter).status.is_ok, "left early is no failure"


def test_a_span_has_its_error(face: Face, gateway: Gateway, exporter: InMemorySpanExporter) -> None:
    """Before the answer, and in the middle of it."""
    gateway.answer = lambda body: sse(chunk("a"), "data: {}\n\n") if body.get("stream") else error(500)
    for ask, kind in ((face.chat, app.ProviderError), (face.stream, app.StreamInterruptedError)):
        with pytest.raises(kind):
            ask(HELLO)
        span = only(exporter)
        assert not span.status.is_ok
        assert (span.attributes or {})["error.type"] == kind.__name__
        assert [event.name for event in span.events] == ["exception"]


def test_a_fallback_has_its_own_span(face: Face, gateway: Gateway, exporter: InMemorySpanExporter) -> None:
    gateway.answer = lambda body: error(500) if body["model"] == "gpt-4o" else streamed()
    face.stream_for_org(ORGANIZATION.id, HELLO)
    first, second = exporter.get_finished_spans()
    assert (first.status.is_ok, second.status.is_ok) == (False, True)
    assert second.name == "chat claude-3-5-sonnet"


def test_without_opentelemetry_there_is_none(
    face: Face, gateway: Gateway, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tracing, "trace", None)
    assert face.chat(HELLO).content == "hi"
    gateway.answer = lambda _: streamed()
    assert face.stream(HELLO)[1].content == "ab"
    assert exporter.get_finished_spans() == ()
