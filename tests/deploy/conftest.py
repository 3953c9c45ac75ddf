"""What an operator runs after `pulumi up`: `make check-deploy STACK=dev`, or pytest tests/deploy --stack dev.

The checks ask the stack and change nothing. If a check cannot get what it needs, another check has failed: it is
skipped, and names that check. Those of test_docker… and test_swarm… are for stacks that are placed so, and those of
test_litellm_database and test_redis for stacks that have one; all others hold for all. Containers on other nodes of a
Swarm than the one that dockerHost names are looked into if `--node` names their engines.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest
import testinfra

from tests.deploy.docker_stack import DockerStack
from tests.deploy.stack import StackError, read_config
from tests.deploy.swarm_stack import SwarmStack

if TYPE_CHECKING:
    from docker.models.containers import Container
    from testinfra.host import Host

    from tests.deploy.stack import DeployedStack, Instance

STACK = pytest.StashKey["DeployedStack"]()
PLACEMENTS = ("docker", "swarm")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deploy", "checks of a deployed stack")
    group.addoption("--stack", help="the stack (default: STACK in the environment, or dev)")
    group.addoption(
        "--node",
        action="append",
        default=[],
        metavar="HOST",
        help="the engine of another node of its Swarm, as ssh://NODE, to look into the containers there; repeatable",
    )
    group.addoption("--spend", action="store_true", help="ask each served model once, which costs money")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "of_kind(name): of all parts of the stack, look into those of one kind")
    # The usual form prints the arguments of functions, and some of them are secret.
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"


def pytest_sessionstart(session: pytest.Session) -> None:
    _stack(session.config)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the checks that are for another placement than the stack's, or for what it does not have."""
    settings = _stack(config).settings
    others = tuple(f"test_{name}" for name in PLACEMENTS if name != settings.placement)
    if not settings.litellm_database:
        others += ("test_litellm_database",)
    if not settings.redis:
        others += ("test_redis",)
    if not settings.admin_port:
        others += ("test_admin",)
    here = collection_path.parent == Path(__file__).parent
    return True if here and collection_path.name.startswith(others) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    stack = _stack(metafunc.config)
    if "part" in metafunc.fixturenames:
        metafunc.parametrize("part", stack.parts, ids=[part.name for part in stack.parts])
    if "instance" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("of_kind")
        kinds = marker.args if marker else {part.kind for part in stack.parts}
        reached = [
            pytest.param(it, id=it.name) for it in stack.instances if it.host is not None and it.part.kind in kinds
        ]
        none = pytest.mark.skip(reason="it takes a container: see test_each_container_can_be_looked_into")
        metafunc.parametrize("instance", reached or [pytest.param(None, id="none", marks=none)])


def _stack(config: pytest.Config) -> DeployedStack:
    if STACK not in config.stash:
        name = config.getoption("stack", None) or os.environ.get("STACK") or "dev"
        hosts = config.getoption("node", [])
        try:
            stack = _read(name, hosts)
        except StackError as error:
            raise pytest.UsageError(str(error)) from None
        config.stash[STACK] = stack
        config.add_cleanup(stack.close)
    return config.stash[STACK]


def _read(name: str, hosts: list[str]) -> DeployedStack:
    if shutil.which("docker") is None:
        raise StackError(
            "there is no docker command on PATH, which looks into the containers. Install Docker's client: on Debian "
            "and Ubuntu the package docker-cli, or docker.io if there is no docker-cli"
        )
    config = read_config(name)
    if config.settings.placement == "swarm":
        return SwarmStack(config, hosts)
    if hosts:
        raise StackError(f"stack {name} runs on one host, and --node names another one: leave it out")
    return DockerStack(config)


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> DeployedStack:
    return _stack(pytestconfig)


@pytest.fixture
def container(stack: DeployedStack, instance: Instance) -> Container:
    """A container of a part, running or not."""
    try:
        return stack.engine_of(instance).containers.get(instance.container)
    except docker.errors.NotFound:
        pytest.skip(f"{instance.container} is not there: see {stack.IS_THERE}")


@pytest.fixture
def running(stack: DeployedStack, container: Container) -> Container:
    """A container of a part that runs."""
    if container.status != "running":
        pytest.skip(f"{container.name} does not run: see {stack.RUNS}")
    return container


@pytest.fixture
def inside(instance: Instance, running: Container, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The same, to be asked by commands in it."""
    # testinfra reaches it by the docker command.
    host = str(instance.host)
    monkeypatch.setenv("DOCKER_HOST", host)
    if host.startswith("tcp://"):
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    return testinfra.get_host(f"docker://{running.name}")
