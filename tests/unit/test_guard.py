"""The guard before LiteLLM, with an app in LiteLLM's place: what gets through, and what callers read."""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import json
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from infra import model_table
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
HELLO: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
OWN = frozenset({"api_base", "fallbacks"})
NOT_PUBLIC = (
    *("127.0.0.1", "10.0.0.5", "172.16.3.4", "192.168.1.1", "169.254.10.20", "100.64.0.1", "224.0.0.1"),
    *("::1", "fe80::1", "fd00::1"),
)
MODULES = (
    "answers",
    "fetching",
    "guard",
    "release",
    "request_types",
    "large_requests",
    "field_types",
    "streams",
    "token_counts",
    "usage",
)


@pytest.fixture(scope="module")
def programs() -> Any:
    """The programs that run in LiteLLM's process, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "litellm"))
        yield {name: importlib.import_module(name) for name in MODULES}


class Replica:
    """A guard, and the app behind it."""

    def __init__(self, programs: dict[str, Any], **changes: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        self.answer: tuple[int, bytes, list[bytes]] = (200, b"application/json", [b"{}"])
        self.on_request: Callable[[], None] = lambda: None
        known: dict[str, Any] = {
            "version": "1.55.0",
            "settings": OWN,
            "metadata_settings": OWN | {"langfuse_host"},
            "key_headers": frozenset({b"x-api-key"}),
            "text_only": True,
            "served": lambda model: model == "gpt-4o",
            "models": lambda: ["gpt-4o", "another"],
            "told": lambda: {"gpt-4o": {"shutdown_date": "2027-01-14"}, "another": {}},
            "refused": lambda _: {},
            "gave": lambda answer: answer == "resp_1",
            "moderates": lambda: False,
            "loads": lambda body: json.loads(body.decode()),
            **changes,
        }
        totals = programs["usage"].Totals(replica="one", models=known["models"])
        self.guard = programs["guard"].Guard(self.app, programs["release"].Release(**known), totals)

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.seen.append({**scope, "body": (await receive()).get("body")})
        self.on_request()
        status, content_type, chunks = self.answer
        headers = [(b"content-type", content_type), (b"x-kept", b"1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def ask(  # noqa: PLR0913 -- all by their names
        self,
        body: object = HELLO,
        path: str = CHAT,
        *,
        query: bytes = b"",
        headers: dict[bytes, bytes] | None = None,
        method: str = "POST",
        pieces: int = 1,
        leaves: bool = False,
    ) -> tuple[int, str]:
        """Status and text of the answer to a request; the caller waits for it, or `leaves` before."""
        whole = body if isinstance(body, bytes) else json.dumps(body).encode()
        size = -(-len(whole) // pieces) or 1
        parts = [whole[start : start + size] for start in range(0, len(whole), size)] or [b""]
        given = [
            {"type": "http.request", "body": part, "more_body": number < len(parts)}
            for number, part in enumerate(parts, 1)
        ]
        sent: list[dict[str, Any]] = []

        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if given:
                return given.pop(0)
            if not leaves:
                await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                gone.set()

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query,
            "headers": list((headers or {}).items()),
        }
        asyncio.run(self.guard(scope, receive, send))
        if not sent:
            return 0, ""
        return sent[0]["status"], b"".join(it.get("body", b"") for it in sent[1:]).decode()

    def refused(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """The error of a request that did not get to LiteLLM, with its status."""
        status, text = self.ask(*arguments, **options)
        assert self.seen == []
        return {**json.loads(text)["error"], "status": status}


@pytest.fixture
def replica(programs: dict[str, Any]) -> Replica:
    return Replica(programs)


def test_what_clients_ask_gets_through_as_it_came(replica: Replica) -> None:
    """This includes fields that LiteLLM does not know, and labels."""
    body = json.dumps({**HELLO, "min_p": 0.1, "new": {"api_base": {}}, "metadata": {"team": "a"}}).encode()
    assert replica.ask(body, pieces=7) == (200, "{}")
    assert replica.seen[0]["body"] == body


def test_a_request_is_made_to_fit_its_model(programs: dict[str, Any]) -> None:
    replica = Replica(programs, refused={"gpt-4o": {"seed": "drop"}}.get)
    assert replica.ask({**HELLO, "seed": 5}, "/openai/deployments/gpt-4o/chat/completions")[0] == 200
    assert json.loads(replica.seen[0]["body"]) == replica.seen[0]["parsed_body"][1] == HELLO


@pytest.mark.parametrize("name", ["api_base", "fallbacks", "litellm_anything", "_anything"])
def test_a_setting_of_litellms_own_is_refused_by_name(replica: Replica, name: str) -> None:
    """Whatever its value, however often the name is repeated, and in whatever pieces it arrives."""
    values: tuple[object, ...] = ({}, None, [], "x" * 70_000)
    for value in values:
        problem = replica.refused({**HELLO, name: value}, pieces=3)
        assert (problem["status"], problem["param"], problem["code"]) == (400, name, "parameter_not_allowed")
        assert name in problem["message"]
    twice = json.dumps({name: {}})[:-1] + ", " + json.dumps({name: {}, **HELLO})[1:]
    assert replica.refused(twice.encode())["param"] == name


def test_a_setting_among_labels_is_refused_by_name(replica: Replica) -> None:
    assert replica.refused({**HELLO, "metadata": {"langfuse_host": {}}})["param"] == "metadata.langfuse_host"


def test_a_query_string_sets_nothing(replica: Replica) -> None:
    """What clients of Azure and Anthropic send there is not passed on."""
    for query in (b"api_base=", b"model=gpt-4o", b"fallbacks[]=1"):
        assert replica.refused(query=query)["code"] == "parameter_not_allowed"
    replica.ask(query=b"api-version=2024-10-21&beta=true")
    assert replica.seen[0]["query_string"] == b""


def test_headers_that_set_or_open_something_are_dropped(replica: Replica) -> None:
    dropped = {b"x-litellm-anything": b"1", b"x-api-key": b"1", b"cache-control": b"s-maxage=1"}
    replica.ask(headers={**dropped, b"authorization": b"Bearer a", b"anthropic-version": b"2023-06-01"})
    names = {name for name, _ in replica.seen[0]["headers"]}
    assert names == {b"authorization", b"anthropic-version", b"content-type"}


def test_a_websocket_is_closed(replica: Replica) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(replica.guard({"type": "websocket", "path": "/v1/realtime"}, None, send))
    assert (sent, replica.seen) == ([{"type": "websocket.close", "code": 1008}], [])


@pytest.mark.parametrize("model", ["gpt4o", "gpt-4o,gpt-4o", "openai/gpt-4o", ""])
def test_a_model_that_is_not_served_is_not_found(replica: Replica, model: str) -> None:
    """The error names the served models, and OpenAI's SDKs raise NotFoundError."""
    problem = replica.refused({**HELLO, "model": model})
    assert (problem["status"], problem["code"], problem["param"]) == (404, "model_not_found", "model")
    assert "Served: another, gpt-4o." in problem["message"]
    assert replica.refused({}, f"/openai/deployments/{model or 'x'}/chat/completions")["status"] == 404


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", {}, 400, "invalid_json"),
        (b"{", {}, 400, "invalid_json"),
        (b"[]", {}, 400, "invalid_json"),
        (b"\xff\xfe{\x00}\x00", {}, 400, "invalid_json"),
        (HELLO, {b"content-encoding": b"gzip"}, 415, "unsupported_encoding"),
        (HELLO, {b"content-type": b"application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({**HELLO, "messages": "hello"}, {}, 400, "invalid_type"),
        ({**HELLO, "messages": [1]}, {}, 400, "invalid_type"),
        ({**HELLO, "messages": [{"role": "user", "content": [1]}]}, {}, 400, "invalid_type"),
        ({**HELLO, "model": ["gpt-4o"]}, {}, 400, "invalid_type"),
        ({**HELLO, "temperature": "warm"}, {}, 400, "invalid_type"),
        ({**HELLO, "prompt": ["hello", [1, 2], [None]]}, {}, 400, None),
        ({**HELLO, "input": []}, {}, 400, None),
        ({"messages": []}, {}, 400, None),
    ],
)
def test_what_is_merely_wrong_is_a_bad_request(
    replica: Replica, body: object, headers: dict[bytes, bytes], status: int, code: str | None
) -> None:
    problem = replica.refused(body, headers=headers)
    assert (problem["status"], problem["type"]) == (status, "invalid_request_error")
    assert code in {None, problem["code"]}


