"""Upgrades a stack of the last release, with data, to this tree under load: `make test-upgrade`, before each release.

docs/upgrade.md has what was seen, and when.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from secrets import token_hex
from typing import TYPE_CHECKING

import pytest

from tests.drills.test_changes import changed, ids
from tests.drills.test_faults import Writer, all_there
from tests.load import NOTHING_FAILS, Bound, Load
from tests.release.releases import ANNOUNCED, OPERATOR, git, released, repository, unreleased
from tests.runbooks import Runbook, runbook
from tests.stacks import Deployment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMER = released()[0]
PROVIDER = "provider"
REQUESTS_PER_SECOND = 25
MODELS = ("gpt-4o", "claude-3-5-sonnet", "text-embedding-3-small")
WITHOUT_AN_EDGE = Bound(gap_seconds=15)
"""What the drill of a killed edge allows. One host has one, and no port is held by two."""

pytestmark = [
    pytest.mark.skipif(bool(FORMER.missing), reason=FORMER.missing),
    pytest.mark.timeout(3600),  # two environments, three changes of everything
]


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """What operators clone, with this tree as the tip of its branch `main`."""
    return repository(tmp_path / "upstream")


@pytest.fixture
def deployment(tmp_path: Path, upstream: Path) -> Iterator[Deployment]:
    """A stack of the former release, whose config its operator has committed."""

    def clone(folder: Path) -> None:
        git(tmp_path, "clone", "--quiet", str(upstream), str(folder))
        git(folder, "checkout", "--quiet", "-B", "main", FORMER.commit)

    made = Deployment(tmp_path, f"test-{token_hex(4)}", lay=clone)
    for number, model in enumerate(MODELS):
        made.set_path(f"models[{number}].name", model)
        made.set_path(f"models[{number}].model", f"openai/{model}")
        made.set_path(f"models[{number}].apiBase", f"http://{PROVIDER}:8080/v1")
    git(made.folder, "add", f"Pulumi.{made.name}.yaml")
    git(made.folder, "commit", "--quiet", "--message=A stack")
    try:
        yield made
    finally:
        made.destroy()


@contextmanager
def provider_outside(deployment: Deployment) -> Iterator[None]:
    """A provider outside the stack, like real ones: the demo provider changes with the project's version."""
    demo = deployment.container("demo")
    [network] = demo.attrs["NetworkSettings"]["Networks"]
    program, _ = demo.get_archive("/app/provider.py")
    made = deployment.engine.containers.create(
        deployment.image("demo"),
        name=f"{deployment.name}-{PROVIDER}",
        entrypoint=["python3", "/app/provider.py"],
        command=["8080"],
        network=network,
    )
    try:
        made.put_archive("/app", b"".join(program))
        deployment.engine.networks.get(network).disconnect(made)
        deployment.engine.networks.get(network).connect(made, aliases=[PROVIDER])
        made.start()
        yield
    finally:
        made.remove(force=True)


def test_the_former_release_is_upgraded_under_load(deployment: Deployment) -> None:
    """Callers notice what CHANGELOG.md names and nothing else, all data are there, and the way back works."""
    former = git(deployment.folder, "rev-parse", "HEAD")
    with (
        runbook("upgrade-this-project", deployment, **OPERATOR, VERSION="origin/main", FORMER=former) as book,
        ExitStack() as beside,
    ):
        del book.environment["PYTHON"]  # each tree makes the environment that it wants
        typed(book, 'make up STACK="$PULUMI_STACK"')
        beside.enter_context(provider_outside(deployment))
        typed(book, ".venv/bin/llmctl org create acme --model gpt-4o")
        before, secrets = ids(deployment), deployment.secrets()
        url, key = deployment.outputs["litellmUrl"], deployment.outputs["litellmApiKey"]
        load = Load(url, key, rate=REQUESTS_PER_SECOND)
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

        back = Load(url, key, rate=REQUESTS_PER_SECOND)
        with back.running():
            back.report.broken = time.monotonic()
            book.run("git checkout")
            back.await_successes(round(back.rate))
        print(f"\nback to {FORMER.version}: {told(back)}")
        assert back.report.beyond(WITHOUT_AN_EDGE if "edge" in replaced else NOTHING_FAILS) == []
        assert "acme" in typed(book, ".venv/bin/llmctl org list")
        assert all_there(deployment, writer)


def typed(book: Runbook, script: str) -> str:
    """Type a command that is not in the runbook; it must succeed."""
    code, printed = book.type(script)
    assert code == 0, f"{script}\nends with {code}"
    return printed


def told(load: Load) -> str:
    report = load.report
    failed = len(report.failures) + len(report.in_flight) + len(report.cut)
    return f"{report.sent} requests, {failed} failed, longest time without an answer {report.longest_gap:.2f} s"
