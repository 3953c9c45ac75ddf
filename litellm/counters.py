"""Counts the requests and tokens a minute of LiteLLM's keys over all replicas, in Redis.

For a LiteLLM that cannot, as 1.55.0: with Redis it reads a counter, adds to it in its own memory and writes that, so
each replica overwrites what the others have counted. Newer ones count there by themselves
(`general_settings.coordination_redis`), and are left alone.

A request is counted when it is accepted, its tokens when it ends. LiteLLM's own counters, one set per replica, stay
in use: they apply while Redis is away.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from collections import OrderedDict
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LOG = logging.getLogger("litellm.counters")

ADDRESS, PASSWORD = "LLM_GATEWAY_REDIS", "LLM_GATEWAY_REDIS_PASSWORD"
SECONDS = 1.0
"""How long a request waits for Redis at most. After that it is away, and no request waits."""
RETRY_SECONDS = 1.0
"""How often a Redis that is away is tried."""
KEPT_SECONDS = 120
"""How long a minute's counters are kept, with a margin for a clock that is set back."""
MOST = 10_000
"""How many token limits and answers are remembered: the most recently used."""
NO_LIMIT = -1
ADMIT = f"""
local now = tonumber(redis.call('TIME')[1])
local minute = math.floor(now / 60)
local function used(kind, scope)
    return tonumber(redis.call('GET', kind .. scope .. ':' .. minute) or 0)
end
for i, scope in ipairs(KEYS) do
    local rpm, tpm = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
    if (rpm >= 0 and used('requests:', scope) >= rpm) or (tpm >= 0 and used('tokens:', scope) >= tpm) then
        return 60 - now % 60
    end
end
for i, scope in ipairs(KEYS) do
    local key = 'requests:' .. scope .. ':' .. minute
    redis.call('INCR', key)
    redis.call('EXPIRE', key, {KEPT_SECONDS})
end
return 0
"""
"""Count a request for each scope and return 0; or, if one of them is used up, the seconds until the next minute."""
ADD = f"""
local minute = math.floor(tonumber(redis.call('TIME')[1]) / 60)
for _, scope in ipairs(KEYS) do
    local key = 'tokens:' .. scope .. ':' .. minute
    redis.call('INCRBY', key, ARGV[1])
    redis.call('EXPIRE', key, {KEPT_SECONDS})
end
"""
"""Count tokens for each scope."""


class Store(Protocol):
    """Redis, as far as it is used here."""

    async def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> Any:
        """Run a script. Raises what it likes."""

    async def ping(self) -> Any:
        """Raise unless it answers."""


@dataclass(frozen=True)
class Limit:
    """The limits of a key, a user, a team or an end user, per minute; NO_LIMIT for no limit."""

    scope: str
    rpm: int
    tpm: int


