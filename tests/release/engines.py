"""The programs of engines other than this machine's: of other Debian releases, and built from the Go module proxy."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from toolchain import mirrors
from toolchain.operating_system import CACHE, exclusive
from toolchain.progress import Steps

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ("docker.io", "containerd")
"""Not runc: that of a newer Debian asks for a newer C library, and any runc will do."""
MOBY = "github.com/moby/moby/v2"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine, and the store of images that it begins with."""

    debian: str = ""
    """The Debian whose packages it is of; none for this machine's own."""
    moby: str = ""
    """The version of the Go module that it is built from, beside the containerd of that Debian."""
    api: str
    """The versions of the API that it takes, as `make up` says them."""
    containerd_store: bool = False
    options: tuple[str, ...] = ()
    """dockerd's own."""
    variables: tuple[tuple[str, str], ...] = ()
    """Of its environment."""

    def programs(self) -> list[Path]:
        """The folders to put in front of PATH."""
        folders = [_of_debian(self.debian)] if self.debian else []
        return [
            *([_built(self.moby)] if self.moby else []),
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
    "newest": Engine(debian="testing", moby="v2.0.0-beta.24", api="1.40 to 1.56", containerd_store=True),
}
"""Engine 29.0 to 29.2 take no API before 1.44; the module's beta of 2025-10-31 is 29.0's last but for its name."""


@cache
def _of_debian(suite: str) -> Path:
    """The newest packages of a release of Debian, unpacked and not installed, from the mirrors of this machine."""
    with Steps() as steps, steps.step(f"Get the engine of Debian {suite}") as step, exclusive("engines", step):
        kept = CACHE / "engines" / suite
        apt = _apt(kept / "apt", suite, mirrors.package_sources(mirrors.index_targets(step), suite))
        step.run([*apt, "update"])
        with TemporaryDirectory() as folder:
            step.run([*apt, "download", *PACKAGES], cwd=Path(folder))
            packages = sorted(Path(folder).iterdir())
            target = kept / "_".join(package.stem for package in packages)
            if not target.exists():
                making = target.with_suffix(".making")
                shutil.rmtree(making, ignore_errors=True)
                for package in packages:
                    step.run(["dpkg-deb", "--extract", str(package), str(making)])
                making.rename(target)
    return target / "usr"


def _apt(folder: Path, suite: str, sources: list[str]) -> list[str]:
    """An apt that knows one release, and leaves this machine's alone."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    of_suite = [source.replace("deb ", f"deb [signed-by={KEYS}] ") for source in sources if f" {suite} " in source]
    (folder / "sources.list").write_text("\n".join(of_suite[:1]) + "\n")
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Acquire::Languages": "none",
    }
    return ["apt-get", "--quiet", *(f"--option={name}={value}" for name, value in settings.items())]


@cache
def _built(version: str) -> Path:
    """An engine built from the Go module proxy, which takes minutes once."""
    with Steps() as steps, steps.step(f"Build {MOBY} {version}") as step, exclusive("engines", step):
        folder = CACHE / "engines" / f"moby-{version}"
        if not folder.exists():
            making = folder.with_suffix(".making")
            making.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=CACHE) as caches:
                places = {name: f"{caches}/{name}" for name in ("GOCACHE", "GOMODCACHE", "GOTMPDIR")}
                Path(places["GOTMPDIR"]).mkdir()
                environment = {**os.environ, **places, "CGO_ENABLED": "0", "GOFLAGS": "-modcacherw"}
                told = step.run(["go", "mod", "download", "-json", f"{MOBY}@{version}"], env=environment)
                source = json.loads(told[told.index("{") :])["Dir"]
                name = f"{MOBY}/dockerversion.Version={version.removeprefix('v')}"
                flags = ["-trimpath", "-v", f"-ldflags=-s -w -X {name}"]
                build = ["go", "build", *flags, "-o", str(making), "./cmd/dockerd", "./cmd/docker-proxy"]
                step.run(build, cwd=Path(source), env=environment)
            making.rename(folder)
    return folder
