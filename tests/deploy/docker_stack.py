"""A stack that is deployed on one Docker host."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from engine.labels import LABEL
from infra.workload import LIVE, SECRETS
from tests.deploy.stack import DeployedStack, Instance, Part, clear

if TYPE_CHECKING:
    from collections.abc import Mapping

    from docker.models.containers import Container

CONTAINER = "docker:index/container:Container"


class DockerStack(DeployedStack):
    """Each part is a container that the state has."""

    IS_THERE = "test_the_engine_has_the_containers_of_the_state"
    RUNS = "test_it_runs_and_is_healthy"

    @cached_property
    def parts(self) -> list[Part]:
        live = {
            resource["outputs"]["container"]: clear(resource["outputs"]["files"])
            for resource in self.of_type(":LiveFiles")
        }
        return [_part(resource, live.get(resource["id"], {})) for resource in self.of_type(CONTAINER)]

    @cached_property
    def instances(self) -> list[Instance]:
        host = self.settings.docker_host
        return [
            Instance(part=part, name=part.name, container=part.runs_as, node="", host=host) for part in self.parts
        ]

    def containers(self) -> list[Container]:
        """Every container on the engine with the stack's name, running or not."""
        return self.engine.containers.list(all=True, filters={"label": self.labelled}, ignore_removed=True)

    def modes(self, part: Part) -> tuple[list[str], dict[str, int]]:
        folders = (LIVE, f"{LIVE}/current", f"{LIVE}/old")
        own = dict.fromkeys(folders, 0o700) | {f"{folder}/*": 0o400 for folder in folders[1:]}
        return [SECRETS, f"{SECRETS}/*", f"{SECRETS}/*/*"], own

    def log(self, part: Part) -> tuple[str, list[str]]:
        return self.engine.containers.get(part.runs_as).logs().decode(errors="replace"), []

    def look_into(self, part: Part) -> str:
        return self.docker(f"logs --tail 50 {part.runs_as}")

    def recreate(self, part: Part) -> str:
        return f"{self.docker(f'stop {part.runs_as}')} && {self.docker(f'rm {part.runs_as}')} && {self.up}"

    def end_log(self, part: Part) -> str:
        return f"end it with its container: {self.recreate(part)}"


def _part(resource: Mapping[str, Any], live: Mapping[str, str]) -> Part:
    inputs = clear(resource["inputs"])
    labels = {each["label"]: each["value"] for each in inputs["labels"]}
    uploads = inputs.get("uploads") or []
    return Part(
        name=resource["name"],
        kind=labels[f"{LABEL}.part"],
        runs_as=inputs["name"],
        id=resource["id"],
        image=inputs["image"],
        user=inputs["user"],
        networks=frozenset(each["name"] for each in inputs["networksAdvanced"]),
        volumes={each["containerPath"]: each["volumeName"] for each in inputs.get("volumes") or []},
        files={
            **{each["file"]: each["content"] for each in uploads if "content" in each},
            **{f"{LIVE}/current/{name}": content for name, content in live.items()},
        },
        programs={each["file"]: each["sourceHash"] for each in uploads if "content" not in each},
        declared=inputs,
    )
