"""Runs a program in a container of the stack; on a Swarm, in one on the node whose engine is asked."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import docker

from engine.connection import UNREACHABLE, connect
from infra.placement.swarm_services import nodes_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from docker.models.containers import Container

TRIES = 3


class InsideError(Exception):
    """The program did not run to its end in any container. The message is one line."""


class NobodyError(InsideError):
    """No container of the workload runs, or none on the node that is asked."""


def printed(inside: Mapping[str, Any], command: Sequence[str]) -> str:
    """What a command prints in the first container of a workload in which it succeeds.

    `inside` is what a placement's `inside` describes. The command line must hold no secret. Raises InsideError.
    """
    labels = [f"{each['label']}={each['value']}" for each in inside["labels"]]
    of_a_task = [inside["of"]] if "of" in inside else []
    try:
        with closing(connect(inside["host"])) as engine:
            found = engine.containers.list(filters={"label": [*labels, *of_a_task]}, ignore_removed=True)
            problem: InsideError = NobodyError("none of its containers runs")
            if of_a_task and not found and (nodes := nodes_of(engine, labels)):
                problem = NobodyError(
                    f"its replicas run on {' and '.join(nodes)}, and the engine at {inside['host']} reaches those of "
                    "its own node only. Name a manager that has one as dockerHost, or have as many replicas as nodes"
                )
            for container in sorted(found, key=lambda each: str(each.name)):
                try:
                    code, output, errors = _run(container, command)
                except docker.errors.APIError as error:
                    problem = InsideError(f"{container.name}: {error.explanation}")
                    continue
                if code == 0 and output:
                    return output
                lines = errors.strip().splitlines() or ["it said nothing"]
                problem = InsideError(f"{container.name}: {lines[-1]}")
            raise problem
    except UNREACHABLE as error:
        raise InsideError(f"the engine at {inside['host']} does not answer: {error}") from None


def _run(container: Container, command: Sequence[str]) -> tuple[int | None, str, str]:
    """A program's exit code and what it printed, on both streams.

    It is run again if there is nothing: under load an engine has ended a command with 0 and passed on nothing of it.
    """
    for _ in range(TRIES):
        code, streams = container.exec_run(list(command), demux=True)
        both = cast("tuple[bytes | None, bytes | None]", streams)
        output, errors = ((each or b"").decode(errors="replace") for each in both)
        if code != 0 or output:
            break
    return code, output, errors
