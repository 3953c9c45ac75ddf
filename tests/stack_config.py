"""The stack config as the program receives it: Pulumi.yaml's defaults, a stack's file, and what a test changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parent.parent
PROJECT_NAME = "llm-infrastructure"
KEY = "sk-0123456789abcdefghijklmnopqrstuvwxyz"
OTHER_KEY = "sk-zyxwvutsrqponmlkjihgfedcba9876543210"


def project_file() -> dict[str, Any]:
    return dict(yaml.safe_load((PROJECT / "Pulumi.yaml").read_text()))


def raw_config(stack: str | None = None, **changes: object) -> dict[str, str]:
    """Every value as the string that Pulumi passes to the program; a change to None removes a key."""
    values: dict[str, object] = {
        key: spec["default"] for key, spec in project_file()["config"].items() if "default" in spec
    }
    if stack:
        own = yaml.safe_load((PROJECT / f"Pulumi.{stack}.yaml").read_text())["config"]
        values |= {key.removeprefix(f"{PROJECT_NAME}:"): value for key, value in own.items()}
    values |= changes
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
        if value is not None
    }
