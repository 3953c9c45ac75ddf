"""The benchmarks' own containers beside the stacks', and what each container costs."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg import sql

from infra import demo, postgres
from infra.workload import LOOPBACK, MEBIBYTE
from tests.stack_config import PROJECT_NAME
from tests.stacks import Deployment, free_port, image_of, pause

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import docker
    from docker.models.containers import Container
    from docker.models.networks import Network

READY_SECONDS = 120
POLL_SECONDS = 0.1
NANOSECONDS = 1e9
LABELS = {f"{PROJECT_NAME}.benchmark": ""}


@contextmanager
def network(engine: docker.DockerClient) -> Iterator[Network]:
    """A network of its own, removed at the end."""
    made = engine.networks.create(f"{PROJECT_NAME}-benchmark-{token_hex(4)}", labels=LABELS)
    try:
        yield made
    finally:
        made.remove()


@contextmanager
def container(  # noqa: PLR0913 -- all by name
    engine: docker.DockerClient,
    of: str,
    *,
    on: Network,
    name: str,
    command: Sequence[str],
    entrypoint: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    port: int,
    published: int,
) -> Iterator[Container]:
    """A container of an image, known by `name` in its network, with one port published on loopback."""
    made = engine.containers.create(
        of,
        list(command),
        entrypoint=list(entrypoint) if entrypoint else None,
        environment=dict(environment or {}),
        labels=LABELS,
        network=on.name,
        networking_config={str(on.name): engine.api.create_endpoint_config(aliases=[name])},
        ports={f"{port}/tcp": (LOOPBACK, published)},
    )
    try:
        for path, content in (files or {}).items():
            Deployment.put(made, path, content, mode=0o644)
        made.start()
        made.reload()
        yield made
    finally:
        ContainerMeter(made).resume()  # a paused container would not receive the signal to end
        made.remove(force=True, v=True)


@contextmanager
def demo_provider(engine: docker.DockerClient, on: Network) -> Iterator[tuple[Container, int]]:
    """The demo provider as a stack runs it, known as `demo`; the container and its port on loopback."""
    port = free_port()
    with container(
        engine,
        image_of("litellm"),
        on=on,
        name=demo.NETWORK_NAME,
        entrypoint=("python3", demo.PROGRAM),
        command=(str(demo.PORT),),
        files=demo.files(),
        port=demo.PORT,
        published=port,
    ) as made:
        yield made, port


@contextmanager
def database_server(engine: docker.DockerClient) -> Iterator[str]:
    """A separate Postgres, as the superuser's URL."""
    port, password = free_port(), token_hex(16)
    url = f"postgresql://{postgres.SUPERUSER}:{password}@{LOOPBACK}:{port}/{postgres.SUPERUSER}"
    with (
        network(engine) as on,
        container(
            engine,
            image_of("postgres"),
            on=on,
            name="postgres",
            command=(),
            environment={"POSTGRES_PASSWORD": password},
            port=postgres.PORT,
            published=port,
        ),
    ):
        _await_database(url)
        yield url


def _await_database(url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return


def new_database(server_url: str) -> str:
    """Make an empty database on a server; its URL."""
    name = f"benchmark_{token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return f"{server_url.rpartition('/')[0]}/{name}"


def address(of: Container, on: Network | None = None) -> str:
    """The address of a container in a network; in its only network, if none is named."""
    networks = of.attrs["NetworkSettings"]["Networks"]
    return str((networks[on.name] if on else next(iter(networks.values())))["IPAddress"])


class Meter(Protocol):
    """Something that runs, and what it costs."""

    def cpu_seconds(self) -> float:
        """The CPU time that it has used since its start."""

    def memory_mb(self) -> float:
        """The memory that it uses now, in MiB, without what the kernel can reclaim at once."""

    def pause(self) -> None:
        """Pause it with its health checks: on a small machine they would slow down what is measured."""

    def resume(self) -> None:
        """Resume it."""


@dataclass(frozen=True)
class ContainerMeter:
    """A container, measured by its cgroup."""

    container: Container

    def _stats(self) -> dict[str, Any]:
        stats = self.container.stats(stream=False, one_shot=True)
        assert isinstance(stats, dict)
        return stats

    def cpu_seconds(self) -> float:
        return float(self._stats()["cpu_stats"]["cpu_usage"]["total_usage"] / NANOSECONDS)

    def memory_mb(self) -> float:
        memory = self._stats()["memory_stats"]
        detail = memory["stats"]
        cache = detail.get("total_inactive_file", detail.get("inactive_file", 0))  # cgroup v1, v2
        return float((memory["usage"] - cache) / MEBIBYTE)

    def pause(self) -> None:
        if self._status() == "running":
            pause(self.container)

    def resume(self) -> None:
        if self._status() == "paused":
            self.container.unpause()

    def _status(self) -> str:
        self.container.reload()
        return self.container.status


@dataclass(frozen=True)
class ProcessMeter:
    """A process that does nothing while nobody asks it, so that it need not be paused."""

    pid: int

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE

    def pause(self) -> None:
        """Nothing to do."""

    def resume(self) -> None:
        """Nothing to do."""
