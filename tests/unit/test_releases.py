"""Releases are found by the headings of CHANGELOG.md."""

from __future__ import annotations

import tomllib

import pytest

from tests.release.releases import ANNOUNCED, Release, git, released, unreleased
from tests.stack_config import PROJECT


def test_the_version_is_that_of_the_next_release() -> None:
    """And each version has one heading."""
    version, said = unreleased()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert version == project["version"]
    assert "\n- " in said
    versions = [version, *(release.version for release in released())]
    assert len(set(versions)) == len(versions) > 1


@pytest.mark.parametrize("release", released(), ids=lambda it: it.version)
def test_the_commit_of_a_release_is_there(release: Release) -> None:
    if "shallow" in release.missing:
        pytest.skip(release.missing)
    assert not release.missing


@pytest.mark.parametrize("program", ["edge/start.sh", "edge/reload.sh"])
def test_what_replaces_the_edge_is_announced(program: str) -> None:
    """Its programs are files of its container. Any change of one, even of a comment, replaces the container."""
    former = released()[0]
    if former.missing:
        pytest.skip(former.missing)
    changed = git(PROJECT, "show", f"{former.commit}:{program}") != (PROJECT / program).read_text().strip()
    assert not changed or ANNOUNCED["edge"] in unreleased()[1], (
        f"restore it: git checkout {former.commit} -- {program}"
    )


def test_a_missing_commit_is_reported() -> None:
    assert "does not have" in Release(version="9.9.9", commit="0" * 40).missing
