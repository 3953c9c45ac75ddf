"""LiteLLM's own database, of a stack that has one: who reaches it, its schema, and the replicas that use it."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import psycopg
import pytest

from console import litellm_check, management
from infra import litellm_connections
from infra.litellm_database import foreign_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testinfra.host import Host

    from tests.deploy.stack import DeployedStack, Instance

SECONDS = 15


@pytest.fixture
def url(stack: DeployedStack) -> str:
    """The database as this machine reaches it."""
    found: str = stack.outputs["litellmDatabaseUrl"]
    return found


@pytest.fixture
def connection(url: str) -> Iterator[psycopg.Connection]:
    try:
        connection = psycopg.connect(url, connect_timeout=SECONDS, autocommit=True)
    except psycopg.OperationalError:
        pytest.skip("it cannot be reached: see test_it_is_reached_and_has_connections_left")
    with connection:
        yield connection


def test_it_is_reached_and_has_connections_left(stack: DeployedStack, url: str) -> None:
    """From where this runs, as `pulumi up` and a backup must."""
    found = litellm_check.of_server(url, SECONDS, stack=stack.name)
    wrong = [f"{each.detail}: {each.fix}" for each in found if each.status != "ok"]
    assert wrong == [], f"LiteLLM's database: {'; '.join(wrong)}"


def test_its_login_is_bounded_and_acts_as_the_owner(stack: DeployedStack, connection: psycopg.Connection) -> None:
    """All that LiteLLM's role makes belongs to the database's owner, and it cannot take what the app needs."""
    if stack.settings.litellm_database_url is not None:
        pytest.skip("its server is not the stack's own (litellmDatabaseUrl), and so is its role")
    settings = stack.settings
    wanted = litellm_connections.limit(settings.replicas, litellm_connections.pool(settings.general_settings))
    found = connection.execute(
        "SELECT rolconnlimit, current_user = pg_get_userbyid(datdba), current_user = session_user"
        " FROM pg_roles, pg_database WHERE rolname = session_user AND datname = current_database()"
    ).fetchone()
    assert found == (wanted, True, False), (
        f"someone changed LiteLLM's role: of its connections, whether it acts as the owner, and whether as itself, "
        f"is {found}, and should be {(wanted, True, False)}. Rotate its password, which puts all of it right: "
        f"./pulumiw config set --stack {stack.name} --path secretVersions.litellmDatabasePassword "
        f"{settings.secret_versions.litellm_database_password + 1} && {stack.up}"
    )


def test_it_holds_nothing_but_litellms_tables(connection: psycopg.Connection) -> None:
    """LiteLLM 1.55.0 drops what it does not know."""
    assert (found := foreign_tables(connection)) == [], (
        f"LiteLLM may drop {found}: move them to another database (pg_dump --table, then DROP TABLE)"
    )


@pytest.mark.of_kind("litellm")
def test_its_schema_is_that_of_the_release_that_runs(
    stack: DeployedStack, url: str, connection: psycopg.Connection, instance: Instance, inside: Host
) -> None:
    told = inside.check_output(f"python3 -I -c {shlex.quote(litellm_check.PROGRAM)}")
    found = litellm_check.of_release(url, json.loads(told), SECONDS, stack=stack.name)
    assert found.status == "ok", f"{found.detail}. {found.fix}"


@pytest.mark.of_kind("litellm")
def test_each_replica_is_connected_to_it(url: str, stack: DeployedStack, instance: Instance, inside: Host) -> None:
    asked = shlex.quote(json.dumps([["GET", "/health/readiness", None]]))
    told = inside.check_output(f"echo {asked} | python3 -I -c {shlex.quote(management.PROGRAM)}")
    [[_, body]] = json.loads(told)
    assert isinstance(body, dict), f"{instance} does not say how it is. {stack.look_into(instance.part)}"
    assert body.get("db") == "connected", (
        f"{instance} is not connected to LiteLLM's database. {stack.look_into(instance.part)} If the database is "
        f"reached from here: {stack.docker(f'restart {instance.container}')}"
    )
