"""LiteLLM's database: who logs in to it, and its schema, which is changed before a replica needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import psycopg
import pulumi
from pulumi.dynamic import Resource

from console.backup import Backup, backup, remove_older
from console.litellm_database import MIGRATIONS
from console.postgres_programs import LITELLM_LOGINS, BackupError
from engine.own_folder import litellm_backups
from infra import gateway, litellm_connections, postgres, programs
from infra.deploy_step import DeployStep
from infra.placement import job
from infra.secrets import RotatingSecret
from infra.workload import HealthCheck, Workload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.settings import Settings
    from infra.workload import Placement

JOB_MB = 1536
"""The memory that Prisma's command line and LiteLLM need together, while they run beside the replicas (1.108.14: 1024
was too little when this included Prisma's client as well)."""
KEPT_BACKUPS = 5
CONNECT_SECONDS = 15
POOL = f"generalSettings.{litellm_connections.POOL}"
OWN_TABLES = r"LiteLLM\_%"
FOREIGN = """
    SELECT n.nspname || '.' || c.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%%'
      AND NOT (c.relname LIKE %s OR c.relname = %s)
    ORDER BY 1
"""
TABLES = "SELECT count(*) FROM pg_tables WHERE tablename LIKE %s"


@dataclass(frozen=True, kw_only=True)
class Server:
    """The stack's Postgres, as LiteLLM's database needs it."""

    instance: pulumi.Input[str]
    """Differs for each server that is started."""
    host: str
    """The name under which the machine that runs the program reaches the server's port."""
    superuser_password: RotatingSecret
    network: str
    name: str
    """The server's name on the network."""
    ready: pulumi.Resource


