"""The findings have the form that their README describes. `make findings` says whether they are still true."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

FINDINGS = PROJECT / "findings"
SCRIPTS = sorted(FINDINGS.glob("*.sh"))
PARTS = ["Version", "Behaviour", "Expected", "Seen"]


def header(script: Path) -> str:
    """Return the comment that a script begins with, without its marks."""
    _, *lines = script.read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_each_states_version_behaviour_what_is_expected_and_what_was_seen(script: Path) -> None:
    """A reader knows before the run what is surprising, and the lines to compare the run with are there."""
    assert re.findall(r"^(\w+):", header(script), re.MULTILINE) == PARTS
    assert re.search(r"^Seen:(\n  > .+)+\Z", header(script), re.MULTILINE)
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_each_installs_pinned_packages_in_a_temporary_folder_that_it_removes(script: Path) -> None:
    """It gives the same result on another day, and leaves nothing behind."""
    text = script.read_text(encoding="utf-8")
    assert re.search(
        r"^folder=\$\(mktemp -d\)\ntrap .rm -rf \"\$folder\". EXIT\ncd \"\$folder\"$", text, re.MULTILINE
    )
    packages = re.search(r"pins\.txt\" (.+)$|npm install (?:--\S+ )+(.+?);|go get (.+?);", text, re.MULTILINE)
    assert packages
    for package in next(filter(None, packages.groups())).split():
        assert re.search(r"(==|@v?)\d+(\.\d+)+$", package), f"{package} is not pinned"


def test_their_readme_lists_each_once() -> None:
    """A table has one line for each surprise."""
    readme = (FINDINGS / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[.+?\]\((.+?\.sh)\)", readme, re.MULTILINE)
    assert listed == [script.name for script in SCRIPTS]


def test_what_their_packages_need_is_pinned() -> None:
    """Each line of pins.txt has one version."""
    lines = (FINDINGS / "pins.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
