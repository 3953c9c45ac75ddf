"""Decides what a request may say; runs in LiteLLM's process, in front of its app.

A client can only ask. But LiteLLM reads its own settings from a request: where to send it, with which key, what to
log, when to give up. The gateway decides these, not the client. So a request that names one is refused before LiteLLM
sees it, whether it comes as JSON, form or query string.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import re
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import answers
import keys
import large_requests
import operator_requests
import release as releases
import spend
import usage
from answers import NOT_FOUND, OVERLOADED, UNSUPPORTED, Exchange, Refusal, Rewriter, answer, current, error
from field_types import check_shapes, check_text_only
from parameters import fitting
from release import OF_A_PROVIDER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Scope = dict[str, Any]
    Message = dict[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]
    from keys import Keys
    from release import Release
    from usage import Totals

LOG = logging.getLogger("litellm.guard")

FORM_PATHS = re.compile(r"/(audio/(transcriptions|translations)|images/(edits|variations))/?$")
FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
NEEDS_MODEL = re.compile(
    r"/(completions|embeddings|responses|messages|count_tokens|rerank|speech|transcriptions|translations|generations|edits)$"
)
WHOLE = re.compile(r"/(embeddings|moderations|rerank|count_tokens)/?$")
"""The paths without streams. LiteLLM asks the provider for a stream anyway, and fails on the answer."""
ANSWER = re.compile(r"/responses/(.+?)(?:/(?:cancel|input_items))?/?$")
AZURE = re.compile(r"/(?:openai/deployments|engines)/(.+?)/(?:chat/|audio/|images/)?\w+$")
DROPPED_HEADERS = {b"cache-control", b"litellm_user_api_key", b"openai-organization"}
"""Read by LiteLLM as settings, beside its own prefix and the headers that carry a key."""
DROPPED_PREFIXES = (b"x-litellm-", b"x-llm-", b"x-mcp-")
GIVE_UP_SECONDS = 0.5
"""The interval at which LiteLLM is told again that nobody waits for an answer."""
CLIENT, CALL = b"x-llm-gateway-client", b"x-llm-gateway-call"
"""Who asks, and the request's id. The edge sets both, and lets none of a caller's through."""
ORGANIZATION = b"x-llm-organization"
"""The organization for which a client asks, as it says itself. Providers do not see it."""
MANAGED = re.compile(rf"/(budget|customer|end_user|global|key|organization|spend|team|user)/|{spend.PATH}")
"""Paths for requests from inside the container, with the master key. The edge passes none of them on. Their database
queries take longer than a caller would wait (queries.py)."""
LABEL = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,99}")


class Guard:
    """ASGI middleware that lets through what a client may ask, and repairs what LiteLLM answers."""

    def __init__(self, app: App, release: Release, totals: Totals, keys: Keys | None = None) -> None:
        self.app, self.release, self.totals, self.keys = app, release, totals, keys
        self.room = large_requests.of_this_replica()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":  # nothing looks at what comes over one
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        async with AsyncExitStack() as held:
            await self._handle(scope, receive, send, held)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, held: AsyncExitStack) -> None:
        """Handle one request; `held` is the room that it takes until its answer is complete."""
        anthropic = "/messages" in scope["path"]
        exchange = Exchange()
        try:
            if await self._is_operators(scope, exchange):
                await self.app(scope, receive, send)
                return
            if exchange.named:
                send = naming(send, exchange.client or "")
            body = await self._checked(scope, receive, held, exchange)
        except Refusal as refusal:
            later = [(b"retry-after", b"5")] if refusal.status == OVERLOADED else []
            await answer(send, refusal.status, error(refusal, anthropic=anthropic), later)
            return
        if body is None:
            return  # the client is gone
        exchange.large = len(body) > large_requests.LARGE
        current.set(exchange)
        rewriter = Rewriter(send, scope, exchange, self.release, anthropic=anthropic)

        async def watched() -> Message:
            message = await receive()
            exchange.left = exchange.left or (message["type"] == "http.disconnect" and not rewriter.ended)
            return message

        try:
            await self._answer(scope, body, watched, rewriter)
        except Exception as problem:
            if rewriter.started:
                raise
            LOG.exception("LiteLLM failed without an answer")
            await rewriter.failed(problem)
        finally:
            if exchange.left:
                await usage.left(exchange, self.totals)
            # Contexts outlive a request, for example with a kept connection: a stream in one of them would not be
            # closed.
            exchange.wrapper = None

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, rewriter: Rewriter) -> None:
        """Have LiteLLM answer. A caller who leaves before that begins ends it, and what it asked of a provider."""
        answering = asyncio.ensure_future(self.app(scope, replay(body, receive), rewriter))
        leaving = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done() or rewriter.started:
                await answering
            else:
                rewriter.exchange.given_up = True
        finally:
            leaving.cancel()
            while not answering.done():  # LiteLLM 1.55.0 mistakes the end of a call to Azure for a fault of Azure
                answering.cancel()
                await asyncio.wait((answering,), timeout=GIVE_UP_SECONDS)

    async def _checked(
        self, scope: Scope, receive: Receive, held: AsyncExitStack, exchange: Exchange
    ) -> bytes | None:
        """The body of a request that may pass; its scope is cut down to what LiteLLM is to see.

        What is known of who asks for what is added to `exchange`.
        """
        release, path = self.release, scope["path"]
        headers = dict(scope["headers"])
        scope["headers"] = [
            (name, value)
            for name, value in scope["headers"]
            if name not in release.key_headers
            and name not in DROPPED_HEADERS
            and not name.startswith(DROPPED_PREFIXES)
        ]
        if exchange.call_id:  # LiteLLM takes it for its own id of the call
            scope["headers"].append((b"x-litellm-call-id", exchange.call_id.encode()))
        self._check_query(scope)
        if answered := ANSWER.search(path):
            self._check_id(answered[1])
        if scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            return b""
        if headers.get(b"content-encoding", b"identity").strip().lower() not in {b"identity", b""}:
            raise Refusal("Send the body without Content-Encoding.", code="unsupported_encoding", status=UNSUPPORTED)
        body = await large_requests.read(
            receive, headers, lambda size: held.enter_async_context(self.room.taken(size))
        )
        if body is None or (not body and not NEEDS_MODEL.search(path.rstrip("/"))):
            return body
        form = FORM_PATHS.search(path) is not None
        fields = await self._form(scope, body) if form else self._object(scope, body)
        self._check_names(fields)
        exchange.model = self._check_model(path, fields)
        exchange.stream = fields.get("stream") is True
        if not form:  # there all values are text
            check_shapes(path, fields)
        if release.text_only and path.rstrip("/").endswith("/messages"):
            check_text_only(fields, release.version)
        if not form:
            azure = AZURE.search(path)
            fitted = fitting(path, fields, release.refused(azure[1] if azure else fields.get("model")))
            if fitted != fields:
                fields, body = fitted, json.dumps(fitted).encode()
            # LiteLLM's newer releases take it from here, and do not parse the body again.
            scope["parsed_body"] = (tuple(fields), fields)
        return body

    async def _is_operators(self, scope: Scope, exchange: Exchange) -> bool:
        """Whether LiteLLM answers a request by itself. For a caller's request, records who asks. Raises Refusal."""
        if operator_requests.is_operators(scope, self.keys):
            return True
        self._note_caller(dict(scope["headers"]), exchange)
        if self.keys:
            await self.keys.admit(scope, exchange)
        return exchange.operator and MANAGED.match(scope["path"]) is not None

    def _note_caller(self, headers: Mapping[bytes, bytes], exchange: Exchange) -> None:
        """Note who asks, and for whom."""
        exchange.client, exchange.call_id = (headers.get(name, b"").decode() or None for name in (CLIENT, CALL))
        organization = headers.get(ORGANIZATION)
        if organization is None:
            return
        if not LABEL.fullmatch(organization):
            name = ORGANIZATION.decode()
            raise Refusal(
                f"`{name}` must be 1 to 100 letters, digits or `._:@/-`.", param=name, code="invalid_header"
            )
        exchange.organization = organization.decode()

    def _object(self, scope: Scope, body: bytes) -> dict[str, Any]:
        """The fields of a JSON object. LiteLLM reads the body as one too, whatever it says that it is."""
        if "form" in media_type(scope):
            message = "Send this as JSON, with Content-Type: application/json."
            raise Refusal(message, code="unsupported_media_type", status=UNSUPPORTED)
        fields = self._json(body)
        if fields.get("stream") and WHOLE.search(scope["path"]):
            raise Refusal("`stream` is not available on this path.", param="stream", code="invalid_type")
        scope["headers"] = [it for it in scope["headers"] if it[0] != b"content-type"]
        scope["headers"].append((b"content-type", b"application/json"))
        return fields

    def _json(self, body: bytes) -> dict[str, Any]:
        if not body.strip():
            raise Refusal("The request has no body. Send a JSON object.", code="invalid_json")
        try:
            fields = self.release.loads(body)
        except (ValueError, RecursionError) as problem:
            raise Refusal(f"The body is not valid JSON: {problem}.", code="invalid_json") from None
        if not isinstance(fields, dict):
            raise Refusal("The body is not a JSON object.", code="invalid_json")
        return fields

    async def _form(self, scope: Scope, body: bytes) -> dict[str, Any]:
        """A form's fields, as the parser that LiteLLM uses reads them. `a[]` and `a[b]` belong to `a`."""
        from starlette.requests import Request  # noqa: PLC0415 -- the unit tests need none

        if media_type(scope) not in FORM_TYPES:
            raise Refusal("Send this as multipart/form-data.", code="unsupported_media_type", status=UNSUPPORTED)
        content_type = dict(scope["headers"]).get(b"content-type", b"")
        boundary = re.search(rb'boundary="?([^";]{1,70})"?\s*(;|$)', content_type)
        multipart = content_type.lower().startswith(b"multipart/")
        # What stands before the first part or after the last costs the parser more than it is worth.
        if multipart and not (
            boundary
            and body.startswith(b"--" + boundary[1])
            and body.rstrip(b"\r\n").endswith(b"--" + boundary[1] + b"--")
        ):
            raise Refusal("The form is incomplete.", code="invalid_form")
        try:
            form = await Request(scope, replay(body, None)).form()
        except Exception as problem:  # noqa: BLE001 -- parsers raise what they like
            raise Refusal(f"The form cannot be read: {problem}", code="invalid_form") from None
        fields: dict[str, Any] = {name.split("[", 1)[0]: value for name, value in form.multi_items()}
        models = {value for name, value in form.multi_items() if name.split("[", 1)[0] == "model"}
        if len(models) > 1:
            raise Refusal("`model` is given more than once.", param="model")
        metadata = fields.get("metadata")
        if metadata is not None:
            inner = {name[len("metadata[") :].rstrip("]"): "" for name in form if name.startswith("metadata[")}
            fields["metadata"] = {**inner, **(self._json(metadata.encode()) if not inner else {})}
        return fields

    def _check_query(self, scope: Scope) -> None:
        """A query string must not set anything; what Azure's and Anthropic's clients send in theirs is dropped."""
        if not scope["query_string"]:
            return
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        for name, _ in query:
            if name.split("[", 1)[0] in self.release.settings | {"model", "key"} or OF_A_PROVIDER.match(name):
                raise Refusal(f"`{name}` cannot be set by a request.", param=name, code="parameter_not_allowed")
        if scope["method"] != "GET" or "/responses/" not in scope["path"]:
            scope["query_string"] = b""

    def _check_names(self, fields: Mapping[str, Any]) -> None:
        metadata = fields.get("metadata")
        inner = metadata if isinstance(metadata, dict) else {}
        for prefix, names, own in (
            ("", fields, self.release.settings),
            ("metadata.", inner, self.release.metadata_settings),
        ):
            for name in names:
                if name in own or OF_A_PROVIDER.match(name):
                    raise Refusal(
                        f"`{prefix}{name}` cannot be set by a request: this gateway decides it.",
                        param=prefix + name,
                        code="parameter_not_allowed",
                    )

    def _check_id(self, of_answer: object) -> None:
        if of_answer is not None and not (isinstance(of_answer, str) and self.release.gave(of_answer)):
            raise Refusal("There is no such answer.", code="not_found", status=NOT_FOUND)

    def _check_model(self, path: str, fields: Mapping[str, Any]) -> str | None:
        """Refuse a model that is not served, and a previous answer that did not come from this gateway.

        Returns the model that is asked for, where one is named.
        """
        self._check_id(fields.get("previous_response_id"))
        azure = AZURE.search(path)
        model = azure[1] if azure else fields.get("model")
        if path.rstrip("/").endswith("/moderations") and model is None:
            if not self.release.moderates():
                raise Refusal("Moderations need OpenAI's key: set openaiApiKey in the stack config.", param="model")
            return None
        if model is None:
            if NEEDS_MODEL.search(path.rstrip("/")):
                raise Refusal("`model` is missing.", param="model", code="missing_required_parameter")
            return None
        if not isinstance(model, str):
            raise Refusal("`model` must be a string.", param="model", code="invalid_type")
        if not self.release.served(model):
            served = ", ".join(sorted(self.release.models())) or "none"
            raise Refusal(
                f"The model {model[:100]!r} is not served here. Served: {served}.",
                param="model",
                code="model_not_found",
                status=NOT_FOUND,
            )
        return model


