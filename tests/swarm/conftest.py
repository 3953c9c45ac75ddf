"""A Swarm of three managers whose registry has the stack's images, and load through all of its nodes."""

from __future__ import annotations

import itertools
import os
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import docker
import httpx2
import pytest

from engine.image_names import stand_ins
from tests.drills.conftest import _pulumi_tools, drill, other_keys, pytest_terminal_summary
from tests.stacks import LLMCTL, image_of, stand_in_for
from tests.swarm.cluster import cluster
from toolchain.__main__ import IMAGE_SETTINGS
from toolchain.recipes import STAND_INS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.stacks import Deployment
    from tests.swarm.cluster import Cluster, Node

__all__ = ["_pulumi_tools", "drill", "other_keys", "pytest_terminal_summary"]

ENCRYPTED = ("src", "192.0.2.1", "dst", "192.0.2.2", "proto", "esp", "spi", "1", "mode", "transport")
CIPHER = ("aead", "rfc4106(gcm(aes))", f"0x{bytes(20).hex()}", "64")
"""What an engine has the kernel do with packets between nodes."""
NOT_LET_IN = (httpx2.ConnectError, httpx2.ConnectTimeout)
CLOSED_BEFORE_AN_ANSWER = (httpx2.ReadError, httpx2.RemoteProtocolError)
GATEWAY_PORT = 4000
POSTGRES_PORT = 5432


@pytest.fixture(scope="session")
def swarm() -> Iterator[Cluster]:
    """Three managers, so that any of them can be lost; each accepts callers."""
    with cluster() as made:
        made.join(managers=3, heartbeat_seconds=2)
        for node in made.nodes:
            made.label(node, "edge", "true")
        for part in IMAGE_SETTINGS:
            made.fill(image_of(part))
        yield made


@pytest.fixture(scope="session")
def fill_with_redis(swarm: Cluster) -> Callable[[Deployment], None]:
    """What puts Redis' image into the registry, and names it in a stack's config."""

    def configure(made: Deployment) -> None:
        record = made.folder / ".images.yaml"
        with closing(docker.from_env()) as usual:
            image = stand_in_for(STAND_INS["valkey"], usual, record)
        swarm.fill(stand_ins(record)[image])
        made.set(redis="true", redisImage=image)

    return configure


@pytest.fixture(scope="session")
def of_litellm(request: pytest.FixtureRequest) -> bool:
    """Whether LiteLLM has its database: `make test-swarm DATABASE=1`. Its replicas take twice as long to start."""
    return bool(request.config.getoption("--litellm-database"))


def place_on(swarm: Cluster) -> Callable[[Deployment], None]:
    """What configures a stack for a Swarm, as its operator would."""

    def configure(made: Deployment) -> None:
        made.set(
            placement="swarm",
            bindAddress="0.0.0.0",  # noqa: S104 -- all that a Swarm can
            allowPlainHttp="true",
            gatewayHost=swarm.nodes[0].address,
            gatewayPort=GATEWAY_PORT,
            postgresPort=POSTGRES_PORT,
            imageRegistry=swarm.registry,
            encryptNetworks=str(can_encrypt(swarm.nodes[0])).lower(),
        )

    return configure


def llmctl(made: Deployment, *arguments: str) -> str:
    """What a command says where the environment names a stack and its engine. It must succeed."""
    environment = {
        **os.environ,
        "DOCKER_HOST": made.stack.get_config("dockerHost").value,
        "LITELLM_URL": made.outputs["litellmUrl"],
        "LITELLM_API_KEY": made.outputs["litellmApiKey"],
        "DATABASE_URL": made.outputs["databaseUrl"],
    }
    if of_litellm := made.outputs.get("litellmDatabaseUrl"):
        environment["LITELLM_DATABASE_URL"] = of_litellm
    done = subprocess.run([LLMCTL, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def can_encrypt(node: Node) -> bool:
    """Whether the kernel has what an encrypted network needs: where it has not, no packet leaves a node."""
    try:
        node.run("ip", "xfrm", "state", "add", *ENCRYPTED, *CIPHER)
    except subprocess.CalledProcessError:
        return False
    node.run("ip", "xfrm", "state", "deleteall")
    return True


class Balancer(httpx2.AsyncBaseTransport):
    """Asks one address after another, and the next one when one accepts nobody or closes before it answers.

    As a load balancer does (HAProxy's `retry-on conn-failure empty-response`), and OpenAI's SDKs too.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._turn = itertools.count()
        self._closed = 0
        # Each request over a connection of its own: whether a machine is lost shows when it does not let one in.
        self._direct = httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        first = next(self._turn)
        refusal: httpx2.TransportError | None = None
        for offset in range(len(self._addresses)):
            request.url = request.url.copy_with(host=self._addresses[(first + offset) % len(self._addresses)])
            try:
                return await self._direct.handle_async_request(request)
            except (*NOT_LET_IN, *CLOSED_BEFORE_AN_ANSWER) as error:
                refusal = error
                self._closed += isinstance(error, CLOSED_BEFORE_AN_ANSWER)
        assert refusal
        raise refusal

    async def aclose(self) -> None:
        if self._closed:
            print(f"\n{self._closed} connections were closed before an answer, and asked for on another node")
        await self._direct.aclose()


@pytest.fixture
def transport(swarm: Cluster) -> Callable[[], httpx2.AsyncBaseTransport]:
    return lambda: Balancer([node.address for node in swarm.nodes])
