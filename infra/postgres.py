"""Postgres, its roles and its databases."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg
import pulumi
from psycopg import sql
from pulumi.dynamic import CheckFailure, CheckResult, Resource

from infra.deploy_step import DeployStep, GuardProvider
from infra.secrets import ImmutableValue, RotatingSecret
from infra.workload import LOOPBACK, SECRETS, HealthCheck, Placement, Port, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 5432
SUPERUSER = "postgres"
HOME = "/var/lib/postgresql"
DATA = f"{HOME}/data"
FIRST_VOLUME = "postgres-data"
"""The only volume name that existed before `postgresVolume` could name another."""
LAST_WITH_DATA = 17
"""The last major version whose images have the volume at DATA; newer ones have it at HOME."""
USER_ID = 999
"""The id of the user `postgres` in the Debian images of Postgres."""
APP_DATABASE = "app"
LITELLM_DATABASE = "litellm"
"""A separate database, because LiteLLM may drop tables that it does not know."""
STOP_SECONDS = 60
"""Long enough for a checkpoint, so that the next start need not recover."""
CONNECT_SECONDS = 15
IN_TAG = re.compile(r"(?:^|[.-])pg-?(\d+)(?!\d)")
"""As in `0.8.1-pg17`: the tags of images that add something to Postgres, with its own version."""
ALONE = re.compile(r"postg(?:res(?:ql)?|is)")
"""Names of images whose tags begin with the version of Postgres."""
NOTICED = {
    "tcp_keepalives_idle": 60,
    "tcp_keepalives_interval": 10,
    "tcp_keepalives_count": 6,
    "tcp_user_timeout": 120_000,
}
"""Makes Postgres drop the connection of a lost machine within 2 minutes instead of 2 hours; until then it counts.

In seconds, the last in milliseconds.
"""
ROLES_INPUTS = (
    "server",
    "host",
    "port",
    "superuser_password",
    "superuser_previous",
    "initial_password",
    "app_password",
    "app_previous",
    "app_generation",
)


@dataclass(frozen=True, kw_only=True)
class PostgresArgs:
    """What Postgres runs with."""

    image: str
    major_version: str
    """That of the image."""
    memory_mb: int
    host: str
    """The name under which the machine that runs the program reaches the port."""
    address: str
    port: int
    volume: str
    """The volume with the data of this major version, never of another one."""
    protect: bool
    superuser_password: RotatingSecret
    app_password: RotatingSecret
    network: str


class Postgres(pulumi.ComponentResource):
    """A Postgres server with a volume that outlives it, a database for the app and one for LiteLLM.

    Creates: the workload `postgres`, its volume, `RotatingSecret`, `ImmutableValue`, `DatabaseRoles`.
    Type token: `llm-infrastructure:postgres:Postgres`.
    """

    database_url: pulumi.Output[str]
    """The URL of the app's database, with a role that owns it (secret)."""
    server: pulumi.Output[str]
    """Differs for each server that is started, so that its content is checked again."""

    def __init__(
        self, name: str, args: PostgresArgs, placement: Placement, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("llm-infrastructure:postgres:Postgres", name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        version = ImmutableValue(
            f"{name}-major-version",
            args.major_version,
            of=args.volume,
            first=FIRST_VOLUME,
            refusal=(
                "the data was written by another major version of Postgres, which this image cannot read. Set "
                "postgresImage to one of that version, or move the data to another postgresVolume: "
                "docs/runbooks/upgrade-postgres.md."
            ),
            opts=child,
        )
        # Counts only when the data directory is created. DatabaseRoles then sets the real password, which can
        # therefore change without a restart.
        initial_password = RotatingSecret(
            f"{name}-initial-password",
            kind="password",
            opts=pulumi.ResourceOptions(parent=self, protect=args.protect),
        )
        placement.volume(args.volume, protect=args.protect, opts=child)
        mounted_at, data = _layout(int(args.major_version))
        replicas = placement.run(
            Workload(
                name=name,
                image=args.image,
                command=("postgres",),
                environment={"POSTGRES_PASSWORD_FILE": f"{SECRETS}/postgres_password", "PGDATA": data},
                secrets={"postgres_password": initial_password.value},
                health=HealthCheck(
                    # Over TCP: the server that initializes the data directory listens on the socket only.
                    command=("pg_isready", "--quiet", f"--host={LOOPBACK}", f"--username={SUPERUSER}"),
                ),
                user="postgres",
                file_owner=USER_ID,
                memory_mb=args.memory_mb,
                # As large as the kernel makes it on a machine with that memory. Parallel queries share their hash
                # tables there.
                shared_memory_mb=args.memory_mb // 2,
                networks={args.network: name},
                ports=(Port(internal=PORT, external=args.port, address=args.address),),
                volumes={mounted_at: args.volume},
                stop_seconds=STOP_SECONDS,
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[version]),
        )
        self.server = replicas[0].instance
        roles = DatabaseRoles(
            f"{name}-roles",
            server=self.server,
            host=args.host,
            port=args.port,
            superuser_password=args.superuser_password,
            initial_password=initial_password.value,
            app_password=args.app_password,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[replica.ready for replica in replicas]),
        )
        self.database_url = pulumi.Output.all(roles.app_login, args.app_password.value).apply(
            lambda it: f"postgresql://{it[0]}:{quote(it[1], safe='')}@{args.host}:{args.port}/{APP_DATABASE}"
        )
        self.register_outputs({"databaseUrl": self.database_url})


def major_version_of(image: str) -> str:
    """The major version in the tag of an image with Postgres; empty if the tag does not say."""
    name, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
    if match := IN_TAG.search(tag):
        return match[1]
    leading = re.match(r"\d+(?![^.-])", tag)
    return leading[0] if leading and ALONE.fullmatch(name) else ""


def _layout(major_version: int) -> tuple[str, str]:
    """Where the volume is mounted, and where the data are: official images give that folder to their user."""
    return (HOME, f"{HOME}/{major_version}/docker") if major_version > LAST_WITH_DATA else (DATA, DATA)


LOGINS = (f"{APP_DATABASE}_1", f"{APP_DATABASE}_2")
"""The roles that the app logs in with: they take turns, so that the last one stays valid during a rotation."""


def logins(pair: tuple[str, str], last: str | None, *, is_set: bool) -> tuple[str, str]:
    """The role of a pair that gets the new password, and the other one.

    `last` is the role that got the previous one, and `is_set` says whether that password is still the current one.
    This follows what the server really has: if an `up` failed before it set a password there, callers must not lose
    the one that they use.
    """
    first, second = pair
    has_last, other = (first, second) if last == first else (second, first)
    return (has_last, other) if is_set else (other, has_last)


class _RolesProvider(DeployStep):
    id = "roles"
    inputs = ROLES_INPUTS

    def run(self, props: dict[str, Any], olds: dict[str, Any]) -> dict[str, Any]:
        is_set = int(props["app_generation"]) == int(olds.get("app_generation", 0))
        login, other = logins(LOGINS, olds.get("app_login"), is_set=is_set)
        with connect_as_superuser(props, olds) as connection:
            _set_password(connection, SUPERUSER, props["superuser_password"])
            connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(SUPERUSER)))
            for database in (APP_DATABASE, LITELLM_DATABASE):
                _ensure_database(connection, database)
            ensure_login(connection, login, props["app_password"], owner=APP_DATABASE)
            if not props["app_previous"]:
                forbid_login(connection, other)
        return {**props, "app_login": login}


