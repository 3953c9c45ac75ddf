"""The stack on the engines that people have, each in a network of its own: `make test-engines`, before each release.

docs/machines.md has what was seen, and when.
"""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from typing import TYPE_CHECKING

import docker
import pytest

from engine.connection import connect
from engine.inspection import look_at
from tests.drills.test_changes import serve_ours
from tests.engines import Daemon, needs_an_engine_of_its_own, own_network
from tests.release.engines import BUILDERS, ENGINES
from tests.stacks import as_soon_as_replaced, deployed, image_of
from toolchain.__main__ import IMAGE_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    needs_an_engine_of_its_own,
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="other engines are packages of Debian"),
    pytest.mark.timeout(3600),  # an engine may have to be built
]


@pytest.fixture(params=ENGINES)
def daemon(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """An engine with the stack's images."""
    kind = ENGINES[request.param]
    if kind.moby and (missing := [name for name in BUILDERS if shutil.which(name) is None]):
        pytest.skip(
            f"this engine is built from the Go module proxy, with what is not installed: {', '.join(missing)}"
        )
    for folder in reversed(kind.programs()):
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    for name, value in kind.variables:
        monkeypatch.setenv(name, value)
    daemon = Daemon(*kind.options)
    with own_network():
        try:
            daemon.start()
            with closing(docker.from_env()) as usual, closing(connect(daemon.host)) as own:
                print(f"\n{look_at(own).name}")
                assert f"(API {kind.api}, " in look_at(own).name
                assert ("containerd image store" in look_at(own).name) == kind.containerd_store
                for image in map(image_of, IMAGE_SETTINGS):
                    own.images.load(usual.images.get(image).save(named=True))  # type: ignore[arg-type]  # a stream
            yield daemon
        finally:
            daemon.remove()


def test_a_stack_lives_on_the_engine(daemon: Daemon, tmp_path: Path) -> None:
    """Up, no change, refresh, another model, a killed `up` and the next one, and a destroy that leaves nothing."""
    with deployed(tmp_path, host=daemon.host) as stack:
        stack.up(expect_no_changes=True)
        stack.refresh(expect_no_changes=True)
        serve_ours(stack, key="sk-ours")
        assert "ours" in {model.id for model in stack.client.models.list()}
        stack.set(drainSeconds=31)
        assert stack.killed_up(when=as_soon_as_replaced(stack, "litellm-1"))
        with stack.begin("up", "--refresh", "--yes", "--skip-preview", "--non-interactive") as fixing:
            said, _ = fixing.communicate()
        assert fixing.returncode == 0, said
        stack.up(expect_no_changes=True)
        gone = stack.pulumi("destroy", "--yes", "--skip-preview")
        assert gone.returncode == 0, gone.stdout
        assert stack.leftovers() == []
