"""The Python modules of `litellm/`, as a container gets them."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = "/opt/llm-gateway"
"""Their folder in the container. Not /app: the official image has LiteLLM's sources there, and would import those."""
RUN = f"{FOLDER}/run.py"
"""Runs one of them: `python3 RUN NAME ARGS…`."""
SCHEMA = f"{FOLDER}/schema.py"
"""The program that runs in its own container."""

_SOURCE = Path(__file__).parent.parent / "litellm"
_MODULES = _SOURCE / "modules.txt"


def files() -> dict[str, Path]:
    """The files that a replica needs, by path: `run.py`, and all other modules in one text, which it reads.

    That text is written to this clone, if it is not there.
    """
    modules = sorted(file for file in _SOURCE.glob("*.py") if f"{FOLDER}/{file.name}" not in {RUN, SCHEMA})
    text = "".join(f"#: {it.name}\n{_read(it.name)}" for it in modules)
    if not _MODULES.exists() or _read(_MODULES.name) != text:
        written = _MODULES.with_suffix(f".{os.getpid()}")
        written.write_text(text, encoding="utf-8")
        written.replace(_MODULES)  # at once: another `up` of this clone may read it
    return {RUN: _SOURCE / "run.py", f"{FOLDER}/{_MODULES.name}": _MODULES}


def schema() -> dict[str, str]:
    """The program that migrates LiteLLM's database to a release, by path."""
    return {SCHEMA: _read("schema.py")}


def _read(name: str) -> str:
    return (_SOURCE / name).read_text(encoding="utf-8")
