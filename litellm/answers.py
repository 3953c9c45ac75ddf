"""The gateway's answers where LiteLLM's would not do: refusals, and errors in a form that clients can read."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import limits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from release import Release

    Message = dict[str, Any]
    Send = Callable[[Message], Awaitable[None]]

BAD_REQUEST, NOT_FOUND, METHOD_NOT_ALLOWED, TOO_SLOW = 400, 404, 405, 408
UNSUPPORTED, UNPROCESSABLE, FAILED, OVERLOADED = 415, 422, 500, 503

SINCE = "1.106.12"
"""The oldest release that was found to serve the paths and the content that the default release does not."""
NEWER = re.compile(r"/(responses(/.*)?|messages/count_tokens|models/.+|audio/translations|images/edits)/?$")
"""The paths that are served since then."""
NO_KEY = "The api_key client option must be set"
"""What OpenAI's SDK says where a path of LiteLLM's knows no key but the environment's."""
NAMED = re.compile(r"litellm\.(\w+)")
STATUSES = {
    "AuthenticationError": 401,
    "BadRequestError": 400,
    "ContentPolicyViolationError": 400,
    "ContextWindowExceededError": 400,
    "NotFoundError": 404,
    "PermissionDeniedError": 403,
    "RateLimitError": 429,
    "Timeout": 408,
    "UnprocessableEntityError": 422,
}
"""The statuses that LiteLLM's own errors mean. Some of its paths answer 500 for any of them."""
WRONG = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What Python raises where LiteLLM works with a body that it did not expect."""
SAID_OTHERWISE = {BAD_REQUEST, FAILED}
"""The statuses with which LiteLLM reports a provider's refusal that it does not know, or that it classifies by
something other than its status."""
OF_A_PROVIDER = {BAD_REQUEST, 401, 403, NOT_FOUND, TOO_SLOW, 409, 413, 429}
"""The provider's refusals that callers get with the provider's own status, beside its failures."""
MODELS = re.compile(r"(/v1)?/models")


class Refusal(Exception):  # noqa: N818 -- no error of the program
    """Refuses a request before LiteLLM sees it, or replaces LiteLLM's answer."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = BAD_REQUEST
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@dataclass
class Exchange:
    """What is known of the request that is handled."""

    large: bool = False
    """Whether its body is a large one."""
    asked: bool = False
    """Whether a provider, or anybody else, was asked."""
    answered: int | None = None
    """The status of the last answer that came."""
    error: BaseException | None = None
    """What LiteLLM failed with."""
    reason: str = ""
    """What is wrong with the request, if this project's own programs found it on the way."""
    client: str | None = None
    """Whose key it came with, as the edge says."""
    call_id: str | None = None
    """The edge's id of it."""
    organization: str | None = None
    """The organization for which it is sent, as its caller says."""
    model: str | None = None
    """What it asks for."""
    stream: bool = False
    """Whether it asks for a stream."""
    left: bool = False
    """Whether its caller left before the end of the answer."""
    given_up: bool = False
    """Whether that was before the answer began, so that nobody was asked on for it."""
    told: set[str] = field(default_factory=set)
    """LiteLLM's ids of the answers that it has reported (usage.py)."""
    estimated: bool = False
    """Whether the tokens of its stream were counted here."""
    operator: bool = False
    """Whether it is not a caller's request: it came from inside the container, with the master key (keys.py)."""
    keyed: bool = False
    """Whether LiteLLM counts it for a key in its database."""
    named: bool = False
    """Whether the answer tells the edge who asked, because the edge does not know."""
    one: str | None = None
    """The model that the request is about, if it is about one."""
    database_away: bool = False
    """Whether that could not be looked up."""
    wrapper: Any = None
    """LiteLLM's stream of its answer, in releases that do not report a stream whose caller left."""
    hand_on: Callable[[bytes], Awaitable[None]] | None = None
    """Sends the next piece of its answer, once LiteLLM has sent the first."""


current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


