"""The stand-ins run as in the stack, and images are obtained in the order that the set-up promises."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from rich.console import Console

from engine.connection import is_present
from engine.image_names import stand_ins
from infra import edge, gateway, postgres
from infra.workload import SECRETS, http_health_check
from toolchain import images, recipes
from toolchain.progress import SetupError, Steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

    from docker.models.containers import Container

NO_REGISTRY = "127.0.0.1:1"
WANTED = {
    "litellm": f"{NO_REGISTRY}/berriai/litellm:main-v1.55.0",
    "postgres": f"{NO_REGISTRY}/postgres:17",
    "haproxy": f"{NO_REGISTRY}/haproxy:3.0",
    "valkey": f"{NO_REGISTRY}/valkey/valkey:8.1",
}
PATIENCE_SECONDS = 120
PASSWORD = secrets.token_hex(16)
PASSWORD_FILE = f"{SECRETS}/postgres_password"
NO_PRIVILEGES = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    with closing(docker.DockerClient(base_url="unix:///var/run/docker.sock")) as engine:
        yield engine


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("record") / ".images.yaml"


@pytest.fixture(scope="module")
def tags(engine: docker.DockerClient, record: Path) -> dict[str, str]:
    """The stand-ins, built if they do not exist."""
    return images.ensure(Steps(), engine, WANTED, stack="any", ask=None, record=record)


class Machine:
    """Containers and volumes of one test, which are gone after it."""

    def __init__(self, engine: docker.DockerClient) -> None:
        self.engine = engine
        self.name = f"test-images-{secrets.token_hex(4)}"
        self.containers: list[Container] = []
        self.volumes: list[str] = []

    def volume(self) -> str:
        self.volumes.append(f"{self.name}-{len(self.volumes)}")
        self.engine.volumes.create(self.volumes[-1])
        return self.volumes[-1]

    def create(self, image: str, *, files: Mapping[str, str] | None = None, **options: Any) -> Container:
        container = self.engine.containers.create(
            image, name=f"{self.name}-{len(self.containers)}", **{**NO_PRIVILEGES, **options}
        )
        self.containers.append(container)
        for path, content in (files or {}).items():
            upload(container, path, content)
        return container

    def run(self, image: str, **options: Any) -> Container:
        container = self.create(image, **options)
        container.start()
        return container

    def clean_up(self) -> None:
        for container in self.containers:
            container.remove(force=True, v=True)
        for volume in self.volumes:
            self.engine.volumes.get(volume).remove()


@pytest.fixture
def machine(engine: docker.DockerClient) -> Iterator[Machine]:
    machine = Machine(engine)
    try:
        yield machine
    finally:
        machine.clean_up()


def upload(container: Container, path: str, content: str) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(path.lstrip("/"))
        entry.size = len(content.encode())
        tar.addfile(entry, io.BytesIO(content.encode()))
    assert container.put_archive("/", archive.getvalue())


def execute(container: Container, *command: str) -> tuple[int, str]:
    code, output = container.exec_run(list(command))
    assert isinstance(code, int)
    assert isinstance(output, bytes)
    return code, output.decode()


def await_success(container: Container, command: Sequence[str]) -> None:
    """Wait until a command succeeds in a container, for as long as the container runs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while execute(container, *command)[0] != 0:
            assert time.monotonic() < deadline, container.logs().decode()
    except docker.errors.APIError:
        pytest.fail(f"the container ended: {container.logs().decode()}")


def ends_with_error(container: Container) -> str:
    """Wait for a container that refuses to start, and return its message."""
    assert container.wait(timeout=PATIENCE_SECONDS)["StatusCode"] == 1
    return container.logs().decode()


# LiteLLM


