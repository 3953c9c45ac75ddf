"""LiteLLM with its database in a real stack: a key, its spending, restarts, backups, and checks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
import pytest
from pulumi.automation import CommandError

from console import litellm_database
from console.backup import companion
from infra import litellm_connections
from tests import page
from tests.stacks import LLMCTL, REPLICAS, stand_in_for
from tests.swarm.cluster import until
from toolchain import environment_file, recipes

if TYPE_CHECKING:
    from collections.abc import Iterator

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

ENCRYPT = """
import base64, json, pathlib
from litellm.proxy.common_utils.encrypt_decrypt_utils import encrypt_value
salt = pathlib.Path("/run/secrets/LITELLM_SALT_KEY").read_text().strip()
print(json.dumps([base64.b64encode(encrypt_value("a key", each)).decode() for each in (salt, "another")]))
"""
TELL = "import io, sys; sys.stdin = io.StringIO({given!r}); exec({PROGRAM!r})"
HELLO: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def deployment(with_database: Deployment) -> Deployment:
    """A stack whose LiteLLM has a database."""
    return with_database


def asked(deployment: Deployment, path: str, body: object = None, *, key: str = "") -> dict[str, Any]:
    """What a replica answers in its own container; with the master key, unless another one is given."""
    said = deployment.read(REPLICAS[0], "python3", "-IS", "-c", ASK, json.dumps([path, key, body]))
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return found


def chat(deployment: Deployment, key: str) -> dict[str, Any]:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": PROMPT}]}
    return asked(deployment, "/v1/chat/completions", body, key=key)


@contextmanager
def logged_in(deployment: Deployment) -> Iterator[psycopg.Connection[Any]]:
    """A connection with LiteLLM's own login to its database."""
    url = urlsplit(deployment.read(REPLICAS[0], "cat", "/run/secrets/DATABASE_URL").strip())
    port = urlsplit(deployment.outputs["databaseUrl"]).port
    with psycopg.connect(
        host="127.0.0.1",
        port=port,
        user=url.username,
        password=url.password,
        dbname=url.path[1:],
        autocommit=True,
    ) as connection:
        yield connection


def rows(deployment: Deployment, query: str) -> list[tuple[Any, ...]]:
    """What LiteLLM's own login reads in its database."""
    with logged_in(deployment) as connection:
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


def used_by_an_operator(deployment: Deployment, alias: str) -> None:
    """LiteLLM's page, in a browser. Its prompt is long, so that the page shows more than 0."""
    long = [{"role": "user", "content": "hello " * 4000}]

    def ask(key: str) -> None:
        deployment.client.with_options(api_key=key).chat.completions.create(model="gpt-4o", messages=long)  # type: ignore[arg-type]

    page.used_by_an_operator(deployment.outputs, alias, "gpt-4o", ask)


def test_an_operator_makes_a_key_on_the_page_and_sees_what_it_spends(deployment: Deployment, key: str) -> None:
    """In a team: LiteLLM 1.55.0 lists no key without one. The password is in no inspection and no log."""
    assert key
    asked(deployment, "/team/new", {"team_alias": "research"})
    used_by_an_operator(deployment, "of-the-page")
    password = deployment.outputs["adminPassword"]
    for name in (*REPLICAS, "edge"):
        container = deployment.container(name)
        assert password not in json.dumps(container.attrs) + container.logs().decode()


def test_callers_and_operators_each_have_a_port_of_their_own(deployment: Deployment) -> None:
    """Neither port accepts requests for the other."""
    page.closed(deployment.outputs)


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
    """And its queries of the database work."""
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


