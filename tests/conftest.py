"""Shared by all tests."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--newest", action="store_true", help="LiteLLM's newest release, where it has its database")
    parser.addoption("--litellm-database", action="store_true", help="LiteLLM has its database, on a Swarm")


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heeded() -> Iterator[None]:
    """This may run as a shell's background job, which ignores SIGINT; then everything that it starts would too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
