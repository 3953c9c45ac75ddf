"""What is added to a row of LiteLLM's table of spend, and who may ask for the sums of the rows."""

from __future__ import annotations

import asyncio
import importlib
import json
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.stack_config import KEY, PROJECT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """The programs of a replica, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "litellm"))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in ("answers", "spend")})


KWARGS = {
    "litellm_call_id": "call-1",
    "model": "gpt-4o",
    "custom_llm_provider": "openai",
    "litellm_params": {"metadata": {"deployment": "openai/gpt-4o"}},
    "standard_logging_object": {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "response_cost": 0.25,
    },
}
ANSWER = SimpleNamespace(id="chatcmpl-1")


def row(modules: Any, *, within: bool = True, answer: Any = ANSWER, of: dict[str, Any], **exchange: Any) -> Any:
    """What becomes of a row of LiteLLM's, of a request that is known."""
    payload = {"request_id": "chatcmpl-1", "call_type": "acompletion", "metadata": "{}", "status": "success", **of}
    known = {"client": "app", "call_id": "edge-1", "organization": "acme", "model": "fast", **exchange}
    token = modules.answers.current.set(modules.answers.Exchange(**known) if within else None)
    try:
        return modules.spend.labelled(payload, KWARGS, answer, "1.55.0")
    finally:
        modules.answers.current.reset(token)


def test_a_row_says_who_asked_and_for_whom(modules: Any) -> None:
    """Beside LiteLLM's own labels, which a key or a team may have."""
    made = row(modules, of={"metadata": json.dumps({"user_api_key_alias": "app", "spend_logs_metadata": {"a": 1}})})
    assert json.loads(made["metadata"]) == {
        "user_api_key_alias": "app",
        "spend_logs_metadata": {
            "a": 1,
            "llm_gateway": {
                "client": "app",
                "call_id": "edge-1",
                "organization": "acme",
                "model": "fast",
                "answered_by": "gpt-4o",
                "provider": "openai",
                "status": "success",
            },
        },
    }


def test_a_row_says_what_was_estimated_left_and_failed(modules: Any) -> None:
    def said(**known: Any) -> Any:
        return json.loads(row(modules, **{"of": {}, **known})["metadata"])["spend_logs_metadata"]["llm_gateway"]

    assert said(stream=True)["estimated"] is True
    assert said(left=True)["status"] == "left"
    assert said(of={"status": "failure"})["status"] == "failure"


def test_a_row_has_the_id_of_the_call_and_not_the_providers(modules: Any) -> None:
    """A provider may use an id twice, and LiteLLM drops a row with an id that it already has."""
    assert row(modules, of={})["request_id"] == "call-1"
    assert row(modules, answer={"id": "chatcmpl-1"}, of={})["request_id"] == "call-1"


@pytest.mark.parametrize(
    ("of", "kept"),
    [
        ({"call_type": "aresponses"}, "chatcmpl-1"),
        ({"request_id": "chatcmpl-1_cache_hit1795982207"}, "chatcmpl-1_cache_hit1795982207"),
    ],
    ids=["LiteLLM looks it up", "of its own"],
)
def test_an_id_that_litellm_goes_by_stays(modules: Any, of: dict[str, Any], kept: str) -> None:
    assert row(modules, of=of)["request_id"] == kept


def test_a_row_of_no_request_is_as_litellm_makes_it(modules: Any) -> None:
    made = row(modules, within=False, of={})
    assert (made["metadata"], made["request_id"]) == ("{}", "chatcmpl-1")


class Database:
    """LiteLLM's, as far as it is asked."""

    def __init__(self, *, away: bool = False) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.away = away
        self.db = self

    @asynccontextmanager
    async def tx(self, **_: Any) -> AsyncIterator[Database]:
        if self.away:
            raise TimeoutError(KEY)
        yield self

    async def execute_raw(self, statement: str) -> None:
        self.asked.append((statement,))

    async def query_raw(self, question: str, *values: str) -> list[dict[str, str]]:
        self.asked.append((question, *values))
        return [{"told": '{"rows": []}'}]


def ask(modules: Any, path: str, database: Database | None, key: str = KEY) -> tuple[int, Any]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asked = modules.spend.Spend(None, SimpleNamespace(prisma_client=database))
    scope = {"type": "http", "path": path, "headers": [(b"authorization", f"Bearer {key}".encode())]}
    asyncio.run(asked(scope, None, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.fixture
def _master_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_MASTER_KEY", KEY)


@pytest.mark.usefixtures("_master_key")
def test_postgres_adds_up_and_changes_nothing(modules: Any) -> None:
    database = Database()
    asked = ask(modules, "/llm-gateway/spend/org,model/2026-11-01T00:00:00Z", database)
    assert asked == (200, {"rows": []})
    (mode,), (_limit,), (question, since) = database.asked
    assert (mode, since) == ("SET TRANSACTION READ ONLY", "2026-11-01T00:00:00Z")
    assert 'GROUP BY "by_org", "by_model"' in question
    assert "{" not in question.replace("'{}'", "")
    ask(modules, "/llm-gateway/spend/day", database)
    assert database.asked[-1][1] == "-infinity"


@pytest.mark.usefixtures("_master_key")
def test_who_asks_for_anything_else_is_refused(modules: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Only known names from a request get into the query."""
    database = Database()
    path = "/llm-gateway/spend/"
    assert ask(modules, f"{path}client", database, key="sk-another")[0] == 401
    assert ask(modules, f"{path}client,secret", database)[0] == 400
    assert ask(modules, f"{path}client", None)[0] == 404
    assert database.asked == []
    status, told = ask(modules, f"{path}client", Database(away=True))
    assert (status, told) == (503, {"error": "LiteLLM's database did not answer (TimeoutError)"})
    assert "What was used cannot be read" in caplog.text


def test_a_release_that_makes_its_rows_elsewhere_is_not_run(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a database it writes no rows, and runs unchanged."""
    tracking = SimpleNamespace(get_logging_payload=print)
    app = SimpleNamespace(add_middleware=lambda *_, **__: None)
    proxy = SimpleNamespace(get_logging_payload=sorted, app=app)
    names = {
        "litellm.proxy.spend_tracking.spend_tracking_utils": tracking,
        "litellm.proxy.proxy_server": proxy,
    }
    monkeypatch.setattr(modules.spend.importlib, "import_module", names.__getitem__)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    modules.spend.install("1.55.0")
    assert (tracking.get_logging_payload, proxy.get_logging_payload) == (print, sorted)
    monkeypatch.setenv("DATABASE_URL", "postgresql://db.example/litellm")
    with pytest.raises(RuntimeError, match="in a way that is not known"):
        modules.spend.install("1.55.0")
