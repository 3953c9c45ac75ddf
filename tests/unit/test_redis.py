"""Redis, in which all replicas count: what the stack config may say, what runs, and what a replica does with it."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from console import containers, redis_check
from infra import client_limits, redis
from infra.stack_config import validate
from tests.stack_config import PROJECT, raw_config
from tests.unit import test_litellm_database
from tests.unit.conftest import SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infra.settings import Settings
    from tests.unit.test_litellm_database import Recorder

registered, plain = test_litellm_database.registered, test_litellm_database.plain
files_of = test_litellm_database.files_of
ON = {"redis": "true", "litellmDatabase": "true"}
SECONDS = 60


def problems(**changes: object) -> dict[str, tuple[str, str]]:
    """What is wrong with a stack config that has Redis, with the command that fixes it, by key."""
    values = {**ON, **changes}
    _, found = validate(raw_config("staging", demo="true", protectData="false", **values), SECRET & values.keys())
    return {each.key: (each.what, each.command) for each in found}


def test_two_switches_are_enough() -> None:
    """Also where there is one replica now."""
    assert problems() == {}
    assert problems(replicas="1") == {}


@pytest.mark.parametrize(
    ("changes", "key", "what", "command"),
    [
        ({"litellmDatabase": "false"}, "redis", "no effect without litellmDatabase", "set litellmDatabase true"),
        (
            {"redisImage": "registry.example:5000/redis:6.2-bookworm"},
            "redisImage",
            "is older than Redis 7",
            "set redisImage valkey/valkey:8.1",
        ),
        (
            {"generalSettings": {"coordination_redis": {"host": "elsewhere"}}},
            "generalSettings.coordination_redis",
            "is the stack's own",
            "rm --path generalSettings.coordination_redis",
        ),
        (
            {"generalSettings": {"use_redis_transaction_buffer": True}},
            "generalSettings.use_redis_transaction_buffer",
            "forgets it",
            "rm --path generalSettings.use_redis_transaction_buffer",
        ),
        (
            {"litellmSettings": {"enable_redis_auth_cache": True}},
            "litellmSettings.enable_redis_auth_cache",
            "would have keys in Redis",
            "rm --path litellmSettings.enable_redis_auth_cache",
        ),
        (
            {"litellmEnvironment": {"REDIS_URL": "redis://elsewhere"}},
            "litellmEnvironment.REDIS_URL",
            "instead of the stack's",
            "rm --path litellmEnvironment.REDIS_URL",
        ),
        (
            {"redis": "false", "secretVersions": {"redisPassword": 2}},
            "secretVersions.redisPassword",
            "no effect without redis",
            "rm --path secretVersions.redisPassword",
        ),
        (
            {"redis": "false", "retirePrevious": {"redisPassword": 1}},
            "retirePrevious.redisPassword",
            "no effect without redis",
            "rm --path retirePrevious.redisPassword",
        ),
        ({"redisImage": "valkey/valkey:latest"}, "redisImage", "is not pinned", "set redisImage valkey/valkey:8.1"),
        ({"redisMemoryMb": "1"}, "redisMemoryMb", "greater", "set redisMemoryMb 128"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_command_that_fixes_it(
    changes: dict[str, object], key: str, what: str, command: str
) -> None:
    found = problems(**changes)
    assert what in found[key][0]
    assert command in found[key][1]


def test_a_cache_beside_it_has_a_redis_of_its_own_by_cache_params() -> None:
    """Variables for it are refused, so none are advised."""
    what, command = problems(litellmSettings={"cache": True})["litellmSettings.cache"]
    assert "a host in cache_params" in what
    assert command == "set --path litellmSettings.cache_params.host HOST"
    assert problems(litellmSettings={"cache": True, "cache_params": {"host": "cache.example"}}) == {}


def test_a_stack_has_none_unless_it_asks_for_one(registered: Callable[..., Recorder]) -> None:
    """Its replicas do not differ in anything either."""
    recorder = registered(litellmDatabase="true")
    assert "redis" not in recorder.containers()
    container = plain(recorder.containers()["litellm-1"])
    assert "REDIS" not in str(container["envs"])
    files = files_of(container)
    assert "redis" not in files["/app/config.yaml"]
    assert f"/run/secrets/{redis.PASSWORD_VARIABLE}" not in files


def test_it_runs_confined_without_a_port_and_with_a_bound(registered: Callable[..., Recorder]) -> None:
    recorder = registered(**ON, redisMemoryMb="256")
    container = plain(recorder.containers()["redis"])
    assert container["user"] == "999:999"
    assert container["capabilities"] == {"drops": ["ALL"]}
    assert not container.get("ports")
    assert len(container["networksAdvanced"]) == 1
    assert container["networksAdvanced"][0]["aliases"] == [redis.NETWORK_NAME]
    assert (container["memory"], container["memorySwap"]) == (256, 256)
    (upload,) = container["uploads"]
    assert "maxmemory 128mb\nmaxmemory-policy allkeys-lru" in upload["content"]
    assert 'save ""\nappendonly no' in upload["content"]
    assert "value-of-redis" not in str(container)


def test_replicas_get_the_password_as_a_file_and_litellm_caches_no_answer(
    registered: Callable[..., Recorder],
) -> None:
    recorder = registered(**ON)
    for name in ("litellm-1", "litellm-2"):
        container = plain(recorder.containers()[name])
        files = files_of(container)
        assert files[f"/run/secrets/{redis.PASSWORD_VARIABLE}"] == "value-of-redis-password"
        assert "value-of" not in str(container["envs"])
        assert f"{redis.ADDRESS_VARIABLE}=redis:6379" in container["envs"]
        config = yaml.safe_load(files["/app/config.yaml"])
        assert config["general_settings"]["coordination_redis"] == {
            "host": "redis",
            "port": 6379,
            "password": f"os.environ/{redis.PASSWORD_VARIABLE}",
            "socket_timeout": redis.SECONDS,
            "socket_connect_timeout": redis.SECONDS,
        }
        assert "cache" not in config["litellm_settings"]
        assert config["general_settings"]["store_prompts_in_spend_logs"] is False


def test_both_passwords_are_valid_during_a_rotation_and_redis_knows_their_hashes() -> None:
    new, old = (hashlib.sha256(it.encode()).hexdigest() for it in ("new", "old"))
    assert redis.users("new", "old").startswith(f"user default on #{new} #{old} ~*")
    assert redis.users("new", "").startswith(f"user default on #{new} ~*")
    for dangerous in ("+@admin", "+@dangerous", "nopass", "+flushall", "+config"):
        assert dangerous not in redis.users("new", "old")


def test_a_preview_warns_of_limits_by_replica_only_where_replicas_count_by_themselves(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pulumi.get_stack", lambda: "staging")
    limits = {"litellmDatabase": "true", "clientLimits": {"app": {"rpm": 5}}, "replicas": "2"}
    (doubt,) = client_limits.doubts(settings(**limits))
    assert "each of the 2 replicas counts" in doubt
    assert doubt.endswith("./pulumiw config set --stack staging redis true. clientRpm is exact without it.")
    assert [*client_limits.doubts(settings(**limits, redis="true"))] == []
    swarm = {"placement": "swarm", "bindAddress": "0.0.0.0", "allowPlainHttp": "true"}  # noqa: S104
    (doubt,) = client_limits.doubts(settings(**limits, **swarm))
    assert doubt.endswith("./pulumiw config set --stack staging redis true.")


PART = containers.Part(
    name="redis",
    kind="redis",
    state="healthy",
    up=True,
    since=None,
    restarts=0,
    image="valkey",
    addresses=(),
    container="c" * 64,
    look="docker logs redis",
    logs=(),
)
INFO = "# Memory\r\nused_memory:2097152\r\nmaxmemory:67108864\r\nevicted_keys:{dropped}\r\nconnected_clients:5\r\n"
LARGER = INFO.replace("67108864", "268435456")


@pytest.mark.parametrize(
    ("part", "info", "status", "detail", "fix"),
    [
        (PART, INFO.format(dropped=0), "ok", "2 of 64 MB, 5 connections", ""),
        (PART, INFO.format(dropped=3), "warning", "has dropped 3 counters", "redisMemoryMb 256 "),
        (PART, LARGER.format(dropped=3), "warning", "has dropped 3 counters", "redisMemoryMb 1024 "),
        (PART, "NOAUTH Authentication required.", "failure", "does not answer", "docker logs redis"),
        (replace(PART, container=None), "", "ok", "on another node", ""),
        (replace(PART, up=False, state="exited (1)"), "", "failure", "it is exited (1)", "docker logs redis"),
    ],
)
def test_doctor_says_how_it_is(  # noqa: PLR0913, PLR0917
    monkeypatch: pytest.MonkeyPatch, part: containers.Part, info: str, status: str, detail: str, fix: str
) -> None:
    stack = containers.Stack(name="dev", parts=(replace(PART, kind="edge"), part), short=(), unseen="")
    monkeypatch.setattr("console.status.found", lambda *_, **__: (stack, None))
    monkeypatch.setattr(redis_check, "output", lambda *_, **__: info)
    settings: Any = SimpleNamespace(litellm_url=SimpleNamespace(port=4000), required_api_key=lambda: "sk-key")
    (finding,) = redis_check.examine(settings)
    assert (finding.check, finding.status) == ("Redis", status)
    assert detail in finding.detail
    assert fix in finding.fix


# What a replica of LiteLLM 1.55.0 does with it


@pytest.fixture(scope="module")
def counters() -> Iterator[Any]:
    """The module, as it runs in LiteLLM's process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "litellm"))
        yield importlib.import_module("counters")


