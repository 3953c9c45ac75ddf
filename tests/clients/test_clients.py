"""Each client as its users run it, with its own packages, against a stack.

A folder here is a client: a program, and the versions that it was tried with. Not part of `make test`, as the
packages are downloaded. GATEWAY_URL, GATEWAY_KEY and GATEWAY_RELEASE name a stack that is up, with the demo provider,
and its LiteLLM; without them the tests bring up one of their own for each release.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.stack_config import PROJECT
from tests.stacks import deployed, pulumi_tools, stand_in_for
from toolchain import recipes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stacks import Deployment

FOLDER = Path(__file__).parent
CLIENTS = sorted(program.name for program in FOLDER.iterdir() if program.is_dir() and program.name != "__pycache__")
PINNED = recipes.STAND_INS["litellm"]
SECONDS = 600
"""For its packages, most of it."""
COMMANDS = {
    "requirements.txt": (
        (sys.executable, "-m", "venv", "environment"),
        ("environment/bin/pip", "install", "--quiet", "--requirement", "requirements.txt"),
        ("environment/bin/python", "main.py"),
    ),
    "package.json": (("npm", "ci", "--no-audit", "--no-fund"), ("node", "main.js")),
    "pom.xml": (("mvn", "--quiet", "--batch-mode", "compile", "exec:java"),),
    "go.mod": (("go", "run", "."),),
}
"""What installs a client's packages and runs its program, by the file that names them."""


def table() -> dict[str, tuple[str, set[str]]]:
    """The clients of docs/clients.md with their version, and what each is tried with."""
    text = (PROJECT / "docs/clients.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .*\(`([\w-]+)`\) \| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE)
    return {name: (version, set(re.split(r",\s+", operations))) for name, version, operations in rows}


@pytest.fixture(scope="module", params=[PINNED, *recipes.UPGRADES], ids=lambda recipe: recipe.version)
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where the gateway is, a key of it, and its LiteLLM, as environment variables."""
    recipe: recipes.Recipe = request.param
    if "GATEWAY_URL" in os.environ:
        if os.environ["GATEWAY_RELEASE"] != recipe.version:
            pytest.skip("the stack that is named runs another release")
        yield {}
        return

    def configure(made: Deployment) -> None:
        if recipe != PINNED:
            made.set(litellmImage=stand_in_for(recipe, made.engine, made.folder / ".images.yaml"))

    with pulumi_tools(), deployed(tmp_path_factory.mktemp("stack"), configure) as made:
        yield {
            "GATEWAY_URL": made.outputs["litellmUrl"],
            "GATEWAY_KEY": made.outputs["litellmApiKey"],
            "GATEWAY_RELEASE": recipe.version,
        }


def test_the_documents_list_each_client() -> None:
    """With the version that is tested."""
    assert sorted(table()) == CLIENTS
    for name, (version, _) in table().items():
        files = [file.read_text() for it in COMMANDS if (file := FOLDER / name / it).exists()]
        assert files, name
        assert version in files[0], name


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_works_as_it_comes(client: str, gateway: dict[str, str], tmp_path: Path) -> None:
    """Its program asserts the answers, and prints each operation that succeeded."""
    folder = shutil.copytree(FOLDER / client, tmp_path / client)
    commands = next(commands for file, commands in COMMANDS.items() if (folder / file).exists())
    if not shutil.which(commands[0][0]):
        pytest.skip(f"{commands[0][0]} is not installed")
    for command in commands:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **gateway},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    assert set(re.findall(r"^(?:\x1b\[0m)*([\w-]+) ok$", done.stdout, re.MULTILINE)) == table()[client][1]
