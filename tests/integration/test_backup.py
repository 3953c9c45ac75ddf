"""Backups and restores of a real stack's database: what was saved comes back whole, or nothing changes."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shlex
import signal
import stat
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import psycopg
import pytest
from psycopg import sql

from app import organizations
from console import restore
from console.backup import Content
from console.postgres_programs import CONTAINER_LABEL, BackupError
from tests import documents
from tests.runbooks import Shell
from tests.stack_config import PROJECT
from tests.stacks import LLMCTL, POLL_SECONDS, deployed, free_port, kill_tree
from toolchain import environment_file
from toolchain.operating_system import CACHE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker.models.containers import Container

    from tests.stacks import Deployment

ROWS = 3000
SCHEMA = """
CREATE TYPE mood AS ENUM ('fine', 'très bien', '悪い');
CREATE TABLE kinds (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, organization uuid REFERENCES organizations,
    text text, bytes bytea, exact numeric, float double precision, truth boolean, at timestamptz, span interval,
    document jsonb, list text[], address inet, mood mood, doubled numeric GENERATED ALWAYS AS (exact * 2) STORED
);
CREATE TABLE "Odd ""name"" (a) FROM stdin;" ("Column, too" text);
CREATE VIEW fine AS SELECT id FROM kinds WHERE mood = 'fine';
CREATE INDEX ON kinds (mood, at);
"""
ORGANIZATIONS = """
INSERT INTO organizations (name, llm_fallback_model)
SELECT 'Organisation n° ' || n || ' 組織 🏢', CASE WHEN n %% 3 > 0 THEN 'gpt-4o' END FROM generate_series(1, %s) n
"""
KINDS = r"""
INSERT INTO kinds (organization, text, bytes, exact, float, truth, at, span, document, list, address, mood)
SELECT id,
    (ARRAY[NULL, '', E'tab\t line\n return\r backslash \\ \\. \\N', 'ünïcödé 漢字 🎉 עברית', '\.'])[1 + n %% 5],
    decode(md5(n::text), 'hex'), n / 7.0, (ARRAY['NaN', 'Infinity', '-0', '1e-300'])[1 + n %% 4]::float8 * n,
    n %% 2 = 0, (ARRAY['infinity', '0044-03-15 12:00 BC', '2026-03-29 01:30+01'])[1 + n %% 3]::timestamptz,
    n * interval '1.5 h',
    jsonb_build_object('n', n, 'ключ', ARRAY[n, NULL]), ARRAY['a,b', '"', NULL, '{}'], '10.0.0.0/8'::inet + n,
    (ARRAY['fine', 'très bien', '悪い']::mood[])[1 + n %% 3]
FROM (SELECT id, row_number() OVER (ORDER BY name) AS n FROM organizations) AS numbered
"""


def fill(deployment: Deployment) -> None:
    """Give the database tables with a bit of everything."""
    with deployment.database() as connection:
        connection.execute(SCHEMA)
        connection.execute(ORGANIZATIONS, (ROWS,))
        connection.execute(KINDS, ())
        connection.execute(
            sql.SQL("INSERT INTO {} VALUES ('one'), ('two')").format(sql.Identifier('Odd "name" (a) FROM stdin;'))
        )


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """This module's own stack, whose database is replaced again and again."""
    with deployed(tmp_path_factory.mktemp("backup")) as made:
        fill(made)
        yield made


