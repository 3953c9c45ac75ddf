"""Find, download or build the programs that Pulumi needs: its CLI, the Python language host, the Docker provider.

In this order: a program that is installed in the pinned version or was built before; Pulumi's own download, with its
checksum verified; a build of the modules in `go`, from the Go module proxy.

Results are kept per user in `${XDG_CACHE_HOME:-~/.cache}/llm-infrastructure/tools`, each tool under a hash of its
sources. The cache may be deleted at any time. `PULUMI_DOWNLOAD_URL` names a mirror of Pulumi's download host, laid
out as that host is.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain import operating_system
from toolchain.download import CHECKSUMS, DownloadError, UnreachableError, fetch, read
from toolchain.progress import CommandError, SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from toolchain.progress import Step, Steps

MODULES = Path(__file__).resolve().parent / "go"
CLI_VERSION = re.findall(r"pulumi/pulumi/pkg/v3 v(\d+\.\d+\.\d+)", (MODULES / "cli/go.mod").read_text())[0]
CLI_FILES = (
    "pulumi",
    "pulumi-language-python",
    "pulumi-language-python-exec",
    "pulumi-resource-pulumi-python",
)
DOCKER_VERSION = "5.2.0"
DOCKER_FILE = "pulumi-resource-docker"

DOWNLOAD_URL = "https://get.pulumi.com/releases"
REACH_SECONDS = 6.0
"""How long the download host may take to answer with a release's checksums."""


@dataclass(frozen=True, kw_only=True)
class GoModule:
    """A Go module with one program, and what its build needs."""

    title: str
    instead: str
    """What the user could install instead."""
    folder: Path
    package: str
    program: str
    disk_gb: float
    """Disk space that a build needs, in 10⁹ bytes; nearly all of it is free again afterwards."""
    linker_flags: str = ""
    scripts: tuple[str, ...] = ()
    """Files of the Pulumi SDK, in the version that the module requires, that must be beside the program."""

    def cached(self) -> Path:
        """The folder in which the built program is kept."""
        digest = hashlib.sha256(repr((self.package, self.linker_flags, self.scripts)).encode())
        for path in sorted([*self.folder.rglob("*.go"), *self.folder.rglob("go.*")]):
            content = path.read_bytes()
            digest.update(f"\n{path.relative_to(self.folder)} {len(content)}\n".encode())
            digest.update(content)
        return _cache() / f"{self.program}-{'-'.join(_platform())}-{digest.hexdigest()[:16]}"


_INSTALLED_CLI = f"pulumi {CLI_VERSION} or later on PATH, its Python language host beside it"
CLI = GoModule(
    title=f"Pulumi CLI {CLI_VERSION}",
    instead=_INSTALLED_CLI,
    folder=MODULES / "cli",
    package="github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
    program="pulumi",
    disk_gb=5,
    linker_flags=f"-X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v{CLI_VERSION}",
    scripts=("python/cmd/pulumi-language-python-exec", "python/dist/pulumi-resource-pulumi-python"),
)
LANGUAGE_HOST = GoModule(
    title="Pulumi's Python language host",
    instead=_INSTALLED_CLI,
    folder=MODULES / "language-python",
    package="github.com/pulumi/pulumi/sdk/v3/python/cmd/pulumi-language-python",
    program="pulumi-language-python",
    disk_gb=1,
)
DOCKER_PROVIDER = GoModule(
    title="Docker provider for Pulumi",
    instead=f"the official Docker plugin {DOCKER_VERSION} in Pulumi's plugin folder",
    folder=MODULES / "docker-provider",
    package=".",
    program=DOCKER_FILE,
    disk_gb=3,
)


def ensure(steps: Steps) -> Path:
    """Return the folder to put in front of PATH, after finding, downloading or building its programs.

    It holds the Pulumi CLI with its Python language host, and a Docker provider unless the official one is in
    Pulumi's plugin folder. Raises SetupError if there is no way to get one of them.
    """
    if folder := ready():
        return folder
    with _scratch(steps) as scratch:
        maker = _Maker(steps, scratch)
        cli = _installed_cli() or maker.cli()
        docker = _installed_docker_provider()
        if docker is None:
            docker = maker.docker_provider(cli["pulumi"])
        return _linked(cli | docker)


def ready() -> Path | None:
    """Return the folder that `ensure` would, or None if something must be downloaded or built; takes milliseconds."""
    cli, docker = _installed_cli(), _installed_docker_provider()
    if cli is None or docker is None:
        return None
    folder = _link_folder(cli | docker)
    return folder if folder.exists() else None


def _installed_cli() -> dict[str, Path] | None:
    """The files of the CLI and its language host by their names, or None if one is missing."""
    if on_path := _cli_on_path():
        return on_path
    for folders in ((_downloaded_cli(),), (CLI.cached(), LANGUAGE_HOST.cached())):
        if all(folder.exists() for folder in folders):
            return _files(*folders)
    return None


