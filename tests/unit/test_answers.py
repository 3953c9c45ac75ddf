"""The status of an error, where LiteLLM has another one than the provider."""

from __future__ import annotations

import asyncio
import importlib
import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.stack_config import PROJECT


@pytest.fixture(scope="module")
def answers() -> Any:
    """The module, as a replica has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "litellm"))
        yield importlib.import_module("answers")


def told(answers: Any, status: int, exchange: Any) -> tuple[int, dict[str, Any]]:
    """What a caller gets for a status from LiteLLM, and its message."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def answer() -> None:
        scope, release = {"method": "POST", "path": "/v1/chat/completions"}, SimpleNamespace(version="1.55.0")
        rewriter = answers.Rewriter(send, scope, exchange, release, anthropic=False)
        await rewriter({"type": "http.response.start", "status": status, "headers": []})
        body = {"error": {"message": "litellm.APIError: over quota", "type": None, "code": str(status)}}
        await rewriter({"type": "http.response.body", "body": json.dumps(body).encode()})

    asyncio.run(answer())
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]


@pytest.mark.parametrize(
    ("said", "litellm", "status"),
    [
        (429, 500, 429),
        (429, 400, 429),
        (401, 400, 401),
        (503, 400, 503),
        (400, 500, 400),
        (429, 429, 429),
        (500, 500, 500),
        (200, 500, 500),  # an answer that LiteLLM cannot read
        (None, 408, 408),  # a provider that did not answer
        (404, 401, 401),
    ],
)
def test_callers_get_the_providers_status(answers: Any, said: int | None, litellm: int, status: int) -> None:
    """If LiteLLM reports a refusal as a wrong request or a failure. Errors that it classifies itself stay."""
    got, error = told(answers, litellm, answers.Exchange(asked=True, answered=said))
    assert (got, error["code"]) == (status, str(status))
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert error["message"] == "litellm.APIError: over quota"


def test_what_this_project_found_wrong_comes_first(answers: Any) -> None:
    got, error = told(answers, 500, answers.Exchange(asked=True, answered=404, reason="The URL cannot be used."))
    assert (got, error["message"]) == (400, "The URL cannot be used.")


def test_the_status_of_the_last_answer_is_noted(answers: Any) -> None:
    """For async and sync clients, but not for a callback, which runs after LiteLLM has failed."""

    async def later() -> Any:
        return SimpleNamespace(status_code=429)

    send = answers.listening(lambda: SimpleNamespace(status_code=404))
    send_later = answers.listening(later)

    async def both() -> list[int | None]:
        exchange = answers.Exchange()
        send()
        answers.current.set(exchange)
        send()
        noted = [exchange.answered]
        await send_later()
        noted.append(exchange.answered)
        exchange.error = RuntimeError("LiteLLM has failed")
        send()
        return [*noted, exchange.answered]

    assert asyncio.run(both()) == [404, 429, 429]
