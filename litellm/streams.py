"""A fast lane for streams in LiteLLM: what a provider with OpenAI's protocol sends is passed on as it arrives.

LiteLLM builds several objects from each chunk, and reports each to its callbacks. Here LiteLLM's own code does that
once, when the stream ends: it gets the answer in a few chunks. What takes the lane, what does not, and
docs/streams.md says what callers see of it.
"""

from __future__ import annotations

import datetime as dt
import importlib
import importlib.metadata
import io
import json
import logging
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson
from answers import current
from pydantic import BaseModel, PrivateAttr

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from typing import Self

PROVEN = ("1.55.0", "1.106.12", "1.108.14")
"""The releases of LiteLLM with which tests/integration/test_streams.py compared the lane. Not all are run today."""
MODULES = (
    "llms.openai.openai",
    "llms.azure.azure",
    "llms.custom_httpx.llm_http_handler",
)
"""Where LiteLLM makes a stream of an answer in OpenAI's protocol, each by the name `CustomStreamWrapper`."""
ROUTE = "/chat/completions"
HOOKS = (
    "async_post_call_streaming_hook",
    "async_log_stream_event",
    "async_logging_hook",
    "log_stream_event",
    "logging_hook",
)
"""Methods of a callback that see each chunk."""
OWN_HOOKS = "litellm.proxy.hooks."
"""LiteLLM's own callbacks, which leave chat completions' chunks alone."""

logger = logging.getLogger("LiteLLM Proxy")


class BrokenStreamError(Exception):
    """The provider's stream ended before its answer did, or is not a stream."""


class EventReader:
    """Reads the data of server-sent events (WHATWG HTML, 9.2.6) from bytes that come in any pieces."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._after_return = False

    def feed(self, piece: bytes) -> Iterator[str]:
        """Yield the data of each event that `piece` completes."""
        if self._after_return and piece.startswith(b"\n"):
            piece = piece[1:]
        if not piece:
            return
        self._after_return = piece.endswith(b"\r")
        lines = (self._rest + piece).splitlines(keepends=True)
        self._rest = b"" if lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        for line in lines:
            yield from self._line(line.rstrip(b"\r\n"))

    def close(self) -> Iterator[str]:
        """Yield the data of a last event that no blank line follows."""
        yield from self._line(self._rest)
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[str]:
        if line:
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
        elif self._data:
            data = b"\n".join(self._data).decode()
            self._data.clear()
            if data.strip():
                yield data


class Event(BaseModel):
    """Chunks for the caller that arrived together, as LiteLLM's proxy accepts them: it may change their model."""

    model: str | None = None
    _bodies: list[dict[str, Any]] = PrivateAttr(default_factory=list)
    _hidden_params: dict[str, Any] = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, bodies: list[dict[str, Any]], hidden_params: dict[str, Any]) -> Event:
        """Chunks, with what LiteLLM knows of the stream."""
        event = cls.model_construct(model=bodies[0].get("model"))
        event._bodies = bodies  # noqa: SLF001
        event._hidden_params = hidden_params  # noqa: SLF001
        return event

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Itself: nobody else has it."""
        del deep
        self.model = (update or {}).get("model", self.model)
        return self

    def model_dump_json(self, **_: Any) -> str:
        """The text that LiteLLM's proxy turns into an event for the caller: here it may be several events."""
        if self.model != self._bodies[0].get("model"):
            for body in self._bodies:
                body["model"] = self.model
        return written(self._bodies)

    def __str__(self) -> str:
        return "a chunk of a stream"  # LiteLLM 1.55.0 makes a text of each chunk for a debug line that is off


def written(bodies: list[dict[str, Any]]) -> str:
    """The data of events, without the first one's name."""
    return "\n\ndata: ".join(map(_text, bodies))


def _text(body: dict[str, Any]) -> str:
    """ASCII: a provider may cut a surrogate pair in two, and some clients treat U+2028 as a line end."""
    try:
        text = orjson.dumps(body)  # a tenth of the time
        if text.isascii():
            return text.decode()
    except orjson.JSONEncodeError:
        pass
    return json.dumps(body, separators=(",", ":"))


