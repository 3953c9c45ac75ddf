"""Operators' requests: those that came through the edge's port for LiteLLM's page and administration.

The edge marks them (edge/admin.cfg) with the master key, and removes such a mark from callers' requests. LiteLLM
answers them by itself: its own login and keys decide who may do what.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

from answers import Refusal

if TYPE_CHECKING:
    from keys import Keys

MARK, HOST = b"x-llm-gateway-admin", b"x-llm-gateway-host"
FORBIDDEN = 403


def is_operators(scope: dict[str, Any], keys: Keys | None) -> bool:
    """Whether a request came in through that port. Its headers are then as the browser sent them.

    Raises Refusal for a mark that is not the edge's. During a rotation there is one for each generation's replicas.
    """
    marks = [value for name, value in scope["headers"] if name == MARK]
    if not marks:
        return False
    own = keys.master_key.encode() if keys else b""
    if not own or not any(hmac.compare_digest(mark, own) for mark in marks):
        raise Refusal("The request is not the edge's.", code="forbidden", status=FORBIDDEN)
    # LiteLLM builds the addresses of its redirects from the host name of the request.
    host = dict(scope["headers"]).get(HOST)
    scope["headers"] = [
        (name, host if name == b"host" and host else value)
        for name, value in scope["headers"]
        if name not in {MARK, HOST}
    ]
    return True
