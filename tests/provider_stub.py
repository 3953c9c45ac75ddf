"""All providers in one: answers from demo/answers in the protocol of the requested host.

Usage: python3 provider_stub.py ADDRESS PORT FOLDER CERTIFICATE KEY

It is the proxy that LiteLLM reaches them by, so each request has its real host, path and key, and is recorded whole:
GET /recorded. The team's own servers are asked here by plain HTTP, at a path that begins with their name. A message
with `status=429` is answered with that status.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import struct
import sys
import zlib
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

OWN = "proxy"
"""The host of what is asked for without one: of this program itself, and of servers of a team's own."""
FAILS = re.compile(rb"status=(\d{3})")
recorded: list[dict[str, Any]] = []
answers: dict[str, dict[str, Any]] = {}


def lines(events: Iterable[Any]) -> bytes:
    """JSON lines: Cohere's first version, Ollama."""
    return b"".join(json.dumps(each).encode() + b"\n" for each in events)


def data_events(events: Iterable[Any], *, end: bytes = b"") -> bytes:
    """Server-sent events without names: OpenAI and Google."""
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events) + end


def named_events(events: Iterable[Any]) -> bytes:
    """Server-sent events by their type: Anthropic, Cohere."""
    return b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events)


def messages(events: Iterable[Any]) -> bytes:
    """AWS' event stream (application/vnd.amazon.eventstream): lengths, headers, payload, two checksums."""
    whole = b""
    for each in events:
        ((kind, payload),) = each.items()
        head = b""
        named = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
        for name, value in named.items():
            head += bytes([len(name)]) + name.encode() + b"\7" + struct.pack(">H", len(value)) + value.encode()
        body = json.dumps(payload).encode()
        message = struct.pack(">II", 16 + len(head) + len(body), len(head))
        message += struct.pack(">I", zlib.crc32(message)) + head + body
        whole += message + struct.pack(">I", zlib.crc32(message))
    return whole


def half(form: str, stream: bytes) -> bytes:
    """A stream without its end: everything before the event that says that it is complete."""
    if form == AMAZON:
        first = 0
        for _ in range(2):
            first += struct.unpack(">I", stream[first : first + 4])[0]
        return stream[:first]
    mark = b"\n" if form in LINES else b"\n\n"
    kept = {("text/event-stream", True): 4}.get((form, stream.startswith(b"event:")), 2)
    parts = stream.split(mark)
    return mark.join([*parts[: 1 if len(parts) < 4 else kept], b""])


EVENTS, JSON = "text/event-stream", "application/json"
AMAZON, LINES = "application/vnd.amazon.eventstream", ("application/stream+json", "application/x-ndjson")
Answered = tuple[str, bytes]


def chat(  # noqa: PLR0913 -- all by name that are not always there
    dialect: str, kind: str, write: Any, *, streams: bool, form: str = EVENTS, version: str = ""
) -> Answered:
    """A completion of a dialect, whole or as a stream; a plain one where it has none of the kind."""
    found = answers[dialect][version] if version else answers[dialect]
    kind = kind if kind in found else "plain"
    if not streams:
        return JSON, json.dumps(found[kind]).encode()
    return form, write(found["stream" if kind == "plain" else f"{kind}_stream"])


def openai(path: str, body: dict[str, Any], dialect: str = "openai") -> Answered:
    if "/embeddings" in path:
        found = json.loads(json.dumps(answers["openai"]["embedding"]))
        for each in found["data"]:
            if body.get("encoding_format") == "base64":  # as OpenAI's SDKs ask by themselves
                vector = each["embedding"]
                each["embedding"] = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        return JSON, json.dumps(found).encode()
    if path.endswith("/responses"):
        return chat("openai", kind_of(body), named_events, streams=bool(body.get("stream")), version="responses")
    usage = bool((body.get("stream_options") or {}).get("include_usage"))

    def write(events: list[Any]) -> bytes:
        counts = not events[-1]["choices"]
        return data_events(events[:-1] if counts and not usage else events, end=b"data: [DONE]\n\n")

    return chat(dialect, kind_of(body), write, streams=bool(body.get("stream")))


def anthropic(_: str, body: dict[str, Any]) -> Answered:
    return chat("anthropic", kind_of(body), named_events, streams=bool(body.get("stream")))


def google(path: str, body: dict[str, Any]) -> Answered:
    for end, name in {
        "/token": "token",
        ":batchEmbedContents": "embedding",
        ":embedContent": "embedding_of_one",
    }.items():
        if urlsplit(path).path.endswith(end):
            return JSON, json.dumps(answers["gemini"][name]).encode()
    if ":predict" in path:
        return JSON, json.dumps(answers["gemini"]["prediction"]).encode()
    return chat("gemini", kind_of(body), data_events, streams=":streamGenerateContent" in path)


