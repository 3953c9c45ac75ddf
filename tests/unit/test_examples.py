"""The example service without a gateway: what its callers are told, and what they are not."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import httpx2
import pytest
from starlette.requests import ClientDisconnect

import app
from app import aio
from examples import service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET = "http://gateway.internal:4000 and what else callers need not know"
CHAT = f"/organizations/{UUID(int=7)}/chat"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
RESULT = app.ChatCompletionResult(
    content="hi there",
    model="claude-3-5-sonnet",
    usage=app.Usage(1, 2, 3),
    requested_model="gpt-4o",
    used_fallback=True,
    finish_reason="stop",
    request_id="call-9",
)


def post(path: str, body: object) -> httpx2.Response:
    async def main() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=service.api)
        async with httpx2.AsyncClient(transport=transport, base_url="http://service.test") as client:
            return await client.post(path, json=body)

    return asyncio.run(main())


def error_of(kind: type[app.LLMError]) -> app.LLMError:
    if kind is app.FallbackFailedError:
        return app.FallbackFailedError(
            app.ProviderError(SECRET, model="m"), app.LLMError(SECRET), fallback_model="other"
        )
    if issubclass(kind, app.RequestError):
        return kind(SECRET, model="m", request_id="call-9")
    return app.StreamInterruptedError(SECRET, content=SECRET) if kind is app.StreamInterruptedError else kind(SECRET)


def answer(outcome: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the module return something, or raise it."""

    async def asked(*_: object) -> Any:
        if isinstance(outcome, app.LLMError):
            raise outcome
        return outcome

    for name in ("chat_completion_for_org", "stream_chat_completion_for_org", "generate_embedding"):
        monkeypatch.setattr(aio, name, asked)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (app.OrganizationNotFoundError, 404),
        (app.ContextTooLongError, 413),
        (app.ContentRefusedError, 422),
        (app.RequestRejectedError, 422),
        (app.RateLimitedError, 429),
        (app.BudgetExceededError, 500),
        (app.NotConfiguredError, 500),
        (app.GatewayRefusedKeyError, 500),
        (app.ModelUnknownError, 502),
        (app.ProviderError, 502),
        (app.FallbackFailedError, 502),
        (app.StreamInterruptedError, 502),
        (app.DatabaseUnavailableError, 503),
        (app.GatewayUnreachableError, 503),
        (app.TimedOutError, 504),
    ],
)
def test_every_error_has_its_status_and_keeps_its_details(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: type[app.LLMError], status: int
) -> None:
    """The details are in the service's log; the caller gets the request's id, which is also in the gateway's log."""
    answer(error_of(kind), monkeypatch)
    for path, body in ((CHAT, HELLO), (f"{CHAT}/stream", HELLO), ("/embeddings", {"text": "hello"})):
        caplog.clear()
        refused = post(path, body)
        assert refused.status_code == status
        assert SECRET not in refused.text
        assert refused.json()["request_id"] == ("call-9" if issubclass(kind, app.RequestError) else None)
        assert SECRET in caplog.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": []}),
        (CHAT, {"messages": [{"role": "bot", "content": "hello"}]}),
        (CHAT, {}),
        ("/organizations/acme/chat", HELLO),
        (f"{CHAT}/stream", {"messages": "hello"}),
        ("/embeddings", {"text": " "}),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_is(path: str, body: object) -> None:
    assert post(path, body).status_code == 422


def test_an_answer_says_who_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(RESULT, monkeypatch)
    told = post(CHAT, HELLO)
    assert told.status_code == 200
    assert (told.json()["content"], told.json()["model"], told.json()["used_fallback"]) == (
        "hi there",
        "claude-3-5-sonnet",
        True,
    )


class Stream:
    """As `aio.ChatCompletionStream`."""

    result = RESULT

    def __init__(self, *texts: str, error: app.LLMError | None = None) -> None:
        self._texts, self._error = texts, error
        self.closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True

    async def __aiter__(self) -> AsyncIterator[str]:
        for text in self._texts:
            yield text
        if self._error:
            raise self._error


@pytest.mark.parametrize("breaks", [False, True], ids=["whole", "broken off"])
def test_a_stream_is_server_sent_events(monkeypatch: pytest.MonkeyPatch, *, breaks: bool) -> None:
    """A line break in a piece ends no event. A stream that breaks off says so, because its status is already sent."""
    stream = Stream("hi\n\n", "there", error=error_of(app.StreamInterruptedError) if breaks else None)
    answer(stream, monkeypatch)
    told = post(f"{CHAT}/stream", HELLO)
    assert (told.status_code, told.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    events = [each.split("\n") for each in told.text.removesuffix("\n\n").split("\n\n")]
    assert [json.loads(data.removeprefix("data: ")) for _, data in events[:2]] == ["hi\n\n", "there"]
    assert [name for name, _ in events] == [
        "event: text",
        "event: text",
        "event: error" if breaks else "event: done",
    ]
    assert SECRET not in told.text
    assert stream.closed


@pytest.mark.parametrize("version", ["2.3", "2.4"], ids=["told by receive", "told by send"])
@pytest.mark.parametrize("pieces", [0, 1])
def test_a_caller_who_goes_away_ends_the_request_to_the_model(
    monkeypatch: pytest.MonkeyPatch, version: str, pieces: int
) -> None:
    """Before and after the first piece, for each way in which servers report that a caller has gone."""
    stream = Stream("hi", "there", "again")
    answer(stream, monkeypatch)
    sent: list[str] = []

    async def main() -> None:
        gone = asyncio.Event()
        body: list[dict[str, object]] = [{"type": "http.request", "body": json.dumps(HELLO).encode()}]

        async def receive() -> dict[str, object]:
            if body:
                return body.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                sent.append(message["body"])
            if len(sent) == pieces:
                gone.set()
                if version == "2.4":
                    raise OSError
                await asyncio.Event().wait()  # as for room in the buffer of a connection

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": version},
            "http_version": "1.1",
            "method": "POST",
            "path": f"{CHAT}/stream",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        with suppress(ClientDisconnect):
            await service.api(scope, receive, send)
        assert stream.closed

    asyncio.run(main())
    assert len(sent) == pieces


def test_it_starts_with_settings_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """It reports missing settings at its start, not to its first caller. At its end it closes its connections."""

    async def live() -> None:
        async with service.lifespan(service.api):
            pass

    closed = []

    async def close() -> None:
        closed.append(True)

    monkeypatch.setattr(aio, "close", close)
    monkeypatch.chdir(tmp_path)
    for name in ("LITELLM_API_KEY", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("LITELLM_API_KEY", "sk-x"), ("DATABASE_URL", "postgresql://app@127.0.0.1:9/app")):
        with pytest.raises(app.NotConfiguredError, match=name):
            asyncio.run(live())
        monkeypatch.setenv(name, value)
    asyncio.run(live())
    assert closed == [True]
