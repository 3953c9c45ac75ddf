"""The services on a Swarm, as its manager tells: there, well, confined, and what the state and the config say."""

from __future__ import annotations

import base64
import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

import docker
import pytest

from engine.labels import LABEL
from infra import edge
from infra.placement.engine_placement import LOG_FILES, LOG_SIZE
from infra.placement.swarm import CONFIG_MODE, RESERVED_SHARE, SECRET_MODE
from tests.deploy.test_containers import CONFIGS, processes
from tests.deploy.test_secrets import expect_no_secret

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from testinfra.host import Host

    from tests.deploy.stack import Instance, Part
    from tests.deploy.swarm_stack import SwarmStack

UNITS = {"h": 3600, "m": 60, "s": 1}
NANOSECOND = 10**9
NO_FAULTS = ("assigned node no longer meets constraints", "error while removing network")
"""How begins what the Swarm says of a task that it has taken from its node, or could not clear away at once (Engine
20.10.24, a drained node): no fault of the task's."""


@pytest.fixture
def service(stack: SwarmStack, part: Part) -> dict[str, Any]:
    """A part's service as the Swarm has it."""
    try:
        found: dict[str, Any] = stack.api.inspect_service(part.runs_as)
    except docker.errors.NotFound:
        pytest.skip(f"{part.runs_as} is not there: see test_the_swarm_has_the_services_of_the_state")
    return found


@pytest.fixture
def template(service: dict[str, Any]) -> dict[str, Any]:
    """What it makes tasks of."""
    found: dict[str, Any] = service["Spec"]["TaskTemplate"]
    return found


@pytest.fixture
def spec(template: dict[str, Any]) -> dict[str, Any]:
    """What it makes their containers of."""
    found: dict[str, Any] = template["ContainerSpec"]
    return found


def test_the_swarm_has_the_services_of_the_state(stack: SwarmStack) -> None:
    """Each of them, and no other that carries the stack's labels."""
    declared = {part.runs_as for part in stack.parts}
    there = {service["Spec"]["Name"] for service in stack.services()}
    assert not declared - there, f"missing: {sorted(declared - there)}. Create them: {stack.up}"
    unknown = sorted(there - declared)
    assert not unknown, f"unknown to the state: {unknown}. If nobody needs them: {stack.docker('service rm NAME')}"


def test_it_is_the_one_that_the_state_knows(
    stack: SwarmStack, part: Part, service: dict[str, Any], spec: dict[str, Any]
) -> None:
    """By its id, its image, and the labels by which it and its containers are found."""
    assert service["ID"] == part.id, f"{part.runs_as} was replaced by hand. Put the stack's own there: {stack.up}"
    assert spec["Image"] == part.image, (
        f"{part.runs_as} runs another image than the state says. Put that one there: {stack.up}"
    )
    assert "@sha256:" in part.image or len(stack.cluster.nodes) == 1, (
        f"{part.image} has no digest: each node may run another image by that name. Name it: {stack.up}"
    )
    wanted = stack.labels | {f"{LABEL}.part": part.kind}
    for labels in (service["Spec"]["Labels"], spec.get("Labels") or {}):
        found = {name: labels.get(name) for name in wanted}
        assert found == wanted, f"{part.runs_as} belongs to another deployment. See: ./pulumiw preview --refresh"


def test_it_runs_as_many_tasks_as_declared(stack: SwarmStack, part: Part, service: dict[str, Any]) -> None:
    """This many replicas, or one task on each node that accepts tasks and matches its constraints."""
    running = sorted(stack.node(task).name for task in stack.running(part))
    why = sorted(
        {
            it["Status"]["Err"]
            for it in stack.tasks(part)
            if it["DesiredState"] == "running" and it["Status"].get("Err")
        }
    )
    advice = f"{f'The Swarm says: {why}. ' if why else ''}See why: {stack.look_into(part)}. Then: {stack.up}"
    if "replicated" not in part.declared["mode"]:
        constraints = _constraints(part)
        nodes = sorted(it.name for it in stack.cluster.nodes if it.ready and it.fits(constraints))
        assert nodes, (
            f"{part.runs_as} runs nowhere: no node that takes tasks satisfies {' and '.join(constraints)}. "
            f"Label one: {stack.docker(f'node update --label-add {edge.NODE_LABEL}=true NODE')}"
        )
        assert running == nodes, f"{part.runs_as} runs on {running}, and should on {nodes}. {advice}"
        return
    declared = int(part.declared["mode"]["replicated"]["replicas"])
    replicas = service["Spec"]["Mode"].get("Replicated", {}).get("Replicas")
    assert replicas == declared, (
        f"{part.runs_as} was scaled by hand: it has {replicas} replicas, and {declared} are declared. As declared: "
        f"{stack.up}. To have another number for good, set replicas in the stack config"
    )
    assert len(running) == declared, (
        f"{len(running)} of the {declared} tasks of {part.runs_as} run, on {running}. {advice}"
    )


