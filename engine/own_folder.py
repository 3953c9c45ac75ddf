"""The user's own folder, outside every clone."""

from __future__ import annotations

import os
from pathlib import Path


def own_folder() -> Path:
    """The folder for the state, the passphrase and LiteLLM's backups, where no setting names another place."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state").absolute() / "llm-infrastructure"


def litellm_backups(stack: str) -> Path:
    """The folder that an `up` saves LiteLLM's database in before it changes its schema."""
    return own_folder() / "backups" / stack
