"""Reads an answer, or finds what a missing one means."""

from __future__ import annotations

import base64
import re
import struct
from typing import TYPE_CHECKING, Any, cast

import httpx2

from app._errors import (
    BudgetExceededError,
    ContentRefusedError,
    ContextTooLongError,
    GatewayRefusedKeyError,
    GatewayUnreachableError,
    LLMError,
    ModelUnknownError,
    ProviderError,
    RateLimitedError,
    RequestError,
    RequestRejectedError,
    TimedOutError,
)
from app._http import LIMITS
from app._settings import Settings
from app._types import ToolCall, Usage
from app._unreachable import GATEWAY_FIX, KEY_FIX, why

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODEL_HEADER = "x-litellm-model-group"
REQUEST_ID_HEADER = "x-litellm-call-id"
LATE = "{model} did not answer in time: allow more, or ask for less"
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error)
"""What reading JSON of any shape can raise, including vectors packed in it."""


class Events:
    """The data of server-sent events, from bytes in pieces that are cut anywhere (HTML standard, section 9.2.6)."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, piece: bytes) -> Iterator[bytes]:
        """The data of each event that `piece` completes; an empty piece means the end, and completes what is left."""
        text = self._rest + (piece or b"\n\n")
        if b"\r" in text:
            # The last character may be the first half of a line break.
            text, cut = (text[:-1], b"\r") if text.endswith(b"\r") else (text, b"")
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + cut
        *events, self._rest = text.split(b"\n\n")
        for event in events:
            lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield b"\n".join(lines)


def text_of(given: object) -> str:
    """A text of an answer; empty if it has none. Raises TypeError for anything else."""
    if given is None:
        return ""
    if not isinstance(given, str):
        raise TypeError
    given.encode()  # half of a surrogate pair, which cannot be printed
    return given


class Said:
    """What a model has said so far: whole, or piece by piece as the deltas of a stream."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.finish_reason: str | None = None
        self._refusals: list[str] = []
        self._calls: dict[int, tuple[list[str], list[str], list[str]]] = {}
        """Pieces of the id, the name and the arguments of each call of a function."""

    @property
    def content(self) -> str:
        return "".join(self.texts)

    @property
    def refusal(self) -> str | None:
        return "".join(self._refusals) or None

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(ToolCall(*map("".join, self._calls[place])) for place in sorted(self._calls))

    def add(self, message: Mapping[str, Any], finish_reason: object) -> str:
        """Take a message or a part of one, and return its text. Raises one of MALFORMED."""
        self.finish_reason = text_of(finish_reason) or self.finish_reason
        for place, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function") or {}
            parts = self._calls.setdefault(int(call.get("index", place)), ([], [], []))
            for pieces, piece in zip(
                parts, (call.get("id"), function.get("name"), function.get("arguments")), strict=True
            ):
                pieces.append(text_of(piece))
        # For a whole answer, LiteLLM 1.106 has it among the fields that it calls provider-specific.
        more = message.get("provider_specific_fields") or {}
        if refusal := text_of(message.get("refusal") or more.get("refusal")):
            self._refusals.append(refusal)
        text = text_of(message.get("content"))
        if text:
            self.texts.append(text)
        return text


def usage_of(given: object) -> Usage | None:
    """The usage; None if it is malformed, because that does not make the answer useless."""
    try:
        counts = cast("Mapping[str, int]", given)
        return Usage(
            int(counts["prompt_tokens"]), int(counts.get("completion_tokens", 0)), int(counts["total_tokens"])
        )
    except MALFORMED:
        return None


def vector_of(given: list[float] | str) -> tuple[float, ...]:
    """A vector, given as numbers or as base64 of little-endian 32-bit ones (OpenAI's `encoding_format`)."""
    if isinstance(given, str):
        packed = base64.b64decode(given, validate=True)
        return struct.unpack(f"<{len(packed) // 4}f", packed)
    return tuple(map(float, given))


class errors_translated:  # noqa: N801 -- as contextlib's own; a class for the reason of app._deadline.until
    """Raise this module's errors for the HTTP client's, which may quote prompts and keys and so are not the cause."""

    __slots__ = ("_model",)

    def __init__(self, model: str) -> None:
        self._model = model

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL)):
            raise _translated(error, self._model, Settings.load().base_url) from None


def _translated(error: Exception, model: str, url: str) -> LLMError:
    match error:
        case httpx2.PoolTimeout():
            busy = (
                f"all {LIMITS.max_connections} connections of this process were in use: send fewer requests at once"
            )
            return TimedOutError(f"{model} was not asked in time, because {busy}", model=model)
        case httpx2.ConnectTimeout() | httpx2.ConnectError():
            return GatewayUnreachableError(": ".join(why(error, url)))
        case httpx2.TimeoutException():
            return timed_out(model)
        case httpx2.TransportError():
            return ProviderError(f"the connection was lost before {model} had answered: try again", model=model)
        case _:
            return ProviderError(f"{model} failed: {type(error).__name__}", model=model)