def connect_as_superuser(props: dict[str, Any], olds: dict[str, Any]) -> psycopg.Connection:
    """Connect with whichever password the server has: `olds` has the last one that was really set."""
    known = [props.get(name) for name in ("superuser_password", "superuser_previous", "initial_password")]
    known += [olds[name] for name in ("superuser_password",) if name in olds]
    return _first_that_opens(props["host"], int(props["port"]), filter(None, dict.fromkeys(known)))


def _first_that_opens(
    host: str, port: int, passwords: Iterator[str], database: str = SUPERUSER
) -> psycopg.Connection:
    refusal = ""
    for password in passwords:
        try:
            return psycopg.connect(
                host=host,
                port=port,
                user=SUPERUSER,
                password=password,
                dbname=database,
                connect_timeout=CONNECT_SECONDS,
                autocommit=True,
            )
        except psycopg.OperationalError as error:
            refusal = str(error)
            if "password authentication failed" not in refusal:
                break
    raise RuntimeError(
        f"Postgres at {host}:{port} cannot be used from where `pulumi up` runs: {refusal}. If its data is older than "
        "this state, restore the state that belongs to it, or set postgresPassword to the password it has."
    )


def _exists(connection: psycopg.Connection, table: str, column: str, name: str) -> bool:
    query = sql.SQL("SELECT 1 FROM {} WHERE {} = %s").format(sql.Identifier(table), sql.Identifier(column))
    return connection.execute(query, (name,)).fetchone() is not None


def _ensure_database(connection: psycopg.Connection, name: str) -> None:
    """A database with an owner role of the same name; nobody else may connect to it."""
    identifier = sql.Identifier(name)
    if not _exists(connection, "pg_roles", "rolname", name):
        connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(identifier))
    if not _exists(connection, "pg_database", "datname", name):
        # Not from template1, which cannot be copied under another C library than the one it was created with.
        create = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0")
        connection.execute(create.format(identifier, identifier))
    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(identifier))


