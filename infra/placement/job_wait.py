"""How the program waits for a job, on one host and on a Swarm alike."""

from __future__ import annotations

from infra.deploy_step import say

LONGEST_SECONDS = 3600
"""How long a job may take."""
SILENT_SECONDS = (15, 60)
"""Seconds until the first message about a running job, and between the later ones."""


class JobError(Exception):
    """A job did not end, or ended with an exit code other than 0. The message has its last lines."""


class Progress:
    """Reports from time to time that a job is still running. `look` is the command that shows its log."""

    def __init__(self, name: str, look: str) -> None:
        self._name, self._look = name, look
        self._next: float
        self._next, self._later = SILENT_SECONDS

    def tell(self, seconds: float) -> None:
        """Report, if it is time to. `seconds` is how long the program has waited for the job."""
        if seconds >= self._next:
            self._next = seconds + self._later
            say(
                f"{self._name} has been running for {seconds:.0f} s, and may take {LONGEST_SECONDS // 60} "
                f"minutes: {self._look}"
            )
