"""Changes, good ones and broken ones, and rotations: none of them costs a request."""

from __future__ import annotations

import time
from secrets import token_hex
from typing import TYPE_CHECKING

import httpx2
import psycopg
import pytest
from openai import AuthenticationError
from psycopg.conninfo import make_conninfo
from pulumi import automation

from infra.programs import FOLDER
from infra.workload import HealthCheck
from tests.database import opens
from tests.load import NOTHING_FAILS
from tests.stack_config import PROJECT_NAME, project_file
from tests.stacks import PARTS, RESTART_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.drills.conftest import Drill
    from tests.stacks import Deployment

WAIT_SECONDS = HealthCheck(command=()).start_seconds
SHORT_WAIT_SECONDS = 30
"""Used instead if a replica never becomes healthy."""
CHECK = "http_health_check(PORT, LIVELINESS)"
"""The line of the stack's program with the replicas' health check."""
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
FAILING = [{"role": "user", "content": "[[demo status=500]]"}]
UNAUTHORIZED = 401
ENOUGH_FOR_EACH = 8
"""Enough requests, one after another, that each replica gets some."""


@pytest.fixture(autouse=True)
def _whole(deployment: Deployment) -> Iterator[None]:
    """Each drill leaves a stack at which the next `up` changes nothing."""
    yield
    deployment.up(expect_no_changes=True)


def ids(deployment: Deployment) -> dict[str, str | None]:
    return {part: deployment.container(part).id for part in PARTS}


def changed(deployment: Deployment, before: dict[str, str | None]) -> set[str]:
    return {part for part, container in ids(deployment).items() if container != before[part]}


def status(deployment: Deployment, key: str) -> int:
    """What the edge answers to a key."""
    url = f"{deployment.outputs['litellmUrl']}/v1/chat/completions"
    return httpx2.post(url, json=CHAT, headers={"authorization": f"Bearer {key}"}, timeout=60).status_code


def status_of_replica(deployment: Deployment, part: str, key: str) -> int:
    """What a replica itself answers to a key."""
    ask = (
        "import http.client, sys\n"
        "c = http.client.HTTPConnection('127.0.0.1', 4000)\n"
        "c.request('GET', '/v1/models', headers={'authorization': 'Bearer ' + sys.argv[1]})\n"
        "print(c.getresponse().status)\n"
    )
    return int(deployment.read(part, "python3", "-c", ask, key))


def serve_ours(deployment: Deployment, *, key: str) -> None:
    """Serve a model of the stack config, with a provider key."""
    for name, value in {"name": "ours", "model": "openai/ours", "apiBase": "http://demo:8080/v1"}.items():
        deployment.set_path(f"models[0].{name}", value)
    deployment.set_path("modelKeys.ours", key, secret=True)
    deployment.up()


def test_a_changed_model_list_reaches_every_replica(deployment: Deployment, drill: Drill) -> None:
    """Replicas are replaced one after another, and only they."""
    before = ids(deployment)
    for key, value in {"name": "llama3.1", "model": "openai/llama3.1", "apiBase": "http://demo:8080/v1"}.items():
        deployment.set_path(f"models[0].{key}", value)
    with drill("a changed model list", NOTHING_FAILS):
        started = time.monotonic()
        deployment.up()
        print(f"\nmodel list changed in {time.monotonic() - started:.1f} s")
    assert changed(deployment, before) == {"litellm-1", "litellm-2"}
    for _ in range(ENOUGH_FOR_EACH):
        answer = deployment.client.chat.completions.create(
            model="llama3.1", messages=[{"role": "user", "content": "hi"}]
        )
        assert answer.choices[0].message.content


def test_a_config_that_litellm_refuses_stops_at_the_first_replica(deployment: Deployment, drill: Drill) -> None:
    """The `up` fails in seconds and shows why; the other replica goes on serving; the next good `up` fixes it."""
    config = deployment.folder / "litellm/config.yaml"
    good = config.read_text()
    second = deployment.container("litellm-2").id
    config.write_text(good.replace("BadRequestErrorRetries: 0", "BadRequestErrorRetries: none"))
    assert config.read_text() != good
    with drill("a config that LiteLLM refuses", NOTHING_FAILS):
        with pytest.raises(automation.CommandError) as caught:
            deployment.up()
        assert f"{PROJECT_NAME}-{deployment.name}-litellm-1 exited with" in str(caught.value)
        assert deployment.container("litellm-2").id == second
        config.write_text(good)
        deployment.up()