class Store:
    """Redis, as far as these tests ask it."""

    def __init__(self) -> None:
        self.answers, self.asked = True, 0
        self.silent = False
        self.evaluated: list[tuple[str, tuple[Any, ...]]] = []

    async def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> int:
        await self.ping()
        self.evaluated.append((script, (numkeys, *keys_and_args)))
        return 0

    async def ping(self) -> None:
        self.asked += 1
        if self.silent:
            await asyncio.sleep(3600)
        if not self.answers:
            raise ConnectionRefusedError


def holder(**terms: Any) -> SimpleNamespace:
    """What LiteLLM knows of a key."""
    names = [f"{of}{kind}_limit" for of in ("", "user_", "team_") for kind in ("rpm", "tpm")]
    nothing = dict.fromkeys((*names, "user_id", "team_id", "end_user_id"))
    return SimpleNamespace(**{**nothing, "api_key": "hash", "metadata": {}, **terms})


def test_only_who_has_a_limit_is_counted(counters: Any) -> None:
    assert [*counters.limits_of(holder(), "gpt-4o")] == []
    limited = holder(rpm_limit=5, team_id="t", team_tpm_limit=7, metadata={"model_rpm_limit": {"gpt-4o": 0}})
    assert [*counters.limits_of(limited, "gpt-4o")] == [
        counters.Limit("key:hash", 5, counters.NO_LIMIT),
        counters.Limit("key:hash:gpt-4o", 0, counters.NO_LIMIT),
        counters.Limit("team:t", counters.NO_LIMIT, 7),
    ]
    assert [each.scope for each in counters.limits_of(limited, "another")] == ["key:hash", "team:t"]


