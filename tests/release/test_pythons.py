"""The project with each Python that it supports, if available: `make test-pythons`, before each release.

docs/machines.md has what was seen, and when.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.release.debian import unpacked
from tests.release.releases import repository
from toolchain.environment import OLDEST_PYTHON

OF_DEBIAN = ("3.14", "3.15")
"""The Pythons of Debian testing, for machines with older releases."""


def pythons() -> dict[str, str]:
    """The newest of each minor version on PATH or from pyenv, by its version, without the one that runs this."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    on_path = (shutil.which(f"python3.{minor}") for minor in range(OLDEST_PYTHON[1], 100))
    found: dict[tuple[int, ...], str] = {}
    for program in (*filter(None, on_path), *map(str, pyenv.glob("versions/*/bin/python3"))):
        said = subprocess.run([program, "--version"], check=False, capture_output=True, text=True).stdout
        if match := re.fullmatch(r"Python (\d+)\.(\d+)\.(\d+)\s*", said):  # a pyenv shim may have nothing to run
            found[tuple(map(int, match.groups()))] = program
    newest = {version[:2]: version for version in sorted(found)}
    newest.pop(sys.version_info[:2], None)
    return {".".join(map(str, it)): found[it] for minor, it in newest.items() if minor >= OLDEST_PYTHON}


def of_debian(minor: str) -> str:
    """A Python from Debian testing, as a program that starts it with the C library that it needs."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("this Python is a package of Debian")
    usr = unpacked("testing", f"python{minor}-venv", dependencies=True)
    for file in usr.glob("lib/python3*/_sysconfig*"):  # they say where the pip for new environments is
        file.write_text(re.sub(r"(?<=[\"'])/usr(?=/share/python-wheels)", str(usr), file.read_text()))
    [loader] = usr.glob("lib/*/ld-linux-*.so.*")
    program = usr / "bin/python3"
    program.write_text(
        f'#!/bin/sh\nexec {loader} --argv0 "$0" --library-path {loader.parent} {usr}/bin/python{minor} "$@"\n'
    )
    program.chmod(0o755)
    return str(program)


PYTHONS = pythons()


@pytest.mark.parametrize("version", [*PYTHONS, *OF_DEBIAN])
@pytest.mark.timeout(3600)  # an environment is installed
def test_the_unit_tests_pass(version: str, tmp_path: Path) -> None:
    """In an environment that `make environment` makes, whose interpreter is the one that was named."""
    python = PYTHONS.get(version) or of_debian(version)
    clone = repository(tmp_path / "clone")
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}

    def run(*command: str) -> str:
        done = subprocess.run(
            command,
            cwd=clone,
            env=environment,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(done.stdout)
        assert done.returncode == 0, done.stdout
        return done.stdout

    run("make", "environment", f"PYTHON={python}")
    assert version in run(".venv/bin/python", "--version")
    assert " passed" in run(".venv/bin/pytest", "--quiet", "-p", "no:cacheprovider", "tests/unit")
    assert version in run(".venv/bin/python", "--version")
