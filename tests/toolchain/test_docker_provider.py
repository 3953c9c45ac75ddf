"""The Docker provider that is built where the official one is not to be had: what of pulumi-docker it understands."""

from __future__ import annotations

import subprocess
import typing
from collections.abc import Sequence
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
    from collections.abc import Iterator

LACKING = {
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
"""What the Python package has and the older upstream of the built provider has not, by resource."""


@pytest.fixture(scope="module")
def provider() -> Iterator[ResourceProviderStub]:
    with Steps() as steps:
        program = tools.ensure(steps) / tools.DOCKER_FILE
    if not program.exists():
        pytest.skip("the official Docker provider is installed, and the built one is not needed")
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with grpc.insecure_channel(f"127.0.0.1:{process.stdout.readline().strip()}") as channel:
            yield ResourceProviderStub(channel)
        process.terminate()


def properties(arguments: type) -> Iterator[tuple[str, dict[str, object]]]:
    """Each property of a resource's arguments: its path, and inputs in which it alone is set."""
    for name, kind in input_type_types(arguments).items():
        is_list = typing.get_origin(kind) is Sequence
        element = typing.get_args(kind)[0] if is_list else kind
        inside = next((each for each in (element, *typing.get_args(element)) if is_input_type(each)), None)
        for path, inputs in [("", {}), *properties(inside)] if inside else [("", "x")]:
            yield f"{name}.{path}".rstrip("."), {name: [inputs] if is_list else inputs}


@pytest.mark.parametrize("resource", LACKING)
def test_property_names(provider: ResourceProviderStub, resource: str) -> None:
    """It knows every property of pulumi-docker by the name that is sent, and refuses what it does not have."""
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
    assert refused == LACKING[resource]
