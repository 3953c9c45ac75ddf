"""Whose key a request has, with a fake database for LiteLLM's: which keys are accepted, and what each counts for."""

from __future__ import annotations

import asyncio
import importlib
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from infra import edge
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator

MASTER, SALT, VIRTUAL = "sk-master-of-the-stack", "sk-salt-of-the-stack", "sk-virtual-key-of-a-team"
CHAT = "/v1/chat/completions"
EDGE_CONFIG = (PROJECT / "edge/haproxy.cfg").read_text()


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, Any]]:
    """The programs that run in LiteLLM's process, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "litellm"))
        yield {name: importlib.import_module(name) for name in ("answers", "keys", "limits", "queries")}


@dataclass
class Row:
    """A key in LiteLLM's database."""

    key_alias: str | None = None
    blocked: bool | None = None
    expires: Any = None
    spend: float = 0
    max_budget: float | None = None

    def model_dump(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class Database:
    """LiteLLM's database, and what it remembers of it."""

    rows: dict[str, Row] = field(default_factory=dict)
    memory: dict[str, Row] = field(default_factory=dict)
    on: bool = True
    away: bool = False
    dies: bool = False
    """Whether it goes away before a key is read for the second time."""
    asked: int = 0

    def connected(self) -> bool:
        return self.on

    async def row(self, token: str) -> Row | None:
        self.asked += 1
        if self.away:
            raise ConnectionError
        found = self.rows.get(token)
        return Row(**vars(found)) if found else None

    async def add(self, token: str, alias: str) -> None:
        self.rows.setdefault(token, Row(key_alias=alias))

    async def cached(self, token: str) -> Row | None:
        return self.memory.get(token)

    async def cache(self, token: str, row: Row | None, alias: str) -> None:
        self.memory[token] = Row(**vars(row or Row(key_alias=alias)))

    async def remember(self, token: str) -> None:
        if self.away or self.dies:
            self.away = True
            raise ConnectionError
        self.memory[token] = Row(**vars(self.rows[token]))

    def forget(self, token: str) -> None:
        self.memory.pop(token, None)


class Gateway:
    """The keys of a replica."""

    def __init__(self, programs: dict[str, Any]) -> None:
        self.programs, self.database = programs, Database()
        self.keys = programs["keys"].Keys(self.database, master_key=MASTER, salt_key=SALT)

    def hold(self, key: str, **terms: Any) -> Row:
        """A virtual key."""
        return self.database.rows.setdefault(self.token(key), Row(**terms))

    def token(self, key: str) -> str:
        token: str = self.programs["keys"].hash_of(key)
        return token

    async def ask(self, key: str, client: str | None = None, call: str | None = "c-1", path: str = CHAT) -> Any:
        """The exchange of a request, and its scope as LiteLLM sees it. LiteLLM remembers its key."""
        exchange = self.programs["answers"].Exchange(client=client, call_id=call)
        scope: dict[str, Any] = {
            "method": "GET",
            "path": path,
            "headers": [(b"authorization", f"Bearer {key}".encode())],
        }
        await self.keys.admit(scope, exchange)
        seen = dict(scope["headers"])[b"authorization"].decode().removeprefix("Bearer ")
        token = self.token(seen)
        if token in self.database.rows and not self.database.away:
            self.database.memory.setdefault(token, Row(**vars(self.database.rows[token])))
        return exchange, scope, seen

    async def refused(self, *arguments: Any, **options: Any) -> tuple[int, str]:
        with pytest.raises(self.programs["answers"].Refusal) as caught:
            await self.ask(*arguments, **options)
        return caught.value.status, caught.value.code


@pytest.fixture
def gateway(programs: dict[str, Any]) -> Gateway:
    return Gateway(programs)


@pytest.fixture
def later(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets what was read of keys grow old."""

    def grow_old() -> None:
        for known in gateway.keys.known.values():
            known.read -= gateway.programs["keys"].FRESH_SECONDS

    monkeypatch.setattr(gateway.programs["keys"], "RETRY_SECONDS", 0.01)
    return grow_old


def test_a_static_client_counts_under_a_key_of_its_own_that_no_rotation_changes(gateway: Gateway) -> None:
    """It is created once, has the client's name and no limits, and is neither the client's key nor the master key."""

    async def run() -> None:
        exchange, _, seen = await gateway.ask(MASTER, client="app")
        assert (exchange.client, exchange.keyed, exchange.database_away) == ("app", True, False)
        assert seen.startswith("sk-")
        assert seen not in {MASTER, SALT}
        assert vars(gateway.database.rows[gateway.token(seen)]) == vars(Row(key_alias="app"))
        gateway.database.rows[gateway.token(seen)].spend = 3
        assert (await gateway.ask(MASTER, client="app"))[2] == seen
        assert [row.spend for row in gateway.database.rows.values()] == [3]
        assert await gateway.refused(seen) == (401, "invalid_api_key")
        other = gateway.programs["keys"].Keys(gateway.database, master_key="sk-the-next-one", salt_key=SALT)
        assert other.key_of("app") == seen != other.key_of("batch")

    asyncio.run(run())


def test_only_the_edge_can_name_a_client(gateway: Gateway) -> None:
    """A request that names a client but does not have the master key goes to LiteLLM with its own key."""

    async def run() -> None:
        exchange, _, seen = await gateway.ask(VIRTUAL, client="app")
        assert (seen, exchange.keyed) == (VIRTUAL, False)
        assert gateway.database.rows == {}

    asyncio.run(run())


def test_a_virtual_key_is_let_through_as_it_is_and_has_its_alias_for_a_name(gateway: Gateway) -> None:
    async def run() -> None:
        gateway.hold(VIRTUAL, key_alias="batch\n1")
        exchange, _, seen = await gateway.ask(VIRTUAL)
        assert (seen, exchange.client, exchange.keyed) == (VIRTUAL, "batch?1", True)
        gateway.hold("sk-without-a-name")
        assert (await gateway.ask("sk-without-a-name"))[0].client == f"key-{gateway.token('sk-without-a-name')[:8]}"

    asyncio.run(run())


def test_what_no_key_is_gets_the_refusal_of_the_edge(gateway: Gateway) -> None:
    """So do keys that are blocked or expired, and the master key, which no caller holds."""
    now = datetime.now(UTC)
    gateway.hold("sk-blocked-one", blocked=True)
    gateway.hold("sk-expired-one", expires=(now - timedelta(seconds=1)).isoformat())
    gateway.hold("sk-expired-too", expires=now.replace(tzinfo=None) - timedelta(seconds=1))
    gateway.hold("sk-later-expired", expires=now + timedelta(minutes=1))

    async def run() -> None:
        for key in ("", "nothing", MASTER, "sk-unknown-one", "sk-blocked-one", "sk-expired-one", "sk-expired-too"):
            assert await gateway.refused(key) == (401, "invalid_api_key"), key
        assert (await gateway.ask("sk-later-expired"))[0].keyed

    asyncio.run(run())
    message = gateway.programs["limits"].UNKNOWN
    assert (
        f'"message":"{message}","type":"invalid_request_error","param":null,"code":"invalid_api_key"' in EDGE_CONFIG
    )


def test_a_change_of_a_key_holds_after_some_seconds_and_not_before_the_database_is_asked_again(
    gateway: Gateway, later: Any
) -> None:
    """On each replica. LiteLLM alone would use what it remembers for as long as the key is used."""

    async def run() -> None:
        row = gateway.hold(VIRTUAL, max_budget=1)
        for _ in range(3):
            await gateway.ask(VIRTUAL)
        assert gateway.database.asked == 1
        row.max_budget = 2
        later()
        await gateway.ask(VIRTUAL)
        assert gateway.database.memory[gateway.token(VIRTUAL)].max_budget == 2
        del gateway.database.rows[gateway.token(VIRTUAL)]
        later()
        assert await gateway.refused(VIRTUAL) == (401, "invalid_api_key")
        assert gateway.database.memory == {}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("remembered", "now", "read_again"),
    [(5.0, 4.0, False), (5.0, 7.0, True), (5.0, 0.0, True)],
    ids=["not yet written", "spent elsewhere", "started over"],
)
def test_spend_is_read_again_where_the_database_knows_better(
    gateway: Gateway,
    later: Any,
    remembered: float,
    now: float,
    read_again: bool,  # noqa: FBT001
) -> None:
    """LiteLLM writes its spending some seconds later; read too early, it would forget its own."""

    async def run() -> None:
        row = gateway.hold(VIRTUAL, spend=2.0)
        await gateway.ask(VIRTUAL)
        gateway.database.memory[gateway.token(VIRTUAL)].spend = remembered
        row.spend = now
        later()
        await gateway.ask(VIRTUAL)
        assert gateway.database.memory[gateway.token(VIRTUAL)].spend == (now if read_again else remembered)

    asyncio.run(run())


def test_without_the_database_static_clients_are_served_and_virtual_keys_while_litellm_remembers_them(
    gateway: Gateway, later: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Others get 503, not 401, because their key may be right. The log says it once. Afterwards all is as before."""
    caplog.set_level(logging.WARNING)

    async def run() -> None:
        gateway.hold(VIRTUAL, key_alias="batch")
        gateway.hold("sk-not-remembered")
        own = gateway.token((await gateway.ask(MASTER, client="app"))[2])
        gateway.database.rows[own].max_budget = 9
        later()
        await gateway.ask(MASTER, client="app")
        await gateway.ask(VIRTUAL)
        gateway.database.away = True
        gateway.database.memory.pop(own)
        later()
        for client in ("app", "never-seen", "app"):
            exchange = (await gateway.ask(MASTER, client=client))[0]
            assert (exchange.keyed, exchange.database_away) == (True, True)
        assert gateway.database.memory[own].max_budget == 9
        assert gateway.database.memory[gateway.token(gateway.keys.key_of("never-seen"))].max_budget is None
        assert (await gateway.ask(VIRTUAL))[0].client == "batch"
        gateway.database.forget(gateway.token(VIRTUAL))
        for key in (VIRTUAL, "sk-not-remembered", "sk-unknown"):
            assert await gateway.refused(key) == (503, "database_unavailable")
        asked = gateway.database.asked
        await gateway.refused("sk-unknown")
        assert await gateway.keys.answers() is False
        assert gateway.database.asked == asked
        gateway.database.away = False
        await gateway.keys.trying
        assert {row.key_alias for row in gateway.database.rows.values()} >= {"app", "never-seen"}
        assert (await gateway.ask(MASTER, client="never-seen"))[0].database_away is False
        assert gateway.database.memory[own].max_budget == 9
        gateway.database.rows[own].max_budget = 10
        await gateway.ask(MASTER, client="app")
        assert gateway.database.memory[own].max_budget == 10
        assert (await gateway.ask("sk-not-remembered"))[0].database_away is False
        assert await gateway.refused("sk-unknown") == (401, "invalid_api_key")

    asyncio.run(run())
    assert [record.getMessage().split(" (")[0] for record in caplog.records if record.name == "litellm.keys"] == [
        "LiteLLM's database is away",
        "LiteLLM's database answers again",
    ]
    for secret in (VIRTUAL, MASTER, SALT):
        assert secret not in caplog.text


def test_a_request_from_within_is_left_alone(gateway: Gateway) -> None:
    """The edge's checks and an operator have the master key and no id of a call, which callers get at the edge."""

    async def run() -> None:
        assert (await gateway.ask(MASTER, call=None))[0].operator
        assert not (await gateway.ask("sk-another", call=None))[0].operator
        assert (await gateway.ask("", path="/health/readiness"))[0].keyed is False

    asyncio.run(run())


def test_without_a_database_nothing_is_looked_at(gateway: Gateway) -> None:
    gateway.database.on = False

    async def run() -> None:
        exchange, _, seen = await gateway.ask(MASTER, client="app")
        assert (seen, exchange.keyed, gateway.database.asked) == (MASTER, False, 0)

    asyncio.run(run())


def test_who_asks_about_one_model_is_answered_from_the_models_of_the_key(gateway: Gateway) -> None:
    gateway.hold(VIRTUAL)

    async def run() -> None:
        exchange, scope, _ = await gateway.ask(VIRTUAL, path="/v1/models/openai/gpt-4o")
        assert (exchange.one, scope["path"]) == ("openai/gpt-4o", "/v1/models")
        exchange, scope, _ = await gateway.ask(VIRTUAL, path="/v1/models/two\nlines")
        assert (exchange.one, scope["path"]) == ("two\nlines", "/v1/models")

    asyncio.run(run())


def test_a_client_that_is_blocked_stays_so_while_the_database_is_away(gateway: Gateway, later: Any) -> None:
    async def run() -> None:
        own = gateway.token((await gateway.ask(MASTER, client="app"))[2])
        gateway.database.rows[own].blocked = True
        later()
        assert await gateway.refused(MASTER, client="app") == (401, "invalid_api_key")
        gateway.database.away = True
        later()
        assert await gateway.refused(MASTER, client="app") == (401, "invalid_api_key")
        assert own not in gateway.database.memory
        gateway.keys.trying.cancel()

    asyncio.run(run())


def test_a_litellm_without_a_database_need_not_be_as_is_known_here(
    programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr(programs["keys"], "LiteLLM", lambda: pytest.fail("LiteLLM was looked at"))
    assert programs["keys"].install() is None


def test_what_was_spent_is_written_when_the_database_answers(programs: dict[str, Any], gateway: Gateway) -> None:
    """LiteLLM 1.108.14 takes it off its queue, and forgets it if it cannot write. The write checks for itself."""
    written: list[str] = []

    async def write(what: str) -> None:
        written.append(what)

    async def run() -> None:
        in_time = programs["queries"].in_time(write, gateway.keys)
        await in_time("first")
        gateway.database.away = True
        await in_time("not now")
        assert gateway.keys.away
        gateway.keys.trying.cancel()

    asyncio.run(run())
    assert written == ["first"]


@pytest.mark.parametrize("on", [True, False])
def test_the_edge_hands_on_keys_that_it_does_not_know_only_where_litellm_has_its_database(
    on: bool,  # noqa: FBT001
) -> None:
    """And it replaces only a key that it knows by the master key."""
    config = edge.render(
        EDGE_CONFIG,
        generation=1,
        host_name=str,
        request_timeout=600,
        max_body_mb=1,
        tls=False,
        metrics=False,
        virtual_keys=on,
    )
    assert f'.if streq("{"on" if on else "off"}",on)\n    acl is_virtual' in config
    sent = [line.strip() for line in config.splitlines() if "http-request set-header authorization" in line]
    assert [line.rsplit(" if ", 1)[1] for line in sent] == [
        "is_virtual !{ var(txn.client) -m found }",
        "{ req.hdr(x-llm-gateway-client) -m found }",
    ]
    assert config.index("http-request del-header x-llm-gateway- ") < config.index("set-header x-llm-gateway-client")
