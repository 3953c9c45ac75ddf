"""A real `dockerd` is started, in a network of its own so that it meets no other engine of the machine."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from toolchain import engine
from toolchain.machine import which
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

DAEMON = which("dockerd")
END_SECONDS = 60

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or DAEMON is None, reason="only root can start a Docker Engine, where one is installed"
)


class Daemon:
    """Where a second engine keeps all that it has."""

    def __init__(self, folder: Path) -> None:
        self.host = f"unix://{folder}/docker.sock"
        self.log = folder / "log"
        self.pid_file = folder / "pid"
        self.options = [
            f"--data-root={folder}/data",
            f"--exec-root={folder}/exec",
            f"--pidfile={self.pid_file}",
            "--bridge=none",
            "--iptables=false",
        ]

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def end(self) -> None:
        if self.pid_file.exists():
            daemon = os.pidfd_open(self.pid)
            signal.pidfd_send_signal(daemon, signal.SIGTERM)
            ended = select.select([daemon], [], [], END_SECONDS)[0]
            os.close(daemon)
            assert ended, self.log.read_text()


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    wrapper = tmp_path / "bin/dockerd"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec unshare --net {DAEMON} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent), prepend=os.pathsep)
    daemon = Daemon(tmp_path)
    try:
        yield daemon
    finally:
        daemon.end()


def test_an_engine_outlives_the_program_that_started_it(daemon: Daemon) -> None:
    """A script that starts an engine ends, with nothing of it held open; the engine answers on."""
    program = (
        "import sys; from pathlib import Path; from toolchain import engine; from toolchain.progress import Steps\n"
        "with Steps().step('Start') as step: engine.start(step, *sys.argv[2:], log=Path(sys.argv[1]))"
    )
    arguments = [str(daemon.log), daemon.host, *daemon.options]
    # Returns when both streams are closed, which they are not while a daemon has them.
    started = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, check=True, timeout=90)
    assert started.stdout == b""
    with closing(engine.connect(daemon.host)) as client:
        assert client.info()["DockerRootDir"] in " ".join(daemon.options)
    assert os.getsid(daemon.pid) == daemon.pid
    assert Path(f"/proc/{daemon.pid}/fd/0").readlink() == Path("/dev/null")
    assert "Daemon has completed initialization" in daemon.log.read_text()


def test_an_engine_that_answers_is_not_started_again(daemon: Daemon) -> None:
    """Two set-ups that find no engine at the same time start one."""
    with Steps().step("Start") as step:
        engine.start(step, daemon.host, *daemon.options, log=daemon.log)
        first = daemon.pid
        engine.start(step, daemon.host, *daemon.options, log=daemon.log)
        assert daemon.pid == first
    with closing(engine.ensure(Steps(), daemon.host)) as client:
        assert client.ping()