def test_litellm_serves_without_any_privilege(machine: Machine, tags: Mapping[str, str]) -> None:
    """LiteLLM becomes healthy as nobody, writes only to /tmp, and has what the demo provider needs."""
    config = {
        "model_list": [
            {
                "model_name": "gpt-4o",
                "litellm_params": {"model": "openai/gpt-4o", "api_base": "http://127.0.0.1:9", "api_key": "none"},
            }
        ],
        "litellm_settings": {"json_logs": True},
    }
    started = time.monotonic()
    container = machine.run(
        tags["litellm"],
        command=["--config", "/app/config.yaml", "--port", str(gateway.PORT)],
        environment=dict(gateway.ENVIRONMENT),
        files={"/app/config.yaml": json.dumps(config)},
        user="65534:65534",
        mem_limit="512m",
    )
    await_success(container, http_health_check(gateway.PORT, gateway.LIVELINESS).command)
    print(f"LiteLLM was healthy after {time.monotonic() - started:.1f} s")
    changed = {str(entry["Path"]) for entry in container.diff()}
    assert {path for path in changed if not path.startswith("/tmp")} == {"/app", "/app/config.yaml"}  # noqa: S108
    program = "import fastapi, importlib.metadata, litellm, uvicorn; print(importlib.metadata.version('litellm'))"
    code, printed = execute(container, "python3", "-c", program)
    assert (code, printed.splitlines()[-1]) == (0, recipes.STAND_INS["litellm"].version)


# HAProxy


HAPROXY_CONFIG = "/usr/local/etc/haproxy/haproxy.cfg"
"""Where the official image's own command looks for it."""
TAKES_SIGNALS = "(( 0x$(sed -n 's/^SigCgt:[[:space:]]*//p' /proc/1/status) & 1 << 11 ))"
"""Whether HAProxy's master, process 1, has a handler for SIGUSR2 (signal 12), which it installs last.

Its worker answers before that, and until then the kernel drops what process 1 has no handler for: a stop too, which
then takes its whole time limit.
"""


def haproxy_config(answer: str) -> str:
    return f"""\
defaults
    mode http
    timeout client 5s
    timeout server 5s
    timeout connect 5s
frontend gateway
    bind :{edge.PORT}
    bind 127.0.0.1:{edge.HEALTH_PORT}
    http-request return status 200 hdr x-answer {answer}
"""


def test_haproxy_serves_reloads_and_stops(machine: Machine, tags: Mapping[str, str]) -> None:
    """HAProxy answers the edge's health check, takes a new config at SIGUSR2, and ends cleanly when stopped."""
    container = machine.run(tags["haproxy"], files={HAPROXY_CONFIG: haproxy_config("first")}, user="haproxy")
    await_success(container, ("bash", "-c", edge.HEALTH_CHECK))
    assert execute(container, "id", "-u", "-n") == (0, "haproxy\n")
    assert execute(container, "id", "-u") == (0, "99\n")
    assert execute(container, "haproxy", "-v")[1].startswith("HAProxy version 3.0.")
    upload(container, HAPROXY_CONFIG, haproxy_config("second"))
    await_success(container, ("bash", "-c", TAKES_SIGNALS))
    container.kill("SIGUSR2")
    ask = f"exec 3<>/dev/tcp/127.0.0.1/{edge.PORT}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; grep -q second <&3"
    await_success(container, ("bash", "-c", ask))
    await_success(container, ("bash", "-c", TAKES_SIGNALS))
    container.stop(timeout=20)
    assert container.wait()["StatusCode"] == 0


# PostgreSQL


def start_postgres(machine: Machine, tags: Mapping[str, str], volume: str, **options: Any) -> Container:
    return machine.run(
        tags["postgres"],
        **{
            "user": "postgres",
            "environment": {"POSTGRES_PASSWORD_FILE": PASSWORD_FILE},
            "files": {PASSWORD_FILE: f"{PASSWORD}\n"},
            "ports": {f"{postgres.PORT}/tcp": ("127.0.0.1", None)},
            "volumes": {volume: {"bind": postgres.DATA}},
            **options,
        },
    )


def await_postgres(container: Container) -> None:
    await_success(container, ("pg_isready", "--quiet", "--host=127.0.0.1"))


@contextmanager
def connection(container: Container, **parameters: str) -> Iterator[psycopg.Connection]:
    container.reload()
    (binding,) = container.ports[f"{postgres.PORT}/tcp"] or []
    values = {"host": "127.0.0.1", "port": binding["HostPort"], "user": "postgres", "password": PASSWORD}
    with psycopg.connect(make_conninfo(**{**values, "dbname": "postgres", **parameters}), autocommit=True) as made:
        yield made


