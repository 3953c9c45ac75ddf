"""Where Pulumi's tools come from, in which order, and that nothing incomplete or unverified is ever used."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest

from toolchain import tools
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parents[2]
SYSTEM, MACHINE = tools._platform()
CLI_ARCHIVE = f"/sdk/pulumi-v{tools.CLI_VERSION}-{SYSTEM}-{'x64' if MACHINE == 'amd64' else MACHINE}.tar.gz"
CLI_CHECKSUMS = f"/sdk/pulumi-{tools.CLI_VERSION}-checksums.txt"
PLUGIN_ARCHIVE = f"/plugins/pulumi-resource-docker-v{tools.DOCKER_VERSION}-{SYSTEM}-{MACHINE}.tar.gz"
PLUGIN_CHECKSUMS = f"/plugins/pulumi-docker_{tools.DOCKER_VERSION}_checksums.txt"
needs_go = pytest.mark.skipif(
    shutil.which("go") is None, reason="Go is needed only where Pulumi cannot be downloaded"
)


class DownloadHost(ThreadingHTTPServer):
    """Replaces Pulumi's download host. Anything else than its files is not found."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.hangs = False
        self.closing = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: DownloadHost

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.hangs:
            self.server.closing.wait()
            return
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the parameter's name is inherited
        """Keep the test's output quiet."""


@pytest.fixture
def host() -> Iterator[DownloadHost]:
    with DownloadHost() as host:
        Thread(target=host.serve_forever, args=(0.02,), daemon=True).start()
        yield host
        host.closing.set()
        host.shutdown()


class Machine:
    """A machine of one user: nothing is installed on it but Python and what a test puts there."""

    def __init__(self, folder: Path, download_url: str) -> None:
        self.cache = folder / "cache/llm-infrastructure/tools"
        self.plugins = folder / "pulumi home/plugins"
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.environment = {
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PULUMI_HOME": str(self.plugins.parent),
            "PULUMI_DOWNLOAD_URL": download_url,
            "PATH": f"{self.programs}:/usr/bin:/bin",
        }

    def start(self, before: str = "") -> subprocess.Popen[str]:
        """Start a process that prints the folder of `ensure`; `before` is code that runs first in it."""
        code = f"""
from dataclasses import replace
from pathlib import Path
from toolchain import progress, tools
{before}
try:
    with progress.Steps() as steps:
        print(tools.ensure(steps))
except progress.SetupError as error:
    raise SystemExit(str(error))
"""
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ensure(self, before: str = "") -> tuple[Path | None, str]:
        """Return what `ensure` returned, or None if it failed, and what it told the user."""
        with self.start(before) as process:
            folder, told = process.communicate()
        return (Path(folder.strip()) if process.returncode == 0 else None), told

    def install_cli(self, version: str, folder: str = "opt", names: tuple[str, ...] = tools.CLI_FILES) -> Path:
        """Put a CLI on PATH, as an installation does: a link to the folder with its files."""
        real = self.programs.parent / folder
        write_programs(real, names, version)
        (self.programs / "pulumi").symlink_to(real / "pulumi")
        return real

    def install_plugin(self) -> None:
        write_programs(self.plugins / f"resource-docker-v{tools.DOCKER_VERSION}", (tools.DOCKER_FILE,), "")


