"""The demo provider: answers as OpenAI and Anthropic do by their documents, the same to the same question.

It lets a stack without any provider key answer, and it is what tests, drills and benchmarks measure against.
A message, an embedding's input or the API key may tell it to misbehave, so that faults need no state and no second
address:

    [[demo status=429]]                 answers with that HTTP status
    [[demo delay=2.5]]                  waits that many seconds before the first byte
    [[demo cut=3]]                      breaks the connection after that many streamed chunks
    [[demo status=400 code=context_length_exceeded message="too long"]]
    [[demo status=500 model=gpt-4o]]    only when that upstream model is asked
    [[demo answer=tools]]               calls a function; `refusal`, as OpenAI has it

Runs inside the LiteLLM image, which has FastAPI, PyYAML and uvicorn: `python3 provider.py PORT`. The forms of its
answers are those of the folder `answers` beside it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import random
import re
import shlex
import struct
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
import yaml
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072}
OK, BAD_REQUEST, NOT_FOUND, INTERNAL_SERVER_ERROR = 200, 400, 404, 500
PLAIN = "plain"
STREAM = {PLAIN: "stream", "tools": "tools_stream", "refusal": "refusal_stream"}
"""The recorded streams, by the recorded answers of which they are pieces."""
ANSWERS = {
    name: yaml.safe_load((Path(__file__).parent / "answers" / f"{name}.yaml").read_text(encoding="utf-8"))
    for name in ("openai", "anthropic")
}
DIRECTIVE = re.compile(r"\[\[demo ([^\]]*)\]\]")
WORD = re.compile(r"\S+")
ECHOED = 10_000
"""Characters of a message that an answer repeats: all of 20 MB, in pieces, would take more memory than there is."""

app = FastAPI(title="demo provider", docs_url=None, redoc_url=None, openapi_url=None)


@dataclass(frozen=True)
class Fault:
    """What a message tells the provider to do wrong."""

    status: int = 200
    delay: float = 0.0
    cut: int | None = None
    code: str | None = None
    message: str | None = None
    answer: str = PLAIN

    @classmethod
    def told_by(cls, text: str, model: str) -> Fault:
        """Read the directive in `text`, if there is one for `model`."""
        for directive in DIRECTIVE.findall(text):
            words = dict(word.split("=", 1) for word in shlex.split(directive))
            if words.pop("model", model) == model:
                return cls(
                    status=int(words.get("status", cls.status)),
                    delay=float(words.get("delay", cls.delay)),
                    cut=int(words["cut"]) if "cut" in words else None,
                    code=words.get("code"),
                    message=words.get("message", cls.message),
                    answer=words.get("answer", cls.answer),
                )
        return cls()

    def unknown_answer(self) -> Fault:
        """What tells that this one's answer is none that the provider has."""
        return Fault(status=BAD_REQUEST, message=f"The demo provider has no answer {self.answer}.")


class BrokenOffError(Exception):
    """Raised in mid-stream so that the server breaks the connection, as a dying provider does."""


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """A message's text, whether it came plain or in parts."""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content or ())


def answer_to(messages: list[dict[str, Any]]) -> str:
    asked = text_of(messages[-1].get("content")) if messages else ""
    said = DIRECTIVE.sub("", asked).strip()
    said = said if len(said) <= ECHOED else f"{said[:ECHOED]}…"
    return f"This is the demo provider; no model was asked. You said: {said}"


def tokens_in(text: str) -> int:
    return sum(1 for _ in WORD.finditer(text))  # one by one: a list of a large prompt's words takes 20 times its size


def words_of(answer: str) -> list[str]:
    """An answer in the pieces of a stream."""
    return re.findall(r"\S+\s*", answer)


def named(events: list[dict[str, Any]]) -> list[str]:
    """Server-sent events by their type, as Anthropic and OpenAI's Responses have them."""
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]


def request_id(prefix: str, body: dict[str, Any]) -> str:
    return prefix + hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24]


async def fault_for(request: Request, body: dict[str, Any], text: str) -> Fault:
    """The fault that the request asks for, after its delay."""
    keys = (request.headers.get(name, "") for name in ("authorization", "x-api-key"))
    fault = Fault.told_by(" ".join((text, *keys)), body.get("model", ""))
    await asyncio.sleep(fault.delay)
    return fault


def all_text(messages: list[dict[str, Any]]) -> str:
    return " ".join(text_of(message.get("content")) for message in messages)


async def cut_short(chunks: list[str], fault: Fault) -> AsyncIterator[str]:
    """The chunks of a stream, broken off where the fault says; a ping is none."""
    sent = 0
    for chunk in chunks:
        if sent == fault.cut:
            raise BrokenOffError
        yield chunk
        sent += not chunk.startswith("event: ping")
        await asyncio.sleep(0)