def value(connection: psycopg.Connection, query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("user", ["postgres", "999:999"])
def test_postgres_keeps_its_data(machine: Machine, tags: Mapping[str, str], user: str) -> None:
    """A fresh volume gets a cluster that accepts only the password from the file; a restart keeps both."""
    container = start_postgres(machine, tags, machine.volume(), user=user)
    await_postgres(container)
    with connection(container) as database:
        assert str(value(database, "SHOW server_version")).startswith("17.")
        assert value(database, "SHOW data_checksums") in {"on", "off"}
        assert value(database, "SELECT datcollate FROM pg_database WHERE datname = 'postgres'") == "en_US.utf8"
        database.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        assert "SCRAM-SHA-256" in str(value(database, "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'"))
    with (
        pytest.raises(psycopg.OperationalError, match="password authentication failed"),
        connection(container, password="wrong"),
    ):
        pass
    container.restart(timeout=60)
    await_postgres(container)
    with connection(container) as database:
        assert value(database, "SELECT answer FROM kept") == 42
    assert "not properly shut down" not in container.logs().decode()


def test_postgres_honours_the_first_boots_settings(machine: Machine, tags: Mapping[str, str]) -> None:
    """The superuser, the database and initdb's arguments come from the environment, the server's from the command."""
    container = start_postgres(
        machine,
        tags,
        machine.volume(),
        environment={
            "POSTGRES_PASSWORD": PASSWORD,
            "POSTGRES_USER": "chief",
            "POSTGRES_DB": 'a "quoted" name',
            "POSTGRES_INITDB_ARGS": "--data-checksums --set=work_mem=5MB",
            "PGDATA": f"{postgres.DATA}/below",
        },
        command=["postgres", "-c", "max_connections=17"],
    )
    await_postgres(container)
    with connection(container, user="chief", dbname='a "quoted" name') as database:
        assert value(database, "SHOW max_connections") == "17"
        assert value(database, "SHOW work_mem") == "5MB"
        assert value(database, "SHOW data_checksums") == "on"
        assert value(database, "SHOW data_directory") == f"{postgres.DATA}/below"
        assert value(database, "SELECT rolsuper FROM pg_roles WHERE rolname = 'chief'") is True
    assert PASSWORD not in execute(container, "cat", "/proc/1/environ")[1]


def test_postgres_started_as_root_does_not_stay_root(machine: Machine, tags: Mapping[str, str]) -> None:
    """Without a given user, the volume's owner is corrected, and the server runs as postgres."""
    volume = machine.volume()
    owner = machine.run(
        tags["postgres"],
        command=["chown", "root:root", postgres.DATA],
        volumes={volume: {"bind": postgres.DATA}},
        cap_drop=[],
    )
    assert owner.wait(timeout=PATIENCE_SECONDS)["StatusCode"] == 0
    container = start_postgres(machine, tags, volume, user="", cap_drop=[])
    await_postgres(container)
    code, status = execute(container, "cat", "/proc/1/status")
    assert code == 0
    assert "Uid:\t999\t999\t999\t999" in status


@pytest.mark.parametrize("moment", [".first-boot", ".first-boot/PG_VERSION", ".first-boot/global/pg_control"])
def test_postgres_killed_in_its_first_boot_starts_over(
    machine: Machine, tags: Mapping[str, str], moment: str
) -> None:
    """Whenever the first boot is killed, the next start creates a complete cluster."""
    container = start_postgres(machine, tags, machine.volume())
    await_success(container, ("test", "-e", f"{postgres.DATA}/{moment}"))
    container.kill()
    container.wait(timeout=PATIENCE_SECONDS)
    container.start()
    await_postgres(container)
    with connection(container) as database:
        assert value(database, "SELECT 1") == 1
    assert execute(container, "test", "-e", f"{postgres.DATA}/.first-boot")[0] == 1


def test_postgres_killed_while_its_cluster_is_put_in_place_goes_on(machine: Machine, tags: Mapping[str, str]) -> None:
    """A complete cluster that is only half moved into place is moved completely, not created again."""
    volume = machine.volume()
    container = start_postgres(machine, tags, volume)
    await_postgres(container)
    with connection(container) as database:
        identifier = value(database, "SELECT system_identifier FROM pg_control_system()")
    container.stop(timeout=60)
    half = "cd $PGDATA && mkdir .complete && mv base global PG_VERSION postgresql.conf .complete"
    moved = machine.run(
        tags["postgres"], user="postgres", command=["sh", "-c", half], volumes={volume: {"bind": postgres.DATA}}
    )
    assert moved.wait(timeout=PATIENCE_SECONDS)["StatusCode"] == 0
    container.start()
    await_postgres(container)
    with connection(container) as database:
        assert value(database, "SELECT system_identifier FROM pg_control_system()") == identifier
    assert execute(container, "test", "-e", f"{postgres.DATA}/.complete")[0] == 1


def test_postgres_refuses_data_of_another_major_version(machine: Machine, tags: Mapping[str, str]) -> None:
    """Data that this version cannot read stays as it is, and the log says how to move it."""
    volume = machine.volume()
    said = refused_data(machine, tags, volume, "PG_VERSION", "16\n")
    assert "was made by PostgreSQL 16, and this is PostgreSQL 17" in said
    assert "pg_dumpall" in said
    assert files_on(machine, tags, volume) == ["PG_VERSION"]


def test_postgres_refuses_a_volume_with_something_else(machine: Machine, tags: Mapping[str, str]) -> None:
    """Files that are not a cluster are neither deleted nor mixed with one."""
    volume = machine.volume()
    assert "is not empty: there is notes.txt" in refused_data(machine, tags, volume, "notes.txt", "mine")
    assert files_on(machine, tags, volume) == ["notes.txt"]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "the superuser's password is missing: set POSTGRES_PASSWORD_FILE"),
        ({"POSTGRES_PASSWORD_FILE": "/run/secrets/none"}, "names /run/secrets/none, which postgres cannot read"),
        ({"POSTGRES_PASSWORD": "a", "POSTGRES_PASSWORD_FILE": "/b"}, "and POSTGRES_PASSWORD_FILE are both set"),
    ],
)
def test_postgres_refuses_to_start_without_a_password(
    machine: Machine, tags: Mapping[str, str], environment: dict[str, str], said: str
) -> None:
    """The error names a missing, unreadable or contradictory password, and nothing is created."""
    volume = machine.volume()
    container = start_postgres(machine, tags, volume, environment=environment, files={})
    assert said in ends_with_error(container)
    assert files_on(machine, tags, volume) == []


