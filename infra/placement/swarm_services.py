"""Services of a Swarm: how the deployment waits until each runs as declared, and how it scales one to zero."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import docker
import pulumi
import requests
from pulumi.dynamic import Resource

from engine.connection import connect
from engine.labels import LABEL
from infra.deploy_step import DeployStep
from infra.placement.engine_placement import is_ours
from infra.placement.health import LAST_LINES, POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Task = Mapping[str, Any]

PARTS_OF_A_TASK = ("ContainerSpec", "Resources", "RestartPolicy", "Networks", "LogDriver", "ForceUpdate")
ENDED = {"complete", "failed", "shutdown", "rejected", "orphaned", "remove"}
"""States of a task whose process has ended."""
UNFIT_SECONDS = 15
"""How long a task may wait for a node; after that, none will take it."""
FAILURES = 2
"""How many tasks of a new service may fail: one may have had a bad node."""
STOP_SECONDS = 120
LOG_SECONDS = 10
NOWHERE = "node.id == none"
OF_A_TASK = "com.docker.swarm.task.id"
"""The label by which an engine knows that a container is a task of a Swarm."""


def await_convergence(engine: docker.DockerClient, service: str, seconds: float) -> str:
    """Wait until a service runs as declared, and return a value that differs for each set of tasks.

    If it failed and was rolled back, raises RuntimeError with the reason, the node and the last lines of a task.
    """
    api: Any = engine.api
    begun = settled = time.monotonic()
    while True:
        declared = api.inspect_service(service)
        tasks = api.tasks(filters={"service": service})
        waited = time.monotonic() - begun
        if any(not _is_current(task, declared) and task["Status"]["State"] not in ENDED for task in tasks):
            settled = time.monotonic()  # a task that is still ending has a port that its successor waits for
        if why := _failure(declared, tasks, time.monotonic() - settled):
            raise RuntimeError(f"{declared['Spec']['Name']} {why}{_last_words(engine, tasks)}")
        current = [task for task in tasks if _is_current(task, declared) and task["DesiredState"] == "running"]
        running = [task for task in current if task["Status"]["State"] == "running"]
        others = [task for task in tasks if task not in current and task["Status"]["State"] not in ENDED]
        wanted = _wanted(declared, current)
        if wanted == 0:
            raise RuntimeError(
                f"{declared['Spec']['Name']} was scaled to 0; to bring it back: ./pulumiw up --refresh"
            )
        if len(running) == wanted == len(current) and not _updating(declared, others):
            return " ".join(sorted(task["ID"] for task in running))
        if waited > seconds:
            raise RuntimeError(
                f"{declared['Spec']['Name']} has {len(running)} of {wanted} tasks running as declared after "
                f"{seconds:.0f} s{_last_words(engine, tasks)}"
            )
        time.sleep(POLL_SECONDS)


def _wanted(service: Mapping[str, Any], current: Sequence[Task]) -> int:
    """How many tasks there should be; for a global service, Swarm creates one on each suitable node."""
    mode = service["Spec"]["Mode"]
    return int(mode["Replicated"]["Replicas"]) if "Replicated" in mode else max(len(current), 1)


def _is_current(task: Task, service: Mapping[str, Any]) -> bool:
    """Whether a task is as declared, except for its placement: Swarm does not replace a task that still fits."""
    mine, declared = task["Spec"], service["Spec"]["TaskTemplate"]
    return all(mine.get(part) == declared.get(part) for part in PARTS_OF_A_TASK)


def _updating(service: Mapping[str, Any], others: Sequence[Task]) -> bool:
    """Whether tasks of an earlier declaration are still to be replaced."""
    state = service.get("UpdateStatus", {}).get("State")
    return state in {"updating", "rollback_started"} or any(task["DesiredState"] == "running" for task in others)


def _failure(service: Mapping[str, Any], tasks: Sequence[Task], waited: float) -> str | None:
    """Why a service will never run as declared; None if it still may."""
    status = service.get("UpdateStatus", {})
    match status.get("State"):
        case "rollback_completed":
            return f"was rolled back to what it ran before: {status['Message']}"
        case "rollback_paused" | "paused":
            return f"is paused: {status['Message']}"
        case "rollback_started":
            return None
    current = [task for task in tasks if _is_current(task, service)]
    failed = [task for task in current if task["Status"]["State"] in {"failed", "rejected"}]
    if not status and len(failed) >= FAILURES:
        return f"does not start: {len(failed)} tasks failed"
    unfit = [task for task in current if task["Status"]["State"] == "pending" and task["Status"].get("Err")]
    if unfit and waited > UNFIT_SECONDS:
        return f"finds no node: {unfit[0]['Status']['Err']}"
    return None


def _last_words(engine: docker.DockerClient, tasks: Sequence[Task]) -> str:
    """What the last failed task printed, and where it ran."""
    failed = [task for task in tasks if task["Status"]["State"] in {"failed", "rejected"}]
    if not failed:
        return ""
    task = max(failed, key=lambda it: it["Status"]["Timestamp"])
    node = next((it["Description"]["Hostname"] for it in engine.api.nodes() if it["ID"] == task.get("NodeID")), "?")
    words = f"; the last one that failed, on node {node}: {task['Status'].get('Err', task['Status']['Message'])}"
    lines = last_lines(engine, task["ID"])
    return f"{words}; its last lines:\n{lines}" if lines else words


def last_lines(engine: docker.DockerClient, task: str) -> str:
    """The log lines of a task, from the node that it ran on; empty if that node does not answer."""
    api: Any = engine.api
    try:
        # docker-py reads the logs of services, which do not separate the tasks.
        answer = api.get(
            api._url("/tasks/{0}/logs", task),  # noqa: SLF001
            params={"stdout": 1, "stderr": 1, "tail": LAST_LINES},
            timeout=LOG_SECONDS,
        )
        api._raise_for_status(answer)  # noqa: SLF001
        parts = api._multiplexed_buffer_helper(answer)  # noqa: SLF001
        return b"".join(parts).decode(errors="replace").rstrip()
    except (requests.RequestException, docker.errors.DockerException):
        return ""


def nodes_of(engine: docker.DockerClient, labels: Sequence[str]) -> list[str]:
    """The names of the nodes on which tasks of services with these labels run."""
    api: Any = engine.api
    services = {service["ID"] for service in api.services(filters={"label": [*labels]})}
    names = {node["ID"]: node["Description"]["Hostname"] for node in api.nodes()}
    tasks = [task for service in services for task in api.tasks(filters={"service": service})]
    return sorted({names.get(task.get("NodeID"), "?") for task in tasks if task["Status"]["State"] == "running"})


def stand_part_down(engine: docker.DockerClient, inputs: Mapping[str, Any]) -> None:
    """Scale this deployment's service of a part to zero. `inputs` are those of the container that replaces it."""
    if not engine.info()["Swarm"].get("ControlAvailable"):
        return
    part = next(each["value"] for each in inputs["labels"] if each["label"] == f"{LABEL}.part")
    for service in engine.services.list(filters={"label": f"{LABEL}.part={part}"}):
        if is_ours(service.attrs["Spec"]["Labels"], inputs):
            pulumi.log.info(f"{service.name} is stopped: {inputs['name']} takes its place.")
            stand_down(engine, str(service.id))


