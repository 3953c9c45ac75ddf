"""Make the project's virtual environment, from `requirements.lock` and nothing else.

Runs before anything is installed, so it uses the standard library only: `python3 toolchain/environment.py`. The
environment is kept while the lock file, the project file and the interpreter are the ones it was made from, and no
installed package is missing. Python 3.6 can parse this file, so that anyone whose Python is too old gets a clear
message.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENT = PROJECT / ".venv"
OLDEST_PYTHON = (3, 11)
LINES_SHOWN_ON_FAILURE = 20
LOCK_SECONDS = 0.2


def fingerprint() -> str:
    """A fingerprint of what the environment is made from: a change of any of it recreates the environment."""
    import tomllib  # noqa: PLC0415 -- an older Python does not have it, and is to be told so by main

    digest = hashlib.sha256(sys.version.encode())
    digest.update(str(ENVIRONMENT).encode())
    digest.update((PROJECT / "requirements.lock").read_bytes())
    digest.update(repr(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]).encode())
    return digest.hexdigest()


def stamp() -> Path:
    """The file that says what the environment was made from: a fingerprint, and a line for each package."""
    return ENVIRONMENT / "made-from"


def installed() -> "set[str]":
    """The packages in the environment, by name and version."""
    return {path.stem for path in ENVIRONMENT.glob("lib/python*/site-packages/*.dist-info")}


def is_whole() -> bool:
    """Whether the environment matches the present files, and has every package that was installed into it."""
    if not stamp().exists():
        return False
    made_from, *packages = stamp().read_text().splitlines()
    return made_from == fingerprint() and installed().issuperset(packages)


def run(*command: object) -> None:
    """Run a step of the set-up; if it fails, show the last lines that it printed and exit."""
    lines = []
    with subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    ) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            show(f"… Python environment: {line.strip()}")
    if process.returncode != 0:
        show("")
        said = "\n".join(lines[-LINES_SHOWN_ON_FAILURE:])
        sys.exit(f"{said}\n\nThe Python environment could not be created: {advice(said)}")


def show(doing: str) -> None:
    """On a terminal, replace the text of the current line with `doing`."""
    if sys.stderr.isatty():
        print(f"\r\033[K{doing[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)


def advice(output: str) -> str:
    """Name the next step for known failures."""
    if "ensurepip" in output:
        return "Python's venv module is missing. On Debian and Ubuntu: apt-get install python3-venv"
    if "after connection broken by" in output:
        return "the package index cannot be reached. See `pip config list`, HTTPS_PROXY and the network."
    if "No matching distribution" in output or "Could not find a version" in output:
        return "the package index does not have a locked package. Check `pip config list` and the network."
    return "see the lines above. A package index must be reachable; `pip config list` shows which."


def take(lock: "IO[str]", say: "Callable[[], None]") -> None:
    """Lock a file, and `say` so if it is locked already. It polls: a Ctrl-C just before a blocking call is lost."""
    said = False
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                say()
            said = True
            time.sleep(LOCK_SECONDS)


def main() -> None:
    """Make the environment, unless it exists already."""
    if sys.version_info < OLDEST_PYTHON:
        wanted, found = (".".join(map(str, version[:2])) for version in (OLDEST_PYTHON, sys.version_info))
        sys.exit(f"Python {wanted} or newer is needed and python3 is {found}. Try: make PYTHON=python{wanted} up")
    with (PROJECT / "pyproject.toml").open() as lock:
        waiting = "… waiting for another run that is creating the Python environment"
        take(lock, lambda: print(waiting, file=sys.stderr, flush=True))
        if is_whole():
            return
        started = time.monotonic()
        print("… Python environment", file=sys.stderr, flush=True)
        # Not removed before this: if this environment is active, its own interpreter runs this program.
        run(sys.executable, "-m", "venv", "--clear", ENVIRONMENT)
        pip = (
            ENVIRONMENT / "bin/python",
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--no-input",
            "install",
            "--progress-bar=off",
        )
        run(*pip, "--require-hashes", "--requirement", PROJECT / "requirements.lock")
        run(*pip, "--no-deps", "--no-build-isolation", "--editable", PROJECT)
        stamp().write_text("\n".join([fingerprint(), *sorted(installed())]))
        show("")
        print(f"✓ Python environment {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted. The same command creates the Python environment again.", file=sys.stderr)
        sys.exit(130)
