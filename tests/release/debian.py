"""Packages of other releases of Debian, unpacked and not installed, from the mirrors of this machine."""

from __future__ import annotations

import hashlib
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from toolchain import mirrors
from toolchain.operating_system import CACHE, exclusive
from toolchain.progress import Steps

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


@cache
def unpacked(suite: str, *packages: str, dependencies: bool = False) -> Path:
    """The newest of some packages, with `dependencies` also all that they need: the folder that would be /usr."""
    with (
        Steps() as steps,
        steps.step(f"Get {' and '.join(packages)} of Debian {suite}") as step,
        exclusive("debian", step),
    ):
        kept = CACHE / "debian" / suite
        apt = _apt(kept / "apt", suite, mirrors.package_sources(mirrors.index_targets(step), suite))
        step.run([*apt, "update"])
        with TemporaryDirectory() as folder:
            if dependencies:
                (Path(folder) / "partial").mkdir()
                options = ["--yes", "--download-only", "--no-install-recommends"]
                step.run([*apt, "install", *options, f"--option=Dir::Cache::archives={folder}", *packages])
            else:
                step.run([*apt, "download", *packages], cwd=Path(folder))
            files = sorted(Path(folder).glob("*.deb"))
            digest = hashlib.sha256("\n".join(file.name for file in files).encode()).hexdigest()
            target = kept / f"{packages[0]}-{digest[:12]}"
            if not target.exists():
                making = kept / f"{target.name}.making"
                shutil.rmtree(making, ignore_errors=True)
                for file in files:
                    step.run(["dpkg-deb", "--extract", str(file), str(making)])
                making.rename(target)
    return target / "usr"


def _apt(folder: Path, suite: str, sources: list[str]) -> list[str]:
    """An apt that knows one release and no installed package, and leaves this machine's alone."""
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
