"""Puts a function in the place of one of LiteLLM's."""

from __future__ import annotations

import sys


def put_in_place(name: str, original: object, replacement: object) -> None:
    """Replace a function in each module that has it under its name."""
    for module in list(sys.modules.values()):
        if vars(module).get(name) is original:
            setattr(module, name, replacement)