def test_a_stream_of_what_has_none_is_refused(replica: Replica) -> None:
    assert replica.refused({**HELLO, "input": "a", "stream": True}, "/v1/embeddings")["param"] == "stream"


def test_an_answer_that_this_gateway_cannot_have_given_is_not_found(replica: Replica) -> None:
    """LiteLLM reads from an answer's id which deployment to ask for it."""
    for path in ("/v1/responses/resp_2", "/v1/responses/resp_2/cancel", "/v1/responses/a/b"):
        assert replica.refused(b"", path, method="GET")["status"] == 404
    assert replica.refused({**HELLO, "previous_response_id": "resp_2"}, "/v1/responses")["status"] == 404
    assert replica.ask({**HELLO, "previous_response_id": "resp_1"}, "/v1/responses")[0] == 200
    assert replica.ask(b"", "/v1/responses/resp_1/input_items", method="GET")[0] == 200


@pytest.mark.parametrize(
    ("path", "needed"),
    [("/v1/embeddings", "input"), ("/v1/completions", "prompt"), (CHAT, "messages"), ("/v1/rerank", "query")],
)
def test_what_a_path_needs_is_asked_for(replica: Replica, path: str, needed: str) -> None:
    body = {"model": "gpt-4o", **({needed: None} if path == CHAT else {})}
    problem = replica.refused(body, path)
    assert (problem["param"], problem["code"]) == (needed, "missing_required_parameter")


