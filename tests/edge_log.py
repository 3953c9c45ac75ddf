"""The edge's access log. The engine gets a line after the caller has the answer: tests wait for those they need."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.stacks import Deployment


def edge_log(deployment: Deployment, since: float | None = None) -> list[dict[str, Any]]:
    """The lines about requests, since a time in seconds of the epoch if one is given."""
    log = deployment.container("edge").logs(since=since).decode()
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]
