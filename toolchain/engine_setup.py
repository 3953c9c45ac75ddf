"""The Docker Engine that the stack runs on: reached, or on a Debian or Ubuntu machine installed and started."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import socket
import subprocess
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.tls import TLSConfig

from toolchain import ssh
from toolchain.machine import can_install, environment, exclusive, install, which
from toolchain.progress import LINES_SHOWN_ON_FAILURE, CommandError, SetupError, Step, Steps

DEFAULT_HOST = "unix:///var/run/docker.sock"
CONTAINERD_STORE = "io.containerd.snapshotter.v1"
DESKTOP = "Docker Desktop"
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
UNREACHABLE = (OSError, docker.errors.DockerException)
LOG = Path("/var/log/dockerd.log")
CERTIFICATE_FILES = ("ca.pem", "cert.pem", "key.pem")
REFUSED_CERTIFICATE = ("bad certificate", "EOF occurred in violation of protocol")
"""In OpenSSL's words. By TLS 1.3 a client may find the connection closed before it reads why."""
OLDEST_API = (1, 41)
"""That of Docker Engine 20.10, which the stack was first run on."""
_PROVIDER = Path(__file__).with_name("docker-provider") / "shim/version.go"
SPOKEN_API = tuple(map(int, re.findall(r'newestAPI = "(\d+)\.(\d+)"', _PROVIDER.read_text())[0]))
"""The newest that the Docker provider built here speaks."""
PACKAGES = ("docker.io", "ca-certificates", "iptables")
INSTALLS = f"""\
The distribution's engine is installed, the package {PACKAGES[0]}. To have Docker's own packages in its place, press
Ctrl-C and install those: https://docs.docker.com/engine/install. An engine that is there is never replaced."""
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
        why = why_unreachable(host, stack, error)
        absent = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
    if not (absent and _is_default(host) and can_install()):
        raise why
    steps.console.print(why.why, markup=False)
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
    """Say what a client's engine is. Raises SetupError for one that the stack cannot run on."""
    found = look_at(client)
    if found.refused:
        client.close()
        raise SetupError(
            f"{found.name}: {found.refused}", mend=f"upgrade it, or name another: {_set_host(stack, '…')}"
        )
    steps.console.print("\n  ".join([found.name, *found.doubts]), markup=False)
    return client


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an engine says of itself."""

    name: str
    """What it is, its version, and what about it matters here, as text for a person."""
    refused: str
    """Why the stack cannot run on it; empty if it can."""
    doubts: tuple[str, ...]
    """What about it was never tried with this project, or will not be as the documents say."""


def look_at(client: docker.DockerClient) -> Found:
    """Ask an engine what it is, before anything is changed on it."""
    version, info = client.version(), client.info()
    kind = next((part["Name"] for part in version.get("Components") or ()), "Engine")
    newest, oldest = version["ApiVersion"], version.get("MinAPIVersion") or version["ApiVersion"]
    store = dict(info.get("DriverStatus") or ()).get("driver-type") == CONTAINERD_STORE
    traits = [
        f"API {oldest} to {newest}",
        *(["containerd image store"] if store else []),
        f"cgroup {info.get('CgroupVersion') or '1'}",
        *(["rootless"] if "name=rootless" in (info.get("SecurityOptions") or ()) else []),
        *([DESKTOP] if info.get("OperatingSystem") == DESKTOP else []),
    ]
    name = "Docker Engine" if kind == "Engine" else kind
    refused = ""
    if _number(newest) < OLDEST_API:
        refused = f"its API is {newest}, and {_text(OLDEST_API)} is needed: Docker Engine 20.10 or newer"
    doubts = []
    if kind != "Engine":
        doubts.append(f"{kind} has Docker's API, and this project was only ever run on Docker Engine")
    if _number(oldest) > SPOKEN_API:
        doubts.append(
            f"it takes no API older than {oldest}, and the Docker provider that is built here speaks "
            f"{_text(SPOKEN_API)}: only the official provider can work with it"
        )
    if info.get("MemoryLimit") is False:
        doubts.append("it cannot limit memory, so no container's limit holds")
    return Found(name=f"{name} {version['Version']} ({', '.join(traits)})", refused=refused, doubts=tuple(doubts))


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def connect(host: str) -> docker.DockerClient:
    """Return a client of an engine that has answered. Raises one of UNREACHABLE."""
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:  # tells more than docker-py, which leaves its own open
            probe.connect(_path(host))
    if host.startswith("ssh://"):
        return ssh.Client(host)
    if why := lacks_certificates(host):
        raise docker.errors.DockerException(why)
    tls: TLSConfig | bool = False
    if folder := certificates(host):
        ca, certificate, key = (f"{folder}/{file}" for file in CERTIFICATE_FILES)
        tls = _TLS(client_cert=(certificate, key), ca_cert=ca, verify=True)
    return docker.DockerClient(base_url=host, tls=tls)


def is_present(engine: docker.DockerClient, name: str) -> bool:
    """Whether an engine has an image."""
    try:
        engine.images.get(name)
    except docker.errors.NotFound:
        return False
    return True


def certificates(host: str) -> str | None:
    """The folder with the certificates for an engine that is reached by TLS: Docker's own convention."""
    if not host.startswith("tcp://"):
        return None
    return os.environ.get("DOCKER_CERT_PATH") or str(Path.home() / ".docker")


