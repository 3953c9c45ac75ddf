"""The stack's databases in files: what `llmctl backup` does, and what it writes.

A backup is a file with the app's database and, if the stack has LiteLLM's database, a second file with that.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from console import litellm_database
from console.postgres_programs import BackupError, programs_for, server_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from io import FileIO
    from pathlib import Path

    from console.postgres_programs import Programs, Server

CHUNK_BYTES = 1 << 20
ROWS_BETWEEN_REPORTS = 10_000
LOCK_WAIT = "60s"
"""How long a backup waits while somebody changes a table's schema."""
IDENTIFIER = rb'(?:"(?:[^"]|"")+"|[a-z_][a-z0-9_$]*)'
COPY = re.compile(rb"COPY (?P<table>%b\.%b) (?:\((?P<columns>.*)\))? FROM stdin;\n" % (IDENTIFIER, IDENTIFIER))
END_OF_COPY = b"\\.\n"
"""Never a row: COPY doubles the backslashes of data, and writes a row on one line."""
MIGRATIONS_TABLE = b"public.schema_migrations"


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was written completely and read back to its end."""

    file: Path
    database: str
    bytes: int
    sha256: str
    tables: int
    rows: int
    migration: int
    """The number of the last migration in it; 0 if it has none."""
    removed: tuple[Path, ...]
    """Older backups that were removed because there were more than should be kept."""
    litellm: Backup | None = None
    """The backup of LiteLLM's own database that belongs to it."""


@dataclass(frozen=True, slots=True)
class Content:
    """What an archive contains."""

    rows: Mapping[str, int]
    """The number of rows of each table, by its name in SQL: `public."Order"`."""
    migration: int
    """As in Backup."""

    @property
    def total(self) -> int:
        """The rows of all tables together."""
        return sum(self.rows.values())

    def __str__(self) -> str:
        schema = f", schema {self.migration:04d}" if self.migration else ""
        return f"{self.total:,} rows in {len(self.rows)} tables{schema}"


def backup(  # noqa: PLR0913 -- all by name
    url: str,
    file: Path,
    *,
    litellm: str | None = None,
    alone: bool = False,
    keep: int | None = None,
    report: Callable[[str], None],
    engine: str | None = None,
) -> Backup:
    """Write the database at `url` to `file`, and its checksum to `file`.sha256; `report` gets a line for each step.

    A folder gets a file named by database and time (UTC). The file is a consistent snapshot in pg_dump's custom
    format. Only its owner may read it, and it has its name only once it is complete and was read back. LiteLLM's
    database, at `litellm`, is then written in the same way to the file's `companion`: the two are one backup. With
    `alone` it is left out. Then the oldest backups of this database in the folder are removed until `keep` (1 or
    more) are left, this one among them. `engine` is the address of the Docker Engine that may run the server, if it
    is not the one that `docker` uses.

    Raises ValueError if the file exists, cannot have this name, or is not a folder although `keep` is given. Raises
    BackupError for other failures, also if LiteLLM uses a database on the same server and neither `litellm` nor
    `alone` is given. Complete files then stay, and nothing is removed.
    """
    if keep is not None and not file.is_dir():
        raise ValueError(f"{file} is not a folder: --keep needs the folder that the backups are in")
    if not file.is_dir():
        _refuse_existing(file, companion(file))
    server = server_at(url)
    if file.is_dir():
        file /= f"{_file_name(server.database)}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.dump"
        _refuse_existing(file, companion(file))
    made = _saved(server, file, report, engine)
    if litellm is None and server.litellm_beside and not alone:
        raise BackupError(
            f"{file} is complete, but LiteLLM has a database on the same server, which is not in it: "
            f"{litellm_database.VARIABLE} is not set (./pulumiw up writes it to .env). To leave it out: --only app. "
            "Older backups were kept"
        )
    beside_it = None if litellm is None or alone else _companion_saved(litellm, file, report, engine)
    removed = () if keep is None else remove_older(file, server.database, keep)
    for each in removed:
        report(f"removed {each}: {keep} are kept")
    return replace(made, removed=removed, litellm=beside_it)


def companion(file: Path) -> Path:
    """The file with LiteLLM's database that belongs to one with the app's."""
    return file.with_name(f"{file.stem}.litellm{file.suffix}")


def _companion_saved(url: str, file: Path, report: Callable[[str], None], engine: str | None) -> Backup:
    try:
        return _saved(server_at(url, litellm_database.VARIABLE), companion(file), report, engine)
    except BackupError as error:
        raise BackupError(
            f"{file} is complete, but has no LiteLLM database beside it, and older backups were kept: {error}"
        ) from error


