"""Who used what: a line of JSON on standard output for each answer and each failed try, and Prometheus counters.

LiteLLM reports both to its callbacks, and counts tokens and cost. The client and the id of the call are the edge's,
the organization is the caller's own label (docs/spend.md). A line has the fields of `Event` and no other: never a
prompt, an answer or a key.
"""

from __future__ import annotations

import asyncio
import hmac
import importlib
import json
import logging
import os
import socket
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from answers import current

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from answers import Exchange

    App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]

LOG = logging.getLogger("litellm.usage")
PATH = "/llm-gateway/metrics"
"""The path at which the edge asks a replica for its counters, with the master key. The edge lets no caller ask
there."""
OWN_STREAMS = "1.55.0"
"""The release that counts streams with a tokenizer, and not at all if the caller leaves."""
SUCCEEDED, FAILED, LEFT = "success", "failure", "left"
OTHER = "(other)"
"""In counters: the label for models that match a pattern of the model list, which any number of names can match."""
LONGEST = 200
"""Characters of a field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An answer, or a try that failed: what a line of the log has, in this order."""

    time: str
    """When LiteLLM reported it, in UTC."""
    client: str | None
    call_id: str | None
    """That of the request, as in the edge's log. The tries of a request have the same."""
    organization: str | None
    model: str | None
    """What was asked for."""
    answered_by: str | None
    """The provider's own name of the model that was asked."""
    provider: str | None
    status: str
    """`success`, `failure`, or `left` where the caller did not wait for the end."""
    error: str | None
    """The kind of error, as LiteLLM names it."""
    stream: bool
    prompt_tokens: int | None
    """None where nobody counted."""
    completion_tokens: int | None
    total_tokens: int | None
    cost: float | None
    """US dollars; None where LiteLLM has no price, or nobody counted."""
    estimated: bool
    """Whether LiteLLM counted the tokens itself, and not the provider."""


class Totals:
    """Prometheus counters of this replica's events, in its text format."""

    HELP = {  # noqa: RUF012 -- never changed
        "llm_gateway_calls_total": "Answers and failed attempts, by outcome.",
        "llm_gateway_tokens_total": "Tokens of the answers.",
        "llm_gateway_cost_usd_total": "Cost of the answers that have a price.",
        "llm_gateway_unpriced_tokens_total": "Tokens of the answers that have no price.",
    }

    def __init__(self, *, replica: str, models: Callable[[], Sequence[str]]) -> None:
        self.replica, self.models = replica, models
        self.counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def tell(self, event: Event) -> None:
        """Write a line of an event at once - a pipe takes up to 4,096 bytes undivided - and count it."""
        os.write(1, f"{json.dumps({'event': 'usage', **asdict(event)})}\n".encode())
        self.add(event)

    def add(self, event: Event) -> None:
        """Count an event."""
        model = event.model if event.model in self.models() else OTHER
        of = {"client": event.client or "", "model": model, "replica": self.replica}
        self._count("llm_gateway_calls_total", 1, **of, status=event.status)
        self._count("llm_gateway_tokens_total", event.prompt_tokens or 0, **of, type="prompt")
        self._count("llm_gateway_tokens_total", event.completion_tokens or 0, **of, type="completion")
        if event.cost is not None:
            self._count("llm_gateway_cost_usd_total", event.cost, **of)
        else:
            self._count("llm_gateway_unpriced_tokens_total", event.total_tokens or 0, **of)

    def _count(self, name: str, amount: float, **labels: str) -> None:
        self.counts[name, tuple(sorted(labels.items()))] += amount  # type: ignore[assignment] -- dollars too

    def lines(self) -> Iterator[str]:
        """The text format, version 0.0.4."""
        for name, text in self.HELP.items():
            yield f"# HELP {name} {text}"
            yield f"# TYPE {name} counter"
            for (counted, labels), value in sorted(self.counts.items()):
                if counted == name:
                    yield f"{name}{{{','.join(f'{label}={_quoted(it)}' for label, it in labels)}}} {value}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def event_of(kwargs: Mapping[str, Any], exchange: Exchange, *, failed: bool, version: str) -> Event:
    """What is kept of an event; LiteLLM passes everything that it knows to its callbacks."""
    told = kwargs.get("standard_logging_object") or {}
    parameters = kwargs.get("litellm_params") or {}
    metadata = parameters.get("metadata") or parameters.get("litellm_metadata") or {}
    left = exchange.left or bool(metadata.get("client_disconnected"))
    deployment = str(metadata.get("deployment") or "")
    prefix = deployment.partition("/")[0] if "/" in deployment else None
    provider = kwargs.get("custom_llm_provider") or parameters.get("custom_llm_provider") or prefix
    tokens: dict[str, int | None] = {
        name: None if failed or not told.get("total_tokens") else int(told.get(name) or 0)
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    return Event(
        time=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        client=exchange.client,
        call_id=exchange.call_id,
        organization=exchange.organization,
        model=_short(exchange.model),
        answered_by=_short(deployment.removeprefix(f"{provider}/") or kwargs.get("model")),
        provider=_short(provider),
        status=FAILED if failed else LEFT if left else SUCCEEDED,
        error=type(kwargs.get("exception")).__name__ if failed else None,
        stream=exchange.stream,
        **tokens,
        cost=None if failed else cost_of(kwargs, told),
        estimated=not failed and exchange.stream and (version == OWN_STREAMS or exchange.estimated),
    )


def cost_of(kwargs: Mapping[str, Any], told: Mapping[str, Any]) -> float | None:
    """US dollars. LiteLLM's 0 for tokens means that it knows no price, unless its cache answered."""
    if told.get("cache_hit") or kwargs.get("cache_hit"):
        return 0.0
    cost = told.get("response_cost") or kwargs.get("response_cost")
    return float(cost) if cost else None


def _short(text: object) -> str | None:
    return str(text)[:LONGEST] if text else None


class Metrics:
    """ASGI middleware that tells the counters to anyone with the master key."""

    def __init__(self, app: App, totals: Totals) -> None:
        self.app, self.totals = app, totals

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer, or leave it to LiteLLM."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        wanted = f"Bearer {os.environ.get('LITELLM_MASTER_KEY', '')}".encode()
        has_key = hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), wanted)
        body = "".join(f"{line}\n" for line in self.totals.lines()).encode() if has_key else b""
        content_type = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        await send({"type": "http.response.start", "status": 200 if has_key else 401, "headers": [content_type]})
        await send({"type": "http.response.body", "body": body})


