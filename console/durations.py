"""How long a period of LiteLLM's is, in words that each release reads alike."""

from __future__ import annotations

import re

DURATION = re.compile(r"[1-9]\d{0,5}[smhd]|1mo", re.ASCII)