def test_a_form_path_wants_a_form(replica: Replica) -> None:
    assert replica.refused(path="/v1/audio/transcriptions")["status"] == 415


def test_a_moderation_without_a_key_says_which_setting_it_needs(replica: Replica) -> None:
    assert "openaiApiKey" in replica.refused({"input": "hello"}, "/v1/moderations")["message"]


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"tools": [{"name": "weather"}]}, "tools"),
        ({"system": [{"type": "text", "text": "a", "cache_control": {}}]}, None),
        (
            {"system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
            "system[0].cache_control",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, None),
    ],
)
def test_what_a_release_would_lose_of_a_message_is_refused_by_name(
    programs: dict[str, Any], changes: dict[str, Any], lost: str | None
) -> None:
    """In Anthropic's form. A release that handles it accepts it."""
    old, new = Replica(programs), Replica(programs, text_only=False)
    body = {**HELLO, "max_tokens": 5, **changes}
    status, text = old.ask(body, MESSAGES)
    if lost:
        problem = json.loads(text)
        assert (status, problem["type"], problem["error"]["type"]) == (400, "error", "invalid_request_error")
        assert f"`{lost}`" in problem["error"]["message"]
        assert "1.106.12" in problem["error"]["message"]
    else:
        assert status == 200
    assert new.ask(body, MESSAGES)[0] == 200