def bedrock(path: str, body: dict[str, Any]) -> Answered:
    if path.endswith("/invoke"):
        return JSON, json.dumps(answers["bedrock"]["cohere" if "cohere." in path else "titan"]).encode()
    return chat("bedrock", kind_of(body), messages, streams=path.endswith("/converse-stream"), form=AMAZON)


def cohere(path: str, body: dict[str, Any]) -> Answered:
    if "/embed" in path:
        name = "embedding_by_type" if body.get("embedding_types") or "/v2/" in path else "embedding"
        return JSON, json.dumps(answers["cohere"][name]).encode()
    if "/v2/" in path:
        return chat("cohere", kind_of(body), named_events, streams=bool(body.get("stream")), version="v2")
    return chat("cohere", kind_of(body), lines, streams=bool(body.get("stream")), form="application/stream+json")


def ollama(path: str, body: dict[str, Any]) -> Answered:
    for end, name in {"/api/embed": "embedding", "/api/embeddings": "embedding", "/api/show": "show"}.items():
        if path.endswith(end):
            return JSON, json.dumps(answers["ollama"][name]).encode()
    if body.get("format") == "json":
        whole = json.loads(json.dumps(answers["ollama"]["plain"]))
        whole["message"]["content"] = answers["ollama"]["function_as_text"]
        return JSON, json.dumps(whole).encode()
    return chat("ollama", kind_of(body), lines, streams=body.get("stream", True), form="application/x-ndjson")


def kind_of(body: dict[str, Any]) -> str:
    asked = json.dumps(body)
    if body.get("tools") or body.get("toolConfig"):
        return "tools"
    return next((kind for word, kind in BY_WORD.items() if word in asked), "plain")


BY_WORD = {"refuse": "refusal", "think it over": "reasoning", "fill the context": "full", "take a break": "paused"}
"""Kinds of answers, by the text of the message that requests them."""


DIALECTS: dict[str, tuple[str, Callable[[str, dict[str, Any]], Answered]]] = {
    r"[\w.-]+\.openai\.azure\.com/": ("azure", openai),
    r"api\.mistral\.ai/": ("mistral", partial(openai, dialect="mistral")),
    rf"{OWN}/hosted_vllm/": ("vllm", partial(openai, dialect="vllm")),
    r"api\.cohere\.ai/compatibility/": ("openai", openai),
    r"api\.anthropic\.com/": ("anthropic", anthropic),
    r"bedrock-runtime\.[\w-]+\.amazonaws\.com/": ("bedrock", bedrock),
    r"[\w.-]+\.googleapis\.com/": ("gemini", google),
    r"api\.cohere\.(ai|com)/": ("cohere", cohere),
    rf"{OWN}/ollama_chat/": ("ollama", ollama),
    r"": ("openai", openai),
}
"""The protocols by host and path; the last one is for all others."""


class Provider(BaseHTTPRequestHandler):
    """One connection; after a CONNECT it belongs to that host."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    context: ssl.SSLContext
    host = OWN

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.host = self.path.rpartition(":")[0]
        self.connection = self.context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
        self.close_connection = False

    def do_GET(self) -> None:
        if self.path == "/recorded":
            told = json.dumps(recorded).encode()
            recorded.clear()
            self.answer(200, JSON, told)
        else:
            self.answer(404, JSON, b"{}")

    def do_POST(self) -> None:
        length = self.headers["content-length"]
        given = self.rfile.read(int(length)) if length else self.chunks()
        place = urlsplit(self.path)  # a proxy is told whole addresses by plain HTTP
        host = place.hostname or self.host
        path = place._replace(scheme="", netloc="").geturl()
        recorded.append({"host": host, "path": path, "headers": dict(self.headers.items()), "body": given.decode()})
        dialect, of = next(it for pattern, it in DIALECTS.items() if re.match(pattern, host + path))
        if fails := FAILS.search(given):
            status = int(fails[1])
            self.answer(status, JSON, json.dumps(answers[dialect]["errors"][status]).encode())
        else:
            form, answer = of(path, json.loads(given) if given.startswith(b"{") else {})
            if b"a page" in given:
                form, answer = "text/html", b"<!doctype html><html><body>Sign in</body></html>"
            elif b"half of it" in given:
                answer = half(form, answer)
            self.answer(200, form, answer)

    def chunks(self) -> bytes:
        """A body of unknown length."""
        whole = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def answer(self, status: int, form: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", form)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main(address: str, port: str, folder: str, certificate: str, key: str) -> None:
    """Serve."""
    for file in Path(folder).glob("*.yaml"):
        answers[file.stem] = yaml.safe_load(file.read_text(encoding="utf-8"))
    for dialect in ("azure", "mistral", "vllm"):
        errors = {**answers["openai"]["errors"], **answers[dialect]["errors"]}
        answers[dialect] = {**answers["openai"], **answers[dialect], "errors": errors}
    Provider.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    Provider.context.load_cert_chain(certificate, key)
    ThreadingHTTPServer((address, int(port)), Provider).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
