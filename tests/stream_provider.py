"""A provider that answers with the streams of one table, byte for byte; runs in a container, with Python alone.

Usage: python3 stream_provider.py PORT

The request's last message names the row. GET /left says which rows' callers went before the stream's end, GET
/refused which models were asked for with a key that begins with `refused`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

PAUSE = b"pause"
"""Instead of a piece: what came before must be read separately."""
BREAK = b"break"
"""Instead of a piece: the connection is cut here."""
ENDLESS = b"endless"
MUTE = "mute"
"""The message to which no answer begins."""
"""Instead of a piece: words without end."""
BREAK_SECONDS = 1
HEAD: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1700000000,
    "model": "gpt-4o-2024-08-06",
    "system_fingerprint": "fp_1",
}
USAGE: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
DONE = b"data: [DONE]\n\n"


def event(*choices: dict[str, Any], **more: Any) -> bytes:
    """A chunk of some choices."""
    return b"data: " + json.dumps({**HEAD, "choices": list(choices), **more}, ensure_ascii=False).encode() + b"\n\n"


def choice(delta: dict[str, Any], reason: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """What a chunk says of one choice."""
    return {"index": index, "delta": delta, "finish_reason": reason, **more}


def text(content: str, **more: Any) -> bytes:
    """A chunk of text."""
    return event(choice({"content": content}, **more))


def call(index: int, **more: Any) -> bytes:
    """A chunk of a tool's call."""
    return event(choice({"tool_calls": [{"index": index, **more}]}))


START = event(choice({"role": "assistant", "content": ""}))
STOP = event(choice({}, "stop"))
WORDS = [text("The"), text(" quick"), text(" brown fox")]
WHOLE = [START, *WORDS, STOP, DONE]
LOGPROBS = {"content": [{"token": "The", "logprob": -0.25, "bytes": [84, 104, 101], "top_logprobs": []}]}


def split(data: bytes, at: int) -> list[bytes]:
    """The data in two reads."""
    return [data[:at], PAUSE, data[at:]]


