"""A Swarm as it is before anything changes: its nodes, and what prevents a stack from running on it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import docker
import pulumi

from engine.certificates import docker_command
from engine.connection import UNREACHABLE, connect
from infra.settings import CONSTRAINT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the Swarm."""

    id: str
    name: str
    address: str
    ready: bool
    """Whether it is up and accepts tasks."""
    attributes: Mapping[str, str]
    """What constraints can refer to."""

    def fits(self, constraints: Sequence[str]) -> bool:
        """Whether it satisfies placement constraints."""
        return all(self._fits(constraint) for constraint in constraints)

    def _fits(self, constraint: str) -> bool:
        match = CONSTRAINT.fullmatch(constraint)
        assert match, constraint  # noqa: S101 -- the settings have checked it
        equal = self.attributes.get(match["key"], "").lower() == match["value"].lower()
        return equal == (match["operator"] == "==")


class Cluster:
    """The nodes of the Swarm that an engine manages."""

    def __init__(self, host: str) -> None:
        """Ask the engine at `host`. Raises RunError, with the command that fixes it, unless it manages a Swarm."""
        self.host = host
        try:
            with closing(connect(host)) as engine:
                swarm = engine.info()["Swarm"]
                nodes = engine.api.nodes() if swarm.get("ControlAvailable") else []
                networks = engine.api.networks(filters={"driver": "overlay"}) if nodes else []
                services = engine.api.services() if nodes else []  # type: ignore[no-untyped-call]
        except docker.errors.APIError as error:
            raise pulumi.RunError(f"The Swarm at {host} has no leader: {error.explanation}") from error
        except UNREACHABLE as error:
            raise pulumi.RunError(
                f"The Docker Engine at {host} (dockerHost) does not answer: {error}. Nothing was changed.\n"
                f"  See why: {docker_command(host)} version"
            ) from error
        if swarm["LocalNodeState"] == "inactive":
            self._refuse(f"is not in a Swarm. Make it the first manager of one: {docker_command(host)} swarm init")
        if not nodes:
            managers = [each["Addr"].rsplit(":", 1)[0] for each in swarm.get("RemoteManagers") or []]
            known = ", ".join(managers) or "none is known here"
            self._refuse(
                f"is not a manager of its Swarm ({swarm['LocalNodeState']}). Name one as dockerHost: {known}"
            )
        self.own_id: str = swarm["NodeID"]
        self.nodes = sorted(map(_node, nodes), key=lambda node: node.name)
        used = {each["Target"] for it in services for each in it["Spec"]["TaskTemplate"].get("Networks") or ()}
        self.encrypted = {
            each["Name"]: "encrypted" in (each["Options"] or {}) for each in networks if each["Id"] in used
        }
        """Whether the networks that services use are encrypted, by name."""

    def _refuse(self, what: str) -> None:
        raise pulumi.RunError(f"The engine at {self.host} (dockerHost) {what}\nNothing was changed.")

    def node(self, name: str) -> Node | None:
        """The node with this name; the engine's own node for the empty name."""
        return next((it for it in self.nodes if (it.name == name if name else it.id == self.own_id)), None)

    def check(self, wants: Mapping[str, Sequence[str]]) -> None:
        """Raise RunError that lists the parts in `wants` for whose constraints no node is available."""
        problems = [
            f"{part}: no node that is ready and active satisfies {' and '.join(constraints) or 'nothing at all'}"
            for part, constraints in wants.items()
            if not any(node.ready and node.fits(constraints) for node in self.nodes)
        ]
        if problems:
            raise pulumi.RunError(
                "\n".join(
                    [
                        f"The Swarm of {self.host} cannot run stack {pulumi.get_stack()}; nothing was changed.",
                        *(f"  {problem}" for problem in problems),
                        "Its nodes:",
                        *(f"  {_described(node)}" for node in self.nodes),
                        f"Label one, as in: {docker_command(self.host)} node update --label-add edge=true NODE",
                    ]
                )
            )


def _node(attributes: Mapping[str, Any]) -> Node:
    spec, description, status = attributes["Spec"], attributes["Description"], attributes["Status"]
    platform, engine = description.get("Platform", {}), description.get("Engine", {})
    manager = attributes.get("ManagerStatus", {}).get("Addr", "").rsplit(":", 1)[0]
    return Node(
        id=attributes["ID"],
        name=description["Hostname"],
        # A manager sees itself at 0.0.0.0.
        address=manager if status.get("Addr") in {None, "", "0.0.0.0"} else status["Addr"],  # noqa: S104
        # A new leader knows no node for some seconds.
        ready=status["State"] in {"ready", "unknown"} and spec["Availability"] == "active",
        attributes={
            "node.id": attributes["ID"],
            "node.hostname": description["Hostname"],
            "node.role": spec["Role"],
            "node.platform.os": platform.get("OS", ""),
            "node.platform.arch": platform.get("Architecture", ""),
            **{f"node.labels.{key}": value for key, value in (spec.get("Labels") or {}).items()},
            **{f"engine.labels.{key}": value for key, value in (engine.get("Labels") or {}).items()},
        },
    )


def _described(node: Node) -> str:
    labels = {key.removeprefix("node.labels."): value for key, value in node.attributes.items() if "labels" in key}
    shown = ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "no labels"
    return f"{node.name} ({node.attributes['node.role']}, {'ready' if node.ready else 'takes no tasks'}; {shown})"
