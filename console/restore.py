"""Restores the stack's databases from files: what `llmctl restore` does.

It creates a new database beside the present one and fills it as the database's own role, so that no file ever runs as
superuser. It counts the rows and brings the app's schema up to date, or checks that LiteLLM can use its database.
Only then does it swap the names of the two, in one transaction. If it ends before that, for whatever reason, the
present database is as it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Literal

import psycopg
from psycopg.conninfo import make_conninfo

from app import migrations
from console import litellm_database
from console.backup import backups_in, beside, companion, content_of, file_errors, shown_progress
from console.postgres_programs import BackupError, connected, one_line, programs_for, server_at
from console.programs import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import FileIO
    from pathlib import Path

    from console.backup import Content
    from console.litellm_database import Run
    from console.postgres_programs import Programs, Server

Only = Literal["app", "litellm"]
POLL_SECONDS = 0.2

MAY_RESTORE = """
SELECT (SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user)
   AND (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = :'live');
"""
LEFTOVERS = "SELECT datname FROM pg_database WHERE datname ~ :'pattern' ORDER BY datname;"
# With the owner, encoding, locale, connection limit and connect privileges of the present one.
CREATE = r"""
SELECT format('CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING %L LC_COLLATE %L LC_CTYPE %L '
              'CONNECTION LIMIT %s',
              :'new', rolname, pg_encoding_to_char(encoding), datcollate, datctype, datconnlimit)
       || CASE to_jsonb(d) ->> 'datlocprovider'
          WHEN 'i' THEN format(' LOCALE_PROVIDER icu ICU_LOCALE %L',
                               coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'))
          WHEN 'b' THEN format(' LOCALE_PROVIDER builtin BUILTIN_LOCALE %L', to_jsonb(d) ->> 'datlocale')
          ELSE '' END
FROM pg_database d JOIN pg_roles r ON r.oid = datdba WHERE datname = :'live' \gexec
REVOKE ALL ON DATABASE :"new" FROM PUBLIC;
SELECT format('GRANT %s ON DATABASE %I TO %s', privilege_type, :'new',
              CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE datname = :'live' \gexec
"""
DROP = 'DROP DATABASE IF EXISTS :"new" WITH (FORCE);'
# The settings come last, because one of them may forbid writes. Settings that are lists are stored as they are
# written. The first rename locks out new connections, then waits up to 5 s for the sessions to end.
SWITCH = r"""
BEGIN;
SELECT format('ALTER %s SET %I TO %s',
              CASE setrole WHEN 0 THEN format('DATABASE %I', :'new')
                           ELSE format('ROLE %s IN DATABASE %I', setrole::regrole, :'new') END,
              name, CASE WHEN name IN ('search_path', 'temp_tablespaces', 'local_preload_libraries',
                                       'session_preload_libraries') THEN value ELSE quote_literal(value) END)
FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase, unnest(setconfig) AS setting,
     LATERAL (SELECT split_part(setting, '=', 1) AS name, substr(setting, strpos(setting, '=') + 1) AS value) AS pair
WHERE datname = :'live' AND (setrole = 0 OR pg_has_role(setrole, 'USAGE')) \gexec
ALTER DATABASE :"live" RENAME TO :"kept";
ALTER DATABASE :"new" RENAME TO :"live";
COMMIT;
"""
NEVER_IDLE_TOO_LONG = """
DO $$ BEGIN
    PERFORM set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout';  -- none before 14
END $$"""
END_SESSIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datid = :'oid' AND pg_has_role(usesysid, 'USAGE');
"""


@dataclass(frozen=True, slots=True)
class Restored:
    """A finished restore: what the database contains now, and the name under which the old one is kept."""

    database: str
    kept: str
    tables: int
    rows: int
    migrated: tuple[str, ...]
    """The migration files that were applied to it, because the backup was older."""
    drop: str
    """The command that drops the old database."""
    litellm: Restored | None = None
    """The restore of LiteLLM's own database, if that was restored too."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A file that has been read, and the database that it will replace."""

    server: Server
    programs: Programs
    file: Path
    stream: FileIO
    content: Content
    of_litellm: bool


def restore(  # noqa: PLR0913 -- all by name
    url: str,
    file: Path,
    folder: Path,
    *,
    litellm: str | None = None,
    only: Only | None = None,
    force: bool = False,
    run: Run = litellm_database.in_replica,
    confirm: Callable[[str], bool],
    report: Callable[[str], None],
) -> Restored:
    """Replace the database at `url` with the content of `file`, and keep the present one under another name.

    If `file` is a folder, the newest backup of this database in it is used. `folder` has the migrations: those that
    are missing in the file are applied, and a file with a migration that `folder` does not have is refused. LiteLLM's
    database, at `litellm`, gets the file's companion, or `file` itself if that has LiteLLM's tables; `only` restores
    one of the two. It must have the schema of the present one and the replicas' salt key, unless `force` is given.
    `run` runs the text of a program in a replica. `confirm` is called with each database's name before anything is
    created; `report` gets a line for each step. Sessions in a database are ended at the last moment.

    Raises BackupError, and MigrationError for a folder that cannot be read; then the database is unchanged.
    """
    newest = len(migrations.read(folder))
    if file.is_dir():
        file = _newest(file, server_at(url).database)
    with ExitStack() as opened:
        plans = _plans(opened, url, file, litellm, only, report)
        for plan in plans:
            _refuse(plan, newest, folder)
        for plan in plans:
            live = plan.server.database
            report(
                f"this replaces database {live} on {plan.server.address} with {plan.file} ({plan.content}) and ends "
                "the sessions in it; what it holds now is kept under another name"
            )
            if not confirm(live):
                raise BackupError(f"nothing was changed: that is not the name of database {live}")
        done: list[Restored] = []
        for plan in plans:
            try:
                one = _restore(plan, partial(_finished, plan, folder, run, report, force=force), report)
            except BackupError as error:
                also = "".join(f". LiteLLM's is restored, what it held before is {each.kept}" for each in done)
                raise BackupError(f"{error}{also}") from error
            done.append(replace(one, litellm=done[0] if done else None))
        return done[-1]


def _plans(  # noqa: PLR0913, PLR0917 -- those of `restore`
    opened: ExitStack, url: str, file: Path, litellm: str | None, only: Only | None, report: Callable[[str], None]
) -> list[_Plan]:
    """What to restore: LiteLLM's database first, because there are more reasons to refuse it."""

    def of_litellm(file: Path) -> _Plan:
        if litellm is None:
            raise BackupError(
                f"{file} has LiteLLM's database, and {litellm_database.VARIABLE} is not set: ./pulumiw up writes it "
                "to .env where litellmDatabase is on. The app's database alone: --only app"
            )
        return _read(opened, file, litellm, report, of_litellm=True)

    beside_it = companion(file)
    if only == "litellm":
        return [of_litellm(beside_it if beside_it.exists() else file)]
    plan = _read(opened, file, url, report)
    if litellm_database.is_litellms(plan.content):
        if only == "app":
            raise BackupError(f"{file} has LiteLLM's database, and not the app's: leave --only out")
        return [of_litellm(file)]
    if only == "app":
        return [plan]
    if beside_it.exists():
        return [of_litellm(beside_it), plan]
    if litellm is not None:
        report(f"there is no {beside_it}: LiteLLM's database stays as it is")
    return [plan]


def _read(
    opened: ExitStack, file: Path, url: str, report: Callable[[str], None], *, of_litellm: bool = False
) -> _Plan:
    opened.enter_context(file_errors(file))
    stream = opened.enter_context(file.open("rb", buffering=0))
    _check_sum(stream, file)
    server = server_at(url, litellm_database.VARIABLE) if of_litellm else server_at(url)
    programs = programs_for(server)
    report(f"reading {file} with pg_restore {programs.where}")
    content = content_of(programs, stream)
    stream.seek(0)
    return _Plan(server, programs, file, stream, content, of_litellm)


def _refuse(plan: _Plan, newest: int, folder: Path) -> None:
    """Raise BackupError for problems that can be found before anything is created."""
    server = plan.server
    if plan.of_litellm and plan.content.rows and not litellm_database.is_litellms(plan.content):
        raise BackupError(f"{plan.file} has tables that are not LiteLLM's: it is not a backup of LiteLLM's database")
    if plan.content.migration > newest:
        raise BackupError(
            f"{plan.file} has migration {plan.content.migration:04d} and {folder} ends at {newest:04d}: use the "
            "version of this project that the backup is from, or a later one"
        )
    if plan.programs.sql(MAY_RESTORE, live=server.database) != "t":
        raise BackupError(
            f"the role {server.role} of {server.variable} is not allowed to restore: it must own database "
            f"{server.database} and be able to create another (as superuser: ALTER ROLE {server.role} CREATEDB)"
        )


def _finished(  # noqa: PLR0913 -- those of `restore`
    plan: _Plan, folder: Path, run: Run, report: Callable[[str], None], restored: str, *, force: bool
) -> Sequence[migrations.Migration]:
    """Bring a restored database up to date, or check that it is. Raises BackupError and MigrationError."""
    if not plan.of_litellm:
        return migrations.up(restored, folder, report=report)
    for why in litellm_database.objections(restored, plan.server.url, run):
        if not force:
            raise BackupError(f"{plan.file} {why}. To restore the app's database alone: --only app")
        report(f"{plan.file} {why}")
    return ()


def _newest(folder: Path, database: str) -> Path:
    """The newest backup of a database in a folder. Raises BackupError if there is none."""
    backups = backups_in(folder, database)
    if not backups:
        raise BackupError(f"{folder} has no backup of database {database} with a time in its name: name a file")
    return backups[-1]


def _restore(
    plan: _Plan, finish: Callable[[str], Sequence[migrations.Migration]], report: Callable[[str], None]
) -> Restored:
    server, programs, content = plan.server, plan.programs, plan.content
    live, stamp = server.database, f"{datetime.now(UTC):%Y%m%d_%H%M%S}"
    new, kept = f"{live}_restored_{stamp}", f"{live}_before_{stamp}"
    if len(new.encode()) > migrations.LONGEST_NAME_BYTES:
        raise BackupError(f"the name of database {live} is too long to restore beside it: nothing was changed")
    try:
        with _only_one(programs, live) as lock:
            _drop_leftovers(programs, live, report)
            try:
                programs.sql(CREATE, live=live, new=new)
                report(f"restoring into the new database {new}")
                _fill(programs, new, plan.stream)
                url = make_conninfo(server.url, dbname=new)
                _count(url, content)
                migrated = finish(url)
                report(f"{new} is complete and replaces {live}")
                _refuse_unlocked(lock)
                _switch(programs, server, new=new, kept=kept)
            except BaseException:
                with suppress(BackupError):  # the next restore finds it
                    programs.sql(DROP, new=new)
                raise
    except (BackupError, migrations.MigrationError, psycopg.Error) as error:
        raise BackupError(f"{one_line(error)}; database {live} is as it was") from error
    drop = shlex.join(programs.command("dropdb", f"--maintenance-db={programs.admin}", kept))
    report(f"what {live} held before is kept; to delete it once nobody needs it: {drop}")
    return Restored(
        database=live,
        kept=kept,
        tables=len(content.rows),
        rows=content.total,
        migrated=tuple(migration.file for migration in migrated),
        drop=drop,
    )


@contextmanager
def _only_one(programs: Programs, live: str) -> Iterator[subprocess.Popen[str]]:
    """Prevent a second restore, which would mistake this one's new database for a leftover.

    The lock belongs to a session outside the database, because all sessions in it end before the names change.
    """
    key = int.from_bytes(hashlib.sha256(f"llm-infrastructure restore {live}".encode()).digest()[:8], signed=True)
    with subprocess.Popen(
        programs.psql(
            f"--command={NEVER_IDLE_TOO_LONG}", f"--command=SELECT pg_try_advisory_lock({key})", "--file=-"
        ),
        env=programs.environment,
        stdin=subprocess.PIPE,  # the session lasts as long as this block
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as session:
        answer = next(iter(session.stdout or ()), "").strip()
        if answer == "f":
            raise BackupError(f"another restore of {live} is running: wait for it to end")
        if answer != "t":
            raise BackupError(f"psql {programs.where} failed: {reason(''.join(session.stderr or ()))}")
        yield session


def _refuse_unlocked(lock: subprocess.Popen[str]) -> None:
    """Raise BackupError unless the session that `_only_one` began still answers, and so still has its lock."""
    if lock.stdin and lock.stdout:
        with suppress(BrokenPipeError):  # then it says nothing
            os.write(lock.stdin.fileno(), b"SELECT true;\n")
        if lock.stdout.readline() == "t\n":
            return
    raise BackupError("the session that keeps other restores out has ended: run it again")


def _drop_leftovers(programs: Programs, live: str, report: Callable[[str], None]) -> None:
    pattern = rf"^{re.escape(live)}_restored_\d{{8}}_\d{{6}}$"
    for left in programs.sql(LEFTOVERS, pattern=pattern).splitlines():
        report(f"dropping {left}, left behind by a restore that was killed")
        programs.sql(DROP, new=left)


def _fill(programs: Programs, new: str, stream: FileIO) -> None:
    """Restore an archive as the app's own role, which then owns everything."""
    target = make_conninfo(programs.connection, dbname=new)
    with (
        shown_progress("restoring", os.fstat(stream.fileno()).st_size) as progress,
        programs.running(
            "pg_restore", "--exit-on-error", "--no-owner", f"--dbname={target}", stdin=stream
        ) as process,
    ):
        while process.poll() is None:
            progress(stream.tell())
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)


def _count(url: str, content: Content) -> None:
    """Compare a restored database with the archive's content, and create its statistics, which no archive has."""
    with connected(url) as connection:
        connection.execute("SET statement_timeout = 0")
        for table, rows in content.rows.items():
            # Quoted by pg_dump, and matched by COPY.
            found = connection.execute(f"SELECT count(*) FROM ONLY {table}".encode()).fetchone()  # noqa: S608
            if found != (rows,):
                raise BackupError(f"{table} has {found and found[0]} rows after the restore, and {rows} in the file")
        connection.execute("ANALYZE")


def _switch(programs: Programs, server: Server, *, new: str, kept: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        renaming = pool.submit(programs.sql, SWITCH, live=server.database, new=new, kept=kept)
        while not renaming.done():
            with suppress(BackupError):  # then the rename fails, and says more
                programs.sql(END_SESSIONS, oid=str(server.oid))
            wait([renaming], POLL_SECONDS)
        renaming.result()


def _check_sum(stream: FileIO, file: Path) -> None:
    """Refuse a file without its checksum, or with a wrong one. Rewinds the file to its start."""
    checksum = beside(file, ".sha256")
    try:
        wanted = checksum.read_text(encoding="utf-8", errors="replace").split()[:1]
    except FileNotFoundError:
        raise BackupError(
            f"{checksum} is missing, which `llmctl backup` wrote: put it beside the file, or, if you know that the "
            f"file is whole: sha256sum {shlex.quote(str(file))} >{shlex.quote(str(checksum))}"
        ) from None
    if wanted != [hashlib.file_digest(stream, "sha256").hexdigest()]:
        raise BackupError(f"{file} is damaged or cut short: its checksum is not the one in {checksum}")
    stream.seek(0)
