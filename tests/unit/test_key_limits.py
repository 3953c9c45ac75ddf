"""How callers see a key's own limits, and how long a request waits for LiteLLM's database."""

from __future__ import annotations

import asyncio
import importlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, Any]]:
    """The programs that run in LiteLLM's process, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "litellm"))
        yield {name: importlib.import_module(name) for name in ("answers", "limits", "queries")}


BUDGET = {
    "1.55.0": "Budget has been exceeded! Current cost: 0.0003675, Max budget: 0.0003",
    "1.108.14": "Budget has been exceeded! Key=batch (sk-...xMsw) Current cost: 0.000367, Max budget: 0.0003",
}
MODEL = {
    "1.55.0": (401, "auth_error", "Authentication Error, API Key not allowed to access model. This token can only …"),
    "1.108.14": (403, "key_model_access_denied", "The requested model 'gpt-4o' is not available for this API key, …"),
}
KEY = {
    "1.55.0 blocked": (401, "auth_error", "Authentication Error, Key is blocked. Update via `/key/unblock` if …"),
    "1.55.0 expired": (400, "expired_key", "Authentication Error - Expired Key. Key Expiry time …"),
    "1.108.14 unknown": (401, "token_not_found_in_db", "Authentication Error, Invalid API key provided."),
}


@pytest.mark.parametrize(("status", "message"), [(400, BUDGET["1.55.0"]), (422, BUDGET["1.108.14"])])
def test_a_budget_that_is_used_up_is_one_error_on_each_release(
    programs: dict[str, Any], status: int, message: str
) -> None:
    """The status and the code are those of OpenAI's quota, and SDKs are told not to repeat it."""
    limits = programs["limits"]
    read = limits.read(status, {"type": "budget_exceeded", "message": message}, database_away=False)
    assert (read["status"], read["type"], read["code"]) == (429, "budget_exceeded", "insufficient_quota")
    assert "$0.00036" in read["message"]
    assert "of $0.000300" in read["message"]
    assert "sk-" not in read["message"]
    assert limits.headers_of(read) == [(b"x-should-retry", b"false")]


@pytest.mark.parametrize(("status", "kind", "message"), MODEL.values(), ids=MODEL)
def test_a_model_that_is_not_for_a_key_is_one_that_is_not_served(
    programs: dict[str, Any], status: int, kind: str, message: str
) -> None:
    read = programs["limits"].read(status, {"type": kind, "message": message}, database_away=False)
    assert (read["status"], read["code"]) == (404, "model_not_found")
    assert "is not served here" in read["message"]  # as the app reads it


@pytest.mark.parametrize(("status", "kind", "message"), KEY.values(), ids=KEY)
def test_litellms_own_refusal_of_a_key_is_the_edges_or_the_databases(
    programs: dict[str, Any], status: int, kind: str, message: str
) -> None:
    limits = programs["limits"]
    known = {"type": kind, "message": message}
    assert limits.read(status, known, database_away=False) == limits.unknown_key()
    away = limits.read(401, known, database_away=True)
    assert (away["status"], limits.headers_of(away)) == (503, [(b"retry-after", b"5")])


def test_a_rate_of_litellms_is_told_as_the_edge_tells_its_own(programs: dict[str, Any]) -> None:
    """The key's hash, which LiteLLM 1.55.0 includes, is not passed on. Errors that are not about a key stay as is."""
    limits = programs["limits"]
    known = {"type": "None", "message": "Max parallel request limit reached Hit limit for api_key: 7e1a79a65df6"}
    read = limits.read(429, known, database_away=False)
    assert (read["type"], read["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "7e1a" not in json.dumps(read)
    assert limits.read(400, {"type": "invalid_request_error", "message": "x"}, database_away=False) == {}


class Connection:
    """What is known of the database."""

    def __init__(self) -> None:
        self.away = False

    def lost(self, problem: BaseException) -> None:
        assert isinstance(problem, TimeoutError)
        self.away = True


@pytest.mark.parametrize(
    ("told", "whole"), [("47.492625", "48"), ("7", "7"), ("Wed, 21 Oct 2026 07:28:00 GMT", None)]
)
def test_when_to_ask_again_is_told_in_whole_seconds(programs: dict[str, Any], told: str, whole: str | None) -> None:
    """SDKs and proxies do not accept fractions; HTTP also allows a date."""
    headers = [(b"retry-after", told.encode()), (b"x-other", b"0.5")]
    assert programs["limits"].in_whole_seconds(headers) == [
        (b"retry-after", (whole or told).encode()),
        (b"x-other", b"0.5"),
    ]


def test_what_is_asked_of_the_database_is_asked_of_no_provider(programs: dict[str, Any]) -> None:
    """LiteLLM's database client is an HTTP client, just like those for providers."""
    answers = programs["answers"]
    seen: list[Any] = []

    async def request(*_: object) -> None:
        seen.append(answers.current.get())

    async def run() -> None:
        exchange = answers.Exchange()
        answers.current.set(exchange)
        bounded = programs["queries"].bounded(request, Connection(), unreachable=ConnectionError, silent=OSError)
        await bounded(None, "POST", "http://localhost:1/")
        assert answers.current.get() is exchange

    asyncio.run(run())
    assert seen == [None]


def test_no_request_waits_for_a_database_that_does_not_answer(
    programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one waits a little, the others do not. LiteLLM's writes are refused, so that it repeats them.

    Whether the database is back is asked, and what was begun is ended.
    """
    queries, answers = programs["queries"], programs["answers"]
    monkeypatch.setattr(queries, "SECONDS", 0.01)
    connection, asked = Connection(), []

    async def request(_: object, __: str, url: str) -> None:
        asked.append(url)
        await asyncio.Event().wait()

    async def run() -> None:
        bounded = queries.bounded(request, connection, unreachable=ConnectionError, silent=OSError)
        first, second = answers.Exchange(), answers.Exchange()
        answers.current.set(first)
        with pytest.raises(OSError, match="did not answer in time"):
            await bounded(None, "POST", "http://localhost:1/")
        for caller in (second, None):
            answers.current.set(caller)
            for end in ("/", "/transaction/start"):
                with pytest.raises(ConnectionError):
                    await bounded(None, "POST", f"http://localhost:1{end}")
        assert len(asked) == 1
        assert first.database_away is second.database_away is True  # so that no caller is told that the key is wrong
        for end in ("/status", "/transaction/1/commit"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(bounded(None, "GET", f"http://localhost:1{end}"), 0.01)
        queries.trying.set(True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bounded(None, "POST", "http://localhost:1/"), 0.01)
        assert len(asked) == 4

    asyncio.run(run())