def test_an_edge_config_that_haproxy_refuses_changes_nothing(deployment: Deployment, drill: Drill) -> None:
    """The `up` fails with HAProxy's own message; the edge keeps its config, even after a crash."""
    config = deployment.folder / "edge/haproxy.cfg"
    good = config.read_text()
    config.write_text(good.replace("balance leastconn", "balance nonsense"))
    with drill("a config that HAProxy refuses", NOTHING_FAILS):
        with pytest.raises(automation.CommandError) as caught:
            deployment.up()
        assert "still runs with the old ones" in str(caught.value)
        assert "nonsense" in str(caught.value)
        config.write_text(good)
        deployment.up()


@pytest.fixture
def broken_image(deployment: Deployment) -> Iterator[Callable[[str], str]]:
    """An image like LiteLLM's, with another module instead of LiteLLM's package."""
    tag = f"{PROJECT_NAME}-{deployment.name}/broken-litellm:1"

    def make(program: str) -> str:
        container = deployment.engine.containers.create(deployment.image("litellm-1"), ["true"])
        deployment.put(container, f"{FOLDER}/litellm.py", f"{program}\n", mode=0o644)
        container.commit(*tag.split(":"))
        container.remove()
        return tag

    yield make
    deployment.engine.images.remove(tag, force=True)


@pytest.mark.parametrize(
    ("what", "program", "line", "why"),
    [
        ("an image that ends at its start", "raise SystemExit('no such thing')", "no such thing", "exited with 1"),
        (
            "an image that never gets healthy",
            "import time\nprint('idle', flush=True)\ntime.sleep(9999)",
            "idle",
            f"was not healthy after {SHORT_WAIT_SECONDS} s",
        ),
    ],
)
def test_a_broken_image_stops_at_the_first_replica(  # noqa: PLR0913, PLR0917 -- a row has these columns
    deployment: Deployment,
    drill: Drill,
    broken_image: Callable[[str], str],
    what: str,
    program: str,
    line: str,
    why: str,
) -> None:
    """The `up` fails and names the container, the reason and its last lines; the other replica goes on serving.

    A container that ends is not awaited any longer. The next good `up` fixes everything.
    """
    official = str(project_file()["config"]["litellmImage"]["default"])
    second = deployment.container("litellm-2").id
    program_of_the_stack = deployment.folder / "infra/gateway.py"
    as_it_is = program_of_the_stack.read_text()
    hasty = as_it_is.replace(CHECK, f"__import__('dataclasses').replace({CHECK}, start_seconds={SHORT_WAIT_SECONDS})")
    assert hasty != as_it_is
    program_of_the_stack.write_text(hasty)
    deployment.set(litellmImage=broken_image(program))
    with drill(what, NOTHING_FAILS):
        try:
            started = time.monotonic()
            with pytest.raises(automation.CommandError) as caught:
                deployment.up()
            print(f"\n{what}: failed after {time.monotonic() - started:.1f} s")
            assert f"{PROJECT_NAME}-{deployment.name}-litellm-1 {why}" in str(caught.value)
            assert line in str(caught.value)
            assert deployment.container("litellm-2").id == second
        finally:
            program_of_the_stack.write_text(as_it_is)
            deployment.set(litellmImage=official)
            deployment.up()


def test_an_edge_reload_drops_no_connection(deployment: Deployment, drill: Drill) -> None:
    """The same container loads a client's rate, applies it, and removes it again."""
    before = ids(deployment)
    deployment.set_path("clientKeys.batch", "", secret=True)
    with drill("edge reloads", NOTHING_FAILS):
        for rpm in (600, 3):
            deployment.set_path("clientRpm.batch", rpm)
            deployment.up()
        batch = deployment.outputs["clientKeys"]["batch"]
        statuses = [status(deployment, batch) for _ in range(8)]  # the clock's minute may end among them
        assert statuses[:3] == [200, 200, 200]
        assert 429 in statuses
        deployment.forget("clientRpm")
        deployment.forget("clientKeys")
        deployment.up()
        assert status(deployment, batch) == UNAUTHORIZED
    assert changed(deployment, before) == set()


