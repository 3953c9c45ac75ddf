"""What a check of `llmctl doctor` or `llmctl status` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    check: str
    status: Literal["ok", "warning", "failure"]
    detail: str
    fix: str = ""
    """The command or step that fixes it; empty if there is nothing to fix."""
