"""The stacks of an engine, found with the `docker` command by the labels that `infra/placement` sets on everything.

On one host a part consists of containers, on a Swarm of a service with tasks. A Swarm's manager knows every task; an
engine knows only its own containers.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from console.programs import ProgramError, output

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from console.edge_statistics import Traffic

LABEL = "llm-infrastructure"
OF_A_TASK = "com.docker.swarm.task.id"
EDGE, REPLICA, POSTGRES = "edge", "litellm", "postgres"
LOG_SECONDS = 120.0
"""For a log: the engine keeps tens of megabytes of it."""
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
SECONDS = 20.0
"""For a command: an engine behind ssh is slow."""

STOPPED = ("created", "exited", "dead")
"""What the engine says of a container that does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A container of a stack on one host, or a task of it on a Swarm."""

    name: str
    """Without the stack's name; on a Swarm with the node: `litellm-2`, `litellm-g1.2@node`."""
    kind: str
    """`edge`, `litellm`, `postgres`, `redis` or `demo`."""
    state: str
    """The engine's word for its state, with its health if it runs, and what the edge says about a replica it leaves
    out."""
    up: bool
    """Whether it runs, is healthy or was just created, and answers the edge."""
    since: datetime | None
    """Since when it has been in its state, if the engine says."""
    restarts: int | None
    """How often the engine had to restart it; None on a Swarm, which creates a new one instead."""
    image: str
    addresses: tuple[str, ...]
    container: str | None
    """The id of its container, if that is on the engine that was asked."""
    look: str
    """The command that shows why it is in its state."""
    logs: tuple[str, ...]
    """The name or id by which `docker` prints its log."""
    traffic: Traffic | None = None
    """The statistics of an edge or a replica, if the edge could be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What an engine knows about one stack."""

    name: str
    parts: tuple[Part, ...]
    short: tuple[str, ...]
    """The services with fewer running tasks than they should have, with the numbers and the command that shows
    why."""
    unseen: str
    """What this engine does not know about the stack; empty if it knows everything."""

    @property
    def edge(self) -> Part | None:
        """The edge that can be asked for statistics."""
        return next((each for each in self.parts if each.kind == EDGE and each.up and each.container), None)

    @property
    def is_off(self) -> bool:
        """Whether its edge is stopped, so that it cannot be what answers."""
        edges = [each for each in self.parts if each.kind == EDGE]
        return bool(edges) and all(each.state.startswith(STOPPED) for each in edges)


def stacks(port: int) -> list[Stack]:
    """The stacks whose edge publishes a port; those with a running edge first. Raises ProgramError."""
    ids = _docker("ps", "--all", "--quiet", "--no-trunc", f"--filter=label={LABEL}.part").split()
    containers = _inspected("container", ids)
    edges = [each for each in containers if _labels(each)[f"{LABEL}.part"] == EDGE and _publishes(each, port)]
    edges.sort(key=lambda each: not each["State"]["Running"])
    on_host = [each for each in edges if OF_A_TASK not in _labels(each)]
    if on_host and on_host[0]["State"]["Running"]:
        return [_on_host(edge, containers) for edge in on_host]
    try:
        on_swarm = _on_swarm(port, containers)
    except ProgramError as error:
        if "swarm" not in str(error).lower():
            raise
        tasks = [each for each in edges if each not in on_host]  # the manager is on another engine
        on_swarm = [
            _on_host(edge, containers, unseen=f"only the tasks of this node, because {error}") for edge in tasks
        ]
    return on_swarm + [_on_host(edge, containers) for edge in on_host]


@functools.cache
def postgres_version(container: str) -> str:
    """The version of the PostgreSQL in a container. Raises ProgramError."""
    found = re.search(r"\d[\d.]*", _docker("exec", container, "psql", "--version"))
    return found[0] if found else "unknown"


def log(part: Part) -> list[tuple[datetime, str]]:
    """What a part has written to standard output, with the time of each line. Raises ProgramError."""
    command, *rest = part.logs
    written = output(["docker", command, *rest[:-1], "--timestamps", rest[-1]], seconds=LOG_SECONDS)
    rows = (line.partition(" ") for line in written.splitlines())
    return [(datetime.fromisoformat(time), text) for time, _, text in rows if TIMESTAMP.match(time)]


def _on_host(edge: Mapping[str, Any], containers: Iterable[Mapping[str, Any]], unseen: str = "") -> Stack:
    wanted = _identity(_labels(edge))
    found = [each for each in containers if _identity(_labels(each)) == wanted]
    # The containers of earlier tasks stay behind, but are no longer part of the stack.
    now = [each for each in found if OF_A_TASK not in _labels(each) or each["State"]["Running"]]
    images = _images(frozenset(each["Image"] for each in now))
    return Stack(name=wanted[-1], parts=_ordered(_container(each, images) for each in now), short=(), unseen=unseen)


def _container(container: Mapping[str, Any], images: Mapping[str, str]) -> Part:
    labels, state = _labels(container), container["State"]
    health = state.get("Health", {}).get("Status", "none")
    status = state["Status"]
    if status == "running" and health != "none":
        status = health
    elif status == "exited":
        status = f"exited ({state['ExitCode']})"
    name, networks = container["Name"].removeprefix("/"), container["NetworkSettings"]["Networks"]
    return Part(
        kind=labels[f"{LABEL}.part"],
        name=name.removeprefix(_prefix(labels)),
        state=status,
        # An `up` has seen that what it created is healthy. The engine checks less often, and may not have checked
        # yet.
        up=status in {"running", "healthy"}
        or (status == "starting" and not container["RestartCount"] and not state["Health"]["Log"]),
        since=_time(state["StartedAt" if state["Running"] else "FinishedAt"]),
        restarts=container["RestartCount"],
        image=images.get(container["Image"], container["Image"]),
        addresses=tuple(filter(None, (each["IPAddress"] for each in networks.values()))),
        container=container["Id"],
        look=f"docker logs --tail 50 {name}"
        + ("" if state["Running"] else f", then ./pulumiw up --refresh --stack {labels[f'{LABEL}.stack']}"),
        logs=("logs", container["Id"]),
    )


