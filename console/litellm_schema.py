"""Prints the migrations that the LiteLLM of this image has, as a JSON list; null for a release that has none.

`console/litellm_check.py` and the checks of a deployed stack run this text in a replica's container.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path


def migrations() -> list[str] | None:
    """The names, as Prisma records them in the database."""
    spec = importlib.util.find_spec("litellm_proxy_extras")
    if spec is None:
        return None
    folders = [Path(each, "migrations") for each in spec.submodule_search_locations or ()]
    return sorted(each.parent.name for folder in folders for each in folder.glob("*/migration.sql"))


if __name__ == "__main__":
    print(json.dumps(migrations()))
