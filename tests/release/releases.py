"""The releases of the project, by the headings of CHANGELOG.md: a clone need not have their tags."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.stack_config import PROJECT
from tests.stacks import copy_files

if TYPE_CHECKING:
    from pathlib import Path

RELEASED = re.compile(
    r"^## (?P<version>\S+), (?P<date>\d{4}-\d\d-\d\d), commit `(?P<commit>[0-9a-f]{40})`$", re.MULTILINE
)
UNRELEASED = re.compile(r"^## (?P<version>\S+), not released$", re.MULTILINE)
ANNOUNCED = {"postgres": "replaces the container of Postgres", "edge": "replaces the container of the edge"}
"""The words in which CHANGELOG.md announces more than new replicas."""
OPERATOR = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in {"NAME": "operator", "EMAIL": "operator@example.org"}.items()
}
"""The author of commits."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A version that was released."""

    version: str
    commit: str

    @property
    def missing(self) -> str:
        """Why this clone does not have its tree; empty if it does."""
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
    """The next version, and what CHANGELOG.md says about it."""
    text = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = UNRELEASED.search(text)
    assert heading, "CHANGELOG.md has no heading for what is not released"
    return heading["version"], RELEASED.split(text[heading.end() :])[0]


def repository(folder: Path) -> Path:
    """Make a repository with the project's history, and the tree as it is here as the tip of its branch `main`."""
    git(folder.parent, "clone", "--quiet", "--no-checkout", str(PROJECT), str(folder))
    git(folder, "update-ref", "refs/heads/main", "HEAD")  # a clone may be on another branch, or on none
    git(folder, "symbolic-ref", "HEAD", "refs/heads/main")
    copy_files(folder)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=This tree")
    return folder


def git(folder: Path, *arguments: str) -> str:
    """Run git as an operator does; it must succeed."""
    return subprocess.run(
        ["git", *arguments], cwd=folder, env={**os.environ, **OPERATOR}, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=PROJECT, check=False, capture_output=True, text=True)