def _on_swarm(port: int, containers: Sequence[Mapping[str, Any]]) -> list[Stack]:
    """The stacks on the Swarm that the engine manages. Raises ProgramError if it manages none."""
    listing = _docker("service", "ls", f"--filter=label={LABEL}.part", "--format={{json .}}")
    numbers = {row["Name"]: row["Replicas"] for row in map(json.loads, listing.splitlines())}
    services = _inspected("service", list(numbers))
    edges = [
        each
        for each in services
        if each["Spec"]["Labels"][f"{LABEL}.part"] == EDGE
        and any(it.get("PublishedPort") == port for it in each["Spec"]["EndpointSpec"].get("Ports") or [])
    ]
    if not edges:
        return []
    nodes = {row["ID"]: row for row in map(json.loads, _docker("node", "ls", "--format={{json .}}").splitlines())}
    here = {_labels(each)[OF_A_TASK]: each["Id"] for each in containers if OF_A_TASK in _labels(each)}
    found = []
    for edge in edges:
        wanted = _identity(edge["Spec"]["Labels"])
        own = {it["ID"]: it["Spec"] for it in services if _identity(it["Spec"]["Labels"]) == wanted}
        ids = _docker("service", "ps", "--quiet", "--no-trunc", "--filter=desired-state=running", *own).split()
        tasks = [
            _task(task, own[task["ServiceID"]], nodes.get(task.get("NodeID"), {}), here.get(task["ID"]))
            for task in _inspected("task", ids)
        ]
        short = [
            f"{spec['Name'].removeprefix(_prefix(spec['Labels']))}: {running} of {all_} run"
            f" (docker service ps --no-trunc {spec['Name']})"
            for spec in own.values()
            for running, all_ in [re.findall(r"\d+", numbers[spec["Name"]])[:2]]
            if int(running) < int(all_)
        ]
        parts = _ordered(tasks)
        found.append(Stack(name=wanted[-1], parts=parts, short=tuple(short), unseen=_unseen(parts)))
    return found


def _task(
    task: Mapping[str, Any], service: Mapping[str, Any], node: Mapping[str, Any], container: str | None
) -> Part:
    labels = service["Labels"]
    number = f".{task['Slot']}" if "Slot" in task else ""
    state = task["Status"]["State"]
    attachments = task.get("NetworksAttachments") or []
    return Part(
        kind=labels[f"{LABEL}.part"],
        name=f"{service['Name'].removeprefix(_prefix(labels))}{number}@{node.get('Hostname', 'no node')}",
        state=state,
        up=state == "running",  # a task with a health check gets this state once the check has passed
        since=_time(task["Status"]["Timestamp"]),
        restarts=None,
        image=task["Spec"]["ContainerSpec"]["Image"].partition("@")[0],
        addresses=tuple(
            address.partition("/")[0] for network in attachments for address in network.get("Addresses") or []
        ),
        container=container,
        look=f"docker service ps --no-trunc {service['Name']}",
        logs=("service", "logs", "--raw", task["ID"]),
    )


def _ordered(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Sorts by part and number: the tenth after the ninth."""
    return tuple(sorted(parts, key=lambda each: (each.kind, len(each.name.partition("@")[0]), each.name)))


def _unseen(parts: Iterable[Part]) -> str:
    """The edges whose statistics only other engines have."""
    others = [each.name for each in parts if each.kind == EDGE and each.up and each.container is None]
    return f"what {', '.join(others)} counted: ask the engines there" if others else ""


def _docker(*arguments: str) -> str:
    return output(["docker", *arguments], seconds=SECONDS)


def _inspected(kind: str, ids: Sequence[str]) -> list[dict[str, Any]]:
    """What the engine knows about objects that it has just listed, without those that have been removed since."""
    if not ids:
        return []
    try:
        found = json.loads(_docker("inspect", f"--type={kind}", *ids))
    except ProgramError as error:
        if "no such" not in str(error).lower():
            raise
        if len(ids) == 1:
            return []
        return [each for one in ids for each in _inspected(kind, [one])]
    return list(found)


@functools.cache
def _images(ids: frozenset[str]) -> Mapping[str, str]:
    """The names of images by their ids, where they have one."""
    found = {
        each["Id"]: [*(each["RepoTags"] or []), *(each["RepoDigests"] or [])]
        for each in _inspected("image", sorted(ids))
    }
    return {image: names[0] for image, names in found.items() if names}


def _labels(container: Mapping[str, Any]) -> Mapping[str, str]:
    labels: Mapping[str, str] = container["Config"]["Labels"]
    return labels


def _identity(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(labels.get(f"{LABEL}.{each}", "") for each in ("identity", "project", "stack"))


def _prefix(labels: Mapping[str, str]) -> str:
    return f"{labels.get(f'{LABEL}.project')}-{labels.get(f'{LABEL}.stack')}-"


def _publishes(container: Mapping[str, Any], port: int) -> bool:
    """Whether a container publishes a port, or would if it ran."""
    bindings = container["HostConfig"]["PortBindings"] or {}
    return any(each["HostPort"] == str(port) for bound in bindings.values() for each in bound or [])


def _time(text: str) -> datetime | None:
    """A time from the engine, which uses year 1 for "never"."""
    time = datetime.fromisoformat(text)
    return time if time.year > 1 else None
