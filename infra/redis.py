"""Redis, in which all replicas count together: each key's requests and tokens a minute.

It stores nothing: its counters last for a minute, and spending is in LiteLLM's database. While it is away, each
replica counts by itself, as it does without Redis.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pulumi

from console.redis_check import FOLDER, PASSWORD, command
from infra.problem import Problem
from infra.secrets import RotatingSecret
from infra.workload import LIVE, HealthCheck, LiveFilesArgs, Placement, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.settings import Settings

PORT = 6379
NETWORK_NAME = "redis"
USER_ID = 999
"""The id of the users `valkey` and `redis` in the official images."""
PASSWORD_VARIABLE = "LLM_GATEWAY_REDIS_PASSWORD"  # noqa: S105 -- its name
ADDRESS_VARIABLE = "LLM_GATEWAY_REDIS"
"""The name under which litellm/counters.py finds it."""
CONFIG = "/usr/local/etc/redis.conf"
USERS = "users.acl"
SECONDS = 1.0
"""How long LiteLLM waits for an answer: counters must not delay a request."""
BREAKER = {
    "REDIS_CIRCUIT_BREAKER_FAILURE_THRESHOLD": "2",
    "REDIS_CIRCUIT_BREAKER_RECOVERY_TIMEOUT": "2",
    "REDIS_CIRCUIT_BREAKER_TIMEOUT_MIN_DURATION": "1",
    "REDIS_CONNECTION_POOL_TIMEOUT": "1",
}
"""When LiteLLM 1.108.14 stops asking a Redis that does not answer, and when it asks again. Callers would notice its
own values: 5 seconds per answer, and 60 until it asks again."""
SERVER = '"$(command -v valkey-server || command -v redis-server)"'
RIGHTS = "~* &* +@all -@admin -@dangerous +info +acl|load"
OF_REDIS = re.compile(r"REDIS_\w+")
OWN = {
    "generalSettings": {
        "coordination_redis": "is the stack's own: redis gives LiteLLM one",
        "use_redis_transaction_buffer": "would keep spending in Redis, which forgets it when it restarts",
    },
    "litellmSettings": {"enable_redis_auth_cache": "would have keys in Redis, and a request wait while it is away"},
}
"""LiteLLM's settings that are refused together with Redis, and why."""


def host(placement: Placement) -> str:
    """The name under which replicas find Redis."""
    return placement.host_name(NETWORK_NAME)


def general_settings(settings: Settings, redis_host: str) -> dict[str, object]:
    """The setting that makes LiteLLM 1.108.14 count in Redis. It caches no answers. 1.55.0 ignores it."""
    if not settings.redis:
        return {}
    return {
        "coordination_redis": {
            "host": redis_host,
            "port": PORT,
            "password": f"os.environ/{PASSWORD_VARIABLE}",
            "socket_timeout": SECONDS,
            "socket_connect_timeout": SECONDS,
        }
    }


def environment(settings: Settings, placement: Placement) -> dict[str, str]:
    """The replicas' environment variables for Redis, except the password."""
    return {ADDRESS_VARIABLE: f"{host(placement)}:{PORT}", **BREAKER} if settings.redis else {}


def problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What does not go together with Redis; `values` has the valid fields of the stack config."""
    if not values.get("redis"):
        for numbers, least in (("secretVersions", 1), ("retirePrevious", 0)):
            given = values.get("secret_versions" if numbers == "secretVersions" else "retire_previous")
            if getattr(given, "redis_password", least) > least:
                key = f"{numbers}.redisPassword"
                yield Problem(key, "has no effect without redis", f"rm --path {key}")
        return
    if not values.get("litellm_database", True):
        what = "has no effect without litellmDatabase: only keys there have limits that replicas could count together"
        yield Problem("redis", what, "set litellmDatabase true")
    for section, refused in OWN.items():
        given = values.get("general_settings" if section == "generalSettings" else "litellm_settings", {})
        for name in refused.keys() & given.keys():
            place = f"{section}.{name}"
            yield Problem(place, f"cannot be set beside redis: it {refused[name]}", f"rm --path {place}")
    for name in values.get("litellm_environment", {}):
        if OF_REDIS.fullmatch(name):
            place = f"litellmEnvironment.{name}"
            what = "cannot be set beside redis: LiteLLM would use that server instead of the stack's"
            yield Problem(place, what, f"rm --path {place}")


@dataclass(frozen=True, kw_only=True)
class RedisArgs:
    """What Redis runs with."""

    image: str
    memory_mb: int
    version: int
    """The version of the password, from secretVersions."""
    retire: int
    """The number for the previous password, from retirePrevious."""
    network: str


class Redis(pulumi.ComponentResource):
    """Redis or Valkey, without a disk.

    Creates: the workload `redis`, `RotatingSecret`. Type token: `llm-infrastructure:redis:Redis`.
    """

    password: pulumi.Output[str]

    def __init__(
        self, name: str, args: RedisArgs, placement: Placement, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("llm-infrastructure:redis:Redis", name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        password = RotatingSecret(
            f"{name}-password", kind="password", version=args.version, retire=args.retire, opts=child
        )
        self.password = password.value
        placement.run(
            Workload(
                name=name,
                image=args.image,
                entrypoint=("sh", "-c", f"exec {SERVER} {CONFIG}"),
                files={CONFIG: config(args.memory_mb)},
                # It accepts the new password before the replicas have it, and the previous one until all of them have
                # the new one. On a Swarm each of these changes restarts it.
                live=LiveFilesArgs(
                    files={},
                    secrets={
                        USERS: pulumi.Output.all(password.value, password.previous).apply(lambda it: users(*it)),
                        PASSWORD: password.value,
                    },
                    check=("test", "-s", USERS),
                    reload=("sh", "-c", command(f"{LIVE}/old", "acl load")),
                ),
                health=HealthCheck(command=("sh", "-c", command(FOLDER, "ping"))),
                user=f"{USER_ID}:{USER_ID}",
                file_owner=USER_ID,
                memory_mb=args.memory_mb,
                networks={args.network: NETWORK_NAME},
            ),
            opts=child,
        )
        self.register_outputs({})


def build(settings: Settings, placement: Placement, network: str) -> Redis | None:
    """The Redis of these settings; None if they have none."""
    if not settings.redis:
        return None
    args = RedisArgs(
        image=settings.redis_image,
        memory_mb=settings.redis_memory_mb,
        version=settings.secret_versions.redis_password,
        retire=settings.retire_previous.redis_password,
        network=network,
    )
    return Redis("redis", args, placement)


def config(memory_mb: int) -> str:
    """The server's config, in which there is no secret.

    Half of the memory is for data: connections and fragments need the rest. When it is full, what was used longest
    ago goes, so that a counter in use stays and no write is refused.
    """
    return (
        f"port {PORT}\naclfile {FOLDER}/{USERS}\n"
        f"maxmemory {memory_mb // 2}mb\nmaxmemory-policy allkeys-lru\n"
        'save ""\nappendonly no\ndir /tmp\ntcp-keepalive 60\nmaxclients 1000\n'
    )


def users(password: str, previous: str) -> str:
    """Redis' file of users: one user, with the hashes of its password and of the previous one while that is valid."""
    hashes = [f"#{hashlib.sha256(it.encode()).hexdigest()}" for it in (password, previous) if it]
    return f"user default on {' '.join(hashes)} {RIGHTS}\n"