def _saved(server: Server, file: Path, report: Callable[[str], None], engine: str | None) -> Backup:
    """Write one database to a file."""
    programs = programs_for(server, engine)
    report(f"saving database {server.database} on {server.address} with pg_dump {programs.where}")
    partial = beside(file, ".partial")
    with file_errors(file), _new_file(partial) as stream:
        size, digest = _dump(programs, server, stream)
        report(f"{size:,} bytes are written; reading them back")
        with partial.open("rb", buffering=0) as written:
            content = content_of(programs, written)
        _give_name(partial, file, digest)
    report(f"complete: {content}")
    return Backup(
        file=file,
        database=server.database,
        bytes=size,
        sha256=digest,
        tables=len(content.rows),
        rows=content.total,
        migration=content.migration,
        removed=(),
    )


def backups_in(folder: Path, database: str) -> list[Path]:
    """The backups of a database in a folder, the oldest first."""
    name = re.compile(rf"{re.escape(_file_name(database))}-\d{{8}}T\d{{6}}Z\.dump")
    return sorted(each for each in folder.iterdir() if name.fullmatch(each.name))


def _file_name(database: str) -> str:
    return re.sub(r"[^\w.-]", "_", database)


def remove_older(file: Path, database: str, keep: int) -> tuple[Path, ...]:
    """Remove the oldest backups of a database beside `file` until `keep` are left, and leftovers of killed backups.

    The last `keep` that include LiteLLM's database stay too: backups without it do not replace them.
    """
    # The new one stays, however the clock of this machine was set when the others were made.
    others = [each for each in backups_in(file.parent, database) if each != file]
    with_litellm = [each for each in others if companion(each).exists()]
    stay = {*_last(others, keep - 1), *_last(with_litellm, keep - companion(file).exists())}
    removed = []
    with file_errors(file):
        for old in others:
            if old in stay:
                continue
            # In this order, so that the next run finds what is left if this one is killed.
            for each in (companion(old), old):
                beside(each, ".sha256").unlink(missing_ok=True)
                if each.exists():
                    each.unlink(missing_ok=True)
                    removed.append(each)
        for partial in file.parent.glob(f"{_file_name(database)}-*.dump.partial"):
            with suppress(BlockingIOError, FileNotFoundError), partial.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial.unlink()
    return tuple(removed)


def _last(files: list[Path], number: int) -> list[Path]:
    return files[max(0, len(files) - number) :]


def _dump(programs: Programs, server: Server, stream: IO[bytes]) -> tuple[int, str]:
    """Write an archive of the database to a file; its size and SHA-256."""
    digest = hashlib.sha256()
    with (
        shown_progress(f"saving {server.database}") as progress,
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


def content_of(programs: Programs, stream: FileIO) -> Content:
    """Read a whole archive, from the file's current position, as a restore would."""
    with (
        shown_progress("reading", os.fstat(stream.fileno()).st_size) as progress,
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


def _refuse_existing(*files: Path) -> None:
    for file in files:
        if not file.name or re.search(r"[\n\\]", file.name):
            raise ValueError(f"a backup cannot be named {file.name!r}")
        for each in (file, beside(file, ".sha256")):
            if each.exists():
                raise ValueError(f"{each} exists and will not be overwritten: name another file")
        if (partial := beside(file, ".partial")).exists():
            raise ValueError(f"{partial} exists: another backup is writing it; if that one was killed, remove it")


def beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file. Only its owner can read it, from the first byte on, and it is removed after a failure."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as stream:
        with suppress(OSError):  # from file systems without locks
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # locked while it is being written
        try:
            yield stream
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _give_name(partial: Path, file: Path, digest: str) -> None:
    """Give a complete file its own name; its checksum is there before."""
    with _new_file(beside(file, ".sha256")) as checksum:
        checksum.write(f"{digest}  {file.name}\n".encode())
        _to_disk(checksum)
        try:
            os.link(partial, file)  # a rename would overwrite a file that already has the name
        except FileExistsError:
            raise
        except OSError:  # from file systems without hard links
            with _new_file(file):
                partial.rename(file)
    partial.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # otherwise a power cut could lose the names
    finally:
        os.close(folder)


def _to_disk(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


@contextmanager
def file_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise BackupError(
            f"{error.filename2 or error.filename} was created in the meantime and will not be overwritten"
        ) from None
    except OSError as error:
        raise BackupError(f"{error.filename or file}: {error.strerror}") from None


@contextmanager
def shown_progress(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show the bytes so far, on a terminal only."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)
