"""A service of a Swarm that runs once, to its end: on one host, `infra/placement/job.py` uses a container for this.

It is a service whose only task is never restarted, not a service with the mode `replicated-job`. What a killed `up`
has left of it, its secrets and its configs is found by the stack's labels.
"""

from __future__ import annotations

import time
from pathlib import PurePosixPath
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import docker
from docker.types import (
    ConfigReference,
    EndpointSpec,
    Healthcheck,
    Mount,
    Resources,
    RestartPolicy,
    SecretReference,
    ServiceMode,
)

from infra.placement.engine_placement import LOG_FILES, LOG_SIZE, check_ours
from infra.placement.health import POLL_SECONDS
from infra.placement.job_wait import LONGEST_SECONDS, JobError, Progress
from infra.placement.swarm import CONFIG_MODE, RESERVED_SHARE, SECRET_MODE
from infra.placement.swarm_services import ENDED, UNFIT_SECONDS, last_lines, stand_down
from infra.workload import MEBIBYTE, SECRETS

if TYPE_CHECKING:
    from collections.abc import Mapping

COMPLETE = "complete"
NON_ZERO = "non-zero exit"
"""The state that a Swarm reports for a task whose program ran and failed."""
KILLED = 137
"""The exit code of a killed program. A Swarm does not say whether it had too little memory."""


def run(engine: docker.DockerClient, job: Mapping[str, Any]) -> None:
    """Run what the Swarm's `job` describes, and remove it. Raises JobError.

    If its node is lost, the service stays, because the program may still be running: the next `end_former` must find
    it.
    """
    try:
        service = _created(engine, job)
        _await_end(engine, job, service)
    finally:
        _remove(engine, job)


def end_former(engine: docker.DockerClient, job: Mapping[str, Any]) -> None:
    """Await and remove what a killed `up` left. Raises JobError if nobody can tell whether it is still running."""
    former = _service(engine, job)
    if former:
        check_ours(former["Spec"]["Labels"], job, "service")
        try:
            _await_end(engine, job, former["ID"])
        except JobError:
            if _lost(engine, former["ID"]):
                raise
            # Otherwise the new run repeats what that one failed to do.
    _remove(engine, job)


def _service(engine: docker.DockerClient, job: Mapping[str, Any]) -> dict[str, Any]:
    """The job's service; empty where there is none."""
    api: Any = engine.api
    try:
        found: dict[str, Any] = api.inspect_service(job["name"])
    except docker.errors.NotFound:
        return {}
    return found


def _labels(job: Mapping[str, Any]) -> dict[str, str]:
    return {each["label"]: each["value"] for each in job["labels"]}


