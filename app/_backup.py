"""The app's database in one file, and back from it: what `llmctl backup` and `llmctl restore` do.

PostgreSQL's own programs do the work, in the server's major version: an older pg_dump refuses the server, what a
newer one writes the server's own pg_restore may not read, and a newer pg_restore sends settings that the server may
not know. They run in the container of the stack's Postgres, over its local socket and so without a password, or else
on this machine.

A restore makes a new database beside the present one and fills it as the app's own role, so that no file ever runs
as superuser. It counts the rows and brings the schema up to date, and only then has the two change names, in one
transaction. Whatever ends it before that leaves the present database as it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from app import migrations
from app._programs import ProgramError, output, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from io import FileIO
    from pathlib import Path

CONTAINER_LABEL = "llm-infrastructure.part=postgres"
SUPERUSER = "postgres"
MAINTENANCE_DATABASE = "postgres"
"""Where those connect who make and rename databases: nobody can rename the one that they are in."""
PROGRAMS = ("pg_dump", "pg_restore", "psql")
ADVISORY_LOCK = int.from_bytes(hashlib.sha256(b"llm-infrastructure restore").digest()[:8], signed=True)
CONNECT_SECONDS = 15
POLL_SECONDS = 0.2
CHUNK_BYTES = 1 << 20
ROWS_BETWEEN_REPORTS = 10_000
LOCK_WAIT = "60s"
"""How long a backup waits for whoever changes a table's schema."""
LONGEST_NAME_BYTES = 63
"""Of an identifier in Postgres, which cuts off the rest."""

IDENTIFIER = rb'(?:"(?:[^"]|"")+"|[a-z_][a-z0-9_$]*)'
COPY = re.compile(rb"COPY (?P<table>%b\.%b) (?:\((?P<columns>.*)\))? FROM stdin;\n" % (IDENTIFIER, IDENTIFIER))
END_OF_COPY = b"\\.\n"
"""Never a row: COPY doubles the backslashes of data, and writes a row on one line."""
MIGRATIONS_TABLE = b"public.schema_migrations"

# Two servers may have the same system identifier (one is a copy of the other), but not the same start as well.
IDENTITY = (
    "SELECT concat(system_identifier, ' ', extract(epoch FROM pg_postmaster_start_time())) FROM pg_control_system()"
)
MAY_RESTORE = """
SELECT (SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user)
   AND (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = :'live');
"""
LEFTOVERS = "SELECT datname FROM pg_database WHERE datname ~ :'pattern' ORDER BY datname;"
# With the owner, encoding, locale and limit of the present one, and for those who may connect to that.
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
# The settings come last, as one of them may forbid to write. Those that are lists are stored as they are written.
# The first renaming locks out whoever wants to connect, then waits up to 5 s for the sessions to be gone.
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
END_SESSIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datid = :'oid' AND pg_has_role(usesysid, 'USAGE');
"""


class BackupError(Exception):
    """What failed or was refused. The message is one line, without a password, and names the next step."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was written and read again to its end."""

    file: Path
    database: str
    bytes: int
    sha256: str
    tables: int
    rows: int
    migration: int
    """The number of the last migration in it; 0 where it has none."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A restore that is done: what the database holds now, and under which name what it held before is kept."""

    database: str
    kept: str
    tables: int
    rows: int
    migrated: tuple[str, ...]
    """The migration files that were applied to it, as it was older than they are."""
    drop: str
    """The command that drops what is kept."""


@dataclass(frozen=True, slots=True)
class Content:
    """What an archive holds."""

    rows: Mapping[str, int]
    """Of each table, by its name as SQL has it: `public."Order"`."""
    migration: int
    """As in Backup."""

    @property
    def total(self) -> int:
        """Of all tables, in rows."""
        return sum(self.rows.values())

    def __str__(self) -> str:
        return f"{self.total:,} rows in {len(self.rows)} tables, schema {self.migration:04d}"


