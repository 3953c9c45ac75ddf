"""Sums over LiteLLM's table of spend, in the stack's own Postgres, with rows as each release writes them."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from infra import postgres
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.stacks import Deployment

    Ask = Callable[..., dict[str, Any]]

DATABASE = "test_spend"
TABLES = """
CREATE TABLE "LiteLLM_TeamTable" (team_id text PRIMARY KEY, team_alias text);
CREATE TABLE "LiteLLM_VerificationToken" (token text PRIMARY KEY, key_name text, key_alias text, user_id text);
CREATE TABLE "LiteLLM_SpendLogs" (
    request_id text PRIMARY KEY, api_key text NOT NULL DEFAULT '', spend double precision NOT NULL DEFAULT 0,
    total_tokens integer NOT NULL DEFAULT 0, prompt_tokens integer NOT NULL DEFAULT 0,
    completion_tokens integer NOT NULL DEFAULT 0, "startTime" timestamp(3) NOT NULL, model text NOT NULL DEFAULT '',
    model_group text DEFAULT '', custom_llm_provider text DEFAULT '', metadata jsonb DEFAULT '{}',
    cache_hit text DEFAULT '', team_id text
);
INSERT INTO "LiteLLM_TeamTable" VALUES ('t-1', 'research');
INSERT INTO "LiteLLM_VerificationToken" VALUES ('hash-batch', 'sk-...Atch', 'batch', NULL);
INSERT INTO "LiteLLM_VerificationToken" VALUES ('hash-master', 'sk-...ster', NULL, 'default_user_id');
"""
"""The columns that are read. Both releases have them."""
ROW: dict[str, Any] = {
    "api_key": "hash-batch",
    "spend": 0.25,
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "startTime": "2026-11-29T10:00:00",
    "model": "gpt-4o",
    "model_group": "fast",
    "custom_llm_provider": "openai",
    "cache_hit": "None",
    "team_id": "t-1",
}


@pytest.fixture(scope="module")
def database(deployment: Deployment) -> Iterator[psycopg.Connection]:
    """A database of these tests' own, beside the stack's."""
    known: dict[str, Any] = {
        "conninfo": deployment.outputs["databaseUrl"],
        "user": postgres.SUPERUSER,
        "password": deployment.secret("postgres-password"),
        "autocommit": True,
    }
    with psycopg.connect(dbname=postgres.SUPERUSER, **known) as server:
        server.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template0")
        try:
            with psycopg.connect(dbname=DATABASE, **known) as made:
                made.execute(TABLES)
                yield made
        finally:
            server.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.fixture
def connection(database: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """The same without rows, whatever a test does to it."""
    with database.transaction(force_rollback=True):
        yield database


@pytest.fixture
def ask(connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """The answer about these rows, each with what LiteLLM and the gateway record."""
    monkeypatch.syspath_prepend(str(PROJECT / "litellm"))
    spend = importlib.import_module("spend")

    def asked(*rows: dict[str, Any], by: str = "client", since: str = spend.EVER) -> dict[str, Any]:
        for number, row in enumerate(rows):
            of = {"user_api_key_alias": "batch", **row.pop("told", {})}
            said = {"call_id": f"call-{number}", "client": "edge", **row.pop("said", {})}
            labels = {"spend_logs_metadata": {"llm_gateway": said}} if said["call_id"] else {}
            values = {"request_id": f"id-{number}", **ROW, "metadata": json.dumps({**of, **labels}), **row}
            values["total_tokens"] = values["prompt_tokens"] + values["completion_tokens"]
            statement = sql.SQL('INSERT INTO "LiteLLM_SpendLogs" ({}) VALUES ({})').format(
                sql.SQL(", ").join(map(sql.Identifier, values)), sql.SQL(", ").join(map(sql.Placeholder, values))
            )
            connection.execute(statement, values)
        found = connection.execute(spend.query(by.split(",")).replace("$1", "%s"), (since,)).fetchone()
        assert found is not None
        told: dict[str, Any] = json.loads(found[0])
        return told

    return asked


def test_calls_are_added_up_by_each_of_the_groups(ask: Ask) -> None:
    """A client has its key's name. The gateway's record of the model counts, with each release."""
    by = "client,team,key,org,model,day"
    told = ask(
        {"said": {"organization": "acme", "model": "asked"}},
        {"said": {"organization": "acme", "model": "asked"}},
        by=by,
    )
    assert told["rows"] == [
        {
            "by_client": "batch",
            "by_team": "research",
            "by_key": "sk-...Atch",
            "by_org": "acme",
            "by_model": "asked",
            "by_day": "2026-11-29",
            "calls": 2,
            "failed": 0,
            "left": 0,
            "prompt_tokens": 14,
            "completion_tokens": 10,
            "estimated_tokens": 0,
            "uncounted": 0,
            "cost": 0.5,
            "unpriced_tokens": 0,
        }
    ]


def test_what_is_gone_or_has_no_name_is_told_all_the_same(ask: Ask) -> None:
    """A deleted key's row has its alias, and its team's alias. The master key belongs to no client."""
    deleted = {"api_key": "0123456789abcdef", "team_id": "t-gone", "told": {"user_api_key_team_alias": "former"}}
    master = {"api_key": "hash-master", "team_id": "", "told": {"user_api_key_alias": None}}
    word = {
        "api_key": "litellm_proxy_master_key",
        "team_id": None,
        "told": {"user_api_key_alias": None},
        "said": {"client": None},
    }
    bare = {"metadata": None, "api_key": "", "team_id": ""}
    rows = ask(deleted, master, word, bare, by="client,team,key,org")["rows"]
    assert [[*row.values()][:4] for row in rows] == [
        ["-", "-", "-", "-"],
        ["-", "-", "master key", "-"],
        ["batch", "former", "01234567…", "-"],
        ["edge", "-", "master key", "-"],
    ]


def test_what_has_no_price_is_unknown_and_never_free(ask: Ask) -> None:
    """Except for answers from a cache. Models without a price have the provider's names."""
    unpriced = {"spend": 0.0, "model": "openai/llama", "said": {"call_id": None}}
    told = ask(
        {}, unpriced, {"spend": 0.0, "cache_hit": "True"}, {"spend": 0.0, "prompt_tokens": 0, "completion_tokens": 0}
    )
    [row] = told["rows"]
    assert (row["calls"], row["cost"], row["unpriced_tokens"], row["uncounted"]) == (4, 0.25, 12, 1)
    assert told["without_price"] == ["openai/llama"]


