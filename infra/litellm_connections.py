"""LiteLLM's database in the stack config: what must fit together, and how many connections there can be.

Each replica has a pool of connections. All of them, those of what changes the schema and an
administrator's must fit on the server together with the app's, in number and in memory. Postgres refuses connections
beyond its limit, and requests then fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict
from pydantic.alias_generators import to_camel

from infra import gateway, providers
from infra.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.settings import Settings

POOL = "database_connection_pool_limit"
"""The entry of LiteLLM's general_settings with the size of a replica's pool."""
POOL_CONNECTIONS = 5
GENERATIONS = 2
"""A replica that was killed keeps its connections until Postgres notices, beside those of its successor."""
OTHER_CONNECTIONS = 4
"""The connections of the job that changes the schema, of a backup and of an administrator."""
APP_CONNECTIONS = 20
"""Left to the app, its migrations and its backups."""
MAX_CONNECTIONS = 97
"""The connections that Postgres accepts by default, without the three that it keeps for its superuser."""
POSTGRES_MB = 192
"""The memory that Postgres needs without LiteLLM."""
CONNECTION_MB = 10
"""The memory that Postgres needs for each of LiteLLM's connections (measured with 1.55.0: 4)."""
RETENTION = "90d"
GENERAL_SETTINGS: Mapping[str, object] = {
    POOL: POOL_CONNECTIONS,
    "maximum_spend_logs_retention_period": RETENTION,  # 1.55.0 keeps all
    "store_prompts_in_spend_logs": False,
    "disable_adding_master_key_hash_to_db": True,  # 1.55.0 would mistake a former master key for a virtual key
}
"""What LiteLLM's general_settings have with a database, unless the stack config says otherwise."""


def general_settings(settings: Settings) -> dict[str, object]:
    """The settings for this stack's LiteLLM database; the file's general_settings override them."""
    return dict(GENERAL_SETTINGS) if settings.litellm_database else {}


def pool(general: Mapping[str, Any]) -> int:
    """The number of connections of a replica, from the generalSettings of a stack config."""
    return int(general.get(POOL, POOL_CONNECTIONS))


def replica_mb(values: Mapping[str, Any]) -> int:
    """How much of a replica's memory LiteLLM's database needs, in MiB; 0 without a database."""
    if not values.get("litellm_database"):
        return 0
    return providers.load().release(values.get("litellm_image", "")).database_mb


def limit(replicas: int, connections: int) -> int:
    """How many connections LiteLLM's role may have at once, with pools of that size."""
    return GENERATIONS * replicas * connections + OTHER_CONNECTIONS


def problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with LiteLLM's database in a stack config; `values` has the valid fields."""
    external = values.get("litellm_database_url")
    if not values.get("litellm_database"):
        if external is not None:
            what = "has no effect without litellmDatabase"
            yield Problem("litellmDatabaseUrl", what, "set litellmDatabase true")
        return
    if external is not None:
        yield from _of_your_own_server(values, external.get_secret_value())
    elif values.get("database_url") is not None:
        what = "is missing: with databaseUrl, LiteLLM needs a separate database that holds nothing else"
        yield Problem(
            "litellmDatabaseUrl",
            what,
            "set --secret litellmDatabaseUrl postgresql://user:password@db.example:5432/litellm",
        )
    least = gateway.LITELLM_MB + replica_mb(values)
    if values.get("litellm_memory_mb", least) < least:
        what = f"is too small: LiteLLM with a database needs {least}"
        yield Problem("litellmMemoryMb", what, f"set litellmMemoryMb {max(least, 1024)}")
    connections = values.get("general_settings", {}).get(POOL, POOL_CONNECTIONS)
    if not isinstance(connections, int) or isinstance(connections, bool) or connections < 1:
        what = "must be a whole number, at least 1"
        yield Problem(f"generalSettings.{POOL}", what, f"set --path generalSettings.{POOL} {POOL_CONNECTIONS}")
    elif external is None and {"replicas", "postgres_memory_mb"} <= values.keys():
        yield from _room(values["replicas"], connections, values["postgres_memory_mb"])


def _of_your_own_server(values: Mapping[str, Any], url: str) -> Iterator[Problem]:
    if not url.startswith(("postgresql://", "postgres://")):
        what = "must be a URL, as postgresql://user:password@db.example:5432/litellm: Prisma accepts no other form"
        yield Problem("litellmDatabaseUrl", what, "set --secret litellmDatabaseUrl postgresql://…")
    elif "," in _place(url)[0]:
        what = "names several hosts, and Prisma accepts only one: name the address that always leads to the primary"
        yield Problem("litellmDatabaseUrl", what, "set --secret litellmDatabaseUrl postgresql://…")
    app = values.get("database_url")
    if app is not None and _place(app.get_secret_value()) == _place(url):
        what = "is the app's database: LiteLLM may drop tables that it does not know, so it needs one of its own"
        yield Problem("litellmDatabaseUrl", what, "set --secret litellmDatabaseUrl postgresql://…/litellm")
    for numbers, least in (("secretVersions", 1), ("retirePrevious", 0)):
        given = values.get("secret_versions" if numbers == "secretVersions" else "retire_previous")
        if getattr(given, "litellm_database_password", least) <= least:
            continue
        key = f"{numbers}.litellmDatabasePassword"
        yield Problem(key, "has no effect while litellmDatabaseUrl is set: that has the password", f"rm --path {key}")


def _place(url: str) -> tuple[str, ...]:
    """The server and the database that a URL names."""
    parts = conninfo_to_dict(url)
    return tuple(str(parts.get(name) or other) for name, other in (("host", ""), ("port", "5432"), ("dbname", "")))


def _room(replicas: int, connections: int, memory_mb: int) -> Iterator[Problem]:
    """Whether the stack's Postgres has room for all replicas' connections."""
    wanted = limit(replicas, connections)
    taken = f"{replicas} replicas with {connections} connections each need {wanted}, as each may be replaced"
    place = f"generalSettings.{POOL}"
    in_number = MAX_CONNECTIONS - APP_CONNECTIONS
    if wanted > in_number:
        fits = (in_number - OTHER_CONNECTIONS) // (GENERATIONS * replicas)
        what = f"is too much: {taken}, and Postgres has {in_number} beside the app's"
        yield Problem(place, what, f"set --path {place} {fits}")
    elif wanted * CONNECTION_MB + POSTGRES_MB > memory_mb:
        what = f"is too little for LiteLLM's database: {taken}, of {CONNECTION_MB} MB each"
        yield Problem(
            to_camel("postgres_memory_mb"), what, f"set postgresMemoryMb {wanted * CONNECTION_MB + POSTGRES_MB}"
        )
