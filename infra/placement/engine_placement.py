"""What every placement by a Docker Engine has: its provider, labels to find its objects, and its volumes.

Names of containers, networks, services and volumes are fixed, `<project>-<stack>-<part>`: a part cannot exist twice,
whatever is killed and when. Whatever a killed `up` left behind, unknown to the state, is removed before the part is
created again. Anything with another deployment's identity stays.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import docker
import pulumi
import pulumi_docker

from engine.certificates import certificates
from engine.connection import UNREACHABLE, connect, is_present
from engine.image_names import stand_ins
from engine.inspection import look_at
from engine.labels import LABEL
from engine.unreachable import why_unreachable
from infra.placement.guard import EngineGuard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from infra.workload import Workload

    Hook = Callable[[pulumi.ResourceHookArgs], None]

PROVIDER = "engine"
"""The name of the provider that creates a stack's objects on its engine."""
HEALTH_SECONDS = 5
"""How often the engine checks a part's health: each check is a process, in every container, for ever. Every two
seconds doubled the p99 of busy replicas on two cores."""
LOG_SIZE = "10m"
LOG_FILES = "3"


def check_engine(host: str, built: Mapping[str, str]) -> None:
    """Refuse an engine that does not answer, is too old or is missing an image; warn about one that was not tested.

    `built` are the images that were built here, by the reference that each replaces. Raises RunError.
    """
    try:
        with closing(connect(host)) as engine:
            found = look_at(engine)
            missing = {reference: name for reference, name in built.items() if not is_present(engine, name)}
    except UNREACHABLE as error:
        raise pulumi.RunError(str(why_unreachable(host, pulumi.get_stack(), error))) from error
    if found.refused:
        raise pulumi.RunError(f"{found.name}: {found.refused}. Nothing was changed.")
    for reference, name in missing.items():
        raise pulumi.RunError(
            f"{name} is not on the engine, and .images.yaml says to use it instead of {reference}. Nothing was "
            "changed.\n"
            f"  make up STACK={pulumi.get_stack()}, which pulls {reference} or builds it again"
        )
    for doubt in found.doubts:
        pulumi.log.warn(f"{found.name}: {doubt}")


