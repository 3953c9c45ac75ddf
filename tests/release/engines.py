"""The programs of engines other than this machine's: of other Debian releases, and built from the Go module proxy."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.release.debian import unpacked
from toolchain.operating_system import CACHE, exclusive
from toolchain.progress import Steps

PACKAGES = ("docker.io", "containerd")
"""Not runc: a newer Debian's needs a newer C library."""
MOBY = "github.com/moby/moby/v2"
RUNC = "github.com/opencontainers/runc"
BUILDERS = ("go", "gcc", "pkg-config")
"""The programs that build an engine."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine, and the store of images that it begins with."""

    debian: str = ""
    """The Debian release of its packages; empty for this machine's own."""
    moby: str = ""
    """The version of the Go module that it is built from, beside the containerd of that Debian."""
    runc: str = ""
    """The version of the Go module that its runc is built from; none for this machine's own."""
    api: str
    """The versions of the API that it accepts, as `make up` prints them."""
    containerd_store: bool = False
    options: tuple[str, ...] = ()
    """dockerd's own."""
    variables: tuple[tuple[str, str], ...] = ()
    """Of its environment."""

    def programs(self) -> list[Path]:
        """The folders to put in front of PATH."""
        folders = [unpacked(self.debian, *PACKAGES)] if self.debian else []
        return [
            *([_moby(self.moby)] if self.moby else []),
            *([_runc(self.runc)] if self.runc else []),
            *(usr / name for usr in folders for name in ("bin", "sbin")),
        ]


ENGINES = {
    "Debian 12": Engine(api="1.12 to 1.41"),
    "Debian 13": Engine(debian="trixie", api="1.24 to 1.45"),
    "Debian testing": Engine(debian="testing", api="1.24 to 1.51"),
    "Debian testing, as 29.0": Engine(
        debian="testing",
        api="1.44 to 1.51",
        containerd_store=True,
        options=("--feature=containerd-snapshotter=true",),
        variables=(("DOCKER_MIN_API_VERSION", "1.44"),),
    ),
    "29.0": Engine(debian="testing", moby="v2.0.0-beta.1", api="1.44 to 1.52", containerd_store=True),
    "newest": Engine(
        debian="testing", moby="v2.0.0-beta.24", runc="v1.5.3", api="1.40 to 1.56", containerd_store=True
    ),
}
"""Engine 29.0 to 29.2 take no API before 1.44; the module's beta of 2025-10-31 is 29.0's last but for its name.

The newest gives each container a time namespace, which runc knows from 1.2 on.
"""


@cache
def _moby(version: str) -> Path:
    """An engine; building it takes minutes."""
    name = f"{MOBY}/dockerversion.Version={version.removeprefix('v')}"
    return _built(MOBY, version, f"-ldflags=-s -w -X {name}", "./cmd/dockerd", "./cmd/docker-proxy", CGO_ENABLED="0")


@cache
def _runc(version: str) -> Path:
    """A runc with seccomp, linked with a library that the oldest Debian of the table has too."""
    library = unpacked("bookworm", "libseccomp-dev")
    [described] = library.glob("lib/*/pkgconfig")
    flags = ("-mod=mod", "-tags=seccomp", f"-ldflags=-s -w -X main.version={version.removeprefix('v')}")
    places = {"PKG_CONFIG_PATH": str(described), "PKG_CONFIG_SYSROOT_DIR": str(library.parent)}
    return _built(RUNC, version, *flags, ".", CGO_ENABLED="1", **places)


def _built(module: str, version: str, *arguments: str, **variables: str) -> Path:
    """The folder of programs that `go build` makes of a module of the Go module proxy, once."""
    with Steps() as steps, steps.step(f"Build {module} {version}") as step, exclusive("engines", step):
        folder = CACHE / "engines" / f"{module.split('/')[2]}-{version}"
        if not folder.exists():
            making = folder.with_suffix(".making")
            making.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=CACHE) as caches:
                places = {name: f"{caches}/{name}" for name in ("GOCACHE", "GOMODCACHE", "GOTMPDIR")}
                Path(places["GOTMPDIR"]).mkdir()
                environment = {**os.environ, **places, "GOFLAGS": "-modcacherw", **variables}
                told = step.run(["go", "mod", "download", "-json", f"{module}@{version}"], env=environment)
                source = json.loads(told[told.index("{") :])["Dir"]
                build = ["go", "build", "-trimpath", "-v", "-o", str(making), *arguments]
                step.run(build, cwd=Path(source), env=environment)
            making.rename(folder)
    return folder
