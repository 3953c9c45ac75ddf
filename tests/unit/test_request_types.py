"""The types of a request's fields are looked up once, whichever OpenAI SDK LiteLLM has."""

from __future__ import annotations

import functools
import sys
import typing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypedDict

import pytest

from tests.unit import test_guard

if TYPE_CHECKING:
    from collections.abc import Callable

programs = test_guard.programs


class Request(TypedDict):
    """A kind of request."""

    model: str


@pytest.mark.parametrize("kept_by_the_sdk", [False, True], ids=["as in 1.55.0", "as in newer releases"])
def test_types_are_looked_up_once_for_a_kind_of_request(
    kept_by_the_sdk: bool,  # noqa: FBT001 -- a parameter of the test
    programs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up = []

    def look_up(kind: type, *, include_extras: bool = False) -> dict[str, Any]:
        looked_up.append(kind)
        return typing.get_type_hints(kind, include_extras=include_extras)

    sdks: Callable[..., dict[str, Any]] = functools.cache(look_up) if kept_by_the_sdk else look_up
    transform = SimpleNamespace(get_type_hints=sdks)
    monkeypatch.setitem(sys.modules, programs["request_types"].TRANSFORM, transform)
    programs["request_types"].install()
    for _ in range(3):
        assert transform.get_type_hints(Request, include_extras=True) == {"model": str}
    assert looked_up == [Request]
    assert kept_by_the_sdk == (transform.get_type_hints is sdks)