@pytest.fixture(autouse=True)
def _environment(deployment: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", deployment.outputs["databaseUrl"])
    yield
    organizations.close()


def llmctl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [LLMCTL, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def saved(file: str = "saved.dump") -> Path:
    done = llmctl("backup", file)
    assert done.returncode == 0, done.stderr
    return Path(file)


def restored(file: Path, *options: str | Path) -> dict[str, Any]:
    done = llmctl("restore", file, "--yes", "--json", *options)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def refused(file: Path, *options: str | Path) -> str:
    """Why a restore is refused; it ends with 1 and changes no database."""
    done = llmctl("restore", file, "--yes", *options)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def everything(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table and view, and the position of each sequence."""
    with psycopg.connect(url, autocommit=True) as connection:
        names = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')"
        ).fetchall()
        query = sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1")
        rows = {name: connection.execute(query.format(sql.Identifier(name))).fetchall() for (name,) in names}
        sequences = connection.execute("SELECT sequencename, last_value FROM pg_sequences ORDER BY 1").fetchall()
        return rows | {"sequences": sequences}


def databases(deployment: Deployment) -> dict[str, int]:
    with deployment.database() as connection:
        return dict(connection.execute("SELECT datname, oid::int FROM pg_database").fetchall())


def as_superuser(deployment: Deployment, query: str, database: str = "postgres") -> str:
    return deployment.read("postgres", "psql", "-XAtU", "postgres", "-d", database, "-c", query).strip()


def test_a_backup_is_a_file_and_its_checksum_for_its_owner_only() -> None:
    """Its name contains the database and the time; the checksum can be checked without this project."""
    done = llmctl("backup", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    file = Path(made["file"])
    assert re.fullmatch(r"app-\d{8}T\d{6}Z\.dump", file.name)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path().iterdir()} == {
        file.name: 0o600,
        f"{file.name}.sha256": 0o600,
    }
    assert made["bytes"] == file.stat().st_size
    assert (made["tables"], made["rows"], made["migration"]) == (4, 2 * ROWS + 2 + 2, 2)
    subprocess.run(["sha256sum", "--check", "--strict", f"{file.name}.sha256"], check=True)


def test_a_restore_takes_back_what_came_after_and_keeps_it(deployment: Deployment) -> None:
    """The old database is kept under the printed name, until the printed command drops it."""
    file = saved()
    before, access = (
        everything(deployment.outputs["databaseUrl"]),
        "SELECT datacl::text FROM pg_database WHERE datname = 'app'",
    )
    granted = as_superuser(deployment, access)
    as_superuser(deployment, 'ALTER DATABASE app SET search_path = public, "$user"; ALTER DATABASE app SET jit = off')
    with deployment.database() as connection:
        connection.execute("DELETE FROM kinds")
        connection.execute("CREATE TABLE later ()")
    done = restored(file)
    assert everything(deployment.outputs["databaseUrl"]) == before
    assert as_superuser(deployment, access) == granted
    assert as_superuser(deployment, "SHOW search_path; SHOW jit", "app").split("\n") == ['public, "$user"', "off"]
    assert as_superuser(deployment, "SELECT count(*) FROM kinds", done["kept"]) == "0"
    subprocess.run(shlex.split(done["drop"]), check=True)
    assert done["kept"] not in databases(deployment)
    as_superuser(deployment, "ALTER DATABASE app RESET ALL")


def test_backups_on_a_schedule_are_made_as_the_documents_say(deployment: Deployment, tmp_path: Path) -> None:
    """By the line of the timer's service and by that of cron; the restore takes the newest."""
    folder = tmp_path / "backups"
    folder.mkdir()
    schedule = documents.schedule()
    (of_the_timer,) = re.findall(r"^ExecStart=(.+)$", schedule["llm-backup.service"], re.MULTILINE)
    of_cron = re.sub(r"^(\S+ ){5}", "", schedule["cron"].strip())
    made = []
    for number, line in enumerate((of_the_timer, of_cron)):
        added(deployment, f"night {number}")
        here = line.replace("/opt/llm-infrastructure", str(PROJECT)).replace("/var/backups/llm", str(folder))
        command = here.replace("--keep 14", "--keep 1")
        assert command != here
        done = subprocess.run(command, shell=True, check=True, capture_output=True, text=True)  # noqa: S602 -- as cron does
        made.append(Path(done.stdout.strip()))
        while made[-1].name.endswith(f"{datetime.now(UTC):%H%M%SZ}.dump"):
            time.sleep(POLL_SECONDS)  # the next one's name has another second
    assert made[0] != made[1]
    assert sorted(folder.iterdir()) == [made[1], made[1].with_name(f"{made[1].name}.sha256")]
    before = everything(deployment.outputs["databaseUrl"])
    added(deployment, "after the backup")
    restored(folder)
    assert everything(deployment.outputs["databaseUrl"]) == before


def added(deployment: Deployment, name: str) -> None:
    with deployment.database() as connection:
        connection.execute("INSERT INTO organizations (name) VALUES (%s)", (name,))


def test_a_damaged_or_cut_file_changes_nothing(deployment: Deployment) -> None:
    """Nor does a damaged file with a matching checksum."""
    file = saved()
    whole, before = file.read_bytes(), databases(deployment)
    middle = len(whole) // 2
    for content in (
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        whole[:-1],
        whole[:middle],
        b"",
    ):
        file.write_bytes(content)
        assert "is damaged or cut short" in refused(file)
        if (
            content != whole[:-1]
        ):  # the last byte is the end mark of a table of large objects: pg_restore needs it not
            digest = hashlib.sha256(content).hexdigest()
            Path("copy.dump").write_bytes(content)
            Path("copy.dump.sha256").write_text(f"{digest}  copy.dump\n")
            assert "pg_restore in container" in refused(Path("copy.dump"))
    assert databases(deployment) == before


def test_a_row_too_few_is_found(deployment: Deployment) -> None:
    url = deployment.outputs["databaseUrl"]
    rows = len(everything(url)["organizations"])
    restore._count(url, Content({"public.organizations": rows}, 2))
    with pytest.raises(BackupError, match=f"public.organizations has {rows} rows .* and {rows + 1} in"):
        restore._count(url, Content({"public.organizations": rows + 1}, 2))


def test_a_newer_schema_is_refused_and_an_older_one_is_brought_up_to_date(
    deployment: Deployment, tmp_path: Path
) -> None:
    file, before = saved(), databases(deployment)
    older, newer = tmp_path / "older", tmp_path / "newer"
    for folder in (older, newer):
        folder.mkdir()
    for path in sorted((PROJECT / "migrations").glob("*.sql")):
        (newer / path.name).write_text(path.read_text())
        if path.name.startswith("0001"):
            (older / path.name).write_text(path.read_text())
    assert f"has migration 0002 and {older} ends at 0001" in refused(file, "--folder", older)
    (newer / "0003_broken.sql").write_text("SELECT nothing;")
    assert "0003_broken.sql: line 1" in refused(file, "--folder", newer)
    assert databases(deployment) == before
    (newer / "0003_broken.sql").unlink()
    (newer / "0003_more.sql").write_text("CREATE TABLE more ();")
    assert restored(file, "--folder", newer)["migrated"] == ["0003_more.sql"]
    assert "more" in everything(deployment.outputs["databaseUrl"])
    restored(file)


def on_a_terminal(*arguments: str | Path, answer: str) -> tuple[int, str, str]:
    """Exit code, standard output and what a person saw."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [LLMCTL, *map(str, arguments)], stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True
        ) as process:
            os.close(theirs)
            os.write(ours, f"{answer}\n".encode())
            seen = b""
            with suppress(OSError):  # how the end of a terminal shows
                while chunk := os.read(ours, 1024):
                    seen += chunk
            assert process.stdout is not None
            return process.wait(), process.stdout.read(), seen.decode()
    finally:
        os.close(ours)


def test_a_restore_asks_for_the_databases_name(deployment: Deployment) -> None:
    file, before = saved(), databases(deployment)
    code, printed, seen = on_a_terminal("restore", file, answer="application")
    assert (code, printed) == (1, "")
    assert "Type the database's name" in seen
    assert "nothing was changed" in seen
    assert databases(deployment) == before
    code, printed, seen = on_a_terminal("restore", file, answer="app")
    assert code == 0, seen
    assert printed.strip() in databases(deployment)
    assert databases(deployment)["app"] != before["app"]


def test_progress_is_shown_on_a_terminal_only() -> None:
    code, printed, seen = on_a_terminal("backup", "seen.dump", answer="")
    assert (code, printed) == (0, "seen.dump\n")
    assert "bytes/s" in seen or "?" in seen
    assert "\x1b" in seen
    assert "\x1b" not in llmctl("backup", "unseen.dump").stderr
    assert {path.name for path in Path().glob("*.partial")} == set()


@contextmanager
def going_on(work: Any) -> Iterator[None]:
    """Run `work` over and over in a thread; an exception in it fails the test."""
    ended = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            while not ended.is_set():
                work()
        except BaseException as error:  # noqa: BLE001 -- raised again in the test's own thread
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert raised == []


def test_a_restore_goes_through_under_clients_that_do_not_let_go(deployment: Deployment) -> None:
    """Sessions in a transaction end, and clients that connect again at once find the restored database."""
    file, url = saved(), deployment.outputs["databaseUrl"]
    with deployment.database() as connection:
        connection.execute("DELETE FROM kinds")
    seen: list[int] = []

    def ask() -> None:
        with suppress(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as client:
            for _ in range(50):
                row = client.execute("SELECT count(*) FROM kinds").fetchone()
                seen.append(row[0] if row else -1)

    with psycopg.connect(url) as idle, going_on(ask), going_on(ask):
        idle.execute("SELECT 1 FROM kinds")
        restored(file)
        with pytest.raises(psycopg.OperationalError):
            idle.execute("SELECT 1")
        changed = len(seen)
        while 0 in seen[changed:] or len(seen) == changed:
            changed = len(seen)
    assert set(seen) == {0, ROWS}
    assert seen == sorted(seen), "nobody saw the old database after the new one"


def test_a_backup_while_others_write_is_one_moment(deployment: Deployment) -> None:
    with deployment.database() as connection:
        connection.execute("CREATE TABLE debit (n int); CREATE TABLE credit (n int)")

        def pay() -> None:
            with connection.transaction():
                connection.execute("INSERT INTO debit VALUES (1)")
                connection.execute("INSERT INTO credit VALUES (1)")

        with going_on(pay):
            file = saved()
        row = connection.execute("SELECT count(*) FROM debit").fetchone()
        assert row is not None
        written = row[0]
    restored(file)
    with deployment.database() as connection:
        debit = connection.execute("SELECT count(*) FROM debit").fetchone()
        assert debit == connection.execute("SELECT count(*) FROM credit").fetchone()
        assert debit is not None
        assert 0 < debit[0] < written
        connection.execute("DROP TABLE debit, credit")


def command_lines() -> list[str]:
    """Of every process of this machine, those in containers too."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return lines


def until(query: str, deployment: Deployment, process: subprocess.Popen[str]) -> None:
    while as_superuser(deployment, query) != "t":
        assert process.poll() is None, process.communicate()


@contextmanager
def started(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A command while it runs; what still runs at the end is killed."""
    with subprocess.Popen(
        [LLMCTL, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started, as a lost machine would."""
    if process.poll() is None:
        kill_tree(process.pid)


def test_no_password_is_in_a_message_or_a_process_list_while_a_backup_runs(deployment: Deployment) -> None:
    waiting = (
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'pg_dump' AND wait_event_type = 'Lock'"
    )
    with deployment.database() as connection:
        connection.execute("BEGIN; LOCK TABLE kinds")
        with started("backup", "held.dump") as process:
            until(waiting, deployment, process)
            lines = command_lines()
            assert not Path("held.dump").exists()
            assert stat.S_IMODE(Path("held.dump.partial").stat().st_mode) == 0o600
            assert "exists: another backup" in llmctl("backup", "held.dump").stderr
            connection.execute("ROLLBACK")
            said = process.communicate()
    assert process.returncode == 0, said
    assert any("pg_dump --format=custom" in line for line in lines)
    password = str(psycopg.conninfo.conninfo_to_dict(deployment.outputs["databaseUrl"])["password"])
    assert not any(password in text for text in [*lines, *said])


def saved_slow(deployment: Deployment) -> Path:
    """A backup whose restore stops half-way, for long enough."""
    with deployment.database() as connection:
        connection.execute(
            "CREATE FUNCTION stops_where_it_is_restored() RETURNS boolean LANGUAGE plpgsql AS "
            "$$ BEGIN IF current_database() <> 'app' THEN PERFORM pg_sleep(600); END IF; RETURN true; END $$; "
            "CREATE TABLE slow (n int CHECK (public.stops_where_it_is_restored())); INSERT INTO slow VALUES (1)"
        )
    return saved("slow.dump")


def test_a_restore_that_is_killed_leaves_the_database_as_it_was(deployment: Deployment) -> None:
    """The next one names and drops what is left over; until then, two cannot run at once."""
    file, url = saved(), deployment.outputs["databaseUrl"]
    slow = saved_slow(deployment)
    before, here = everything(url), databases(deployment)
    with started("restore", slow, "--yes") as process:
        until("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'", deployment, process)
        lines = command_lines()
        assert "another restore of app is running" in refused(file)
        kill(process)
        said = process.communicate()
    assert everything(url) == before
    (left,) = databases(deployment).keys() - here.keys()
    assert any("pg_restore --exit-on-error" in line for line in lines)
    password = str(psycopg.conninfo.conninfo_to_dict(url)["password"])
    assert not any(password in text for text in [*lines, *said])
    done = llmctl("restore", file, "--yes")
    assert done.returncode == 0, done.stderr
    assert f"dropping {left}" in done.stderr
    assert left not in databases(deployment)
    assert "slow" not in everything(url)


def test_no_other_restore_begins_before_the_names_have_changed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even at the last moment, because it would drop the database that is about to take the name."""
    file, url, switch = saved(), deployment.outputs["databaseUrl"], restore._switch
    others: list[str] = []

    def with_another(*arguments: Any, **names: Any) -> None:
        others.append(refused(file))
        switch(*arguments, **names)

    monkeypatch.setattr(restore, "_switch", with_another)
    restore.restore(url, file, PROJECT / "migrations", confirm=lambda _: True, report=lambda _: None)
    (said,) = others
    assert "another restore of app is running" in said


def test_a_restore_that_has_lost_its_lock_changes_no_name(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may have begun since, and have dropped the database that is about to take the name."""
    file, url, here = saved(), deployment.outputs["databaseUrl"], databases(deployment)
    before, count = everything(url), restore._count

    def without_lock(*arguments: Any) -> None:
        count(*arguments)
        ended = "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid = database"
        as_superuser(deployment, f"{ended} WHERE locktype = 'advisory' AND datname = 'postgres'")

    monkeypatch.setattr(restore, "_count", without_lock)
    with pytest.raises(BackupError, match=r"keeps other restores out has ended.*database app is as it was"):
        restore.restore(url, file, PROJECT / "migrations", confirm=lambda _: True, report=lambda _: None)
    assert everything(url) == before
    assert databases(deployment) == here


def test_a_restore_that_is_interrupted_takes_its_database_away(deployment: Deployment) -> None:
    slow, here = saved_slow(deployment), databases(deployment)
    with started("restore", slow, "--yes") as process:
        until("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'", deployment, process)
        process.send_signal(signal.SIGINT)
        said = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in said[1]
    assert databases(deployment) == here
    with deployment.database() as connection:
        connection.execute("DROP TABLE slow; DROP FUNCTION stops_where_it_is_restored")


def test_a_role_that_a_file_grants_to_must_be_there(deployment: Deployment) -> None:
    """A restore does not silently lose a grant."""
    as_superuser(deployment, "CREATE ROLE reader")
    as_superuser(deployment, "GRANT SELECT ON organizations TO reader", "app")
    file, before = saved(), databases(deployment)
    as_superuser(deployment, "DROP OWNED BY reader", "app")
    as_superuser(deployment, "DROP ROLE reader")
    said = refused(file)
    assert 'role "reader" does not exist' in said
    assert "database app is as it was" in said
    assert databases(deployment) == before


@pytest.fixture
def external(deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Container]:
    """Somebody else's Postgres, and its version's programs on PATH, which run in their own containers."""
    image, port = deployment.container("postgres").image, free_port()
    assert image is not None
    assert image.id is not None
    # The second looks like a stack's and has the same port, and yet is another server.
    servers: list[Container] = []
    try:
        for address, labels in (("127.0.0.1", {}), ("127.0.0.2", dict([CONTAINER_LABEL.split("=")]))):
            server = deployment.engine.containers.run(
                image.id,
                name=f"{deployment.name}-at-{address}",
                environment={"POSTGRES_PASSWORD": "the-superusers", "POSTGRES_DB": "theirs"},
                ports={"5432/tcp": (address, port)},
                labels=labels,
                detach=True,
            )
            servers.append(server)
            while server.exec_run(["pg_isready", "--host=127.0.0.1"]).exit_code != 0:
                server.reload()
                assert server.status in {"created", "running"}
        server = servers[0]
        roles = "CREATE ROLE theirs LOGIN CREATEDB PASSWORD 'the-password'; ALTER DATABASE theirs OWNER TO theirs"
        assert server.exec_run(["psql", "-U", "postgres", "-c", roles]).exit_code == 0
        programs = tmp_path / "bin"
        programs.mkdir()
        for program in ("pg_dump", "pg_restore", "psql"):
            (programs / program).write_text(
                f"#!/bin/sh\necho {program} \"$@\" >>'{tmp_path}/arguments'\n"
                f'exec docker run --rm --interactive --network=host --env=PGPASSWORD {image.id} {program} "$@"\n'
            )
            (programs / program).chmod(0o755)
        monkeypatch.setenv("PATH", str(programs), prepend=":")
        monkeypatch.setenv("DATABASE_URL", f"postgresql://theirs:the-password@127.0.0.1:{port}/theirs")
        yield server
    finally:
        for server in servers:
            server.remove(force=True, v=True)


def test_your_own_server_is_backed_up_and_restored_with_local_programs(external: Container, tmp_path: Path) -> None:
    """The role needs CREATEDB; the user learns that before any change. No other server is mistaken for this one."""
    url = os.environ["DATABASE_URL"]
    assert llmctl("migrate", "up").returncode == 0
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(ORGANIZATIONS, (100,))
    before = everything(url)
    file = saved()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM organizations")
    role = ["psql", "-U", "postgres", "-c"]
    assert external.exec_run([*role, "ALTER ROLE theirs NOCREATEDB"]).exit_code == 0
    assert "ALTER ROLE theirs CREATEDB" in refused(file)
    assert external.exec_run([*role, "ALTER ROLE theirs CREATEDB"]).exit_code == 0
    done = restored(file)
    assert everything(url) == before
    assert done["drop"].startswith("dropdb ")
    assert "dbname=postgres" in done["drop"]
    arguments = (tmp_path / "arguments").read_text()
    assert "pg_dump --format=custom" in arguments
    assert "the-password" not in arguments


def test_sessions_that_may_not_be_ended_stop_the_restore(external: Container) -> None:
    """The restore is undone and the database goes on."""
    assert llmctl("migrate", "up").returncode == 0
    file = saved()
    url = psycopg.conninfo.make_conninfo(os.environ["DATABASE_URL"], user="postgres", password="the-superusers")
    with psycopg.connect(url, autocommit=True) as superuser:
        said = refused(file)
        assert "1 other session using the database" in said
        assert "database theirs is as it was" in said
        names = superuser.execute("SELECT datname FROM pg_database WHERE datname ~ 'theirs_'").fetchall()
        assert names == []


@pytest.mark.usefixtures("external")
def test_missing_programs_of_the_servers_version_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bin" / "pg_dump").write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n")
    done = llmctl("backup")
    assert done.returncode == 1
    assert "pg_dump on PATH has version 9" in done.stderr
    assert "no container with the label" in done.stderr


def test_a_purge_leaves_nothing(deployment: Deployment, tmp_path: Path) -> None:
    """Of the stack, on the engine and in the state, and of what was created on the machine. This test must be last.

    A volume that no resource has any more, as of an earlier version of Postgres, goes too.
    """
    volume = deployment.engine.volumes.list(filters=deployment.of_stack)[0]
    deployment.engine.volumes.create(f"{volume.name}-of-before", labels=volume.attrs["Labels"])
    image = f"llm-infrastructure.invalid/{deployment.name}:1"
    deployment.image("edge").tag(image)
    (deployment.folder / ".images.yaml").write_text(json.dumps({"haproxy:1": image}))
    cache = tmp_path / "cache/llm-infrastructure"
    cache.mkdir(parents=True)
    (cache / "tools").symlink_to(CACHE / "tools")
    folders = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_STATE_HOME": str(tmp_path / "state")}
    shell = Shell(deployment, **folders)
    environment_file.write(deployment.folder / ".env", deployment.outputs)
    protected = deployment.pulumi("state", "protect", "--all", "--yes")
    assert protected.returncode == 0, protected.stdout
    code, said = shell.type('echo dev | make purge STACK="$PULUMI_STACK"')
    assert code != 0
    assert "nothing was changed" in said
    assert deployment.pulumi("stack").returncode == 0
    code, said = shell.type('echo "$PULUMI_STACK" | make purge STACK="$PULUMI_STACK"')
    assert code == 0, said
    assert deployment.leftovers() == []
    assert [path for path in deployment.state.rglob("*") if deployment.name in path.name] == []
    with pytest.raises(docker.errors.ImageNotFound):
        deployment.engine.images.get(image)
    assert [path for path in tmp_path.rglob("*") if path.name == "llm-infrastructure"] == []
    assert not (deployment.folder / ".images.yaml").exists()
    assert not (deployment.folder / ".env").exists()
    assert (CACHE / "tools").is_dir()
