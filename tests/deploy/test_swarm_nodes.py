"""What a stack has on a Swarm beside its services: networks, nodes for callers, and nothing left over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import docker
import httpx2
import pytest

from infra import edge, gateway
from tests.deploy.conftest import STACK
from tests.deploy.swarm_stack import CONFIG, NETWORK, SECRET, SERVICE_ID, SwarmStack
from tests.deploy.test_gateway import REFUSED, bearer, connections

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from infra.placement.cluster import Node

CONNECT_SECONDS = 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    stack = cast("SwarmStack", metafunc.config.stash[STACK])
    if "edge_node" in metafunc.fixturenames:
        nodes = [node for node in stack.cluster.nodes if node.fits([f"node.labels.{edge.NODE_LABEL} == true"])]
        metafunc.parametrize("edge_node", nodes, ids=[node.name for node in nodes])
    if "network" in metafunc.fixturenames:
        networks = [*stack.of_type(NETWORK)]
        metafunc.parametrize("network", networks, ids=[network["name"] for network in networks])


def test_the_network_is_the_stacks_own_and_encrypted_as_configured(
    stack: SwarmStack, network: dict[str, Any]
) -> None:
    try:
        found = stack.api.inspect_network(network["id"])
    except docker.errors.NotFound:
        pytest.fail(f"the network {network['inputs']['name']} is gone. Recreate it: {stack.up}", pytrace=False)
    labels = found["Labels"] or {}
    assert labels.items() >= stack.labels.items(), (
        f"{found['Name']} belongs to another deployment. See: ./pulumiw preview --refresh --stack {stack.name}"
    )
    assert (found["Driver"], found["Attachable"], found["Ingress"]) == ("overlay", False, False), (
        f"any container on any node may join {found['Name']}. Remove it when nothing runs in it, then: {stack.up}"
    )
    encrypted = "encrypted" in (found["Options"] or {})
    assert encrypted == stack.settings.encrypt_networks, (
        f"encryptNetworks is {str(stack.settings.encrypt_networks).lower()}, and {found['Name']} is "
        f"{'' if encrypted else 'not '}encrypted. A move to one host and back changes it: docs/machines.md"
    )


def test_nothing_is_left_over(stack: SwarmStack) -> None:
    """No secret, network, container or config of the stack is there that the state does not know."""
    unknown = [
        *_unknown(stack, "secret", SECRET, stack.api.secrets(filters={"label": stack.labelled})),
        *_unknown(stack, "network", NETWORK, stack.api.networks(filters={"label": stack.labelled})),
        *_left_configs(stack),
        *_left_containers(stack),
    ]
    assert unknown == [], (
        "left over, as after an `up` that was killed; nothing of the state uses it. Remove it: " + "; ".join(unknown)
    )


def _unknown(stack: SwarmStack, kind: str, type_: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    declared = {resource["id"] for resource in stack.of_type(type_)}
    names = [it.get("Name") or it["Spec"]["Name"] for it in found if it.get("Id", it.get("ID")) not in declared]
    return [stack.docker(f"{kind} rm {' '.join(sorted(names))}")] if names else []


def _left_configs(stack: SwarmStack) -> list[str]:
    """Those with the stack's labels that the state does not know.

    Those of 0.1.0 have none, nor has one whose `up` was killed at that moment: one that is named as the stack's are,
    and that no service has, is nobody's.
    """
    declared = [*stack.of_type(CONFIG)]
    named = re.compile("|".join(rf"{re.escape(it['name'])}-[0-9a-f]{{7}}" for it in declared))
    used = {
        config["ConfigID"]
        for service in stack.api.services()
        for spec in (service["Spec"], service.get("PreviousSpec") or {})
        for config in ((spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}).get("Configs") or []
    } | {it["id"] for it in declared}
    labelled = {it["ID"] for it in stack.api.configs(filters={"label": stack.labelled})}
    left = sorted(
        it["Spec"]["Name"]
        for it in stack.api.configs()
        if it["ID"] not in used and (it["ID"] in labelled or named.fullmatch(it["Spec"]["Name"]))
    )
    return [stack.docker(f"config rm {' '.join(left)}")] if left else []


def _left_containers(stack: SwarmStack) -> list[str]:
    """On each node that is reached, containers that are no task of the Swarm's."""
    return [
        f"docker rm --force {container.name}, on {node.name}"
        for node in stack.reached
        for container in stack.engine_on(node).containers.list(
            all=True, filters={"label": stack.labelled}, ignore_removed=True
        )
        if SERVICE_ID not in container.labels
    ]


def test_each_container_can_be_looked_into(stack: SwarmStack) -> None:
    """A Swarm's manager cannot enter containers on other nodes: their engines must be named."""
    others = [instance for instance in stack.instances if instance.host is None]
    names = " ".join(f"--node ssh://{node}" for node in sorted({instance.node for instance in others}))
    if others:
        pytest.skip(
            f"not looked into: {', '.join(it.name for it in others)}. Processes, files, images and arguments there "
            f"remain to be checked: .venv/bin/pytest tests/deploy --stack {stack.name} {names}"
        )


def test_each_edge_node_accepts_callers(stack: SwarmStack, edge_node: Node) -> None:
    """At its own address, with the keys of now: a load balancer or DNS may lead callers to any of them."""
    label = stack.docker(f"node update --label-rm {edge.NODE_LABEL} {edge_node.name}")
    assert edge_node.ready, (
        f"{edge_node.name} ({edge_node.address}) is labelled {edge.NODE_LABEL} and takes no tasks. See: "
        f"{stack.docker(f'node inspect --pretty {edge_node.name}')}. If it is down, start its engine; if it was "
        f"drained: {stack.docker(f'node update --availability active {edge_node.name}')}; to do without it: {label}"
    )
    scheme = stack.outputs["litellmUrl"].split("://", 1)[0]
    url = f"{scheme}://{edge_node.address}:{stack.settings.gateway_port}"
    with connections(stack, url) as client:
        try:
            alive = client.get(gateway.LIVELINESS, timeout=httpx2.Timeout(60, connect=CONNECT_SECONDS)).status_code
            refused = client.get("/v1/models").status_code
            opened = client.get("/v1/models", headers=bearer(stack.outputs["litellmApiKey"])).status_code
        except httpx2.ConnectTimeout:
            pytest.skip(
                f"{edge_node.name} was not asked: nothing at all comes back from {url}, where this runs. "
                f"Ask where its callers are: curl {url}{gateway.LIVELINESS}"
            )
        except httpx2.HTTPError as error:
            pytest.fail(
                f"{edge_node.name} accepts nobody at {url}: {type(error).__name__}: {error}. "
                f"See: {stack.look_into(stack.part('edge'))}. Then: {stack.up}",
                pytrace=False,
            )
    assert (alive, refused, opened) == (httpx2.codes.OK, REFUSED, httpx2.codes.OK), (
        f"the edge on {edge_node.name} answers {alive}, {refused} without a key and {opened} with one. Give it its "
        f"files again: {stack.recreate(stack.part('edge'))}"
    )
