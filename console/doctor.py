"""`llmctl doctor`: what is right, doubtful or wrong, and the commands that fix it. Changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from app import migrations, organizations
from app._errors import LLMError
from app._settings import Settings
from app._unreachable import KEY_FIX
from console import litellm_check, redis_check
from console.finding import Finding
from console.gateway_report import ENDING_FIX, MODELS_FIX, SECONDS, GatewayError, ask
from console.served import doubts

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parent.parent
WITH_COLLATION_VERSIONS = 150000
"""The first PostgreSQL that stores the version of the C library for each database."""
VERSION_FIX = "./pulumiw up, unless litellmImage of the stack config names that one"


def examine(folder: Path) -> Iterator[Finding]:
    """Check the settings, the gateway and the databases, in this order; `folder` has the migrations."""
    try:
        settings = Settings.load()
        settings.required_api_key()
    except LLMError as error:
        yield Finding("settings", "failure", str(error), "make up")
        return
    yield Finding("settings", "ok", f"gateway at {settings.litellm_url}")
    served: set[str] = set()
    yield from _gateway(settings, served)
    yield from _database(settings, folder, served)
    if settings.litellm_database_url is not None:
        yield from litellm_check.examine(settings.litellm_database_url.get_secret_value(), round(SECONDS))
        yield from redis_check.examine(settings)
    else:
        yield from litellm_check.unnamed_database(settings)


def _gateway(settings: Settings, served: set[str]) -> Iterator[Finding]:
    """Check the gateway, and put the names of the models that it serves into `served`."""
    try:
        gateway = ask(settings)
    except GatewayError as error:
        yield Finding("gateway", "failure", str(error), error.fix)
        return
    yield Finding("gateway", "ok", "it answers")
    yield _version(gateway.version)
    if gateway.refused is not None:
        yield Finding("key", "failure", f"the gateway refuses it with status {gateway.refused}", KEY_FIX)
        return
    yield Finding("key", "ok", "the gateway accepts it")
    served.update(gateway.models)
    if served:
        yield Finding("models", "ok", ", ".join(gateway.models))
        for name, ending in gateway.endings.items():
            detail = f"{name}: {ending}"
            yield (
                Finding("models", "warning", detail, ENDING_FIX)
                if ending.noticed
                else Finding("models", "ok", detail)
            )
    else:
        yield Finding("models", "failure", "none is served", MODELS_FIX)


def _version(found: str) -> Finding:
    pin = re.search(r"litellm:[\w.-]*?v?(\d+\.\d+\.\d+)", _project_file())
    if not found:
        return Finding(
            "version",
            "ok",
            "the gateway does not report it, as newer releases do not: `llmctl status` shows the image",
        )
    if pin is None or pin[1] == found:
        return Finding("version", "ok", f"LiteLLM {found}")
    return Finding("version", "warning", f"LiteLLM {found} is running, but Pulumi.yaml pins {pin[1]}", VERSION_FIX)


def _project_file() -> str:
    path = PROJECT / "Pulumi.yaml"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _database(settings: Settings, folder: Path, served: set[str]) -> Iterator[Finding]:
    try:
        url = settings.required_database_url()
        with psycopg.connect(url, connect_timeout=round(SECONDS), autocommit=True) as connection:
            foreign = connection.execute(
                "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'LiteLLM\\_%'"
            ).fetchone()
            sorting = collation(connection)
    except LLMError as error:
        yield Finding("database", "warning", str(error), "make up")
        return
    except psycopg.Error as error:
        detail = f"it cannot be used ({error.sqlstate or type(error).__name__})"
        yield Finding("database", "failure", detail, "check DATABASE_URL; `make up` writes it to .env")
        return
    yield Finding("database", "ok", "it answers")
    if sorting is not None:
        yield sorting
    if foreign != (0,):
        detail = "LiteLLM has its tables in it, and may drop the app's"
        yield Finding("own database", "failure", detail, "point DATABASE_URL at a separate database for the app")
    else:
        yield Finding("own database", "ok", "LiteLLM has no tables in it")
    try:
        pending = migrations.status(url, folder).pending
    except (migrations.MigrationError, psycopg.Error) as error:
        yield Finding("migrations", "failure", str(error), "llmctl migrate status")
        return
    if pending:
        names = ", ".join(migration.file for migration in pending)
        yield Finding("migrations", "failure", f"pending: {names}", "llmctl migrate up")
        return
    yield Finding("migrations", "ok", "none is pending")
    if served:
        yield from _organizations(served)


def collation(connection: psycopg.Connection) -> Finding | None:
    """Whether the server sorts text with the C library that built the indexes, or with another one.

    PostgreSQL knows this since version 15, for libraries that have versions:
    https://www.postgresql.org/docs/17/sql-altercollation.html
    """
    if connection.info.server_version < WITH_COLLATION_VERSIONS:
        return None
    found = connection.execute(
        "SELECT datname, datcollversion, pg_database_collation_actual_version(oid) FROM pg_database"
        " WHERE datname = current_database() AND datcollversion <> pg_database_collation_actual_version(oid)"
    ).fetchone()
    if found is None:
        return Finding("collation", "ok", "the server sorts text in the order of its indexes")
    name, then, now = found
    return Finding(
        "collation",
        "warning",
        f"text indexes of {name} may be wrong: they were built with version {then} of the C library, and the server "
        f"has {now}",
        "docs/runbooks/another-c-library.md",
    )


def _organizations(served: set[str]) -> Iterator[Finding]:
    try:
        listed = organizations.listed()
    except LLMError as error:
        yield Finding("organizations", "failure", str(error), "llmctl migrate up")
        return
    found = [
        Finding("organizations", "warning", doubt, f"llmctl org set-model {organization.id} MODEL")
        for organization in listed
        for doubt in doubts(organization, served)
    ]
    yield from found or [Finding("organizations", "ok", f"{len(listed)}, all with models that are served")]