class EnginePlacement:
    """The base of the placements. `identity` sets this deployment apart from others with its name."""

    def __init__(self, host: str, *, identity: pulumi.Output[str], image_choices: Path) -> None:
        self._host = host
        self._identity = identity
        self._prefix = f"{pulumi.get_project()}-{pulumi.get_stack()}"
        self._stand_ins = stand_ins(image_choices)
        # None would be DOCKER_CERT_PATH in the environment, which is for an engine that is reached by TLS.
        guard = EngineGuard("engine-guard", host=host, label=f"{LABEL}.identity", identity=identity)
        self._provider = pulumi_docker.Provider(
            PROVIDER,
            host=host,
            cert_path=certificates(host) or "",
            opts=pulumi.ResourceOptions(depends_on=[guard]),
        )
        self._volumes: dict[str, pulumi_docker.Volume] = {}

    def volume(self, name: str, *, protect: bool, opts: pulumi.ResourceOptions) -> None:
        self._volumes[name] = pulumi_docker.Volume(
            name,
            name=f"{self._prefix}-{name}",
            labels=[pulumi_docker.VolumeLabelArgs(label=k, value=v) for k, v in self._labels(name)],
            # A change of labels would replace the volume, and so the data.
            opts=self._options(
                opts,
                protect=protect,
                retain_on_delete=protect,
                ignore_changes=["labels"],
                hooks=self._before_create(self._check_volume),
            ),
        )

    def image_environment(self, image: str) -> Mapping[str, str]:
        with closing(connect(self._host)) as engine:
            for name in (self._stand_ins.get(image, image), *self._other_names(image)):
                try:
                    environment = engine.images.get(name).attrs["Config"]["Env"] or []
                except docker.errors.NotFound:
                    continue
                return dict(each.split("=", 1) for each in environment if "=" in each)
        return {}

    def job(self, workload: Workload) -> Mapping[str, pulumi.Input[Any]]:
        """The container settings that are the same on one host and on a Swarm."""
        return {
            "host": self._host,
            "name": f"{self._prefix}-{workload.name}",
            "entrypoint": list(workload.entrypoint or ()),
            "command": list(workload.command),
            "environment": dict(workload.environment),
            "labels": [{"label": label, "value": value} for label, value in self._labels(workload.name)],
            "user": workload.user,
            "file_owner": workload.file_owner,
            "memory_mb": workload.memory_mb,
            "host_gateway": workload.host_gateway or "",
            "files": dict(workload.files),
            "secrets": dict(workload.secrets),
        }

    def inside(self, part: str) -> Mapping[str, pulumi.Input[Any]]:
        labels = [{"label": k, "value": v} for k, v in self._labels(part)]
        return {"host": self._host, "labels": labels}

    def _other_names(self, image: str) -> Sequence[str]:  # noqa: ARG002 -- for those who have some
        return ()

    def _stand_in(self, reference: str) -> str:
        name = self._stand_ins.get(reference, reference)
        if name != reference:
            pulumi.log.warn(f"{name} is used instead of {reference} (.images.yaml): it was built on this machine.")
        return name

    def _labels(self, part: str) -> list[tuple[str, pulumi.Input[str]]]:
        return [
            (f"{LABEL}.identity", self._identity),
            (f"{LABEL}.part", part),
            (f"{LABEL}.project", pulumi.get_project()),
            (f"{LABEL}.stack", pulumi.get_stack()),
        ]

    def _options(self, opts: pulumi.ResourceOptions, **more: object) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(provider=self._provider, **more))  # type: ignore[arg-type]

    def _before_create(self, *hooks: Hook) -> pulumi.ResourceHookBinding:
        return pulumi.ResourceHookBinding(before_create=list(hooks))

    def _free_network(self, args: pulumi.ResourceHookArgs) -> None:
        """Remove the network that a killed `up` left under the name of one that is about to be created."""
        inputs = args.new_inputs or {}
        with closing(connect(self._host)) as engine:
            for network in engine.networks.list(names=[inputs["name"]]):
                if network.name == inputs["name"]:
                    check_ours(network.attrs["Labels"], inputs, "network")
                    try:
                        network.remove()
                    except docker.errors.APIError as error:
                        if not error.is_client_error():
                            raise
                        raise pulumi.RunError(_lost(args.name, str(network.id), str(error.explanation))) from error

    def _check_volume(self, args: pulumi.ResourceHookArgs) -> None:
        """Refuse a volume if another state has the passwords of its data; the engine would mount it regardless."""
        inputs = args.new_inputs or {}
        with closing(connect(self._host)) as engine:
            try:
                volume = engine.volumes.get(inputs["name"])
            except docker.errors.NotFound:
                return
            check_ours(volume.attrs["Labels"] or {}, inputs, "volume")


def _lost(name: str, network: str, why: str) -> str:
    """What to do about a network that is in use but not in the state, as after a refresh that misread an error.

    `name` is the resource's name, and `network` the engine's id of the network.
    """
    provider = f"urn:pulumi:{pulumi.get_stack()}::{pulumi.get_project()}::pulumi:providers:docker::{PROVIDER}"
    return (
        f"The network is in use, but not in the state ({why}). Nothing was removed. Put it back into the state, "
        "then run the same command again:\n"
        f"  ./pulumiw import --stack {pulumi.get_stack()} --protect=false --generate-code=false --provider "
        f"{PROVIDER}={provider} docker:index/network:Network {name} {network}"
    )


def check_ours(labels: Mapping[str, str], inputs: Mapping[str, Any], kind: str) -> None:
    """Raise RunError unless `labels` carry the identity of the resource with these inputs."""
    if not is_ours(labels, inputs):
        name = inputs["name"]
        raise pulumi.RunError(
            f"The {kind} {name} exists and belongs to another deployment of stack {pulumi.get_stack()}: another "
            "user's, or one whose state was lost. Use a stack of another name (./pulumiw stack init NAME), or, if "
            f"nobody needs it: docker {kind} rm {'--force ' if kind == 'container' else ''}{name}"
        )


def is_ours(labels: Mapping[str, str], inputs: Mapping[str, Any]) -> bool:
    """Whether `labels` carry the identity of the resource with these inputs."""
    wanted = {each["label"]: each["value"] for each in inputs["labels"]}
    return bool(labels.get(f"{LABEL}.identity") == wanted[f"{LABEL}.identity"])


def stands_alone(workload: Workload) -> bool:
    """Whether a workload cannot run beside its successor, because there is only one port or one volume."""
    return bool(workload.ports or workload.volumes)


def duration(seconds: int) -> str:
    """Seconds as Go prints them, because a refresh reads them back in that form."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"
