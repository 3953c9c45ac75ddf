"""Finds whose key a request has, if LiteLLM has its database.

The edge names the static clients (`clientKeys` of the stack config) and passes on other keys that begin like
LiteLLM's: virtual keys. Each static client has a virtual key too, which nobody knows: its spending and its limits
count for that key. A key is looked up before the request's body is read, and again every few seconds. LiteLLM alone
would use what it remembers about a key for as long as the key is used.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import importlib
import logging
import os
import re
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import limits
import queries
from answers import Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from answers import Exchange

LOG = logging.getLogger("litellm.keys")

FRESH_SECONDS = 10.0
"""How long a read of a key is valid: after that time, every replica knows that a key was deleted, blocked or
changed."""
RETRY_SECONDS = 2.0
"""How often a database that is away is tried."""
MOST = 10_000
"""How many keys are remembered: the most recently used."""
UNSEEN_AT_ONCE = 2
"""Unknown keys that a replica looks up at once: fewer than its pool has connections, as anyone can make keys up."""
OPEN = re.compile(r"/health/(liveliness|readiness)")
"""Needs no key."""
MODELS = "/v1/models"
MODEL = re.compile(rf"{MODELS}/(.+)", re.DOTALL)
NOBODY = "0" * 64
"""The hash of no key."""
BEARER = re.compile(rb"[Bb]earer +")
UNPRINTABLE = re.compile(r"[^\w.@:/ -]", re.ASCII)


class AwayError(Exception):
    """The database does not answer."""


class Database(Protocol):
    """What is asked of LiteLLM."""

    def connected(self) -> bool:
        """Whether this LiteLLM has a database."""

    async def row(self, token: str) -> Any:
        """The database's row of a key, by the key's hash; None for an unknown one. May raise anything."""

    async def add(self, token: str, alias: str) -> None:
        """Add a key without limits, unless it is there."""

    async def cached(self, token: str) -> Any:
        """What LiteLLM remembers of a key; None where it would ask the database."""

    async def cache(self, token: str, row: Any, alias: str) -> None:
        """Have LiteLLM remember a key: as it was read last, or one without limits."""

    async def remember(self, token: str) -> None:
        """Have LiteLLM read and remember a key, by its own code. Raises what it likes."""

    def forget(self, token: str) -> None:
        """Have LiteLLM ask the database for a key."""


@dataclass
class Known:
    """What was read of a key."""

    row: Any
    read: float
    """When, by the monotonic clock."""


class Keys:
    """Whose key each request comes with."""

    def __init__(self, database: Database, *, master_key: str, salt_key: str) -> None:
        self.database, self.master_key, self.salt_key = database, master_key, salt_key
        self.known: OrderedDict[str, Known] = OrderedDict()
        """What was read about each key, also that it does not exist; the latter is forgotten when it is no longer
        fresh."""
        self.reading: dict[str, asyncio.Task[Any]] = {}
        self.unseen = asyncio.Semaphore(UNSEEN_AT_ONCE)
        self.away = False
        self.added_later: dict[str, str] = {}
        """Static clients that were first seen while the database was away, by their keys' hashes."""
        self.trying: asyncio.Task[None] | None = None

    async def admit(self, scope: dict[str, Any], exchange: Exchange) -> None:
        """Show LiteLLM the key for which the request counts. Raises Refusal for an unknown key."""
        if not self.database.connected():
            return
        key = BEARER.sub(b"", dict(scope["headers"]).get(b"authorization", b""), count=1).decode("latin-1")
        is_master = hmac.compare_digest(key.encode(), self.master_key.encode())
        if exchange.call_id is None:  # from inside the container: the edge's check, or an operator
            exchange.operator = is_master
        elif exchange.client is not None:
            if is_master:
                own = self.key_of(exchange.client)
                scope["headers"] = [it for it in scope["headers"] if it[0] != b"authorization"]
                scope["headers"].append((b"authorization", f"Bearer {own}".encode()))
                exchange.database_away = not await self._admit_client(hash_of(own), exchange.client)
                exchange.keyed = True
        elif not OPEN.fullmatch(scope["path"]):
            if is_master or not key.startswith("sk-"):
                raise refusal(limits.unknown_key())
            exchange.client = await self._alias(key)
            exchange.named = True
            exchange.keyed, exchange.database_away = True, self.away
            if scope["method"] == "GET" and (model := MODEL.fullmatch(scope["path"])):
                # For a static client, the edge answers this. LiteLLM 1.55.0 can only list all models.
                exchange.one, scope["path"], scope["raw_path"] = model[1], MODELS, MODELS.encode()

    def key_of(self, client: str) -> str:
        """The virtual key of a static client."""
        return key_of(client, self.salt_key)

    async def _admit_client(self, token: str, client: str) -> bool:
        """Have LiteLLM know a static client, and return whether the database answers."""
        try:
            row = await self._row(token)
            if row is None:
                await self._ask(self.database.add(token, client))
                self.known.pop(token, None)
                row = await self._row(token)
        except AwayError:
            known = self.known.get(token)
            row = known.row if known else None
            if row is None:
                self.added_later[token] = client
            elif not usable(row):
                raise refusal(limits.unknown_key()) from None
            if await self.database.cached(token) is None:
                await self.database.cache(token, row, client)
            return False
        if not usable(row):
            raise refusal(limits.unknown_key())
        return True

    async def _alias(self, key: str) -> str:
        """The name of a virtual key, for the logs and the lines of usage."""
        token = hash_of(key)
        try:
            row = await self._row(token)
        except AwayError:
            row = await self.database.cached(token)
            if row is None:
                raise refusal(limits.away()) from None
        if not usable(row) or key == self.key_of(row.key_alias or ""):
            raise refusal(limits.unknown_key())
        return UNPRINTABLE.sub("?", row.key_alias or "")[:64] or f"key-{token[:8]}"

    async def _row(self, token: str) -> Any:
        """The database's row of a key, as it is or was some seconds ago. Raises AwayError.

        However many requests come with a key, one query is made for it.
        """
        known = self.known.get(token)
        if known and time.monotonic() - known.read < FRESH_SECONDS and await self._is_remembered(token, known.row):
            self.known.move_to_end(token)
            return known.row
        if self.away:
            raise AwayError
        reading = self.reading.get(token)
        if reading is None:
            reading = self.reading[token] = asyncio.create_task(self._read(token, known.row if known else None))
            reading.add_done_callback(lambda done: (self.reading.pop(token), done.cancelled() or done.exception()))
        return await asyncio.shield(reading)

    async def _read(self, token: str, before: Any) -> Any:
        """Look a key up. A key that was never seen waits for other new keys; known keys never wait for it."""
        if before is None:
            row = await self._ask_in_turn(token)
        else:
            row = await self._ask(self.database.row(token))
        if not usable(row):
            self.database.forget(token)
        elif before is None or await self._changed(token, before, row):
            remembered = await self.database.cached(token)
            self.database.forget(token)
            try:
                await self._ask(self.database.remember(token))
            except AwayError:
                if remembered is not None:
                    await self.database.cache(token, remembered, "")
                raise
        self.known[token] = Known(row, time.monotonic())
        self.known.move_to_end(token)
        while len(self.known) > MOST:
            self.known.popitem(last=False)
        return row

    async def _is_remembered(self, token: str, row: Any) -> bool:
        """Whether LiteLLM need not ask the database for a key: if that is away, LiteLLM calls the key wrong."""
        return not usable(row) or await self.database.cached(token) is not None

    async def _ask_in_turn(self, token: str) -> Any:
        try:
            async with asyncio.timeout(queries.SECONDS):
                await self.unseen.acquire()
        except TimeoutError:
            raise AwayError from None
        try:
            if self.away:  # since it began to wait
                raise AwayError
            return await self._ask(self.database.row(token))
        finally:
            self.unseen.release()

    async def _changed(self, token: str, before: Any, now: Any) -> bool:
        """Whether LiteLLM must read a key again.

        Not if it only knows of more spending than the database: it writes that some seconds later.
        """
        cached = await self.database.cached(token)
        more = cached is not None and (now.spend or 0) <= (cached.spend or 0)
        return terms(before) != terms(now) or not more or (now.spend or 0) < (before.spend or 0)

    async def _ask(self, question: Awaitable[Any]) -> Any:
        """What the database answers. Raises AwayError; that it is away is noted if it answers no other question."""
        try:
            return await asyncio.wait_for(question, queries.SECONDS)
        except Exception as problem:  # noqa: BLE001 -- whatever it is, the key is neither known nor unknown
            try:
                await asyncio.wait_for(self.database.row(NOBODY), queries.SECONDS)
            except Exception:  # noqa: BLE001 -- as above
                self.lost(problem)
            else:
                LOG.warning("LiteLLM's database answers, but not about one key (%s).", type(problem).__name__)
            raise AwayError from None

    async def answers(self) -> bool:
        """Whether the database answers now."""
        if not self.away:
            with suppress(AwayError):
                await self._ask(self.database.row(NOBODY))
        return not self.away

    def lost(self, problem: BaseException) -> None:
        """Note that the database does not answer, and wait for it."""
        if self.away:
            return
        self.away = True
        LOG.warning(
            "LiteLLM's database is away (%s). Static clients are served without limits that are not known here, "
            "virtual keys while LiteLLM remembers them.",
            type(problem).__name__,
        )
        self.trying = asyncio.create_task(self._try())

    async def _try(self) -> None:
        queries.trying.set(True)
        while self.away:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                await asyncio.wait_for(self.database.row(NOBODY), queries.SECONDS)
                for token, client in self.added_later.items():  # before LiteLLM writes what they spent
                    await asyncio.wait_for(self.database.add(token, client), queries.SECONDS)
            except Exception:  # noqa: BLE001, S112 -- as above
                continue
            self.added_later.clear()
            self.known.clear()  # so that LiteLLM reads each again that it remembered without it
            self.away = False
            LOG.warning("LiteLLM's database answers again")


