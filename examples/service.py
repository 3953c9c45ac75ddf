"""A web service that asks each organization's own model: `.venv/bin/uvicorn examples.service:api`.

curl -N localhost:8000/organizations/ID/chat/stream --json '{"messages": [{"role": "user", "content": "hello"}]}'

ID as `llmctl org list` shows it; settings as for `app`. Who may call it is for your own authentication to say.
"""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, StringConstraints
from starlette.types import Receive, Scope, Send

import app
from app import aio

OPTIONS = app.ChatCompletionOptions(timeout=60)
ANSWERS: dict[type[app.LLMError], tuple[int, str]] = {
    app.OrganizationNotFoundError: (404, "there is no such organization"),
    app.ContextTooLongError: (413, "the messages are longer than the model takes"),
    app.ContentRefusedError: (422, "the model's provider refused the content"),
    app.RequestRejectedError: (422, "the model does not take such a request"),
    app.RateLimitedError: (429, "too many requests: try again later"),
    app.RequestError: (502, "the model failed"),
    app.FallbackFailedError: (502, "the model and its fallback failed"),
    app.StreamInterruptedError: (502, "the answer broke off"),
    app.GatewayUnreachableError: (503, "no model can be asked now: try again later"),
    app.DatabaseUnavailableError: (503, "organizations cannot be read now: try again later"),
    app.TimedOutError: (504, "the model did not answer in time"),
    app.LLMError: (500, "the service is not set up properly"),
}
"""What callers are told. The errors' own messages are for operators: they name models, addresses and settings."""

log = logging.getLogger(__name__)


class Chat(BaseModel):
    """A conversation, to be answered."""

    messages: Annotated[list[app.ChatMessage], Field(min_length=1)]


class Embedding(BaseModel):
    """A text, to be made a vector."""

    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Refuse to start without settings; close the connections to gateway and database at the end."""
    settings = app.Settings.load()
    settings.required_api_key()
    settings.required_database_url()
    yield
    await aio.close()


api = FastAPI(title="Chats of organizations", lifespan=lifespan)


@api.exception_handler(app.LLMError)
async def failed(_: Request, error: app.LLMError) -> JSONResponse:
    """Answer with the error's status and none of its details, which are logged."""
    return JSONResponse(told(error), answer_to(error)[0])


@api.post("/organizations/{organization_id}/chat")
async def chat(organization_id: UUID, asked: Chat) -> app.ChatCompletionResult:
    """Answer by the organization's model, or once by its fallback."""
    return await aio.chat_completion_for_org(organization_id, asked.messages, OPTIONS)


@api.post("/organizations/{organization_id}/chat/stream")
async def stream_chat(organization_id: UUID, asked: Chat) -> StreamingResponse:
    """Answer as it comes, by server-sent events: `text` for each piece, then `done`, or `error`."""
    # Waits for the first piece, so that what fails before it has a status of its own.
    stream = await aio.stream_chat_completion_for_org(organization_id, asked.messages, OPTIONS)
    return EventStream(stream)


@api.post("/embeddings")
async def embed(asked: Embedding) -> app.EmbeddingResult:
    """Make a text a vector."""
    return await aio.generate_embedding(asked.text)


class EventStream(StreamingResponse):
    """An answer as server-sent events; the request to the model ends when the caller goes away, however early."""

    def __init__(self, stream: aio.ChatCompletionStream) -> None:
        super().__init__(events(stream), media_type="text/event-stream", headers={"cache-control": "no-store"})
        self.stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not in `events`, which never runs if the caller leaves before the first piece is sent.
        async with self.stream:
            await super().__call__(scope, receive, send)


async def events(stream: aio.ChatCompletionStream) -> AsyncIterator[str]:
    """The pieces of an answer, and how it ended."""
    try:
        async for text in stream:
            yield event("text", text)
        yield event("done", {"model": stream.result.model, "used_fallback": stream.result.used_fallback})
    except app.LLMError as error:
        yield event("error", told(error))


def event(name: str, data: object) -> str:
    """A server-sent event; JSON keeps line breaks out of it."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def answer_to(error: app.LLMError) -> tuple[int, str]:
    """The status and the words for an error: those of its own class, or of the nearest that has some."""
    return next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)


def told(error: app.LLMError) -> dict[str, str | None]:
    """What the caller is told about an error; `request_id` finds it in the gateway's log."""
    log.warning("%s: %s", type(error).__name__, error)
    return {"detail": answer_to(error)[1], "request_id": getattr(error, "request_id", None)}
