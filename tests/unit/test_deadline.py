"""One deadline holds for the whole call: the servers here never finish, so without it the calls would not either."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

import app
from app import _client, _http, _requests, _steps, aio, organizations
from tests.unit.test_app import HELLO, ORGANIZATION, chunk, face

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.faces import Face

__all__ = ["face"]  # a fixture

pytestmark = pytest.mark.timeout(120)
SOON = app.ChatCompletionOptions(timeout=1)
STREAM = app.ChatCompletionOptions(timeout=1, stream=True)
HEAD = "HTTP/1.1 200 OK\r\ncontent-type: {}\r\ntransfer-encoding: chunked\r\n\r\n"
PLAIN, EVENTS = HEAD.format("application/json"), HEAD.format("text/event-stream")
PAUSE_SECONDS = 0.02


class Server:
    """Answers each request with `first`, and then with `more`, again and again, until its caller is gone."""

    def __init__(self, *first: str, more: str | None) -> None:
        self.begun, self.gone = threading.Event(), threading.Event()
        self.asked = 0
        self._first, self._more = first, more
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.asked += 1
            threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(PAUSE_SECONDS)
            received = self._received(connection)
            while received == b"":  # the request has yet to come
                received = self._received(connection)
            try:
                for text in self._first:
                    connection.sendall(text.encode())
                self.begun.set()
                while self._received(connection) != b"gone":
                    if self._more is not None:
                        connection.sendall(self._more.encode())
            except OSError:
                pass
            self.gone.set()

    def _received(self, connection: socket.socket) -> bytes:
        try:
            return connection.recv(65536) or b"gone"
        except TimeoutError:
            return b""
        except OSError:
            return b"gone"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_API_KEY", "sk-of-this-test")
    monkeypatch.setattr(_steps, "CONNECT_SECONDS", 3600.0)
    with ExitStack() as started:

        def begin(*first: str, more: str | None = None) -> Server:
            server = Server(*first, more=more)
            started.callback(server.close)
            monkeypatch.setenv("LITELLM_URL", server.url)
            return server

        yield begin
    app.close()


def http_chunk(text: str) -> str:
    return f"{len(text.encode()):x}\r\n{text}\r\n"


def test_an_answer_that_never_begins(face: Face, serve: Callable[..., Server]) -> None:
    server = serve()
    for ask in (
        partial(face.chat, HELLO, SOON),
        partial(face.stream, HELLO, SOON),
        partial(face.embed, "a", timeout=1),
    ):
        server.gone.clear()
        with pytest.raises(app.TimedOutError):
            ask()
        assert server.gone.wait(60), "the request ends at the gateway"


def test_a_head_that_trickles(face: Face, serve: Callable[..., Server]) -> None:
    serve("HTTP/1.1 200 OK\r\n", more="x-more: 1\r\n")
    with pytest.raises(app.TimedOutError):
        face.chat(HELLO, SOON)


@pytest.mark.parametrize("options", [SOON, STREAM], ids=["whole", "streamed"])
def test_an_answer_that_trickles(
    face: Face, serve: Callable[..., Server], options: app.ChatCompletionOptions
) -> None:
    """Each of its pieces arrives in time, but not the whole."""
    server = serve(PLAIN, more=http_chunk(" "))
    with pytest.raises(app.TimedOutError):
        face.chat(HELLO, options)
    assert server.gone.wait(60)
    with pytest.raises(app.TimedOutError):
        face.embed("a", timeout=1)


def test_an_error_whose_text_trickles(face: Face, serve: Callable[..., Server]) -> None:
    serve(PLAIN.replace("200 OK", "500 No"), more=http_chunk(" "))
    with pytest.raises(app.TimedOutError):
        face.chat(HELLO, SOON)


def test_a_stream_of_comments_only(face: Face, serve: Callable[..., Server]) -> None:
    server = serve(EVENTS, more=http_chunk(": ping\n\n"))
    for ask in (lambda: face.stream(HELLO, SOON), lambda: face.chat(HELLO, STREAM)):
        server.gone.clear()
        with pytest.raises(app.TimedOutError):
            ask()
        assert server.gone.wait(60)


@pytest.mark.parametrize("more", [None, http_chunk(": ping\n\n"), http_chunk(chunk("x"))])
def test_a_stream_that_stalls_gives_what_had_arrived(
    face: Face, serve: Callable[..., Server], more: str | None
) -> None:
    """The stream is silent, has only comments, or never ends."""
    server = serve(EVENTS, http_chunk(chunk("a")), http_chunk(chunk("b")), more=more)
    with pytest.raises(app.StreamInterruptedError, match="in time") as caught:
        face.stream(HELLO, SOON)
    assert caught.value.content.startswith("ab")
    assert server.gone.wait(60)


def test_the_end_of_a_connection_is_not_waited_for_once_the_answer_is_there(
    face: Face, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_requests, "DRAIN_SECONDS", 0.1)
    answer = (chunk("a"), chunk(None, "stop"), "data: [DONE]\n\n")
    serve(EVENTS, *map(http_chunk, answer), more=http_chunk(": ping\n\n"))
    assert face.stream(HELLO, app.ChatCompletionOptions(timeout=100))[1].content == "a"


def test_a_preferred_model_that_stalls_leaves_time_for_the_fallback(
    face: Face, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def found(_: object) -> organizations.Organization:
        return ORGANIZATION

    monkeypatch.setattr(organizations, "get", lambda _: ORGANIZATION)
    monkeypatch.setattr(organizations, "get_async", found)
    server = serve(PLAIN, more=http_chunk(" "))
    with pytest.raises(app.FallbackFailedError) as caught:
        face.chat_for_org(ORGANIZATION.id, HELLO, app.ChatCompletionOptions(timeout=4))
    assert isinstance(caught.value.primary, app.TimedOutError)
    assert isinstance(caught.value.fallback, app.TimedOutError)
    assert server.asked == 2


@contextmanager
def full() -> Iterator[str]:
    """The address of a socket that has no room for another connection, and drops what asks for one."""
    with ExitStack() as held:
        listening = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_gateway_that_drops_connections(
    face: Face, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline holds however often a connection is retried, and however many addresses the name has."""
    look_up = socket.getaddrinfo

    def many(host: str, *args: Any, **named: Any) -> list[Any]:
        return look_up("127.0.0.1", *args, **named) * (5 if host == "gateway.test" else 1)

    monkeypatch.setattr(socket, "getaddrinfo", many)
    with full() as address:
        monkeypatch.setenv("LITELLM_URL", f"http://{address.replace('127.0.0.1', 'gateway.test')}")
        with pytest.raises(app.GatewayUnreachableError, match="in time"):
            face.chat(HELLO, SOON)


