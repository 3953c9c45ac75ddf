"""Shows a status on the screen, once or for as long as somebody watches."""

from __future__ import annotations

from time import sleep
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from console import status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from typing import Self

    from rich.console import RenderableType

    from console.edge_statistics import Client
    from console.status import Status

COLUMNS = 10_000
"""The width for output that is not a terminal: nothing is wrapped or cut off."""
AGES = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def repeat(seconds: float, show: Callable[[Status], None]) -> None:
    """Look at this interval, in seconds, until Ctrl-C."""
    try:
        while True:
            show(status.read())
            sleep(seconds)
    except KeyboardInterrupt:
        pass


class Screen:
    """Prints each status below the previous one; a live one, on a terminal, in place of it."""

    def __init__(self, *, live: bool = False) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)
        if not self._console.is_terminal:
            self._console.width = COLUMNS
        self._live = Live(console=self._console, auto_refresh=False) if live and self._console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, status: Status) -> None:
        """Print a status."""
        if self._live:
            self._live.update(rendered(status), refresh=True)
        else:
            self._console.print(rendered(status))


def rendered(status: Status) -> RenderableType:
    """A status as it is shown on the screen."""
    return Group(*_rendered(status))


def _rendered(status: Status) -> Iterator[RenderableType]:
    stack = f"stack {status.stack} at " if status.stack else ""
    yield Text(f"{stack}{status.url}, {status.at.astimezone():%Y-%m-%d %H:%M:%S}", style="bold")
    # First of all, because a terminal may be too short for the rest.
    for line in status.wrong:
        yield Text(f"WRONG    {line}", style="red")
    if not status.wrong:
        yield Text("everything that can be seen is well" if status.unseen else "all is well", style="green")
    for line in status.unseen:
        yield Text(f"not seen: {line}", style="yellow")
    if status.versions:
        yield Text(", ".join(f"{name} {version}" for name, version in status.versions.items()))
    if status.models:
        yield Text(f"models: {', '.join(status.models)}")
    if status.parts:
        yield Text()
        yield _parts(status)
    if status.clients:
        yield Text()
        yield _clients(status.clients)
    if status.edge and status.counted_since:
        age = _age(status.counted_since, status.at)
        since = f"since its last reload, {age} ago; of clients since its container was created"
        yield Text(f"\nrequests as {status.edge} has counted them {since}", style="dim")


def _parts(status: Status) -> Text:
    rows: list[Sequence[Text | str]] = []
    for part in status.parts:
        traffic = part.traffic
        counts = (traffic.requests, traffic.failed, traffic.active, traffic.queued) if traffic else (None,) * 4
        age = _age(part.since, status.at) if part.since else "-"
        state = Text(part.state, style="green" if part.up else "red")
        rows.append((Text(part.name), state, age, *map(_count, (part.restarts, *counts)), Text(part.image)))
    return _table(("part", "state", "for", "restarts", "requests", "failed", "active", "queued", "image"), rows)


def _clients(clients: tuple[Client, ...]) -> Text:
    rows = [(Text(it.name), _count(it.requests), _count(it.failed), _count(it.refused)) for it in clients]
    return _table(("client", "requests", "failed", "refused"), rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[Text | str]]) -> Text:
    """One line per row; numbers, which are not Text, go to the right. What a terminal is too narrow for is cut off.

    Rich's own table would shorten every column instead.
    """
    head = [Text(name) if isinstance(cell, Text) else name for name, cell in zip(names, rows[0], strict=True)]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if isinstance(cell, str) else cell + " " * (width - len(cell))
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append(Text("  ").join(map(Text.assemble, cells)))
        lines[-1].rstrip()
    lines[0].stylize("bold")
    table = Text("\n").join(lines)
    table.no_wrap, table.overflow = True, "ellipsis"
    return table


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _age(since: datetime, now: datetime) -> str:
    """A time that has passed, in its largest unit."""
    seconds = max(0, round((now - since).total_seconds()))
    unit, size = next((each for each in AGES if seconds >= each[1]), AGES[-1])
    return f"{seconds // size} {unit}"
