"""Spans, where OpenTelemetry is installed."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app import ProviderError, _tracing


def test_a_request_is_a_span_with_its_model_and_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    assert _tracing.trace is not None
    monkeypatch.setattr(_tracing.trace, "get_tracer", provider.get_tracer)
    with _tracing.span("embeddings", "m"):
        pass
    with pytest.raises(ProviderError), _tracing.span("chat", "gpt-4o"):
        raise ProviderError("gone", model="gpt-4o")
    first, second = exporter.get_finished_spans()
    assert (first.name, first.status.is_ok) == ("embeddings m", True)
    assert second.attributes == {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o"}
    assert not second.status.is_ok
    provider.shutdown()


def test_without_opentelemetry_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tracing, "trace", None)
    with _tracing.span("chat", "m"):
        pass
