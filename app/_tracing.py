"""Spans, where OpenTelemetry's API is installed; nothing otherwise.

Names and attributes are those of OpenTelemetry's conventions for generative AI. No span holds a prompt or an answer.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

trace: ModuleType | None
try:
    from opentelemetry import trace
except ImportError:
    trace = None

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


@contextmanager
def span(operation: str, model: str) -> Iterator[None]:
    """Trace one request; `operation` is `chat` or `embeddings`."""
    if trace is None:
        yield
        return
    attributes = {"gen_ai.operation.name": operation, "gen_ai.request.model": model}
    # An error's message is recorded as the module's own, which tells no secret.
    with trace.get_tracer("app").start_as_current_span(
        f"{operation} {model}", kind=trace.SpanKind.CLIENT, attributes=attributes
    ):
        yield
