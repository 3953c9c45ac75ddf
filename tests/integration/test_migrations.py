"""The migration runner on a real Postgres: concurrent starts, runs that stop half-way, and files that do not fit."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from app import migrations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.stacks import Deployment


@contextmanager
def new_schema(deployment: Deployment) -> Iterator[str]:
    """A test's own schema in the stack's database."""
    name = f"test_{uuid.uuid4().hex}"
    with deployment.database() as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        yield name
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


def inside(deployment: Deployment, schema: str) -> str:
    """The database's URL, restricted to this schema."""
    return make_conninfo(deployment.outputs["databaseUrl"], options=f"-csearch_path={schema}")


@pytest.fixture
def conninfo(deployment: Deployment) -> Iterator[str]:
    with new_schema(deployment) as schema:
        yield inside(deployment, schema)


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        (folder / f"{name.removeprefix('m')}.sql").write_text(content)


def rows(conninfo: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("SET ROLE NONE")  # the login role, which may see and end its own connections
        return connection.execute(query.encode()).fetchall()


def test_ten_runs_at_once_apply_each_file_once(conninfo: str, tmp_path: Path) -> None:
    write(
        tmp_path,
        m0001_a="CREATE TABLE a (n int); INSERT INTO a VALUES (1); SELECT pg_sleep(0.2);",
        m0002_b="INSERT INTO a VALUES (2);",
    )
    with ThreadPoolExecutor(10) as pool:
        applied = list(pool.map(lambda _: migrations.up(conninfo, tmp_path), range(10)))
    assert sorted(map(len, applied)) == [0] * 9 + [2]
    assert rows(conninfo, "SELECT n FROM a ORDER BY n") == [(1,), (2,)]


def test_a_run_says_what_it_waits_for_and_gives_up(conninfo: str, tmp_path: Path) -> None:
    write(tmp_path, m0001_a="SELECT 1;")
    said: list[str] = []
    with psycopg.connect(conninfo, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (migrations.ADVISORY_LOCK,))
        with pytest.raises(migrations.MigrationError, match="still holds the lock"):
            migrations.up(conninfo, tmp_path, wait_seconds=0.3, report=said.append)
    assert said == ["waiting for another migration run to end"]


def test_a_run_with_nothing_to_apply_writes_nothing(conninfo: str, tmp_path: Path) -> None:
    """So it succeeds even if writes are refused, for example while the data move to another server."""
    write(tmp_path, m0001_a="SELECT 1;")
    migrations.up(conninfo, tmp_path)
    read_only = make_conninfo(
        conninfo, options=f"{conninfo_to_dict(conninfo)['options']} -cdefault_transaction_read_only=on"
    )
    assert migrations.up(read_only, tmp_path) == ()


def test_a_failing_file_is_undone_whole_and_named(conninfo: str, tmp_path: Path) -> None:
    write(tmp_path, m0001_a="CREATE TABLE a (n int);", m0002_b="CREATE TABLE b (n int);\nSELECT nothing;")
    with pytest.raises(migrations.MigrationError, match=r'0002_b\.sql: line 2: column "nothing" does not exist'):
        migrations.up(conninfo, tmp_path)
    assert [each.file for each in migrations.status(conninfo, tmp_path).applied] == ["0001_a.sql"]
    assert rows(conninfo, "SELECT to_regclass('b')") == [(None,)]
    write(tmp_path, m0002_b="CREATE TABLE b (n int);")
    assert [each.file for each in migrations.up(conninfo, tmp_path)] == ["0002_b.sql"]


@pytest.mark.parametrize("control", ["BEGIN", "COMMIT", "ROLLBACK"])
def test_a_file_that_ends_its_transaction_is_refused_before_anything_runs(
    conninfo: str, tmp_path: Path, control: str
) -> None:
    write(tmp_path, m0001_a="CREATE TABLE a (n int);", m0002_b=f"CREATE TABLE b (n int);\n{control};")
    with pytest.raises(migrations.MigrationError, match=rf"0002_b\.sql: line 2: {control} would end"):
        migrations.up(conninfo, tmp_path)
    assert rows(conninfo, "SELECT to_regclass('a')") == [(None,)]


def test_whatever_hides_in_a_file_cannot_end_its_transaction(conninfo: str, tmp_path: Path) -> None:
    """Neither with code that the server runs, nor with text that the server would split differently."""
    for hidden in (
        "DO $$BEGIN COMMIT; END$$",
        "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$BEGIN COMMIT; END$$; CALL p()",
        "SET standard_conforming_strings = off; SELECT '\\'; COMMIT; --'",
    ):
        write(tmp_path, m0001_a=f"CREATE TABLE a (n int); {hidden}; SELECT nothing;")
        with pytest.raises(migrations.MigrationError, match=r"0001_a\.sql"):
            migrations.up(conninfo, tmp_path)
        assert rows(conninfo, "SELECT to_regclass('a')") == [(None,)]


def test_what_a_file_sets_ends_with_it(conninfo: str, tmp_path: Path) -> None:
    """For example a dump's search_path, which hides what was applied; also its session's roles, times and tables."""
    write(
        tmp_path,
        m0001_a="SELECT set_config('search_path', '', false); SET statement_timeout = 0; SET row_security = off;",
        m0002_b="CREATE TABLE a (n int); CREATE TEMP TABLE t (); PREPARE p AS SELECT 1; SET ROLE pg_database_owner;",
        m0003_c="CREATE TABLE b (); PREPARE p AS SELECT 1; CREATE TEMP TABLE t ();"
        "DO $$BEGIN ASSERT current_setting('statement_timeout') = '10min'; END$$",
    )
    assert len(migrations.up(conninfo, tmp_path)) == 3
    assert len(migrations.status(conninfo, tmp_path).applied) == 3
    assert migrations.up(conninfo, tmp_path) == ()
    assert rows(conninfo, "SELECT to_regclass('a') IS NOT NULL, to_regclass('b') IS NOT NULL") == [(True, True)]


def test_statements_of_every_kind_are_applied(conninfo: str, tmp_path: Path) -> None:
    write(
        tmp_path,
        m0001_a="""
            CREATE TABLE a (n int, t text DEFAULT ';'); -- one;
            CREATE FUNCTION f(n int) RETURNS int BEGIN ATOMIC SELECT CASE WHEN n > 0 THEN 1 ELSE 0 END; END;
            CREATE FUNCTION g() RETURNS int LANGUAGE plpgsql AS $f$ BEGIN RETURN f(1); END; $f$;
            CREATE RULE r AS ON UPDATE TO a DO ALSO (INSERT INTO a VALUES (8); INSERT INTO a VALUES (9));
            SAVEPOINT s; INSERT INTO a VALUES (2); ROLLBACK TO s;
            INSERT INTO a VALUES (g(), E'it\\'s; 100 %');
            DO $$ BEGIN UPDATE a SET n = n; END $$""",
    )
    migrations.up(conninfo, tmp_path)
    assert rows(conninfo, "SELECT n, t FROM a ORDER BY n") == [(1, "it's; 100 %"), (8, ";"), (9, ";")]


def test_a_run_that_is_killed_leaves_nothing_half_and_no_lock(conninfo: str, tmp_path: Path) -> None:
    write(tmp_path, m0001_a="CREATE TABLE a (n int); SELECT pg_sleep(600);")
    program = (
        f"from pathlib import Path; from app import migrations; migrations.up({conninfo!r}, Path({str(tmp_path)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        sleeping = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'migrations' AND wait_event = 'PgSleep'"
        try:
            while not rows(conninfo, sleeping):
                assert process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)
    rows(conninfo, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    write(tmp_path, m0001_a="CREATE TABLE a (n int);")
    assert len(migrations.up(conninfo, tmp_path)) == 1


def test_a_statement_does_not_wait_for_ever_for_a_lock(conninfo: str, tmp_path: Path) -> None:
    write(tmp_path, m0001_a="CREATE TABLE a (n int);")
    migrations.up(conninfo, tmp_path)
    write(tmp_path, m0002_b="ALTER TABLE a ADD COLUMN m int;")
    with psycopg.connect(conninfo) as other:
        other.execute("LOCK TABLE a")
        with pytest.raises(migrations.MigrationError, match="lock timeout"):
            migrations.up(conninfo, tmp_path, lock_timeout_seconds=0.2)
    write(tmp_path, m0002_b="SELECT pg_sleep(60);")
    with pytest.raises(migrations.MigrationError, match="statement timeout"):
        migrations.up(conninfo, tmp_path, statement_timeout_seconds=0.2)


def test_a_file_may_ask_to_run_outside_a_transaction(conninfo: str, tmp_path: Path) -> None:
    write(
        tmp_path,
        m0001_a="CREATE TABLE a (n int);",
        m0002_index="-- migrate: no-transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS a_n ON a (n);",
    )
    assert len(migrations.up(conninfo, tmp_path)) == 2
    assert rows(conninfo, "SELECT to_regclass('a_n') IS NOT NULL") == [(True,)]


def test_a_failed_index_does_not_count_as_created(conninfo: str, tmp_path: Path) -> None:
    """The file that creates it is refused until the index is dropped as the message says."""
    write(
        tmp_path,
        m0001_a="CREATE TABLE a AS SELECT 1 AS n FROM generate_series(1, 2);",
        m0002_index="-- migrate: no-transaction\nCREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS A_n ON a (n);",
    )
    with pytest.raises(migrations.MigrationError, match=r"0002_index\.sql: could not create unique index"):
        migrations.up(conninfo, tmp_path)
    with pytest.raises(migrations.MigrationError, match=r"0002_index\.sql: index a_n is invalid") as caught:
        migrations.up(conninfo, tmp_path)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("TRUNCATE a")
        connection.execute(str(caught.value).partition("invalid: ")[2].partition(",")[0].encode())
    assert [each.file for each in migrations.up(conninfo, tmp_path)] == ["0002_index.sql"]


def test_an_index_without_a_name_is_refused_before_anything_is_applied(conninfo: str, tmp_path: Path) -> None:
    """If it failed, the next run would create a second one. Such files that are already applied stay as they are."""
    write(
        tmp_path,
        m0001_a="CREATE TABLE a (n integer);",
        m0002_index="-- migrate: no-transaction\nCREATE INDEX CONCURRENTLY ON a (n);",
    )
    with pytest.raises(migrations.MigrationError, match=r"0002_index\.sql: give the index a name"):
        migrations.up(conninfo, tmp_path)
    assert migrations.status(conninfo, tmp_path).applied == ()


def test_an_invalid_index_of_somebody_else_stops_nothing(
    conninfo: str, deployment: Deployment, tmp_path: Path
) -> None:
    """Neither one on the same table, nor one of the same name in another schema."""
    write(tmp_path, m0001_a="CREATE TABLE a AS SELECT 1 AS n FROM generate_series(1, 2);")
    migrations.up(conninfo, tmp_path)
    with new_schema(deployment) as other:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE TABLE {}.a AS SELECT * FROM a").format(sql.Identifier(other)))
            for index, table in (("a_n_unique", "a"), ("a_n", f"{other}.a")):
                with pytest.raises(psycopg.errors.UniqueViolation):
                    connection.execute(f"CREATE UNIQUE INDEX CONCURRENTLY {index} ON {table} (n)".encode())
        write(tmp_path, m0002_index="-- migrate: no-transaction\nCREATE INDEX CONCURRENTLY a_n ON a (n);")
        assert [each.file for each in migrations.up(conninfo, tmp_path)] == ["0002_index.sql"]


def test_a_changed_or_missing_file_is_refused(conninfo: str, tmp_path: Path) -> None:
    write(tmp_path, m0001_a="SELECT 1;", m0002_b="SELECT 2;")
    migrations.up(conninfo, tmp_path)
    write(tmp_path, m0002_b="SELECT 3;")
    with pytest.raises(migrations.MigrationError, match=r"0002_b\.sql was changed after it was applied"):
        migrations.status(conninfo, tmp_path)
    (tmp_path / "0002_b.sql").unlink()
    with pytest.raises(migrations.MigrationError, match=r"0002_b\.sql was applied to this database and is missing"):
        migrations.up(conninfo, tmp_path)
    write(tmp_path, m0002_c="SELECT 2;")
    with pytest.raises(migrations.MigrationError, match=r"0002_b\.sql was applied to this database and is missing"):
        migrations.up(conninfo, tmp_path)


@settings(max_examples=10, deadline=None)
@given(names=st.lists(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), min_size=1, max_size=5))
def test_any_row_of_files_is_applied_in_order(
    deployment: Deployment, tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("migrations")
    for name in names:
        migrations.new(folder, name)
    with new_schema(deployment) as schema:
        conninfo = inside(deployment, schema)
        assert [each.name for each in migrations.up(conninfo, folder)] == names
        assert migrations.up(conninfo, folder) == ()
