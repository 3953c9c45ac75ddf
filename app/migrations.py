"""Apply the SQL files of a folder to a Postgres database, each once, in order, forward only.

A migration is a file `NNNN_name.sql`; numbers start at 1 and have no gap. Each file runs in one transaction with the
row that records it, so it is applied whole or not at all: one with a BEGIN, COMMIT or ROLLBACK of its own is refused
before anything runs. A file whose first line is `-- migrate: no-transaction` runs outside a transaction, for
statements that require it (CREATE INDEX CONCURRENTLY). It contains one statement, which should be repeatable (IF NOT
EXISTS, for which an index needs a name), and it may leave something behind when it fails. What a file sets for its
session ends with the file.

Statements are sent one by one, in the protocol in which the server accepts only one. So the place where a file is cut
affects what an error looks like, but never what runs outside the transaction.

Any number of runs may start at once: one works, the others wait and then find nothing left to do. The lock is
polled rather than waited for, because a waiting statement would keep CREATE INDEX CONCURRENTLY from finishing.
"""

from __future__ import annotations

import hashlib
import re
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from psycopg.rows import class_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

__all__ = ["Applied", "Migration", "MigrationError", "Status", "new", "read", "status", "up"]

FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
NO_TRANSACTION = "-- migrate: no-transaction"
ADVISORY_LOCK = int.from_bytes(hashlib.sha256(b"llm-infrastructure migrations").digest()[:8], signed=True)
POLL_SECONDS = 0.1
LONGEST_NAME_BYTES = 63
"""Of an identifier in Postgres, which cuts off the rest."""
COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
TOKEN = re.compile(
    r"""
    (?P<blank> \s+ | --[^\n]* )
    | (?P<string> [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" )
    | \$(?P<tag>(?:[^\W\d]\w*)?)\$ .*? \$(?P=tag)\$
    | (?P<word> [^\W\d][\w$]* )
    | .
    """,
    re.DOTALL | re.VERBOSE,
)
"""The tokens of PostgreSQL's lexer, as far as needed to find where statements end. Comments in /* */ nest, which no
regular expression can match."""
BODY = re.compile(r"CREATE (OR REPLACE )?(FUNCTION|PROCEDURE)\b.* BEGIN ATOMIC\b")
"""The start of a statement that contains others, each with its semicolon, up to its END."""
FRESH_SESSION = (
    "CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ALL; RESET ROLE; DEALLOCATE ALL; UNLISTEN *; DISCARD PLANS; "
    "DISCARD SEQUENCES; DISCARD TEMP"
)
"""DISCARD ALL, without the parts that would release the lock."""
NAMELESS_INDEX = re.compile(r"\bCREATE\s+(UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+ON\b", re.IGNORECASE)

CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS {} (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    sha256     text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""

INVALID_INDEXES = """
SELECT relname, relnamespace::regnamespace::text, pg_table_is_visible(indexrelid), indexrelid::regclass::text
FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE NOT indisvalid AND relkind = 'i'"""


class MigrationError(Exception):
    """A migration that cannot be read or applied. The message is one line and names the file."""


@dataclass(frozen=True, slots=True)
class Migration:
    """A migration file."""

    version: int
    name: str
    sql: str

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{self.version:04d}_{self.name}.sql"

    @property
    def sha256(self) -> str:
        """Digest of the content, independent of a checkout's line endings."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def in_transaction(self) -> bool:
        """Whether the file runs in one transaction with its record."""
        return not self.sql.startswith(NO_TRANSACTION)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a file."""

    sql: str
    line: int
    """The line of the file, counted from 1, on which it begins."""
    words: str
    """Its keywords and plain names in upper case, without strings and comments."""

    @property
    def controls_transaction(self) -> bool:
        """Whether it begins or ends a transaction. One may go back to a savepoint."""
        first, *rest = self.words.split(" ", 3)
        return (
            first in {"BEGIN", "START", "COMMIT", "END", "ABORT"}
            or (first == "ROLLBACK" and "TO" not in rest[:2])
            or (first == "PREPARE" and rest[:1] == ["TRANSACTION"])
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """The database's record of an applied migration."""

    version: int
    name: str
    sha256: str
    applied_at: datetime

    @property
    def file(self) -> str:
        """The file's name when it was applied."""
        return f"{self.version:04d}_{self.name}.sql"


@dataclass(frozen=True, slots=True)
class Status:
    """The migrations that a database has, and those that are pending, in order."""

    applied: tuple[Applied, ...]
    pending: tuple[Migration, ...]


def read(folder: Path) -> list[Migration]:
    """Return the migrations of `folder` in order. Raises MigrationError for a wrong name or number."""
    if not folder.is_dir():
        raise MigrationError(f"{folder} is not a folder: migrations are files in it, named NNNN_name.sql")
    migrations: list[Migration] = []
    for path in sorted(folder.glob("*.sql")):
        match = FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"{path.name}: name it NNNN_name.sql, in lower case, such as 0001_organizations.sql")
        version, expected = int(match[1]), len(migrations) + 1
        if version < expected:
            raise MigrationError(f"{path.name}: number {match[1]} is taken; give it the number {expected:04d}")
        if version > expected:
            raise MigrationError(f"{path.name}: number {expected:04d} is missing before it; numbers have no gaps")
        migrations.append(Migration(version, match[2], path.read_text(encoding="utf-8")))
    return migrations


def new(folder: Path, name: str) -> Path:
    """Make the next, empty migration file of `folder` and return its path."""
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not slug:
        raise MigrationError(f"{name!r} has no letter or digit to name a file by")
    path = folder / f"{len(read(folder)) + 1:04d}_{slug}.sql"
    with path.open("x", encoding="utf-8") as file:
        file.write(f"-- {name}\n")
    return path


def status(conninfo: str, folder: Path) -> Status:
    """Compare the database with `folder`, and change nothing.

    Raises MigrationError if they contradict each other, psycopg.Error if the database cannot be asked.
    """
    migrations = read(folder)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return _status(connection, migrations)


def up(  # noqa: PLR0913 -- the options are keyword-only and have safe defaults
    conninfo: str,
    folder: Path,
    *,
    wait_seconds: float = 120,
    lock_timeout_seconds: float = 10,
    statement_timeout_seconds: float = 600,
    report: Callable[[str], None] = lambda _line: None,
) -> tuple[Migration, ...]:
    """Apply what is pending and return it; `report` gets a line for each thing that happens.

    `wait_seconds` bounds the wait for another run, `lock_timeout_seconds` the wait of one statement for a lock,
    `statement_timeout_seconds` one statement. A file that fails leaves the database as it was before that file,
    unless it runs outside a transaction.

    Raises MigrationError, and psycopg.Error when the database cannot be reached.
    """
    migrations = read(folder)
    with psycopg.connect(conninfo, autocommit=True, application_name="migrations") as connection:
        connection.prepare_threshold = None  # a prepared statement would be lost with a file's session
        _lock(connection, wait_seconds, report)
        pending = _status(connection, migrations).pending
        for migration in pending:  # an applied migration cannot be changed any more
            _refuse_transaction_control(migration)
            _refuse_nameless_index(migration)
        if not pending:
            return pending
        table = _table(connection)
        connection.execute(sql.SQL(CREATE_TABLE).format(table))
        for migration in pending:
            started = time.monotonic()
            connection.execute(FRESH_SESSION)
            for name, seconds in (
                ("lock_timeout", lock_timeout_seconds),
                ("statement_timeout", statement_timeout_seconds),
            ):
                connection.execute("SELECT set_config(%s, %s, false)", (name, f"{round(seconds * 1000)}ms"))
            _apply(connection, migration, table)
            report(f"applied {migration.file} in {time.monotonic() - started:.2f} s")
        return pending


def statements(text: str) -> Iterator[Statement]:
    """Split SQL into its statements, as psql does: at semicolons outside strings, comments, brackets and bodies."""
    begin, end, depth, ends = -1, 0, 0, 0
    words: list[str] = []
    for token in _tokens(text):
        if token[0] == ";" and depth <= 0 and not ends:
            if begin >= 0:
                yield _statement(text, begin, token.start(), words)
            begin, depth, words = -1, 0, []
            continue
        begin, end = token.start() if begin < 0 else begin, token.end()
        if token["word"]:
            words.append(token["word"].upper())
            if words[-1] == "ATOMIC" and BODY.fullmatch(" ".join(words)):
                ends = 1
            elif ends and words[-1] in {"CASE", "END"}:
                ends += 1 if words[-1] == "CASE" else -1
        depth += {"(": 1, ")": -1}.get(token[0], 0)
    if begin >= 0:
        yield _statement(text, begin, end, words)


def _tokens(text: str) -> Iterator[re.Match[str]]:
    """The tokens without comments and white space."""
    position = 0
    while position < len(text):
        if text.startswith("/*", position):
            position = _after_comment(text, position)
            continue
        token = TOKEN.match(text, position)
        assert token is not None  # noqa: S101 -- it takes any character
        position = token.end()
        if not token["blank"]:
            yield token


def _statement(text: str, begin: int, end: int, words: list[str]) -> Statement:
    return Statement(text[begin:end], text.count("\n", 0, begin) + 1, " ".join(words))


def _after_comment(text: str, position: int) -> int:
    """The end of a comment in /* */, including nested ones."""
    depth = 0
    for mark in re.compile(r"/\*|\*/").finditer(text, position):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(text)


def _table(connection: psycopg.Connection) -> sql.Identifier:
    """The table of applied migrations, with its schema, because a file may change where its session looks."""
    found = connection.execute(
        "SELECT coalesce((SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        " WHERE pg_class.oid = to_regclass('schema_migrations')), current_schema())"
    ).fetchone()
    if found is None or found[0] is None:
        raise MigrationError("the database has no schema that tables are created in: check search_path of its role")
    return sql.Identifier(found[0], "schema_migrations")


