"""Requests for things that the gateway must not do: a table of requests with their answers, and random ones.

They are harmless: a LiteLLM setting gets an empty or an unreachable value, and the only address from which something
could be fetched is the test's own listener.
"""

from __future__ import annotations

import json
import random
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAT, EMBEDDINGS, MESSAGES = "/v1/chat/completions", "/v1/embeddings", "/v1/messages"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
HOST = "host.docker.internal"
"""The name that containers use for the engine's machine."""
HELLO: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
SETTINGS = (
    "api_base", "api_key", "api_version", "base_url", "cache", "client", "custom_llm_provider",
    "drop_params", "extra_body", "extra_headers", "failure_callback", "fallbacks", "guardrails", "headers",
    "litellm_credential_name", "litellm_metadata", "mock_response", "model_list", "num_retries", "organization",
    "proxy_server_request", "region_name", "request_timeout", "specific_deployment", "success_callback", "timeout",
    "user_config", "vertex_credentials", "aws_region_name", "context_window_fallback_dict", "model_info",
)  # fmt: skip
"""Some that LiteLLM reads from a request, in each of the releases that are run here."""
FIELDS = (
    "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "messages", "metadata", "model", "n",
    "parallel_tool_calls", "presence_penalty", "response_format", "seed", "stop", "stream", "stream_options",
    "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "input", "prompt", "functions",
)  # fmt: skip
AROUND_THE_EDGES_BUFFER = (65_000, 66_500)
"""Bytes: what the edge sees of a body ends between."""
THREADS = 8
REFUSED = "parameter_not_allowed"
TABLE: tuple[tuple[str, dict[str, Any], int, str | None], ...] = (
    *((CHAT, {"json": {**HELLO, name: {}}}, 400, REFUSED) for name in SETTINGS),
    (CHAT, {"json": {**HELLO, "metadata": {"api_base": {}}}}, 400, REFUSED),
    (CHAT, {"json": {**HELLO, "padding": "x" * 100_000, "api_base": {}}}, 400, REFUSED),
    (CHAT, {"json": HELLO, "params": {"model": "gpt-4o"}}, 400, REFUSED),
    (CHAT, {"json": HELLO, "headers": {"x-litellm-timeout": "x"}}, 200, None),
    (CHAT, {"json": {**HELLO, "metadata": {"team": "a", "tags": ["b"]}, "unknown_to_litellm": 1}}, 200, None),
    (CHAT, {"json": {**HELLO, "model": "gpt4o"}}, 404, "model_not_found"),
    (CHAT, {"json": {**HELLO, "messages": "hello"}}, 400, "invalid_type"),
    (CHAT, {"content": b"", "headers": {"content-length": "0"}}, 400, "invalid_json"),
    (CHAT, {"content": b"{"}, 400, "invalid_json"),
    (CHAT, {"json": HELLO, "headers": {"content-encoding": "gzip"}}, 415, "unsupported_encoding"),
    (CHAT, {"data": {"model": "gpt-4o"}}, 415, "unsupported_media_type"),
    (EMBEDDINGS, {"json": {"model": "text-embedding-3-small", "input": "a", "api_base": {}}}, 400, REFUSED),
    (TRANSCRIPTIONS, {"data": {"model": "gpt-4o", "api_base": ""}, "files": {"file": b"a"}}, 400, REFUSED),
    (TRANSCRIPTIONS, {"data": {"model": "gpt-4o"}}, 400, "invalid_request"),
    (TRANSCRIPTIONS, {"json": HELLO}, 415, "unsupported_media_type"),
)
"""Path, request, status, and code of the error."""


LASTING = {"cache_control": {"type": "ephemeral"}}
CODING_AGENT: dict[str, Any] = {
    "model": "claude-3-5-sonnet",
    "max_tokens": 32_000,
    "stream": True,
    "system": [{"type": "text", "text": "You write code.", **LASTING}],
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hello", **LASTING}]}],
    "tools": [
        {"name": "Bash", "description": "Runs a command", "input_schema": {"type": "object", "properties": {}}}
    ],
    "metadata": {"user_id": "user_1_account__session_2"},
    "thinking": {"type": "enabled", "budget_tokens": 31_999},
}
"""A request in the form of Claude Code's first one."""
AGENT_HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
    "x-app": "cli",
}


def answers_to_a_coding_agent(url: str, key: str) -> list[str]:
    """What it gets: status and last event of its first request, and the status of a count of its tokens."""
    headers = {"authorization": f"Bearer {key}", **AGENT_HEADERS}
    with httpx2.Client(base_url=url, headers=headers, params={"beta": "true"}, timeout=60) as client:
        answer = client.post(MESSAGES, json=CODING_AGENT)
        counted = {name: CODING_AGENT[name] for name in ("model", "system", "messages", "tools")}
        count = client.post(f"{MESSAGES}/count_tokens", json=counted)
    return [f"{answer.status_code} {answer.text.strip().rsplit(chr(10), 1)[-1]}", str(count.status_code)]


