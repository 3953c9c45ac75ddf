"""What an operator runs after `pulumi up`: `make check-deploy STACK=dev`, or pytest tests/deploy --stack dev.

The checks ask the stack and change nothing. What a check needs and cannot get is another check's failure: it is
skipped, and says which.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import docker
import pytest
import testinfra

from tests.deploy.stack import DeployedStack, StackError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker.models.containers import Container
    from testinfra.host import Host

    from tests.deploy.stack import Part

STACK = pytest.StashKey[DeployedStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deploy", "checks of a deployed stack")
    group.addoption("--stack", help="the stack (default: STACK in the environment, or dev)")
    group.addoption("--spend", action="store_true", help="ask models that cost money, once each")


def pytest_configure(config: pytest.Config) -> None:
    # The usual form prints the arguments of functions, and some of them are secret.
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"


def pytest_sessionstart(session: pytest.Session) -> None:
    _stack(session.config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "part" in metafunc.fixturenames:
        parts = _stack(metafunc.config).parts
        metafunc.parametrize("part", parts, ids=[part.name for part in parts])


def _stack(config: pytest.Config) -> DeployedStack:
    if STACK not in config.stash:
        try:
            stack = DeployedStack(config.getoption("stack", None) or os.environ.get("STACK") or "dev")
        except StackError as error:
            raise pytest.UsageError(str(error)) from None
        config.stash[STACK] = stack
        config.add_cleanup(stack.close)
    return config.stash[STACK]


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> DeployedStack:
    return _stack(pytestconfig)


@pytest.fixture(scope="session", autouse=True)
def _docker_host(stack: DeployedStack) -> Iterator[None]:
    """Have the docker command, by which testinfra reaches a container, ask the stack's engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", stack.settings.docker_host)
        yield


@pytest.fixture
def container(stack: DeployedStack, part: Part) -> Container:
    """The container of a part, running or not."""
    try:
        return stack.engine.containers.get(part.container)
    except docker.errors.NotFound:
        pytest.skip(f"{part.container} is not there: see test_the_engine_has_the_containers_of_the_state")


@pytest.fixture
def inside(container: Container) -> Host:
    """The container of a part that runs, to be asked by commands in it."""
    if container.status != "running":
        pytest.skip(f"{container.name} does not run: see test_it_runs_and_is_healthy")
    return testinfra.get_host(f"docker://{container.name}")