def _cli_on_path() -> dict[str, Path] | None:
    """An installed CLI of the pinned version, or a later one of the same major, with its host beside it."""
    found = shutil.which("pulumi")
    if found is None or _cache() in (program := Path(found).resolve()).parents:
        return None
    files = {name: program.with_name(name) for name in CLI_FILES}
    if not all(os.access(path, os.X_OK) for path in files.values()):
        return None
    version, pinned = _version_of(program), _numbers(CLI_VERSION)
    return files if version[:1] == pinned[:1] and version >= pinned else None


def _version_of(program: Path) -> tuple[int, ...]:
    """The version that the CLI reports, cached because asking is slow; () if it is not a release."""
    status = program.stat()
    key = hashlib.sha256(f"{program} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    remembered = _cache() / f"version-{key[:16]}"
    if not remembered.exists():
        try:
            answer = subprocess.run([program, "version"], capture_output=True, text=True, check=False).stdout
        except OSError:  # it cannot even be started
            return ()
        with tempfile.NamedTemporaryFile("w", dir=_cache(), delete=False) as file:
            file.write(answer)
        Path(file.name).rename(remembered)
    return _numbers(remembered.read_text().strip())


def _numbers(version: str) -> tuple[int, ...]:
    match = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)", version)
    return tuple(map(int, match.groups())) if match else ()


def _installed_docker_provider() -> dict[str, Path] | None:
    """The Docker provider by its file name; {} if Pulumi finds the official one by itself; None if it is missing."""
    plugins = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi") / "plugins"
    official = plugins / f"resource-docker-v{DOCKER_VERSION}"
    if (official / DOCKER_FILE).exists() and not official.with_name(f"{official.name}.partial").exists():
        return {}
    built = DOCKER_PROVIDER.cached()
    return _files(built) if built.exists() else None