def timed_out(model: str) -> TimedOutError:
    """The error for an answer that did not come in time."""
    return TimedOutError(LATE.format(model=model), model=model)


BY_TEXT: tuple[tuple[str, type[RequestError], str], ...] = (
    ("ContextWindowExceededError", ContextTooLongError, "the messages are longer than {model} takes: shorten them"),
    ("ContentPolicyViolationError", ContentRefusedError, "the provider of {model} refused the content: change it"),
    (
        "is not served here",
        ModelUnknownError,
        "the gateway serves no model {model}: `llmctl models` lists those it does",
    ),
)
"""Errors that differ only in the answer's text: all of them arrive with status 400 or 404, or in a stream."""

OTHERS: tuple[type[RequestError], str] = (
    RequestRejectedError,
    "{model} rejected the request (status {status}): the gateway's log says why",
)
NAMES_A_FIELD = re.compile(r"[A-Za-z_][\w.\[\]]{0,63}")
"""The format of an error's `param`, which excludes text that somebody wrote."""
NOT_TAKEN = "{model} does not accept `{param}` as given (status {status}): change it, or leave it out"
FAILED = "the provider of {model} failed (status {status}): try again"
UNREACHABLE = "the gateway cannot connect to the provider of {model}: see docs/runbooks/provider-down.md"
NO_CONNECTION = re.compile(
    r" - Connection error|Cannot connect to host |All connection attempts failed|\[Errno -\d\] "  # of a host's name
)
"""The words for that of LiteLLM's clients: OpenAI's, aiohttp and httpx (LiteLLM 1.55.0 and 1.108.14)."""
TOLD_BY_TEXT = (400, 404, None)
KEY_REFUSED = (401, 403)
NO_REPLICA = "service_unavailable"
"""The code of the edge's own 503 (edge/haproxy.cfg)."""

BY_STATUS: dict[int | None, tuple[type[RequestError], str]] = {
    None: (ProviderError, "{model} failed: try again"),
    404: (ModelUnknownError, "the provider of {model} does not know it: name another model"),
    408: (TimedOutError, LATE),
    409: (ProviderError, "{model} is failing at the moment: try again"),
    429: (RateLimitedError, "too many requests for {model}: wait, then try again"),
    504: (TimedOutError, LATE),
}


BUDGET_EXCEEDED = "budget_exceeded"
"""The type of the gateway's own refusal (litellm/limits.py): a text about budgets may come from a provider."""
NO_DATABASE = "database_unavailable"
"""The gateway's error code for a key that it cannot look up now."""


def by_answer(error: object, status: int | None, headers: Mapping[str, str], model: str) -> LLMError:
    """The error that the gateway reported in OpenAI's error object; in a stream it has no status.

    Messages quote the gateway only if the text cannot contain a prompt or a key: never the provider's own words.
    """
    told: Mapping[str, object] = error if isinstance(error, dict) else {}
    said, code = str(error), told.get("code")
    status = _status(status or code, said)
    request_id = headers.get(REQUEST_ID_HEADER)
    if status in KEY_REFUSED and "litellm." not in said:
        return GatewayRefusedKeyError(f"the gateway refused LITELLM_API_KEY: {KEY_FIX}")
    if BUDGET_EXCEEDED in (told.get("type"), code):
        return BudgetExceededError(
            "the budget of LITELLM_API_KEY is used up: send a smaller max_tokens, or raise the budget"
        )
    if code == NO_REPLICA:
        return GatewayUnreachableError(f"no replica of the gateway answers: see `llmctl status`, then {GATEWAY_FIX}")
    if code == NO_DATABASE:
        return GatewayUnreachableError("the gateway cannot look LITELLM_API_KEY up now: ask again")
    kind, message = BY_STATUS.get(status, OTHERS)
    if status in TOLD_BY_TEXT:
        kind, message = next(((kind, told) for text, kind, told in BY_TEXT if text in said), (kind, message))
    if status in KEY_REFUSED:
        kind = ProviderError
        message = "the provider of {model} refused the gateway's key: set another (docs/runbooks/rotate-a-secret.md)"
    elif (kind, message) == OTHERS and status is not None and status >= httpx2.codes.INTERNAL_SERVER_ERROR:
        kind, message = ProviderError, UNREACHABLE if NO_CONNECTION.search(said) else FAILED
    param = told.get("param")
    if (kind, message) == OTHERS and isinstance(param, str) and NAMES_A_FIELD.fullmatch(param) and param != "None":
        message = NOT_TAKEN
    return kind(
        message.format(model=model, status=status, param=param), model=model, status=status, request_id=request_id
    )


def _status(told: object, said: str) -> int | None:
    """The HTTP status that tells what went wrong.

    A stream's error has it in its body. LiteLLM turns many errors of OpenAI into a 400 that quotes the real one.
    """
    code = str(told)
    if code == "400" and (quoted := re.search(r"litellm\.BadRequestError:.*?Error code: (\d{3})", said)):
        code = quoted[1]
    return int(code) if re.fullmatch(r"[45]\d\d", code) else None
