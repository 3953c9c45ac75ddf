"""How httpx reads answers through its own transport and through litellm/transport.py. Runs in LiteLLM's image.

Prints JSON: the name of each case, and both results. The server is a bare socket, so that its answers can be as wrong
as those of a provider, a load balancer or a dying process.

Usage: python3 transport_pair.py FOLDER_OF_LITELLM CERTIFICATE KEY AUTHORITY
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import os
import socket
import ssl
import struct
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

sys.path.insert(0, sys.argv[1])

import transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

HOST = "127.0.0.1"
SHORT_SECONDS = 0.5
"""How long a caller waits for more."""
LONG_SECONDS = 30
PAUSE = 0.1
EVENT = b'data: {"choices": []}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
PACKED = gzip.compress(EVENT * 3)


def length(body: bytes) -> bytes:
    return HEAD + b"content-length: %d\r\n\r\n" % len(body) + body


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


ANSWERS: dict[str, list[bytes | float]] = {
    "whole": [length(EVENT)],
    "nothing": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "in pieces": [CHUNKED, chunk(EVENT), 0.05, chunk(EVENT)[:9], 0.05, chunk(EVENT)[9:], b"0\r\n\r\n"],
    "trailers": [CHUNKED, chunk(EVENT), b"0\r\nx-checksum: 1\r\n\r\n"],
    "packed": [HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(PACKED) + PACKED],
    "until it closes": [HEAD + b"connection: close\r\n\r\n", EVENT],
    "refused": [b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\n{}"],
    "headers twice": [HEAD + b"set-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 0\r\n\r\n"],
    "a long header": [HEAD + b"content-security-policy: " + b"a" * 20_000 + b"\r\ncontent-length: 0\r\n\r\n"],
    "sent elsewhere": [
        b"HTTP/1.1 307 Temporary Redirect\r\nlocation: /whole\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    ],
    "a hint first": [b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", length(EVENT)],
    "an end too soon": [HEAD + b"content-length: 1000\r\n\r\n" + EVENT],
    "no last chunk": [CHUNKED, chunk(EVENT)],
    "half a chunk": [CHUNKED, b"ff\r\ndata"],
    "no HTTP": [b"SSH-2.0-server\r\n\r\n"],
    "no answer": [],
    "half a head": [HEAD],
    "cut off": [CHUNKED, chunk(EVENT), 0.05, -1],
    "cut off at once": [-1],
    "silent": [LONG_SECONDS],
    "silent in the middle": [CHUNKED, chunk(EVENT), LONG_SECONDS],
}
"""What the server sends, by path: bytes, seconds to wait, -1 to reset the connection. Then it closes."""


BROKEN = ("an end too soon", "no last chunk", "half a chunk", "cut off")
"""Answers that end early: the caller gets what had arrived, even if it reads slowly."""
READ_LATE = 0.3


class Server:
    """Answers by the path, and records what it received."""

    def __init__(self) -> None:
        self.connections = 0
        self.asked: list[tuple[list[str], bytes]] = []
        self.left = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._answered(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the caller has left, or all is over
        finally:
            writer.close()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether there may be another request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        self.asked.append(([head[0], *sorted(head[1:-2])], body))
        path = head[0].split()[1].partition("?")[0].strip("/").replace("-", " ")
        if path == "kept":
            writer.write(length(EVENT))
            return True
        if path == "endless":
            writer.write(CHUNKED + chunk(EVENT))
            await reader.read()
            self.left.set()
            return False
        for part in ANSWERS[path]:
            if isinstance(part, bytes):
                writer.write(part)
                await writer.drain()
            elif part < 0:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                return False
            else:
                await asyncio.sleep(part)
        return False


async def outcome(client: httpx.AsyncClient, url: str, *, busy_seconds: float = 0) -> list[Any]:
    """What a caller gets from a URL: status, headers, body; or the error, and what came before it."""
    body, status = b"", 0
    try:
        async with client.stream("POST", url, json={"stream": True}) as answer:
            status = answer.status_code
            await asyncio.sleep(busy_seconds)
            async for piece in answer.aiter_bytes():
                body += piece
            return [status, sorted(answer.headers.multi_items()), body.decode()]
    except httpx.HTTPError as error:
        return [status, type(error).__name__, body.decode()]


async def reused(client: httpx.AsyncClient, url: str, server: Server) -> list[Any]:
    """How many connections three requests take, one after another."""
    before = server.connections
    for _ in range(3):
        (await client.post(f"{url}/kept", json={})).raise_for_status()
    return [server.connections - before]


async def closed_between(client: httpx.AsyncClient, url: str) -> list[Any]:
    """Whether a connection that its server has silently closed causes no failure."""
    made = []
    for _ in range(2):
        made.append((await client.post(f"{url}/whole", json={})).status_code)
        await asyncio.sleep(PAUSE)
    return made


async def sent(client: httpx.AsyncClient, url: str, server: Server) -> list[Any]:
    """A request's headers and body, as they arrive: JSON, a file, nothing."""
    server.asked.clear()
    boundary = {"content-type": "multipart/form-data; boundary=limit"}
    await client.post(f"{url}/kept?q=a%2Fb", json={"model": "ü"}, headers={"authorization": "Bearer a"})
    await client.post(f"{url}/kept", files={"file": ("a.wav", b"RIFF" * 9)}, data={"model": "m"}, headers=boundary)
    await client.get(f"{url}/kept")
    await client.post(f"{url}/kept", content=b"", headers=[("x-more", "1"), ("x-more", "2")])
    return [[head, body.decode()] for head, body in server.asked]