def write_programs(folder: Path, names: tuple[str, ...], version: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\necho {version}\n")
        (folder / name).chmod(0o755)


def archive(files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), 0o755
            tar.addfile(member, io.BytesIO(text.encode()))
    return content.getvalue()


def listing(algorithm: str, path: str, content: bytes) -> bytes:
    return f"{hashlib.new(algorithm, content).hexdigest()}  {path.rsplit('/', 1)[1]}\n".encode()


@pytest.fixture
def machine(tmp_path: Path, host: DownloadHost) -> Machine:
    return Machine(tmp_path, host.url)


@pytest.fixture(scope="session")
def real() -> Path:
    """The tools of this machine, made if they are not there."""
    with Steps() as steps:
        return tools.ensure(steps)


def offer_cli(host: DownloadHost, cli: str) -> None:
    host.files[CLI_ARCHIVE] = archive({f"pulumi/{name}": cli for name in (*tools.CLI_FILES, "pulumi-language-go")})
    host.files[CLI_CHECKSUMS] = listing("sha256", CLI_ARCHIVE, host.files[CLI_ARCHIVE])


def test_download_of_cli_and_official_provider(machine: Machine, host: DownloadHost, real: Path) -> None:
    """Both come from the download host; Pulumi itself installs the plugin. A second run asks and prints nothing."""
    offer_cli(host, f'#!/bin/sh\nexec "{real}/pulumi" "$@"\n')
    host.files[PLUGIN_ARCHIVE] = archive({tools.DOCKER_FILE: "#!/bin/sh\n"})
    plugin = PLUGIN_ARCHIVE.rsplit("/", 1)[1]
    digest = hashlib.sha1(host.files[PLUGIN_ARCHIVE], usedforsecurity=False).hexdigest()
    host.files[PLUGIN_CHECKSUMS] = f"{'0' * 40}  ./other.tar.gz\n{digest}  ./{plugin}\n".encode()

    folder, told = machine.ensure()

    assert folder is not None, told
    assert sorted(path.name for path in folder.iterdir()) == sorted(tools.CLI_FILES)
    assert all(os.access(path, os.X_OK) for path in folder.iterdir())
    assert (machine.plugins / f"resource-docker-v{tools.DOCKER_VERSION}" / tools.DOCKER_FILE).exists()
    assert host.asked == [CLI_CHECKSUMS, CLI_ARCHIVE, PLUGIN_CHECKSUMS, PLUGIN_ARCHIVE]
    assert machine.ensure() == (folder, "")
    assert len(host.asked) == 4
    assert not list(machine.cache.glob("making-*"))


def test_wrong_checksum_is_refused(machine: Machine, host: DownloadHost) -> None:
    """An archive that is not what the release lists is not used, and the message has both checksums."""
    machine.install_plugin()
    offer_cli(host, "#!/bin/sh\n")
    good = host.files[CLI_ARCHIVE]
    host.files[CLI_ARCHIVE] = archive({"pulumi/pulumi": "#!/bin/sh\necho evil\n"})

    folder, told = machine.ensure()

    assert folder is None
    assert hashlib.sha256(good).hexdigest() in told
    assert hashlib.sha256(host.files[CLI_ARCHIVE]).hexdigest() in told
    assert {path.name for path in machine.cache.iterdir()} == set()


@pytest.mark.parametrize("missing", [CLI_CHECKSUMS, CLI_ARCHIVE])
def test_release_that_is_not_there(machine: Machine, host: DownloadHost, missing: str) -> None:
    """Without download and without Go, the message lists all that was tried and says what to do."""
    offer_cli(host, "#!/bin/sh\n")
    del host.files[missing]

    folder, told = machine.ensure()

    assert folder is None
    assert f"tried: pulumi {tools.CLI_VERSION} or later on PATH" in told
    assert f"tried: download: {host.url}{missing}: HTTP Error 404" in told
    assert "tried: build: [Errno 2] No such file or directory: 'go'" in told
    assert re.search(r"install Go 1\.\d+\.\d+ or newer", told)
    assert "PULUMI_DOWNLOAD_URL" in told


def test_archive_that_is_not_listed(machine: Machine, host: DownloadHost) -> None:
    """Another file's checksum does not count."""
    offer_cli(host, "#!/bin/sh\n")
    host.files[CLI_CHECKSUMS] = listing("sha256", f"/x{CLI_ARCHIVE.rsplit('/', 1)[1]}", host.files[CLI_ARCHIVE])

    folder, told = machine.ensure()

    assert folder is None
    assert "is not listed" in told


def test_truncated_archive_leaves_nothing(machine: Machine, host: DownloadHost) -> None:
    """If a file of the CLI is missing in a listed archive, nothing of it is used."""
    host.files[CLI_ARCHIVE] = archive({"pulumi/pulumi": "#!/bin/sh\n"})
    host.files[CLI_CHECKSUMS] = listing("sha256", CLI_ARCHIVE, host.files[CLI_ARCHIVE])

    folder, told = machine.ensure()

    assert folder is None
    assert "pulumi-language-python" in told
    assert {path.name for path in machine.cache.iterdir()} == set()


def test_host_that_hangs_costs_seconds(machine: Machine, host: DownloadHost) -> None:
    """The set-up soon gives up on a host that accepts the connection and never answers."""
    host.hangs = True

    folder, told = machine.ensure("tools.REACH_SECONDS = 1")

    assert folder is None
    assert "no answer within 1 s" in told


@pytest.mark.parametrize("version", [f"v{tools.CLI_VERSION}", "v3.999.0"])
def test_installed_cli_is_used(machine: Machine, host: DownloadHost, version: str) -> None:
    """The pinned version or a later one on PATH is used where it is, and nothing is downloaded or printed."""
    machine.install_plugin()
    installed = machine.install_cli(version)

    folder, told = machine.ensure()

    assert folder is not None, told
    assert {path.name: path.resolve() for path in folder.iterdir()} == {
        name: installed / name for name in tools.CLI_FILES
    }
    assert host.asked == []
    assert machine.ensure() == (folder, "")


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("v3.1.0", tools.CLI_FILES),
        ("v4.0.0", tools.CLI_FILES),
        ("v3.999.0-alpha.1", tools.CLI_FILES),
        ("not a version", tools.CLI_FILES),
        ("v3.999.0", ("pulumi",)),
    ],
)
def test_unfit_cli_is_not_used(machine: Machine, version: str, names: tuple[str, ...]) -> None:
    """An older CLI, another major version, no release, or one without its language host counts as none."""
    machine.install_plugin()
    machine.install_cli(version, names=names)
    assert machine.ensure()[0] is None


