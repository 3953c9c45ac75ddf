"""The Docker Engine that the stack runs on: reached, or on a Debian or Ubuntu machine installed and started."""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from engine.connection import UNREACHABLE, answers, canonical, connect, is_default
from engine.inspection import look_at
from engine.system_path import environment, which
from engine.unreachable import set_host, why_unreachable
from toolchain.operating_system import can_install, exclusive, install
from toolchain.progress import LINES_SHOWN_ON_FAILURE, CommandError, SetupError, Step, Steps

if TYPE_CHECKING:
    import docker

LOG = Path("/var/log/dockerd.log")
PACKAGES = ("docker.io", "ca-certificates", "iptables")
INSTALLS = f"""\
The distribution's engine is installed, the package {PACKAGES[0]}. To use Docker's own packages instead, press
Ctrl-C and install those: https://docs.docker.com/engine/install. An existing engine is never replaced."""
START_SECONDS = 60
POLL_SECONDS = 0.1


def ensure(steps: Steps, host: str, stack: str) -> docker.DockerClient:
    """Return a client of the engine at `host`, the `dockerHost` of `stack`; install or start the engine if need be.

    Raises SetupError when it cannot be reached, and when DOCKER_HOST in the environment names another engine.
    """
    _check_environment(host, stack)
    try:
        return _told(steps, connect(host), stack)
    except UNREACHABLE as error:
        found = why_unreachable(host, stack, error)
        absent = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
    if not (absent and is_default(host) and can_install()):
        raise SetupError(found.why, fix=found.fix)
    steps.console.print(found.why, markup=False)
    if which("dockerd") is None:
        steps.console.print(INSTALLS, markup=False)
        _install(steps)
    with steps.step("Start the Docker Engine") as step, exclusive("engine", step):
        if Path("/run/systemd/system").is_dir():
            _start_by_systemd(step)
        else:
            start(step, host, log=LOG)
    return _told(steps, connect(host), stack)


def _told(steps: Steps, client: docker.DockerClient, stack: str) -> docker.DockerClient:
    """Print which engine it is. Raises SetupError if the stack cannot run on it."""
    found = look_at(client)
    if found.refused:
        client.close()
        raise SetupError(f"{found.name}: {found.refused}", fix=f"upgrade it, or name another: {set_host(stack, '…')}")
    steps.console.print("\n  ".join([found.name, *found.doubts]), markup=False)
    return client


def start(step: Step, host: str, *options: str, log: Path) -> None:
    """Start a `dockerd` that outlives this program, and wait until it answers at `host`, a Unix socket.

    `options` are dockerd's own. Raises SetupError with the last lines of `log` when it does not come up.
    """
    if answers(host):
        return
    command = [which("dockerd") or "dockerd", "--host", host, *options]
    with log.open("ab") as output:
        # Its own session, and no open files of ours: Ctrl-C and the end of a script do not affect it.
        process = subprocess.Popen(
            command,
            cwd="/",
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    step.note(f"{' '.join(command)} >>{log}")
    deadline = time.monotonic() + START_SECONDS
    while not answers(host):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            process.terminate()
            process.wait()
            last_lines = deque(log.read_text(errors="replace").splitlines(), LINES_SHOWN_ON_FAILURE)
            what = "ended at once" if ended else f"did not answer within {START_SECONDS} s"
            raise SetupError(
                "\n".join([f"dockerd {what}; the last lines of {log}:", *last_lines]),
                tried=[" ".join(command)],
                fix="fix what the log names, or set the stack's dockerHost to an engine elsewhere, such as ssh://…",
            )
        time.sleep(POLL_SECONDS)
    process.returncode = 0  # it keeps running without us, which is not a leak to warn about


def _check_environment(host: str, stack: str) -> None:
    """Refuse a DOCKER_HOST that names another engine: the `docker` command would not show the stack."""
    other = os.environ.get("DOCKER_HOST", "")
    if other and canonical(other) != canonical(host):
        raise SetupError(
            f"DOCKER_HOST names the engine {other}, and the config of stack {stack} names {host}",
            fix=f"{set_host(stack, other)}\n    or, to use {host}: unset DOCKER_HOST",
        )


def _install(steps: Steps) -> None:
    apparmor = Path("/sys/module/apparmor/parameters/enabled")
    # If AppArmor is on in the kernel, the engine cannot start a container without AppArmor's parser.
    needs_parser = apparmor.exists() and apparmor.read_text().startswith("Y")
    try:
        install(steps, *PACKAGES, *(["apparmor"] if needs_parser else []))
    except SetupError:
        # Without systemd, the package starts its service with a script that fails if limits cannot be raised. Then
        # the installation fails too, although nothing else is missing.
        if which("dockerd") is None:
            raise


def _start_by_systemd(step: Step) -> None:
    try:
        step.run(["systemctl", "start", "docker.service"])
    except CommandError as error:
        journal = step.run(["journalctl", "--unit=docker.service", "--no-pager", f"--lines={LINES_SHOWN_ON_FAILURE}"])
        raise SetupError(
            f"{error}\n{journal}", tried=["systemctl start docker.service"], fix="fix what the journal names"
        ) from error
