"""An engine that cannot be reached: the user learns exactly why, and what to do."""

from __future__ import annotations

import grp
import hashlib
import io
import json
import os
import pwd
import socket
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, cast

import docker
import pulumi
import pytest
from rich.console import Console

from engine import connection, unreachable
from engine.certificates import CERTIFICATE_FILES
from engine.inspection import look_at
from infra.placement import engine_placement
from toolchain import engine_setup
from toolchain.progress import SetupError, Steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may have an engine of any kind."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(unreachable, "USUAL_HOSTS", {})
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setenv("HOME", "/nowhere")  # whose contexts of `docker` are no business of a test


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "docker.sock"))
        yield listener


def failure(host: str) -> SetupError:
    with pytest.raises(SetupError) as raised:
        engine_setup.ensure(Steps(), host, "staging")
    return raised.value


def test_the_environment_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DOCKER_HOST that names another engine than the stack's config is refused, with both ways out."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://build.example:2375")
    error = failure("unix:///var/run/docker.sock")
    assert "tcp://build.example:2375" in error.why
    assert "./pulumiw config set --stack staging dockerHost tcp://build.example:2375" in error.fix
    assert "unset DOCKER_HOST" in error.fix


@pytest.mark.parametrize(
    ("one", "other"), [("unix://{0}/run/docker.sock", "unix://{0}/var/run/docker.sock"), ("tcp://a:1", "tcp://a:1/")]
)
def test_two_names_of_one_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one: str, other: str) -> None:
    """A DOCKER_HOST that names the same engine in another way is no contradiction."""
    (tmp_path / "run").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "var/run").symlink_to(tmp_path / "run")
    monkeypatch.setenv("DOCKER_HOST", other.format(tmp_path))
    engine_setup._check_environment(one.format(tmp_path), "dev")


def test_no_socket(tmp_path: Path) -> None:
    """Without a socket there is no engine; the usual one is named instead."""
    error = failure(f"unix://{tmp_path}/docker.sock")
    assert f"no socket {tmp_path}/docker.sock" in error.why
    assert "./pulumiw config set --stack staging dockerHost unix:///var/run/docker.sock" in error.fix


def test_another_engine_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with another engine, such as a rootless one, learns how to use it."""
    rootless = f"unix://{tmp_path}/rootless.sock"
    monkeypatch.setattr(unreachable, "USUAL_HOSTS", {rootless: "rootless", "unix:///gone.sock": "colima"})
    monkeypatch.setattr(unreachable, "answers", lambda host: host == rootless)
    error = failure(f"unix://{tmp_path}/docker.sock")
    assert error.fix == f"to use rootless: ./pulumiw config set --stack staging dockerHost {rootless}"


def test_the_engines_that_dockers_contexts_name_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names that their user gave them. One on another machine is not mistaken for one of this."""
    hosts = {
        "mine": f"unix://{tmp_path}/mine.sock",
        "far": "ssh://far.example",
        "same": f"unix://{tmp_path}/same.sock",
    }
    for name, host in hosts.items():
        meta = tmp_path / ".docker/contexts/meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
        meta.parent.mkdir(parents=True)
        meta.write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(unreachable, "USUAL_HOSTS", {hosts["same"]: "colima"})
    monkeypatch.setattr(unreachable, "answers", lambda host: host in hosts.values())
    error = failure(f"unix://{tmp_path}/docker.sock")
    assert sorted(error.fix.split("\n    or, ")) == [
        f"to use Docker's context mine: ./pulumiw config set --stack staging dockerHost {hosts['mine']}",
        f"to use colima: ./pulumiw config set --stack staging dockerHost {hosts['same']}",
    ]
    meta.write_text("{")
    assert "to use colima" in failure(f"unix://{tmp_path}/docker.sock").fix


def test_nothing_listens(tmp_path: Path, listener: socket.socket) -> None:
    """The message distinguishes a socket that an engine left behind from one that was never there."""
    error = failure(f"unix://{tmp_path}/docker.sock")
    assert f"nothing listens on {tmp_path}/docker.sock" in error.why


