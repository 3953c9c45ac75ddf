"""The tests' own Docker Engines, in their own network, so that they do not affect other engines of the machine."""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.system_path import which
from toolchain import engine_setup
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

END_SECONDS = 120
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)

needs_an_engine_of_its_own = pytest.mark.skipif(
    os.geteuid() != 0 or which("dockerd") is None,
    reason="only root can start a Docker Engine, where one is installed",
)


def _end(pid: int) -> bool:
    """Ask a process to end; whether it did."""
    process = os.pidfd_open(pid)
    signal.pidfd_send_signal(process, signal.SIGTERM)
    ended = bool(select.select([process], [], [], END_SECONDS)[0])
    os.close(process)
    return ended


class Daemon:
    """A second engine; everything that it has is in one folder."""

    def __init__(self, *options: str) -> None:
        # Not below a test's own folder: the paths of sockets must be short.
        self.folder = folder = Path(tempfile.mkdtemp(prefix="engine-"))
        self.host = f"unix://{folder}/docker.sock"
        self.log = folder / "log"
        self.pid_file = folder / "pid"
        self.volumes = folder / "data/volumes"
        self.options = [
            f"--data-root={folder}/data",
            f"--exec-root={folder}/exec",
            f"--pidfile={self.pid_file}",
            *options,
        ]

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def start(self, *options: str) -> None:
        """Start it, in the network of the thread that calls."""
        with Steps().step("Start an engine") as step:
            engine_setup.start(step, self.host, *self.options, *options, log=self.log)

    def end(self) -> None:
        if self.pid_file.exists():
            assert _end(self.pid), self.log.read_text()

    def remove(self) -> None:
        """End it, and remove everything that it had."""
        self.end()
        with suppress(FileNotFoundError, ProcessLookupError):
            _end(int((self.folder / "exec/containerd/containerd.pid").read_text()))
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for path in reversed([path for path in mounted if path.startswith(f"{self.folder}/")]):
            subprocess.run(["umount", path], check=True)
        shutil.rmtree(self.folder)


@contextmanager
def own_network() -> Iterator[None]:
    """Put this thread, and all that it starts, into its own network namespace, with only a loopback address."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _succeed(LIBC.unshare(CLONE_NEWNET))
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            _succeed(LIBC.setns(before, CLONE_NEWNET))
    finally:
        os.close(before)


def _succeed(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
