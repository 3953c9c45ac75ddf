"""How keys are looked up in LiteLLM's database if there are many, or if one cannot be read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit import test_keys

if TYPE_CHECKING:
    from tests.unit.test_keys import Gateway, Row

programs, gateway, later = test_keys.programs, test_keys.gateway, test_keys.later
CHAT, MASTER, VIRTUAL = test_keys.CHAT, test_keys.MASTER, test_keys.VIRTUAL


def test_made_up_keys_hold_up_no_other(programs: dict[str, Any], gateway: Gateway) -> None:
    """Each costs a query, so only a few are looked up at once, and none twice. A known key does not wait."""
    gateway.hold(VIRTUAL, key_alias="team")
    open_at_once, most, answering = 0, 0, asyncio.Event()
    answered = gateway.database.row

    async def row(token: str) -> Row | None:
        nonlocal open_at_once, most
        open_at_once += 1
        most = max(most, open_at_once)
        await answering.wait()
        open_at_once -= 1
        return await answered(token)

    async def ask() -> None:
        await gateway.ask(VIRTUAL)
        gateway.database.row = row  # type: ignore[method-assign]
        made_up = [asyncio.create_task(gateway.refused(f"sk-made-up-{number % 5}")) for number in range(20)]
        for _ in range(100):  # all that does not wait has begun by then
            await asyncio.sleep(0)
        await asyncio.wait_for(gateway.ask(VIRTUAL), 1)
        answering.set()
        assert set(await asyncio.gather(*made_up)) == {(401, "invalid_api_key")}
        assert most == programs["keys"].UNSEEN_AT_ONCE
        assert gateway.database.asked == 1 + 5
        assert await gateway.refused("sk-made-up-0") == (401, "invalid_api_key")
        assert gateway.database.asked == 1 + 5

    asyncio.run(ask())


def test_a_key_that_cannot_be_read_does_not_take_the_database_for_away(gateway: Gateway) -> None:
    """It can be tried again, and all others are served as before."""
    gateway.hold(VIRTUAL, key_alias="team")
    broken, answered = gateway.token("sk-of-an-odd-row"), gateway.database.row

    async def row(token: str) -> Row | None:
        if token == broken:
            raise ValueError
        return await answered(token)

    async def ask() -> None:
        gateway.database.row = row  # type: ignore[method-assign]
        assert await gateway.refused("sk-of-an-odd-row") == (503, "database_unavailable")
        assert not gateway.keys.away
        assert (await gateway.ask(VIRTUAL))[0].client == "team"

    asyncio.run(ask())


def test_a_silent_database_is_away_also_if_only_keys_ask_that_were_never_seen(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each of them waits for it, for as long as it is silent."""
    monkeypatch.setattr(gateway.programs["queries"], "SECONDS", 0.05)

    async def row(token: str) -> Row | None:
        gateway.database.asked += 1
        return await asyncio.Future()

    async def run() -> None:
        gateway.database.row = row  # type: ignore[method-assign]
        assert (await gateway.ask(MASTER, client="first"))[0].database_away
        assert gateway.keys.away
        asked = gateway.database.asked
        assert (await gateway.ask(MASTER, client="second"))[0].database_away
        assert await gateway.refused(VIRTUAL) == (503, "database_unavailable")
        assert gateway.database.asked == asked
        gateway.keys.trying.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(("key", "client"), [(VIRTUAL, None), (MASTER, "app")])
def test_litellm_need_not_look_up_a_key_when_a_request_comes(
    gateway: Gateway, later: Any, key: str, client: str | None
) -> None:
    """If the database went away at that moment, LiteLLM would treat the caller's key as unknown and refuse it."""

    async def admitted() -> None:
        exchange = gateway.programs["answers"].Exchange(client=client, call_id="c-2")
        headers = [(b"authorization", f"Bearer {key}".encode())]
        await gateway.keys.admit({"method": "POST", "path": CHAT, "headers": headers}, exchange)

    async def run() -> None:
        gateway.hold(VIRTUAL, max_budget=1)
        await admitted()
        [own] = gateway.database.memory
        gateway.database.rows[own].max_budget = 7
        later()
        await admitted()
        assert gateway.database.memory[own].max_budget == 7
        gateway.database.forget(own)  # as it does after a minute
        await admitted()
        assert gateway.database.memory[own].max_budget == 7
        gateway.database.dies, gateway.database.rows[own].max_budget = True, 8
        later()
        await admitted()
        assert gateway.keys.away
        assert gateway.database.memory[own].max_budget == 7
        gateway.keys.trying.cancel()

    asyncio.run(run())