def wrong_answers(client: httpx2.Client) -> list[str]:
    """The requests of the table whose answers differ from it."""
    wrong = []
    for path, request, status, code in TABLE:
        answer = client.post(path, **request)
        got = answer.json().get("error", {}).get("code") if answer.status_code != 200 else None
        if (answer.status_code, got) != (status, code):
            wrong.append(f"{path} {str(request)[:200]}: {answer.status_code} {answer.text[:200]}")
    return wrong


@contextmanager
def listener() -> Iterator[tuple[int, list[str]]]:
    """A port of this machine where nothing may arrive, and what did."""
    arrived: list[str] = []
    with socket.create_server(("0.0.0.0", 0)) as server:  # noqa: S104 -- containers are to reach it, if they try

        def accept() -> None:
            while True:
                try:
                    connection, address = server.accept()
                except OSError:
                    return
                arrived.append(str(address))
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], arrived
        server.shutdown(socket.SHUT_RDWR)


@dataclass
class Fuzzed:
    """The results of random requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """Those answered with 500 or more, or not at all."""


def fuzz(url: str, key: str, *, count: int, seed: int, port: int) -> Fuzzed:
    """Send random requests; `port` is the port of this machine that some of them name."""
    done = Fuzzed()

    def some(thread: int) -> None:
        chance = random.Random(f"{seed} {thread}")
        headers = {"authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=url, headers=headers, timeout=120) as client:
            for _ in range(thread, count, THREADS):
                path, request = _request(chance, port)
                try:
                    answer = client.post(path, **request)
                except httpx2.HTTPError as problem:
                    done.failures.append(f"{path} {str(request)[:300]}: {problem!r}")
                    continue
                done.statuses[answer.status_code] += 1
                if answer.status_code >= httpx2.codes.INTERNAL_SERVER_ERROR:
                    done.failures.append(f"{path} {str(request)[:600]}: {answer.status_code} {answer.text[:300]}")

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(some, range(THREADS)))
    return done


def _value(chance: random.Random, depth: int = 0) -> Any:
    plain: list[Any] = [None, True, False, 0, -1, 3.5, 10**20, "", "hello", "nowhere.invalid", [], {}, "x" * 300]
    if depth > chance.randrange(6) or chance.random() < 0.5:
        return chance.choice(plain)
    if chance.random() < 0.5:
        return [_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    names = (*FIELDS, *SETTINGS, "type", "text", "role", "content", "function")
    return {chance.choice(names): _value(chance, depth + 1) for _ in range(chance.randrange(4))}


def _body(chance: random.Random, path: str, port: int) -> dict[str, Any]:
    """A correct body with random changes."""
    body: dict[str, Any] = {**HELLO, "max_tokens": 5}
    if path == EMBEDDINGS:
        body = {"model": "text-embedding-3-small", "input": "hello"}
    elif path == "/v1/completions":
        body = {"model": "gpt-4o", "prompt": "hello"}
    elif path == MESSAGES or chance.random() < 0.2:
        body["model"] = "claude-3-5-sonnet"
    for _ in range(chance.randrange(3)):
        body[chance.choice(FIELDS)] = _value(chance)
    if chance.random() < 0.6:
        inside = body.setdefault("metadata", {}) if chance.random() < 0.2 else body
        value: Any = chance.choice(({}, [], None, "", "nowhere.invalid", 1))
        (inside if isinstance(inside, dict) else body)[chance.choice(SETTINGS)] = value
    if chance.random() < 0.1 and path == CHAT:
        url = f"http://{HOST}:{port}/{chance.randrange(1000)}.png"
        body["messages"] = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        body["model"] = "claude-3-5-sonnet"
    if chance.random() < 0.1:
        padding = {"padding": "x" * chance.randrange(*AROUND_THE_EDGES_BUFFER)}
        body = {**padding, **body} if chance.random() < 0.5 else {**body, **padding}
    return body


def _request(chance: random.Random, port: int) -> tuple[str, dict[str, Any]]:
    """A path, and httpx's arguments for a request."""
    path = chance.choice((CHAT, CHAT, "/v1/completions", EMBEDDINGS, MESSAGES, "/v1/moderations", "/v1/rerank"))
    body = _body(chance, path, port)
    if chance.random() < 0.15:
        fields = {name: value if isinstance(value, str) else json.dumps(value) for name, value in body.items()}
        files = {"file": ("a.wav", b"x" * chance.randrange(2000))} if chance.random() < 0.8 else None
        return chance.choice((TRANSCRIPTIONS, path)), {"data": fields, "files": files}
    text = json.dumps(body).encode()
    if chance.random() < 0.1:
        position = chance.randrange(len(text))
        text = text[:position] + chance.choice((b"", b"}", b'"', b"\xff", b",")) + text[position + 1 :]
    headers = {"content-type": chance.choice(("application/json",) * 5 + ("text/plain", "multipart/form-data", ""))}
    if chance.random() < 0.1:
        return path, {"content": iter((text[:10], text[10:])), "headers": headers}  # chunked
    query = {chance.choice(SETTINGS): ""} if chance.random() < 0.05 else {}
    return path, {"content": text, "headers": headers, "params": query}