def ensure_login(
    connection: psycopg.Connection, name: str, password: str, *, owner: str, connections: int | None = None
) -> None:
    """A role that logs in and then acts as the owner of a database, who owns everything that it creates."""
    identifier, acts_as = sql.Identifier(name), sql.Identifier(owner)
    if not _exists(connection, "pg_roles", "rolname", name):
        connection.execute(sql.SQL("CREATE ROLE {}").format(identifier))
    connection.execute(sql.SQL("ALTER ROLE {} LOGIN").format(identifier))
    if connections is not None:
        limit = sql.Literal(connections)
        connection.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(identifier, limit))
        for setting, value in NOTICED.items():
            set_ = sql.SQL("ALTER ROLE {} SET {} = {}")
            connection.execute(set_.format(identifier, sql.Identifier(setting), sql.Literal(value)))
    connection.execute(sql.SQL("GRANT {} TO {}").format(acts_as, identifier))
    connection.execute(sql.SQL("ALTER ROLE {} SET role = {}").format(identifier, acts_as))
    _set_password(connection, name, password)


def forbid_login(connection: psycopg.Connection, name: str) -> None:
    """Connections that are open stay open: their clients may have changed over already."""
    if _exists(connection, "pg_roles", "rolname", name):
        connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL").format(sql.Identifier(name)))


def _set_password(connection: psycopg.Connection, role: str, password: str) -> None:
    """Hashed here, so that no log of the server ever has the password."""
    hashed = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(hashed)))


class DatabaseRoles(Resource, module="postgres", name="DatabaseRoles"):
    """The databases and roles on a Postgres server, and their passwords.

    Creates: databases `app` and `litellm` with an owner role each, and the app's two login roles in turn.
    Type token: `pulumi-python:dynamic/postgres:DatabaseRoles`.
    """

    app_login: pulumi.Output[str]
    """The role that the app logs in with."""

    def __init__(  # noqa: PLR0913 -- all are needed, all by name
        self,
        name: str,
        *,
        server: pulumi.Output[str],
        host: str,
        port: int,
        superuser_password: RotatingSecret,
        initial_password: pulumi.Output[str],
        app_password: RotatingSecret,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "server": server,
            "host": host,
            "port": port,
            "superuser_password": superuser_password.value,
            "superuser_previous": superuser_password.previous,
            "initial_password": initial_password,
            "app_password": app_password.value,
            "app_previous": app_password.previous,
            "app_generation": app_password.generation,
            "app_login": None,
        }
        super().__init__(_RolesProvider(), name, props, opts)


class _SaltKeyProvider(GuardProvider):
    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        failures = []
        if olds and olds["configured"] != news["configured"] and _litellm_has_tables(news):
            reason = (
                "LiteLLM's database holds credentials that only the current salt key can decrypt, so it cannot "
                "change. Restore saltKey (if it was not set: ./pulumiw config rm saltKey)."
            )
            failures.append(CheckFailure("configured", reason))
        return CheckResult(news, failures)


def _litellm_has_tables(props: dict[str, Any]) -> bool:
    with _litellms_database(props) as connection:
        query = "SELECT 1 FROM pg_tables WHERE tablename LIKE 'LiteLLM\\_%' LIMIT 1"
        return connection.execute(query).fetchone() is not None


def _litellms_database(props: dict[str, Any]) -> psycopg.Connection:
    if "url" not in props:
        passwords = filter(None, (props["superuser_password"], props["superuser_previous"]))
        return _first_that_opens(props["host"], int(props["port"]), passwords, LITELLM_DATABASE)
    try:
        return psycopg.connect(props["url"], connect_timeout=CONNECT_SECONDS, autocommit=True)
    except psycopg.OperationalError as error:
        raise RuntimeError(
            f"saltKey is changed, and whether LiteLLM's database holds what it encrypts is not known: {error}. "
            "Restore saltKey (if it was not set: ./pulumiw config rm saltKey), or have the server answer"
        ) from None


class SaltKeyGuard(Resource, module="postgres", name="SaltKeyGuard"):
    """Refuses a different salt key, in the preview, once LiteLLM has tables in its database.

    Creates: nothing outside the state. Type token: `pulumi-python:dynamic/postgres:SaltKeyGuard`.
    """

    def __init__(
        self,
        name: str,
        *,
        configured: str | None,
        server: tuple[str, int, RotatingSecret] | None,
        url: str | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`configured` is the salt key of the stack config.

        `url` is LiteLLM's database, unless that is in the stack's own `server` (its host, port and superuser).
        """
        props: dict[str, pulumi.Input[object]] = {
            "configured": pulumi.Output.secret(configured) if configured else ""
        }
        if url is not None:
            props["url"] = pulumi.Output.secret(url)
        elif server is not None:
            host, port, superuser = server
            props |= {"host": host, "port": port}
            props |= {"superuser_password": superuser.value, "superuser_previous": superuser.previous}
        super().__init__(_SaltKeyProvider(), name, props, opts)
