"""The cluster that other tests rely on is a Swarm of machines indeed, and nothing of it is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import httpx2
import pytest
from docker.types import EndpointSpec, ServiceMode

from engine.image_names import in_registry
from tests.engines import needs_an_engine_of_its_own
from tests.stack_config import PROJECT
from tests.stacks import image_of
from tests.swarm.cluster import Cluster, Node, cgroups, cluster, remove_traces, until
from tests.swarm.conftest import can_encrypt

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 8080
PUBLISHED_PORT = 80
ASK = """
import json, socket, sys, urllib.request
service, port = sys.argv[1:]
answers = []
for address in {each[4][0] for each in socket.getaddrinfo(service, port, type=socket.SOCK_STREAM)}:
    try:
        answers.append(urllib.request.urlopen(f"http://{address}:{port}/hostname", timeout=2).read().decode().strip())
    except OSError:
        answers.append("")
print(json.dumps(sorted(answers)))
"""
"""Ask at each of the addresses that a service's name has for the host name there."""

pytestmark = needs_an_engine_of_its_own


@pytest.fixture(scope="module")
def image(swarm: Cluster) -> str:
    """An image with Python in it."""
    return in_registry(image_of("litellm"), swarm.registry)


@contextmanager
def service(
    swarm: Cluster, image: str, name: str, *, network: dict[str, str] | None = None, **more: Any
) -> Iterator[None]:
    """A service, a task on each node, that answers /hostname with the name of the task's node."""
    client = swarm.leader().client
    own = str(client.networks.create(f"of-{name}", driver="overlay", options=network).id)
    defaults = {"endpoint_spec": EndpointSpec(mode="dnsrr"), "mode": ServiceMode("global")}
    client.services.create(  # type: ignore[no-untyped-call]
        image,
        name=name,
        command=["python3", "-m", "http.server", "--directory", "/etc", str(PORT)],
        hostname="{{.Node.Hostname}}",
        networks=[own],
        stop_signal="SIGKILL",
        **(defaults | more),
    )
    try:
        yield
    finally:
        swarm.leader().client.services.get(name).remove()  # type: ignore[no-untyped-call]

        def removed() -> bool:  # refused for as long as a task is on it
            swarm.leader().client.networks.get(own).remove()
            return True

        until(removed, f"no task of {name} is left")


def answers(node: Node, service: str) -> list[str]:
    """The nodes of a service's tasks, as a task of it on this node hears it from them; "" for one not heard of."""
    status, output = node.container(service).exec_run(["python3", "-c", ASK, service, str(PORT)])
    assert isinstance(output, bytes)
    assert status == 0, output.decode()
    heard: list[str] = json.loads(output)
    return heard


def await_answers(node: Node, service: str, expected: list[str]) -> None:
    until(lambda: answers(node, service) == expected, f"{node.name} hears {expected}")


def test_tasks_reach_each_other_over_nodes_by_their_services_name(swarm: Cluster, image: str) -> None:
    """DNS names every task on every node; a port that is published on nodes answers the test at each address."""
    published = EndpointSpec(mode="dnsrr", ports={PUBLISHED_PORT: (PORT, "tcp", "host")})  # type: ignore[dict-item]
    with service(swarm, image, "plain", endpoint_spec=published):
        swarm.await_running("plain", *swarm.nodes)
        names = [node.name for node in swarm.nodes]
        for node in swarm.nodes:
            await_answers(node, "plain", names)
            url = f"http://{node.address}:{PUBLISHED_PORT}/hostname"
            assert httpx2.get(url, trust_env=False).text.strip() == node.name


def test_an_encrypted_network_carries_traffic_or_nothing(swarm: Cluster, image: str) -> None:
    """Where the kernel cannot encrypt, an engine says so in its log only, and no packet goes out in clear."""
    encrypts = can_encrypt(swarm.nodes[0])
    with service(swarm, image, "encrypted", network={"encrypted": ""}):
        swarm.await_running("encrypted", *swarm.nodes)
        for node in swarm.nodes:
            heard = sorted(each.name if encrypts or each is node else "" for each in swarm.nodes)
            await_answers(node, "encrypted", heard)


