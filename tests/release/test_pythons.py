"""The project with each Python of this machine that it takes: `make test-pythons`, before each release."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.release.releases import repository
from toolchain.environment import OLDEST_PYTHON


def pythons() -> dict[str, str]:
    """The newest of each minor version on PATH or of pyenv, by its version; not the one that runs this."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    on_path = (shutil.which(f"python3.{minor}") for minor in range(OLDEST_PYTHON[1], 100))
    found: dict[tuple[int, ...], str] = {}
    for program in (*filter(None, on_path), *map(str, pyenv.glob("versions/*/bin/python3"))):
        said = subprocess.run([program, "--version"], check=False, capture_output=True, text=True).stdout
        if match := re.fullmatch(r"Python (\d+)\.(\d+)\.(\d+)\s*", said):  # a shim of pyenv's may have nothing to run
            found[tuple(map(int, match.groups()))] = program
    newest = {version[:2]: version for version in sorted(found)}
    newest.pop(sys.version_info[:2], None)
    return {".".join(map(str, it)): found[it] for minor, it in newest.items() if minor >= OLDEST_PYTHON}


PYTHONS = pythons()


@pytest.mark.skipif(not PYTHONS, reason=f"the only Python here that is new enough is {sys.version.split()[0]}")
@pytest.mark.parametrize("version", PYTHONS or [""])
@pytest.mark.timeout(3600)  # an environment is installed
def test_the_unit_tests_pass(version: str, tmp_path: Path) -> None:
    """In an environment that `make environment` makes, whose interpreter is the one that was named."""
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

    run("make", "environment", f"PYTHON={PYTHONS[version]}")
    assert version in run(".venv/bin/python", "--version")
    assert " passed" in run(".venv/bin/pytest", "--quiet", "-p", "no:cacheprovider", "tests/unit")
    assert version in run(".venv/bin/python", "--version")