class Answer:
    """What a stream has brought so far: its text once, however many chunks it came in.

    As LiteLLM's own way counts it: the first choice of each chunk, whichever it is.
    """

    def __init__(self) -> None:
        self.head: dict[str, Any] = {}
        self.ends: dict[int, str | None] = {}
        """The finish_reason of each choice that began."""
        self.usage: dict[str, Any] | None = None
        """The last one."""
        self.usage_beside: dict[str, Any] | None = None
        """The last one in a chunk with choices: LiteLLM 1.55.0 counts no other."""
        self._texts: dict[str, io.StringIO] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._other: dict[str, Any] = {}

    def add(self, event: dict[str, Any]) -> None:
        """Add a chunk."""
        if not self.head:
            self.head = {key: value for key, value in event.items() if key not in {"choices", "usage"}}
        choices = event.get("choices") or ()
        if event.get("usage"):
            self.usage = event["usage"]
            self.usage_beside = self.usage if choices else self.usage_beside
        for choice in choices:
            index = choice.get("index", 0)
            self.ends[index] = choice.get("finish_reason") or self.ends.get(index)
        if choices:
            self._add(choices[0].get("delta") or {})

    def _add(self, delta: dict[str, Any]) -> None:
        for name, value in delta.items():
            if isinstance(value, str):
                if name != "role" or name not in self._texts:
                    self._texts.setdefault(name, io.StringIO()).write(value)
            elif name == "tool_calls":
                for place, call in enumerate(value or ()):
                    _merge(self._calls.setdefault(call.get("index", place), {}), call)
            elif name == "function_call":
                _merge(self._other.setdefault(name, {}), value or {})
            elif isinstance(value, list):
                self._other.setdefault(name, []).extend(value)
            elif value is not None:
                self._other[name] = value

    def is_finished(self) -> bool:
        """Whether each choice that began has said why it ended."""
        return bool(self.ends) and all(self.ends.values())

    def events(self) -> list[dict[str, Any]]:
        """The same answer in few chunks: its text, each call of a tool, the end, the usage."""
        deltas: list[dict[str, Any]] = [
            {
                **{name: text.getvalue() for name, text in self._texts.items()},
                **{name: _plain(it) if name == "function_call" else it for name, it in self._other.items()},
            }
        ]
        for index, call in self._calls.items():
            # In two pieces, as OpenAI does: LiteLLM 1.55.0 adds arguments that come with a name to the call before.
            whole = _plain(call)
            function = whole.get("function") or {}
            deltas += [
                {"tool_calls": [{**whole, "function": {**function, "arguments": ""}}]},
                {"tool_calls": [{"index": index, "function": {"arguments": function.get("arguments") or ""}}]},
            ]
        chunks: list[list[dict[str, Any]]] = [
            [{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas if delta
        ]
        chunks.append(
            [{"index": at, "delta": {}, "finish_reason": reason} for at, reason in self.ends.items() if reason]
        )
        events = [{**self.head, "choices": choices} for choices in chunks if choices]
        if events and self.usage_beside:
            events[-1]["usage"] = self.usage_beside
        if self.usage and self.usage is not self.usage_beside:
            events.append({**self.head, "choices": [], "usage": self.usage})
        return events


def _merge(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add a piece of a call; its arguments alone come in more than one."""
    for name, value in piece.items():
        if isinstance(value, dict):
            _merge(whole.setdefault(name, {}), value)
        elif name == "arguments":
            whole.setdefault(name, io.StringIO()).write(value or "")
        elif value is not None:
            whole[name] = value


def _plain(call: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _plain(value)
        if isinstance(value, dict)
        else value.getvalue()
        if isinstance(value, io.StringIO)
        else value
        for name, value in call.items()
    }


class Chunks(list[Any]):
    """LiteLLM's chunks of a stream, built when somebody reads them, as LiteLLM 1.106 does when a caller leaves."""

    def __init__(self, make: Callable[[], list[Any]]) -> None:
        super().__init__()
        self._make: Callable[[], list[Any]] | None = make

    def settle(self) -> None:
        """Make none: from now on LiteLLM adds them itself."""
        self._make = None

    def _fill(self) -> None:
        if self._make:
            make, self._make = self._make, None
            self.extend(make())

    def __iter__(self) -> Iterator[Any]:
        self._fill()
        return super().__iter__()

    def __len__(self) -> int:
        self._fill()
        return super().__len__()

    def __getitem__(self, key: Any) -> Any:
        self._fill()
        return super().__getitem__(key)


class Source:
    """The events of a provider's answer, in groups as they arrived.

    Raises BrokenStreamError where it ends before its time.
    """

    def __init__(self, response: Any, answer: Answer) -> None:
        self.response = response
        self._answer = answer
        self._events = self._read()

    def __aiter__(self) -> AsyncIterator[list[str]]:
        return self._events

    async def aclose(self) -> None:
        """End the provider's stream."""
        await self._events.aclose()  # type: ignore[attr-defined]
        await self._close()

    async def _read(self) -> AsyncIterator[list[str]]:
        reader = EventReader()
        done = False
        try:
            async for found in self._found(reader):
                events = []
                for data in found:
                    done = done or data.startswith("[DONE]")
                    if not done:  # and read on: a connection that was not read to its end cannot be used again
                        events.append(data)
                if events:
                    yield events
        finally:
            await self._close()
        if done:
            return
        if not self._answer.ends:
            kind = self.response.headers.get("content-type") or "no content type"
            raise BrokenStreamError(f"The provider answered without a stream of events ({kind}).")
        if not self._answer.is_finished():
            raise BrokenStreamError("The provider's stream ended before its answer: no finish_reason and no [DONE].")

    async def _found(self, reader: EventReader) -> AsyncIterator[Iterator[str]]:
        async for piece in self.response.aiter_bytes():
            yield reader.feed(piece)
        yield reader.close()

    async def _close(self) -> None:
        import anyio  # noqa: PLC0415 -- of LiteLLM

        with anyio.CancelScope(shield=True):
            await self.response.aclose()


def _litellm(module: str = "") -> Any:
    """LiteLLM, or a module of it; this project's folder of the same name, which type checkers see, is another."""
    return importlib.import_module(f"litellm.{module}".rstrip("."))


def _value(data: str) -> Any:
    """The value of a JSON text. An integer beyond 64 bits becomes a float, as it does in JavaScript."""
    try:
        return orjson.loads(data)  # a third of the time
    except orjson.JSONDecodeError:
        return json.loads(data)  # it reads half a surrogate pair, NaN and Infinity too


def _parsed(data: str) -> dict[str, Any]:
    try:
        event = _value(data)
    except ValueError as error:
        raise BrokenStreamError(f"An event of the provider's stream is not JSON ({error}).") from error
    if not isinstance(event, dict):
        raise BrokenStreamError("An event of the provider's stream is not a JSON object.")
    return event


class OpenAIDialect:
    """What OpenAI's SDK makes of an event."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def error(self, event: dict[str, Any]) -> Exception:
        """The error that an event says."""
        import openai  # noqa: PLC0415 -- of LiteLLM

        error = event["error"]
        message = error.get("message") if isinstance(error, dict) else error
        return openai.APIError(
            message if message and isinstance(message, str) else "An error occurred during streaming",
            request=self._stream.response.request,
            body=error,
        )

    def chunk(self, event: dict[str, Any]) -> Any:
        """What LiteLLM's own way takes."""
        stream = self._stream
        return stream._client._process_response_data(  # noqa: SLF001 -- as the SDK's stream does
            data=event,
            cast_to=stream._cast_to,  # noqa: SLF001
            response=stream.response,
        )

    def repair(self, delta: dict[str, Any]) -> None:
        """Change what LiteLLM changes."""


class HandlerDialect:
    """What LiteLLM 1.106's own HTTP handler makes of an event: hosted_vllm and others."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    def error(self, event: dict[str, Any]) -> Exception:
        """The error that an event says."""
        try:
            self._handler.chunk_parser(event)
        except Exception as error:  # noqa: BLE001 -- LiteLLM's
            return error
        return BrokenStreamError(str(event["error"]))

    def chunk(self, event: dict[str, Any]) -> Any:
        """What LiteLLM's own way takes."""
        return self._handler.chunk_parser(event)

    def repair(self, delta: dict[str, Any]) -> None:
        """Change what LiteLLM changes."""
        if "reasoning" in delta:
            delta["reasoning_content"] = delta.pop("reasoning")


def _source(stream: Any) -> tuple[Any, OpenAIDialect | HandlerDialect] | None:
    """The response of a stream in OpenAI's protocol, and who reads it; None for any other stream."""
    import openai  # noqa: PLC0415 -- of LiteLLM

    if isinstance(stream, openai.AsyncStream):
        return stream.response, OpenAIDialect(stream)
    # Subclasses translate.
    if type(stream).__name__ == "OpenAIChatCompletionStreamingHandler" and getattr(stream, "http_response", None):
        return stream.http_response, HandlerDialect(stream)
    return None


def _needs_every_chunk(wrapper: Any) -> bool:
    """Whether somebody else than the caller reads the chunks, or LiteLLM has to change each."""
    litellm = _litellm()

    details = wrapper.logging_obj.model_call_details
    parameters = details.get("litellm_params") or {}
    options = details.get("optional_params") or {}
    request = parameters.get("proxy_server_request") or {}
    return bool(
        not urlsplit(request.get("url", "")).path.endswith(ROUTE)  # else the chunks are translated for another API
        or wrapper.is_function_call
        or getattr(wrapper, "merge_reasoning_content_in_choices", False)
        or any(tool.get("type") != "function" for tool in options.get("tools") or ())
        or "audio" in (options.get("modalities") or ())
        or litellm.cache is not None
        or litellm.post_call_rules
        or getattr(litellm, "include_cost_in_streaming_usage", False)
        or _callbacks_need_every_chunk()
    )


def _callbacks_need_every_chunk() -> bool:
    litellm = _litellm()
    guardrail = _litellm("integrations.custom_guardrail").CustomGuardrail
    plain = _litellm("integrations.custom_logger").CustomLogger
    proxy = _litellm("proxy.utils").ProxyLogging

    if hasattr(proxy, "callback_capabilities"):  # 1.106
        abilities = proxy.callback_capabilities()
        if abilities.has_streaming_chunk_override or abilities.has_guardrail:
            return True
        if any(not type(callback).__module__.startswith(OWN_HOOKS) for callback, _ in abilities.iterator_overrides):
            return True
    for callback in (*litellm.callbacks, *litellm.success_callback, *litellm._async_success_callback):  # noqa: SLF001
        if isinstance(callback, guardrail):
            return True
        kind = type(callback)
        if (
            isinstance(callback, plain)
            and not kind.__module__.startswith(OWN_HOOKS)
            and any(getattr(kind, hook) is not getattr(plain, hook) for hook in HOOKS)
        ):
            return True
    return False


class Lane:
    """One stream on its way to the caller."""

    def __init__(self, source: Source, answer: Answer, dialect: OpenAIDialect | HandlerDialect, wrapper: Any) -> None:
        litellm = _litellm()

        self.source = source
        self.answer = answer
        self.dialect = dialect
        self.wrapper = wrapper
        request = (wrapper.logging_obj.model_call_details.get("litellm_params") or {}).get(
            "proxy_server_request"
        ) or {}
        self.asked = wrapper.send_stream_usage and not (request.get("body") or {}).get("_litellm_strip_stream_usage")
        """Whether the caller wants the usage: LiteLLM 1.106 asks each provider for it, and notes who did not ask."""
        self.chunks = self._chunks()
        self.extra: deque[Event] | None = None
        """What comes after the provider's last event; None as long as that is to come."""
        self._exchange = current.get()
        self._first: Event | None = None
        """The first event, which LiteLLM got; it may have changed the event's model since."""
        self._model: str | None = None
        """Its model before that."""
        self._limit: int = litellm.REPEATED_STREAMING_CHUNK_LIMIT
        self._last: str | None = None
        self._equal = 1

    async def _chunks(self) -> AsyncIterator[list[dict[str, Any]]]:
        """The chunks for the caller, in groups as they arrived; chunks from before an error come first."""
        async for events in self.source:
            chunks = []
            try:
                for data in events:
                    if (chunk := self.take(_parsed(data))) is not None:
                        chunks.append(chunk)
            except Exception:
                if chunks:
                    yield chunks
                raise
            if chunks:
                yield chunks

    async def hand_on(self, chunks: list[dict[str, Any]]) -> Event | None:
        """Send chunks to the caller; return them instead where LiteLLM has to send them: the first of an answer.

        LiteLLM's generator and the frameworks below it take as much time for each chunk as all else does.
        """
        if self._first is None or self._exchange is None or self._exchange.hand_on is None:
            self._first = self._event(chunks)
            self._model = self._first.model
            return self._first
        if self._first.model != self._model:
            for chunk in chunks:
                chunk["model"] = self._first.model
        await self._exchange.hand_on(f"data: {written(chunks)}\n\n".encode())
        return None

    def take(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """Note a chunk, and say what the caller gets of it."""
        if event.get("error"):
            raise self.dialect.error(event)
        choices = event.get("choices") or ()
        for choice in choices:
            self._repair(choice)
        if choices:
            self._end_repetition(choices[0]["delta"])
        self.answer.add(event)
        event.pop("usage", None)  # sent at the end, to who asked for it
        return self._named(event) if choices else None

    def _repair(self, choice: dict[str, Any]) -> None:
        """Apply what OpenAI's protocol requires and not every provider does."""
        delta = choice.get("delta")
        if delta is None:
            delta = choice["delta"] = {}
        self.dialect.repair(delta)
        if choice.get("index", 0) in self.answer.ends:
            delta.pop("role", None)  # the SDK would add "assistant" to "assistant"
        else:
            delta["role"] = delta.get("role") or "assistant"
        for call in delta.get("tool_calls") or ():
            call["type"] = call.get("type") or "function"
        reason = choice.get("finish_reason")
        if reason == "error":
            raise BrokenStreamError("The provider ended its stream with an error and no reason.")
        if reason:
            choice["finish_reason"] = _litellm("litellm_core_utils.core_helpers").map_finish_reason(reason)

    def _end_repetition(self, delta: dict[str, Any]) -> None:
        """End an answer that repeats one chunk, as LiteLLM does."""
        content = delta.get("content")
        if content and self._equal >= self._limit:
            raise _litellm().InternalServerError(
                message=f"The model is repeating the same chunk = {self._last}.", model="", llm_provider=""
            )
        if content:
            self._equal = self._equal + 1 if content == self._last and len(content) > 2 else 1  # noqa: PLR2004
            self._last = content

    def _named(self, chunk: dict[str, Any]) -> dict[str, Any]:
        chunk.setdefault("object", "chat.completion.chunk")
        # Azure's name the model that the deployment has.
        if self.wrapper.custom_llm_provider != "azure":
            chunk["model"] = self.wrapper.model
        return chunk

    def _event(self, chunks: list[dict[str, Any]]) -> Event:
        return Event.of(chunks, self.wrapper._hidden_params)  # noqa: SLF001

    async def replay(self, error: Exception | None) -> AsyncIterator[Any]:
        """The answer in few chunks, and how it ended."""
        for event in self.answer.events():
            yield self.dialect.chunk(event)
        if error:
            raise error

    def finish(self, chunks: list[Any]) -> deque[Event]:
        """What the caller gets after the provider's last event, given LiteLLM's own last chunks."""
        head = self.answer.head
        extra: deque[Event] = deque()
        if not self.answer.is_finished():
            end = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            extra.append(self._event([self._named(end)]))
        if self.asked:
            own = (it.usage.model_dump(exclude_none=True) for it in reversed(chunks) if getattr(it, "usage", None))
            usage = {**(self.answer.usage or {}), **next(own, {})}
            extra.append(self._event([self._named({**head, "choices": [], "usage": usage})]))
        return extra


def _wrapper(base: Any) -> Any:  # noqa: C901 -- LiteLLM's CustomStreamWrapper, and a subclass of it
    class StreamWrapper(base):  # type: ignore[misc]
        """LiteLLM's stream of an answer, in the lane or its own way."""

        _lane: Lane | None = None
        chunks: Any
        completion_stream: Any

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            found = _source(self.completion_stream)
            if found is None:
                return
            response, dialect = found
            answer = Answer()
            source = Source(response, answer)
            if _needs_every_chunk(self):
                self.completion_stream = _whole(source, answer, dialect)
                return
            self._lane = Lane(source, answer, dialect, self)
            self.completion_stream = source
            self.chunks = Chunks(self._chunks)

        def _chunks(self) -> list[Any]:
            lane = self._lane
            assert lane is not None  # noqa: S101
            made = [self.chunk_creator(chunk=lane.dialect.chunk(event)) for event in lane.answer.events()]
            return [chunk for chunk in made if chunk is not None]

        async def __anext__(self) -> Any:
            lane = self._lane
            if lane is None:
                return await super().__anext__()
            if lane.extra is None:
                error: Exception | None = None
                try:
                    async for chunks in lane.chunks:
                        if (event := await lane.hand_on(chunks)) is not None:
                            self._began()
                            return event
                except Exception as raised:  # noqa: BLE001 -- LiteLLM's own way maps and reports it
                    error = raised
                lane.extra = lane.finish(await self._report(lane, error))
            if lane.extra:
                return lane.extra.popleft()
            raise StopAsyncIteration

        def _began(self) -> None:
            now = dt.datetime.now()  # noqa: DTZ005 -- as LiteLLM has it
            self.logging_obj.completion_start_time = now
            self.logging_obj.model_call_details["completion_start_time"] = now

        async def report_left(self) -> bool:
            """Have LiteLLM report what has come so far as the answer; False for a stream that is in no lane."""
            lane = self._lane
            if lane is not None and lane.extra is None:
                lane.extra = lane.finish(await self._report(lane, None))
            return lane is not None

        async def _report(self, lane: Lane, error: Exception | None) -> list[Any]:
            """Have LiteLLM do its own for the whole answer: usage, callbacks, the error. Its last chunks."""
            await lane.source.aclose()
            self.chunks.settle()
            self.completion_stream = lane.replay(error)
            chunks = []
            while True:
                try:
                    chunks.append(await super().__anext__())
                except StopAsyncIteration:
                    return chunks

    return StreamWrapper


async def _whole(source: Source, answer: Answer, dialect: OpenAIDialect | HandlerDialect) -> AsyncIterator[Any]:
    """Yield each chunk for LiteLLM's own way, with an error where that would say that a broken answer ended well."""
    try:
        async for events in source:
            for event in map(_parsed, events):
                if event.get("error"):
                    raise dialect.error(event)
                answer.add(event)
                yield dialect.chunk(event)
    finally:
        await source.aclose()


def install(*, enabled: bool) -> bool:
    """Install the lane in LiteLLM before it starts; return whether it is installed.

    LiteLLM has no hook for this: its hooks get chunks that are already built. So its stream wrapper is replaced in
    the modules that create one, and only in releases with which this was tested.
    """
    if not enabled:
        return False
    release = importlib.metadata.version("litellm")
    if release not in PROVEN:
        logger.warning("Fast streams are off: not proven with LiteLLM %s, only with %s.", release, ", ".join(PROVEN))
        return False
    wrapper = _wrapper(_litellm("litellm_core_utils.streaming_handler").CustomStreamWrapper)
    for name in MODULES:
        _litellm(name).CustomStreamWrapper = wrapper
    return True