def test_the_master_key_is_rotated(deployment: Deployment, drill: Drill) -> None:
    """Afterwards replicas take the new one and refuse the old one; callers notice nothing."""
    old = deployment.secret("master-key")
    with drill("rotation of the master key", NOTHING_FAILS):
        deployment.set_path("secretVersions.masterKey", 2)
        deployment.up()
    new = deployment.secret("master-key")
    assert new != old
    for part in ("litellm-1", "litellm-2"):
        assert status_of_replica(deployment, part, new) == httpx2.codes.OK
        assert status_of_replica(deployment, part, old) == UNAUTHORIZED
    assert status(deployment, new) == UNAUTHORIZED  # never at the edge


def test_a_rotation_of_the_master_key_that_stops_halfway(
    deployment: Deployment, drill: Drill, broken_image: Callable[[str], str]
) -> None:
    """The replicas with the old one go on serving, whatever a provider answers meanwhile; the next `up` fixes all."""
    official = str(project_file()["config"]["litellmImage"]["default"])
    deployment.set(litellmImage=broken_image("raise SystemExit('no such thing')"))
    deployment.set_path("secretVersions.masterKey", 3)
    with drill("a rotation of the master key that stops halfway", NOTHING_FAILS) as load:
        try:
            with pytest.raises(automation.CommandError):
                deployment.up()
            for _ in range(ENOUGH_FOR_EACH):
                load.send_also("/v1/chat/completions", {**CHAT, "messages": FAILING})
                load.await_successes(round(load.rate / 2))
        finally:
            deployment.set(litellmImage=official)
            deployment.up()
    assert len(load.report.beside) == ENOUGH_FOR_EACH
    assert all(failure.startswith("status 500") for failure in load.report.beside)


def test_a_clients_key_and_the_passwords_of_postgres_are_rotated(deployment: Deployment, drill: Drill) -> None:
    """Old and new open the gateway and the app's database until the old ones are retired; nothing restarts.

    The superuser's password is replaced at once.
    """
    before = ids(deployment)
    superuser = {"user": "postgres", "dbname": "postgres"}
    old_url, old_password = deployment.outputs["databaseUrl"], deployment.secret("postgres-password")
    with drill("rotation of a client's key and of Postgres' passwords", NOTHING_FAILS) as load:
        old = load.key
        for name in ("clientKeys.app", "postgresPassword", "databasePassword"):
            deployment.set_path(f"secretVersions.{name}", 2)
        deployment.up()
        new, url = deployment.outputs["litellmApiKey"], deployment.outputs["databaseUrl"]
        assert new != old
        assert url != old_url
        assert status(deployment, old) == status(deployment, new) == httpx2.codes.OK
        assert opens(old_url)
        assert opens(url)
        assert opens(url, **superuser, password=deployment.secret("postgres-password"))
        assert not opens(url, **superuser, password=old_password)
        load.key = new
        load.await_successes(round(load.rate))
        for name in ("clientKeys.app", "databasePassword"):
            deployment.set_path(f"retirePrevious.{name}", 1)
        deployment.up()
        assert (status(deployment, old), status(deployment, new)) == (UNAUTHORIZED, httpx2.codes.OK)
        assert not opens(old_url)
        assert opens(url)
    assert changed(deployment, before) == set()