@pytest.mark.parametrize(
    ("status", "body", "seen", "code"),
    [
        (404, {"detail": "Not Found"}, 404, "unknown_url"),
        (405, {"detail": "Method Not Allowed"}, 404, "unknown_url"),
        (422, {"detail": [{"loc": ["body", "file"], "msg": "Field required"}]}, 400, "invalid_request"),
        (
            500,
            {"error": {"message": "litellm.NotFoundError: no such file", "type": "None", "code": "500"}},
            404,
            "500",
        ),
        (429, {"error": {"message": "slow down", "type": "requests", "param": "None", "code": "429"}}, 429, "429"),
        (400, {"error": {"message": {"error": "no such thing"}, "type": "None", "code": "400"}}, 400, "400"),
        (502, {"no": "error"}, 502, None),
    ],
)
def test_an_error_of_litellms_is_put_into_openais_form(
    replica: Replica, status: int, body: object, seen: int, code: str | None
) -> None:
    replica.answer = (status, b"application/json", [json.dumps(body).encode()])
    got, text = replica.ask(path="/v1/responses")
    problem = json.loads(text)["error"]
    assert (got, problem["code"], problem["param"]) == (seen, code, None)
    assert isinstance(problem["message"], str)
    assert problem["message"]
    assert problem["type"] in {"invalid_request_error", "server_error", "requests"}
    if code == "unknown_url":
        assert "1.55.0" in problem["message"]
        assert "since LiteLLM 1.106.12" in problem["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_models_are_listed_in_one_order_and_with_their_ends(replica: Replica, path: str) -> None:
    """Whatever LiteLLM's own order is, which differs in each process."""
    models = [{"id": name, "object": "model"} for name in ("gpt-4o", "a", "gpt-4", "B")]
    seen = set()
    for given in (models, models[::-1]):
        text = json.dumps({"data": given, "object": "list"}).encode()
        replica.answer = (200, b"application/json", [text[:20], text[20:]])
        status, answered = replica.ask(b"", path, method="GET")
        seen.add((status, *(it["id"] for it in json.loads(answered)["data"])))
        assert json.loads(answered)["object"] == "list"
        assert [it.get("shutdown_date") for it in json.loads(answered)["data"]] == [None, None, None, "2027-01-14"]
    assert seen == {(200, "B", "a", "gpt-4", "gpt-4o")}


def test_a_models_end_is_that_of_its_first_deployment(programs: dict[str, Any]) -> None:
    """As the edge tells it, by the names under which the stack writes it."""
    release = programs["release"]
    first, second = ({"id": day, "shutdown_date": day} for day in ("2027-01-14", "2028-01-14"))
    listed = [{"model_name": "gpt-4o", "model_info": info} for info in (first, second)]
    assert release.told(listed) == {"gpt-4o": {"shutdown_date": "2027-01-14"}}
    assert release.TOLD == model_table.TOLD


def test_a_failure_is_the_bodys_only_where_nobody_was_asked(replica: Replica, programs: dict[str, Any]) -> None:
    """A provider's failure remains a failure, and so does any error that is not Python's own."""
    current = programs["answers"].current
    replica.answer = (500, b"application/json", [b'{"error":{"message":"list index out of range"}}'])

    def asked(error: Exception, *, asked: bool) -> int:
        def note() -> None:
            current.get().error, current.get().asked = error, asked

        replica.on_request = note
        return replica.ask()[0]

    assert asked(IndexError("list index out of range"), asked=False) == 400
    assert asked(IndexError("list index out of range"), asked=True) == 500
    assert asked(RuntimeError("no database"), asked=False) == 500


def test_a_program_that_fails_answers_in_openais_form(replica: Replica) -> None:
    def fail() -> None:
        raise RuntimeError("secret details")

    replica.on_request = fail
    status, text = replica.ask()
    assert status == 500
    assert json.loads(text)["error"]["type"] == "server_error"
    assert "secret" not in text


@pytest.mark.parametrize(
    "chunks",
    [
        [b'data: {"error": {"message": "the provider left"}}\n\n'],
        [b'event: content_block_delta\ndata: {"type": "content_block_delta"}\n\n'],
        [],
    ],
)
def test_a_stream_of_messages_that_is_broken_off_ends_with_an_error(replica: Replica, chunks: list[bytes]) -> None:
    """Anthropic's SDKs raise at such an event, and accept any other end as a complete answer."""
    replica.answer = (200, b"text/event-stream", [b"event: message_start\ndata: {}\n\n", *chunks])
    _, text = replica.ask({**HELLO, "max_tokens": 5, "stream": True}, MESSAGES)
    assert text.count("event: error\n") == 1
    assert json.loads(text.rsplit("data:", 1)[1])["type"] == "error"


def test_a_stream_of_messages_that_is_whole_stays_as_it_is(replica: Replica) -> None:
    """However its last event is split into pieces."""
    chunks = [b"event: message_start\ndata: {}\n\nevent: mess", b"age_stop\ndata: {}\n\n"]
    replica.answer = (200, b"text/event-stream", chunks)
    assert replica.ask({**HELLO, "max_tokens": 5, "stream": True}, MESSAGES)[1] == b"".join(chunks).decode()


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_what_is_not_public_is_not_fetched(
    programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """Not even if the name also has a public address, or the address is embedded in an IPv6 one."""
    fetching = programs["fetching"]
    looked_up = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (it, 80)) for it in ("93.184.216.34", address)]
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *_, **__: looked_up)
    with pytest.raises(fetching.NotFetchedError):
        fetching.address_of("images.test", 80)
    if ":" not in address:
        number = int(ipaddress.IPv4Address(address))
        carried = [(0xFFFF << 32) | number, (0x64FF9B << 96) | number, (0x2002 << 112) | (number << 80)]
        assert not any(fetching.public(str(ipaddress.IPv6Address(it))) for it in carried)


def test_a_public_address_is_the_one_that_is_connected_to(
    programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]
    monkeypatch.setattr(programs["fetching"].socket, "getaddrinfo", lambda *_, **__: looked_up)
    assert programs["fetching"].address_of("images.test", 80) == "93.184.216.34"


