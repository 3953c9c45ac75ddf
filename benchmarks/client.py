"""What the app module adds to a request: medians of alternating rounds against a stub on loopback, in one run.

    .venv/bin/python -m benchmarks.client            (in a folder with the `.env` of a stack, for the organizations)

Reports only; nothing here fails on a time.
"""

from __future__ import annotations

import asyncio
import functools
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import psycopg
from openai import OpenAI
from rich.console import Console
from rich.table import Table

import app
from app import organizations

if TYPE_CHECKING:
    from collections.abc import Callable

    from openai.types.chat import ChatCompletionMessageParam

ROUNDS = 15
CALLS = 60
"""How many calls a round makes of each kind."""
STARTS = 9

CHOICE = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
ANSWER = json.dumps(
    {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [CHOICE], "usage": USAGE}
).encode()
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)


class Stub(asyncio.Protocol):
    """Answers every request at once with the same completion."""

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
            self._transport.write(REPLY)


def serve(listening: socket.socket) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Stub, sock=listening)
        await server.serve_forever()

    asyncio.run(main())


def milliseconds_a_call(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - started) / CALLS * 1000


def start_milliseconds() -> float:
    """How long `llmctl --help` takes."""
    llmctl = Path(sys.executable).with_name("llmctl")
    took = []
    for _ in range(STARTS):
        started = time.perf_counter()
        subprocess.run([llmctl, "--help"], check=True, stdout=subprocess.DEVNULL)
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        stub = multiprocessing.get_context("fork").Process(target=serve, args=(listening,), daemon=True)
        stub.start()
        measured = run(url)
        stub.terminate()
        stub.join()
    table = Table("call", "median ms", "lowest", "highest", title=f"{ROUNDS} rounds of {CALLS} calls each")
    for name, rounds in measured.items():
        table.add_row(name, *(f"{value:.3f}" for value in (statistics.median(rounds), min(rounds), max(rounds))))
    table.add_row("llmctl --help", f"{start_milliseconds():.0f}", "", "")
    Console().print(table)


def run(url: str) -> dict[str, list[float]]:
    os.environ["LITELLM_URL"], os.environ["LITELLM_API_KEY"] = url, "sk-of-a-stub"
    messages = [app.ChatMessage("user", "hello")]
    sent: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
    bare = httpx2.Client(headers={"authorization": "Bearer sk-of-a-stub"})
    one = OpenAI(base_url=f"{url}/v1", api_key="sk-of-a-stub", max_retries=0)

    def new() -> object:
        with OpenAI(base_url=f"{url}/v1", api_key="sk-of-a-stub", max_retries=0) as client:
            return client.chat.completions.create(model="m", messages=sent)

    body = {"model": "m", "messages": sent}
    kinds: dict[str, Callable[[], object]] = {
        "bare pooled POST, httpx2": lambda: bare.post(f"{url}/v1/chat/completions", json=body).json(),
        "one long-lived OpenAI()": lambda: one.chat.completions.create(model="m", messages=sent),
        "OpenAI() a call": new,
        "create_llm_client()": app.create_llm_client,
        "chat_completion": lambda: app.chat_completion(messages),
    }
    organization = None
    if app.Settings.load().database_url is not None:
        organization = organizations.create(f"benchmark {time.time_ns()}")
        kinds["chat_completion_for_org"] = functools.partial(app.chat_completion_for_org, organization.id, messages)
    measured: dict[str, list[float]] = {name: [] for name in kinds}
    for round_number in range(ROUNDS + 1):
        for name, call in kinds.items():
            took = milliseconds_a_call(call)
            if round_number:  # the first one warms up
                measured[name].append(took)
    if organization is not None:
        with psycopg.connect(app.Settings.load().required_database_url()) as connection:
            connection.execute("DELETE FROM organizations WHERE id = %s", (organization.id,))
    app.close()
    return measured


if __name__ == "__main__":
    main()
