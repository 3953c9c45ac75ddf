"""The organizations and their models, in the app's own database."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, class_row
from psycopg_pool import ConnectionPool, PoolTimeout

from app._deadline import is_over, within
from app._errors import DatabaseUnavailableError, OrganizationNotFoundError
from app._made_once import PerLoop, PerProcess
from app._settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import datetime
    from types import EllipsisType

    from psycopg.abc import RV, PQGen

COLUMNS = "id, name, llm_model, llm_fallback_model, created_at"
BY_ID = f"SELECT {COLUMNS} FROM organizations WHERE id = %s"  # noqa: S608 -- the columns are constant
WAIT_SECONDS = 15.0
"""How long a call waits for a connection, unless its deadline is earlier."""
CONNECT_SECONDS = 5
CLOSE_SECONDS = 0.5
"""How long closing waits for connections that are being opened; they end by themselves."""
MOST_CONNECTIONS = 4
WAKE_SECONDS = 0.1
"""How often psycopg interrupts a wait, for example to notice Ctrl-C: its own default."""


@dataclass(frozen=True, slots=True)
class Organization:
    """An organization, with its preferred model and the one that is asked once if that fails."""

    id: UUID
    name: str
    llm_model: str
    llm_fallback_model: str | None
    created_at: datetime


def get(organization_id: UUID | str) -> Organization:
    """Return one organization. Raises OrganizationNotFoundError, DatabaseUnavailableError, and ValueError."""
    key = _key(organization_id)
    return _found(_one(BY_ID, (key,)), key)


async def get_async(organization_id: UUID | str) -> Organization:
    """As `get`, for asyncio."""
    key = _key(organization_id)
    with _database_errors():
        _conninfo()
        async with (
            _async_pools.get().connection() as connection,
            connection.cursor(row_factory=class_row(Organization)) as cursor,
        ):
            await cursor.execute(BY_ID, (key,))
            found = await cursor.fetchone()
    return _found(found, key)


def create(name: str, *, model: str | None = None, fallback: str | EllipsisType | None = ...) -> Organization:
    """Add an organization; its models are the database's defaults unless given (None for no fallback).

    Raises ValueError if the name is empty or taken, or a model's name is empty, and DatabaseUnavailableError.
    """
    if not name.strip():
        raise ValueError("an organization needs a name")
    models: dict[str, str | None] = {} if model is None else {"llm_model": model}
    if fallback is not ...:
        models["llm_fallback_model"] = fallback
    _check_models(*models.values())
    columns = {"name": name, **models}
    query = (
        f"INSERT INTO organizations ({', '.join(columns)}) "  # noqa: S608 -- the columns are constant
        f"VALUES ({', '.join(['%s'] * len(columns))}) ON CONFLICT (name) DO NOTHING RETURNING {COLUMNS}"
    )
    made = _one(query, tuple(columns.values()))
    if made is None:
        raise ValueError(f"there is an organization {name!r} already")
    return made


def listed() -> list[Organization]:
    """All organizations, by name. Raises DatabaseUnavailableError."""
    return _all(f"SELECT {COLUMNS} FROM organizations ORDER BY name", ())  # noqa: S608


def set_models(organization_id: UUID | str, *, model: str, fallback: str | None) -> Organization:
    """Set the preferred model and the fallback (None for no fallback), and return the organization.

    Raises OrganizationNotFoundError, DatabaseUnavailableError, and ValueError.
    """
    key = _key(organization_id)
    _check_models(model, fallback)
    query = (
        "UPDATE organizations SET llm_model = %s, llm_fallback_model = %s "  # noqa: S608
        f"WHERE id = %s RETURNING {COLUMNS}"
    )
    return _found(_one(query, (model, fallback, key)), key)


def close() -> None:
    """Close the connections; the next call opens new ones."""
    if (pool := _pool.take()) is not None:
        pool.close(CLOSE_SECONDS)


async def close_async() -> None:
    """As `close`, for the running event loop."""
    await _async_pools.close()


def _one(query: str, parameters: tuple[object, ...]) -> Organization | None:
    return next(iter(_all(query, parameters)), None)


def _all(query: str, parameters: tuple[object, ...]) -> list[Organization]:
    _conninfo()
    with (
        _database_errors(),
        _pool.get().connection(within(WAIT_SECONDS)) as connection,
        connection.cursor(row_factory=class_row(Organization)) as cursor,
    ):
        cursor.execute(query.encode(), parameters)
        return cursor.fetchall()


@contextmanager
def _database_errors() -> Iterator[None]:
    """Raise errors that name the next step, without the database's address or a password."""
    try:
        yield
    except psycopg.errors.UndefinedTable:
        raise DatabaseUnavailableError("the database has no organizations: run `llmctl migrate up`") from None
    except (psycopg.Error, TimeoutError) as error:
        if isinstance(error, (PoolTimeout, TimeoutError)) or is_over():
            raise DatabaseUnavailableError("no answer from the database in time: check DATABASE_URL") from None
        code = error.sqlstate or type(error).__name__
        raise DatabaseUnavailableError(f"the database failed ({code}): run `llmctl doctor`") from None


