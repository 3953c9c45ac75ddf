"""The containers: there, well, confined, and what the state and the stack config say they are."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from infra import demo, edge, postgres
from infra.placement.engine import LABEL, LOG_FILES, LOG_SIZE
from infra.workload import LIVE

if TYPE_CHECKING:
    from docker.models.containers import Container
    from testinfra.host import Host

    from infra.settings import Settings
    from tests.deploy.stack import DeployedStack, Part

MEBIBYTE = 2**20
CONFIGS = {
    "litellm": ("/app/config.yaml", "litellmConfig"),
    "edge": (f"{LIVE}/current/{edge.CONFIG}", "edgeConfig"),
}
"""Where a part's config stands, and the output that shows it."""


def test_the_engine_has_the_containers_of_the_state(stack: DeployedStack) -> None:
    """Each of them, and no other that carries the stack's labels."""
    declared = {part.container for part in stack.parts}
    there = {str(container.name) for container in stack.containers()}
    assert not declared - there, f"missing: {sorted(declared - there)}. Make them again: {stack.up}"
    unknown = sorted(there - declared)
    assert not unknown, f"unknown to the state: {unknown}. If nobody needs them: {stack.docker('rm --force NAME')}"


def test_it_is_the_one_that_the_state_knows(stack: DeployedStack, part: Part, container: Container) -> None:
    """By its id, its image, and the labels by which it is found."""
    assert container.id == part.id, f"{part.container} was replaced by hand. Put the stack's own there: {stack.up}"
    assert container.attrs["Image"] == part.image, (
        f"{part.container} runs another image. Make it again: {stack.make_again(part.container)}"
    )
    wanted = stack.labels | {f"{LABEL}.part": part.kind}
    labels = {name: container.labels.get(name) for name in wanted}
    assert labels == wanted, f"{part.container} belongs to another deployment. See: ./pulumiw preview --refresh"


def test_it_runs_and_is_healthy(stack: DeployedStack, part: Part, container: Container) -> None:
    state = container.attrs["State"]
    logs = stack.docker(f"logs --tail 50 {part.container}")
    assert state["Status"] == "running", f"{part.container} is {state['Status']}. See why: {logs}. Then: {stack.up}"
    health = state.get("Health", {}).get("Status", "without a health check")
    assert health == "healthy", f"{part.container} is {health}. See why: {logs}. Then: {stack.up}"


def test_it_has_not_restarted(stack: DeployedStack, part: Part, container: Container) -> None:
    """What the engine had to start again, it will have to again."""
    restarts = container.attrs["RestartCount"]
    assert restarts == 0, (
        f"{part.container} ended and was started again, {restarts} times. See why: "
        f"{stack.docker(f'logs {part.container}')}. When that is mended, {stack.docker(f'restart {part.container}')} "
        "counts anew."
    )
    killed = container.attrs["State"]["OOMKilled"]
    assert not killed, f"{part.container} ran out of memory. Give it more: see the …MemoryMb in Pulumi.yaml"


def test_it_is_confined(stack: DeployedStack, part: Part, container: Container) -> None:
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
        "user": part.user,
        "privileged": False,
        "dropped": ["ALL"],
        "added": [],
        "no new privileges": True,
        "folders of the host": [],
        "devices": [],
        "namespaces of the host": [],
    }
    assert found == wanted, (
        f"{part.container} may do more than it should. Make it again: {stack.make_again(part.container)}"
    )


