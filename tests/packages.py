"""Programs from Debian's packages, without installing them, because that would start a service."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from toolchain.operating_system import CACHE, exclusive, update_package_lists
from toolchain.progress import CommandError

if TYPE_CHECKING:
    from toolchain.progress import Steps


def unpacked(steps: Steps, file: str, *packages: str) -> Path:
    """A folder with the files of `packages`, one of which is `file`, without their dependencies."""
    folder = CACHE / packages[0]
    with (
        steps.step(f"Get {packages[0]}") as step,
        exclusive(packages[0], step),
        TemporaryDirectory() as download,
    ):
        if not (folder / file).exists():
            fetch = ["apt-get", "--quiet", "download", *packages]
            try:
                step.run(fetch, cwd=Path(download))
            except CommandError:  # as on a machine whose lists were never fetched, or are old
                update_package_lists(step)
                step.run(fetch, cwd=Path(download))
            for package in Path(download).iterdir():
                step.run(["dpkg-deb", "--extract", str(package), str(folder)])
    return folder
