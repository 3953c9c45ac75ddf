"""A workload that runs once, to its end, as a step of the deployment: a container, or on a Swarm a service."""

from __future__ import annotations

import io
import tarfile
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import docker

from engine.connection import connect
from infra.placement import swarm_job
from infra.placement.engine_placement import LOG_FILES, LOG_SIZE, check_ours
from infra.placement.job_wait import LONGEST_SECONDS, JobError, Progress
from infra.workload import SECRETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from docker.models.containers import Container

__all__ = ["JobError", "end_former", "run"]

POLL_SECONDS = 0.5
LAST_LINES = 15
"""How many lines of a container's log an error shows."""
OF_A_SWARM = "constraints"
"""Arguments that only a Swarm's job has."""


def run(job: Mapping[str, Any]) -> None:
    """Run what a placement's `job` describes, and remove everything that was created for it. Raises JobError."""
    with closing(connect(job["host"])) as engine:
        if OF_A_SWARM in job:
            swarm_job.run(engine, job)
            return
        container = _created(engine, job)
        try:
            container.start()
            _await_end(container)
        finally:
            container.remove(force=True)


def end_former(job: Mapping[str, Any]) -> None:
    """Await and remove what a killed `up` left. Call it before anything else in a new run. Raises JobError."""
    with closing(connect(job["host"])) as engine:
        if OF_A_SWARM in job:
            swarm_job.end_former(engine, job)
            return
        try:
            former = engine.containers.get(job["name"])
        except docker.errors.NotFound:
            return
        check_ours(former.labels, job, "container")
        try:
            if former.status == "running":
                _await_end(former)
        except JobError:
            pass  # the new run repeats what that one failed to do
        finally:
            former.remove(force=True)


def _created(engine: docker.DockerClient, job: Mapping[str, Any]) -> Container:
    first, *others = job["networks"]
    container = engine.containers.create(
        job["image"],
        name=job["name"],
        entrypoint=job["entrypoint"],
        command=job["command"],
        environment=job["environment"],
        labels={each["label"]: each["value"] for each in job["labels"]},
        user=job["user"],
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        mem_limit=f"{int(job['memory_mb'])}m",
        memswap_limit=f"{int(job['memory_mb'])}m",
        extra_hosts={job["host_gateway"]: "host-gateway"} if job["host_gateway"] else None,
        log_config=docker.types.LogConfig(type="json-file", config={"max-size": LOG_SIZE, "max-file": LOG_FILES}),
        network=first,
    )
    try:
        for other in others:
            engine.networks.get(other).connect(container)
        owner = int(job["file_owner"])
        secret = {f"{SECRETS}/{name}": text for name, text in job["secrets"].items()}
        container.put_archive("/", _archive(job["files"], 0o444, 0))
        container.put_archive("/", _archive(secret, 0o400, owner))
    except BaseException:
        container.remove(force=True)
        raise
    return container


def _archive(files: Mapping[str, str], mode: int, owner: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, text in files.items():
            content = text.encode()
            entry = tarfile.TarInfo(path.removeprefix("/"))
            entry.size, entry.mode, entry.uid, entry.gid = len(content), mode, owner, owner
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _await_end(container: Container) -> None:
    started = time.monotonic()
    progress = Progress(str(container.name), f"docker logs --follow {container.name}")
    while True:
        container.reload()
        state = container.attrs["State"]
        if not state["Running"]:
            break
        waited = time.monotonic() - started
        if waited > LONGEST_SECONDS:
            raise JobError(f"it did not end within {LONGEST_SECONDS} s; its last lines:\n{_last_lines(container)}")
        progress.tell(waited)
        time.sleep(POLL_SECONDS)
    if state["ExitCode"] != 0 or state["OOMKilled"]:
        why = "it had too little memory" if state["OOMKilled"] else f"it exited with {state['ExitCode']}"
        raise JobError(f"{why}; its last lines:\n{_last_lines(container)}")


def _last_lines(container: Container) -> str:
    return container.logs(tail=LAST_LINES).decode(errors="replace").rstrip()