class Counters:
    """The counters of all replicas, as long as Redis answers."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.away = False
        self.trying: asyncio.Task[None] | None = None
        self.by_tokens: OrderedDict[str, None] = OrderedDict()
        """The scopes with a token limit: tokens are counted only for these."""
        self.ended: OrderedDict[str, None] = OrderedDict()
        """The ids of answers whose tokens have been counted: LiteLLM 1.55.0 may report one answer twice."""

    async def admit(self, limits: Sequence[Limit]) -> int:
        """Count a request. Return 0, or the seconds until the next minute if a limit is used up."""
        for limit in limits:
            if limit.tpm != NO_LIMIT:
                _remember(self.by_tokens, limit.scope)
        numbers = [number for limit in limits for number in (limit.rpm, limit.tpm)]
        return int(await self._run(ADMIT, [limit.scope for limit in limits], numbers) or 0)

    async def add(self, call: str, scopes: Sequence[str], tokens: int) -> None:
        """Count the tokens of a request that has ended; `call` is its id."""
        if call in self.ended:
            return
        _remember(self.ended, call)
        await self._run(ADD, [scope for scope in scopes if scope in self.by_tokens], [tokens])

    async def _run(self, script: str, scopes: Sequence[str], numbers: Sequence[int]) -> Any:
        """What a script returns; None if nothing is to be counted, or Redis is away."""
        if self.away or not scopes:
            return None
        try:
            async with asyncio.timeout(SECONDS):
                return await self.store.eval(script, len(scopes), *scopes, *numbers)
        except Exception as problem:  # noqa: BLE001 -- whatever it is, a request does not fail for it
            self.lost(problem)
            return None

    def lost(self, problem: BaseException) -> None:
        """Note that Redis does not answer, and wait for it."""
        if self.away:
            return
        self.away = True
        what = f"{type(problem).__name__}: {problem}".rstrip(": ")
        LOG.warning("Redis is away (%s). This replica counts requests and tokens by itself.", what)
        self.trying = asyncio.create_task(self._try())

    async def _try(self) -> None:
        while self.away:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                async with asyncio.timeout(SECONDS):
                    await self.store.ping()
            except Exception:  # noqa: BLE001, S112 -- as above
                continue
            self.away = False
            LOG.warning("Redis answers again. The replicas count together.")


def _remember(names: OrderedDict[str, None], name: str) -> None:
    names[name] = None
    names.move_to_end(name)
    while len(names) > MOST:
        names.popitem(last=False)


def limits_of(holder: Any, model: str | None) -> Iterator[Limit]:
    """The limits that hold for a request; `holder` is what LiteLLM knows of its key."""
    metadata: Mapping[str, Any] = holder.metadata or {}
    of_model = [(metadata.get(f"model_{each}_limit") or {}).get(model) for each in ("rpm", "tpm")]
    found = (
        (f"key:{holder.api_key}", holder.rpm_limit, holder.tpm_limit),
        (f"key:{holder.api_key}:{model}", *of_model),
        (f"user:{holder.user_id}", holder.user_rpm_limit, holder.user_tpm_limit),
        (f"team:{holder.team_id}", holder.team_rpm_limit, holder.team_tpm_limit),
        (
            f"end-user:{holder.end_user_id}",
            getattr(holder, "end_user_rpm_limit", None),
            getattr(holder, "end_user_tpm_limit", None),
        ),
    )
    for scope, rpm, tpm in found:
        if rpm is not None or tpm is not None:
            yield Limit(scope, *(NO_LIMIT if number is None else int(number) for number in (rpm, tpm)))


def scopes_of(kwargs: Mapping[str, Any]) -> list[str]:
    """The scopes for which a finished request counts; `kwargs` is what LiteLLM passes to its callbacks."""
    metadata = (kwargs.get("litellm_params") or {}).get("metadata") or {}
    key = metadata.get("user_api_key")
    return [
        f"key:{key}",
        f"key:{key}:{metadata.get('model_group')}",
        f"user:{metadata.get('user_api_key_user_id')}",
        f"team:{metadata.get('user_api_key_team_id')}",
        f"end-user:{kwargs.get('user')}",
    ]


def tokens_of(response: Any) -> int:
    """The tokens of an answer; 0 where it tells none."""
    usage = response.get("usage") if isinstance(response, dict) else getattr(response, "usage", None)
    total = usage.get("total_tokens") if isinstance(usage, dict) else getattr(usage, "total_tokens", None)
    return int(total or 0)


def install() -> Counters | None:
    """Make this LiteLLM count in Redis; None if there is no Redis, or LiteLLM counts there by itself."""
    address = os.environ.get(ADDRESS)
    if not address:
        return None
    proxy = importlib.import_module("litellm.proxy.proxy_server")
    if hasattr(proxy.ProxyConfig, "_init_coordination_redis"):
        return None
    counters = Counters(_client(address, os.environ.get(PASSWORD, "")))
    exceptions = importlib.import_module("fastapi")

    class Limits(importlib.import_module("litellm.integrations.custom_logger").CustomLogger):  # type: ignore[misc]
        async def async_pre_call_hook(self, user_api_key_dict: Any, data: Any, **_: Any) -> None:
            seconds = await counters.admit([*limits_of(user_api_key_dict, (data or {}).get("model"))])
            if seconds:
                raise exceptions.HTTPException(
                    status_code=HTTPStatus.TOO_MANY_REQUESTS,
                    detail="Max parallel request limit reached",  # LiteLLM's words, by which its own counters know it
                    headers={"retry-after": str(seconds)},
                )

        async def async_log_success_event(
            self, kwargs: dict[str, Any], response_obj: Any, *_: Any, **__: Any
        ) -> None:
            await counters.add(str(kwargs.get("litellm_call_id")), scopes_of(kwargs), tokens_of(response_obj))

    importlib.import_module("litellm").callbacks.append(Limits())
    return counters


def _client(address: str, password: str) -> Store:
    """A client that tries again once, on a new connection. Whatever is tried after that is tried by `Counters`."""
    asynchronous, retry = importlib.import_module("redis.asyncio"), importlib.import_module("redis.asyncio.retry")
    host, _, port = address.partition(":")
    client: Store = asynchronous.Redis(
        host=host,
        port=int(port),
        password=password,
        socket_timeout=SECONDS,
        socket_connect_timeout=SECONDS,
        retry=retry.Retry(importlib.import_module("redis.backoff").NoBackoff(), 1),
    )
    return client
