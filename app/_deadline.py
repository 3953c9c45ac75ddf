"""By when a call must be done: one point in time, which every wait on the way to its answer heeds.

Clients know times for each read or connect alone, and any number of those may follow each other. So whoever waits -
for the database, a connection, or bytes (app/_http.py) - asks here how long it may.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Have what is waited for inside end at `deadline`, by time.monotonic(); in this thread or task only."""
    before = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(before)


def within(seconds: float | None = None) -> float | None:
    """How long to wait: `seconds`, or what is left where that is less. Raises TimeoutError when nothing is left."""
    deadline = _deadline.get()
    if deadline == math.inf:
        return seconds
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is up")
    return left if seconds is None else min(left, seconds)


def is_over() -> bool:
    """Whether nothing is left."""
    return _deadline.get() <= time.monotonic()
