"""Reads the project's documents for tests: links, and the commands that a runbook tells an operator to type."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUNBOOKS = PROJECT / "docs/runbooks"
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?P<markdown>[^)\s]+)\)|(?:src|srcset|href)=\"(?P<html>[^\"]+)\"")
PROOF = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<test>test_\w+)`")
VARIABLE = re.compile(r"\$\{?([A-Z_]+)")
ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of a runbook, without variable assignments and redirections."""

    runbook: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.runbook}: {shlex.join(self.words)}"


def documents() -> list[Path]:
    """Every Markdown file of the project."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(listed, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [PROJECT / name for name in names if name and (PROJECT / name).exists()]


def runbooks() -> list[Path]:
    return sorted(path for path in RUNBOOKS.glob("*.md") if path.name != "README.md")


def links(document: Path) -> list[str]:
    """What a document links to, without what it shows as code."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", document.read_text(encoding="utf-8")))
    return [match["markdown"] or match["html"] for match in LINK.finditer(prose)]


def anchors(document: Path) -> set[str]:
    """The names of a document's headings, as code hosts make them."""
    prose = FENCE.sub("", document.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def scripts(runbook: Path) -> list[str]:
    """The blocks of a runbook to run, in order; each is a script for `sh -e` in the project."""
    text = runbook.read_text(encoding="utf-8")
    return [match["text"] for match in FENCE.finditer(text) if match["kind"] == "sh"]


def variables(runbook: Path) -> set[str]:
    """The variables to set before a runbook's scripts are run, beside those that every shell has."""
    return {name for script in scripts(runbook) for name in VARIABLE.findall(script)} - {"HOME"}


def commands(runbook: Path) -> Iterator[Command]:
    """Every command in the scripts of a runbook, those of pipes, lists and substitutions too."""
    for script in scripts(runbook):
        yield from _commands(runbook.stem, script.replace("\\\n", " "))


def _commands(name: str, script: str) -> Iterator[Command]:
    for inner in re.findall(r"\$\(([^()]*)\)", script):
        yield from _commands(name, inner)
    for line in re.sub(r"\$\([^()]*\)", "SUBSTITUTED", script).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                if word not in {"<", ">", ">>"}:
                    yield from _one(name, words)
                    words = []
            else:
                words.append(word)


def _one(name: str, words: list[str]) -> Iterator[Command]:
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    if words:
        yield Command(runbook=name, words=tuple(words))


def schedule() -> dict[str, str]:
    """What docs/backup.md tells an operator to install: systemd's units by file name, and cron's line as `cron`."""
    found = {}
    for match in FENCE.finditer((PROJECT / "docs/backup.md").read_text(encoding="utf-8")):
        if match["kind"] == "ini":
            path, _, unit = match["text"].partition("\n")
            found[path.rpartition("/")[2]] = unit
        elif match["kind"] == "cron":
            found["cron"] = match["text"]
    return found
