"""Skips the search that OpenAI's SDK makes of each request, where it would change nothing.

For each message, the SDK tries each type that a message may have. That takes tenths of a millisecond, so that a long
conversation spends most of LiteLLM's time there. The SDK renames fields and encodes values where a type says so, and
no type in a chat completion does.
"""

from __future__ import annotations

import importlib
import typing
from contextlib import suppress
from functools import cache
from typing import Any

TRANSFORM = "openai._utils._transform"
"""Where the SDK looks through requests."""


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))


def install() -> None:
    """Have the SDK look only through requests that it may change. An SDK without these functions is left alone."""
    try:
        transform, types = importlib.import_module(TRANSFORM), importlib.import_module("openai._types")
        look_through, mark = transform.async_transform, transform.PropertyInfo
        absent = (types.NotGiven, types.Omit)
    except (ImportError, AttributeError):
        return

    def has_mark(annotation: Any, seen: set[Any]) -> bool:
        """Whether a type, or one in it, says that a field has another name or a value another form."""
        if isinstance(annotation, mark):
            return True
        if not hasattr(annotation, "__total__"):  # no TypedDict
            return any(has_mark(each, seen) for each in typing.get_args(annotation))
        if annotation in seen:
            return False
        seen.add(annotation)
        return any(
            has_mark(each, seen) for each in transform.get_type_hints(annotation, include_extras=True).values()
        )

    @cache
    def is_changed(kind: Any) -> bool:
        return has_mark(kind, set())

    async def async_transform(data: Any, expected_type: object) -> Any:
        if isinstance(data, dict):
            given = {name: value for name, value in data.items() if not isinstance(value, absent)}
            with suppress(RecursionError):
                if _is_plain(given) and not is_changed(expected_type):
                    return given
        return await look_through(data, expected_type)

    transform.async_transform = async_transform