def test_tokens_count_once_and_for_those_with_a_limit_by_tokens(counters: Any) -> None:
    """LiteLLM 1.55.0 may tell of one answer twice."""

    async def ask() -> None:
        store = Store()
        held = counters.Counters(store)
        await held.admit([counters.Limit("key:a", 5, counters.NO_LIMIT), counters.Limit("team:t", -1, 9)])
        told = {"litellm_params": {"metadata": {"user_api_key": "a", "user_api_key_team_id": "t"}}}
        for _ in range(2):
            await held.add("call", counters.scopes_of(told), counters.tokens_of({"usage": {"total_tokens": 12}}))
        admitted, added = store.evaluated
        assert admitted[1] == (2, "key:a", "team:t", 5, -1, -1, 9)
        assert added[1] == (1, "team:t", 12)

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("response", "tokens"),
    [
        ({"usage": {"total_tokens": 3}}, 3),
        (SimpleNamespace(usage=SimpleNamespace(total_tokens=4)), 4),
        (SimpleNamespace(usage=None), 0),
        (None, 0),
    ],
)
def test_the_tokens_of_an_answer(counters: Any, response: object, tokens: int) -> None:
    assert counters.tokens_of(response) == tokens


@pytest.mark.parametrize("fault", ["refuses", "is silent"])
def test_while_it_is_away_requests_are_let_through_and_do_not_wait(
    counters: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """A separate task asks it again; the log says once that it is away and once that it is back."""
    monkeypatch.setattr(counters, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(counters, "SECONDS", 0.05)

    async def ask() -> None:
        store = Store()
        store.answers, store.silent = fault != "refuses", fault == "is silent"
        held = counters.Counters(store)
        limits = [counters.Limit("key:a", 5, 5)]
        assert await held.admit(limits) == 0
        assert (held.away, store.asked) == (True, 1)
        assert await held.admit(limits) == 0
        await held.add("call", ["key:a"], 3)
        assert store.evaluated == []
        store.answers, store.silent = True, False
        async with asyncio.timeout(SECONDS):
            await held.trying
        assert not held.away
        assert await held.admit(limits) == 0
        assert len(store.evaluated) == 1

    asyncio.run(ask())
    said = [record.message for record in caplog.records if record.name == "litellm.counters"]
    assert [it.split(" (")[0].split(".")[0] for it in said] == ["Redis is away", "Redis answers again"]


def test_without_an_address_nothing_is_put_into_litellm(counters: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(counters.ADDRESS, raising=False)
    assert counters.install() is None


def test_the_names_are_those_of_the_stack(counters: Any) -> None:
    assert (counters.ADDRESS, counters.PASSWORD) == (redis.ADDRESS_VARIABLE, redis.PASSWORD_VARIABLE)
    assert counters.SECONDS == redis.SECONDS