def backup(url: str, file: Path, *, report: Callable[[str], None]) -> Backup:
    """Write the database at `url` to `file`, and its checksum to `file`.sha256; `report` gets a line for each step.

    A folder gets a file named by database and time (UTC). The file is a consistent snapshot in pg_dump's custom
    format. Only its owner may read it, and it has its name only once it is complete and was read back.

    Raises ValueError for a file that exists or cannot be named so, and BackupError.
    """
    if not file.is_dir():
        _refuse_existing(file)
    server = _server(url)
    if file.is_dir():
        name = re.sub(r"[^\w.-]", "_", server.database)
        file /= f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.dump"
        _refuse_existing(file)
    programs = _programs(server)
    report(f"saving database {server.database} on {server.address} with pg_dump {programs.where}")
    partial = _beside(file, ".partial")
    with _file_errors(file), _new_file(partial) as stream:
        try:
            size, digest = _dump(programs, server, stream)
            report(f"{size:,} bytes are written, and are now read back")
            with partial.open("rb", buffering=0) as written:
                content = _content_of(programs, written)
            _give_name(partial, file, digest)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    report(f"complete: {content}")
    return Backup(
        file=file,
        database=server.database,
        bytes=size,
        sha256=digest,
        tables=len(content.rows),
        rows=content.total,
        migration=content.migration,
    )


def restore(
    url: str, file: Path, folder: Path, *, confirm: Callable[[str], bool], report: Callable[[str], None]
) -> Restored:
    """Put what `file` holds in the place of the database at `url`, and keep the present one under another name.

    `folder` has the migrations: what the file lacks is applied, and a file with one that `folder` lacks is refused.
    `confirm` is asked once, with the database's name, before anything is made; `report` gets a line for each step.
    Sessions in the database are ended at the last moment.

    Raises BackupError, and MigrationError for a folder that cannot be read; the database is as it was then.
    """
    newest = len(migrations.read(folder))
    with _file_errors(file), file.open("rb", buffering=0) as stream:
        _check_sum(stream, file)
        server = _server(url)
        programs = _programs(server)
        report(f"reading {file} with pg_restore {programs.where}")
        content = _content_of(programs, stream)
        if content.migration > newest:
            raise BackupError(
                f"{file} has migration {content.migration:04d} and {folder} ends at {newest:04d}: use the version of "
                "this project that the backup is from, or a later one"
            )
        if programs.sql(MAY_RESTORE, live=server.database) != "t":
            raise BackupError(
                f"the role {server.role} of DATABASE_URL may not restore: it has to own database {server.database}, "
                f"and to make another (as superuser: ALTER ROLE {server.role} CREATEDB)"
            )
        report(
            f"this puts {file} ({content}) in the place of database {server.database} on {server.address}, and ends "
            "the sessions in it; what it holds now is kept under another name"
        )
        if not confirm(server.database):
            raise BackupError(f"nothing was changed: that is not the name of database {server.database}")
        stream.seek(0)
        return _restore(server, programs, stream, content, folder, report)


@dataclass(frozen=True, slots=True)
class _Server:
    """The server and database of DATABASE_URL, as it answered."""

    url: str
    database: str
    oid: int
    user: str
    role: str
    """What the user acts as."""
    address: str
    port: int
    version: int
    """The major version."""
    password: str


