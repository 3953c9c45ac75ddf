"""Waits for the health of a container on one Docker host, as a step of the deployment."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import docker
from pulumi.dynamic import Resource

from engine.connection import UNREACHABLE, connect
from infra.deploy_step import DeployStep

if TYPE_CHECKING:
    import pulumi
    from docker.models.containers import Container

POLL_SECONDS = 0.5
LAST_LINES = 15
"""How many lines of a container's log an error shows."""


def await_health(container: Container, seconds: float) -> None:
    """Wait until a container is healthy, with more frequent checks than the engine's.

    Raises RuntimeError with the container's last lines if it ends or restarts.
    """
    restarts = container.attrs["RestartCount"]
    deadline = time.monotonic() + seconds
    while True:
        container.reload()
        state = container.attrs["State"]
        ended = not state["Running"] or state["Restarting"] or container.attrs["RestartCount"] > restarts
        if not ended and (state["Health"]["Status"] == "healthy" or passes_its_check(container)):
            return
        if ended or time.monotonic() > deadline:
            what = f"exited with {_exit_code(container)}" if ended else f"was not healthy after {seconds:.0f} s"
            lines = container.logs(tail=LAST_LINES).decode(errors="replace").rstrip()
            raise RuntimeError(f"{container.name} {what}; its last lines:\n{lines}")
        time.sleep(POLL_SECONDS)


def passes_its_check(container: Container) -> bool:
    """Whether the command of the container's health check succeeds in it now."""
    _, *command = container.attrs["Config"]["Healthcheck"]["Test"]
    try:
        return bool(container.exec_run(command).exit_code == 0)
    except UNREACHABLE:  # it has ended since, or hangs: the next look at it will show
        return False


def _exit_code(container: Container) -> str:
    """The container's exit code. Once it runs again, only the engine's last few hundred events have it."""
    state = container.attrs["State"]
    if not state["Running"] or state["Restarting"]:
        return str(state["ExitCode"])
    created, started = (datetime.fromisoformat(moment) for moment in (container.attrs["Created"], state["StartedAt"]))
    try:
        ends = container.client.events(  # type: ignore[union-attr]  # one of an engine has a client
            since=created,
            until=started + timedelta(seconds=1),  # they are cut to whole seconds
            filters={"container": container.id, "event": "die"},
            decode=True,
        )
        return [str(end["Actor"]["Attributes"]["exitCode"]) for end in ends][-1]
    except (*UNREACHABLE, LookupError):
        return "an unknown code"


class _Provider(DeployStep):
    id = "healthy"
    inputs = ("container",)

    def run(self, props: dict[str, Any], olds: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        with closing(connect(props["host"])) as engine:
            try:
                await_health(engine.containers.get(props["container"]), props["start_seconds"])
            except docker.errors.NotFound:
                raise RuntimeError(f"container {props['container'][:12]} was removed while it started") from None
        return props


class Healthy(Resource, module="health", name="Healthy"):
    """A healthy container. Whatever depends on it fails with the container's own last lines.

    This is not the provider's own wait, which runs to its end even if the container exited long ago, and shows no
    line.

    Creates: nothing outside the state. Type token: `pulumi-python:dynamic/health:Healthy`.
    """

    def __init__(
        self,
        name: str,
        *,
        host: str,
        container: pulumi.Output[str],
        start_seconds: int,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`container` is the container's id; `start_seconds` is how long it may take to become healthy."""
        props = {"host": host, "container": container, "start_seconds": start_seconds}
        super().__init__(_Provider(), name, props, opts)