class LiteLLMDatabase(pulumi.ComponentResource):
    """A database for LiteLLM, with its own login, a limit on its connections, and the image's schema.

    Creates: `RotatingSecret`, `LiteLLMLogin`, `LiteLLMSchema`.
    Type token: `llm-infrastructure:litellm_database:LiteLLMDatabase`.
    """

    url: pulumi.Output[str]
    """Its URL for the replicas (secret)."""
    here: pulumi.Input[str]
    """Its URL for this machine (secret)."""
    networks: tuple[str, ...]
    """The networks through which the replicas reach it, beside their own."""
    instance: pulumi.Output[str]
    """Differs for each database that this may be."""
    replica_mb: int
    """How much of a replica's memory it needs, in MiB."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        placement: Placement,
        *,
        server: Server | None,
        network: str,
    ) -> None:
        """`server` is the stack's own server, if LiteLLM's database is there; `network` is that of the replicas."""
        super().__init__("llm-infrastructure:litellm_database:LiteLLMDatabase", name, {})
        child = pulumi.ResourceOptions(parent=self)
        self.replica_mb = litellm_connections.replica_mb(dict(settings))
        wanted = litellm_connections.limit(settings.replicas, litellm_connections.pool(settings.general_settings))
        instance: pulumi.Input[str] = ""
        if settings.litellm_database_url is not None or server is None:
            url = settings.litellm_database_url
            self.url = here = pulumi.Output.secret(url.get_secret_value() if url else "")
            self.networks, after = (), []
        else:
            login = _login(name, settings, server, wanted, child)
            self.url = login.url(placement.host_name(server.name), postgres.PORT)
            here = login.url(server.host, settings.postgres_port)
            self.networks, after, instance = (server.network,), [login], server.instance
        self.here = here
        self.instance = pulumi.Output.concat(instance, " ", pulumi.Output.unsecret(here.apply(_database)))
        self.schema = LiteLLMSchema(
            f"{name}-schema",
            url=here,
            server=instance,
            connections=wanted,
            job=placement.job(
                Workload(
                    name=f"{name}-schema",
                    image=settings.litellm_image,
                    entrypoint=("python3", "-I", programs.SCHEMA),
                    environment={**gateway.ENVIRONMENT, "LITELLM_MIGRATION_DIR": "/tmp/migrations"},  # noqa: S108
                    files=programs.schema(),
                    secrets={"DATABASE_URL": self.url},
                    health=HealthCheck(command=("true",)),
                    user=f"{gateway.USER_ID}:{gateway.USER_ID}",
                    file_owner=gateway.USER_ID,
                    memory_mb=JOB_MB,
                    networks=dict.fromkeys(self.networks or (network,), f"{name}-schema"),
                    host_gateway=gateway.HOST_NAME,
                )
            ),
            opts=pulumi.ResourceOptions.merge(child, pulumi.ResourceOptions(depends_on=after)),
        )
        self.register_outputs({})


def _login(
    name: str, settings: Settings, server: Server, connections: int, opts: pulumi.ResourceOptions
) -> LiteLLMLogin:
    kept = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(protect=settings.protect_data))
    password = RotatingSecret(
        f"{name}-password",
        kind="password",
        version=settings.secret_versions.litellm_database_password,
        retire=settings.retire_previous.litellm_database_password,
        opts=kept,
    )
    return LiteLLMLogin(
        f"{name}-login",
        server=server.instance,
        host=server.host,
        port=settings.postgres_port,
        superuser_password=server.superuser_password,
        password=password,
        connections=connections,
        opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[server.ready])),
    )


class _LoginProvider(DeployStep):
    id = "login"
    inputs = ("server", "host", "port", "superuser_password", "password", "previous", "generation", "connections")

    def run(self, props: dict[str, Any], olds: dict[str, Any]) -> dict[str, Any]:
        is_set = int(props["generation"]) == int(olds.get("generation", 0))
        login, other = postgres.logins(LITELLM_LOGINS, olds.get("login"), is_set=is_set)
        with postgres.connect_as_superuser(props, olds) as connection:
            postgres.ensure_login(
                connection,
                login,
                props["password"],
                owner=postgres.LITELLM_DATABASE,
                connections=int(props["connections"]),
            )
            if not props["previous"]:
                postgres.forbid_login(connection, other)
        return {**props, "login": login}


class LiteLLMLogin(Resource, module="litellm_database", name="LiteLLMLogin"):
    """The role that LiteLLM logs in with, its password, and how many connections it may have.

    Type token: `pulumi-python:dynamic/litellm_database:LiteLLMLogin`.
    """

    login: pulumi.Output[str]
    password: pulumi.Output[str]

    def __init__(  # noqa: PLR0913 -- all are needed, all by name
        self,
        name: str,
        *,
        server: pulumi.Input[str],
        host: str,
        port: int,
        superuser_password: RotatingSecret,
        password: RotatingSecret,
        connections: int,
        opts: pulumi.ResourceOptions,
    ) -> None:
        props = {
            "server": server,
            "host": host,
            "port": port,
            "superuser_password": superuser_password.value,
            "superuser_previous": superuser_password.previous,
            "password": password.value,
            "previous": password.previous,
            "generation": password.generation,
            "connections": connections,
            "login": None,
        }
        super().__init__(_LoginProvider(), name, props, opts)

    def url(self, host: str, port: int) -> pulumi.Output[str]:
        """The database's URL, by a name of its server."""
        return pulumi.Output.secret(
            pulumi.Output.all(self.login, self.password).apply(
                lambda it: f"postgresql://{it[0]}:{quote(it[1], safe='')}@{host}:{port}/{postgres.LITELLM_DATABASE}"
            )
        )


