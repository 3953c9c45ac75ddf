"""Workloads as containers on one Docker host, without interrupting the service when they change.

Each replica waits for the one before it, so that Pulumi replaces the first, sees it healthy, and only then goes on.
All names are fixed, `<project>-<stack>-<part>`: two containers for one part cannot come to be, whatever is killed
when. What a killed `up` left behind, which the state does not know, is removed before the part is made again.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import docker
import pulumi
import pulumi_docker

from infra.images import stand_ins
from infra.placement.health import Healthy
from infra.placement.live_files import LiveFiles
from infra.workload import LIVE, SECRETS, Replica, Workload
from toolchain.engine import connect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LABEL = "llm-infrastructure"
LOG_SIZE = "10m"
LOG_FILES = "3"
SECONDS_TO_KILL = 5
"""What a container gets beside its own time to stop, so that the engine kills none that is just ending."""

# The provider accepts these without applying them to a container that exists; and a container that came to be but
# never got healthy must be made again, or the next `up` would turn green over it.
REPLACED_BY = ["healthcheck", "#initerror"]

# What stops a container must end the waiting too.
START_WITH_LIVE_FILES = f'trap "exit 0" TERM USR1; until [ -d {LIVE}/current ]; do sleep 0.1; done; exec "$@"'


class DockerHost:
    """Places workloads on one Docker Engine.

    Creates, for each workload: `docker:index/remoteImage:RemoteImage` (one an image) and
    `docker:index/container:Container` (one a replica); for networks and volumes `docker:index/network:Network`,
    `docker:index/volume:Volume`. Each container is awaited by a `Healthy`, or by the `LiveFiles` that it starts with.
    """

    def __init__(self, host: str, *, identity: pulumi.Output[str], image_choices: Path) -> None:
        """`identity` tells this deployment's containers from those of another one of the same name."""
        self._host = host
        self._identity = identity
        self._prefix = f"{pulumi.get_project()}-{pulumi.get_stack()}"
        self._stand_ins = stand_ins(image_choices)
        self._provider = pulumi_docker.Provider("engine", host=host)
        self._images: dict[str, pulumi_docker.RemoteImage] = {}
        self._networks: dict[str, pulumi_docker.Network] = {}
        self._volumes: dict[str, pulumi_docker.Volume] = {}

    def network(self, name: str, *, opts: pulumi.ResourceOptions) -> None:
        self._networks[name] = pulumi_docker.Network(
            name,
            name=f"{self._prefix}-{name}",
            driver="bridge",
            labels=[pulumi_docker.NetworkLabelArgs(label=k, value=v) for k, v in self._labels(name)],
            opts=self._options(opts, delete_before_replace=True, hooks=self._before_create(self._free_network)),
        )

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

    def run(self, workload: Workload, *, opts: pulumi.ResourceOptions) -> Sequence[Replica]:
        replicas: list[Replica] = []
        for number in range(1, workload.replicas + 1):
            name = f"{workload.name}-{number}" if workload.replicas > 1 else workload.name
            after = pulumi.ResourceOptions(depends_on=[replica.ready for replica in replicas[-1:]])
            container = self._container(name, workload, pulumi.ResourceOptions.merge(opts, after))
            replicas.append(Replica(ready=self._ready(name, workload, container, opts), instance=container.id))
        return replicas

    def _ready(
        self, name: str, workload: Workload, container: pulumi_docker.Container, opts: pulumi.ResourceOptions
    ) -> pulumi.Resource:
        seconds = workload.health.start_seconds
        if workload.live is None:
            return Healthy(
                f"{name}-healthy", host=self._host, container=container.id, start_seconds=seconds, opts=opts
            )
        return LiveFiles(
            f"{name}-files",
            host=self._host,
            container=container.id,
            live=workload.live,
            start_seconds=seconds,
            opts=opts,
        )

    def _container(self, name: str, workload: Workload, opts: pulumi.ResourceOptions) -> pulumi_docker.Container:
        health = workload.health
        return pulumi_docker.Container(
            name,
            name=f"{self._prefix}-{name}",
            hostname=name,
            image=self._image(workload.image).image_id,
            entrypoints=self._entrypoint(workload),
            command=list(workload.command) or None,
            envs=[f"{key}={value}" for key, value in sorted(workload.environment.items())],
            labels=[pulumi_docker.ContainerLabelArgs(label=k, value=v) for k, v in self._labels(workload.name)],
            user=workload.user,
            capabilities=pulumi_docker.ContainerCapabilitiesArgs(drops=["ALL"]),
            security_opts=["no-new-privileges:true"],
            memory=workload.memory_mb,
            memory_swap=workload.memory_mb,
            restart="unless-stopped",
            log_driver="json-file",
            log_opts={"max-size": LOG_SIZE, "max-file": LOG_FILES},
            network_mode="bridge",  # as the official provider has it, so that changing over replaces nothing
            networks_advanced=[
                pulumi_docker.ContainerNetworksAdvancedArgs(name=self._networks[network].name, aliases=[alias])
                for network, alias in sorted(workload.networks.items())
            ],
            hosts=[pulumi_docker.ContainerHostArgs(host=workload.host_gateway, ip="host-gateway")]
            if workload.host_gateway
            else None,
            ports=[
                pulumi_docker.ContainerPortArgs(internal=port.internal, external=port.external, ip=port.address)
                for port in workload.ports
            ],
            volumes=[
                pulumi_docker.ContainerVolumeArgs(container_path=path, volume_name=self._volumes[volume].name)
                for path, volume in sorted(workload.volumes.items())
            ],
            uploads=self._uploads(workload),
            healthcheck=pulumi_docker.ContainerHealthcheckArgs(
                tests=["CMD", *health.command],
                interval=_duration(health.interval_seconds),
                timeout=_duration(health.timeout_seconds),
                start_period=_duration(health.start_seconds),
                retries=health.retries,
            ),
            must_run=True,
            stop_timeout=workload.stop_seconds,
            destroy_grace_seconds=workload.stop_seconds + SECONDS_TO_KILL,
            opts=self._options(
                opts,
                delete_before_replace=True,
                replace_on_changes=REPLACED_BY,
                hooks=self._before_create(self._free_container),
            ),
        )

    def _entrypoint(self, workload: Workload) -> list[str] | None:
        entrypoint = list(workload.entrypoint) if workload.entrypoint else None
        if workload.live is None:
            return entrypoint
        return ["sh", "-c", START_WITH_LIVE_FILES, "sh", *(entrypoint or [])]

    def _uploads(self, workload: Workload) -> list[pulumi_docker.ContainerUploadArgs]:
        files = {**workload.files, **{f"{SECRETS}/{name}": content for name, content in workload.secrets.items()}}
        return [pulumi_docker.ContainerUploadArgs(file=file, content=files[file]) for file in sorted(files)]

    def _image(self, reference: str) -> pulumi_docker.RemoteImage:
        if reference not in self._images:
            name = self._stand_ins.get(reference, reference)
            if name != reference:
                pulumi.log.warn(f"{name} stands in for {reference} (.images.yaml): it was built on this machine.")
            self._images[reference] = pulumi_docker.RemoteImage(
                reference, name=name, keep_locally=True, opts=self._options(pulumi.ResourceOptions())
            )
        return self._images[reference]

    def _labels(self, part: str) -> list[tuple[str, pulumi.Input[str]]]:
        return [
            (f"{LABEL}.identity", self._identity),
            (f"{LABEL}.part", part),
            (f"{LABEL}.project", pulumi.get_project()),
            (f"{LABEL}.stack", pulumi.get_stack()),
        ]

    def _options(self, opts: pulumi.ResourceOptions, **more: object) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(provider=self._provider, **more))  # type: ignore[arg-type]

    def _before_create(self, hook: object) -> pulumi.ResourceHookBinding:
        return pulumi.ResourceHookBinding(before_create=[hook])  # type: ignore[list-item]

    def _free_container(self, args: pulumi.ResourceHookArgs) -> None:
        """Remove the container that a killed `up` left under the name of one that is about to be made."""
        inputs = args.new_inputs or {}
        with closing(connect(self._host)) as engine:
            try:
                container = engine.containers.get(inputs["name"])
            except docker.errors.NotFound:
                return
            self._check_ours(container.labels, inputs, "container")
            pulumi.log.warn(
                f"{container.name} is not in the state (stopped, or an `up` was killed): it is made again."
            )
            container.stop(timeout=int(inputs["stopTimeout"]))
            container.remove()

    def _free_network(self, args: pulumi.ResourceHookArgs) -> None:
        """Remove the network that a killed `up` left under the name of one that is about to be made."""
        inputs = args.new_inputs or {}
        with closing(connect(self._host)) as engine:
            for network in engine.networks.list(names=[inputs["name"]]):
                if network.name == inputs["name"]:
                    self._check_ours(network.attrs["Labels"], inputs, "network")
                    network.remove()

    def _check_volume(self, args: pulumi.ResourceHookArgs) -> None:
        """Refuse a volume whose data another state has the passwords of; the engine would hand it out unasked."""
        inputs = args.new_inputs or {}
        with closing(connect(self._host)) as engine:
            try:
                volume = engine.volumes.get(inputs["name"])
            except docker.errors.NotFound:
                return
            self._check_ours(volume.attrs["Labels"] or {}, inputs, "volume")

    def _check_ours(self, labels: Mapping[str, str], inputs: Mapping[str, Any], kind: str) -> None:
        wanted = {each["label"]: each["value"] for each in inputs["labels"]}
        if labels.get(f"{LABEL}.identity") != wanted[f"{LABEL}.identity"]:
            name = inputs["name"]
            raise pulumi.RunError(
                f"The {kind} {name} exists and belongs to another deployment of stack {pulumi.get_stack()}: another "
                "user's, or one whose state was lost. Use a stack of another name (pulumi stack init NAME), or, if "
                f"nobody needs it any more: docker {kind} rm {'--force ' if kind == 'container' else ''}{name}"
            )


def _duration(seconds: int) -> str:
    """Seconds as Go prints them, which is how they come back at a refresh."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"
