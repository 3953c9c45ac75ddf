"""The stack's own Postgres, as its superuser and its everyday users meet it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from console import doctor, status
from infra import postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stacks import Deployment


@pytest.fixture
def superuser(deployment: Deployment) -> Iterator[psycopg.Connection]:
    with psycopg.connect(
        deployment.outputs["databaseUrl"],
        user=postgres.SUPERUSER,
        dbname=postgres.SUPERUSER,
        password=deployment.secret("postgres-password"),
        autocommit=True,
    ) as connection:
        yield connection


@contextmanager
def of_another_c_library(superuser: psycopg.Connection, database: str) -> Iterator[None]:
    """A database as another base image of Postgres finds it."""
    statement = "UPDATE pg_database SET datcollversion = %s WHERE datname = %s"
    superuser.execute(statement, ("1.0", database))
    try:
        yield
    finally:
        superuser.execute(sql.SQL("ALTER DATABASE {} REFRESH COLLATION VERSION").format(sql.Identifier(database)))


def test_a_database_is_made_under_another_c_library(superuser: psycopg.Connection) -> None:
    """Under which template1 cannot be copied, so that an `up` would fail midway."""
    try:
        with of_another_c_library(superuser, "template1"):
            with pytest.raises(psycopg.Error, match="collation version mismatch"):
                superuser.execute("CREATE DATABASE test_made")
            postgres._ensure_database(superuser, "test_made")
        found = superuser.execute("SELECT datcollversion <> '1.0' FROM pg_database WHERE datname = 'test_made'")
        assert found.fetchone() == (True,)
    finally:
        superuser.execute("DROP DATABASE IF EXISTS test_made")
        superuser.execute("DROP ROLE IF EXISTS test_made")


@pytest.mark.usefixtures("environment")
def test_doctor_and_status_say_what_another_c_library_wants(
    deployment: Deployment, superuser: psycopg.Connection
) -> None:
    """The text indexes whose order is no longer the server's."""
    with deployment.database() as connection:
        with of_another_c_library(superuser, "app"):
            found = doctor.collation(connection)
            assert found is not None
            assert found.status == "warning"
            assert found.fix == "docs/runbooks/another-c-library.md"
            assert [wrong for wrong in status.read().wrong if found.detail in wrong]
        assert status.read().wrong == ()
        found = doctor.collation(connection)
        assert found is not None
        assert found.status == "ok"


def test_a_parallel_query_has_the_memory_that_it_is_given(deployment: Deployment) -> None:
    """The engine's 64 MB of shared memory do not hold the hash table of two million rows."""
    with deployment.database() as connection, connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL work_mem = '256MB'")
        for setting in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
            connection.execute(f"SET LOCAL {setting} = 0".encode())
        connection.execute("CREATE TABLE test_rows AS SELECT n, n AS m FROM generate_series(1, 2000000) AS n")
        connection.execute("ANALYZE test_rows")
        query = "SELECT count(*) FROM test_rows AS a JOIN test_rows AS b ON a.n = b.m"
        plan = connection.execute(f"EXPLAIN {query}".encode()).fetchall()
        assert "Parallel Hash Join" in str(plan)
        assert connection.execute(query.encode()).fetchone() == (2_000_000,)