class _Maker:
    """Downloads and builds what is missing for `ensure`; `scratch` is a folder that the caller removes."""

    def __init__(self, steps: Steps, scratch: Path) -> None:
        self._steps = steps
        self._scratch = scratch
        self._url = os.environ.get("PULUMI_DOWNLOAD_URL", DOWNLOAD_URL).rstrip("/")
        self._unreachable = ""

    def cli(self) -> dict[str, Path]:
        """Download the CLI with its language host, or build both. Raises SetupError."""

        def unpack(archive: Path, _: Step) -> None:
            with _made_whole(_downloaded_cli()) as folder, tarfile.open(archive) as content:
                for name in CLI_FILES:
                    file = content.extractfile(f"pulumi/{name}")
                    if file is None:
                        raise tarfile.ReadError(f"{archive.name}: {name} is not a file")
                    _write_program(file.read(), folder / name)

        system, processor = _platform()
        try:
            self._download(
                CLI.title,
                f"sdk/pulumi-v{CLI_VERSION}-{system}-{processor.replace('amd64', 'x64')}.tar.gz",
                f"sdk/pulumi-{CLI_VERSION}-checksums.txt",
                unpack,
            )
        except DownloadError as error:
            return _files(self._build(CLI, error), self._build(LANGUAGE_HOST, error))
        return _files(_downloaded_cli())

    def docker_provider(self, pulumi: Path) -> dict[str, Path]:
        """Have `pulumi` install the official Docker provider, or build one. Raises SetupError."""

        def install(archive: Path, step: Step) -> None:
            plugin = ("resource", "docker", DOCKER_VERSION)
            step.run([str(pulumi), "plugin", "install", *plugin, "--file", str(archive)])

        try:
            self._download(
                f"{DOCKER_PROVIDER.title} {DOCKER_VERSION}",
                f"plugins/pulumi-resource-docker-v{DOCKER_VERSION}-{'-'.join(_platform())}.tar.gz",
                f"plugins/pulumi-docker_{DOCKER_VERSION}_checksums.txt",
                install,
            )
        except DownloadError as error:
            return _files(self._build(DOCKER_PROVIDER, error))
        return {}

    def _download(self, title: str, archive: str, checksums: str, install: Callable[[Path, Step], None]) -> None:
        """Fetch an archive, verify it and have it installed. Raises DownloadError."""
        if self._unreachable:
            raise DownloadError(self._unreachable)
        target = self._scratch / Path(archive).name
        try:
            with self._steps.step(f"{title}: download") as step:
                expected = self._checksum(checksums, target.name)
                fetch(f"{self._url}/{archive}", target, expected, step)
                install(target, step)
        except (DownloadError, CommandError, tarfile.TarError, KeyError) as error:
            self._steps.console.print(f"  {error}", markup=False)
            raise DownloadError(str(error)) from error

    def _checksum(self, listing: str, archive: str) -> str:
        """Return an archive's checksum from the release's list. Raises DownloadError."""
        url = f"{self._url}/{listing}"
        try:
            lines = read(url, within=REACH_SECONDS).decode(errors="replace")
        except UnreachableError as error:
            self._unreachable = str(error)
            raise
        listed = re.search(rf"^([0-9a-f]+) [ *](?:\./)?{re.escape(archive)}$", lines, re.MULTILINE)
        if listed is None or len(listed[1]) not in CHECKSUMS:
            raise DownloadError(f"{url}: {archive} is not listed")
        return listed[1]

    def _build(self, module: GoModule, download: DownloadError) -> Path:
        """Return the folder of the built program. Raises SetupError."""
        folder = module.cached()
        if folder.exists():
            return folder
        tried = [f"{module.instead}: not there", f"download: {download}"]
        free_gb = shutil.disk_usage(self._scratch).free / 1e9
        if free_gb < module.disk_gb:
            raise SetupError(
                f"{module.title} has to be built, which needs {module.disk_gb} GB of disk for a few minutes, and "
                f"{_cache()} has {free_gb:.1f} GB free",
                tried=tried,
                fix="free some room there, or set XDG_CACHE_HOME to a folder on a larger disk",
            )
        try:
            with self._steps.step(f"{module.title}: build with Go") as step, _made_whole(folder) as making:
                self._go_build(step, module, making)
        except (CommandError, FileNotFoundError) as error:
            needed = re.findall(r"^go (\S+)", (module.folder / "go.mod").read_text(), re.MULTILINE)[0]
            raise SetupError(
                f"{module.title} could be neither found nor downloaded nor built",
                tried=[*tried, f"build: {error}"],
                fix=f"let this machine reach {self._url}, or a mirror of it that PULUMI_DOWNLOAD_URL names; or "
                f"install Go {needed} or newer from https://go.dev/dl (Go 1.21 or newer fetches that itself "
                "unless GOTOOLCHAIN forbids it) and check that the Go module proxy answers; or install "
                f"{module.instead}",
            ) from error
        return folder

    def _go_build(self, step: Step, module: GoModule, making: Path) -> None:
        """Build into the folder `making`. Raises CommandError."""
        caches = {name: str(self._scratch / name) for name in ("GOCACHE", "GOMODCACHE", "GOPATH", "GOTMPDIR")}
        Path(caches["GOTMPDIR"]).mkdir(exist_ok=True)
        system, processor = _platform()
        environment = {
            **os.environ,
            **caches,
            "GOOS": system,
            "GOARCH": processor,
            "CGO_ENABLED": "0",  # so that no C compiler is needed
            "GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -modcacherw",  # so that the caches can be removed
            "GOWORK": "off",
        }

        def go(*arguments: str) -> str:
            return step.run(["go", *arguments], cwd=module.folder, env=environment)

        flags = ("-mod=readonly", "-buildvcs=false", "-trimpath", "-v", "-ldflags", f"-s -w {module.linker_flags}")
        go("build", *flags, "-o", str(making / module.program), module.package)
        if module.scripts:
            sdk = go("list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "github.com/pulumi/pulumi/sdk/v3")
            for script in module.scripts:
                source = Path(sdk.splitlines()[-1]) / script
                _write_program(source.read_bytes(), making / source.name)


def _write_program(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    path.chmod(0o755)


def _link_folder(files: dict[str, Path]) -> Path:
    key = hashlib.sha256(repr(sorted((name, str(path)) for name, path in files.items())).encode()).hexdigest()
    return _cache() / f"bin-{key[:16]}"


def _linked(files: dict[str, Path]) -> Path:
    """Return a folder that contains exactly these files under these names."""
    folder = _link_folder(files)
    if not folder.exists():
        with _made_whole(folder) as making:
            for name, path in files.items():
                # The CLI and its language host look for their other files beside their real paths, not beside links.
                # Files of the cache get there as hard links; an installed CLI has all of them beside it.
                link = os.link if _cache() in path.parents else os.symlink
                link(path, making / name)
    return folder


@contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill. It is named `folder` if the block succeeds, and removed otherwise."""
    making = Path(tempfile.mkdtemp(prefix="making-", dir=_cache()))
    try:
        yield making
        for path in making.iterdir():  # so that a power cut cannot leave the name with empty files
            with path.open("rb") as file:
                os.fsync(file.fileno())
        making.rename(folder)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


@contextmanager
def _scratch(steps: Steps) -> Iterator[Path]:
    """Let one run at a time build tools, in a folder that is removed afterwards, however the run ends."""
    with (
        steps.step("Pulumi's tools") as step,
        operating_system.exclusive("tools", step),
        operating_system.terminable(),
    ):
        for left in _cache().glob("making-*"):  # by a killed run
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="making-", dir=_cache()))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _downloaded_cli() -> Path:
    return _cache() / f"pulumi-{CLI_VERSION}-{'-'.join(_platform())}"


def _files(*folders: Path) -> dict[str, Path]:
    return {path.name: path for folder in folders for path in folder.iterdir()}


def _platform() -> tuple[str, str]:
    """Return the operating system and the processor as Go names them."""
    processor = os.uname().machine
    return os.uname().sysname.lower(), {"x86_64": "amd64", "aarch64": "arm64"}.get(processor, processor)


def _cache() -> Path:
    folder = operating_system.CACHE / "tools"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()