STREAMS: dict[str, list[bytes]] = {
    "text": WHOLE,
    "several choices": [
        event(choice({"role": "assistant", "content": "one"})),
        event(choice({"role": "assistant", "content": "two"}, index=1)),
        event(choice({"content": " more"}, index=1)),
        event(choice({"content": " again"})),
        event(choice({}, "stop")),
        event(choice({}, "length", index=1)),
        DONE,
    ],
    "tools in parallel": [
        event(choice({"role": "assistant", "content": None})),
        call(0, id="call_a", type="function", function={"name": "weather", "arguments": ""}),
        call(0, function={"arguments": '{"city":'}),
        call(0, function={"arguments": ' "Köln"}'}),
        call(1, id="call_b", type="function", function={"name": "time", "arguments": ""}),
        call(1, function={"arguments": '{"zone": "CET"}'}),
        event(choice({}, "tool_calls")),
        DONE,
    ],
    "refusal": [
        event(choice({"role": "assistant", "content": None, "refusal": ""})),
        event(choice({"refusal": "I cannot"})),
        event(choice({"refusal": " do that."})),
        STOP,
        DONE,
    ],
    "logprobs": [START, text("The", logprobs=LOGPROBS), STOP, DONE],
    "usage": [*WHOLE[:-1], event(usage=USAGE), DONE],
    "usage with the last chunk": [START, *WORDS, event(choice({}, "stop"), usage=USAGE), DONE],
    "usage with each chunk": [
        *(
            event(choice({"content": word}), usage={**USAGE, "completion_tokens": n, "total_tokens": 7 + n})
            for n, word in enumerate(("The", " quick", " fox"), 1)
        ),
        event(choice({}, "stop"), usage=USAGE),
        event(usage=USAGE),
        DONE,
    ],
    "empty deltas": [START, text(""), event(choice({})), *WORDS, event(choice({})), STOP, DONE],
    "comments and blank lines": [b": hello\n\n\n", START, b": ping\n\n", *WORDS, b"\n\n", STOP, b":\n\n", DONE],
    "names, ids and retries": [b"retry: 5\nevent: chunk\nid: 1\n" + START, *WORDS, b"event: end\n" + STOP, DONE],
    "several data lines": [
        START,
        WORDS[0].replace(b', "choices"', b',\ndata: "choices"'),
        STOP,
        DONE,
    ],
    "no space after data": [each.replace(b"data: ", b"data:") for each in WHOLE],
    "CRLF": [each.replace(b"\n", b"\r\n") for each in WHOLE],
    "CRLF split": [part for each in WHOLE for part in split(each.replace(b"\n", b"\r\n"), len(each) - 1)],
    "an event split over reads": [START, *split(WORDS[0], 40), *split(WORDS[1], 90), WORDS[2], STOP, DONE],
    "a character split over reads": [START, *split(text("Zürich"), text("Zürich").index(b"\xc3") + 1), STOP, DONE],
    "all in one read": [b"".join(WHOLE)],
    "the role with each chunk": [
        *(event(choice({"role": "assistant", "content": word})) for word in ("The", " fox")),
        STOP,
        DONE,
    ],
    "the end with the last text": [START, text("The"), event(choice({"content": " fox"}, "stop")), DONE],
    "a filter's chunk first": [
        b"data: " + json.dumps({**HEAD, "choices": [], "prompt_filter_results": []}).encode() + b"\n\n",
        *WHOLE,
    ],
    "an end without [DONE]": WHOLE[:-1],
    "[DONE] without a blank line": [*WHOLE[:-1], b"data: [DONE]"],
    "[DONE] without a finish_reason": [START, *WORDS, DONE],
    "a bare data line": [START, b"data:\n\n", *WORDS, STOP, DONE],
    "a reasoning field that LiteLLM does not know": [
        START,
        event(choice({"thoughts": "hm"})),
        event(choice({"thoughts": ", so"})),
        *WORDS,
        STOP,
        DONE,
    ],
    "reasoning": [
        START,
        event(choice({"reasoning_content": "hm"})),
        event(choice({"reasoning_content": ", so"})),
        *WORDS,
        STOP,
        DONE,
    ],
    "100 equal chunks": [START, *[text("|---")] * 120, STOP, DONE],
    "99 equal chunks": [START, *[text("|---")] * 99, STOP, DONE],
    "an error first": [b'data: {"error": {"message": "overloaded", "type": "server_error", "code": 503}}\n\n'],
    "an error in the middle": [
        START,
        *WORDS,
        PAUSE,
        b'data: {"error": {"message": "overloaded", "type": "server_error", "code": null}}\n\n',
    ],
    "no JSON": [START, *WORDS, b"data: {not JSON\n\n"],
    "an end without an end": [START, *WORDS],
    "a page of HTML": [b"<!doctype html><html><body>Sign in</body></html>\n"],
    "an empty answer": [],
    "a connection that breaks": [START, *WORDS, PAUSE, BREAK],
    "a connection that breaks in an event": [START, WORDS[0], WORDS[1][:50], PAUSE, BREAK],
    "a connection that breaks after the end": [*WHOLE[:-1], PAUSE, BREAK],
    "endless": [START, ENDLESS],
    "silent": [START, text("The"), b"silence"],
}
left: list[str] = []
refused: list[str] = []
REFUSED = b"authorization: bearer refused"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
            if head.startswith(b"GET /left"):
                _send(writer, b"200 OK", left)
                continue
            if head.startswith(b"GET /refused"):
                _send(writer, b"200 OK", refused)
                continue
            request = json.loads(body)
            name = request["messages"][-1]["content"]
            name = name if isinstance(name, str) else name[-1]["text"]
            if REFUSED in head.lower():
                refused.append(request["model"])
                _send(writer, b"401 Unauthorized", {"error": {"message": "no such key", "code": "invalid_api_key"}})
                continue
            if name == MUTE:
                await reader.read(1)
                left.append(name)
                return
            if not await stream(name, bool(request.get("stream_options")), reader, writer):
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def _send(writer: asyncio.StreamWriter, status: bytes, content: object) -> None:
    said = json.dumps(content).encode()
    writer.write(
        b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(said), said)
    )


async def stream(name: str, usage: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:  # noqa: FBT001
    """Send a row of the table, and its usage if that was asked for; whether the connection goes on."""
    kind = b"text/html" if "HTML" in name else b"text/event-stream"
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n" % kind)
    pieces = list(STREAMS[name])
    if usage and pieces and pieces[-1] == DONE and not any(b'"usage"' in piece for piece in pieces):
        pieces.insert(-1, event(usage=USAGE))
    for piece in pieces:
        if piece == PAUSE:
            await writer.drain()
            await asyncio.sleep(0.03)
        elif piece == BREAK:
            await writer.drain()
            # Not at once: LiteLLM 1.106 forgets what it has not read yet when it hears of the end.
            await asyncio.sleep(BREAK_SECONDS)
            return False
        elif piece in {ENDLESS, b"silence"}:
            gone = asyncio.create_task(reader.read(1))
            number = 0
            while not gone.done():
                if piece == ENDLESS:
                    writer.write(_chunked(text(f" word{number}")))
                    number += 1
                await asyncio.sleep(0.02)
            left.append(name)
            return False
        else:
            writer.write(_chunked(piece))
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def _chunked(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


async def main(port: int) -> None:
    """Serve."""
    server = await asyncio.start_server(answer, "0.0.0.0", port)  # noqa: S104 -- of a container
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
