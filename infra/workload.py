"""What a part asks for, in terms that apply to one host and to a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pulumi

LOOPBACK = "127.0.0.1"
LAST_PORT = 65535
MEBIBYTE = 2**20

SECRETS = "/run/secrets"
"""The folder in a container that holds its secrets, one file each."""

LIVE = "/run/live"
"""The folder in a container that holds its live files: those in use are in its folder `current`."""


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """A command in the container that exits with 0 when the part can serve. Times are in seconds."""

    command: tuple[str, ...]
    timeout_seconds: int = 10
    retries: int = 6
    """How often it may fail in a row before a cluster replaces the part. A busy part must not seem dead: the others
    would then get its share of the load too."""
    start_seconds: int = 120
    """How long the part may take to become healthy after its start."""


def http_health_check(port: int, path: str) -> HealthCheck:
    """A check that `path` answers with 200, for images that have Python but neither curl nor wget."""
    # No site packages and no http.client, because the check runs every few seconds, for ever.
    program = (
        "import socket\n"
        f"s = socket.create_connection(('{LOOPBACK}', {port}), 9)\n"
        f"s.sendall(b'GET {path} HTTP/1.0\\r\\n\\r\\n')\n"
        "raise SystemExit(b' 200 ' not in s.recv(64))"
    )
    return HealthCheck(command=("python3", "-ISc", program))


@dataclass(frozen=True, kw_only=True)
class LiveFilesArgs:
    """Files that a running part can load, if the placement supports it: a change does not replace the part.

    The part starts once the files are there. Commands run in the container, as the part's user.
    """

    files: Mapping[str, pulumi.Input[str]]
    """Content by file name."""
    secrets: Mapping[str, pulumi.Input[str]]
    """Content of the secret files, by file name."""
    check: tuple[str, ...]
    """The check, run in the folder of the new files; it fails, and says why, if the part could not run with them."""
    reload: tuple[str, ...]
    """Run when the new files are in place: makes the part load them."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """A port of the container that is published on an address of its host."""

    internal: int
    external: int
    address: str


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One part of the stack: what runs, with which files and secrets, and within which limits."""

    name: str
    image: str
    entrypoint: tuple[str, ...] | None = None
    """Replaces the image's own entrypoint."""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Not for secrets: anyone with access to the engine can read it."""
    files: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    """Content by absolute path."""
    programs: Mapping[str, Path] = field(default_factory=dict)
    """Files of this clone by absolute path, which on one host the state has by their checksum: their content would be
    in it twice for each replica, and an `up` writes the state again at each step."""
    secrets: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    """Content by file name in SECRETS."""
    live: LiveFilesArgs | None = None
    health: HealthCheck
    user: str
    file_owner: int
    """The user's id; on a cluster, this user owns the files with its secrets."""
    memory_mb: int
    shared_memory_mb: int | None = None
    """How much of its memory its processes may share in /dev/shm; 64 MB if None. On a cluster only the memory limits
    it."""
    networks: Mapping[str, pulumi.Input[str]]
    """The name under which each network knows the part, by network."""
    ports: tuple[Port, ...] = ()
    volumes: Mapping[str, str] = field(default_factory=dict)
    """Volumes by the path they are mounted at."""
    host_gateway: str | None = None
    """The name under which the container reaches the machine it runs on."""
    replicas: int = 1
    on_each: str | None = None
    """On a cluster: run one on each node with this label, instead of `replicas`."""
    stop_seconds: int = 10
    """How long the part may take to stop."""
    drain_seconds: int | None = None
    """The same if other replicas serve meanwhile; `stop_seconds` if None."""


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A running replica of a workload."""

    ready: pulumi.Resource
    """This resource exists once the replica is healthy: resources that need the replica depend on it."""
    instance: pulumi.Output[str]
    """Differs for each container that takes its place."""


class Placement(Protocol):
    """Where workloads run. Parts are given one and do not know which."""

    def network(self, name: str, *, opts: pulumi.ResourceOptions) -> None:
        """Make a private network that workloads may name."""

    def volume(self, name: str, *, protect: bool, opts: pulumi.ResourceOptions) -> None:
        """Make a volume that workloads may name; a protected one is never deleted."""

    def host_name(self, alias: str) -> str:
        """The name under which workloads reach the one that is called `alias` in their common network."""

    def published_at(self, volume: str | None = None) -> str:
        """The address of the ports of the workload with a volume, or of those on each node, for this program."""

    def image_environment(self, image: str) -> Mapping[str, str]:
        """The environment variables that an image sets; none if the image is not there yet."""

    def run(self, workload: Workload, *, opts: pulumi.ResourceOptions) -> Sequence[Replica]:
        """Run a workload."""

    def job(self, workload: Workload) -> Mapping[str, pulumi.Input[Any]]:
        """The inputs of `infra.placement.job.run`, which runs a workload once, to its end."""

    def inside(self, part: str) -> Mapping[str, pulumi.Input[Any]]:
        """The inputs of `infra.placement.inside.printed` to find the containers of a workload."""
