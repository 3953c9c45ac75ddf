"""The containers on one Docker host: there, well, confined, and what the state and the stack config say they are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.labels import LABEL
from infra.placement.engine_placement import HEALTH_SECONDS, LOG_FILES, LOG_SIZE
from infra.placement.health import POLL_SECONDS
from tests.deploy.test_containers import processes

if TYPE_CHECKING:
    from docker.models.containers import Container
    from testinfra.host import Host

    from tests.deploy.docker_stack import DockerStack
    from tests.deploy.stack import Instance


def test_the_engine_has_the_containers_of_the_state(stack: DockerStack) -> None:
    """Each of them, and no other that carries the stack's labels."""
    declared = {part.runs_as for part in stack.parts}
    there = {str(container.name) for container in stack.containers()}
    assert not declared - there, f"missing: {sorted(declared - there)}. Create them: {stack.up}"
    unknown = sorted(there - declared)
    assert not unknown, f"unknown to the state: {unknown}. If nobody needs them: {stack.docker('rm --force NAME')}"


def test_it_is_the_one_that_the_state_knows(stack: DockerStack, instance: Instance, container: Container) -> None:
    """By its id, its image, and the labels by which it is found."""
    assert container.id == instance.part.id, (
        f"{instance.container} was replaced by hand. Put the stack's own there: {stack.up}"
    )
    assert container.attrs["Image"] == instance.part.image, (
        f"{instance.container} runs another image. Recreate it: {stack.recreate(instance.part)}"
    )
    wanted = stack.labels | {f"{LABEL}.part": instance.part.kind}
    labels = {name: container.labels.get(name) for name in wanted}
    assert labels == wanted, f"{instance.container} belongs to another deployment. See: ./pulumiw preview --refresh"


def test_it_runs_and_is_healthy(stack: DockerStack, instance: Instance, container: Container) -> None:
    state = container.attrs["State"]
    logs = stack.look_into(instance.part)
    assert state["Status"] == "running", (
        f"{instance.container} is {state['Status']}. See why: {logs}. Then: {stack.up}"
    )
    deadline = time.monotonic() + 2 * HEALTH_SECONDS
    while state.get("Health", {}).get("Status") == "starting" and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        container.reload()
        state = container.attrs["State"]
    health = state.get("Health", {}).get("Status", "without a health check")
    assert health == "healthy", f"{instance.container} is {health}. See why: {logs}. Then: {stack.up}"


def test_it_has_not_restarted(stack: DockerStack, instance: Instance, container: Container) -> None:
    """A container that the engine had to restart will need it again."""
    restarts = container.attrs["RestartCount"]
    again = stack.docker(f"restart {instance.container}")
    assert restarts == 0, (
        f"{instance.container} ended and was started again, {restarts} times. See why: "
        f"{stack.docker(f'logs {instance.container}')}. When that is fixed, {again} resets the count."
    )
    killed = container.attrs["State"]["OOMKilled"]
    assert not killed, f"{instance.container} ran out of memory. Give it more: see the …MemoryMb in Pulumi.yaml"


def test_it_is_confined(stack: DockerStack, instance: Instance, container: Container) -> None:
    """The user as declared, no capabilities, no new privileges, nothing of the host's."""
    config, host = container.attrs["Config"], container.attrs["HostConfig"]
    found = {
        "user": config["User"],
        "privileged": host["Privileged"],
        "dropped": host["CapDrop"],
        "added": host["CapAdd"] or [],
        "no new privileges": "no-new-privileges:true" in (host["SecurityOpt"] or []),
        "folders of the host": [mount["Source"] for mount in container.attrs["Mounts"] if mount["Type"] == "bind"],
        "devices": host["Devices"] or [],
        "namespaces of the host": [name for name in ("PidMode", "IpcMode", "UTSMode") if host[name] == "host"],
    }
    wanted = {
        "user": instance.part.user,
        "privileged": False,
        "dropped": ["ALL"],
        "added": [],
        "no new privileges": True,
        "folders of the host": [],
        "devices": [],
        "namespaces of the host": [],
    }
    assert found == wanted, (
        f"{instance.container} may do more than it should. Recreate it: {stack.recreate(instance.part)}"
    )


def test_no_process_in_it_can_gain_a_privilege(stack: DockerStack, instance: Instance, inside: Host) -> None:
    """Asked of the kernel too."""
    bounds = {(int(process["CapBnd"], 16), process["NoNewPrivs"]) for process in processes(inside)}
    assert bounds == {(0, "1")}, (
        f"a process in {instance.container} can gain privileges. Recreate it: {stack.recreate(instance.part)}"
    )


def test_its_memory_and_its_log_are_bounded_as_configured(
    stack: DockerStack, instance: Instance, container: Container
) -> None:
    host = container.attrs["HostConfig"]
    wanted = stack.memory_limit(instance.part)
    assert (host["Memory"], host["MemorySwap"]) == (wanted, wanted), (
        f"{instance.container} has another memory limit than the stack config. See: ./pulumiw preview --stack "
        f"{stack.name}. Then: {stack.up}"
    )
    log = {"Type": "json-file", "Config": {"max-size": LOG_SIZE, "max-file": LOG_FILES}}
    assert host["LogConfig"] == log, (
        f"the log of {instance.container} can grow without end. Recreate it: {stack.recreate(instance.part)}"
    )


def test_its_ports_are_bound_as_configured(stack: DockerStack, instance: Instance, running: Container) -> None:
    """The edge's and Postgres' on the configured address, metrics and LiteLLM's page on loopback; no others."""
    bound = {
        (port, binding["HostIp"], int(binding["HostPort"]))
        for port, bindings in running.attrs["NetworkSettings"]["Ports"].items()
        for binding in bindings or []
    }
    wanted = {(f"{port.internal}/tcp", port.address, port.external) for port in stack.ports(instance.part)}
    assert bound == wanted, (
        f"{instance.container} is reachable elsewhere than configured. See: ./pulumiw config --stack {stack.name}. "
        f"Then: {stack.up}"
    )


def test_it_is_in_no_other_network(stack: DockerStack, instance: Instance, container: Container) -> None:
    """Parts that may not reach Postgres are not in its network."""
    networks = set(container.attrs["NetworkSettings"]["Networks"])
    assert networks == instance.part.networks, (
        f"{instance.container} is in other networks. Recreate it: {stack.recreate(instance.part)}"
    )
