"""LiteLLM's own server, in one process with what this project puts around it.

Usage: python3 run.py server LITELLM_ARGS…
"""

from __future__ import annotations

# ruff: noqa: E402
import gc

# Imported objects stay anyway: searching them for garbage takes 10 to 20 % of the start's CPU time.
gc.disable()

import logging
import os
import sys

import bedrock
import counters
import database
import deployments
import fetching
import guard
import request_types
import stream_endings
import streams
import token_counts
import translation_fixes
import transport
from litellm.proxy.proxy_cli import run_server


def main(*_: str) -> None:
    """Run it until it ends."""
    database.install()  # before LiteLLM's proxy is imported
    bedrock.install()
    counters.install()
    deployments.install()
    stream_endings.install()
    translation_fixes.install()
    fetching.install()
    request_types.install()
    token_counts.install()
    if streams.install(enabled=os.environ.get("LLM_GATEWAY_FAST_STREAMS") == "true"):
        transport.install()
    guard.install()  # the outermost, so the last
    # Or uvicorn, whose log LiteLLM configures as JSON, copies each message for a log that is off.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # Nor later: that would stop every request for 0.1 s, of 1.108.14 for 0.5 s.
    gc.freeze()
    gc.enable()
    sys.argv[0] = "litellm"
    run_server()
