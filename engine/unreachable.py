"""Why no engine answers, and what a user who is not root can do."""

from __future__ import annotations

import grp
import json
import os
import pwd
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.certificates import certificates, docker_command
from engine.connection import DEFAULT_HOST, answers, canonical, is_default, socket_path
from engine.inspection import DESKTOP
from engine.system_path import which

USUAL_HOSTS = {
    DEFAULT_HOST: "Docker Engine",
    f"unix://{os.environ.get('XDG_RUNTIME_DIR', '/run')}/docker.sock": "Docker Engine, rootless",
    f"unix://{Path.home()}/.docker/run/docker.sock": DESKTOP,
    f"unix://{Path.home()}/.docker/desktop/docker.sock": DESKTOP,
    f"unix://{Path.home()}/.colima/default/docker.sock": "colima",
    f"unix://{Path.home()}/.orbstack/run/docker.sock": "OrbStack",
    f"unix://{Path.home()}/.rd/docker.sock": "Rancher Desktop",
}
"""Where engines of this machine listen, and what each is."""
REFUSED_CERTIFICATE = ("bad certificate", "EOF occurred in violation of protocol")
"""OpenSSL's messages. With TLS 1.3 a client may find the connection closed before it reads the reason."""


@dataclass(frozen=True)
class Unreachable:
    """Why an engine does not answer, and the commands that help."""

    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.why}\n  what you can do: {self.fix}"


def why_unreachable(host: str, stack: str, error: Exception) -> Unreachable:
    """Say why no engine answers, and what a user who is not root can do."""
    if not host.startswith("unix://"):
        with_these = f" with the certificates in {folder}" if (folder := certificates(host)) else ""
        refused = any(sign in str(error) for sign in REFUSED_CERTIFICATE)
        doubt = ": it may not accept the client's certificate" if refused else ""
        return Unreachable(
            f"The Docker Engine at {host} does not answer{doubt}: {error}",
            fix=f"check that `{docker_command(host)} version` answers{with_these}, or name another: "
            f"{set_host(stack, '…')}",
        )
    others = {canonical(other): (other, name) for other, name in {**_of_contexts(), **USUAL_HOSTS}.items()}
    others.pop(canonical(host), None)
    offered = [f"to use {name}: {set_host(stack, other)}" for other, name in others.values() if answers(other)]
    if offered:
        fix = "\n    or, ".join(offered)
    elif not is_default(host):
        fix = set_host(stack, DEFAULT_HOST)
    elif which("dockerd"):
        fix = "sudo systemctl start docker"
    else:
        fix = "install Docker Engine; on Debian and Ubuntu: sudo apt-get install docker.io"
    match error:
        case FileNotFoundError():
            return Unreachable(f"There is no Docker Engine here: no socket {socket_path(host)}", fix=fix)
        case ConnectionRefusedError():
            return Unreachable(f"The Docker Engine is not running: nothing listens on {socket_path(host)}", fix=fix)
        case PermissionError():
            return _permission_denied(Path(socket_path(host)))
        case _:
            return Unreachable(f"The Docker Engine at {host} does not answer: {error}", fix=fix)


def _of_contexts() -> dict[str, str]:
    """The engines of this machine that contexts of the `docker` command name; those that cannot be read are left out.

    docker-py 7.1 looks for them in the working directory if there is no ~/.docker/config.json.
    """
    found = {}
    for file in Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker").glob("contexts/meta/*/meta.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            context = json.loads(file.read_text(encoding="utf-8"))
            host = context["Endpoints"]["docker"]["Host"]
            if host.startswith("unix://"):
                found[host] = f"Docker's context {context['Name']}"
    return found


def _permission_denied(path: Path) -> Unreachable:
    user = pwd.getpwuid(os.geteuid()).pw_name
    try:
        group = grp.getgrgid(path.stat().st_gid)
    except (OSError, KeyError):  # the folder cannot be read either, or the group has no name
        return Unreachable(
            f"{user} is not allowed to use the Docker Engine: no access to {path}", fix=f"sudo ls -l {path}"
        )
    if group.gr_name == "root":
        fix = "run the same command as root"
    elif user in group.gr_mem:
        fix = f"log out and in again, or: newgrp {group.gr_name} ({user} is new in the group)"
    else:
        fix = f"sudo usermod --append --groups {group.gr_name} {user}, then log out and in again"
    return Unreachable(
        f"{user} is not allowed to use the Docker Engine: {path} is for the group {group.gr_name}", fix=fix
    )


def set_host(stack: str, host: str) -> str:
    """The command that gives a stack another engine."""
    return f"./pulumiw config set --stack {stack} dockerHost {host}"