def test_none_of_its_tasks_failed(stack: SwarmStack, part: Part, service: dict[str, Any]) -> None:
    """Since its last change. A task that the Swarm had to restart will need it again."""
    changed = _time(service.get("UpdateStatus", {}).get("StartedAt") or service["CreatedAt"])
    failed = [
        f"on {stack.node_name(task)} at {task['Status']['Timestamp'][:19]} "
        f"({task['Status'].get('Err') or task['Status']['Message']})"
        for task in stack.tasks(part)
        if task["Status"]["State"] in {"failed", "rejected", "orphaned"}
        and not task["Status"].get("Err", "").startswith(NO_FAULTS)
        and _time(task["Status"]["Timestamp"]) >= changed
    ]
    assert failed == [], (
        f"tasks of {part.runs_as} failed: {'; '.join(failed)}. See why: {stack.look_into(part)}. When "
        f"that is fixed, {stack.docker(f'service update --force {part.runs_as}')} resets the count."
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_its_last_update_came_to_its_end(stack: SwarmStack, part: Part, service: dict[str, Any]) -> None:
    """It has ended, was not paused, and was not rolled back."""
    status = service.get("UpdateStatus") or {"State": "completed"}
    assert status["State"] == "completed", (
        f"the last update of {part.runs_as} is {status['State']} ({status.get('Message')}). While it goes on, wait; "
        f"else see why: {stack.look_into(part)}. When that is fixed: {stack.recreate(part)}"
    )


def test_it_is_confined(stack: SwarmStack, part: Part, spec: dict[str, Any]) -> None:
    """The user and the root folder as declared, no capability added, and nothing of the host's."""
    mounts = spec.get("Mounts") or []
    found = {
        "user": spec.get("User"),
        "read-only root": spec.get("ReadOnly", False),
        "capabilities added": spec.get("CapabilityAdd") or [],
        "own groups": spec.get("Groups") or [],
        "privileges": {name: it for name, it in (spec.get("Privileges") or {}).items() if it},
        "kernel parameters": spec.get("Sysctls") or {},
        "mounts": {(it["Type"], it.get("Source", ""), it["Target"]) for it in mounts},
    }
    declared = part.declared["taskSpec"]["containerSpec"]
    wanted = {
        "user": part.user,
        "read-only root": declared["readOnly"],
        "capabilities added": [],
        "own groups": [],
        "privileges": {},
        "kernel parameters": {},
        "mounts": {(it["type"], it.get("source", ""), it["target"]) for it in declared.get("mounts") or []},
    }
    assert found == wanted, f"{part.runs_as} may do other than declared. As declared: {stack.up}"
    assert not any(kind == "bind" for kind, _, _ in wanted["mounts"]), f"{part.runs_as} has a folder of its host's"


def test_no_process_in_it_can_gain_a_privilege(stack: SwarmStack, instance: Instance, inside: Host) -> None:
    """The kernel says so. Before Docker 25 only the engine's own settings can ensure this, not a service's."""
    if {process["NoNewPrivs"] for process in processes(inside)} != {"1"}:
        pytest.skip(
            f"a set-user-id program in a container on {instance.node} could gain privileges: put "
            f'"no-new-privileges": true into /etc/docker/daemon.json there, restart the engine, then: '
            f"{stack.docker('service update --force NAME')} for each service"
        )


def test_its_memory_and_its_log_are_bounded_as_configured(
    stack: SwarmStack, part: Part, template: dict[str, Any]
) -> None:
    """A share of its memory is reserved for it on its node."""
    resources = template.get("Resources") or {}
    found = [(resources.get(each) or {}).get("MemoryBytes") for each in ("Limits", "Reservations")]
    limit = stack.memory_limit(part)
    assert found == [limit, limit // RESERVED_SHARE], (
        f"{part.runs_as} has another memory limit or reservation than the stack config. See: ./pulumiw preview "
        f"--stack {stack.name}. Then: {stack.up}"
    )
    log = {"Name": "json-file", "Options": {"max-size": LOG_SIZE, "max-file": LOG_FILES}}
    assert template.get("LogDriver") == log, (
        f"the logs of {part.runs_as} can grow without end. As declared: {stack.up}"
    )


def test_its_ports_are_published_as_configured(stack: SwarmStack, part: Part, service: dict[str, Any]) -> None:
    """Those of the edge and of Postgres, on the nodes of their tasks, and no other; names resolve to each task."""
    endpoint = service["Spec"].get("EndpointSpec") or {}
    found = {
        (it["TargetPort"], it.get("PublishedPort"), it["Protocol"], it["PublishMode"])
        for it in endpoint.get("Ports") or []
    }
    wanted = {(port.internal, port.external, "tcp", "host") for port in stack.ports(part)}
    assert found == wanted, (
        f"{part.runs_as} is reachable elsewhere than configured. See: ./pulumiw config --stack {stack.name}. "
        f"Then: {stack.up}"
    )
    assert endpoint.get("Mode") == "dnsrr", (
        f"the name of {part.runs_as} leads to one virtual address and not to each task. As declared: {stack.up}"
    )


def test_it_is_in_no_other_network(stack: SwarmStack, part: Part, template: dict[str, Any]) -> None:
    """What may not reach Postgres is not in its network."""
    networks = {network["Target"] for network in template.get("Networks") or []}
    assert networks == part.networks, f"{part.runs_as} is in other networks. As declared: {stack.up}"


def test_it_starts_as_declared(stack: SwarmStack, part: Part, spec: dict[str, Any], template: dict[str, Any]) -> None:
    """Its command, arguments and environment, its health check, and what happens when it ends."""
    declared = part.declared["taskSpec"]["containerSpec"]
    health, restart = declared["healthcheck"], part.declared["taskSpec"]["restartPolicy"]
    found = {
        "command": spec.get("Command"),
        "arguments": spec.get("Args"),
        "environment": {name: value for name, _, value in (each.partition("=") for each in spec.get("Env") or [])},
        "names of hosts": spec.get("Hosts") or [],
        "health check": _without_nothing(spec.get("Healthcheck") or {}),
        "time to stop": spec.get("StopGracePeriod"),
        "restart policy": _without_nothing(template.get("RestartPolicy") or {}),
    }
    wanted = {
        "command": declared.get("commands"),
        "arguments": declared.get("args"),
        "environment": declared.get("env") or {},
        "names of hosts": [f"{it['ip']} {it['host']}" for it in declared.get("hosts") or []],
        "health check": {
            "Test": health["tests"],
            "Interval": _nanoseconds(health["interval"]),
            "Timeout": _nanoseconds(health["timeout"]),
            "StartPeriod": _nanoseconds(health["startPeriod"]),
            "Retries": health["retries"],
        },
        "time to stop": _nanoseconds(declared["stopGracePeriod"]),
        "restart policy": _without_nothing(
            {
                "Condition": restart["condition"],
                "Delay": _nanoseconds(restart["delay"]),
                "MaxAttempts": restart["maxAttempts"],
                "Window": _nanoseconds(restart["window"]),
            }
        ),
    }
    # Not what they are: somebody may have put a secret there.
    other = [name for name, it in wanted.items() if found[name] != it]
    assert other == [], (
        f"{', '.join(other)} of {part.runs_as}: other than declared. See: "
        f"{stack.docker(f'service inspect {part.runs_as}')}. As declared: {stack.up}"
    )


def test_it_is_placed_and_updated_as_declared(
    stack: SwarmStack, part: Part, service: dict[str, Any], template: dict[str, Any]
) -> None:
    """Its nodes, how its tasks are replaced one after another, and the rollback if one does not start."""
    spec = service["Spec"]
    found = {
        "constraints": sorted((template.get("Placement") or {}).get("Constraints") or []),
        "update": _without_nothing(spec.get("UpdateConfig") or {}),
        "rollback": _without_nothing(spec.get("RollbackConfig") or {}),
    }
    wanted = {
        "constraints": sorted(_constraints(part)),
        "update": _declared_update(part.declared["updateConfig"]),
        "rollback": _declared_update(part.declared["rollbackConfig"]),
    }
    assert found == wanted, f"{part.runs_as} is placed or updated other than declared. As declared: {stack.up}"


def _constraints(part: Part) -> Sequence[str]:
    return list(part.declared["taskSpec"]["placement"].get("constraints") or [])


def _declared_update(declared: Mapping[str, Any]) -> dict[str, Any]:
    return _without_nothing(
        {
            "Parallelism": declared["parallelism"],
            "Delay": _nanoseconds(declared["delay"]),
            "FailureAction": declared["failureAction"],
            "Monitor": _nanoseconds(declared["monitor"]),
            "MaxFailureRatio": float(declared["maxFailureRatio"]),
            "Order": declared["order"],
        }
    )


def _without_nothing(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not zero: the engine leaves some of that out."""
    return {name: value for name, value in values.items() if value}


def _nanoseconds(text: str) -> int:
    """A duration as Docker has it, from one as the state has it: "1m30s"."""
    return sum(int(count) * UNITS[unit] for count, unit in re.findall(r"(\d+)([hms])", text)) * NANOSECOND


def test_its_configs_are_those_that_were_rendered(stack: SwarmStack, part: Part, spec: dict[str, Any]) -> None:
    """As the Swarm gives them to each task: those that the stack's outputs show, and the programs of the state."""
    wanted = {
        each["fileName"]: part.files[each["fileName"]]
        for each in part.declared["taskSpec"]["containerSpec"].get("configs") or []
    }
    if part.kind in CONFIGS:
        path, output = CONFIGS[part.kind]
        wanted[path] = stack.outputs[output]
    configs = spec.get("Configs") or []
    found = {each["File"]["Name"]: _content(stack, each["ConfigID"]) for each in configs}
    changed = sorted(path for path in {*wanted, *found} if wanted.get(path) != found.get(path))
    assert changed == [], f"{changed} of {part.runs_as} is not what was deployed. As deployed: {stack.up}"
    assert {each["File"]["Mode"] for each in configs} <= {CONFIG_MODE}, f"others can change them: {stack.up}"


def _content(stack: SwarmStack, config: str) -> str:
    return base64.b64decode(stack.api.inspect_config(config)["Spec"]["Data"]).decode(errors="replace")


def test_its_secrets_are_as_declared(stack: SwarmStack, part: Part, spec: dict[str, Any]) -> None:
    """Those of the state and no other, each in its place, for the part's own user to read."""
    declared = part.declared["taskSpec"]["containerSpec"].get("secrets") or []
    wanted = {
        (it["fileName"], it["secretId"], str(it["fileUid"]), str(it["fileGid"]), f"{SECRET_MODE:o}")
        for it in declared
    }
    found = {
        (it["File"]["Name"], it["SecretID"], it["File"]["UID"], it["File"]["GID"], f"{it['File']['Mode']:o}")
        for it in spec.get("Secrets") or []
    }
    other = sorted({each[0] for each in found ^ wanted})
    assert other == [], f"{part.runs_as} gets {other} other than declared. As declared: {stack.up}"


def test_service_inspect_shows_no_secret(stack: SwarmStack, part: Part, service: dict[str, Any]) -> None:
    """Nor do its configs, which everybody with access to the Swarm can read, nor the tasks that it remembers."""
    used = service["Spec"]["TaskTemplate"]["ContainerSpec"].get("Configs") or []
    places = {
        f"docker service inspect {part.runs_as}": [service],
        f"docker inspect of the tasks of {part.runs_as}": stack.tasks(part),
        **{f"docker config inspect {it['ConfigName']}": [stack.api.inspect_config(it["ConfigID"])] for it in used},
    }
    force = stack.docker(f"service update --force {part.runs_as}")
    clear = (
        f"have the service as declared: {stack.up}. The Swarm keeps what was before and the last tasks that ended: "
        f"each {force} has it forget some"
    )
    for place, values in places.items():
        text = json.dumps(values)
        expect_no_secret(stack, place, text, clear=clear)
