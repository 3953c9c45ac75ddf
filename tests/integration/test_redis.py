"""Redis in a real stack: limits hold over both replicas together, and requests go on while it is away.

The databases are on a server outside the stack here, so that this is tried too without another stack.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import openai
import psycopg
import pytest

from console import redis_check
from tests.database import answers
from tests.integration.test_virtual_keys import HELLO, REPLICAS, admin, holder, key_of, lines
from tests.load import NOTHING_FAILS, Load
from tests.stacks import deployed, free_port, image_of, paused, stand_in_for
from tests.swarm.cluster import until
from toolchain import recipes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from docker.models.containers import Container
    from openai import OpenAI

    from tests.stacks import Deployment

T = TypeVar("T")
LIMIT = 4
"""Requests a minute."""
ASKED = 3 * LIMIT
LAST_SECOND, AGAIN = 45, 3
"""The second of a minute before which a check must begin: at the first try, and at later ones on a busy machine."""
TRIES = 5
AGAIN_SECONDS = 480
"""Some minutes by the clock: each look takes one, and on a busy machine an answer of Redis may come too late."""
FIND_KEY = 'SELECT key_alias FROM "LiteLLM_VerificationToken" WHERE key_alias = %s'
DATABASES, SETTINGS = ("products", "keys"), ("databaseUrl", "litellmDatabaseUrl")
ANSWERS = 60
"""During a fault, of each kind of key."""


def ask_redis(deployment: Deployment, words: str, *, folder: str = "current") -> str:
    """What Redis answers to a command, asked in its container."""
    return deployment.read("redis", "sh", "-c", redis_check.command(f"/run/live/{folder}", words)).strip()


@contextmanager
def own_server(made: Deployment) -> Iterator[Callable[[str], str]]:
    """A Postgres outside the stack, which the replicas and this machine reach; the URL of each of its DATABASES.

    Each has its own role, which may use that database and nothing else.
    """
    network = made.engine.networks.create(f"{made.name}-own-server")  # for this machine's address on it
    network.reload()
    (address,) = (each["Gateway"] for each in network.attrs["IPAM"]["Config"])
    port, password = free_port(), token_hex(16)
    server = made.engine.containers.run(
        image_of("postgres"),
        ["-c", f"listen_addresses={address}", "-c", f"port={port}"],
        name=network.name,
        environment={"POSTGRES_PASSWORD": password},
        network_mode="host",
        detach=True,
    )

    def url(name: str) -> str:
        return f"postgresql://{name}:{password}@{address}:{port}/{name}"

    try:
        until(lambda: answers(url("postgres")), "the server answers")
        with psycopg.connect(url("postgres"), autocommit=True) as connection:
            for name in DATABASES:
                connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
                connection.execute(f"CREATE DATABASE {name} OWNER {name}")
        yield url
    finally:
        server.remove(force=True, v=True)
        network.remove()


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, choose_release: Callable[[Deployment], None]
) -> Iterator[Deployment]:
    """A stack whose replicas count together."""
    held = ExitStack()

    def configure(made: Deployment) -> None:
        record = made.folder / ".images.yaml"
        image = stand_in_for(recipes.STAND_INS["valkey"], made.engine, record)
        made.set(litellmDatabase="true", redis="true", redisImage=image, litellmMemoryMb=1600)
        url = held.enter_context(own_server(made))
        for setting, name in zip(SETTINGS, DATABASES, strict=True):
            made.set_path(setting, url(name), secret=True)
        choose_release(made)

    with held, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("home")))
        with deployed(tmp_path_factory.mktemp("stack"), configure) as made:
            yield made


def minute() -> int:
    return int(time.time() // 60)


def in_a_minute(ask: Callable[[], T]) -> T:
    """The result of a check within one clock minute; a busy machine may need another minute."""
    for number in range(TRIES):
        last = AGAIN if number else LAST_SECOND
        until(lambda last=last: time.gmtime().tm_sec < last, "a minute begins")  # type: ignore[misc]
        begun, found = minute(), ask()
        if minute() == begun:
            return found
    raise TimeoutError("what takes seconds took longer than a minute")


def outcome(client: OpenAI) -> str:
    """The result of a request: `answered`, or the code with which it is refused for now."""
    try:
        client.chat.completions.create(**HELLO)
    except openai.RateLimitError as refused:
        waits = int(refused.response.headers.get("retry-after", 0)) > 0
        return str(refused.code) if waits else "no retry-after"
    return "answered"


def outcomes(deployment: Deployment, key: str, *, at_once: int = 1) -> Counter[str]:
    """The results of ASKED requests with a key."""
    client = holder(deployment, key).with_options(max_retries=0)
    with ThreadPoolExecutor(at_once) as pool:
        return Counter(pool.map(outcome, [client] * ASKED))


def each_has_answered(deployment: Deployment, alias: str) -> bool:
    """Whether each replica has logged an answer to a key."""
    logs = (deployment.container(part).logs(stderr=False) for part in REPLICAS)
    return all(f'"client": "{alias}"'.encode() in log for log in logs)


def has_told(deployment: Deployment, alias: str, answers: int) -> bool:
    """Whether the replicas have logged this many answers to a key."""
    return [line["client"] for line in lines(deployment)].count(alias) == answers


def of_new_key(deployment: Deployment, *, at_once: int = 1) -> tuple[Counter[str], str]:
    """The results of requests with a new key, within one minute, and its alias."""

    def ask() -> tuple[Counter[str], str]:
        key, alias = key_of(deployment, rpm_limit=LIMIT)
        return outcomes(deployment, key, at_once=at_once), alias

    return in_a_minute(ask)


def counted_together(deployment: Deployment) -> bool:
    """Whether a new key's limit holds for all replicas together, not for each one."""
    return bool(of_new_key(deployment)[0]["answered"] == LIMIT)


