"""The Pulumi resources of the stack, one module a part; `stack.py` puts them together."""

from pathlib import Path

PROJECT = Path(__file__).parent.parent
"""The project's folder."""
