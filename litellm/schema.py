"""Bring LiteLLM's database to the schema that the LiteLLM of this image wants, and end.

Usage: python3 schema.py

`infra/litellm_database.py` runs it once, before the replicas; they start with schema updates off. Releases with
migrations of their own run these, earlier ones Prisma's `db push`, without the option that drops what is not in the
schema. What it prints has no password.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

SECRET = Path("/run/secrets/DATABASE_URL")
MIGRATE = ("-c", "from litellm.proxy.proxy_cli import run_server; run_server()", "--skip_server_startup")
DIFF = (
    "migrate",
    "diff",
    "--from-schema-datasource",
    "schema.prisma",
    "--to-schema-datamodel",
    "schema.prisma",
    "--script",
)
DROPS = re.compile(
    r"^\s*(?:DROP|TRUNCATE|DELETE)\b|\bDROP\s+(?:COLUMN|TABLE|SCHEMA|TYPE)\b", re.IGNORECASE | re.MULTILINE
)
HISTORY = "SELECT to_regclass('public._prisma_migrations') IS NOT NULL AS history"
TABLES = "SELECT count(*) AS tables FROM pg_tables WHERE tablename LIKE 'LiteLLM\\_%'"
SECONDS = 1800
COMMAND_SECONDS = "LITELLM_PRISMA_COMMAND_TIMEOUT"
"""LiteLLM's variable for this limit. After LiteLLM's default of 60 seconds it says that the schema is not its own: on
a busy machine Prisma's comparison takes longer."""
LOOK = "look"
"""The argument that makes this program only look, and print what it found."""


class SchemaError(Exception):
    """Why the database was left as it is. The message is for an operator."""


def main() -> None:
    """Change the schema, and see that LiteLLM's client can use it. Raises SchemaError."""
    if importlib.util.find_spec("prisma.client") is None:
        raise SchemaError(
            "this image of LiteLLM has no database client. If `make up` built it: install npm, remove the image "
            "(docker rmi --force), and run `make up` again"
        )
    os.environ["DATABASE_URL"] = url = SECRET.read_text(encoding="utf-8").strip()
    os.environ["DISABLE_SCHEMA_UPDATE"] = "false"
    os.environ[COMMAND_SECONDS] = str(SECONDS)
    history, tables = _looked_at(url)
    if importlib.util.find_spec("litellm_proxy_extras"):
        if tables and not history:
            _take_to_migrations(url)
        _run(url, sys.executable, *MIGRATE)
    else:
        if history:
            raise SchemaError(
                "a newer LiteLLM has migrated this database, and this release would drop what it does not know. Use "
                "the newer image again, or restore this release's backup"
            )
        _run(url, "prisma", "db", "push", "--skip-generate")
    _looked_at(url)


def _looked_at(url: str) -> tuple[bool, int]:
    """What `_found` finds, by a process of its own: the client takes up to 300 MB."""
    said = _run(url, sys.executable, "-I", __file__, LOOK, quiet=True)
    history, tables = json.loads(said.splitlines()[-1])
    return history, tables


async def _found() -> tuple[bool, int]:
    """Whether LiteLLM has a history of migrations, and how many tables; asked as LiteLLM asks."""
    try:
        from prisma import Prisma  # noqa: PLC0415 -- of the image, where it may be missing

        async with Prisma() as client:
            history, tables = [(await client.query_raw(query))[0] for query in (HISTORY, TABLES)]
    except Exception as error:
        raise SchemaError(
            f"this image has no database client that user {os.getuid()} can run, or it does not reach the database: "
            f"{type(error).__name__}: {error}"
        ) from error
    return bool(history["history"]), int(tables["tables"])


def _take_to_migrations(url: str) -> None:
    """Make what is missing in a database from before LiteLLM had migrations, in one transaction.

    LiteLLM then finds its own schema, and adopts its history by itself.
    """
    import psycopg  # noqa: PLC0415 -- of the image: releases with migrations have it

    script = _run(url, "prisma", *DIFF, quiet=True)
    if drop := DROPS.search(script):
        raise SchemaError(
            f"the change to this release's schema would drop data ({drop[0].strip()} …): nothing was changed"
        )
    with psycopg.connect(url, prepare_threshold=None) as connection:
        connection.execute(script)
    print(f"{script.count(';')} statements brought the tables of an earlier release up to date")


def _run(url: str, *command: str, quiet: bool = False) -> str:
    """Run a program where LiteLLM's schema is; what it printed. Raises SchemaError."""
    try:
        done = subprocess.run(
            command, cwd=_folder(), check=False, capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise SchemaError(f"{Path(command[0]).name} did not end within {SECONDS} s") from None
    if not quiet or done.returncode:
        print(without_password(done.stdout + done.stderr, url), end="", flush=True)
    if done.returncode:
        raise SchemaError(f"{Path(command[0]).name} ended with {done.returncode}")
    return done.stdout


def _folder() -> Path:
    """Where LiteLLM's `schema.prisma` is."""
    for name in ("litellm_proxy_extras", "litellm"):
        spec = importlib.util.find_spec(name)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for each in (Path(folder), Path(folder, "proxy")):
                if (each / "schema.prisma").is_file():
                    return each
    raise SchemaError("this image has no schema of LiteLLM's")


def without_password(text: str, url: str) -> str:
    """A text without a URL, and without the password in it."""
    password = urlsplit(url).password or ""
    for each in filter(None, (url, password, unquote(password))):
        text = text.replace(each, "***")
    return text


if __name__ == "__main__":
    try:
        if sys.argv[1:] == [LOOK]:
            print(json.dumps(asyncio.run(_found())))
        else:
            main()
    except SchemaError as error:
        sys.exit(without_password(str(error), os.environ.get("DATABASE_URL", "")))
