"""Spans, if OpenTelemetry's API is installed; nothing otherwise.

Names and attributes follow OpenTelemetry's conventions for generative AI. No span contains a prompt or an answer.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

trace: ModuleType | None
try:
    from opentelemetry import trace
except ImportError:
    trace = None

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from types import ModuleType

    from app._types import ChatCompletionResult, Usage

NOT_TRACED = nullcontext()


class Span:
    """One request to one model, until its answer is complete, which may take long for a stream."""

    def __init__(self, operation: str, model: str) -> None:
        """Start the span; `operation` is `chat` or `embeddings`."""
        attributes = {"gen_ai.operation.name": operation, "gen_ai.request.model": model}
        self._span = trace and trace.get_tracer("app").start_span(
            f"{operation} {model}", kind=trace.SpanKind.CLIENT, attributes=attributes
        )
        if self._span is not None and not self._span.get_span_context().is_valid:
            self._span = None  # the API alone, without an SDK

    def part(self) -> AbstractContextManager[None]:
        """Make spans inside the block children of this one. It ends here only if the block fails."""
        if trace is None or self._span is None:
            return NOT_TRACED
        return self._ended_by_errors(
            trace.use_span(self._span, record_exception=False, set_status_on_exception=False)
        )

    @contextmanager
    def _ended_by_errors(self, current: AbstractContextManager[object]) -> Iterator[None]:
        try:
            with current:
                yield
        except BaseException as error:
            self.end(error)
            raise

    def answered(self, result: ChatCompletionResult) -> None:
        """Record what is known about the answer."""
        self.tell(
            model=result.model,
            usage=result.usage,
            finish_reason=result.finish_reason,
            response_id=result.request_id,
        )

    def tell(
        self,
        *,
        model: str,
        usage: Usage | None,
        finish_reason: str | None = None,
        response_id: str | None = None,
    ) -> None:
        """Record which model answered, and its usage."""
        if self._span is None:
            return
        known = {
            "gen_ai.response.model": model,
            "gen_ai.response.id": response_id,
            "gen_ai.response.finish_reasons": finish_reason and [finish_reason],
            "gen_ai.usage.input_tokens": usage and usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage and usage.completion_tokens,
        }
        self._span.set_attributes({name: value for name, value in known.items() if value is not None})

    def end(self, error: BaseException | None = None) -> None:
        """End the span, once; with an error, as failed. The message is this module's own, without secrets."""
        if trace is None or self._span is None or not self._span.is_recording():
            return
        if error is not None:
            self._span.record_exception(error)
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))
        self._span.end()
