"""What people read: tables on standard output, and all else on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def print_table(rows: Sequence[Sequence[str]], *, texts: int | None = None) -> None:
    """Print a line a row, the first of which has the names; columns after the first `texts` are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if texts is None or place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def say(line: str) -> None:
    """Print a line that is no data."""
    print(line, file=sys.stderr)
