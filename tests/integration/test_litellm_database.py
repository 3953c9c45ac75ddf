"""LiteLLM with its database in a real stack: a key, what it spends, restarts, and the way to the newest release."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
import pytest
from pulumi.automation import CommandError

from engine.own_folder import litellm_backups
from infra import litellm_connections
from tests.stacks import REPLICAS, deployed, stand_in_for
from tests.swarm.cluster import until
from toolchain import recipes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.stacks import Deployment

(UPGRADE,) = recipes.UPGRADES
PROMPT = "what nobody else may read"
ASK = """
import json, sys, urllib.request
path, key, body = json.loads(sys.argv[1])
key = key or open("/run/secrets/LITELLM_MASTER_KEY").read().strip()
request = urllib.request.Request(f"http://127.0.0.1:4000{path}", headers={"authorization": f"Bearer {key}"})
if body is not None:
    request.data = json.dumps(body).encode()
    request.add_header("content-type", "application/json")
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack whose LiteLLM has a database."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(home))
        with deployed(tmp_path_factory.mktemp("stack"), lambda made: made.set(litellmDatabase="true")) as made:
            yield made


def asked(deployment: Deployment, path: str, body: object = None, *, key: str = "") -> dict[str, Any]:
    """What a replica answers in its own container; to the master key unless another one is given."""
    said = deployment.read(REPLICAS[0], "python3", "-IS", "-c", ASK, json.dumps([path, key, body]))
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return found


def chat(deployment: Deployment, key: str) -> dict[str, Any]:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": PROMPT}]}
    return asked(deployment, "/v1/chat/completions", body, key=key)


def rows(deployment: Deployment, query: str) -> list[tuple[Any, ...]]:
    """What LiteLLM's own login reads in its database."""
    url = urlsplit(deployment.read(REPLICAS[0], "cat", "/run/secrets/DATABASE_URL").strip())
    port = urlsplit(deployment.outputs["databaseUrl"]).port
    with psycopg.connect(
        host="127.0.0.1", port=port, user=url.username, password=url.password, dbname=url.path[1:]
    ) as connection:
        done = connection.execute(query.encode())
        return done.fetchall() if done.description else []


def spend(deployment: Deployment) -> float:
    (found,) = rows(deployment, """SELECT spend FROM "LiteLLM_VerificationToken" WHERE key_alias = 'batch'""")
    return float(found[0])


@pytest.fixture(scope="module")
def key(deployment: Deployment) -> str:
    """A key that has spent something."""
    made = asked(deployment, "/key/generate", {"key_alias": "batch", "max_budget": 5})
    assert chat(deployment, made["key"])["usage"]["total_tokens"] > 0
    until(lambda: spend(deployment) > 0, "what the key spent is in the database")
    return str(made["key"])


def test_a_key_of_litellms_spends_and_no_prompt_is_kept(deployment: Deployment, key: str) -> None:
    assert spend(deployment) > 0
    logs = rows(deployment, 'SELECT row_to_json(l)::text FROM "LiteLLM_SpendLogs" l')
    assert logs
    assert PROMPT not in str(logs)
    assert key not in str(logs)


def test_the_schema_belongs_to_its_owner_and_the_login_is_bounded(deployment: Deployment, key: str) -> None:
    """The app's database is closed to it."""
    assert key
    owners = rows(deployment, "SELECT DISTINCT tableowner FROM pg_tables WHERE tablename LIKE 'LiteLLM%'")
    assert owners == [("litellm",)]
    (limit,) = rows(deployment, "SELECT rolconnlimit FROM pg_roles WHERE rolname = 'litellm_1'")
    assert limit == (litellm_connections.limit(len(REPLICAS), litellm_connections.POOL_CONNECTIONS),)
    assert rows(deployment, "SELECT has_database_privilege('litellm_1', 'app', 'CONNECT')") == [(False,)]


def test_nothing_changes_at_the_second_up(deployment: Deployment, key: str) -> None:
    assert key
    deployment.up(expect_no_changes=True)


def test_a_replica_starts_again_over_its_views(deployment: Deployment, key: str) -> None:
    """And asks the database without an error."""
    for name in REPLICAS:
        container = deployment.container(name)
        pid = container.attrs["State"]["Pid"]
        container.restart()
        deployment.await_restart(name, pid)
    assert chat(deployment, key)["usage"]["total_tokens"] > 0
    assert int(rows(deployment, "SELECT count(*) FROM pg_views WHERE viewname LIKE '%Spend%'")[0][0]) > 0
    for name in REPLICAS:
        assert "prisma.errors" not in deployment.container(name).logs().decode()


def test_the_password_is_in_no_log_process_or_inspection(deployment: Deployment, key: str) -> None:
    assert key
    password = deployment.secret("litellm-database-password")
    for name in REPLICAS:
        container = deployment.container(name)
        assert password not in container.logs().decode()
        assert password not in json.dumps(container.attrs)
        assert password not in str(container.top()["Processes"])


def test_tables_of_others_are_named_and_nothing_changes(deployment: Deployment, key: str) -> None:
    """An `up` with another image ends before it has changed anything."""
    assert key
    rows(deployment, "CREATE TABLE of_somebody_else ()")
    image = stand_in_for(UPGRADE, deployment.engine, deployment.folder / ".images.yaml")
    serving = [deployment.container(name).id for name in REPLICAS]
    deployment.set(litellmImage=image)
    try:
        with pytest.raises(CommandError, match=r"public\.of_somebody_else"):
            deployment.up()
        assert [deployment.container(name).id for name in REPLICAS] == serving
        assert chat(deployment, key)["usage"]["total_tokens"] > 0
    finally:
        rows(deployment, "DROP TABLE of_somebody_else")


def test_the_newest_release_takes_the_database_over_with_all_that_is_in_it(deployment: Deployment, key: str) -> None:
    """The next `up` after one that failed: a backup first, the schema, then the replicas."""
    before = spend(deployment)
    deployment.set(litellmImage=stand_in_for(UPGRADE, deployment.engine, deployment.folder / ".images.yaml"))
    deployment.up()
    assert {deployment.image(name).tags[0] for name in REPLICAS} == {UPGRADE.tag}
    saved: list[Path] = sorted(litellm_backups(deployment.name).glob("litellm-*.dump"))
    assert saved
    assert {stat.S_IMODE(file.stat().st_mode) for file in saved} == {0o600}
    assert rows(deployment, "SELECT count(*) FROM _prisma_migrations WHERE finished_at IS NULL") == [(0,)]
    assert spend(deployment) >= before > 0
    assert chat(deployment, key)["usage"]["total_tokens"] > 0
    until(lambda: spend(deployment) > before, "the key's spending goes on")
    assert not [each for each in deployment.leftovers() if "schema" in each]


def test_the_older_release_is_refused_on_the_newer_ones_database(deployment: Deployment) -> None:
    """It would take away what it does not know; the newer one goes on serving."""
    newest = {deployment.container(name).id for name in REPLICAS}
    deployment.forget("litellmImage")
    with pytest.raises(CommandError, match="the database is that of a newer LiteLLM"):
        deployment.up()
    assert {deployment.container(name).id for name in REPLICAS} == newest