def test_tasks_follow_labels_and_leave_a_drained_node(swarm: Cluster, image: str) -> None:
    first, second, _ = swarm.nodes
    with service(swarm, image, "labelled", constraints=["node.labels.tests == yes"]):
        swarm.label(first, "tests", "yes")
        swarm.await_running("labelled", first)
        swarm.label(second, "tests", "yes")
        swarm.await_running("labelled", first, second)
        swarm.drain(first)
        swarm.await_running("labelled", second)
        swarm.activate(first)
        swarm.await_running("labelled", first, second)


def test_a_leader_that_loses_its_power_is_replaced_and_comes_back(swarm: Cluster, image: str) -> None:
    """Its tasks move to the other nodes, which have another leader; with power again it is a manager as before."""
    with service(swarm, image, "moving", mode=ServiceMode("replicated", 3)):
        swarm.await_running("moving", *swarm.nodes)
        lost = swarm.leader()
        lost.kill()
        assert swarm.leader() is not lost
        until(
            lambda: len(places := swarm.running("moving")) == 3 and lost not in places, "the lost task is elsewhere"
        )
        assert swarm.state(lost) == "down"
        lost.start()
        swarm.await_state(lost, "ready")
        until(
            lambda: lost.client.nodes.get(lost.id).attrs["ManagerStatus"]["Reachability"] == "reachable",
            "it answers as a manager",
        )


def test_a_node_can_be_shut_down_and_started_again(swarm: Cluster) -> None:
    """What was on its disk is there again."""
    node = next(node for node in swarm.nodes if node is not swarm.leader())
    volume = str(node.client.volumes.create().id)
    node.end()
    swarm.await_state(node, "down")
    node.start()
    swarm.await_state(node, "ready")
    node.client.volumes.get(volume).remove()


def test_an_engine_that_crashes_is_started_again() -> None:
    """As systemd does it; what it said is shown at the end."""
    with ExitStack() as stack:
        stack.enter_context(pytest.warns(UserWarning, match="node-1's engine has crashed: SIGABRT"))
        [node] = stack.enter_context(cluster(1)).nodes
        node.run("pkill", "--signal", "ABRT", "dockerd")
        until(lambda: "SIGABRT" in node.log.read_text(), "it has crashed")
        node.await_engine()


def inhabitants(namespaces: list[str]) -> set[str]:
    """The processes in any of these namespaces."""
    found = set()
    for namespace in Path("/proc").glob("[0-9]*/ns/*"):
        with suppress(OSError):
            if str(namespace.readlink()) in namespaces:
                found.add(namespace.parts[2])
    return found


def this_network() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


@contextmanager
def busy_node() -> Iterator[tuple[Path, list[str]]]:
    """A cluster of one node that runs a container: its folder, and the namespaces of the node and the network."""
    with cluster(1) as made, closing(docker.from_env()) as usual:
        [node] = made.nodes
        [image] = node.client.images.load(usual.images.get(image_of("haproxy")).save())  # type: ignore[arg-type]  # a stream
        node.client.containers.run(str(image.id), ["sleep", "infinity"], detach=True, network_mode="host")
        own = node.run("readlink", *(f"/proc/self/ns/{kind}" for kind in ("pid", "net", "mnt", "uts"))).split()
        yield node.folder, [this_network(), *own]


def test_nothing_is_left_behind() -> None:
    """No process, no namespace, no control group, no mount and no folder, and this thread is in its network again."""
    before = this_network()
    with busy_node() as (folder, namespaces):
        assert this_network() != before
        assert len(inhabitants(namespaces)) > 5
        assert cgroups(folder)
    assert this_network() == before
    assert inhabitants(namespaces) == set()
    assert not cgroups(folder)
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    assert not folder.exists()


def test_a_failure_leaves_nothing_behind() -> None:
    """As when an engine does not come up: what was made before is taken away."""
    before = this_network()
    with pytest.raises(AssertionError, match="unknown flag: --no-such-option"), cluster(1, "--no-such-option"):
        pass
    assert this_network() == before


def test_a_test_that_is_killed_leaves_nothing_running() -> None:
    """No process is left; a folder is, and control groups that are empty."""
    program = (
        "import json, signal; from tests.swarm.test_cluster import busy_node\n"
        "with busy_node() as (folder, namespaces):\n"
        "    print(json.dumps([str(folder), *namespaces]), flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        folder, *namespaces = json.loads(process.stdout.readline())
        assert len(inhabitants(namespaces)) > 5
        process.kill()
    until(lambda: not inhabitants(namespaces), "nothing runs")
    remove_traces(Path(folder))
