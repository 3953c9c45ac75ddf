"""The official way, with the test's own hosts: `make up` on a network that is not closed.

Pulumi's CLI and the provider's plugin are downloaded from their own addresses and verified, the images are pulled by
the names that Pulumi.yaml has - all through a proxy whose authority is a company's own: `make test-official`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from secrets import token_hex
from typing import TYPE_CHECKING

import docker
import pytest

from engine.connection import connect
from engine.image_names import stand_ins
from tests.engines import Daemon, needs_an_engine_of_its_own, own_network
from tests.release.engines import ENGINES
from tests.release.official import hosts
from tests.stack_config import project_file
from tests.stacks import Deployment, image_of
from toolchain import tools
from toolchain.__main__ import IMAGE_SETTINGS
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.release.engines import Engine
    from tests.release.official import Hosts

REPOSITORIES = {
    "litellm": ("berriai/litellm", "main-v1.55.0", "oci"),
    "postgres": ("library/postgres", "17", "docker"),
    "haproxy": ("library/haproxy", "3.0", "docker"),
}
SYSTEM, PROCESSOR = tools._platform()
CLI = f"/releases/sdk/pulumi-v{tools.CLI_VERSION}-{SYSTEM}-{PROCESSOR.replace('amd64', 'x64')}.tar.gz"
CLI_LIST = f"/releases/sdk/pulumi-{tools.CLI_VERSION}-checksums.txt"
PLUGIN = f"/releases/plugins/pulumi-resource-docker-v{tools.DOCKER_VERSION}-{SYSTEM}-{PROCESSOR}.tar.gz"
PLUGIN_LIST = f"/releases/plugins/pulumi-docker_{tools.DOCKER_VERSION}_checksums.txt"

RATE_LIMITED = {False: "toomanyrequests: You have reached your pull rate limit.", True: "429 Too Many Requests"}
"""What an engine says about it; with containerd's store not the registry's own message."""

pytestmark = [needs_an_engine_of_its_own, pytest.mark.timeout(3600)]


@pytest.fixture(params=["Debian 12", "Debian testing, as 29.0"])
def kind(request: pytest.FixtureRequest) -> Engine:
    """An engine of either store of images."""
    chosen = ENGINES[request.param]
    chosen.programs()  # while the network from which they come exists
    return chosen


@pytest.fixture
def server(tmp_path: Path, kind: Engine) -> Iterator[Hosts]:
    """The hosts that users download from. Pulumi's programs are those built here, in a release's archives."""
    with Steps() as steps:
        real = tools.ensure(steps)
    if not (real / tools.DOCKER_FILE).exists():
        pytest.skip("the official Docker provider is installed, and the built one is not needed")
    with own_network(), hosts(tmp_path / "hosts") as made:
        made.offer(CLI, "sha256", CLI_LIST, {f"pulumi/{name}": real / name for name in tools.CLI_FILES})
        made.offer(PLUGIN, "sha1", PLUGIN_LIST, {tools.DOCKER_FILE: real / tools.DOCKER_FILE})
        yield made


@pytest.fixture
def daemon(kind: Engine, server: Hosts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """An engine without images, which knows the proxy and its authority."""
    bundle = server.folder / "authority.pem"
    bundle.write_text(server.authority.certificate_pem)
    monkeypatch.setenv("HTTPS_PROXY", server.proxy)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    before = os.environ["PATH"]
    for folder in reversed(kind.programs()):
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    for name, value in kind.variables:
        monkeypatch.setenv(name, value)
    daemon = Daemon(*kind.options)
    try:
        daemon.start()
        monkeypatch.setenv("PATH", before)
        yield daemon
    finally:
        daemon.remove()


class User:
    """A user who has cloned the project onto a machine with Python and an engine, but without Pulumi."""

    def __init__(self, deployment: Deployment, home: Path) -> None:
        self._folder = deployment.folder
        self._name = deployment.name
        self.plugins = home / "pulumi/plugins"
        self._environment = {
            **{name: os.environ[name] for name in ("HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")},
            **deployment.environment,
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "PULUMI_HOME": str(home / "pulumi"),
            "PATH": "/usr/bin:/bin",
        }
        # The project's own would make a virtual environment for this copy of it.
        (deployment.folder / "pulumiw").write_text('#!/bin/sh\nexec .venv/bin/python -m toolchain.pulumi "$@"\n')

    def make(self, target: str) -> subprocess.CompletedProcess[str]:
        """Do as `make TARGET STACK=…`."""
        return self._run("toolchain", target)

    def pulumi(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Do as `./pulumiw …`."""
        return self._run("toolchain.pulumi", *arguments, "--yes", "--skip-preview", "--non-interactive")

    def _run(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments, "--stack", self._name],
            cwd=self._folder,
            env=self._environment,
            check=False,
            capture_output=True,
            text=True,
        )
        print(done.stdout, done.stderr)
        return done


def test_the_official_way_is_walked(server: Hosts, kind: Engine, daemon: Daemon, tmp_path: Path) -> None:
    """One command, from nothing to an answer. A registry's rate limit is reported before anything changes."""
    with closing(docker.from_env()) as usual:
        digests = {part: server.fill(usual, image_of(part), *REPOSITORIES[part]) for part in IMAGE_SETTINGS}
    stack = Deployment(tmp_path, f"test-{token_hex(4)}", host=daemon.host)
    (stack.folder / ".images.yaml").unlink(missing_ok=True)
    user = User(stack, tmp_path / "home")
    try:
        server.limited = True
        refused = user.make("up")
        assert refused.returncode == 1
        assert RATE_LIMITED[kind.containerd_store] in refused.stderr
        assert "what you can do" in refused.stderr
        assert stack.leftovers() == []

        server.limited = False
        up = user.make("up")
        assert up.returncode == 0, up.stderr
        assert "The gateway is up" in up.stdout
        assert stand_ins(stack.folder / ".images.yaml") == {}
        downloads = [(path, status) for _, path, status in server.asked if path.startswith("/releases/")]
        assert downloads == [(path, 200) for path in (CLI_LIST, CLI, PLUGIN_LIST, PLUGIN)]
        assert (user.plugins / f"resource-docker-v{tools.DOCKER_VERSION}" / tools.DOCKER_FILE).exists()
        statuses = {status for _, path, status in server.asked if path.startswith("/v2/")}
        assert statuses == {200, 401, 429}
        with closing(connect(daemon.host)) as own:
            for part, digest in digests.items():
                reference = str(project_file()["config"][IMAGE_SETTINGS[part]]["default"])
                [pulled] = own.images.get(reference).attrs["RepoDigests"]
                assert pulled.endswith(f"@{digest}")
        asked = stack.client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hello"}])
        assert asked.choices[0].message.content

        before = len(server.asked)
        for operation in ("up", "refresh"):
            again = user.pulumi(operation, "--expect-no-changes")
            assert again.returncode == 0, again.stdout
        assert server.asked[before:] == []
        assert user.make("down").returncode == 0
        assert stack.leftovers() == []
    finally:
        stack.destroy()