def test_not_an_engine(tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else that listens is not mistaken for an engine, and none is started beside it."""
    monkeypatch.setattr(connection, "DEFAULT_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.setattr(engine_setup, "can_install", lambda: True)

    def hang_up() -> None:
        for _ in range(2):
            listener.accept()[0].close()

    listener.listen()
    thread = threading.Thread(target=hang_up)
    thread.start()
    assert f"{tmp_path}/docker.sock does not answer" in failure(f"unix://{tmp_path}/docker.sock").why
    thread.join()


@pytest.mark.parametrize(
    ("group", "members", "fix"),
    [
        ("docker", [], "sudo usermod --append --groups docker {user}, then log out and in again"),
        ("docker", ["{user}"], "log out and in again, or: newgrp docker ({user} is new in the group)"),
        ("root", [], "run the same command as root"),
    ],
)
def test_permission_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, members: list[str], fix: str
) -> None:
    """A user who may not use the socket learns which group may, and the command that helps."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    entry = grp.struct_group((group, "x", 1, [member.format(user=user) for member in members]))
    monkeypatch.setattr(grp, "getgrgid", lambda _: entry)
    error = unreachable._permission_denied(tmp_path)
    assert error.why == f"{user} is not allowed to use the Docker Engine: {tmp_path} is for the group {group}"
    assert error.fix == fix.format(user=user)


def test_an_engine_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine on another machine is never started: what went wrong is said, and how to look."""
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    for file in CERTIFICATE_FILES:
        (tmp_path / file).touch()
    error = failure("tcp://127.0.0.1:1")
    assert "tcp://127.0.0.1:1 does not answer" in error.why
    assert "Connection refused" in error.why
    assert f"docker --tlsverify --host tcp://127.0.0.1:1 version` answers with the certificates in {tmp_path}" in (
        error.fix
    )


@pytest.mark.parametrize(
    ("error", "doubted"),
    [
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] certificate required", False),
        ("[SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert bad certificate", True),
        ("EOF occurred in violation of protocol", True),
    ],
)
def test_an_engine_that_ends_the_handshake_may_not_accept_the_certificate(error: str, *, doubted: bool) -> None:
    why = unreachable.why_unreachable("tcp://gateway.example:2376", "dev", OSError(error)).why
    assert why.endswith(error)
    assert ("it may not accept the client's certificate" in why) == doubted


def test_certificates_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    (tmp_path / "ca.pem").touch()
    assert f"{tmp_path} has no cert.pem, key.pem (DOCKER_CERT_PATH" in failure("tcp://127.0.0.1:1").why


def test_what_ssh_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own reason is in the error, not only that the connection was closed."""
    (tmp_path / "ssh").write_text(
        '#!/bin/sh\necho "$@" >>"$0.log"\necho "Permission denied (publickey)." >&2; exit 255\n'
    )
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    error = failure("ssh://deploy@gateway.example:2222")
    assert "ssh://deploy@gateway.example:2222 does not answer" in error.why
    assert "Permission denied (publickey)." in error.why
    assert "`docker --host ssh://deploy@gateway.example:2222 version`" in error.fix
    asked = set((tmp_path / "ssh.log").read_text().splitlines())
    assert asked == {"-l deploy -p 2222 -- gateway.example docker system dial-stdio"}


def test_there_is_no_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no ssh on this machine" in failure("ssh://gateway.example").why


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo no such option: $3; exit 1", "dockerd ended at once"),
        ("echo no such option: $3; exec sleep 60", "dockerd did not answer within 1 s"),
    ],
)
def test_a_daemon_that_does_not_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    """The last lines of the daemon's log are in the error, and no daemon is left."""
    daemon = tmp_path / "dockerd"
    daemon.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\n{script}\n")
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(engine_setup, "START_SECONDS", 1)
    with Steps().step("start") as step, pytest.raises(SetupError) as raised:
        engine_setup.start(step, f"unix://{tmp_path}/docker.sock", "--wrong", log=tmp_path / "log")
    assert raised.value.why.startswith(why)
    assert raised.value.why.endswith("no such option: --wrong")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_service_that_does_not_come_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd runs the engine, the last lines of its journal are in the error."""
    for name, script in {"systemctl": "exit 1", "journalctl": "echo no space left on device"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with Steps().step("start") as step, pytest.raises(SetupError, match="no space left on device") as raised:
        engine_setup._start_by_systemd(step)
    assert raised.value.tried == ("systemctl start docker.service",)


class FakeEngine:
    """An engine that describes itself as given."""

    def __init__(self, version: Mapping[str, object], info: Mapping[str, object]) -> None:
        self._version = {"Version": "20.10.24", "ApiVersion": "1.41", "MinAPIVersion": "1.12", **version}
        self._info = {"MemoryLimit": True, **info}

    def version(self) -> Mapping[str, object]:
        return self._version

    def info(self) -> Mapping[str, object]:
        return self._info


PODMAN = {"Version": "5.4.2", "MinAPIVersion": "1.24", "Components": [{"Name": "Podman Engine"}]}
ENGINE_29 = {"Version": "29.0.1", "ApiVersion": "1.52", "MinAPIVersion": "1.44"}
CONTAINERD = {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]], "CgroupVersion": "2"}


@pytest.mark.parametrize(
    ("version", "info", "name"),
    [
        ({}, {}, "Docker Engine 20.10.24 (API 1.12 to 1.41, cgroup 1)"),
        (ENGINE_29, CONTAINERD, "Docker Engine 29.0.1 (API 1.44 to 1.52, containerd image store, cgroup 2)"),
        ({}, {"SecurityOptions": ["name=rootless"]}, "Docker Engine 20.10.24 (API 1.12 to 1.41, cgroup 1, rootless)"),
        (PODMAN, {}, "Podman Engine 5.4.2 (API 1.24 to 1.41, cgroup 1)"),
    ],
)
def test_what_an_engine_is(version: Mapping[str, object], info: Mapping[str, object], name: str) -> None:
    """Its version, the API versions that it takes, and what about it decides how the stack runs."""
    found = look_at(cast("docker.DockerClient", FakeEngine(version, info)))
    assert found.name == name
    assert not found.refused


def test_an_engine_that_is_too_old_is_refused() -> None:
    """An engine older than 20.10 is refused, with the oldest that can be used."""
    old = FakeEngine({"Version": "19.03.15", "ApiVersion": "1.40"}, {})
    found = look_at(cast("docker.DockerClient", old))
    assert "1.41 is needed: Docker Engine 20.10 or newer" in found.refused


@pytest.mark.parametrize(
    ("version", "info", "doubt"),
    [
        (PODMAN, {}, "only been run on Docker Engine"),
        ({"ApiVersion": "1.60", "MinAPIVersion": "1.50"}, {}, "accepts no API older than 1.50"),
        ({}, {"MemoryLimit": False}, "no container's limit holds"),
    ],
)
def test_what_was_never_tried_is_said(version: Mapping[str, object], info: Mapping[str, object], doubt: str) -> None:
    """An engine that this project was not run on, or that cannot keep its limits, gets a warning and no refusal."""
    found = look_at(cast("docker.DockerClient", FakeEngine(version, info)))
    assert not found.refused
    assert len(found.doubts) == 1
    assert doubt in found.doubts[0]


@pytest.mark.parametrize("there", [False, True])
def test_an_engine_is_installed_only_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    """The message says which one first. An existing engine that does not run is started."""
    said, done = io.StringIO(), list[str]()

    def connect(_: str) -> FakeEngine:
        if "start" not in done:
            raise FileNotFoundError
        return FakeEngine({}, {})

    def install(_: Steps, *packages: str) -> None:
        assert "distribution's engine is installed, the package docker.io" in said.getvalue()
        done.append(f"install {packages[0]}")

    monkeypatch.setattr(connection, "DEFAULT_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.setattr(engine_setup, "connect", connect)
    monkeypatch.setattr(engine_setup, "can_install", lambda: True)
    monkeypatch.setattr(engine_setup, "which", lambda name: name if there else None)
    monkeypatch.setattr(engine_setup, "install", install)
    monkeypatch.setattr(engine_setup, "exclusive", lambda *_: nullcontext())
    for name in ("start", "_start_by_systemd"):
        monkeypatch.setattr(engine_setup, name, lambda *_, **__: done.append("start"))
    engine_setup.ensure(Steps(Console(file=said, width=200)), f"unix://{tmp_path}/docker.sock", "dev")
    assert done == (["start"] if there else ["install docker.io", "start"])
    assert "Docker Engine 20.10.24" in said.getvalue()


class _NoImages:
    def get(self, name: str) -> None:
        raise docker.errors.ImageNotFound(name)


@pytest.mark.parametrize("built", [{}, {"postgres:17": "llm-infrastructure.invalid/postgres-stand-in:17-0123"}])
def test_an_image_that_was_built_here_and_is_gone_is_refused(
    built: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything changes, with the command that rebuilds it; no registry is asked for it."""
    found = FakeEngine({}, {})
    monkeypatch.setattr(found, "images", _NoImages(), raising=False)
    monkeypatch.setattr(found, "close", lambda: None, raising=False)
    monkeypatch.setattr(engine_placement, "connect", lambda _: found)
    with pytest.raises(pulumi.RunError, match=r"make up STACK=") if built else nullcontext():
        engine_placement.check_engine("unix:///var/run/docker.sock", built)
