"""A value that a process, or an event loop, makes once, however many threads ask for it at once."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

Value = TypeVar("Value")


class PerProcess(Generic[Value]):
    """The one value that `make` returned in this process; a forked child makes its own."""

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


class PerLoop(Generic[Value]):
    """The one value that `make` returned for the running event loop; `close` is awaited before that loop ends."""

    def __init__(self, make: Callable[[], Value], close: Callable[[Value], Awaitable[None]]) -> None:
        self._make = make
        self._close = close
        self._values: dict[asyncio.AbstractEventLoop, tuple[Value, AsyncGenerator[None]]] = {}
        self._new_lock()
        os.register_at_fork(after_in_child=self._new_lock)

    def _new_lock(self) -> None:
        self._lock = threading.Lock()

    def get(self) -> Value:
        """Return the running loop's value, made by its first call."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._values:
                for closed in [each for each in self._values if each.is_closed()]:
                    del self._values[closed]
                value = self._make()
                guard = self._guard(value)
                # When a loop ends, the generators that were started in it are closed: by asyncio.run, and by servers
                # too.
                with suppress(StopIteration):
                    guard.asend(None).send(None)
                self._values[loop] = value, guard
            return self._values[loop][0]

    async def close(self) -> None:
        """Close the running loop's value if there is one, and have the next `get` make another."""
        with self._lock:
            held = self._values.pop(asyncio.get_running_loop(), None)
        if held is not None:
            await held[1].aclose()

    async def _guard(self, value: Value) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            with self._lock:
                self._values.pop(asyncio.get_running_loop(), None)
            await self._close(value)
