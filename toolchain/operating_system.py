"""The machine that the set-up runs on: its distribution's packages, the user's cache, and its signals."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from engine.system_path import environment, which
from toolchain.environment import take
from toolchain.progress import CommandError, SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from toolchain.progress import Step, Steps

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-infrastructure"
DPKG_LOCK_SECONDS = 300
"""How long another package manager, such as an unattended upgrade, may hold the lock."""


def can_install() -> bool:
    """Whether packages of Debian or Ubuntu can be installed: as root, on one of them."""
    return os.geteuid() == 0 and which("apt-get") is not None


def install(steps: Steps, *packages: str) -> None:
    """Install packages of the distribution, without what they only recommend. Raises SetupError."""
    apt = ["apt-get", "--quiet", "--yes", "--option", f"DPkg::Lock::Timeout={DPKG_LOCK_SECONDS}"]
    command = [*apt, "install", "--no-install-recommends", *packages]
    with steps.step(f"Install {', '.join(packages)}") as step:
        try:
            update_package_lists(step)
            step.run(command, env=environment(DEBIAN_FRONTEND="noninteractive"))
        except CommandError as error:
            raise SetupError(
                f"{', '.join(packages)} could not be installed: {error}",
                fix=f"{' '.join(command)}, and fix what it complains about",
            ) from error


def update_package_lists(step: Step) -> None:
    """Fetch the package lists of all mirrors that can be reached: an unreachable one may not be needed."""
    try:
        step.run(["apt-get", "--quiet", "update"])
    except CommandError as error:
        step.note(str(error))


@contextmanager
def exclusive(name: str, step: Step) -> Iterator[None]:
    """Let only one process of this user at a time do what `name` stands for."""
    path = CACHE / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        take(lock, lambda: step.say(f"waiting for another run that does the same: {step.title}"))
        yield


@contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the block with an exception, so that it can clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