def lacks_certificates(host: str) -> str | None:
    """Why an engine that is reached by TLS cannot be: which certificates are missing."""
    folder = certificates(host)
    missing = [file for file in CERTIFICATE_FILES if folder and not Path(folder, file).is_file()]
    if not missing:
        return None
    return (
        f"it is reached by TLS only, as plain tcp would send every secret in clear, and {folder} lacks "
        f"{', '.join(missing)} (DOCKER_CERT_PATH names another folder)"
    )


def docker_command(host: str) -> str:
    """The docker command for an engine, as a person types it."""
    return f"docker {'--tlsverify ' if certificates(host) else ''}--host {host}"


class _TLS(TLSConfig):
    def configure_client(self, client: docker.APIClient) -> None:
        super().configure_client(client)
        client.trust_env = False  # else REQUESTS_CA_BUNDLE takes the place of the engine's own CA


def start(step: Step, host: str, *options: str, log: Path) -> None:
    """Start a `dockerd` that outlives this program, and wait until it answers at `host`, a Unix socket.

    `options` are dockerd's own. Raises SetupError with the last lines of `log` when it does not come up.
    """
    if _answers(host):
        return
    command = [which("dockerd") or "dockerd", "--host", host, *options]
    with log.open("ab") as output:
        # A session of its own and no file of ours: neither Ctrl-C nor the end of a script has to do with it.
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
    while not _answers(host):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            process.terminate()
            process.wait()
            last_lines = deque(log.read_text(errors="replace").splitlines(), LINES_SHOWN_ON_FAILURE)
            what = "ended at once" if ended else f"did not answer within {START_SECONDS} s"
            raise SetupError(
                "\n".join([f"dockerd {what}; the last lines of {log}:", *last_lines]),
                tried=[" ".join(command)],
                mend="mend what the log names, or set the stack's dockerHost to an engine elsewhere, as ssh://…",
            )
        time.sleep(POLL_SECONDS)
    process.returncode = 0  # it goes on without us, which is no leak to warn of


def _check_environment(host: str, stack: str) -> None:
    """Refuse a DOCKER_HOST that names another engine: the `docker` command would show what the stack does not use."""
    other = os.environ.get("DOCKER_HOST", "")
    if other and _canonical(other) != _canonical(host):
        raise SetupError(
            f"DOCKER_HOST names the engine {other}, and the config of stack {stack} names {host}",
            mend=f"{_set_host(stack, other)}\n    or, to use {host}: unset DOCKER_HOST",
        )


def _set_host(stack: str, host: str) -> str:
    return f"./pulumiw config set --stack {stack} dockerHost {host}"


def _canonical(host: str) -> str:
    return f"unix://{os.path.realpath(_path(host))}" if host.startswith("unix://") else host.rstrip("/")


def _path(host: str) -> str:
    return host.removeprefix("unix://")


def _is_default(host: str) -> bool:
    return _canonical(host) == _canonical(DEFAULT_HOST)


