"""A stack of the last release, with data, is taken to this tree under load: `make test-upgrade`, before each release.

docs/upgrade.md has what was seen, and when.
"""

from __future__ import annotations

import os
import subprocess
import time
from secrets import token_hex
from typing import TYPE_CHECKING

import pytest

from tests.drills.test_changes import changed, ids
from tests.drills.test_faults import Writer, all_there
from tests.load import NOTHING_FAILS, Bound, Load
from tests.release.releases import released, unreleased
from tests.runbooks import Runbook, runbook
from tests.stack_config import PROJECT
from tests.stacks import Deployment, copy_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMER = released()[0]
OPERATOR = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in {"NAME": "operator", "EMAIL": "operator@example.org"}.items()
}
WITHOUT_AN_EDGE = Bound(gap_seconds=15)
"""What the drill of a killed edge allows. One host has one, and no port is held by two."""
ANNOUNCED = {"postgres": "replaces the container of Postgres", "edge": "replaces the container of the edge"}
"""In which words CHANGELOG.md says what is more than new replicas."""

pytestmark = [
    pytest.mark.skipif(bool(FORMER.missing), reason=FORMER.missing),
    pytest.mark.timeout(3600),  # two environments, three changes of everything
]


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, env={**os.environ, **OPERATOR}, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """What operators clone, with this tree as the tip of its branch `main`."""
    folder = tmp_path / "upstream"
    git(tmp_path, "clone", "--quiet", "--no-checkout", str(PROJECT), str(folder))
    git(folder, "branch", "--move", "--force", "main")
    copy_files(folder)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=This tree")
    return folder


@pytest.fixture
def deployment(tmp_path: Path, upstream: Path) -> Iterator[Deployment]:
    """A stack of the former release, whose config its operator has committed."""

    def clone(folder: Path) -> None:
        git(tmp_path, "clone", "--quiet", str(upstream), str(folder))
        git(folder, "checkout", "--quiet", "-B", "main", FORMER.commit)

    made = Deployment(tmp_path, f"test-{token_hex(4)}", lay=clone)
    git(made.folder, "add", f"Pulumi.{made.name}.yaml")
    git(made.folder, "commit", "--quiet", "--message=A stack")
    try:
        yield made
    finally:
        made.destroy()


def test_the_former_release_is_upgraded_under_load(deployment: Deployment) -> None:
    """Callers notice what CHANGELOG.md names and nothing else, all data are there, and so is the way back."""
    former = git(deployment.folder, "rev-parse", "HEAD")
    with runbook("upgrade-this-project", deployment, **OPERATOR, VERSION="origin/main", FORMER=former) as book:
        del book.environment["PYTHON"]  # each tree makes the environment that it wants
        typed(book, 'make up STACK="$PULUMI_STACK"')
        typed(book, ".venv/bin/llmctl org create acme --model gpt-4o")
        before, secrets = ids(deployment), deployment.secrets()
        url, key = deployment.outputs["litellmUrl"], deployment.outputs["litellmApiKey"]
        load = Load(url, key)
        with load.running(), Writer(deployment.outputs["databaseUrl"]) as writer:
            assert former in book.run("llmctl backup")
            book.run("git merge")
            load.report.broken = started = time.monotonic()
            book.run("./pulumiw up")
            taken = time.monotonic() - started
            book.run("check-deploy")
            load.await_successes(round(load.rate))
            writer.await_rows(20)
        replaced = changed(deployment, before)
        print(f"\n{FORMER.version} to this tree: {told(load)}; `up` took {taken:.0f} s and replaced {replaced}")
        version, said = unreleased()
        for part, words in ANNOUNCED.items():
            assert part not in replaced or words in said, f"CHANGELOG.md does not say of {version}: {words}"
        assert load.report.beyond(WITHOUT_AN_EDGE if "edge" in replaced else NOTHING_FAILS) == []
        assert deployment.secrets().items() >= secrets.items()
        assert all_there(deployment, writer)
        assert "acme" in typed(book, ".venv/bin/llmctl org list")
        typed(book, "./pulumiw up --expect-no-changes")

        back = Load(url, key)
        with back.running():
            back.report.broken = time.monotonic()
            book.run("git checkout")
            back.await_successes(round(back.rate))
        print(f"\nback to {FORMER.version}: {told(back)}")
        assert back.report.beyond(WITHOUT_AN_EDGE if "edge" in replaced else NOTHING_FAILS) == []
        assert "acme" in typed(book, ".venv/bin/llmctl org list")
        assert all_there(deployment, writer)


def typed(book: Runbook, script: str) -> str:
    """Type what is not of the runbook; it has to succeed."""
    code, printed = book.type(script)
    assert code == 0, f"{script}\nends with {code}"
    return printed


def told(load: Load) -> str:
    report = load.report
    failed = len(report.failures) + len(report.in_flight) + len(report.cut)
    return f"{report.sent} requests, {failed} failed, longest time without an answer {report.longest_gap:.2f} s"