def _created(engine: docker.DockerClient, job: Mapping[str, Any]) -> str:
    """The id of the service, whose task the Swarm starts by itself."""
    labels, memory = _labels(job), int(job["memory_mb"]) * MEBIBYTE
    api: Any = engine.api
    owner = {"uid": str(int(job["file_owner"])), "gid": str(int(job["file_owner"]))}
    secrets = {f"{SECRETS}/{name}": text for name, text in job["secrets"].items()}
    create: Any = engine.services.create
    service = create(
        job["image"],
        job["entrypoint"],
        args=job["command"],
        name=job["name"],
        labels=labels,
        container_labels=labels,
        env=[f"{name}={value}" for name, value in sorted(job["environment"].items())],
        user=job["user"],
        read_only=True,
        cap_drop=["ALL"],
        mounts=[Mount("/tmp", None, type="tmpfs")],  # noqa: S108 -- a file system of the task's own
        hosts={job["host_gateway"]: "host-gateway"} if job["host_gateway"] else None,
        healthcheck=Healthcheck(test=["NONE"]),  # an image's own entrypoint needs things that do not run here
        secrets=[
            SecretReference(*_stored(api.create_secret, job, path, text), path, **owner, mode=SECRET_MODE)
            for path, text in secrets.items()
        ],
        configs=[
            ConfigReference(*_stored(api.create_config, job, path, text), path, **owner, mode=CONFIG_MODE)
            for path, text in job["files"].items()
        ],
        resources=Resources(mem_limit=memory, mem_reservation=memory // RESERVED_SHARE),
        restart_policy=RestartPolicy("none"),
        constraints=list(job["constraints"]),
        platforms=[tuple(each) for each in job["platforms"]],
        networks=list(job["networks"]),
        log_driver="json-file",
        log_driver_options={"max-size": LOG_SIZE, "max-file": LOG_FILES},
        mode=ServiceMode("replicated", 1),
        endpoint_spec=EndpointSpec("dnsrr"),
    )
    return str(service.id)


def _stored(create: Any, job: Mapping[str, Any], path: str, text: str) -> tuple[str, str]:  # noqa: ANN401 -- docker-py
    """The id and name of a new secret or config."""
    name = f"{PurePosixPath(path).name}-{token_hex(8)}"
    return create(name, text.encode(), labels=_labels(job))["ID"], name


def _task(engine: docker.DockerClient, service: str) -> dict[str, Any]:
    """The task of a service; empty until the Swarm has created it, and if the service is gone."""
    api: Any = engine.api
    tasks: list[dict[str, Any]] = api.tasks(filters={"service": service})
    return tasks[0] if tasks else {}


def _lost(engine: docker.DockerClient, service: str) -> str:
    """The name of the node that is down but may still run a task; empty if there is none."""
    task = _task(engine, service)
    if not task or task["Status"]["State"] in ENDED:
        return ""
    api: Any = engine.api
    down = {node["ID"]: node["Description"]["Hostname"] for node in api.nodes() if node["Status"]["State"] == "down"}
    return str(down.get(task.get("NodeID"), ""))


def _await_end(engine: docker.DockerClient, job: Mapping[str, Any], service: str) -> None:
    """Wait until the task of a service has done its work. Raises JobError as soon as it no longer can."""
    begun = time.monotonic()
    progress = Progress(job["name"], f"docker service logs --follow {job['name']}")
    while True:
        task = _task(engine, service)
        status = task.get("Status", {})
        waited = time.monotonic() - begun
        if status.get("State") == COMPLETE:
            return
        if status.get("State") in ENDED:
            raise JobError(f"{_why(status)}, on node {_node(engine, task)}{_words(engine, task)}")
        if status.get("State") == "pending" and status.get("Err") and waited > UNFIT_SECONDS:
            raise JobError(f"it finds no node: {status['Err']}")
        if node := _lost(engine, service):
            raise JobError(
                f"its node {node} is down, and it may still run there. Start that node; or, if it is gone for good, "
                f"remove it: docker node rm --force {node}"
            )
        if waited > (LONGEST_SECONDS if task else UNFIT_SECONDS):
            what = f"it did not end within {LONGEST_SECONDS} s" if task else "the Swarm has no task of it"
            raise JobError(f"{what}{_words(engine, task)}")
        progress.tell(waited)
        time.sleep(POLL_SECONDS)


def _why(status: Mapping[str, Any]) -> str:
    code = status.get("ContainerStatus", {}).get("ExitCode")
    if code == KILLED:
        return f"it was killed (it exited with {KILLED}), perhaps as it had too little memory"
    reason = str(status.get("Err") or status.get("Message"))
    return f"it exited with {code}" if code and NON_ZERO in reason else reason


def _node(engine: docker.DockerClient, task: Mapping[str, Any]) -> str:
    api: Any = engine.api
    return next((it["Description"]["Hostname"] for it in api.nodes() if it["ID"] == task.get("NodeID")), "?")


def _words(engine: docker.DockerClient, task: Mapping[str, Any]) -> str:
    lines = last_lines(engine, task["ID"]) if task else ""
    return f"; its last lines:\n{lines}" if lines else ""


def _remove(engine: docker.DockerClient, job: Mapping[str, Any]) -> None:
    """Remove the service with its secrets and configs, unless its task may still be running."""
    api: Any = engine.api
    ours = {"label": [f"{label}={value}" for label, value in _labels(job).items()]}
    for service in api.services(filters=ours):
        if _lost(engine, service["ID"]):
            return
        stand_down(engine, service["ID"])  # first: tasks of a removed service cannot be listed
        api.remove_service(service["ID"])
    for secret in api.secrets(filters=ours):
        api.remove_secret(secret["ID"])
    for config in api.configs(filters=ours):
        api.remove_config(config["ID"])
