"""A stack that is deployed on a Swarm: its services from the manager, its containers from the named engines."""

from __future__ import annotations

import base64
from functools import cached_property
from typing import TYPE_CHECKING, Any

import docker
import pulumi
import requests

from engine.labels import LABEL
from infra.placement.cluster import Cluster, Node
from infra.placement.swarm import CONFIG_MODE, SECRET_MODE
from infra.workload import LIVE, SECRETS
from tests.deploy.stack import DeployedStack, Instance, Part, StackError, clear

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.deploy.stack import StackConfig

SERVICE = "docker:index/service:Service"
SECRET = "docker:index/secret:Secret"
CONFIG = "docker:index/serviceConfig:ServiceConfig"
NETWORK = "docker:index/network:Network"
LOG_SECONDS = 30
SERVICE_ID = "com.docker.swarm.service.id"
"""The label by which an engine knows to which task a container belongs."""


class SwarmStack(DeployedStack):
    """Each part is a service that the state has; each of its tasks that runs is a container on a node."""

    IS_THERE = "test_it_runs_as_many_tasks_as_declared; if that passes, the task has just been replaced: check again"
    RUNS = "test_it_runs_as_many_tasks_as_declared"

    def __init__(self, config: StackConfig, hosts: Sequence[str]) -> None:
        """`hosts` are the addresses of engines of nodes, beside the one that the config names."""
        super().__init__(config)
        try:
            self.cluster = Cluster(self.settings.docker_host)
        except pulumi.RunError as error:
            raise StackError(str(error)) from None
        self.api: Any = self.engine.api
        self._hosts = {self.cluster.own_id: self.settings.docker_host}
        known = {node.id for node in self.cluster.nodes}
        for host in hosts:
            node = self.engine_at(host).info()["Swarm"].get("NodeID")
            if node not in known:
                raise StackError(f"the engine at {host}, --node, is no node of the Swarm of stack {self.name}")
            self._hosts.setdefault(node, host)

    @cached_property
    def parts(self) -> list[Part]:
        contents = {
            resource["id"]: base64.b64decode(clear(resource["inputs"]["data"])).decode()
            for kind in (SECRET, CONFIG)
            for resource in self.of_type(kind)
        }
        return [_part(resource, contents) for resource in self.of_type(SERVICE)]

    @cached_property
    def instances(self) -> list[Instance]:
        return [self._instance(part, task) for part in self.parts for task in self.running(part)]

    def _instance(self, part: Part, task: Mapping[str, Any]) -> Instance:
        node = self.node(task)
        number = f".{task['Slot']}" if "Slot" in task else ""
        return Instance(
            part=part,
            name=f"{part.name}{number}@{node.name}",
            container=f"{part.runs_as}.{task.get('Slot', node.id)}.{task['ID']}",
            node=node.name,
            host=self._hosts.get(node.id),
        )

    @property
    def volumes(self) -> int:
        # On another node, the task that mounts it creates it there.
        node = self.cluster.node(self.settings.postgres_node or "")
        return int(node is not None and node.id == self.cluster.own_id)

    @property
    def reached(self) -> list[Node]:
        """The nodes whose engines can be asked."""
        return [node for node in self.cluster.nodes if node.id in self._hosts]

    def engine_on(self, node: Node) -> docker.DockerClient:
        """The engine of a node that is reached."""
        return self.engine_at(self._hosts[node.id])

    def node(self, task: Mapping[str, Any]) -> Node:
        """Where a task is, which has been given a node."""
        return next(node for node in self.cluster.nodes if node.id == task["NodeID"])

    def node_name(self, task: Mapping[str, Any]) -> str:
        """The name of the node that a task was given, which may have left the Swarm since."""
        wanted = task.get("NodeID", "no node")
        return next((node.name for node in self.cluster.nodes if node.id == wanted), wanted)

    def tasks(self, part: Part) -> list[dict[str, Any]]:
        """Every task of a part that the Swarm remembers: the present ones, and the last few predecessors of each."""
        tasks: list[dict[str, Any]] = self.api.tasks(filters={"service": part.id})
        return tasks

    def running(self, part: Part) -> list[dict[str, Any]]:
        """The tasks of a part that run and are to run, in the order of their nodes."""
        found = [
            task
            for task in self.tasks(part)
            if task["DesiredState"] == "running" and task["Status"]["State"] == "running"
        ]
        return sorted(found, key=lambda task: (task.get("Slot", 0), self.node(task).name))

    def services(self) -> list[dict[str, Any]]:
        """Every service on the Swarm with the stack's name."""
        services: list[dict[str, Any]] = self.api.services(filters={"label": self.labelled})
        return services

    def modes(self, part: Part) -> tuple[list[str], dict[str, int]]:
        container = part.declared["taskSpec"]["containerSpec"]
        own = {each["fileName"]: CONFIG_MODE for each in container.get("configs") or []}
        own |= {each["fileName"]: SECRET_MODE for each in container.get("secrets") or []}
        return [SECRETS, LIVE, f"{LIVE}/current"], own

    def log(self, part: Part) -> tuple[str, list[str]]:
        self.api.inspect_service(part.runs_as)
        up = {node["ID"] for node in self.api.nodes() if node["Status"]["State"] == "ready"}
        # A task that never had a container has no log.
        tasks = [it for it in self.tasks(part) if it["Status"].get("ContainerStatus", {}).get("ContainerID")]
        texts = {task["ID"]: self._log(task["ID"]) if task["NodeID"] in up else None for task in tasks}
        missing = {self.node_name(task) for task in tasks if texts[task["ID"]] is None}
        return "\n".join(text for text in texts.values() if text), sorted(missing)

    def _log(self, task: str) -> str | None:
        # Not that of the service: the Swarm waits for ever for a node that is down, and docker-py with it.
        try:
            return self._read_log(task)
        except (requests.RequestException, docker.errors.DockerException):
            return None

    def _read_log(self, task: str) -> str:
        answer = self.api.get(
            self.api._url("/tasks/{0}/logs", task), params={"stdout": 1, "stderr": 1}, timeout=LOG_SECONDS
        )
        self.api._raise_for_status(answer)
        return b"".join(self.api._multiplexed_buffer_helper(answer)).decode(errors="replace")

    def look_into(self, part: Part) -> str:
        return (
            f"{self.docker(f'service ps --no-trunc {part.runs_as}')} and "
            f"{self.docker(f'service logs --tail 50 {part.runs_as}')} (while a node is down it ends by Ctrl-C)"
        )

    def recreate(self, part: Part) -> str:
        return f"{self.up} && {self.docker(f'service update --force {part.runs_as}')}"

    def end_log(self, part: Part) -> str:
        ended = f"docker container prune --filter label=com.docker.swarm.service.name={part.runs_as}"
        return f"end it with its containers: {self.recreate(part)}, then on each node: {ended}"


def _part(resource: Mapping[str, Any], contents: Mapping[str, str]) -> Part:
    inputs = clear(resource["inputs"])
    task = inputs["taskSpec"]
    container = task["containerSpec"]
    labels = {each["label"]: each["value"] for each in inputs["labels"]}
    files = [(each["fileName"], each["configId"]) for each in container.get("configs") or []]
    files += [(each["fileName"], each["secretId"]) for each in container.get("secrets") or []]
    return Part(
        name=resource["name"],
        kind=labels[f"{LABEL}.part"],
        runs_as=inputs["name"],
        id=resource["id"],
        image=container["image"],
        user=container["user"],
        networks=frozenset(it["id"] for it in task["networksAdvanceds"]),
        volumes={it["target"]: it["source"] for it in container.get("mounts") or [] if it["type"] == "volume"},
        files={path: contents[each] for path, each in files},
        declared=inputs,
    )