def test_who_asks_is_what_the_edge_says_and_for_whom_what_the_client_says(
    replica: Replica, programs: dict[str, Any]
) -> None:
    """LiteLLM sees neither, so that no provider can; the edge's id of the call becomes LiteLLM's."""
    seen: list[Any] = []
    replica.on_request = lambda: seen.append(programs["answers"].current.get())
    headers = {
        b"x-llm-gateway-client": b"team-a",
        b"x-llm-gateway-call": b"call-1",
        b"x-llm-organization": b"acme",
        b"x-litellm-call-id": b"a caller's",
    }
    replica.ask({**HELLO, "stream": True}, headers=headers)
    known = {it: getattr(seen[0], it) for it in ("client", "call_id", "organization", "model", "stream")}
    assert known == {
        "client": "team-a",
        "call_id": "call-1",
        "organization": "acme",
        "model": "gpt-4o",
        "stream": True,
    }
    assert [it for it in replica.seen[0]["headers"] if it[0].startswith(b"x-")] == [(b"x-litellm-call-id", b"call-1")]


@pytest.mark.parametrize("path", ["/key/list", "/llm-gateway/spend/client/-infinity"])
def test_an_operator_from_within_is_no_caller_whose_queries_end_early(
    replica: Replica, programs: dict[str, Any], path: str
) -> None:
    """A sum of spending may take longer than a caller waits for the database: that does not mean that it is away."""

    async def admit(_: object, exchange: Any) -> None:
        exchange.operator = exchange.call_id is None

    noted: list[Any] = []
    replica.guard.keys = SimpleNamespace(admit=admit)
    replica.on_request = lambda: noted.append(programs["answers"].current.get())
    assert replica.ask(b"", path, method="GET")[0] == 200
    assert replica.ask(b"", path, method="GET", headers={b"x-llm-gateway-call": b"c-1"})[0] == 200
    assert [each is None for each in noted] == [True, False]


@pytest.mark.parametrize("name", [b"", b"o" * 101, b"acme\n", "Zürich".encode(), b'acme"', b" acme"])
def test_an_organization_that_is_not_a_label_is_refused(replica: Replica, name: bytes) -> None:
    problem = replica.refused(headers={b"x-llm-organization": name})
    assert (problem["status"], problem["param"], problem["code"]) == (400, "x-llm-organization", "invalid_header")


@pytest.mark.parametrize("early", [False, True])
def test_a_caller_has_left_who_is_gone_before_the_end_of_the_answer(
    replica: Replica, programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, early: bool
) -> None:
    """A caller who leaves after the end has not. Anyone who left is recorded."""
    told: list[Any] = []

    async def tell(exchange: Any, _: Any) -> None:
        told.append(exchange)

    async def app(_: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if early:
            assert await receive() == {"type": "http.disconnect"}
        await send({"type": "http.response.body", "body": b"{}"})
        assert await receive() == {"type": "http.disconnect"}

    replica.guard.app = app
    monkeypatch.setattr(programs["usage"], "left", tell)
    replica.ask(leaves=early)
    assert [exchange.left for exchange in told] == [True] * early


@pytest.mark.parametrize("asked", [False, True])
def test_a_caller_who_leaves_before_the_answer_begins_ends_what_it_is_waited_for(
    replica: Replica, programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, asked: bool
) -> None:
    """If a provider was asked, a log line says so, with unknown tokens."""
    told: list[Any] = []
    ended: list[bool] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        await receive()
        programs["answers"].current.get().asked = asked
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    replica.guard.app = app
    monkeypatch.setattr(replica.guard.totals, "tell", told.append)
    assert replica.ask(leaves=True) == (0, "")
    assert ended == [True]
    assert [(event.status, event.model, event.total_tokens, event.cost) for event in told] == [
        ("left", "gpt-4o", None, None)
    ] * asked


def test_nothing_of_a_request_holds_its_stream_when_it_is_over(replica: Replica, programs: dict[str, Any]) -> None:
    """Its context may live on, and a held stream keeps its connection: after a thousand, no connection is left."""
    kept: list[Any] = []

    def on_request() -> None:
        kept.append(programs["answers"].current.get())
        kept[0].wrapper = object()

    replica.on_request = on_request
    replica.ask()
    assert kept[0].wrapper is None