async def left(client: httpx.AsyncClient, url: str, server: Server) -> list[Any]:
    """Whether a provider notices at once that a caller left in the middle of an answer."""
    server.left.clear()
    async with client.stream("POST", f"{url}/endless", json={}) as answer:
        async for _ in answer.aiter_raw():
            break
    async with asyncio.timeout(LONG_SECONDS):
        await server.left.wait()
    return ["the provider knows"]


async def dropped(make: Callable[[], httpx.AsyncClient], url: str) -> list[Any]:
    """What the loop is told of clients that nobody closes: LiteLLM drops each after an hour."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    for _ in range(2):
        (await make().post(f"{url}/kept", json={})).raise_for_status()
        gc.collect()
    return told


async def hung_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer nothing."""
    writer.close()


@asynccontextmanager
async def listening(
    server: Callable[..., Awaitable[None]], context: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Start a server on loopback; return its address."""
    async with await asyncio.start_server(server, HOST, 0, ssl=context) as made:
        yield f"{HOST}:{made.sockets[0].getsockname()[1]}"


def clients(*, authority: str = "") -> dict[str, httpx.AsyncClient]:
    """One with httpx's transport and one with ours."""
    if authority:
        os.environ["SSL_CERT_FILE"] = authority
        transport._context.cache_clear()
    options: dict[str, Any] = {
        "timeout": httpx.Timeout(LONG_SECONDS, read=SHORT_SECONDS),
        "follow_redirects": True,
    }
    return {"httpx": httpx.AsyncClient(**options), "aiohttp": transport.client(**options)}


async def main() -> None:
    """Run all cases with both, and print the results."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        nobody = f"http://{HOST}:{free.getsockname()[1]}"
    server, context = Server(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*sys.argv[2:4])
    async with listening(server) as place, listening(server, context) as with_tls, listening(hung_up) as hangs_up:
        url = f"http://{place}"
        cases: dict[str, Callable[[httpx.AsyncClient], Awaitable[list[Any]]]] = {
            **{name: partial(outcome, url=f"{url}/{name.replace(' ', '-')}") for name in ANSWERS},
            "nobody listens": partial(outcome, url=nobody),
            **{
                f"{name}, read late": partial(outcome, url=f"{url}/{name.replace(' ', '-')}", busy_seconds=READ_LATE)
                for name in BROKEN
            },
            "no such host": partial(outcome, url="http://nobody.invalid"),
            "no TLS": partial(outcome, url=f"https://{hangs_up}"),
            "an authority that nobody knows": partial(outcome, url=f"https://{with_tls}/whole"),
            "connections of three requests": partial(reused, url=url, server=server),
            "closed between two requests": partial(closed_between, url=url),
            "what is sent": partial(sent, url=url, server=server),
            "a caller who leaves": partial(left, url=url, server=server),
        }
        plain = clients()
        made = {name: {way: await case(client) for way, client in plain.items()} for name, case in cases.items()}
        ways = {"httpx": httpx.AsyncClient, "aiohttp": transport.client}
        made["clients that are dropped"] = {way: await dropped(make, url) for way, make in ways.items()}
        knowing = clients(authority=sys.argv[4])
        made["an authority that SSL_CERT_FILE names"] = {
            way: await outcome(client, f"https://{with_tls}/whole") for way, client in knowing.items()
        }
    print(json.dumps(made).replace(place, "HOST"))


if __name__ == "__main__":
    asyncio.run(main())
