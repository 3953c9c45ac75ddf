"""The project's virtual environment, without making one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain import environment

if TYPE_CHECKING:
    import pytest


def test_an_environment_that_is_active_can_be_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own interpreter, which is what `python3` is then, is still there to be run."""
    interpreter = tmp_path / ".venv/bin/python"
    interpreter.parent.mkdir(parents=True)
    interpreter.touch()
    commands: list[tuple[object, ...]] = []

    def run(*command: object) -> None:
        assert Path(str(command[0])).exists()
        commands.append(command)

    monkeypatch.setattr(environment, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(environment, "run", run)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    environment.main()
    assert commands[0] == (str(interpreter), "-m", "venv", "--clear", tmp_path / ".venv")
    assert (tmp_path / ".venv/made-from").read_text() == environment.fingerprint()