class Rewriter:
    """The way back: passes answers on unchanged, except for errors that a client could not read."""

    def __init__(
        self, send: Send, scope: dict[str, Any], exchange: Exchange, release: Release, *, anthropic: bool
    ) -> None:
        self.send, self.scope, self.exchange, self.release, self.anthropic = send, scope, exchange, release, anthropic
        self.lists = scope["method"] == "GET" and MODELS.fullmatch(scope["path"]) is not None
        self.start: Message | None = None
        """The start message of an answer that is held until its body is complete."""
        self.started = self.ended = False
        self.held = b""
        self.stream = False
        self.tail = b""

    async def __call__(self, message: Message) -> None:
        """Pass a message of LiteLLM on."""
        self.ended = message["type"] == "http.response.body" and not message.get("more_body")
        if message["type"] == "http.response.start":
            self.started = True
            content_type = dict(message["headers"]).get(b"content-type", b"")
            self.stream = self.anthropic and content_type.startswith(b"text/event-stream")
            if message["status"] >= BAD_REQUEST or self.lists:
                self.start = message
                return
        elif self.start is not None and message["type"] == "http.response.body":
            self.held += message.get("body", b"")
            if not message.get("more_body"):
                await (self._rewritten if self.start["status"] >= BAD_REQUEST else self._listed)(self.start)
            return
        elif self.stream and message["type"] == "http.response.body":
            message = self._event(message)
        await self.send(message)
        if message["type"] == "http.response.body" and not self.ended and not self.stream:
            self.exchange.hand_on = self._hand_on

    async def _hand_on(self, piece: bytes) -> None:
        await self.send({"type": "http.response.body", "body": piece, "more_body": True})

    async def failed(self, problem: Exception) -> None:
        """Answer for LiteLLM, which raised an exception instead."""
        self.exchange.error, self.held = problem, b'{"error": {"message": "The gateway failed."}}'
        status = getattr(problem, "status_code", FAILED)
        await self._rewritten({"status": status if isinstance(status, int) else FAILED, "headers": []})

    def _event(self, message: Message) -> Message:
        """An Anthropic stream ends with message_stop, or with an error that its SDKs raise."""
        chunk = message.get("body", b"")
        if chunk.startswith((b'data: {"error"', b'data:{"error"')):
            problem = json.loads(chunk.split(b":", 1)[1])["error"]
            chunk = broken_off(problem.get("message", "") if isinstance(problem, dict) else str(problem))
        self.tail = (self.tail[-32:] + chunk) if chunk else self.tail
        ended = b"message_stop" in self.tail or b"event: error" in self.tail
        if ended:
            self.tail = b"message_stop"
        elif not message.get("more_body"):
            chunk += broken_off("The provider broke off its answer.")
        return {**message, "body": chunk}

    async def _listed(self, start: Message) -> None:
        """The models in one order, each with what is known of it.

        LiteLLM keeps them in a set, which each process has in an order of its own.
        """
        content, told = json.loads(self.held), self.release.told()
        models = sorted(content["data"], key=lambda model: model["id"])
        content["data"] = [{**model, **told.get(model["id"], {})} for model in models]
        if (one := self.exchange.one) is not None:
            content = next((model for model in content["data"] if model["id"] == one), None)
            if content is None:
                refused = limits.not_for_key()
                start = {**start, "status": refused.pop("status")}
                content = {"error": refused}
        await answer(self.send, start["status"], content, others(start["headers"]))

    async def _rewritten(self, start: Message) -> None:
        status: int = start["status"]
        try:
            content = json.loads(self.held)
        except ValueError:
            content = {"detail": self.held.decode(errors="replace")}
        known = content.get("error") if isinstance(content, dict) else content
        known = known if isinstance(known, dict) else {"message": known or content.get("detail", content)}
        changed = self._of_key(status, known) or self._as_said(status) or self._read_as(status, known)
        status = changed.pop("status", status)
        problem = {"type": None, "param": None, "code": None, **known, **changed}
        problem["message"] = text_of(problem.get("message"))
        if problem["type"] in {None, "None"} or (changed and "type" not in changed):
            problem["type"] = "invalid_request_error" if status < FAILED else "server_error"
        if problem["param"] == "None":
            problem["param"] = None
        if not self.anthropic:
            content = {"error": problem}
        elif changed or not isinstance(content, dict) or content.get("type") != "error":
            content = anthropic_error(problem["message"], status)
        headers = limits.in_whole_seconds(others(start["headers"]))
        await answer(self.send, status, content, [*headers, *limits.headers_of(problem)])

    def _of_key(self, status: int, known: Mapping[str, Any]) -> dict[str, Any]:
        """LiteLLM's refusal of what a key may, where it counts for one and no provider was asked."""
        if not self.exchange.keyed or self.exchange.asked:
            return {}
        return limits.read(status, known, database_away=self.exchange.database_away)

    def _as_said(self, status: int) -> dict[str, Any]:
        """The provider's own status, where LiteLLM has another for its refusal."""
        said = self.exchange.answered
        if self.exchange.reason or status not in SAID_OTHERWISE or said is None or said == status:
            return {}
        return {"status": said, "code": str(said)} if said in OF_A_PROVIDER or said >= FAILED else {}

    def _read_as(self, status: int, known: Mapping[str, Any]) -> dict[str, Any]:
        """What an error really is, if LiteLLM does not say so: the parts of it that change."""
        named = NAMED.match(str(known.get("message")))
        if self.exchange.reason:
            return {"status": BAD_REQUEST, "code": "invalid_request", "message": self.exchange.reason}
        if status in {NOT_FOUND, METHOD_NOT_ALLOWED} and known.keys() == {"message"}:
            runs, path = f"LiteLLM {self.release.version}, which this gateway runs,", self.scope["path"]
            since = (
                f" It is served since LiteLLM {SINCE}."
                if NEWER.search(path) and self.release.version != SINCE
                else ""
            )
            message = f"{runs} does not serve {self.scope['method']} {path}.{since}"
            return {"status": NOT_FOUND, "code": "unknown_url", "message": message}
        if status == FAILED and named and named[1] in STATUSES:
            return {"status": STATUSES[named[1]]}
        if status == FAILED and not self.exchange.asked and NO_KEY in str(known.get("message")):
            message = "This needs OpenAI's key: set openaiApiKey in the stack config."
            return {"status": BAD_REQUEST, "code": "invalid_request", "message": message}
        if status == FAILED and not self.exchange.asked and (wrong := root_of(self.exchange.error)) is not None:
            message = f"LiteLLM cannot process this request: {type(wrong).__name__}: {str(wrong)[:500]}"
            return {"status": BAD_REQUEST, "code": "invalid_request", "message": message}
        return {"status": BAD_REQUEST, "code": "invalid_request"} if status == UNPROCESSABLE else {}


