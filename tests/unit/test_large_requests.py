"""Room for large requests, before the guard reads them."""

from __future__ import annotations

import asyncio
import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit import test_guard
from tests.unit.test_guard import CHAT, HELLO, Replica

programs = test_guard.programs
LARGE = {**HELLO, "user": "x" * 1_200_000}


class Request:
    """A request to a guard that runs: what it has read of the body, and its answer."""

    def __init__(self, replica: Replica, body: object, *, announced: bool = True) -> None:
        whole = json.dumps(body).encode()
        self.parts = [whole[:600_000], whole[600_000:1_100_000], whole[1_100_000:]]
        self.left, self.status, self.text = len(self.parts), 0, ""
        length = [(b"content-length", str(len(whole)).encode())] if announced else []
        scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": length}
        self.task = asyncio.create_task(replica.guard(scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        if not self.left:
            await asyncio.Event().wait()  # for the answer
        part = self.parts[len(self.parts) - self.left]
        self.left -= 1
        return {"type": "http.request", "body": part, "more_body": bool(self.left)}

    async def send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        self.text += message.get("body", b"").decode()


async def settled() -> None:
    """Let everything go on that can."""
    for _ in range(50):
        await asyncio.sleep(0)


class Holding(Replica):
    """An app that answers when it is told to."""

    go: asyncio.Event

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await self.go.wait()
        await super().app(scope, receive, send)


@pytest.mark.parametrize("announced", [True, False])
def test_large_bodies_wait_for_room_and_small_ones_pass(programs: dict[str, Any], *, announced: bool) -> None:
    """They wait unread, except for the start of a body of unknown length. First come, first served."""

    async def ask() -> None:
        replica = Holding(programs)
        replica.go, replica.guard.room = asyncio.Event(), programs["large_requests"].Room(2_000_000)
        first, second, third = (Request(replica, LARGE, announced=announced) for _ in range(3))
        await settled()
        assert (first.left, second.left, third.left) == ((0, 3, 3) if announced else (0, 1, 1))
        small = Request(replica, HELLO)
        replica.go.set()
        await asyncio.gather(*(it.task for it in (first, second, third, small)))
        assert [it.status for it in (first, second, third, small)] == [200] * 4
        assert replica.guard.room.free == 2_000_000

    asyncio.run(ask())


def test_a_large_body_that_finds_no_room_for_too_long_is_refused(programs: dict[str, Any]) -> None:
    """In OpenAI's form. Its place in the queue is free again, and so is the room of a failed request."""

    async def ask() -> None:
        replica = Holding(programs)
        replica.go = asyncio.Event()
        replica.guard.room = programs["large_requests"].Room(2_000_000, wait_seconds=0.01)
        first, second = Request(replica, {**LARGE, "api_base": {}}), Request(replica, LARGE)
        third = Request(replica, LARGE)
        await third.task
        problem = json.loads(third.text)["error"]
        assert (first.status, third.status) == (400, 503)
        assert (problem["type"], problem["code"]) == ("server_error", "overloaded")
        replica.go.set()
        await second.task
        fourth = Request(replica, LARGE)
        await fourth.task
        assert (second.status, fourth.status) == (200, 200)

    asyncio.run(ask())


def test_a_body_larger_than_the_room_has_it_alone(programs: dict[str, Any]) -> None:
    async def ask() -> None:
        replica = Replica(programs)
        replica.guard.room = programs["large_requests"].Room(1_000_000)
        requests = [Request(replica, LARGE) for _ in range(3)]
        await asyncio.gather(*(it.task for it in requests))
        assert [it.status for it in requests] == [200] * 3

    asyncio.run(ask())


def test_the_tokens_of_a_large_prompt_are_not_counted(
    programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiteLLM 1.55.0 would count them for seconds, in the thread that all requests need."""
    router = SimpleNamespace(is_prompt_caching_valid_prompt=lambda *_, **__: True)
    monkeypatch.setattr(programs["large_requests"].importlib, "import_module", lambda _: router)
    programs["large_requests"].spare_the_count()
    replica = Replica(programs)
    counted: list[bool] = []
    replica.on_request = lambda: counted.append(router.is_prompt_caching_valid_prompt(messages=[]))
    for body in (HELLO, LARGE):
        replica.ask(body)
    assert counted == [True, False]


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_that_comes_too_slowly_gives_its_room_up(
    programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, announced: bool
) -> None:
    """Because others wait for it."""
    monkeypatch.setattr(programs["large_requests"], "ARRIVAL_SECONDS", 0.01)

    class Stalled(Request):
        async def receive(self) -> dict[str, Any]:
            if self.left == 1:
                await asyncio.Event().wait()
            return await super().receive()

    async def ask() -> None:
        replica = Replica(programs)
        slow = Stalled(replica, LARGE, announced=announced)
        await slow.task
        assert (slow.status, json.loads(slow.text)["error"]["code"]) == (408, "request_timeout")
        assert replica.guard.room.free == replica.guard.room.size

    asyncio.run(ask())


def test_a_long_text_is_short_in_debug_lines_and_whole_everywhere_else(programs: dict[str, Any]) -> None:
    """LiteLLM 1.55.0 makes ten texts of each request for debug lines that are off: a second for one of 19 MB."""
    read = programs["large_requests"].sparing(json.loads)
    sent = {**HELLO, "messages": [{"role": "user", "content": "x" * 1_200_000}], "tokens": [1, 2], "none": None}
    fields = read(json.dumps(sent))
    assert len(repr(fields)) < 1_000
    assert len(f"{fields}") < 1_000
    assert fields == sent
    assert json.loads(json.dumps(fields)) == sent
    content = fields["messages"][0]["content"]
    assert f"{content}" == str(content) == sent["messages"][0]["content"]
    assert copy.deepcopy(fields)["messages"][0]["content"] is content


def test_long_texts_differ_in_debug_lines_as_they_do(programs: dict[str, Any]) -> None:
    """Otherwise something cached for one would be used for another. This includes half of a surrogate pair."""
    one, two = (programs["large_requests"].Text(end.rjust(1_200_000)) for end in ("\ud83d", "b"))
    assert repr(one) != repr(two)
    assert repr(two) == repr(programs["large_requests"].Text(two + ""))


def test_small_bodies_are_left_as_they_are(programs: dict[str, Any]) -> None:
    fields = programs["large_requests"].sparing(json.loads)(json.dumps({"input": "x" * 200_000}))
    assert type(fields["input"]) is str
