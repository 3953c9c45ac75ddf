"""A gateway that answers at once with prepared answers, in its own process, to measure clients with."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from infra.workload import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parent.parent
BACKLOG = 1024
"""This many callers may connect at once."""
WORDS = 10
DIMENSIONS = 1536
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
HEAD = {"id": "1", "created": 0, "model": "m"}


def _reply(content: bytes, kind: str = "application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (
        kind.encode(),
        len(content),
        content,
    )


def _completion() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    return json.dumps({**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}).encode()


def _stream() -> bytes:
    chunks = []
    for number in range(WORDS):
        choice = {"index": 0, "delta": {"content": "hi "}, "finish_reason": "stop" if number == WORDS - 1 else None}
        chunks.append(json.dumps({**HEAD, "object": "chat.completion.chunk", "choices": [choice]}))
    return "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"]).encode()


def _embedding() -> bytes:
    data = [{"object": "embedding", "index": 0, "embedding": [number / 7919 for number in range(DIMENSIONS)]}]
    return json.dumps({"object": "list", "model": "m", "data": data, "usage": USAGE}).encode()


COMPLETION = _reply(_completion())
STREAM = _reply(_stream(), "text/event-stream")
EMBEDDING = _reply(_embedding())


class Stub(asyncio.Protocol):
    """Answers every request at once."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")),
            0,
        )
        if end and len(body) >= length:
            self._received = b""
            self._transport.write(answer_to(head, body))


def answer_to(head: bytes, body: bytes) -> bytes:
    """The answer for a request's path, as a stream if it asks for one."""
    if b"/embeddings " in head.split(b"\r\n", 1)[0]:
        return EMBEDDING
    return STREAM if json.loads(body).get("stream") else COMPLETION


async def serve(listening: socket.socket) -> None:
    server = await asyncio.get_running_loop().create_server(Stub, sock=listening, backlog=BACKLOG)
    await server.serve_forever()


@contextmanager
def stub() -> Iterator[str]:
    """Run it during the block; yields its address."""
    with socket.create_server((LOOPBACK, 0), backlog=BACKLOG) as listening:
        descriptor = listening.fileno()
        with subprocess.Popen(
            [sys.executable, "-m", __name__, str(descriptor)], pass_fds=[descriptor], cwd=PROJECT
        ) as process:
            try:
                yield f"http://{LOOPBACK}:{listening.getsockname()[1]}"
            finally:
                process.terminate()


if __name__ == "__main__":
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))