def test_a_name_that_is_not_looked_up(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def look_up(*_: object, **__: object) -> list[object]:
        answered.wait()
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setenv("LITELLM_URL", "http://gateway.test")
    with pytest.raises(app.GatewayUnreachableError, match="in time"):
        _client.chat_completion(HELLO, SOON)

    async def ask() -> None:
        with pytest.raises(app.GatewayUnreachableError, match="in time"):
            await aio.chat_completion(HELLO, SOON)
        answered.set()  # the loop waits at its end for the thread that looks up

    asyncio.run(ask())


@pytest.mark.parametrize("dropped", [True, False], ids=["dropped", "silent"])
def test_a_database_that_does_not_answer(
    face: Face, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, *, dropped: bool
) -> None:
    """Whether it accepts no connection, or accepts one and then says nothing."""
    monkeypatch.setattr(organizations, "WAIT_SECONDS", 3600.0)
    with full() as address:
        where = address if dropped else serve().url.removeprefix("http://")
        monkeypatch.setenv("DATABASE_URL", f"postgresql://app@{where}/app?sslmode=disable")
        with pytest.raises(app.DatabaseUnavailableError, match="in time"):
            face.chat_for_org(UUID(int=1), HELLO, SOON)
        app.close()


@pytest.mark.parametrize("first", [(), (PLAIN,), (EVENTS,), (EVENTS, http_chunk(chunk("a")))])
def test_a_task_that_is_cancelled_ends_its_request(serve: Callable[..., Server], first: tuple[str, ...]) -> None:
    """Wherever the request is: before the head, in the body, or in the middle of a stream."""
    server = serve(*first)

    async def ask() -> None:
        if EVENTS not in first:
            await aio.chat_completion(HELLO)
        async for _ in await aio.stream_chat_completion(HELLO):
            pass

    async def main() -> None:
        asked = asyncio.create_task(ask())
        assert await asyncio.to_thread(server.begun.wait, 60)
        await asyncio.sleep(5 * PAUSE_SECONDS)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await asyncio.to_thread(server.gone.wait, 60)
        assert _http.per_loop.get()._transport._pool.connections == []  # type: ignore[attr-defined]

    asyncio.run(main())
