"""What is run before a release, and takes too long for each commit."""

from __future__ import annotations

from tests.drills.conftest import _pulumi_tools

__all__ = ["_pulumi_tools"]
