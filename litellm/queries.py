"""Limits how long requests wait for LiteLLM's database: a little while it answers, not at all while it is away.

Prisma, LiteLLM's client of the database, is an HTTP client of a program beside it, as those of providers are. Without
this, a database that does not answer holds each request whose key or user LiteLLM looks up, for 30 seconds or more.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from answers import current

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Protocol

    from answers import Exchange

    Request = Callable[..., Awaitable[Any]]

    class Connection(Protocol):
        """What is known of the database (keys.py)."""

        away: bool

        def lost(self, problem: BaseException) -> None: ...

        async def answers(self) -> bool: ...


SECONDS = 10.0
"""How long a request waits for an answer of the database.

A replica that is short of CPU, for example just after its start on a busy machine, reads an answer late: up to 9
seconds were seen. That does not mean that the database is away.
"""
QUERIES = ("/", "/transaction/start")
"""The ends of the URLs by which Prisma asks something. Others end what was begun, or ask the program itself."""
trying: ContextVar[bool] = ContextVar("trying", default=False)
"""Whether a query is to find out if the database is back."""


def bounded(
    request: Request, connection: Connection, *, unreachable: type[Exception], silent: type[Exception]
) -> Request:
    """A method of Prisma's HTTP client that fails as if the server were unreachable, and that no exchange records.

    LiteLLM reads `unreachable` as a failure before anything was written, and writes again.
    """

    @functools.wraps(request)
    async def asked(self: object, method: str, url: str, **kwargs: Any) -> Any:
        exchange = current.get()
        before = current.set(None)
        try:
            if trying.get() or not url.endswith(QUERIES):
                return await request(self, method, url, **kwargs)
            if connection.away:
                _noted(exchange)
                raise unreachable("the database is away")
            if exchange is None:
                return await request(self, method, url, **kwargs)
            try:
                return await asyncio.wait_for(request(self, method, url, **kwargs), SECONDS)
            except TimeoutError as problem:
                connection.lost(problem)
                _noted(exchange)
                raise silent("the database did not answer in time") from None
        finally:
            current.reset(before)

    return asked


def _noted(exchange: Exchange | None) -> None:
    """Make the caller see the real reason if a refusal follows: LiteLLM would say that the key is wrong."""
    if exchange is not None:
        exchange.database_away = True


def in_time(write: Request, connection: Connection) -> Request:
    """Writes spending to the database, if that answers now. Otherwise LiteLLM keeps it for the next time.

    LiteLLM 1.108.14 forgets what it cannot write.
    """

    @functools.wraps(write)
    async def written(*args: object, **kwargs: object) -> Any:
        return await write(*args, **kwargs) if await connection.answers() else None

    return written


def install(connection: Connection) -> None:
    """Do so where this LiteLLM has such a client. Raises where it does not write as is known here."""
    if importlib.util.find_spec("prisma"):
        httpx, http = importlib.import_module("httpx"), importlib.import_module("prisma._async_http").HTTP
        http.request = bounded(http.request, connection, unreachable=httpx.ConnectError, silent=httpx.ReadTimeout)
        proxy = importlib.import_module("litellm.proxy.proxy_server")
        utils = importlib.import_module("litellm.proxy.utils")
        proxy.update_spend = in_time(proxy.update_spend, connection)
        if hasattr(utils, "update_spend_logs_job"):
            utils.update_spend_logs_job = in_time(utils.update_spend_logs_job, connection)