def test_a_wrong_provider_key_fails_what_needs_it_and_nothing_else(deployment: Deployment, drill: Drill) -> None:
    """Callers of its model learn that the provider refused; the others notice nothing.

    The right key replaces it on every replica.
    """
    wrong, right = "[[demo status=401]]", "the-right-key"
    serve_ours(deployment, key=wrong)
    body: dict[str, object] = {**CHAT, "model": "ours"}
    with drill("a wrong provider key, and the right one", NOTHING_FAILS) as load:
        for _ in range(20):
            load.send_also("/v1/chat/completions", body)
            load.await_successes(2)
        with pytest.raises(AuthenticationError) as caught:
            deployment.client.post("/chat/completions", body=body, cast_to=object)
        serve_ours(deployment, key=right)
        for _ in range(ENOUGH_FOR_EACH):
            assert deployment.client.post("/chat/completions", body=body, cast_to=object)
    for part in ("litellm-1", "litellm-2"):
        secrets = deployment.read(part, "sh", "-c", "cat /run/secrets/*")
        assert right in secrets
        assert wrong not in secrets
    assert all(each.startswith("status 401") for each in load.report.beside)
    assert "Incorrect API key" in str(caught.value)
    assert wrong not in str(caught.value)


def test_secrets_are_rotated_by_setting_your_own_values(deployment: Deployment, drill: Drill) -> None:
    """Also secrets that were generated by a number before. A value that is removed from the config stays valid."""
    own = {
        "masterKey": f"sk-{token_hex(24)}",
        "clientKeys.app": f"sk-{token_hex(24)}",
        "postgresPassword": token_hex(24),
        "databasePassword": token_hex(24),
    }
    before, first_url = deployment.secrets(), deployment.outputs["databaseUrl"]
    with drill("rotation by your own values", NOTHING_FAILS) as load:
        for name in own:
            deployment.set_path(f"secretVersions.{name}", 9)
        deployment.up()
        by_number = load.key = deployment.outputs["litellmApiKey"]
        load.await_successes(round(load.rate))
        deployment.forget("secretVersions")
        for name, value in own.items():
            deployment.set_path(name, value, secret=True)
        deployment.up()
        load.key = own["clientKeys.app"]
        load.await_successes(round(load.rate))
        assert status(deployment, by_number) == httpx2.codes.OK
        for name in ("masterKey", "clientKeys", "postgresPassword", "databasePassword"):
            deployment.forget(name)
        deployment.up()
    url = deployment.outputs["databaseUrl"]
    assert own["databasePassword"] in url
    assert opens(url)
    assert not opens(first_url)
    superuser = {"user": "postgres", "dbname": "postgres"}
    assert opens(url, **superuser, password=own["postgresPassword"])
    assert not opens(url, **superuser, password=before["postgres-password.value"])
    for part in ("litellm-1", "litellm-2"):
        assert status_of_replica(deployment, part, own["masterKey"]) == httpx2.codes.OK
        assert status_of_replica(deployment, part, before["master-key.value"]) == UNAUTHORIZED
    assert status(deployment, own["clientKeys.app"]) == httpx2.codes.OK
    assert status(deployment, before["client-key-app.value"]) == UNAUTHORIZED


def test_the_salt_key_cannot_change_once_litellm_has_a_database(deployment: Deployment, drill: Drill) -> None:
    """It may before; afterwards the preview refuses, and nothing has changed."""
    key = "sk-" + "fedcba9876543210" * 3
    url = make_conninfo(
        deployment.outputs["databaseUrl"],
        user="postgres",
        password=deployment.secret("postgres-password"),
        dbname="litellm",
    )
    deployment.set_path("saltKey", key, secret=True)
    assert deployment.pulumi("preview").returncode == 0
    with drill("a salt key that may not change", NOTHING_FAILS), psycopg.connect(url, autocommit=True) as connection:
        connection.execute('CREATE TABLE "LiteLLM_VerificationToken" (token text)')
        try:
            refused = deployment.pulumi("up", "--yes", "--skip-preview")
        finally:
            connection.execute('DROP TABLE "LiteLLM_VerificationToken"')
    assert refused.returncode != 0
    assert "only the current salt key can decrypt" in refused.stdout
    assert key not in refused.stdout
    deployment.forget("saltKey")


def test_drills_wait_as_long_as_a_container_may_take() -> None:
    """The bound of the drills is not below that of the stack."""
    assert WAIT_SECONDS <= RESTART_SECONDS