def test_what_is_estimated_or_left_is_told_apart(ask: Ask) -> None:
    [row] = ask({}, {"said": {"estimated": True, "status": "left"}})["rows"]
    assert (row["calls"], row["left"], row["estimated_tokens"], row["prompt_tokens"]) == (2, 1, 12, 14)


def test_a_call_counts_once_and_failed_if_it_got_no_answer(ask: Ask) -> None:
    """LiteLLM guesses a failed prompt's tokens, which do not count. An answer that broke off midway has a cost."""
    failed = {"told": {"status": "failure"}, "spend": 0.0}
    told = ask(
        {**failed, "said": {"call_id": "one"}},
        {"said": {"call_id": "one"}},
        {**failed, "said": {"call_id": "two"}},
        {**failed, "said": {"call_id": "three"}, "spend": 0.5},
    )
    [row] = told["rows"]
    assert (row["calls"], row["failed"], row["cost"]) == (3, 2, 0.75)
    assert (row["prompt_tokens"], row["estimated_tokens"], row["unpriced_tokens"]) == (14, 12, 0)


def test_a_day_and_a_time_are_in_utc(ask: Ask, connection: psycopg.Connection) -> None:
    """Whatever the server's time zone is."""
    connection.execute("SET TIME ZONE 'Asia/Tokyo'")
    early = {"startTime": "2026-11-28T23:59:59.999"}
    rows = ask(early, {}, by="day", since="2026-11-28T23:59:59Z")["rows"]
    assert [row["by_day"] for row in rows] == ["2026-11-28", "2026-11-29"]
    assert [row["by_day"] for row in ask(by="day", since="2026-11-29T10:00:00Z")["rows"]] == ["2026-11-29"]
    assert ask(by="day", since="2026-11-29T10:00:01Z")["rows"] == []


def test_a_release_without_failed_calls_says_so(ask: Ask, connection: psycopg.Connection) -> None:
    """1.55.0 has no column for them."""
    assert ask()["has_failures"] is False
    connection.execute('ALTER TABLE "LiteLLM_SpendLogs" ADD COLUMN status text')
    told = ask({})
    assert (told["has_failures"], told["since"]) == (True, "2026-11-29T10:00:00")