@dataclass(frozen=True, slots=True)
class _Programs:
    """PostgreSQL's programs for a server: where they run, and as whom."""

    where: str
    prefix: tuple[str, ...]
    connection: str
    """Without a password."""
    admin: str
    """As who makes and renames databases."""
    password: str = ""

    def command(self, program: str, *arguments: str) -> list[str]:
        return [*self.prefix, program, *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **({"PGPASSWORD": self.password} if self.password else {})}

    def sql(self, script: str, **variables: str) -> str:
        """What a psql script prints that runs as who makes and renames databases."""
        options = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
        settings = [f"--set={name}={value}" for name, value in variables.items()]
        command = self.command("psql", *options, *settings, f"--dbname={self.admin}")
        done = subprocess.run(
            command, input=script, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise BackupError(f"psql {self.where} failed: {reason(done.stderr)}")
        return done.stdout.strip()

    @contextmanager
    def running(
        self, program: str, *arguments: str, stdin: FileIO | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A program while it runs; a BackupError at the end if it failed."""
        with tempfile.TemporaryFile() as errors:
            with subprocess.Popen(
                self.command(program, *arguments),
                env=self.environment,
                stdin=stdin or subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            ) as process:
                try:
                    yield process
                except BaseException:
                    process.kill()
                    raise
            if process.returncode != 0:
                errors.seek(0)
                raise BackupError(f"{program} {self.where} failed: {reason(errors.read().decode(errors='replace'))}")


def _server(url: str) -> _Server:
    try:
        with _connected(url) as connection:
            row = connection.execute(
                "SELECT oid, current_user FROM pg_database WHERE datname = current_database()"
            ).fetchone()
            oid, role = row or (0, "")
            info = connection.info
            return _Server(
                url=url,
                database=info.dbname,
                oid=oid,
                user=info.user,
                role=role,
                address=f"{info.host}:{info.port}",
                port=info.port,
                version=info.server_version // 10000,
                password=info.password,
            )
    except psycopg.Error as error:
        raise BackupError(
            f"the database at DATABASE_URL cannot be used: {_one_line(error)} (`llmctl doctor` looks closer)"
        ) from None


def _connected(url: str) -> psycopg.Connection:
    return psycopg.connect(url, connect_timeout=CONNECT_SECONDS, autocommit=True)


def _programs(server: _Server) -> _Programs:
    """The programs in the container of the stack's Postgres if that is the server, or those of this machine.

    Raises BackupError that says what was tried.
    """
    container, no_container = _container(server)
    if container:
        return _Programs(
            where=f"in container {container}",
            prefix=("docker", "exec", "--interactive", container),
            connection=make_conninfo(user=server.user, dbname=server.database),
            admin=make_conninfo(user=SUPERUSER, dbname=MAINTENANCE_DATABASE),
        )
    if missing := [each for each in (_missing(program, server.version) for program in PROGRAMS) if each]:
        raise BackupError(
            f"PostgreSQL's programs in version {server.version}, which is the server's, are needed: {no_container}; "
            f"{missing[0]}. Run this where the engine of the stack is reachable, or install "
            f"postgresql-client-{server.version}"
        )
    public: dict[str, Any] = {
        key: value for key, value in conninfo_to_dict(server.url).items() if "password" not in key
    }
    return _Programs(
        where="on this machine",
        prefix=(),
        connection=make_conninfo(**public),
        admin=make_conninfo(**{**public, "dbname": MAINTENANCE_DATABASE}),
        password=server.password,
    )


def _container(server: _Server) -> tuple[str, str]:
    """The name of the container that is the server, or why there is none."""
    listing = ["docker", "ps", "--format={{.Names}}", f"--filter=label={CONTAINER_LABEL}"]
    try:
        listed = output([*listing, f"--filter=publish={server.port}"])
    except ProgramError as error:
        return "", f"Docker was asked for the stack's Postgres, and {error}"
    for name in listed.split():
        # A port says little: the server may be at the other end of a tunnel, or on another address.
        with suppress(ProgramError, psycopg.Error), _connected(server.url) as connection:
            psql = ["psql", "--no-psqlrc", "--tuples-only", "--no-align", f"--username={SUPERUSER}"]
            found = output(
                ["docker", "exec", name, *psql, f"--dbname={MAINTENANCE_DATABASE}", f"--command={IDENTITY}"]
            )
            if connection.execute(IDENTITY).fetchone() == (found.strip(),):
                return name, ""
    return "", f"no container with the label {CONTAINER_LABEL} is the server at {server.address}"


def _missing(program: str, version: int) -> str:
    """Why a program of this machine cannot be used; empty if it can."""
    if shutil.which(program) is None:
        return f"there is no {program} on PATH"
    try:
        found = re.search(r"\d+", output([program, "--version"]))
    except ProgramError as error:
        return str(error)
    return "" if found and int(found[0]) == version else f"{program} on PATH has version {found and found[0]}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _dump(programs: _Programs, server: _Server, stream: IO[bytes]) -> tuple[int, str]:
    """Write an archive of the database to a file; its size and SHA-256."""
    digest = hashlib.sha256()
    with (
        _progress(f"saving {server.database}") as progress,
        programs.running(
            "pg_dump", "--format=custom", f"--lock-wait-timeout={LOCK_WAIT}", f"--dbname={programs.connection}"
        ) as process,
    ):
        while process.stdout and (chunk := process.stdout.read(CHUNK_BYTES)):
            stream.write(chunk)
            digest.update(chunk)
            progress(stream.tell())
    _to_disk(stream)
    return stream.tell(), digest.hexdigest()


def _content_of(programs: _Programs, stream: FileIO) -> Content:
    """Read a whole archive, from where the file stands, as a restore would."""
    with (
        _progress("reading", os.fstat(stream.fileno()).st_size) as progress,
        programs.running("pg_restore", "--data-only", "--file=-", stdin=stream) as process,
    ):
        return read_content(process.stdout or (), progress=lambda: progress(stream.tell()))


def read_content(lines: Iterable[bytes], *, progress: Callable[[], None] = lambda: None) -> Content:
    """Count the rows in the SQL that `pg_restore --data-only` writes; `progress` is called now and then."""
    rows: dict[str, int] = {}
    last = 0
    lines = iter(lines)
    for line in lines:
        if (start := COPY.fullmatch(line)) is None:
            continue
        count = 0
        for row in lines:
            if row == END_OF_COPY:
                break
            count += 1
            if count % ROWS_BETWEEN_REPORTS == 0:
                progress()
            if start["table"] == MIGRATIONS_TABLE:
                last = max(last, int(row.split(b"\t")[start["columns"].split(b", ").index(b"version")]))
        rows[start["table"].decode()] = count
    return Content(rows, last)


def _restore(  # noqa: PLR0913, PLR0917 -- the steps of `restore` that have something to undo
    server: _Server,
    programs: _Programs,
    stream: FileIO,
    content: Content,
    folder: Path,
    report: Callable[[str], None],
) -> Restored:
    live, stamp = server.database, f"{datetime.now(UTC):%Y%m%d_%H%M%S}"
    new, kept = f"{live}_restored_{stamp}", f"{live}_before_{stamp}"
    if len(new.encode()) > LONGEST_NAME_BYTES:
        raise BackupError(f"the name of database {live} is too long to restore beside it: nothing was changed")
    try:
        with _only_one(server) as lock:
            _drop_leftovers(programs, live, report)
            try:
                programs.sql(CREATE, live=live, new=new)
                report(f"restoring into the new database {new}")
                _fill(programs, new, stream)
                url = make_conninfo(server.url, dbname=new)
                _count(url, content)
                migrated = migrations.up(url, folder, report=report)
                report(f"{new} is complete and takes the place of {live}")
                lock.close()  # a session in the database, as any other
                _switch(programs, server, new=new, kept=kept)
            except BaseException:
                with suppress(BackupError):  # the next restore finds it
                    programs.sql(DROP, new=new)
                raise
    except (BackupError, migrations.MigrationError, psycopg.Error) as error:
        raise BackupError(f"{_one_line(error)}; database {live} is as it was") from error
    drop = shlex.join(programs.command("dropdb", f"--maintenance-db={programs.admin}", kept))
    report(f"what {live} held before is kept; when nobody needs it any more: {drop}")
    return Restored(
        database=live,
        kept=kept,
        tables=len(content.rows),
        rows=content.total,
        migrated=tuple(migration.file for migration in migrated),
        drop=drop,
    )


@contextmanager
def _only_one(server: _Server) -> Iterator[psycopg.Connection]:
    """Keep a second restore out, which would take the new database of this one for left over."""
    with _connected(server.url) as connection:
        if connection.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_LOCK,)).fetchone() != (True,):
            raise BackupError(f"another restore of {server.database} is running: wait for it to end")
        yield connection


def _drop_leftovers(programs: _Programs, live: str, report: Callable[[str], None]) -> None:
    pattern = rf"^{re.escape(live)}_restored_\d{{8}}_\d{{6}}$"
    for left in programs.sql(LEFTOVERS, pattern=pattern).splitlines():
        report(f"dropping {left}, which a restore that was killed left behind")
        programs.sql(DROP, new=left)


def _fill(programs: _Programs, new: str, stream: FileIO) -> None:
    """Restore an archive as the app's own role, to whom everything then belongs."""
    target = make_conninfo(programs.connection, dbname=new)
    with (
        _progress("restoring", os.fstat(stream.fileno()).st_size) as progress,
        programs.running(
            "pg_restore", "--exit-on-error", "--no-owner", f"--dbname={target}", stdin=stream
        ) as process,
    ):
        while process.poll() is None:
            progress(stream.tell())
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)


def _count(url: str, content: Content) -> None:
    """Compare a restored database with what the archive holds, and have its statistics made, which no archive has."""
    with _connected(url) as connection:
        connection.execute("SET statement_timeout = 0")
        for table, rows in content.rows.items():
            # Quoted by pg_dump, and matched by COPY.
            found = connection.execute(f"SELECT count(*) FROM ONLY {table}".encode()).fetchone()  # noqa: S608
            if found != (rows,):
                raise BackupError(f"{table} has {found and found[0]} rows after the restore, and {rows} in the file")
        connection.execute("ANALYZE")


def _switch(programs: _Programs, server: _Server, *, new: str, kept: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        renaming = pool.submit(programs.sql, SWITCH, live=server.database, new=new, kept=kept)
        while not renaming.done():
            with suppress(BackupError):  # then the renaming fails, and says more
                programs.sql(END_SESSIONS, oid=str(server.oid))
            wait([renaming], POLL_SECONDS)
        renaming.result()


def _check_sum(stream: FileIO, file: Path) -> None:
    """Refuse a file without its checksum, or with another. Leaves the file at its beginning."""
    beside = _beside(file, ".sha256")
    try:
        wanted = beside.read_text(encoding="utf-8", errors="replace").split()[:1]
    except FileNotFoundError:
        raise BackupError(
            f"{beside} is missing, which `llmctl backup` wrote: put it beside the file, or if you know that file to "
            f"be whole: sha256sum {shlex.quote(str(file))} >{shlex.quote(str(beside))}"
        ) from None
    if wanted != [hashlib.file_digest(stream, "sha256").hexdigest()]:
        raise BackupError(f"{file} is damaged or cut short: it has another checksum than {beside} says")
    stream.seek(0)


def _refuse_existing(file: Path) -> None:
    if not file.name or re.search(r"[\n\\]", file.name):
        raise ValueError(f"a backup cannot be named {file.name!r}")
    for each in (file, _beside(file, ".sha256")):
        if each.exists():
            raise ValueError(f"{each} exists and is not written over: name another file")
    if (partial := _beside(file, ".partial")).exists():
        raise ValueError(f"{partial} exists: another backup is writing it, or was killed, then remove it")


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def _new_file(path: Path) -> IO[bytes]:
    """A file that was not there, and that only its owner can read from the first byte on."""
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))


def _give_name(partial: Path, file: Path, digest: str) -> None:
    """Put a complete file under its own name, where it has its checksum from the first moment on."""
    if file.exists():
        raise BackupError(f"{file} has come to be in the meantime, and is not written over")
    with _new_file(_beside(file, ".sha256")) as checksum:
        checksum.write(f"{digest}  {file.name}\n".encode())
        _to_disk(checksum)
    partial.rename(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or a power cut takes the names away
    finally:
        os.close(folder)


def _to_disk(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


@contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackupError(f"{error.filename or file}: {error.strerror}") from None


@contextmanager
def _progress(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show the bytes so far, on a terminal only."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)