OPENAI_ERRORS = {
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: none."),
    403: ("request_forbidden", "unsupported_country_region_territory", "Country, region, or territory not supported"),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
    408: ("timeout", None, "Request timed out."),
    409: ("conflict", None, "The resource was updated by another request."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests"),
}
"""Type, code and message as OpenAI sends them with a status: LiteLLM looks at all three."""


def openai_error(fault: Fault) -> Response:
    known = "invalid_request_error" if fault.status < INTERNAL_SERVER_ERROR else "server_error"
    kind, code, message = OPENAI_ERRORS.get(fault.status, (known, None, "The demo provider was told to fail."))
    error = {"message": fault.message or message, "type": kind, "param": None, "code": fault.code or code}
    return JSONResponse({"error": error}, status_code=fault.status)


@app.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    body = await request.json()
    messages = body.get("messages", [])
    asked = all_text(messages)
    fault = await fault_for(request, body, asked)
    if fault.status != OK:
        return openai_error(fault)
    recorded = ANSWERS["openai"]
    if fault.answer not in recorded:
        return openai_error(fault.unknown_answer())
    answer = answer_to(messages)
    usage = {"prompt_tokens": tokens_in(asked), "completion_tokens": tokens_in(answer)}
    usage["total_tokens"] = sum(usage.values())
    head = {"id": request_id("chatcmpl-", body), "created": int(time.time()), "model": body.get("model", "")}
    if not body.get("stream"):
        told = {**recorded[fault.answer], **head}
        if fault.answer == PLAIN:
            (choice,) = told["choices"]
            choice = {**choice, "message": {**choice["message"], "content": answer}}
            told |= {"choices": [choice], "usage": {**told["usage"], **usage}}
        return JSONResponse(told)

    first, *others, counted = recorded[STREAM[fault.answer]]
    if fault.answer == PLAIN:
        (choice,), end = others[0]["choices"], others[-1]
        words = [{**choice, "delta": {"content": word}} for word in words_of(answer)]
        others = [*({**others[0], "choices": [each]} for each in words), end]
        counted = {**counted, "usage": {**counted["usage"], **usage}}
    counts = [counted] if (body.get("stream_options") or {}).get("include_usage") else []
    chunks = [f"data: {json.dumps({**chunk, **head})}\n\n" for chunk in (first, *others, *counts)]
    return StreamingResponse(cut_short([*chunks, "data: [DONE]\n\n"], fault), media_type="text/event-stream")


def changed(recorded: Any, by: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- JSON
    """What is recorded, with other texts in place of some of its own."""
    if isinstance(recorded, dict):
        return {name: changed(value, by) for name, value in recorded.items()}
    if isinstance(recorded, list):
        return [changed(each, by) for each in recorded]
    return by.get(recorded, recorded) if isinstance(recorded, str) else recorded


@app.post("/v1/responses")
async def responses(request: Request) -> Response:
    body = await request.json()
    given = body.get("input", "")
    messages = [{"content": given}] if isinstance(given, str) else [each for each in given if "content" in each]
    asked = all_text(messages)
    fault = await fault_for(request, body, asked)
    if fault.status != OK:
        return openai_error(fault)
    recorded = ANSWERS["openai"]["responses"]
    if fault.answer not in recorded:
        return openai_error(fault.unknown_answer())
    plain = recorded[PLAIN]
    (part,) = plain["output"][0]["content"]
    answer = answer_to(messages)
    usage = {"input_tokens": tokens_in(asked), "output_tokens": tokens_in(answer)}
    usage = {**plain["usage"], **usage, "total_tokens": sum(usage.values())}
    by = {plain["id"]: request_id("resp_", body), plain["model"]: body.get("model", ""), part["text"]: answer}
    if not body.get("stream"):
        return JSONResponse({**changed(recorded[fault.answer], by), "usage": usage})

    events = recorded[STREAM[fault.answer]]
    if fault.answer == PLAIN:
        first, *others = (event for event in events if event["type"].endswith(".delta"))
        words = [{**first, "delta": word} for word in words_of(answer)]
        place = events.index(first)
        events = [*events[:place], *words, *events[place + 1 + len(others) :]]
    *events, ended = changed(events, by)
    ended["response"]["usage"] = usage
    told = [{**event, "sequence_number": number} for number, event in enumerate([*events, ended])]
    return StreamingResponse(cut_short(named(told), fault), media_type="text/event-stream")


@app.post("/v1/embeddings")
async def embeddings(request: Request) -> Response:
    body = await request.json()
    texts = inputs_of(body)
    fault = await fault_for(request, body, " ".join(texts))
    if fault.status != OK:
        return openai_error(fault)
    dimensions = body.get("dimensions") or DIMENSIONS.get(body.get("model", ""), 1536)
    vectors = [embedding_of(text, dimensions) for text in texts]
    packs = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": packed(vector) if packs else vector}
        for index, vector in enumerate(vectors)
    ]
    prompt_tokens = sum(tokens_in(text) for text in texts)
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return JSONResponse({"object": "list", "model": body.get("model", ""), "data": data, "usage": usage})


def inputs_of(body: dict[str, Any]) -> list[str]:
    """The texts of a request, which may be one, or given as tokens."""
    given = body.get("input", [])
    one = isinstance(given, str) or (bool(given) and all(isinstance(item, int) for item in given))
    return [str(given)] if one else [str(item) for item in given]


def packed(vector: list[float]) -> str:
    """A vector as OpenAI sends it when asked for base64, which its SDKs do by themselves: little-endian float32."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def embedding_of(text: str, dimensions: int) -> list[float]:
    """A vector of length 1 that depends on the text alone."""
    source = random.Random(text)  # noqa: S311 -- not for secrets
    vector = [source.gauss(0, 1) for _ in range(dimensions)]
    length = math.hypot(*vector)  # the same with each Python, unlike sum of 3.12
    return [value / length for value in vector]


@app.post("/v1/images/generations")
async def images(request: Request) -> Response:
    body = await request.json()
    fault = await fault_for(request, body, body.get("prompt", ""))
    if fault.status != OK:
        return openai_error(fault)
    picture = base64.b64encode(picture_of(body.get("prompt", ""))).decode()
    as_url = body.get("response_format") == "url"
    image = {"url": f"data:image/png;base64,{picture}"} if as_url else {"b64_json": picture}
    return JSONResponse({"created": int(time.time()), "data": [image] * (body.get("n") or 1)})


def picture_of(prompt: str) -> bytes:
    """A PNG of one pixel, whose color depends on the prompt alone."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixel = zlib.compress(b"\0" + hashlib.sha256(prompt.encode()).digest()[:3])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


@app.post("/v1/moderations")
async def moderations(request: Request) -> Response:
    """Flags nothing: no model was asked."""
    body = await request.json()
    texts = inputs_of(body)
    fault = await fault_for(request, body, " ".join(texts))
    if fault.status != OK:
        return openai_error(fault)
    result = {"flagged": False, "categories": dict.fromkeys(CATEGORIES, False)}
    result |= {"category_scores": dict.fromkeys(CATEGORIES, 0.0)}
    head = {"id": request_id("modr-", body), "model": body.get("model", "")}
    return JSONResponse({**head, "results": [result] * len(texts)})


CATEGORIES = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")


@app.post("/v1/audio/transcriptions")
async def transcriptions(request: Request) -> Response:
    form = await request.form()
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    fault = await fault_for(request, fields, fields.get("prompt", ""))
    if fault.status != OK:
        return openai_error(fault)
    file = form.get("file")
    size = 0 if file is None or isinstance(file, str) else len(await file.read())
    return JSONResponse({"text": f"This is the demo provider; no model was asked. You sent {size} bytes."})


@app.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Response:
    body = await request.json()
    return JSONResponse({"input_tokens": tokens_in(all_text(body.get("messages", [])))})


@app.post("/v1/messages")
async def anthropic_messages(request: Request) -> Response:
    body = await request.json()
    messages = body.get("messages", [])
    asked = all_text(messages)
    fault = await fault_for(request, body, asked)
    recorded = ANSWERS["anthropic"]
    if fault.answer not in recorded:
        fault = fault.unknown_answer()
    if fault.status != OK:
        kind = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}
        error = {
            "type": kind.get(fault.status, "api_error"),
            "message": fault.message or "The demo provider was told to fail.",
        }
        return JSONResponse({"type": "error", "error": error}, status_code=fault.status)
    answer = answer_to(messages)
    usage = {"input_tokens": tokens_in(asked), "output_tokens": tokens_in(answer)}
    head = {"id": request_id("msg_", body), "model": body.get("model", "")}
    if not body.get("stream"):
        told = {**recorded[fault.answer], **head}
        if fault.answer == PLAIN:
            told |= {"content": [{"type": "text", "text": answer}], "usage": {**told["usage"], **usage}}
        return JSONResponse(told)

    events = recorded[STREAM[fault.answer]]
    if fault.answer == PLAIN:
        by_type = {event["type"]: event for event in events}
        piece = by_type["content_block_delta"]
        words = [{**piece, "delta": {**piece["delta"], "text": word}} for word in words_of(answer)]
        started, ended = by_type["message_start"], by_type["message_delta"]
        by_type["message_start"] = {
            **started,
            "message": {**started["message"], "usage": {**started["message"]["usage"], **usage, "output_tokens": 1}},
        }
        by_type["message_delta"] = {**ended, "usage": {**ended["usage"], "output_tokens": usage["output_tokens"]}}
        order = [kind for kind in by_type if kind != piece["type"]]
        place = order.index("content_block_stop")
        events = [*(by_type[kind] for kind in order[:place]), *words, *(by_type[kind] for kind in order[place:])]
    events = [{**event, "message": {**event["message"], **head}} if "message" in event else event for event in events]
    return StreamingResponse(cut_short(named(events), fault), media_type="text/event-stream")


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.api_route("/{path:path}", methods=["GET", "POST"])
async def others(path: str) -> Response:
    """What it cannot do it says, in OpenAI's form."""
    message = f"The demo provider does not serve /{path}: set a provider key for a real one."
    return openai_error(Fault(status=NOT_FOUND, code="unknown_url", message=message))


if __name__ == "__main__":
    uvicorn.run(app, host="0.0.0.0", port=int(sys.argv[1]), log_level="warning")  # noqa: S104 -- its network is private
