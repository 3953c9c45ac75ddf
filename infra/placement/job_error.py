"""Why a job did not do what it was for, on one host or on a Swarm."""

LONGEST_SECONDS = 3600
"""How long a job may take."""


class JobError(Exception):
    """What ran once ended with another code than 0, or did not end. The message has its last lines."""