def text_of(message: object) -> str:
    """An error's message as a text, whatever LiteLLM or FastAPI made of it."""
    if isinstance(message, dict):
        return str(message.get("error") or message.get("message") or message)
    if isinstance(message, list):  # FastAPI's own
        return "; ".join(
            f"{'.'.join(map(str, it.get('loc', ())[1:]))}: {it.get('msg')}" if isinstance(it, dict) else str(it)
            for it in message
        )
    return str(message)


def root_of(problem: BaseException | None) -> BaseException | None:
    """The Python error that caused a failure, if there is one."""
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        seen.add(id(problem))
        before = problem.__cause__ or problem.__context__
        if before is None:
            own = type(problem) is Exception and "nvalid" in str(problem)  # LiteLLM's checks of messages
            return problem if own or isinstance(problem, WRONG) else None
        problem = before
    return None


def error(refusal: Refusal, *, anthropic: bool) -> dict[str, Any]:
    """A refusal in OpenAI's form, or Anthropic's."""
    if anthropic:
        return anthropic_error(str(refusal), refusal.status)
    return {
        "error": {
            "message": str(refusal),
            "type": "invalid_request_error" if refusal.status < FAILED else "server_error",
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def anthropic_error(message: str, status: int) -> dict[str, Any]:
    """An error in Anthropic's form."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "api_error" if status >= FAILED else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def broken_off(message: str) -> bytes:
    """The event with which an Anthropic stream says that it failed."""
    return f"event: error\ndata: {json.dumps(anthropic_error(message, FAILED))}\n\n".encode()


def others(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that do not depend on its body."""
    return [it for it in headers if it[0] not in {b"content-length", b"content-type"}]


async def answer(send: Send, status: int, content: object, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Send a whole answer."""
    body = json.dumps(content).encode()
    more = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *more]})
    await send({"type": "http.response.body", "body": body})


def watch() -> None:
    """Have each exchange know whether anybody was asked for it, and what LiteLLM failed with."""
    httpx = importlib.import_module("httpx")
    for kind in (httpx.Client, httpx.AsyncClient):
        kind.send = listening(noting(kind.send, lambda exchange, *_, **__: setattr(exchange, "asked", True)))
    logging = importlib.import_module("litellm.proxy.utils").ProxyLogging
    logging.post_call_failure_hook = noting(
        logging.post_call_failure_hook,
        lambda exchange, *_, original_exception=None, **__: setattr(exchange, "error", original_exception),
    )


def listening(send: Callable[..., Any]) -> Callable[..., Any]:
    """A client's method that notes the status of what comes back in the exchange that it belongs to."""

    def note(response: Any) -> Any:
        exchange = current.get()
        if exchange is not None and exchange.error is None:  # what comes later is for a callback
            exchange.answered = response.status_code
        return response

    @functools.wraps(send)
    def sent(*args: object, **kwargs: object) -> Any:
        answered = send(*args, **kwargs)
        return later(answered) if inspect.isawaitable(answered) else note(answered)

    async def later(answered: Awaitable[Any]) -> Any:
        return note(await answered)

    return sent


def noting(function: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    """A function that notes what it is called with in the exchange that it belongs to."""

    @functools.wraps(function)
    def noted(*args: object, **kwargs: object) -> Any:
        exchange = current.get()
        if exchange is not None:
            note(exchange, *args, **kwargs)
        return function(*args, **kwargs)

    return noted
