"""LiteLLM's own database: how to recognize it, and whether the running LiteLLM can use a restored one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from app._errors import LLMError
from console import salt_key
from console.postgres_programs import BackupError, connected, one_line
from console.programs import ProgramError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from console.backup import Content

    Run = Callable[[str, str], str]

VARIABLE = "LITELLM_DATABASE_URL"
TABLES = "LiteLLM_"
"""How the names of LiteLLM's tables begin."""
MIGRATIONS = "_prisma_migrations"
"""The table in which releases with migrations record them."""
OWN = re.compile(rf'public\.(?:"{TABLES}\w+"|{MIGRATIONS})')
PROGRAM = Path(salt_key.__file__).read_text(encoding="utf-8")
SOME = 3
COLUMNS = """
SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
"""
APPLIED = f"SELECT 'migration ' || migration_name FROM {MIGRATIONS} WHERE finished_at IS NOT NULL"  # noqa: S608
# Nobody has the key of a client, so it has no name that shows how it begins and ends.
CLIENTS = f"""
SELECT key_alias, token FROM "{TABLES}VerificationToken" WHERE key_name IS NULL AND key_alias IS NOT NULL
"""  # noqa: S608
ENCRYPTED = {
    f"{TABLES}CredentialsTable": "credential_values",
    f"{TABLES}ProxyModelTable": "litellm_params",
}
"""Columns with JSON in which LiteLLM encrypts each text."""


def is_litellms(content: Content) -> bool:
    """Whether an archive holds LiteLLM's tables and no others."""
    return bool(content.rows) and all(OWN.fullmatch(table) for table in content.rows)


def objections(restored: str, live: str, run: Run) -> Iterator[str]:
    """Why the running LiteLLM could not use a restored database as it is, or not all of it.

    Both databases are given by their URLs. The present one has the schema of the running LiteLLM, because each `up`
    ensures that. `run` runs the text of a program in a replica, with the second text as its input. Raises
    BackupError.
    """
    try:
        if differs := _of_another_release(restored, live):
            yield (
                f"has the schema of another release of LiteLLM than the one that runs: {differs}. To go to that "
                "release: the same command with --force, then at once ./pulumiw up with its litellmImage"
            )
        other = _of_another_salt_key(restored, run)
    except psycopg.Error as error:
        raise BackupError(one_line(error)) from None
    except (LLMError, ProgramError, _management_error()) as error:
        yield (
            f"could not be compared with this stack's salt key: {error}. Run the command where the stack's engine "
            "can be reached, or accept that stored credentials and the clients' spending may be lost: add --force"
        )
        return
    if other:
        yield (
            f"was written with a different salt key, so {other} would be lost. Virtual keys do not depend on it. "
            "Create a stack with the former saltKey, set before its first `up`. To accept the loss, add --force"
        )


def _management_error() -> type[Exception]:
    from console.management import ManagementError  # noqa: PLC0415 -- it loads much that a backup does not need

    return ManagementError


def _of_another_release(restored: str, live: str) -> str:
    """How the schemas of two databases differ; empty if they are equal."""
    theirs, ours = _schema(restored), _schema(live)
    return "; ".join(
        f"{which} {_some(names)}"
        for which, names in (("it does not have", [*ours - theirs]), ("it also has", [*theirs - ours]))
        if names
    )


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:SOME]) + (f" and {len(names) - SOME} more" if names[SOME:] else "")


def _schema(url: str) -> set[str]:
    with connected(url) as connection:
        found = {str(name) for (name,) in connection.execute(COLUMNS)}
        if any(each.startswith(f"{MIGRATIONS}.") for each in found):
            found |= {str(name) for (name,) in connection.execute(APPLIED)}
        return found


def _of_another_salt_key(restored: str, run: Run) -> str:
    """What in a database was encrypted with another salt key than the replicas'; empty if nothing was."""
    with connected(restored) as connection:
        given = {"clients": dict(_clients(connection)), "values": [*_encrypted(connection)]}
    if not any(given.values()):
        return ""
    told = json.loads(run(PROGRAM, json.dumps(given)))
    return " and ".join(_told(told["clients"], told["values"]))


def _told(clients: list[str], values: int) -> Iterator[str]:
    if clients:
        yield f"the budgets and the spending of {_some(clients)}"
    if values:
        yield f"{values} values of stored credentials"


def _clients(connection: psycopg.Connection) -> Iterable[tuple[str, str]]:
    try:
        return connection.execute(CLIENTS).fetchall()
    except psycopg.errors.UndefinedTable:
        return []


def _encrypted(connection: psycopg.Connection) -> Iterator[str]:
    for table, column in ENCRYPTED.items():
        try:
            rows = connection.execute(f'SELECT {column} FROM "{table}"'.encode()).fetchall()  # noqa: S608
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            continue  # 1.55.0 has no credentials
        for (value,) in rows:
            yield from _texts(value)


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 -- any JSON
    if isinstance(value, dict):
        yield from (each for each in value.values() if isinstance(each, str) and each)


def in_replica(program: str, given: str) -> str:
    """What a program prints in a replica of the stack at LITELLM_URL. Raises LLMError and ProgramError."""
    from console import management  # noqa: PLC0415 -- a backup needs none of it

    return management.replica().run(program, given)