def _found(organization: Organization | None, key: UUID) -> Organization:
    if organization is None:
        raise OrganizationNotFoundError(f"there is no organization {key}: `llmctl org list` lists them")
    return organization


def _check_models(*names: str | None) -> None:
    if any(name is not None and not name.strip() for name in names):
        raise ValueError("a model's name must not be empty")


def _key(organization_id: UUID | str) -> UUID:
    try:
        return organization_id if isinstance(organization_id, UUID) else UUID(organization_id)
    except (ValueError, AttributeError, TypeError):
        raise ValueError("an organization's id is a UUID, as `llmctl org list` shows") from None


class _Connection(psycopg.Connection[TupleRow]):
    """A connection whose waits all end at the deadline. After that its pool does not use it again."""

    def wait(self, gen: PQGen[RV], interval: float = WAKE_SECONDS, timeout: float | None = None) -> RV:
        return super().wait(gen, interval, within(timeout))


class _AsyncConnection(psycopg.AsyncConnection[TupleRow]):
    """As _Connection."""

    async def wait(self, gen: PQGen[RV], interval: float = WAKE_SECONDS, timeout: float | None = None) -> RV:
        return await super().wait(gen, interval, within(timeout))


_OPTIONS: dict[str, Any] = {
    "kwargs": {"autocommit": True, "connect_timeout": CONNECT_SECONDS},
    "min_size": 1,
    "max_size": MOST_CONNECTIONS,
    "timeout": WAIT_SECONDS,
    "open": False,
}


def _conninfo() -> str:
    """Read for each new connection, so that a rotated password is used."""
    return Settings.load().required_database_url()


def _open_pool() -> ConnectionPool[_Connection]:
    pool = ConnectionPool(_conninfo, connection_class=_Connection, check=ConnectionPool.check_connection, **_OPTIONS)
    pool.open()
    return pool


class _AsyncPool:
    """The connections of one event loop.

    psycopg's pool has tasks that may ignore a cancellation on Python 3.11 (whose wait_for can lose one), and then
    asyncio.run does not end. This pool has no tasks.
    """

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(MOST_CONNECTIONS)
        self._idle: list[_AsyncConnection] = []
        self._is_closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[_AsyncConnection]:
        """A working connection. Raises TimeoutError if there is none in time, and psycopg.Error."""
        async with AsyncExitStack() as held:
            async with asyncio.timeout(within(WAIT_SECONDS)):
                await held.enter_async_context(self._places)
                connection = await self._working() or await _AsyncConnection.connect(
                    _conninfo(), autocommit=True, connect_timeout=CONNECT_SECONDS
                )
            held.push_async_callback(self._put_back, connection)
            yield connection

    async def _working(self) -> _AsyncConnection | None:
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.execute("")
            except psycopg.Error:
                await connection.close()
            else:
                return connection
        return None

    async def _put_back(self, connection: _AsyncConnection) -> None:
        if self._is_closed or connection.info.transaction_status != TransactionStatus.IDLE:
            await connection.close()
        else:
            self._idle.append(connection)

    async def close(self) -> None:
        self._is_closed = True
        while self._idle:
            await self._idle.pop().close()


_pool = PerProcess(_open_pool)
_async_pools = PerLoop(_AsyncPool, _AsyncPool.close)
