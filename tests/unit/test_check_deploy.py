"""`make check-deploy`: what it needs itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from pathlib import Path


def test_without_a_docker_command_that_alone_is_said(tmp_path: Path) -> None:
    """In one line, and no check is run that would fail for want of it."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/deploy", "--stack", "nowhere"],
        cwd=PROJECT,
        env={**os.environ, "PATH": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    [error] = [line for line in (result.stdout + result.stderr).splitlines() if "docker" in line]
    assert error.startswith("ERROR: there is no docker command on PATH")
