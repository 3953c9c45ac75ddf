"""The Docker provider that is built if the official one is not available: what it supports of pulumi-docker."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
import typing
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc  # type: ignore[import-untyped]
import pulumi_docker
import pytest
from google.protobuf.struct_pb2 import Struct  # type: ignore[import-untyped]
from pulumi._types import input_type_types, is_input_type
from pulumi.runtime.proto import provider_pb2
from pulumi.runtime.proto.provider_pb2_grpc import ResourceProviderStub

from toolchain import tools
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MISSING = {
    "Container": {
        "cgroupParent",
        "cgroupnsMode",
        "cpuPeriod",
        "cpuQuota",
        "cpus",
        "deviceCgroupRules",
        "deviceReadBps",
        "deviceReadIops",
        "deviceRequests",
        "deviceWriteBps",
        "deviceWriteIops",
        "healthcheck.startInterval",
        "memoryReservation",
        "mounts.volumeOptions.subpath",
        "networksAdvanced.driverOpts",
        "networksAdvanced.gwPriority",
        "networksAdvanced.linkLocalIps",
        "networksAdvanced.macAddress",
        "platform",
        "uploads.group",
        "uploads.owner",
        "uploads.permissions",
        "volumes.selinuxRelabel",
    },
    "Network": {"ipamOptions"},
    "Secret": set(),
    "Service": {
        "taskSpec.containerSpec.capAdds",
        "taskSpec.containerSpec.capDrops",
        "taskSpec.containerSpec.init",
        "taskSpec.containerSpec.sysctl",
        "taskSpec.networksAdvanceds.aliases",
        "taskSpec.networksAdvanceds.driverOpts",
        "taskSpec.networksAdvanceds.name",
    },
    "ServiceConfig": {"dataRaw", "labels"},
    "Volume": {"cluster"},
}
"""Properties of the Python package that the older upstream of the built provider does not have, by resource."""


class Engine(http.server.ThreadingHTTPServer):
    """An engine that takes requests of a range of API versions, and has one answer to all but its ping."""

    def __init__(self, *, oldest: str, newest: str, status: int, answer: Mapping[str, object]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.oldest, self.newest, self.status, self.answer = oldest, newest, status, answer
        self.asked: list[str] = []

    @contextmanager
    def running(self) -> Iterator[str]:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        try:
            yield f"tcp://127.0.0.1:{self.server_address[1]}"
        finally:
            self.shutdown()
            self.server_close()


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        if self.path.endswith("/_ping"):
            self._send(200, {})
            return
        version = self.path.split("/")[1].removeprefix("v")
        self.server.asked.append(version)
        if int(version.split(".")[1]) < int(self.server.oldest.split(".")[1]):
            self._send(400, {"message": f"client version {version} is too old"})
        else:
            self._send(self.server.status, self.server.answer)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, status: int, answer: Mapping[str, object]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Api-Version", self.server.newest)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- as the base class has it
        pass


def read(resource: str, engine: str) -> str:
    """What a refresh finds under the id `it`: the id, or nothing where the resource is gone. Raises grpc.RpcError."""
    with running_provider() as provider:
        settings = Struct()
        settings.update({"host": engine})
        provider.Configure(provider_pb2.ConfigureRequest(args=settings, acceptSecrets=True))
        urn = f"urn:pulumi:stack::project::docker:index/{resource[0].lower()}{resource[1:]}:{resource}::name"
        properties = Struct()
        properties.update({"name": "it"})
        found = provider.Read(provider_pb2.ReadRequest(id="it", urn=urn, properties=properties))
        return str(found.id)


@pytest.fixture(scope="module")
def provider() -> Iterator[ResourceProviderStub]:
    with running_provider() as running:
        yield running


@contextmanager
def running_provider() -> Iterator[ResourceProviderStub]:
    with Steps() as steps:
        program = tools.ensure(steps) / tools.DOCKER_FILE
    if not program.exists():
        pytest.skip("the official Docker provider is installed, and the built one is not needed")
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            with grpc.insecure_channel(f"127.0.0.1:{process.stdout.readline().strip()}") as channel:
                yield ResourceProviderStub(channel)
        finally:
            process.terminate()


def properties(arguments: type) -> Iterator[tuple[str, dict[str, object]]]:
    """Each property of a resource's arguments: its path, and inputs in which it alone is set."""
    for name, kind in input_type_types(arguments).items():
        is_list = typing.get_origin(kind) is Sequence
        element = typing.get_args(kind)[0] if is_list else kind
        inside = next((each for each in (element, *typing.get_args(element)) if is_input_type(each)), None)
        for path, inputs in [("", {}), *properties(inside)] if inside else [("", "x")]:
            yield f"{name}.{path}".rstrip("."), {name: [inputs] if is_list else inputs}


@pytest.mark.parametrize("resource", MISSING)
def test_property_names(provider: ResourceProviderStub, resource: str) -> None:
    """It knows every property of pulumi-docker under the name that is sent, and refuses those it does not have."""
    token = f"docker:index/{resource[0].lower()}{resource[1:]}:{resource}"
    refused = set()
    for path, inputs in properties(getattr(pulumi_docker, f"{resource}Args")):
        if path.rpartition(".")[0] in refused:
            continue
        news = Struct()
        news.update(inputs)
        request = provider_pb2.CheckRequest(urn=f"urn:pulumi:stack::project::{token}::name", news=news)
        try:
            reasons = [failure.reason for failure in provider.Check(request).failures]
        except grpc.RpcError as error:
            reasons = [str(error)]
        if any("unknown key" in reason for reason in reasons):
            refused.add(path)
    assert refused == MISSING[resource]


@pytest.mark.parametrize(("oldest", "newest", "spoken"), [("1.12", "1.41", "1.41"), ("1.44", "1.52", "1.44")])
def test_api_version(oldest: str, newest: str, spoken: str) -> None:
    """It uses a version of the API that the engine accepts, from Docker Engine 20.10 to those that refuse 1.41."""
    volume = {"Name": "it", "Driver": "local", "Mountpoint": "/it", "Labels": {}, "Options": {}, "Scope": "local"}
    engine = Engine(oldest=oldest, newest=newest, status=200, answer=volume)
    with engine.running() as host:
        assert read("Volume", host) == "it"
    assert set(engine.asked) == {spoken}


@pytest.mark.parametrize(
    "resource", ["Network", "ServiceConfig", "Secret", "Volume", "Container", "Service", "RemoteImage"]
)
def test_an_error_is_not_a_loss(resource: str) -> None:
    """A refresh fails if the engine does: only what the engine reports as gone leaves the state."""
    engine = Engine(oldest="1.12", newest="1.41", status=500, answer={"message": "the disk is full"})
    with engine.running() as host, pytest.raises(grpc.RpcError, match="the disk is full"):
        read(resource, host)


@pytest.mark.parametrize("resource", ["Network", "ServiceConfig", "Secret", "Volume"])
def test_a_loss_is_noticed(resource: str) -> None:
    """A refresh removes what the engine reports as gone from the state, so that the next `up` recreates it."""
    engine = Engine(oldest="1.12", newest="1.41", status=404, answer={"message": "no such thing"})
    with engine.running() as host:
        assert not read(resource, host)
