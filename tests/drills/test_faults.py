"""Parts that die: callers notice nothing, or only for a stated time."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Self

import psycopg
import pytest

from tests.load import NOTHING_FAILS, STREAMS_MAY_BREAK, Bound
from tests.stacks import POLL_SECONDS, RESTART_SECONDS

if TYPE_CHECKING:
    from tests.drills.conftest import Drill
    from tests.stacks import Deployment

EDGE_IS_BACK = Bound(gap_seconds=15)
"""One host has one edge: Docker restarts it at once, and its files are already there."""

ROWS_PER_SECOND = 100


@pytest.mark.parametrize("part", ["litellm-1", "litellm-2"])
def test_a_replica_that_is_killed_costs_no_request(deployment: Deployment, drill: Drill, part: str) -> None:
    """The edge repeats on another replica what the dead one had not answered; streams that had begun break off."""
    pid = deployment.container(part).attrs["State"]["Pid"]
    with drill(f"kill -9 of {part}", STREAMS_MAY_BREAK):
        deployment.kill(part)
        deployment.await_restart(part, pid)


def test_an_edge_that_is_killed_is_back_in_seconds(deployment: Deployment, drill: Drill) -> None:
    """Without help, with its last config and keys; it accepts nobody before it knows the replicas."""
    pid = deployment.container("edge").attrs["State"]["Pid"]
    with drill("kill -9 of the edge", EDGE_IS_BACK) as load:
        deployment.kill("edge")
        deployment.await_restart("edge", pid)
    assert [failure for failure in load.report.failures if "status" in failure] == []


class Writer:
    """Writes rows one after another and remembers each that the server acknowledged."""

    def __init__(self, *urls: str) -> None:
        """`urls` are the addresses where the server may be; they are tried in turn."""
        self.acknowledged: list[str] = []
        self.refusal = ""
        """The last error."""
        self._urls = itertools.cycle(urls)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def await_rows(self, count: int) -> None:
        """Wait for that many more rows."""
        wanted = len(self.acknowledged) + count
        deadline = time.monotonic() + RESTART_SECONDS
        while len(self.acknowledged) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Postgres takes no rows: {self.refusal}")
            time.sleep(POLL_SECONDS)

    def _run(self) -> None:
        number = 0
        while not self._ended.is_set():
            try:
                with psycopg.connect(next(self._urls), autocommit=True, connect_timeout=5) as connection:
                    while not self._ended.is_set():
                        name = f"drill {id(self)} {number}"
                        connection.execute("INSERT INTO organizations (name) VALUES (%s)", (name,))
                        self.acknowledged.append(name)
                        number += 1
                        self._ended.wait(1 / ROWS_PER_SECOND)
            except psycopg.Error as error:
                self.refusal = str(error)
                number += 1  # whether that one was written, nobody can tell
                self._ended.wait(0.05)


def all_there(deployment: Deployment, writer: Writer) -> bool:
    """Whether the database has every row that it acknowledged."""
    with deployment.database() as connection:
        rows = connection.execute("SELECT name FROM organizations WHERE name LIKE 'drill %'").fetchall()
    return set(writer.acknowledged) <= {name for (name,) in rows}


def test_postgres_that_is_killed_loses_no_row(deployment: Deployment, drill: Drill) -> None:
    """Every row that it acknowledged is there when it is back; the gateway does not need it to answer."""
    pid = deployment.container("postgres").attrs["State"]["Pid"]
    url = deployment.outputs["databaseUrl"]
    with drill("kill -9 of Postgres", NOTHING_FAILS) as load, Writer(url) as writer:
        load.await_successes(20)
        deployment.kill("postgres")
        deployment.await_restart("postgres", pid)
        writer.await_rows(20)
    assert all_there(deployment, writer)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("status=500", "status 500"),
        ("status=404", "status 404"),
        ("status=401", "status 401"),
        ("status=429", "status 429"),
        ("delay=5", ""),
        ("cut=2", "status 200"),
    ],
)
def test_a_provider_that_fails_for_some_fails_for_nobody_else(
    deployment: Deployment, drill: Drill, fault: str, outcome: str
) -> None:
    """Requests whose provider fails, is slow or cuts streams do not affect the others."""
    messages = [{"role": "user", "content": f"[[demo {fault}]]"}]
    with drill(f"a provider with {fault}", NOTHING_FAILS) as load:
        for _ in range(40):
            load.send_also("/v1/chat/completions", {"model": "gpt-4o", "messages": messages, "stream": True})
            load.await_successes(2)
    assert len(load.report.beside) == 40
    assert {each.partition(":")[0] for each in load.report.beside} == {outcome}