def terms(row: Any) -> dict[str, Any]:
    """What a key may do, without what it has spent."""
    return {
        name: value
        for name, value in row.model_dump().items()
        if "spend" not in name and name not in {"last_refreshed_at", "updated_at"}
    }


def usable(row: Any) -> bool:
    """Whether a key is there, not blocked and not expired."""
    if row is None or row.blocked is True:
        return False
    expires = row.expires
    if isinstance(expires, str):
        expires = datetime.fromisoformat(expires)
    if expires is not None and expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    return expires is None or expires > datetime.now(UTC)


def key_of(client: str, salt_key: str) -> str:
    """The virtual key of a static client: the same on each replica, and after each rotation of a key."""
    digest = hmac.new(salt_key.encode(), f"llm-gateway client {client}".encode(), hashlib.sha256)
    return f"sk-{digest.hexdigest()}"


def hash_of(key: str) -> str:
    """The name of a key in LiteLLM's database."""
    return hashlib.sha256(key.encode()).hexdigest()


def refusal(of: Mapping[str, Any]) -> Refusal:
    """A refusal before LiteLLM has seen the request."""
    return Refusal(of["message"], code=of["code"], status=of["status"])


class LiteLLM:
    """LiteLLM's database, and what it remembers of it."""

    def __init__(self) -> None:
        self.proxy = importlib.import_module("litellm.proxy.proxy_server")
        self.auth = importlib.import_module("litellm.proxy.auth.auth_checks")
        self.types = importlib.import_module("litellm.proxy._types")
        _ = self.auth.get_key_object, self.auth._cache_key_object, self.types.UserAPIKeyAuth  # noqa: SLF001

    def connected(self) -> bool:
        return self.proxy.prisma_client is not None

    async def row(self, token: str) -> Any:
        return await self.proxy.prisma_client.get_data(token=token, table_name="combined_view")

    async def add(self, token: str, alias: str) -> None:
        data = {"create": {"token": token, "key_alias": alias, "models": []}, "update": {}}
        await self.proxy.prisma_client.db.litellm_verificationtoken.upsert(where={"token": token}, data=data)

    async def cached(self, token: str) -> Any:
        try:
            return await self._read(token, check_cache_only=True)
        except Exception:  # noqa: BLE001 -- LiteLLM's way to say that it does not
            return None

    async def remember(self, token: str) -> None:
        await self._read(token)

    async def _read(self, token: str, **how: bool) -> Any:
        return await self.auth.get_key_object(
            hashed_token=token,
            prisma_client=self.proxy.prisma_client,
            user_api_key_cache=self.proxy.user_api_key_cache,
            proxy_logging_obj=self.proxy.proxy_logging_obj,
            **how,
        )

    async def cache(self, token: str, row: Any, alias: str) -> None:
        fields = {"key_alias": alias} if row is None else row.model_dump(exclude_none=True)
        await self.auth._cache_key_object(  # noqa: SLF001
            hashed_token=token,
            user_api_key_obj=self.types.UserAPIKeyAuth(**{**fields, "token": token}),
            user_api_key_cache=self.proxy.user_api_key_cache,
            proxy_logging_obj=self.proxy.proxy_logging_obj,
        )

    def forget(self, token: str) -> None:
        self.proxy.user_api_key_cache.delete_cache(key=token)


def install() -> Keys | None:
    """The keys of the LiteLLM that runs; None where it has no database.

    Raises if LiteLLM is not as expected here, so that it does not start.
    """
    if not os.environ.get("DATABASE_URL"):
        return None
    held = Keys(
        LiteLLM(),
        master_key=os.environ.get("LITELLM_MASTER_KEY", ""),
        salt_key=os.environ.get("LITELLM_SALT_KEY", ""),
    )
    queries.install(held)
    return held
