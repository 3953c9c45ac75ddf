"""Programs of this machine that the module runs: `docker`, and PostgreSQL's own."""

from __future__ import annotations

import re
import subprocess


class ProgramError(Exception):
    """A program is missing, failed or did not end. The message is one line."""


def output(command: list[str], *, given: str = "", seconds: float | None = None) -> str:
    """A program's output with the input `given`. Raises ProgramError if it fails or takes longer than `seconds`."""
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=seconds)
    except FileNotFoundError:
        raise ProgramError(f"there is no {command[0]} on PATH") from None
    except subprocess.TimeoutExpired:
        raise ProgramError(f"{command[0]} has not finished after {seconds:g} s") from None
    if done.returncode != 0:
        raise ProgramError(f"{command[0]} failed: {reason(done.stderr)}")
    return done.stdout


def reason(errors: str) -> str:
    """The line that says why a program failed, or which sessions blocked it. Other lines may contain rows."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    wrong = [line for line in lines if re.search(r"error|fatal", line, re.IGNORECASE)]
    sessions = [line for line in lines if re.match(r"DETAIL: .* using the database", line)]
    return " ".join([*(wrong or lines or ["it says nothing"])[:1], *sessions[:1]])