@pytest.mark.parametrize("at_once", [1, 8])
def test_requests_a_minute_are_counted_by_both_replicas_together(deployment: Deployment, at_once: int) -> None:
    """Exactly this many get through, one after another or many at once. Without Redis it is up to twice as many."""
    found, alias = of_new_key(deployment, at_once=at_once)
    assert found == {"answered": LIMIT, "rate_limit_exceeded": ASKED - LIMIT}
    until(lambda: each_has_answered(deployment, alias), "both replicas have answered")


def test_so_are_those_of_a_team(deployment: Deployment) -> None:
    """Whichever of its keys asks."""

    def ask() -> int:
        team = admin(deployment, "/team/new", {"team_alias": f"test-{uuid4()}", "rpm_limit": LIMIT})["team_id"]
        keys = [key_of(deployment, team_id=team)[0] for _ in range(2)]
        return sum(outcomes(deployment, key)["answered"] for key in keys)

    assert in_a_minute(ask) == LIMIT


def test_tokens_a_minute_are_counted_by_both_replicas_together(deployment: Deployment) -> None:
    """When each answer ends: the request that crosses the limit is answered, and so are those open with it."""
    first = holder(deployment, key_of(deployment)[0]).chat.completions.create(**HELLO).usage
    assert first is not None
    tokens = first.total_tokens

    def ask() -> tuple[int, str, str]:
        key, alias = key_of(deployment, tpm_limit=LIMIT * tokens)
        client = holder(deployment, key).with_options(max_retries=0)
        answered = 0
        while (last := outcome(client)) == "answered" and answered < 2 * LIMIT:
            answered += 1
            until(partial(has_told, deployment, alias, answered), "its tokens are counted")
        return answered, last, alias

    answered, last, alias = in_a_minute(ask)
    assert last == "rate_limit_exceeded"
    assert LIMIT - 1 <= answered <= LIMIT + 1
    until(lambda: each_has_answered(deployment, alias), "both replicas have answered")


@contextmanager
def stopped(container: Container) -> Iterator[None]:
    """One whose name is unknown."""
    container.stop()
    try:
        yield
    finally:
        container.start()


@contextmanager
def killed(container: Container) -> Iterator[None]:
    """One that dies, and that the engine starts again."""
    os.kill(container.attrs["State"]["Pid"], signal.SIGKILL)
    yield


@pytest.mark.parametrize("fault", [killed, stopped, paused])
def test_requests_go_on_while_it_is_away_and_are_counted_when_it_is_back(
    deployment: Deployment, fault: Callable[[Container], AbstractContextManager[None]]
) -> None:
    """No request of a client or a limited key fails, and each replica counts by itself meanwhile."""
    key, _ = key_of(deployment, rpm_limit=100_000, tpm_limit=100_000_000)
    with (
        Load(deployment.outputs["litellmUrl"], key).running() as of_key,
        Load(deployment.outputs["litellmUrl"], deployment.outputs["litellmApiKey"]).running() as of_client,
    ):
        with fault(deployment.container("redis")):
            for load in (of_key, of_client):
                load.await_successes(ANSWERS)
            if fault is not killed:
                found, _ = of_new_key(deployment)
                assert found["answered"] > LIMIT
                assert found["rate_limit_exceeded"]
        until(lambda: counted_together(deployment), "both replicas count together again", within=AGAIN_SECONDS)
    for load in (of_key, of_client):
        assert load.report.beyond(NOTHING_FAILS) == []
        print(f"longest gap {load.report.longest_gap:.2f} s of {load.report.sent}")


def test_its_password_is_rotated_without_a_request_that_fails(deployment: Deployment) -> None:
    """Redis keeps running, and accepts the previous password until it is retired."""
    before, container = deployment.secret("redis-password"), deployment.container("redis").id
    key, _ = key_of(deployment, rpm_limit=100_000)
    with Load(deployment.outputs["litellmUrl"], key).running() as load:
        deployment.set_path("secretVersions.redisPassword", 2)
        deployment.up()
    assert load.report.beyond(NOTHING_FAILS) == []
    assert deployment.secret("redis-password") != before
    assert ask_redis(deployment, "ping") == ask_redis(deployment, "ping", folder="old") == "PONG"
    deployment.set_path("retirePrevious.redisPassword", 1)
    deployment.up()
    assert deployment.container("redis").id == container
    assert ask_redis(deployment, "ping") == "PONG"
    assert counted_together(deployment)


def test_databases_of_your_own_are_used_and_the_stack_has_none(deployment: Deployment) -> None:
    """Keys are in the one, migrations in the other. A second `up` changes nothing."""
    _, alias = key_of(deployment)
    with psycopg.connect(deployment.outputs["litellmDatabaseUrl"]) as connection:
        assert connection.execute(FIND_KEY, (alias,)).fetchone() == (alias,)
    with deployment.database() as connection:
        assert connection.execute("SELECT count(*) FROM organizations").fetchone() == (0,)
    assert not [each.name for each in deployment.containers() if "postgres" in str(each.name)]
    deployment.up(expect_no_changes=True)


def test_nothing_without_the_password_and_no_secret_where_it_can_be_read(deployment: Deployment) -> None:
    """It contains no answer either."""
    assert "NOAUTH" in deployment.read("redis", "sh", "-c", f"{redis_check.CLIENT} get a")
    password = deployment.secret("redis-password")
    for part in ("redis", *REPLICAS):
        container = deployment.container(part)
        assert password not in json.dumps(container.attrs)
        assert password not in container.logs().decode()
        assert password not in deployment.read(part, "sh", "-c", "cat /proc/[0-9]*/cmdline")
    assert not any(deployment.container("redis").attrs["NetworkSettings"]["Ports"].values())
