"""How a job is waited for, on one host and on a Swarm alike."""

from __future__ import annotations

from infra.deploy_step import say

LONGEST_SECONDS = 3600
"""How long a job may take."""
SILENT_SECONDS = (15, 60)
"""How long nothing is said of a job that runs: at first, and then each time."""


class JobError(Exception):
    """A job ended with another code than 0, or did not end. The message has its last lines."""


class Progress:
    """Says from time to time that a job still runs. `look` is the command that shows its log."""

    def __init__(self, name: str, look: str) -> None:
        self._name, self._look = name, look
        self._next: float
        self._next, self._later = SILENT_SECONDS

    def tell(self, seconds: float) -> None:
        """Say it if it is time to. `seconds` is how long the job has been waited for."""
        if seconds >= self._next:
            self._next = seconds + self._later
            say(
                f"{self._name} has been running for {seconds:.0f} s, and may take {LONGEST_SECONDS // 60} "
                f"minutes: {self._look}"
            )
