"""Durations in LiteLLM's notation, limited to what every release reads the same."""

from __future__ import annotations

import re

DURATION = re.compile(r"[1-9]\d{0,5}[smhd]|1mo", re.ASCII)
