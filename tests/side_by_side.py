"""The tests that need an engine on one host, in two lanes side by side: `make test` runs this.

Most of them wait, for containers to get healthy, to drain or to stop, and leave a core free meanwhile. One lane has
the tests that count what callers notice under load, one after another, so that two loads never share the machine. The
other one has those that ask, or change a stack that nobody uses.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COVERAGE = (sys.executable, "-m", "coverage")
INTERRUPTED = 130
"""As a shell says it of a command that Ctrl-C ended."""


@dataclass(frozen=True)
class Part:
    """One run of pytest."""

    name: str
    paths: Sequence[str]
    """Tests, or with a `!` before them, what is left out of these."""
    covers: bool = False
    """Whether what it covers counts. It is slower so, and a load would notice."""

    def command(self) -> list[str]:
        paths = [f"--ignore={path[1:]}" if path.startswith("!") else path for path in self.paths]
        program = [*COVERAGE, "run"] if self.covers else [sys.executable]
        return [*program, "-m", "pytest", "--durations=15", *paths]


LANES = (
    (Part("drills", ["tests/drills"]),),
    (
        Part("integration", ["tests/integration", "!tests/integration/test_runbooks.py"], covers=True),
        Part("toolchain", ["tests/toolchain"], covers=True),
    ),
)


@dataclass
class Run:
    """A part that runs, or has ended."""

    part: Part
    rest: deque[Part]
    """What comes after it in its lane."""
    output: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        print(f"▶ {self.part.name}", flush=True)
        # In a session of its own: Ctrl-C in a terminal reaches this program alone, which passes it on once.
        self.process = subprocess.Popen(
            self.part.command(), stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True
        )

    def end(self, status: int) -> str:
        """Show all that it printed; return the line that sums it up."""
        self.process.returncode = os.waitstatus_to_exitcode(status)
        minutes = (time.monotonic() - self.started) / 60
        self.output.seek(0)
        printed = self.output.read().decode(errors="replace")
        self.output.close()
        mark = "✗" if self.process.returncode else "✓"
        print(f"\n{mark} {self.part.name}, after {minutes:.1f} minutes\n{printed}", flush=True)
        *_, closing = ["", *printed.splitlines()]
        return f"{mark} {self.part.name}: {minutes:.1f} minutes\n{closing}"


def run(lanes: Sequence[Sequence[Part]], finish: Callable[[], bool]) -> int:
    """Run the parts of each lane in order; `finish` follows them. The exit code is 0 only if everything succeeded.

    A part that fails does not keep the others from running. An interrupt, or SIGTERM, is passed on to those that run,
    which take away what they have made, and no other part begins.
    """
    running: dict[int, Run] = {}
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        for each in running.values():
            each.process.send_signal(signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    waiting = [deque(lane) for lane in lanes]
    summary, failed = [], False
    while True:
        while waiting and not interrupted.is_set():
            lane = waiting.pop()
            begun = Run(lane.popleft(), lane)
            running[begun.process.pid] = begun
            if interrupted.is_set():  # while it began
                interrupt()
        if not running:
            break
        pid, status = os.wait()
        ended = running.pop(pid)
        summary.append(ended.end(status))
        failed |= status != 0
        waiting = [ended.rest] if ended.rest else []
    finished = not interrupted.is_set() and finish()
    print("\n".join(["", *summary]))
    return INTERRUPTED if interrupted.is_set() else int(failed or not finished)


def report_coverage() -> bool:
    """Show what all parts together have covered; whether that is enough."""
    combined = subprocess.run([*COVERAGE, "combine", "--quiet"], check=False)
    return combined.returncode == 0 and subprocess.run([*COVERAGE, "report"], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(run(LANES, report_coverage))
