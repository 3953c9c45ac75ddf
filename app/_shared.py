"""Something that a process makes once, however many threads ask for it at once."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")


class Shared(Generic[Value]):
    """The one value that `make` returned in this process; a forked child makes one of its own."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._value: Value | None = None

    def get(self) -> Value:
        """Return the value, made by the first call."""
        with self._lock:
            if self._value is None:
                self._value = self._make()
            return self._value

    def take(self) -> Value | None:
        """Return the value if there is one, and have the next `get` make another."""
        with self._lock:
            value, self._value = self._value, None
            return value
