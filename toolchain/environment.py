"""Make the project's virtual environment, from `requirements.lock` and nothing else.

Runs before anything is installed, so it uses the standard library only: `python3 toolchain/environment.py`.
It is left alone while the lock file, the project file and the interpreter are the ones it was made from.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENT = PROJECT / ".venv"
OLDEST_PYTHON = (3, 11)


def fingerprint() -> str:
    """What the environment is made from, so that a change of any of it makes it anew."""
    import tomllib  # noqa: PLC0415 -- an older Python lacks it, and is to be told so by main

    digest = hashlib.sha256(sys.version.encode())
    digest.update(str(ENVIRONMENT).encode())
    digest.update((PROJECT / "requirements.lock").read_bytes())
    digest.update(repr(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]).encode())
    return digest.hexdigest()


def run(*command: str | Path) -> None:
    """Run a step of the set-up; when it fails, show what it printed and end."""
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{result.stdout}{result.stderr}\nThe Python environment could not be made: {advice(result)}")


def advice(result: subprocess.CompletedProcess[str]) -> str:
    """Name the next step for the ways in which this is known to fail."""
    output = result.stdout + result.stderr
    if "ensurepip" in output:
        return "Python's venv module is missing. On Debian and Ubuntu: apt-get install python3-venv"
    if "No matching distribution" in output or "Could not find a version" in output:
        return "the package index did not have a locked package. Check `pip config list` and the network."
    return "see the lines above. A package index must be reachable; `pip config list` shows which."


def main() -> None:
    """Make the environment unless it stands already."""
    if sys.version_info < OLDEST_PYTHON:
        wanted, found = (".".join(map(str, version[:2])) for version in (OLDEST_PYTHON, sys.version_info))
        sys.exit(f"Python {wanted} or newer is needed and python3 is {found}. Try: make PYTHON=python{wanted} up")
    with (PROJECT / "pyproject.toml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = ENVIRONMENT / "made-from"
        if stamp.exists() and stamp.read_text() == fingerprint():
            return
        started = time.monotonic()
        print("… Python environment", file=sys.stderr, flush=True)
        # Not removed before that: where this environment is active, its own interpreter runs this.
        run(sys.executable, "-m", "venv", "--clear", ENVIRONMENT)
        pip = (ENVIRONMENT / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        run(*pip, "--require-hashes", "--requirement", PROJECT / "requirements.lock")
        run(*pip, "--no-deps", "--no-build-isolation", "--editable", PROJECT)
        stamp.write_text(fingerprint())
        print(f"✓ Python environment {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
