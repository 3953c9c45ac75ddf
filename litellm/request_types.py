"""OpenAI's SDK looks up the types of a request's fields once for each kind of request, not for each request.

The SDK of LiteLLM 1.55.0 looks them up for each: 1 ms of CPU time. Newer releases of it keep them too.
"""

from __future__ import annotations

import functools
import importlib

TRANSFORM = "openai._utils._transform"


def install() -> None:
    """Have the SDK keep what it has looked up."""
    transform = importlib.import_module(TRANSFORM)
    if not hasattr(transform.get_type_hints, "cache_info"):
        transform.get_type_hints = functools.cache(transform.get_type_hints)