def test_cli_replaced_in_place_is_asked_again(machine: Machine) -> None:
    """The remembered version of an installed CLI is forgotten when its file changes."""
    machine.install_plugin()
    installed = machine.install_cli("v3.999.0")
    assert machine.ensure()[0] is not None
    (installed / "pulumi").write_text("#!/bin/sh\necho v3.1.0\n")
    assert machine.ensure()[0] is None


def tiny_modules(machine: Machine, source: str, go: str = "1.21") -> str:
    """Code that puts programs of one line in the place of Pulumi's."""
    (machine.programs / "go").symlink_to(shutil.which("go") or "")
    for name in ("cli", "host", "docker"):
        folder = machine.programs.parent / name
        folder.mkdir()
        (folder / "go.mod").write_text(f"module {name}\n\ngo {go}\n")
        (folder / "main.go").write_text(f"package main\n\n{source}\n")
    return "\n".join(
        f"tools.{constant} = replace(tools.{constant}, folder=Path({str(machine.programs.parent / name)!r}), "
        f"package='.', linker_flags='', scripts=())"
        for constant, name in [("CLI", "cli"), ("LANGUAGE_HOST", "host"), ("DOCKER_PROVIDER", "docker")]
    )


@needs_go
def test_build_by_two_at_once(machine: Machine, host: DownloadHost) -> None:
    """An unreachable host is asked once. Of two concurrent runs, one builds and both use the result."""
    host.hangs = True
    setup = tiny_modules(machine, "func main() {}") + "\ntools.REACH_SECONDS = 1"

    runs = [machine.start(setup), machine.start(setup)]
    told = [run.communicate() for run in runs]

    assert told[0][0] == told[1][0] != "", told
    assert host.asked == [CLI_CHECKSUMS]
    assert sum(output.count("✓ Docker provider for Pulumi: build with Go") for _, output in told) == 1
    folder = Path(told[0][0].strip())
    assert {path.name for path in folder.iterdir()} == {"pulumi", "pulumi-language-python", tools.DOCKER_FILE}
    assert subprocess.run([folder / "pulumi"], check=False).returncode == 0
    assert not list(machine.cache.glob("making-*"))


