"""Starts a real `dockerd`, in its own network so that it does not affect other engines of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.connection import connect
from tests.engines import Daemon, needs_an_engine_of_its_own, own_network
from toolchain import engine_setup
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_an_engine_of_its_own


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon("--bridge=none", "--iptables=false")
    with own_network():
        try:
            yield daemon
        finally:
            daemon.remove()


def test_an_engine_outlives_the_program_that_started_it(daemon: Daemon) -> None:
    """A script that starts an engine can end: the engine keeps none of its files open, and still answers."""
    program = (
        "import sys; from pathlib import Path; from toolchain import engine_setup\n"
        "from toolchain.progress import Steps\n"
        "with Steps().step('Start') as step: engine_setup.start(step, *sys.argv[2:], log=Path(sys.argv[1]))"
    )
    arguments = [str(daemon.log), daemon.host, *daemon.options]
    # Returns when both streams are closed, which they are not while a daemon has them.
    started = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, check=True, timeout=90)
    assert started.stdout == b""
    with closing(connect(daemon.host)) as client:
        assert client.info()["DockerRootDir"] in " ".join(daemon.options)
    assert os.getsid(daemon.pid) == daemon.pid
    assert Path(f"/proc/{daemon.pid}/fd/0").readlink() == Path("/dev/null")
    assert "Daemon has completed initialization" in daemon.log.read_text()


def test_an_engine_that_answers_is_not_started_again(daemon: Daemon) -> None:
    """Two set-ups that find no engine at the same time start one."""
    daemon.start()
    first = daemon.pid
    daemon.start()
    assert daemon.pid == first
    with closing(engine_setup.ensure(Steps(), daemon.host, "any")) as client:
        assert client.ping()
