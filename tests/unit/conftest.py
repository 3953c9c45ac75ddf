"""Shared by several unit tests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings as hypothesis_settings

from infra.settings import Settings, is_secret
from infra.stack_config import validate
from tests.stack_config import raw_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


SECRET = {str(field.alias) for field in Settings.model_fields.values() if is_secret(field)}
"""Keys of the stack config that hold a secret."""

# How long an example takes says more of the machine than of what it tries.
hypothesis_settings.register_profile("any machine", hypothesis_settings.default, deadline=None)
hypothesis_settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _event_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give Pulumi the thread's event loop, and close those that its mocks make in threads of their own."""
    make, made = asyncio.new_event_loop, []

    def remembered() -> asyncio.AbstractEventLoop:
        made.append(make())
        return made[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", remembered)
    loop = remembered()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.run_until_complete(loop.shutdown_default_executor())
    for each in made:
        each.close()


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on this machine, such as a developer's own stack, changes no result."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nobody-listens-here.sock")


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Make settings from a stack's file and changes to it, which must be valid."""

    def make(stack: str = "dev", **changes: object) -> Settings:
        values, problems = validate(raw_config(stack, **changes), secret=changes.keys() & SECRET)
        assert problems == []
        return Settings.model_construct(**values)

    return make
