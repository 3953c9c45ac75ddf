"""Has a LiteLLM with a database start without comparing the schema, and one without a database do without Prisma.

`infra/litellm_database.py` has made the schema before. LiteLLM compares it even if updates are off: it starts
Prisma's command line with the database's URL as an argument, which everybody on the host can read.

To import Prisma takes half a second of CPU time and 39 MiB. LiteLLM 1.55.0 does so for its first request, in order to
time queries, whether or not there is a database.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any


def install() -> None:
    """Do so, before LiteLLM's proxy is imported."""
    if os.environ.get("DATABASE_URL"):
        _replace("check_migration", "check_prisma_schema_diff", lambda *_, **__: None)
    else:
        _replace("log_db_metrics", "log_db_metrics", lambda function: function)


def _replace(module: str, name: str, function: Any) -> None:
    """Replace a function of LiteLLM's, in releases that have its module."""
    module = f"litellm.proxy.db.{module}"
    if importlib.util.find_spec(module):
        setattr(importlib.import_module(module), name, function)
