"""The labels on everything that a stack has on an engine."""

from __future__ import annotations

LABEL = "llm-infrastructure"
