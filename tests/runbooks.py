"""Follows runbooks as their readers do: each command, in order, typed in a stack's project."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.documents import RUNBOOKS, scripts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stacks import Deployment

OF_THE_SHELL = ("LITELLM_URL", "LITELLM_API_KEY", "DATABASE_URL", "LITELLM_DATABASE_URL", "STACK")
"""An operator has these from `.env`, or not at all."""


class Shell:
    """A shell in a stack's project, set up as the list of runbooks says."""

    def __init__(self, deployment: Deployment, **variables: str) -> None:
        self._folder = deployment.folder
        inherited = {key: value for key, value in os.environ.items() if key not in OF_THE_SHELL}
        self.environment = {
            **inherited,
            **deployment.environment,
            "PULUMI_STACK": deployment.name,
            "PULUMI_SKIP_CONFIRMATIONS": "true",
            # The copy of the project has a virtual environment already, which is not to be recreated for its place.
            "PYTHON": "true",
            **variables,
        }

    def type(self, script: str) -> tuple[int, str]:
        """Type commands, up to the first that fails; return the exit code and the output."""
        done = subprocess.run(
            ["sh", "-e"],
            input=script,
            cwd=self._folder,
            env=self.environment,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(f"{script}{done.stdout}")
        return done.returncode, done.stdout


class Runbook(Shell):
    """The remaining commands of a runbook."""

    def __init__(self, name: str, deployment: Deployment, **variables: str) -> None:
        super().__init__(deployment, **variables)
        self.left = scripts(RUNBOOKS / f"{name}.md")

    def run(self, words: str) -> str:
        """Type the next block, which must contain `words`, and return its output; it must succeed."""
        script = self.left.pop(0)
        assert words in script
        code, printed = self.type(script)
        assert code == 0, f"{script}\nends with {code}"
        return printed


@contextmanager
def runbook(name: str, deployment: Deployment, **variables: str) -> Iterator[Runbook]:
    """A runbook, with its variables; every block of it must be typed."""
    opened = Runbook(name, deployment, **variables)
    yield opened
    assert opened.left == [], "not all of the runbook was run"
