"""Who may import whom: the packages of the project form layers, and each knows only those below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BELOW: dict[str, set[str]] = {
    "app": set(),
    "console": {"app"},
}
"""The project's own packages that each may import, at the top of a module or in a function."""
CLIENT = ("app", "app.aio", "app.migrations", "app.organizations", "app._client", "app._settings")
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
    """A backend that imports `app`, either face, the organizations or the migrations, pays for that alone."""
    look = f"import {', '.join(CLIENT)}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", look], cwd=PROJECT, check=True, capture_output=True, text=True)
    assert {"httpx2", "psycopg"} <= set(loaded.stdout.split())
    assert OPERATORS & set(loaded.stdout.split()) == set()
