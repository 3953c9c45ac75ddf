"""The time by which a call must be done: one deadline, which every wait on the way to its answer respects.

HTTP clients have a timeout for each single read or connect, and any number of those may follow each other. So every
wait for the database, a connection, or bytes (app/_http.py) asks here how long it may take.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


class until:  # noqa: N801 -- as contextlib's own
    """Make every wait inside the block end at `deadline`, by time.monotonic(); in this thread or task only.

    A class, because it is entered for each piece of a stream: contextlib.contextmanager takes five times as long.
    """

    __slots__ = ("_before", "_deadline")

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def __enter__(self) -> None:
        self._before = _deadline.set(self._deadline)

    def __exit__(self, *_: object) -> None:
        _deadline.reset(self._before)


def within(seconds: float | None = None) -> float | None:
    """How long to wait: `seconds`, or the time that is left if that is less. Raises TimeoutError if none is left."""
    deadline = _deadline.get()
    if deadline == math.inf:
        return seconds
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is up")
    return left if seconds is None else min(left, seconds)


def is_over() -> bool:
    """Whether the deadline has passed."""
    return _deadline.get() <= time.monotonic()