def test_no_process_in_it_has_a_privilege(stack: DeployedStack, part: Part, inside: Host) -> None:
    """Asked of the kernel, for each process: no root, no capability, and no way to gain one."""
    # A process may end between the shell's list and the reading.
    printed = inside.run("cat /proc/[0-9]*/status 2>/dev/null").stdout
    processes = [
        dict(line.split(":\t", 1) for line in process.splitlines() if ":\t" in line)
        for process in ("\n" + printed).split("\nName:")[1:]
    ]
    assert processes, f"no process can be seen in {part.container}"
    for process in processes:
        confined = (
            "0" not in process["Uid"].split()
            and {int(process[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
            and process["NoNewPrivs"] == "1"
        )
        again = stack.make_again(part.container)
        assert confined, f"process {process['Pid']} in {part.container} has privileges. Make it again: {again}"


def test_its_memory_and_its_log_are_bounded_as_configured(
    stack: DeployedStack, part: Part, container: Container
) -> None:
    host = container.attrs["HostConfig"]
    wanted = _memory_mb(stack.settings)[part.kind] * MEBIBYTE
    assert (host["Memory"], host["MemorySwap"]) == (wanted, wanted), (
        f"{part.container} has another memory limit than the stack config. See: ./pulumiw preview --stack "
        f"{stack.name}. Then: {stack.up}"
    )
    log = {"Type": "json-file", "Config": {"max-size": LOG_SIZE, "max-file": LOG_FILES}}
    assert host["LogConfig"] == log, (
        f"the log of {part.container} can grow without end. Make it again: {stack.make_again(part.container)}"
    )


def _memory_mb(settings: Settings) -> dict[str, int]:
    return {
        "postgres": settings.postgres_memory_mb,
        "demo": demo.MEMORY_MB,
        "litellm": settings.litellm_memory_mb,
        "edge": settings.edge_memory_mb,
    }


def test_its_ports_are_bound_as_configured(stack: DeployedStack, part: Part, container: Container) -> None:
    """Those of the edge and of Postgres on the configured address, the metrics on loopback, and no other at all."""
    if container.status != "running":
        pytest.skip(f"{part.container} does not run: see test_it_runs_and_is_healthy")
    bound = {
        port: {(binding["HostIp"], int(binding["HostPort"])) for binding in bindings}
        for port, bindings in container.attrs["NetworkSettings"]["Ports"].items()
        if bindings
    }
    assert bound == _ports(stack.settings).get(part.kind, {}), (
        f"{part.container} is reachable elsewhere than configured. See: ./pulumiw config --stack {stack.name}. "
        f"Then: {stack.up}"
    )


def _ports(settings: Settings) -> dict[str, dict[str, set[tuple[str, int]]]]:
    address = str(settings.bind_address)
    of_edge = {f"{edge.PORT}/tcp": {(address, settings.gateway_port)}}
    if settings.metrics_port:
        of_edge[f"{edge.METRICS_PORT}/tcp"] = {(edge.LOOPBACK, settings.metrics_port)}
    return {"edge": of_edge, "postgres": {f"{postgres.PORT}/tcp": {(address, settings.postgres_port)}}}


def test_it_is_in_no_other_network(stack: DeployedStack, part: Part, container: Container) -> None:
    """What may not reach Postgres is not in its network."""
    networks = set(container.attrs["NetworkSettings"]["Networks"])
    assert networks == part.networks, (
        f"{part.container} is in other networks. Make it again: {stack.make_again(part.container)}"
    )


def test_its_files_are_those_that_were_rendered(stack: DeployedStack, part: Part, inside: Host) -> None:
    """The configs that the stack's outputs show, and the programs, secrets and live files of the state."""
    files = dict(part.files)
    if part.kind in CONFIGS:
        path, output = CONFIGS[part.kind]
        files[path] = stack.outputs[output]
    # By checksum: a report with -vv shows what a command printed.
    result = inside.run("sha256sum -- " + " ".join(["%s"] * len(files)), *files)
    found = {path: checksum for checksum, path in (line.split("  ", 1) for line in result.stdout.splitlines())}
    changed = [path for path in files if found.get(path) != hashlib.sha256(files[path].encode()).hexdigest()]
    assert changed == [], (
        f"{changed} in {part.container} is not what was deployed. Make the container again: "
        f"{stack.make_again(part.container)}"
    )
