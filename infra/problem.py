"""What is wrong with the stack config."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """What is wrong with a key of the stack config, and the command that fixes it (without `pulumi config`)."""

    key: str
    what: str
    command: str
