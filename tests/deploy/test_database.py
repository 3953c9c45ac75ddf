"""The database: its schema, who may reach what on its server, and the volume that holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import docker
import psycopg
import pytest

from app import migrations
from engine.labels import LABEL
from infra.migration import FOLDER
from infra.postgres import APP_DATABASE, LITELLM_DATABASE, SUPERUSER
from tests.deploy.stack import VOLUME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker.models.volumes import Volume

    from tests.deploy.stack import DeployedStack, Instance

SECONDS = 15
PART = "postgres"


@pytest.fixture(scope="module")
def connected(stack: DeployedStack) -> Iterator[psycopg.Connection | psycopg.OperationalError]:
    """The app's database, with the app's role; or why it cannot be reached."""
    try:
        connection = psycopg.connect(stack.outputs["databaseUrl"], connect_timeout=SECONDS, autocommit=True)
    except psycopg.OperationalError as error:
        yield error
        return
    with connection:
        yield connection


@pytest.fixture
def database(connected: psycopg.Connection | psycopg.OperationalError) -> psycopg.Connection:
    if isinstance(connected, psycopg.OperationalError):
        pytest.skip("the app's database cannot be reached: see test_the_app_reaches_its_database")
    return connected


@pytest.fixture
def own_server(stack: DeployedStack) -> None:
    """Skip what applies only to the stack's own server."""
    if stack.settings.database_url is not None:
        pytest.skip("the database is on a server that is not the stack's own (databaseUrl)")


def test_the_app_reaches_its_database(
    stack: DeployedStack, connected: psycopg.Connection | psycopg.OperationalError
) -> None:
    """From the machine that runs this, because the app and `pulumi up` must reach it too."""
    assert isinstance(connected, psycopg.Connection), (
        f"the app's database cannot be reached: {connected}. See the checks of its container; for its address see "
        f"./pulumiw config --stack {stack.name}. Then: {stack.up}"
    )


def test_the_schema_is_that_of_the_migrations(stack: DeployedStack, database: psycopg.Connection) -> None:
    migrate = f"llmctl migrate status tells more; apply them: {stack.up}"
    try:
        pending = migrations.status(stack.outputs["databaseUrl"], FOLDER).pending
    except migrations.MigrationError as error:
        pytest.fail(f"{error} ({migrate})", pytrace=False)
    assert not pending, f"not applied: {[migration.file for migration in pending]}. {migrate}"


def test_organizations_have_their_models_with_the_defaults(
    stack: DeployedStack, database: psycopg.Connection
) -> None:
    """`llm_model` is never empty and gpt-4o by default; `llm_fallback_model` may be, and is claude-3-5-sonnet."""
    rows = database.execute(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)"
        " FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
        " WHERE attrelid = to_regclass('organizations') AND attname IN ('llm_model', 'llm_fallback_model')"
        " ORDER BY attname"
    ).fetchall()
    assert rows == [
        ("llm_fallback_model", "text", False, "'claude-3-5-sonnet'::text"),
        ("llm_model", "text", True, "'gpt-4o'::text"),
    ], (
        "someone changed the columns by hand, or a migration did on purpose: then change this check too. "
        "To restore the columns, write a migration: llmctl migrate new 'defaults of organizations'"
    )


@pytest.mark.usefixtures("own_server", "database")
def test_the_apps_role_reaches_its_own_database_only(stack: DeployedStack) -> None:
    """The check tries it: neither LiteLLM's database nor the server's own accepts the role."""
    opened = [name for name in (LITELLM_DATABASE, SUPERUSER) if _lets_in(stack.outputs["databaseUrl"], name)]
    advice = "; ".join(_revoke(stack, name, APP_DATABASE) for name in opened)
    assert opened == [], f"the app's role can connect to {opened}. {advice}"


def _lets_in(url: str, database: str) -> bool:
    try:
        psycopg.connect(url, dbname=database, connect_timeout=SECONDS).close()
    except psycopg.OperationalError as error:
        if "permission denied for database" in str(error):
            return False
        raise
    return True


@pytest.mark.usefixtures("own_server")
def test_no_role_reaches_a_database_that_is_not_its_own(stack: DeployedStack, database: psycopg.Connection) -> None:
    """LiteLLM's role not the app's database, nor the other way round; no role the server's own."""
    rows = database.execute(
        "SELECT rolname, datname FROM pg_roles, pg_database WHERE has_database_privilege(rolname, datname, 'CONNECT')"
        " AND NOT rolsuper AND NOT starts_with(rolname, 'pg_') AND NOT datistemplate"
        " AND NOT pg_has_role(rolname, datdba, 'MEMBER') ORDER BY rolname, datname"
    ).fetchall()
    advice = "; ".join(_revoke(stack, name, role) for role, name in rows)
    assert rows == [], f"roles that can connect to another role's database: {rows}. {advice}"