def media_type(scope: Scope) -> str:
    """What a body says that it is, without parameters."""
    said: bytes = dict(scope["headers"]).get(b"content-type", b"")
    return said.split(b";")[0].strip().lower().decode("latin-1")


def replay(body: bytes, receive: Receive | None) -> Receive:
    """What gives a body that was read once more, and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if not given or receive is None:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def naming(send: Send, client: str) -> Send:
    """What sends an answer with the name of its client, for the edge's log."""

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (CLIENT, client.encode())]}
        await send(message)

    return named


async def disconnected(receive: Receive) -> None:
    """Wait until a caller has left, or has its answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


def install() -> None:
    """Put the guard before LiteLLM's app. Raises where that is not possible, so that LiteLLM does not start."""
    release = releases.running()
    spend.install(release.version)
    answers.watch()
    large_requests.spare_the_count()
    totals, held = usage.install(release.models, release.version), keys.install()
    proxy = importlib.import_module("litellm.proxy.proxy_server")
    # LiteLLM 1.55.0 reads a body as Python first: seconds for a large one, and another meaning.
    if hasattr(proxy, "ast"):
        proxy.ast = SimpleNamespace(literal_eval=large_requests.sparing(release.loads))
    proxy.app.add_middleware(Guard, release=release, totals=totals, keys=held)