async def left(exchange: Exchange, totals: Totals) -> None:
    """Report an answer for which its caller did not wait, if LiteLLM does not do so itself.

    A stream is reported as if it had ended there. If nothing had begun, only that a provider was asked, which may
    bill it.
    """
    if exchange.given_up:
        if exchange.asked and not exchange.told:
            totals.tell(event_of({}, exchange, failed=False, version=""))
        return
    wrapper = exchange.wrapper
    if wrapper is None or wrapper.sent_last_chunk:
        return
    try:
        in_lane = getattr(wrapper, "report_left", None)
        if in_lane is None or not await in_lane():
            end = wrapper.finish_reason_handler()
            await wrapper.logging_obj.async_success_handler(end)
            await asyncio.to_thread(wrapper.logging_obj.success_handler, end)
    except Exception:
        LOG.exception("The tokens of a stream whose caller left are unknown")


def install(models: Callable[[], Sequence[str]], version: str) -> Totals:
    """Make LiteLLM report each answer; return the counters. Raises if it cannot, so LiteLLM does not start."""
    litellm, proxy = importlib.import_module("litellm"), importlib.import_module("litellm.proxy.proxy_server")
    totals = Totals(replica=socket.gethostname(), models=models)

    def note(kwargs: Mapping[str, Any], *, failed: bool) -> None:
        exchange, call = current.get(), str(kwargs.get("litellm_call_id"))
        if exchange is None or exchange.model is None:
            return  # no call of a model: LiteLLM reports a refused list of models too, as the edge's checks may get
        if exchange.given_up or (call in exchange.told and not failed):
            return  # reported in `left`; and LiteLLM 1.55.0 may report one answer twice
        if not failed:
            exchange.told.add(call)
        totals.tell(event_of(kwargs, exchange, failed=failed, version=version))

    class Usage(importlib.import_module("litellm.integrations.custom_logger").CustomLogger):  # type: ignore[misc]
        async def async_log_success_event(self, kwargs: dict[str, Any], *_: Any, **__: Any) -> None:
            note(kwargs, failed=False)

        async def async_log_failure_event(self, kwargs: dict[str, Any], *_: Any, **__: Any) -> None:
            note(kwargs, failed=True)

    litellm.callbacks.append(Usage())
    proxy.app.add_middleware(Metrics, totals=totals)
    handler = importlib.import_module("litellm.litellm_core_utils.streaming_handler").CustomStreamWrapper
    builder = importlib.import_module("litellm.litellm_core_utils.streaming_chunk_builder_utils").ChunkProcessor
    if version == OWN_STREAMS:
        _note_streams(handler)
    else:
        _note_estimates(builder)
    return totals


def _note_streams(handler: Any) -> None:
    """Have each exchange know its stream."""
    made = handler.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        made(self, *args, **kwargs)
        if (exchange := current.get()) is not None:
            exchange.wrapper = self

    handler.__init__ = __init__


def _note_estimates(builder: Any) -> None:
    """Have each exchange know whether its provider counted the tokens of a stream."""
    counted = builder._calculate_usage_per_chunk  # noqa: SLF001

    def _calculate_usage_per_chunk(self: Any, *args: Any, **kwargs: Any) -> Any:
        usage = counted(self, *args, **kwargs)
        if (exchange := current.get()) is not None:
            exchange.estimated = usage["prompt_tokens"] is None or usage["completion_tokens"] is None
        return usage

    builder._calculate_usage_per_chunk = _calculate_usage_per_chunk  # noqa: SLF001
