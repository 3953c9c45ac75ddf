"""Has a LiteLLM with a database start without comparing the schema.

`infra/litellm_database.py` has made the schema before. LiteLLM compares it even if updates are off: it starts
Prisma's command line with the database's URL as an argument, which everybody on the host can read.
"""

from __future__ import annotations

import importlib.util


def install() -> None:
    """Do so where this LiteLLM has such a check."""
    if importlib.util.find_spec("litellm.proxy.db.check_migration"):
        from litellm.proxy.db import check_migration  # noqa: PLC0415 -- not there in every release

        check_migration.check_prisma_schema_diff = _skip


def _skip(*_: object, **__: object) -> None:
    """What takes the place of the comparison."""
