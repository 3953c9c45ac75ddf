"""The releases of the project, by the headings of CHANGELOG.md: a clone need not have their tags."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from tests.stack_config import PROJECT

RELEASED = re.compile(
    r"^## (?P<version>\S+), (?P<date>\d{4}-\d\d-\d\d), commit `(?P<commit>[0-9a-f]{40})`$", re.MULTILINE
)
UNRELEASED = re.compile(r"^## (?P<version>\S+), not released$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Release:
    """A version that was released."""

    version: str
    commit: str

    @property
    def missing(self) -> str:
        """Why its tree cannot be had from this clone; empty if it can be."""
        if _git("cat-file", "-e", f"{self.commit}^{{commit}}").returncode == 0:
            return ""
        if _git("rev-parse", "--is-shallow-repository").stdout.strip() == "true":
            return f"this clone is shallow, and does not have {self.version}: git fetch --unshallow"
        return f"this clone does not have commit {self.commit} of {self.version}: git fetch --tags"


def released() -> list[Release]:
    """All releases, the newest first."""
    text = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    return [Release(version=it["version"], commit=it["commit"]) for it in RELEASED.finditer(text)]


def unreleased() -> tuple[str, str]:
    """The version that comes next, and what CHANGELOG.md says of it."""
    text = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = UNRELEASED.search(text)
    assert heading, "CHANGELOG.md has no heading for what is not released"
    return heading["version"], RELEASED.split(text[heading.end() :])[0]


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=PROJECT, check=False, capture_output=True, text=True)
