"""The stack that most tests here ask."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import app
from tests.stacks import deployed, free_port, pulumi_tools, stand_in_for
from toolchain import recipes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.stacks import Deployment


@pytest.fixture(scope="session", autouse=True)
def _pulumi_tools() -> Iterator[None]:
    with pulumi_tools():
        yield


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One stack for all tests that leave it as it is."""
    with deployed(tmp_path_factory.mktemp("stack")) as made:
        yield made


@pytest.fixture(scope="session")
def of_newest(request: pytest.FixtureRequest) -> bool:
    """Whether `--newest` asks for the newest release of LiteLLM."""
    return bool(request.config.getoption("--newest"))


@pytest.fixture(scope="session")
def choose_release(*, of_newest: bool) -> Callable[[Deployment], None]:
    """What gives a stack that release, if it does."""

    def choose(made: Deployment) -> None:
        if of_newest:
            (recipe,) = recipes.UPGRADES
            made.set(litellmImage=stand_in_for(recipe, made.engine, made.folder / ".images.yaml"))

    return choose


@pytest.fixture(scope="session")
def with_database(
    tmp_path_factory: pytest.TempPathFactory, choose_release: Callable[[Deployment], None]
) -> Iterator[Deployment]:
    """One whose LiteLLM has a database and a page, for all tests that leave its release as it is."""

    def configure(made: Deployment) -> None:
        made.set(litellmDatabase="true", adminPort=free_port())
        choose_release(made)

    with ExitStack() as held:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("home")))  # an `up` keeps backups there
            made = held.enter_context(deployed(tmp_path_factory.mktemp("database"), configure))
        yield made


@pytest.fixture
def environment(deployment: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What `make up` writes to .env."""
    yield from _environment(deployment, monkeypatch, tmp_path)


@pytest.fixture
def environment_with_database(
    with_database: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """The same, of the stack whose LiteLLM has a database."""
    yield from _environment(with_database, monkeypatch, tmp_path)


def _environment(made: Deployment, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LITELLM_URL", made.outputs["litellmUrl"])
    monkeypatch.setenv("LITELLM_API_KEY", made.outputs["litellmApiKey"])
    monkeypatch.setenv("DATABASE_URL", made.outputs["databaseUrl"])
    yield
    app.close()