def _apply(connection: psycopg.Connection, migration: Migration, table: sql.Identifier) -> None:
    statement = Statement("", 1, "")
    try:
        with connection.transaction() if migration.in_transaction else nullcontext():
            for statement in statements(migration.sql):
                # Binary results require the protocol that accepts one statement at a time.
                connection.execute(statement.sql.encode(), binary=True)
            connection.execute("RESET SESSION AUTHORIZATION; RESET ROLE")
            if not migration.in_transaction:
                _refuse_invalid_index(connection, migration)
            _record(connection, migration, table)
    except psycopg.Error as error:
        raise MigrationError(f"{migration.file}: {_in_one_line(error, statement)}") from error


def _refuse_transaction_control(migration: Migration) -> None:
    found = tuple(statements(migration.sql))
    for statement in found:
        if statement.controls_transaction:
            word = statement.words.split(" ", 1)[0]
            raise MigrationError(
                f"{migration.file}: line {statement.line}: {word} would end the transaction by which the file is "
                "applied whole or not at all: remove it"
            )
    if not migration.in_transaction and len(found) > 1:
        raise MigrationError(
            f"{migration.file}: line {found[1].line}: a file outside a transaction holds one statement: put this "
            "one in its own file"
        )


def _refuse_nameless_index(migration: Migration) -> None:
    """Postgres gives the index a new name each time, so a failed run's leftovers cannot be recognized."""
    if not migration.in_transaction and NAMELESS_INDEX.search(COMMENT.sub(" ", migration.sql)):
        raise MigrationError(
            f"{migration.file}: give the index a name: CREATE INDEX CONCURRENTLY IF NOT EXISTS NAME ON …"
        )


def _refuse_invalid_index(connection: psycopg.Connection, migration: Migration) -> None:
    """A failed CREATE INDEX CONCURRENTLY leaves its index behind, which IF NOT EXISTS then accepts as done.

    This looks only for indexes that the file names: another one belongs to somebody else, who may be creating it
    right now.
    """
    for name, schema, visible, full_name in connection.execute(INVALID_INDEXES):
        if _names(migration.sql, name) and (visible or _names(migration.sql, schema)):
            raise MigrationError(
                f"{migration.file}: index {name} is invalid: DROP INDEX CONCURRENTLY {full_name}, then run again"
            )


def _names(text: str, identifier: str) -> bool:
    """Whether an identifier is in SQL, as a whole word or as a longer one that Postgres truncates to it."""
    name = identifier.lower()
    words = re.findall(rf"(?<![\w$]){re.escape(name)}[\w$]*", text.lower())
    return any(word.encode()[:LONGEST_NAME_BYTES].decode(errors="ignore") == name for word in words)


def _record(connection: psycopg.Connection, migration: Migration, table: sql.Identifier) -> None:
    connection.execute(
        sql.SQL("INSERT INTO {} (version, name, sha256) VALUES (%s, %s, %s)").format(table),
        (migration.version, migration.name, migration.sha256),
    )


def _in_one_line(error: psycopg.Error, statement: Statement) -> str:
    message = error.diag.message_primary or str(error)
    if error.diag.statement_position:
        line = statement.line + statement.sql.count("\n", 0, int(error.diag.statement_position) - 1)
        message = f"line {line}: {message}"
    return " ".join(message.split())


def _status(connection: psycopg.Connection, migrations: Sequence[Migration]) -> Status:
    with connection.cursor(row_factory=class_row(Applied)) as cursor:
        exists = connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL").fetchone()
        if exists == (True,):
            cursor.execute("SELECT version, name, sha256, applied_at FROM schema_migrations ORDER BY version")
            applied = tuple(cursor.fetchall())
        else:
            applied = ()
    for number, done in enumerate(applied, start=1):
        if done.version != number:
            raise MigrationError(
                f"the database is missing migration {number:04d} but has {done.file}: restore a backup"
            )
        if number > len(migrations) or migrations[number - 1].name != done.name:
            raise MigrationError(f"{done.file} was applied to this database and is missing here: put the file back")
        if migrations[number - 1].sha256 != done.sha256:
            raise MigrationError(
                f"{done.file} was changed after it was applied: put it back and write a new migration instead"
            )
    return Status(applied, tuple(migrations[len(applied) :]))


def _lock(connection: psycopg.Connection, wait_seconds: float, report: Callable[[str], None]) -> None:
    """Take the lock that prevents parallel runs. Postgres frees it when the connection ends, however it ends."""
    give_up = time.monotonic() + wait_seconds
    waiting = False
    while connection.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_LOCK,)).fetchone() != (True,):
        if time.monotonic() > give_up:
            raise MigrationError(f"another migration run still holds the lock after {wait_seconds:g} s")
        if not waiting:
            waiting = True
            report("waiting for another migration run to end")
        time.sleep(POLL_SECONDS)
