"""Whether a database accepts a login."""

from __future__ import annotations

from typing import Any

import psycopg


def opens(url: str, **changes: Any) -> bool:
    """Whether a database accepts a password; any other error is raised."""
    try:
        psycopg.connect(url, connect_timeout=10, **changes).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error) or "not permitted to log in" in str(error):
            return False
        raise
    return True


def answers(url: str) -> bool:
    """Whether a database can be used yet."""
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
