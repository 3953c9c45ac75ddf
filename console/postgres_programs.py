"""PostgreSQL's own programs for a server, which do the work of backups and restores.

They must have the server's major version. An older pg_dump refuses the server. The server's own pg_restore may not
read what a newer pg_dump writes. A newer pg_restore sends settings that the server may not know. They run in the
container of the stack's Postgres, over its local socket and so without a password; if that is not the server, on this
machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from console.containers import LABEL, POSTGRES
from console.programs import ProgramError, output, reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

CONTAINER_LABEL = f"{LABEL}.part={POSTGRES}"
SUPERUSER = "postgres"
MAINTENANCE_DATABASE = "postgres"
"""The database to connect to for creating and renaming databases: nobody can rename the one that they are connected
to."""
PROGRAMS = ("pg_dump", "pg_restore", "psql")
CONNECT_SECONDS = 15
# Two servers may have the same system identifier (one is a copy of the other), but not also the same start time.
IDENTITY = (
    "SELECT concat(system_identifier, ' ', extract(epoch FROM pg_postmaster_start_time())) FROM pg_control_system()"
)
LITELLM_LOGINS = ("litellm_1", "litellm_2")
"""The roles with which LiteLLM logs in: they take turns, like the app's."""
BESIDE = "SELECT count(*) FROM pg_stat_activity WHERE datname <> current_database() AND usename = ANY(%s)"


class BackupError(Exception):
    """What failed or was refused. The message is one line, without a password, and names the next step."""


@dataclass(frozen=True, slots=True)
class Server:
    """The server and database of a URL, from the server's own answer."""

    url: str
    database: str
    oid: int
    user: str
    role: str
    """The role that the user acts as."""
    address: str
    port: int
    version: int
    """The major version."""
    password: str
    variable: str
    """The environment variable with the URL."""
    litellm_beside: bool
    """Whether LiteLLM is connected to another database there."""


@dataclass(frozen=True, slots=True)
class Programs:
    """PostgreSQL's programs for a server: where they run, and as which user."""

    where: str
    prefix: tuple[str, ...]
    connection: str
    """Without a password."""
    admin: str
    """As the user who creates and renames databases."""
    password: str = ""

    def command(self, program: str, *arguments: str) -> list[str]:
        """The command line that runs one of PostgreSQL's programs."""
        return [*self.prefix, program, *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """The environment to run it in."""
        return {**os.environ, **({"PGPASSWORD": self.password} if self.password else {})}

    def psql(self, *options: str) -> list[str]:
        """The command line that runs psql as the user who creates and renames databases."""
        plain = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
        return self.command("psql", *plain, *options, f"--dbname={self.admin}")

    def sql(self, script: str, **variables: str) -> str:
        """The output of a psql script, run as the user who creates and renames databases."""
        command = self.psql(*(f"--set={name}={value}" for name, value in variables.items()))
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
        """A running program; raises BackupError at the end if it failed."""
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


def server_at(url: str, variable: str = "DATABASE_URL") -> Server:
    """The server at `url`, the value of `variable`, once it has answered. Raises BackupError."""
    try:
        with connected(url) as connection:
            row = connection.execute(
                "SELECT oid, current_user FROM pg_database WHERE datname = current_database()"
            ).fetchone()
            oid, role = row or (0, "")
            info = connection.info
            return Server(
                url=url,
                database=info.dbname,
                oid=oid,
                user=info.user,
                role=role,
                address=f"{info.host}:{info.port}",
                port=info.port,
                version=info.server_version // 10000,
                password=info.password,
                variable=variable,
                litellm_beside=connection.execute(BESIDE, ([*LITELLM_LOGINS],)).fetchone() != (0,),
            )
    except psycopg.Error as error:
        raise BackupError(
            f"the database at {variable} cannot be used: {one_line(error)} (run `llmctl doctor`)"
        ) from None


def connected(url: str) -> psycopg.Connection:
    """A connection to the server at `url`, within some seconds."""
    return psycopg.connect(url, connect_timeout=CONNECT_SECONDS, autocommit=True)


def programs_for(server: Server, engine: str | None = None) -> Programs:
    """The programs in the container of the stack's Postgres if that is the server, otherwise those of this machine.

    `engine` is the address of the Docker Engine to ask, if it is not the one that `docker` uses.

    Raises BackupError that says what was tried.
    """
    docker = ["docker", *([f"--host={engine}"] if engine else []), *(["--tlsverify"] if _by_tls(engine) else [])]
    container, no_container = _container(server, docker)
    if container:
        return Programs(
            where=f"in container {container}",
            prefix=(*docker, "exec", "--interactive", container),
            connection=make_conninfo(user=server.user, dbname=server.database),
            admin=make_conninfo(user=SUPERUSER, dbname=MAINTENANCE_DATABASE),
        )
    if missing := [each for each in (_missing(program, server.version) for program in PROGRAMS) if each]:
        raise BackupError(
            f"PostgreSQL's programs are needed in the server's version, {server.version}: {no_container}; "
            f"{missing[0]}. Run this where the engine of the stack is reachable, or install "
            f"postgresql-client-{server.version}"
        )
    public: dict[str, Any] = {
        key: value for key, value in conninfo_to_dict(server.url).items() if "password" not in key
    }
    return Programs(
        where="on this machine",
        prefix=(),
        connection=make_conninfo(**public),
        admin=make_conninfo(**{**public, "dbname": MAINTENANCE_DATABASE}),
        password=server.password,
    )


def _by_tls(engine: str | None) -> bool:
    return engine is not None and engine.startswith("tcp://")


def _container(server: Server, docker: list[str]) -> tuple[str, str]:
    """The name of the container that is the server, or why there is none."""
    listing = [*docker, "ps", "--format={{.Names}}", f"--filter=label={CONTAINER_LABEL}"]
    try:
        listed = output([*listing, f"--filter=publish={server.port}"])
    except ProgramError as error:
        return "", f"Docker was asked for the stack's Postgres, and {error}"
    for name in listed.split():
        # The port alone proves little: the server may be at the other end of a tunnel, or on another address.
        with suppress(ProgramError, psycopg.Error), connected(server.url) as connection:
            psql = ["psql", "--no-psqlrc", "--tuples-only", "--no-align", f"--username={SUPERUSER}"]
            found = output(
                [*docker, "exec", name, *psql, f"--dbname={MAINTENANCE_DATABASE}", f"--command={IDENTITY}"]
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


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())
