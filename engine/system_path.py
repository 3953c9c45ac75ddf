"""Finds programs of the system, whose folders may be missing from root's PATH."""

from __future__ import annotations

import os
import shutil


def environment(**more: str) -> dict[str, str]:
    """The environment for programs of the system, whose folders may be missing from root's PATH, as after `su`."""
    return {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", **more}


def which(program: str) -> str | None:
    """Where a program of the system is."""
    return shutil.which(program, path=environment()["PATH"])