class _SchemaProvider(DeployStep):
    id = "schema"
    inputs = ("image", "server", "database")

    def run(self, props: dict[str, Any], olds: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        saved: Backup | None = None
        try:
            job.end_former(props["job"])  # otherwise it would change what is being checked and saved here
            if _has_data(props):
                saved = _saved(props)
            job.run(props["job"])
            if saved:  # not before: each try saves a backup, and the one from before the first try must stay
                remove_older(saved.file, saved.database, KEPT_BACKUPS)
        except psycopg.Error as error:
            raise RuntimeError(f"LiteLLM's database cannot be used from where `pulumi up` runs: {error}") from None
        except BackupError as error:
            raise RuntimeError(f"LiteLLM's database could not be saved, so nothing was changed: {error}") from None
        except job.JobError as error:
            kept = f" The previous content is saved in {saved.file}." if saved else ""
            raise RuntimeError(
                "LiteLLM's schema was not updated. The replicas keep running, and the next `up` tries again."
                f"{kept} The container reported: {error}"
            ) from None
        return {**props, "backup": str(saved.file) if saved else ""}

    def delete(self, id: str, props: dict[str, Any]) -> None:  # noqa: A002, ARG002
        """Await and remove what a killed `up` left: it would keep the network in use. The database stays as it is."""
        try:
            job.end_former(props["job"])
        except job.JobError as error:
            raise RuntimeError(f"The container that changes LiteLLM's schema is still there: {error}") from None


def _saved(props: dict[str, Any]) -> Backup:
    folder = litellm_backups(props["stack"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return backup(props["url"], folder, alone=True, report=lambda _: None, engine=props["job"]["host"])


def _has_data(props: dict[str, Any]) -> bool:
    """Whether LiteLLM has tables there. Raises RuntimeError for any other table, or too few free connections."""
    name, stack, connections = props["database"], props["stack"], int(props["connections"])
    with psycopg.connect(props["url"], connect_timeout=CONNECT_SECONDS, autocommit=True) as connection:
        if foreign := foreign_tables(connection):
            some = ", ".join(foreign[:3]) + (", …" if foreign[3:] else "")
            raise RuntimeError(
                f"{name} holds tables that are not LiteLLM's ({some}). LiteLLM may drop tables that it does not "
                "know, so it needs a database of its own. Nothing was changed."
            )
        most = int((connection.execute("SHOW max_connections").fetchone() or ("0",))[0])
        if most <= connections:
            raise RuntimeError(
                f"{name}: LiteLLM's replicas need up to {connections} connections, and the server has {most}. "
                "Nothing was changed. Make the pools smaller: "
                f"./pulumiw config set --stack {stack} --path {POOL} 2"
            )
        return bool((connection.execute(TABLES, (OWN_TABLES,)).fetchone() or (0,))[0])


def foreign_tables(connection: psycopg.Connection) -> list[str]:
    """The tables in the database that are not LiteLLM's."""
    return [str(row[0]) for row in connection.execute(FOREIGN, (OWN_TABLES, MIGRATIONS))]


def _database(url: str) -> str:
    """The database that a URL names, without user and password."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or postgres.PORT}{parts.path}"


class LiteLLMSchema(Resource, module="litellm_database", name="LiteLLMSchema"):
    """The schema that LiteLLM's image needs: that image creates it, once, before the replicas start.

    Existing data are backed up first. Destroying it leaves the database as it is. Type token:
    `pulumi-python:dynamic/litellm_database:LiteLLMSchema`.
    """

    backup: pulumi.Output[str]
    """The backup file from before the last change; empty if there were no data."""

    def __init__(  # noqa: PLR0913 -- all are needed, all by name
        self,
        name: str,
        *,
        url: pulumi.Output[str],
        server: pulumi.Input[str],
        connections: int,
        job: Mapping[str, pulumi.Input[object]],
        opts: pulumi.ResourceOptions,
    ) -> None:
        """`url` is the database's URL for this machine."""
        props = {
            "url": url,
            "database": pulumi.Output.unsecret(url.apply(_database)),
            "server": server,
            "connections": connections,
            "image": job["image"],
            "stack": pulumi.get_stack(),
            "job": job,
            "backup": None,
        }
        super().__init__(_SchemaProvider(), name, props, opts)