def refused_data(machine: Machine, tags: Mapping[str, str], volume: str, file: str, content: str) -> str:
    """What Postgres says about a volume whose data has this file."""
    container = machine.create(
        tags["postgres"],
        user="postgres",
        environment={"POSTGRES_PASSWORD": PASSWORD},
        volumes={volume: {"bind": postgres.DATA}},
        files={f"{postgres.DATA}/{file}": content},
    )
    container.start()
    return ends_with_error(container)


def files_on(machine: Machine, tags: Mapping[str, str], volume: str) -> list[str]:
    lister = machine.run(
        tags["postgres"],
        user="postgres",
        command=["ls", "-A", postgres.DATA],
        volumes={volume: {"bind": postgres.DATA}},
    )
    assert lister.wait(timeout=PATIENCE_SECONDS)["StatusCode"] == 0
    return lister.logs().decode().split()


# How they are obtained


@pytest.mark.parametrize("part", sorted(recipes.STAND_INS))
def test_nothing_of_the_building_machine_is_in_a_stand_in(
    machine: Machine, tags: Mapping[str, str], part: str
) -> None:
    """The image's history and files show no mirror, proxy or index that the build used."""
    history = json.dumps(machine.engine.images.get(tags[part]).history())
    assert "://" not in history
    search = (
        "ls /etc/apt/sources.list /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/machine; find / -xdev -name pip.conf"
    )
    container = machine.run(tags[part], entrypoint=["sh", "-c", f"({search}) 2>/dev/null; true"])
    assert container.wait(timeout=PATIENCE_SECONDS)["StatusCode"] == 0
    assert container.logs() == b""


@pytest.mark.usefixtures("tags")
def test_a_stand_in_that_is_there_is_kept(engine: docker.DockerClient, record: Path, tags: dict[str, str]) -> None:
    """A second time nothing is pulled, built, asked or printed."""
    assert stand_ins(record) == {WANTED[part]: tag for part, tag in tags.items()}
    printed = io.StringIO()
    before = record.stat().st_mtime_ns
    again = images.ensure(Steps(Console(file=printed)), engine, WANTED, stack="any", ask=pytest.fail, record=record)
    assert again == tags
    assert printed.getvalue() == ""
    assert record.stat().st_mtime_ns == before