@needs_go
@pytest.mark.parametrize(
    ("source", "go", "reason"),
    [
        ('import _ "nowhere"\nfunc main() {}', "1.21", "nowhere is not in std"),
        ("func main() {}", "1.999.0", "requires go >= 1.999.0"),
    ],
)
def test_failed_build_leaves_nothing(machine: Machine, source: str, go: str, reason: str) -> None:
    """The message has Go's error and the required Go; neither a program nor Go's caches stay."""
    machine.environment["GOTOOLCHAIN"] = "local"

    folder, told = machine.ensure(tiny_modules(machine, source, go))

    assert folder is None
    assert f"install Go {go} or newer" in told
    assert reason in told
    assert {path.name for path in machine.cache.iterdir()} == set()


@needs_go
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_build_leaves_nothing(machine: Machine, number: signal.Signals) -> None:
    """An interrupt ends the compilers, and Go's caches go with them."""
    # A shell's background job, as this may be, has SIGINT ignored.
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    with machine.start(heeded + tiny_modules(machine, "func main() {}")) as run:
        while not list(machine.cache.glob("making-*/GOCACHE/*")):
            assert run.poll() is None
            time.sleep(0.02)
        run.send_signal(number)
        run.communicate()
    assert run.returncode != 0
    assert {path.name for path in machine.cache.iterdir()} == set()


@needs_go
def test_disk_without_room(machine: Machine) -> None:
    """A build for which the disk has no room does not start."""
    setup = tiny_modules(machine, "func main() {}") + "\ntools.CLI = replace(tools.CLI, disk_gb=10**9)"

    folder, told = machine.ensure(setup)

    assert folder is None
    assert " GB free" in told
    assert "XDG_CACHE_HOME" in told
    assert "build with Go" not in told


def test_leftovers_of_a_killed_run_are_removed(machine: Machine) -> None:
    """The next run that builds something removes what a killed run left."""
    (machine.cache / "making-killed/GOMODCACHE").mkdir(parents=True)
    machine.ensure()
    assert not (machine.cache / "making-killed").exists()


def test_pins_agree() -> None:
    """The provider's version is that of the Python package, which the project pins."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert f"pulumi-docker=={tools.DOCKER_VERSION}" in project["dependency-groups"]["deploy"]
    source = (tools.MODULES / "docker-provider/main.go").read_text()
    assert f'version = "{tools.DOCKER_VERSION}+' in source


def test_key_is_of_what_is_built(tmp_path: Path) -> None:
    """A change of a module's files gives its program another place in the cache; the clone's location does not."""
    module = replace(tools.CLI, folder=tmp_path / "elsewhere")
    shutil.copytree(tools.CLI.folder, module.folder)
    assert module.cached() == tools.CLI.cached()
    with (module.folder / "go.sum").open("a") as file:
        file.write("\n")
    assert module.cached() != tools.CLI.cached()


def test_real_tools(real: Path) -> None:
    """The tools of this machine run, in the pinned version or a later one."""
    version = subprocess.check_output([real / "pulumi", "version"], text=True).strip()
    assert tools._numbers(version) >= tools._numbers(tools.CLI_VERSION)
    provider = real / tools.DOCKER_FILE
    if provider.exists():
        told = subprocess.check_output([provider, "-version"], text=True)
        assert told.startswith(f"{tools.DOCKER_VERSION}+terraform-provider-docker.")
