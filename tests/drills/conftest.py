"""A stack under load, and the table of what each drill did to it."""

from __future__ import annotations

import time
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

    import httpx2

    from tests.load import Bound
    from tests.stacks import Deployment

    Drill = Callable[[str, Bound], AbstractContextManager[Load]]

FAILURES_SHOWN = 5
CHARACTERS_SHOWN = 400
COLUMNS = ("drill", "bound", "requests", "failed", "in flight", "streams cut", "longest gap s", "recovery s")
ROW = "drill"
"""The property of a test's report that has a row of the table, and what was beyond the bound."""


@pytest.fixture(scope="session", autouse=True)
def _pulumi_tools() -> Iterator[None]:
    with pulumi_tools():
        yield


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The stack that drills break; each drill leaves it intact."""
    with deployed(tmp_path_factory.mktemp("drilled")) as made:
        yield made


@pytest.fixture
def transport() -> Callable[[], httpx2.AsyncBaseTransport] | None:
    """The transport that the load connects with; None for plain HTTP."""
    return None


@pytest.fixture
def other_keys() -> tuple[str, ...]:
    """Keys that take turns with the app's."""
    return ()


@pytest.fixture
def drill(
    request: pytest.FixtureRequest,
    deployment: Deployment,
    other_keys: tuple[str, ...],
    transport: Callable[[], httpx2.AsyncBaseTransport] | None,
) -> Drill:
    """Put the stack under load while a block breaks something, and check that callers notice no more than the bound.

    The table gets the results of the requests.
    """

    @contextmanager
    def run(name: str, bound: Bound) -> Iterator[Load]:
        url, key = deployment.outputs["litellmUrl"], deployment.outputs["litellmApiKey"]
        load = Load(url, key, other_keys=other_keys, transport=transport)
        report = load.report
        try:
            with load.running():
                report.broken = time.monotonic()
                yield load
                load.await_successes(round(load.rate))
        finally:
            counts = (report.sent, len(report.failures), len(report.in_flight), len(report.cut))
            row = (name, str(bound), *map(str, counts), f"{report.longest_gap:.2f}", f"{report.recovery:.2f}")
            if report.repeated:
                print(f"\n{name}: {report.repeated} requests with a virtual key were repeated after a 503")
            beyond = [each[:CHARACTERS_SHOWN] for each in report.beyond(bound)[:FAILURES_SHOWN]]
            request.node.user_properties.append((ROW, (row, beyond)))
        assert report.beyond(bound) == []

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the rows of all drills, whichever process ran them."""
    ended = [it for outcome in ("passed", "failed") for it in terminalreporter.getreports(outcome)]
    rows = [value for it in ended if it.when == "call" for name, value in it.user_properties if name == ROW]
    if not rows:
        return
    table = Table(*COLUMNS, title="Drills")
    for row, _ in rows:
        table.add_row(*row)
    console = Console(width=140)
    console.print(table)
    for row, beyond in rows:
        for each in beyond:
            console.print(f"{row[0]}: {each}", markup=False)
