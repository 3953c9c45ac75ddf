"""The project for users of uv."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.stack_config import PROJECT
from toolchain.maintenance.locks import LOCK, constraints

UV = str(Path(sys.executable).with_name("uv"))


def test_uv_takes_the_versions_of_the_lock() -> None:
    assert constraints() in (PROJECT / "pyproject.toml").read_text(encoding="utf-8"), "make locks"


def test_a_clone_works_by_uv_alone(tmp_path: Path) -> None:
    """With the locked packages, including what `pulumi up` and the tests need; git sees no change."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", PROJECT, clone], check=True)
    environment = {**os.environ, "UV_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("VIRTUAL_ENV", None)

    def run(*command: str) -> str:
        return subprocess.run(
            command, cwd=clone, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    run(UV, "sync", "--quiet", "--python", sys.executable)
    installed = set(run(UV, "pip", "freeze", "--exclude-editable").split())
    locked = set(re.findall(r"^[\w.-]+==[^\s;]+", LOCK.read_text(encoding="utf-8"), re.MULTILINE))
    assert installed <= locked
    assert {each.partition("==")[0] for each in installed} >= {"pulumi", "pulumi-docker", "docker", "pytest"}
    assert "llmctl chat" in run(UV, "run", "llmctl", "--help")
    assert run("git", "status", "--porcelain") == ""
