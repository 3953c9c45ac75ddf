"""Runbooks as their readers follow them: each command, in order, typed in a stack's project."""

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
"""Anyone who types has them from `.env`, or not at all."""


class Shell:
    """A shell in a stack's project, as the list of runbooks has anyone who types set it up."""

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
        """Type commands, up to the first that fails; return the exit code and what they print."""
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
    """The commands of a runbook that are still to be typed."""

    def __init__(self, name: str, deployment: Deployment, **variables: str) -> None:
        super().__init__(deployment, **variables)
        self.left = scripts(RUNBOOKS / f"{name}.md")

    def run(self, words: str) -> str:
        """Type the next block, which has `words` in it, and return what it prints; it has to succeed."""
        script = self.left.pop(0)
        assert words in script
        code, printed = self.type(script)
        assert code == 0, f"{script}\nends with {code}"
        return printed


@contextmanager
def runbook(name: str, deployment: Deployment, **variables: str) -> Iterator[Runbook]:
    """A runbook of which every block has to be typed, with the variables that it speaks of."""
    opened = Runbook(name, deployment, **variables)
    yield opened
    assert opened.left == [], "not all of the runbook was run"