def _answers(host: str) -> bool:
    try:
        connect(host).close()
    except UNREACHABLE:
        return False
    return True


def why_unreachable(host: str, stack: str, error: Exception) -> SetupError:
    """Say why no engine answers, and what a user who is not root can do."""
    if not host.startswith("unix://"):
        with_these = f" with the certificates in {folder}" if (folder := certificates(host)) else ""
        refused = any(sign in str(error) for sign in REFUSED_CERTIFICATE)
        doubt = ": it may not accept the client's certificate" if refused else ""
        return SetupError(
            f"The Docker Engine at {host} does not answer{doubt}: {error}",
            mend=f"see that `{docker_command(host)} version` answers{with_these}, or name another: "
            f"{_set_host(stack, '…')}",
        )
    others = {_canonical(other): (other, name) for other, name in {**_of_contexts(), **USUAL_HOSTS}.items()}
    others.pop(_canonical(host), None)
    offered = [f"to use {name}: {_set_host(stack, other)}" for other, name in others.values() if _answers(other)]
    if offered:
        mend = "\n    or, ".join(offered)
    elif not _is_default(host):
        mend = _set_host(stack, DEFAULT_HOST)
    elif which("dockerd"):
        mend = "sudo systemctl start docker"
    else:
        mend = "install Docker Engine; on Debian and Ubuntu: sudo apt-get install docker.io"
    match error:
        case FileNotFoundError():
            return SetupError(f"There is no Docker Engine here: no socket {_path(host)}", mend=mend)
        case ConnectionRefusedError():
            return SetupError(f"The Docker Engine does not run: nothing listens on {_path(host)}", mend=mend)
        case PermissionError():
            return _permission_denied(Path(_path(host)))
        case _:
            return SetupError(f"The Docker Engine at {host} does not answer: {error}", mend=mend)


def _of_contexts() -> dict[str, str]:
    """The engines of this machine that contexts of the `docker` command name; those that cannot be read are left out.

    docker-py 7.1 looks for them in the working directory where there is no ~/.docker/config.json.
    """
    found = {}
    for file in Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker").glob("contexts/meta/*/meta.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            context = json.loads(file.read_text(encoding="utf-8"))
            host = context["Endpoints"]["docker"]["Host"]
            if host.startswith("unix://"):
                found[host] = f"Docker's context {context['Name']}"
    return found


def _permission_denied(path: Path) -> SetupError:
    user = pwd.getpwuid(os.geteuid()).pw_name
    try:
        group = grp.getgrgid(path.stat().st_gid)
    except (OSError, KeyError):  # the folder cannot be read either, or the group has no name
        return SetupError(f"{user} may not use the Docker Engine: no access to {path}", mend=f"sudo ls -l {path}")
    if group.gr_name == "root":
        mend = "run the same as root"
    elif user in group.gr_mem:
        mend = f"log out and in again, or: newgrp {group.gr_name} ({user} is new in the group)"
    else:
        mend = f"sudo usermod --append --groups {group.gr_name} {user}, then log out and in again"
    return SetupError(f"{user} may not use the Docker Engine: {path} is for the group {group.gr_name}", mend=mend)


def _install(steps: Steps) -> None:
    apparmor = Path("/sys/module/apparmor/parameters/enabled")
    # Where the kernel has AppArmor on, the engine starts no container without its parser.
    needs_parser = apparmor.exists() and apparmor.read_text().startswith("Y")
    try:
        install(steps, *PACKAGES, *(["apparmor"] if needs_parser else []))
    except SetupError:
        # Without systemd the package starts its service by a script that fails where limits cannot be raised, and
        # so does the installation, of which nothing else is missing.
        if which("dockerd") is None:
            raise


def _start_by_systemd(step: Step) -> None:
    try:
        step.run(["systemctl", "start", "docker.service"])
    except CommandError as error:
        journal = step.run(["journalctl", "--unit=docker.service", "--no-pager", f"--lines={LINES_SHOWN_ON_FAILURE}"])
        raise SetupError(
            f"{error}\n{journal}", tried=["systemctl start docker.service"], mend="mend what the journal names"
        ) from error
