"""The labels by which what a stack has on an engine is found."""

from __future__ import annotations

LABEL = "llm-infrastructure"