@pytest.mark.usefixtures("tags")
def test_a_version_that_no_recipe_builds(engine: docker.DockerClient, tmp_path: Path) -> None:
    """There is no stand-in for another version; the user learns which version has one, and what else to do."""
    reference = f"{NO_REGISTRY}/postgres:16"
    with pytest.raises(SetupError) as raised:
        images.ensure(
            Steps(), engine, {"postgres": reference}, stack="any", ask=None, record=tmp_path / ".images.yaml"
        )
    assert reference in raised.value.why
    assert "PostgreSQL 17" in raised.value.why
    assert raised.value.tried[0].startswith(f"pull {reference}: ")
    assert f"docker save {reference}" in raised.value.fix
    assert "./pulumiw config set --stack any postgresImage" in raised.value.fix


@pytest.fixture
def other_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HAProxy recipe that differs, so that its stand-in is not there yet."""
    copy = tmp_path / "images"
    shutil.copytree(recipes.RECIPES, copy)
    (copy / "haproxy/note").write_text(secrets.token_hex(8))
    monkeypatch.setattr(recipes, "RECIPES", copy)
    return copy / "haproxy"


@pytest.mark.usefixtures("tags", "other_recipe")
def test_nothing_is_built_against_the_users_will(engine: docker.DockerClient, tmp_path: Path) -> None:
    """On a terminal the user is asked first; "no" leads to an error that names the other ways."""
    questions: list[str] = []

    def ask(question: str) -> bool:
        questions.append(question)
        return False

    wanted = {"haproxy": WANTED["haproxy"]}
    with pytest.raises(SetupError, match="the stand-in was declined"):
        images.ensure(Steps(), engine, wanted, stack="any", ask=ask, record=tmp_path / ".images.yaml")
    assert len(questions) == 1
    assert "HAProxy 3.0" in questions[0]
    assert stand_ins(tmp_path / ".images.yaml") == {}


@pytest.mark.usefixtures("tags")
def test_a_build_that_fails_leaves_nothing(engine: docker.DockerClient, tmp_path: Path, other_recipe: Path) -> None:
    """The error shows the build's last lines; no image, half or whole, stays behind, and none is recorded."""
    dockerfile = other_recipe / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text().replace("install-packages", "echo the disk is full; false "))
    wanted = {"haproxy": WANTED["haproxy"]}
    with pytest.raises(SetupError, match="the disk is full"):
        images.ensure(Steps(), engine, wanted, stack="any", ask=None, record=tmp_path / ".images.yaml")
    assert engine.images.list(all=True, filters={"label": "llm-infrastructure.build=haproxy"}) == []
    assert not is_present(engine, recipes.STAND_INS["haproxy"].tag)
    assert stand_ins(tmp_path / ".images.yaml") == {}


@pytest.mark.usefixtures("tags")
@pytest.mark.parametrize(
    ("replaced", "why"),
    [
        ((os, "geteuid", 1000), "Only root can build a stand-in"),
        ((platform, "machine", "riscv64"), "What is built on this machine runs on riscv64, and the engine on"),
        ((images, "which", None), "built with debootstrap, which this system does not have"),
    ],
    ids=["not root", "another architecture", "not Debian"],
)
def test_a_machine_that_cannot_build(
    engine: docker.DockerClient,
    monkeypatch: pytest.MonkeyPatch,
    other_recipe: Path,
    replaced: tuple[ModuleType, str, object],
    why: str,
) -> None:
    """A user who cannot build a stand-in learns it at once, with the other ways to get an image."""
    (other_recipe.parent / "base/note").touch()
    module, name, result = replaced
    monkeypatch.setattr(module, name, lambda *_: result)
    monkeypatch.setattr(images, "can_install", lambda: False)
    wanted = {"haproxy": WANTED["haproxy"]}
    with pytest.raises(SetupError, match=why) as raised:
        images.ensure(Steps(), engine, wanted, stack="any", ask=None, record=other_recipe / "record")
    assert f"docker save {WANTED['haproxy']}" in raised.value.fix


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a base")
def test_a_build_that_is_killed_leaves_nothing_running(tmp_path: Path, other_recipe: Path) -> None:
    """After SIGKILL no process of the build continues, and none of its mounts are left on the machine."""
    nap = f"600.{secrets.randbelow(10**9)}"
    script = other_recipe.parent / "base/build.sh"
    script.write_text(f"#!/bin/sh\nmkdir $3 && mount -t tmpfs {nap} $3 && touch {tmp_path}/begun && sleep {nap}\n")
    program = (
        "import sys, docker\nfrom pathlib import Path\nfrom toolchain import images, operating_system, recipes\n"
        "from toolchain.progress import Steps\n"
        "recipes.RECIPES, images.CACHE, operating_system.CACHE = map(Path, (*sys.argv[1:3], sys.argv[2]))\n"
        "engine = docker.DockerClient(base_url='unix:///var/run/docker.sock')\n"
        "images.ensure(Steps(), engine, {'haproxy': sys.argv[3]}, stack='any', ask=None,"
        " record=Path(sys.argv[2]) / 'record')"
    )
    arguments = [str(other_recipe.parent), str(tmp_path), WANTED["haproxy"]]
    with subprocess.Popen([sys.executable, "-c", program, *arguments]) as build:
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not (tmp_path / "begun").exists():
                assert build.poll() is None
                assert time.monotonic() < deadline
        finally:
            build.kill()
    assert nap not in Path("/proc/mounts").read_text()
    while any(nap in command for command in commands()):
        assert time.monotonic() < deadline


