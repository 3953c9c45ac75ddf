"""What is run before a release, and takes too long for each commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.stacks import pulumi_tools

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _pulumi_tools() -> Iterator[None]:
    with pulumi_tools():
        yield