def _revoke(stack: DeployedStack, database: str, role: str) -> str:
    statement = f"REVOKE ALL ON DATABASE {database} FROM PUBLIC, {role}"
    server = _instance(stack)
    command = f"exec {server.container} psql --username={SUPERUSER} --command='{statement}'"
    return f"Undo the change: {server.docker(command)}"


def _instance(stack: DeployedStack) -> Instance:
    """The container of the stack's own server."""
    found = next((instance for instance in stack.instances if instance.part.name == PART), None)
    if found is None:
        pytest.skip(f"Postgres does not run: see {stack.RUNS}")
    return found


@pytest.mark.usefixtures("own_server")
def test_no_role_but_the_superuser_has_a_privilege(stack: DeployedStack, database: psycopg.Connection) -> None:
    """None can create roles or databases, replicate, bypass row security, or is a member of a role that can."""
    rows = database.execute(
        "SELECT rolname FROM pg_roles role WHERE rolname <> %s AND NOT starts_with(rolname, 'pg_') AND ("
        "rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls OR EXISTS ("
        "SELECT FROM pg_auth_members WHERE member = role.oid AND starts_with(roleid::regrole::text, 'pg_')))",
        (SUPERUSER,),
    ).fetchall()
    roles = [role for (role,) in rows]
    statement = "ALTER ROLE … NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS"
    assert roles == [], f"{roles} may do more than use their database. As {SUPERUSER}: {statement}, and REVOKE pg_…"


@pytest.mark.usefixtures("own_server")
def test_texts_are_in_the_order_of_the_indexes(database: psycopg.Connection) -> None:
    """Another base image of Postgres may have another C library, which sorts texts differently from the indexes."""
    rows = database.execute(
        "SELECT datname FROM pg_database WHERE datallowconn"
        " AND datcollversion <> pg_database_collation_actual_version(oid)"
    ).fetchall()
    names = [name for (name,) in rows]
    assert names == [], (
        f"the indexes of {names} were made with another C library, and may be wrong. Back up, then for each as "
        f"{SUPERUSER}, connected to it: REINDEX DATABASE …; ALTER DATABASE … REFRESH COLLATION VERSION"
    )


@pytest.fixture
def server(stack: DeployedStack, own_server: None) -> Instance:
    """The container of the stack's own server, on an engine that can be asked."""
    found = _instance(stack)
    if found.host is None:
        pytest.skip(f"the volume is on {found.node}: see test_each_container_can_be_looked_into")
    return found


@pytest.fixture
def volume(stack: DeployedStack, server: Instance) -> Volume:
    (name,) = server.part.volumes.values()
    try:
        return stack.engine_of(server).volumes.get(name)
    except docker.errors.NotFound:
        pytest.fail(
            f"the volume {name} is gone, and its data too. Restore a backup; for an empty volume: {stack.up}",
            pytrace=False,
        )


def test_the_volume_is_the_stacks_own_and_in_use(stack: DeployedStack, server: Instance, volume: Volume) -> None:
    """By its labels, and by being what Postgres keeps its data in."""
    labels = volume.attrs["Labels"] or {}
    wanted = stack.labels | {f"{LABEL}.part": stack.settings.postgres_volume}
    assert labels.items() >= wanted.items(), (
        f"the volume {volume.name} belongs to another deployment, whose passwords this state does not have. Restore "
        "the state that belongs to it"
    )
    try:
        container = stack.engine_of(server).containers.get(server.container)
    except docker.errors.NotFound:
        pytest.skip(f"{server.container} is not there: see {stack.IS_THERE}")
    mounted = {it["Destination"]: it.get("Name") for it in container.attrs["Mounts"] if it["Type"] != "tmpfs"}
    assert mounted == server.part.volumes, (
        f"{server} keeps its data elsewhere ({mounted}), where the next change of it loses them. Dump the "
        f"databases first, then: {stack.up}"
    )


@pytest.mark.usefixtures("own_server")
def test_the_data_is_protected_as_configured(stack: DeployedStack) -> None:
    """The volume, and the passwords that are needed to read it, as `protectData` says."""
    wanted = stack.settings.protect_data
    volumes = [*stack.of_type(VOLUME)]
    of_litellm = stack.settings.litellm_database and stack.settings.litellm_database_url is None
    names = PASSWORDS | ({"litellm-database-password"} if of_litellm else set())
    passwords = [it for it in stack.of_type(":RotatingSecret") if it["name"] in names]
    there = (len(volumes), len(passwords))
    assert there == (stack.volumes, len(names)), f"the state has no volume, or no password of it: {stack.up}"
    wrong = [it["name"] for it in (*volumes, *passwords) if bool(it.get("protect")) != wanted]
    wrong += [it["name"] for it in volumes if bool(it.get("retainOnDelete")) != wanted]
    assert wrong == [], (
        f"protectData is {str(wanted).lower()}, but not in the state, for {wrong}. Bring it in line: {stack.up}"
    )


PASSWORDS = {"postgres-password", "postgres-initial-password", "database-password"}
"""What can be lost together with the data only."""