def commands() -> Iterator[str]:
    """The command lines of all processes of the machine."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield process.read_text()


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@contextmanager
def registry(blobs: Mapping[str, bytes], manifests: Mapping[str, bytes]) -> Iterator[str]:
    """An image registry with one repository, as far as a pull needs one; without any, it has had too many pulls."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = self.path.rpartition("/")[2]
            content = b"{}" if self.path == "/v2/" else manifests.get(key) or blobs.get(key)
            if content is None and manifests:
                self.send_error(404)
                return
            self.send_response(429 if content is None else 200)
            content = content or json.dumps({"errors": [TOO_MANY_REQUESTS]}).encode()
            self.send_header("Content-Length", str(len(content)))
            if "/manifests/" in self.path:
                self.send_header("Content-Type", MANIFEST)
                self.send_header("Docker-Content-Digest", sha256(content))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815 -- http.server's name

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


TOO_MANY_REQUESTS = {"code": "TOOMANYREQUESTS", "message": "You have reached your pull rate limit."}
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.mark.parametrize("suffix", [":17", "@{digest}", ":17@{digest}"])
def test_what_a_registry_has_is_pulled(engine: docker.DockerClient, tmp_path: Path, suffix: str) -> None:
    """If a registry answers, its image is used, by tag or by digest, and an earlier stand-in is forgotten."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(secrets.token_hex(8)))
    layer = content.getvalue()
    layers = {"type": "layers", "diff_ids": [sha256(layer)]}
    config = json.dumps({"architecture": engine.version()["Arch"], "os": "linux", "rootfs": layers}).encode()
    described = [
        {"mediaType": f"application/vnd.docker.{kind}", "size": len(blob), "digest": sha256(blob)}
        for kind, blob in (("container.image.v1+json", config), ("image.rootfs.diff.tar", layer))
    ]
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}
    ).encode()
    record = tmp_path / ".images.yaml"
    with registry(
        {sha256(blob): blob for blob in (config, layer)}, {"17": manifest, sha256(manifest): manifest}
    ) as host:
        reference = f"{host}/postgres{suffix.format(digest=sha256(manifest))}"
        record.write_text(f"{reference}: llm-infrastructure/none:1\n")
        try:
            chosen = images.ensure(
                Steps(), engine, {"postgres": reference}, stack="any", ask=pytest.fail, record=record
            )
            assert chosen == {"postgres": reference}
            assert engine.images.get(reference).id == sha256(config)
            assert stand_ins(record) == {}
        finally:
            engine.images.remove(sha256(config), force=True)


def test_a_registry_that_wants_to_be_asked_later_is_not_replaced(engine: docker.DockerClient, tmp_path: Path) -> None:
    """Its image is available: a stand-in would stay for good."""
    record = tmp_path / ".images.yaml"
    with registry({}, {}) as host, pytest.raises(SetupError, match="no more pulls for now") as caught:
        images.ensure(
            Steps(), engine, {"postgres": f"{host}/postgres:17"}, stack="any", ask=pytest.fail, record=record
        )
    assert "docker login" in str(caught.value)
    assert TOO_MANY_REQUESTS["message"] in str(caught.value)
    assert not record.exists()