@pytest.fixture
def saved(deployment: Deployment, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A backup of the stack, by somebody who has what `up` writes to .env."""
    assert key
    monkeypatch.chdir(tmp_path)
    for variable, output in environment_file.OUTPUTS.items():
        monkeypatch.setenv(variable, deployment.outputs[output])
    return Path(llmctl("backup", "--json")["file"])


def llmctl(*arguments: str | Path) -> dict[str, Any]:
    """The output of a command that succeeds."""
    done = subprocess.run([LLMCTL, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(deployment: Deployment, *arguments: str | Path) -> str:
    """Why a restore is refused. It changes no database."""
    query = "SELECT datname FROM pg_database"
    before = sorted(rows(deployment, query))
    done = subprocess.run(
        [LLMCTL, "restore", "--yes", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert sorted(rows(deployment, query)) == before
    return done.stderr


def test_one_of_two_databases_is_restored_alone(deployment: Deployment, saved: Path) -> None:
    """With `--only`, or with LiteLLM's file itself. Another database's file is refused as a backup of LiteLLM's."""
    alone = llmctl("restore", saved, "--yes", "--json", "--only", "litellm")
    assert (alone["database"], alone["litellm"]) == ("litellm", None)
    assert llmctl("restore", companion(saved), "--yes", "--json")["database"] == "litellm"
    alone = llmctl("restore", saved, "--yes", "--json", "--only", "app")
    assert (alone["database"], alone["litellm"]) == ("app", None)
    assert "leave --only out" in refused(deployment, companion(saved), "--only", "app")
    companion(saved).unlink()
    assert "tables that are not LiteLLM's" in refused(deployment, saved, "--only", "litellm")


def checked(name: str, deployment: Deployment) -> str:
    """What the checks of a deployed stack report of the database; it has no secret of the stack."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", f"tests/deploy/test_{name}.py", "--stack", deployment.name],
        cwd=deployment.folder,
        env={key: value for key, value in os.environ.items() if key != "STACK"} | deployment.environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert [key for key, value in deployment.secrets().items() if value in done.stdout] == []
    return done.stdout


def doctor() -> dict[str, set[str]]:
    """The doctor's findings about LiteLLM's database, by severity."""
    done = subprocess.run([LLMCTL, "doctor", "--json"], capture_output=True, text=True, check=False)
    found: dict[str, set[str]] = {"ok": set(), "warning": set(), "failure": set()}
    for each in json.loads(done.stdout):
        if each["check"].startswith("LiteLLM's"):
            found[each["status"]].add(each["detail"])
            assert bool(each["fix"]) == (each["status"] != "ok")
    return found


def test_a_database_that_is_well_is_said_to_be(deployment: Deployment, saved: Path) -> None:
    """In the doctor, the status and the checks of a deployed stack."""
    assert saved
    said = doctor()
    assert (said["warning"], said["failure"]) == (set(), set())
    assert said["ok"] >= {
        "it answers",
        "it is that of the release that runs",
        *(f"{name} is connected to it" for name in REPLICAS),
    }
    assert llmctl("status", "--json")["wrong"] == []
    said_of_checks = checked("litellm_database", deployment)
    assert "skipped" not in said_of_checks
    assert f"{3 + 2 * len(REPLICAS)} passed" in said_of_checks


def test_what_is_wrong_with_the_database_is_named_with_what_fixes_it(deployment: Deployment, saved: Path) -> None:
    """A role whose limits somebody changed, and one that cannot log in any more."""
    assert saved
    role = str(rows(deployment, "SELECT session_user")[0][0])

    with role_set(deployment, f"{role} LOGIN"), logged_in(deployment) as counter:

        def few_are_free() -> bool:  # the replicas' connections come and go, and may take the last free one
            count = "SELECT count(*) FROM pg_stat_activity WHERE usename = session_user"
            ((taken,),) = counter.execute(count).fetchall()
            change_role(deployment, f"{role} CONNECTION LIMIT {taken + 1}")
            return any(f"of {taken + 1} connections" in each for each in doctor()["warning"])

        until(few_are_free, "the doctor warns of few connections")
        change_role(deployment, f"{role} CONNECTION LIMIT 99")
        said = checked("litellm_database", deployment)
        assert "test_its_login_is_bounded_and_acts_as_the_owner" in said
        assert "secretVersions.litellmDatabasePassword 2" in said
    with role_set(deployment, f"{role} NOLOGIN"):
        (detail,) = doctor()["failure"]
        assert "it cannot be used" in detail
        done = subprocess.run([LLMCTL, "status", "--json"], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert any("LiteLLM's database: it cannot be used" in each for each in json.loads(done.stdout)["wrong"])
    assert doctor()["failure"] == set()


@contextmanager
def role_set(deployment: Deployment, change: str) -> Iterator[None]:
    """A role that somebody has changed."""
    role = change.split(maxsplit=1)[0]
    limit = litellm_connections.limit(len(REPLICAS), litellm_connections.POOL_CONNECTIONS)
    change_role(deployment, change)
    try:
        yield
    finally:
        change_role(deployment, f"{role} LOGIN CONNECTION LIMIT {limit}")


def change_role(deployment: Deployment, change: str) -> None:
    deployment.read("postgres", "psql", "-XqU", "postgres", "-c", f"ALTER ROLE {change}")


def test_what_was_written_under_another_salt_key_is_told_before_anything_changes(
    deployment: Deployment, saved: Path
) -> None:
    """It is found through the client's own key. With --force the backup is restored anyway."""
    until(lambda: asks(deployment), "the client has a key in LiteLLM")
    swap = """UPDATE "LiteLLM_VerificationToken" SET token = reverse(token) WHERE key_alias = 'app'"""
    rows(deployment, swap)
    other = Path(llmctl("backup", "other.dump", "--json")["litellm"]["file"])
    rows(deployment, swap)
    said = refused(deployment, other)
    assert "written with a different salt key" in said
    assert "the budgets and the spending of app" in said
    assert deployment.secret("salt-key") not in said
    assert llmctl("restore", other, "--yes", "--json", "--force")["database"] == "litellm"
    assert llmctl("restore", companion(saved), "--yes", "--json")["database"] == "litellm"


def asks(deployment: Deployment) -> bool:
    assert deployment.client.chat.completions.create(**HELLO).choices
    found = rows(deployment, """SELECT count(*) FROM "LiteLLM_VerificationToken" WHERE key_alias = 'app'""")
    return found == [(1,)]


def test_what_litellm_encrypts_opens_with_its_salt_key_only(deployment: Deployment) -> None:
    """As LiteLLM itself encrypts it, in a replica."""
    values = json.loads(deployment.read(REPLICAS[0], "python3", "-c", ENCRYPT).strip().splitlines()[-1])
    given = {"clients": {}, "values": values}
    command = ["python3", "-I", "-c", TELL.format(PROGRAM=litellm_database.PROGRAM, given=json.dumps(given))]
    assert json.loads(deployment.read(REPLICAS[0], *command))["values"] == 1


def test_tables_of_others_are_named_and_nothing_changes(deployment: Deployment, key: str, *, of_newest: bool) -> None:
    """An `up` with another image ends before it has changed anything."""
    assert key
    if of_newest:
        pytest.skip("there is no newer release to go to")
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
