"""Steps that may take minutes, shown while they run.

On a terminal each running step is a line with its clock and what it is doing right now. Anywhere else a step
prints one line when it starts and one when it ends. A step that fails shows the last lines of what it ran.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.prompt import Confirm
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

LINES_SHOWN_ON_FAILURE = 20


class SetupError(Exception):
    """A step failed. The message says what and why, what was tried, and what the user can do."""

    def __init__(self, why: str, *, fix: str, tried: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.why = why
        self.fix = fix
        self.tried = tuple(tried)

    def __str__(self) -> str:
        tried = "".join(f"\n  tried: {attempt}" for attempt in self.tried)
        return f"{self.why}{tried}\n  what you can do: {self.fix}"


class CommandError(Exception):
    """A program that a step ran ended with an error."""

    def __init__(self, command: Sequence[str], returncode: int, output: str) -> None:
        super().__init__(f"`{' '.join(command)}` ended with {returncode}")
        self.returncode = returncode
        self.output = output
        """All that it printed; the message has the last lines of it."""

    def __str__(self) -> str:
        last_lines = self.output.splitlines()[-LINES_SHOWN_ON_FAILURE:]
        return "\n".join([super().__str__() + (":" if last_lines else ""), *last_lines])


class Step:
    """One running step; created by `Steps.step`."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.title = title
        self._progress = progress
        self._task = progress.add_task(title, total=None, doing="")
        self.why = ""
        """An addition to its last line if it fails."""

    def note(self, doing: str) -> None:
        """Say what is being done right now; kept on the screen only until the next note."""
        self._progress.update(self._task, doing=doing.strip())

    def say(self, line: str) -> None:
        """Print a line that stays, on a terminal and in a log."""
        self._progress.console.print(f"  {line}", markup=False)

    def run(self, command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Run a program, show its lines as notes, and return what it printed (both streams).

        `env` is the program's whole environment. Raises CommandError. If an exception ends this, such as an
        interrupt, the program is told to end and awaited.
        """
        lines: list[str] = []
        with subprocess.Popen(
            list(command),
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            try:
                for line in process.stdout or ():
                    lines.append(line.rstrip("\n"))
                    self.note(line)
            except KeyboardInterrupt:  # the terminal sent it to the program too
                process.wait()
                raise
            except BaseException:
                process.terminate()
                raise
        if process.returncode != 0:
            raise CommandError(command, process.returncode, "\n".join(lines))
        return "\n".join(lines)

    def _end(self) -> None:
        self._progress.remove_task(self._task)


class Steps:
    """The display that steps share. Steps may run side by side in threads."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            # Uses the room that the title leaves, however long the line is.
            TextColumn("{task.fields[doing]}", style="dim", markup=False, table_column=Column(no_wrap=True, ratio=1)),
            expand=True,
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def ask(self, question: str) -> bool:
        """Ask a person. The running steps would draw over the question, so they are hidden until the answer."""
        self._progress.stop()
        try:
            return Confirm.ask(question, console=self.console)
        finally:
            self._progress.start()

    def read(self, question: str) -> str:
        """Read a line in answer to a question, from a person or from a script's standard input."""
        self._progress.stop()
        try:
            self.console.print(question, end="", markup=False)
            return sys.stdin.readline().strip()
        finally:
            self._progress.start()

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show `title` while the block runs, and how long it took when it has ended."""
        started = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(Text(f"… {title}"))
        step = Step(self._progress, title)
        try:
            yield step
        except BaseException:
            self._print("✗", "red", f"{title}: {step.why}" if step.why else title, started)
            raise
        else:
            self._print("✓", "green", title, started)
        finally:
            step._end()  # noqa: SLF001 -- a step's end belongs to the display that made it

    def _print(self, mark: str, colour: str, title: str, started: float) -> None:
        seconds = time.monotonic() - started
        self.console.print(Text.assemble((mark, colour), f" {title} ", (f"{seconds:.1f} s", "dim")))
