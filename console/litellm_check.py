"""Whether LiteLLM's own database fits the running LiteLLM. Changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from app._errors import LLMError
from console import litellm_schema
from console.finding import Finding
from console.litellm_database import MIGRATIONS, TABLES, VARIABLE
from console.postgres_programs import BackupError, one_line, server_at
from console.programs import ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app._settings import Settings

UP = "./pulumiw up"
POOL = "generalSettings.database_connection_pool_limit"
PROGRAM = Path(litellm_schema.__file__).read_text(encoding="utf-8")
FEW_OF_SERVER = 5
"""The fewest free connections of the server: another replica's pool (infra/litellm_connections.py) must fit."""
FEW_OF_ROLE = 2
"""The fewest free connections of the role, whose limit is what its replicas need: one for a backup, one for this
check."""
# The free connections: those of the role, and those of the server without what it keeps for its superuser.
CONNECTIONS = """
SELECT session_user, rolconnlimit, (SELECT count(*) FROM pg_stat_activity WHERE usename = session_user),
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
    - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
FROM pg_roles WHERE rolname = session_user
"""
HAS_TABLES = f"SELECT count(*) FROM pg_tables WHERE tablename LIKE '{TABLES.replace('_', chr(92) + '_')}%'"  # noqa: S608
FOREIGN_OWNERS = """
SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public' AND NOT pg_has_role(tableowner, 'USAGE')
"""
HISTORY = f"SELECT to_regclass('public.{MIGRATIONS}') IS NOT NULL"
APPLIED = f"SELECT migration_name, finished_at IS NOT NULL FROM {MIGRATIONS} WHERE rolled_back_at IS NULL"  # noqa: S608


def unnamed_database(settings: Settings) -> Iterator[Finding]:
    """A finding if LiteLLM is connected to a database beside the app's that the settings do not have."""
    try:
        beside = server_at(settings.required_database_url()).litellm_beside
    except (LLMError, BackupError):
        return  # which is another check's failure
    if beside:
        detail = f"LiteLLM has one, and {VARIABLE} is not set, so no backup has it"
        yield Finding("LiteLLM's database", "failure", detail, f"{UP} writes it to .env")


def of_server(url: str, seconds: int, *, stack: str = "") -> Iterator[Finding]:
    """What the server says: whether it can be reached, by which role, how many connections are free.

    The commands that fix a finding are for `stack`, or for the selected one.
    """
    up = _up(stack)
    try:
        with psycopg.connect(url, connect_timeout=seconds, autocommit=True) as connection:
            connection.execute(f"SET statement_timeout = '{int(seconds)}s'")
            yield from _connections(connection, stack)
            if connection.execute(HAS_TABLES).fetchone() == (0,):
                yield Finding("LiteLLM's schema", "failure", "there is none", up)
            elif owners := [str(owner) for (owner,) in connection.execute(FOREIGN_OWNERS)]:
                detail = f"{', '.join(owners)} owns tables in it, which LiteLLM's role cannot change"
                fix = "as superuser, for each of them: ALTER TABLE … OWNER TO the database's owner"
                yield Finding("LiteLLM's schema", "failure", detail, fix)
    except psycopg.Error as error:
        detail = f"it cannot be used ({error.sqlstate or one_line(error)})"
        yield Finding("LiteLLM's database", "failure", detail, f"llmctl status; {up} writes {VARIABLE} to .env")


def _up(stack: str) -> str:
    return f"{UP} --stack {stack}" if stack else UP


def _connections(connection: psycopg.Connection, stack: str) -> Iterator[Finding]:
    row = connection.execute(CONNECTIONS).fetchone() or ("", 0, 0, 0)
    role, limit, taken, free = str(row[0]), int(row[1]), int(row[2]), int(row[3])
    few = free < FEW_OF_SERVER
    if limit >= 0:
        few = few or limit - taken < FEW_OF_ROLE
        free = min(free, limit - taken)
    detail = f"{role} has {taken}{f' of {limit}' if limit >= 0 else ''} connections, and {max(free, 0)} are free"
    yield Finding("LiteLLM's database", "ok", "it answers")
    of_stack = f"--stack {stack} " if stack else ""
    fewer = f"./pulumiw config set {of_stack}--path {POOL} 2 && {_up(stack)}" if few else ""
    yield Finding("LiteLLM's connections", "warning" if few else "ok", detail, fewer)


def of_release(url: str, of_image: list[str] | None, seconds: int, *, stack: str = "") -> Finding:
    """Whether the schema is that of a release, whose migrations a replica lists with `litellm_schema`.

    The command that fixes it is for `stack`, or for the selected one.
    """
    with psycopg.connect(url, connect_timeout=seconds, autocommit=True) as connection:
        has_history = connection.execute(HISTORY).fetchone() == (True,)
        applied = {str(name): bool(done) for name, done in connection.execute(APPLIED)} if has_history else {}
    wrong = ""
    if of_image is None:
        if has_history:
            wrong = "it is that of a newer release than the one that runs"
    elif unfinished := sorted(name for name, done in applied.items() if not done):
        wrong = f"migration {unfinished[0]} was not finished"
    elif missing := sorted({*of_image} - {*applied}):
        wrong = f"{len(missing)} of the release's migrations are missing, such as {missing[0]}"
    elif more := sorted({*applied} - {*of_image}):
        wrong = f"it is that of a newer release than the one that runs: {more[-1]}"
    if wrong:
        fix = "restore a backup of this release (docs/runbooks/restore.md), or set the litellmImage that fits"
        return Finding("LiteLLM's schema", "failure", wrong, f"{fix} and run {_up(stack)}")
    return Finding("LiteLLM's schema", "ok", "it is that of the release that runs")


def examine(url: str, seconds: int) -> Iterator[Finding]:
    """Everything that the server says, and each replica on the engine that `docker` uses."""
    well = True
    for finding in of_server(url, seconds):
        well = well and finding.status != "failure"
        yield finding
    if well:
        yield from _replicas(url, seconds)


def _replicas(url: str, seconds: int) -> Iterator[Finding]:
    from console import management  # noqa: PLC0415 -- it loads this module

    try:
        replicas = management.replicas()
        yield of_release(url, json.loads(next(iter(replicas.values())).run(PROGRAM, "")), seconds)
        for name, replica in replicas.items():
            try:
                connected = replica.has_database()
            except management.ManagementError:
                connected = False
            if connected:
                yield Finding("LiteLLM's database", "ok", f"{name} is connected to it")
            else:
                yield Finding(
                    "LiteLLM's database",
                    "failure",
                    f"{name} is not connected to it",
                    f"docker logs --tail 50 {replica.container[:12]}, then docker restart {replica.container[:12]}",
                )
    except psycopg.Error as error:
        yield Finding("LiteLLM's schema", "failure", f"it cannot be read ({error.sqlstate})", UP)
    except (LLMError, ProgramError) as error:
        yield Finding(
            "LiteLLM's replicas",
            "warning",
            f"whether they use the database is not known: {error}",
            "run it where the engine of the stack is reachable, or set DOCKER_HOST",
        )
