"""A stack under load, and the table of what each drill did to it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from rich.table import Table

from tests.load import Load
from tests.stacks import deployed, pulumi_tools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.stacks import Deployment

    Drill = Callable[[str], AbstractContextManager[Load]]

ROWS = pytest.StashKey[list[tuple[str, Load]]]()


@pytest.fixture(scope="session", autouse=True)
def _pulumi_tools() -> Iterator[None]:
    with pulumi_tools():
        yield


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The stack that drills break; each leaves it whole."""
    with deployed(tmp_path_factory.mktemp("drilled")) as made:
        yield made


@pytest.fixture
def drill(request: pytest.FixtureRequest, deployment: Deployment) -> Drill:
    """Put the stack under load while a block breaks something; what became of the requests goes into the table."""
    rows = request.config.stash.setdefault(ROWS, [])

    @contextmanager
    def run(name: str) -> Iterator[Load]:
        load = Load(deployment.outputs["litellmUrl"], deployment.outputs["litellmApiKey"])
        rows.append((name, load))
        with load.running():
            load.broken()
            yield load
            load.await_successes(round(load.rate))

    return run


def pytest_terminal_summary(config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    table = Table("drill", "requests", "failed", "streams cut", "longest gap s", "recovery s", title="Drills")
    for name, load in rows:
        report = load.report
        counts = (report.sent, len(report.failures), len(report.cut))
        table.add_row(name, *map(str, counts), f"{report.longest_gap:.2f}", f"{load.recovery:.2f}")
    if rows:
        Console(width=118).print(table)
