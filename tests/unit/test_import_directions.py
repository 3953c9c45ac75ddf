"""Which package may import which: the project's packages form layers, and each imports only those below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BELOW: dict[str, set[str]] = {
    "app": set(),
    "console": {"app"},
    "engine": set(),
    "infra": {"app", "console", "engine"},
    # It documents what infra reads, and renews its tables; the program needs no tool that made it.
    "toolchain": {"app", "console", "engine", "infra"},
}
"""The project's own packages that each may import, at the top of a module or in a function."""
CLIENT = ("app", "app.aio", "app.migrations", "app.organizations", "app._client", "app._settings")
CONFIG = ("infra.settings", "infra.stack_config")
OPERATORS = {"console", "docker", "infra", "pulumi", "rich", "typer"}


def imported_by(module: Path) -> Iterator[str]:
    """The dotted names that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", BELOW)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    above = set(BELOW) - BELOW[package] - {package}
    modules = list((PROJECT / package).rglob("*.py"))
    assert len(modules) > 1
    wrong = {
        f"{module.relative_to(PROJECT)}: {name}"
        for module in modules
        for name in imported_by(module)
        if name.partition(".")[0] in above
    }
    assert wrong == set()


def test_the_client_loads_nothing_of_an_operator() -> None:
    """A backend that imports `app`, `app.aio`, the organizations or the migrations loads nothing else."""
    loaded = loaded_by(CLIENT)
    assert {"httpx2", "psycopg"} <= loaded
    assert OPERATORS & loaded == set()


def test_a_config_key_is_read_without_a_docker_client() -> None:
    """Nor is a part of the stack loaded by the settings that it is built from."""
    loaded = loaded_by(CONFIG)
    assert "pydantic" in loaded
    assert {"docker", "pulumi_docker", "requests", "rich", "toolchain"} & loaded == set()


def loaded_by(modules: Sequence[str]) -> set[str]:
    """The packages that an interpreter has loaded after it imported modules."""
    look = f"import {', '.join(modules)}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", look], cwd=PROJECT, check=True, capture_output=True, text=True)
    return set(done.stdout.split())