def stand_down(engine: docker.DockerClient, service: str) -> None:
    """Scale a service to zero, and wait until nothing runs. Pulumi itself deletes the service."""
    api: Any = engine.api
    declared = api.inspect_service(service)
    spec = declared["Spec"]
    if "Replicated" in spec["Mode"]:
        spec["Mode"]["Replicated"]["Replicas"] = 0
    else:
        spec["TaskTemplate"]["Placement"] = {"Constraints": [NOWHERE]}
    _post(engine, f"/services/{service}/update?version={declared['Version']['Index']}", spec)
    await_end(engine, service)


def _post(engine: docker.DockerClient, path: str, data: object) -> None:
    api: Any = engine.api
    api._raise_for_status(api.post(api._url(path), json=data))  # noqa: SLF001 -- docker-py would build the spec again


def await_end(engine: docker.DockerClient, service: str) -> None:
    """Wait until no node that answers runs a process of a service, and its ended tasks are removed.

    A service that is deleted earlier may crash the engine of the Swarm's leader: swarmkit before 2.1.2, seen with
    Docker Engine 20.10.24.
    """
    api: Any = engine.api
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        down = {node["ID"] for node in api.nodes() if node["Status"]["State"] == "down"}
        tasks = [task for task in api.tasks(filters={"service": service}) if task.get("NodeID") not in down]
        running = any(task["Status"]["State"] not in ENDED for task in tasks)
        late = time.monotonic() > deadline
        if running and late:
            raise RuntimeError(f"service {service} is still running {STOP_SECONDS} s after it was told to stop")
        if not running and (late or all(task["DesiredState"] != "remove" for task in tasks)):
            return
        time.sleep(POLL_SECONDS)


class _Provider(DeployStep):
    __module__ = "infra.placement.services"  # as states name it
    id = "converged"
    inputs = ("service", "spec")
    replacing = ("service",)  # the former service is scaled down once the new one runs

    def delete(self, id: str, props: dict[str, Any]) -> None:  # noqa: A002, ARG002
        # The provider gives up on a service that uses all of its time to stop, and does not wait for other nodes.
        with closing(connect(props["host"])) as engine, suppress(docker.errors.NotFound):
            stand_down(engine, props["service"])

    def run(self, props: dict[str, Any], olds: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        with closing(connect(props["host"])) as engine:
            try:
                instance = await_convergence(engine, props["service"], props["seconds"])
            except docker.errors.NotFound:
                raise RuntimeError(f"service {props['service']} was removed while it started") from None
        return {**props, "instance": instance}


class Converged(Resource, module="services", name="Converged"):
    """A service whose tasks all run as declared and are healthy. When deleted, it ends them first.

    This is not the provider's own wait, which does not support global services, leaves a state that looks successful
    after a rollback, and shows no line of what failed.

    Creates: nothing outside the state. Type token: `pulumi-python:dynamic/services:Converged`.
    """

    instance: pulumi.Output[str]
    """Differs for each set of tasks that serves."""

    def __init__(  # noqa: PLR0913 -- all are needed, all by name
        self,
        name: str,
        *,
        host: str,
        service: pulumi.Output[str],
        declared: pulumi.Output[Any],
        seconds: float,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`service` is the service's id, `declared` what its tasks should be, `seconds` how long it may take."""
        spec = declared.apply(_digest)  # of the declaration, because what a refresh reads is never quite the same
        props = {"host": host, "service": service, "spec": spec, "seconds": seconds, "instance": None}
        super().__init__(_Provider(), name, props, opts)


def _digest(declared: object) -> str:
    return hashlib.sha256(json.dumps(declared, sort_keys=True, default=vars).encode()).hexdigest()
