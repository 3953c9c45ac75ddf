"""Workloads as containers on one Docker host, without interrupting the service when they change.

Replicas are replaced in waves: each waits until all of the wave before it are healthy.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from typing import TYPE_CHECKING, Any

import docker
import pulumi
import pulumi_docker

from engine.connection import connect
from infra import PROJECT
from infra.placement.engine_placement import (
    HEALTH_SECONDS,
    LOG_FILES,
    LOG_SIZE,
    EnginePlacement,
    check_ours,
    duration,
    stands_alone,
)
from infra.placement.health import Healthy
from infra.placement.live_files import LiveFiles
from infra.placement.swarm_services import stand_part_down
from infra.workload import LIVE, SECRETS, Replica, Workload

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SECONDS_TO_KILL = 5
"""Time beyond a container's own time to stop, so that the engine does not kill one that is about to end."""

# The provider accepts the first without applying it to a container that exists; a container that was stopped (which a
# refresh tells by mustRun) or was created but could not be started is recreated, so that its health is awaited.
REPLACED_BY = ["healthcheck", "mustRun", "#initerror"]

# Stopping a container must also end the wait for it.
START_WITH_LIVE_FILES = f'trap "exit 0" TERM USR1; until [ -d {LIVE}/current ]; do sleep 0.1; done; exec "$@"'


def waves(replicas: int) -> list[list[int]]:
    """The replicas that each wave replaces together, by their numbers from 1, in order.

    The first replica is a wave by itself, so that a broken change costs no other one. Then come those with even
    numbers, then the other odd ones. So half of the replicas serve throughout, even if the same `up` also changes
    their number.
    """
    return [wave for wave in ([1], [*range(2, replicas + 1, 2)], [*range(3, replicas + 1, 2)]) if wave]


def _upload(file: str, source: Path) -> pulumi_docker.ContainerUploadArgs:
    """A file of this clone, by a path that is the same in each clone: the provider runs in the project's folder."""
    return pulumi_docker.ContainerUploadArgs(
        file=file,
        source=source.relative_to(PROJECT).as_posix(),
        source_hash=hashlib.sha256(source.read_bytes()).hexdigest(),
    )


class DockerHost(EnginePlacement):
    """Places workloads on one Docker Engine.

    Creates, for each workload: `docker:index/remoteImage:RemoteImage` (one per image) and
    `docker:index/container:Container` (one per replica); for networks and volumes `docker:index/network:Network`,
    `docker:index/volume:Volume`. Each container is awaited by a `Healthy`, or by the `LiveFiles` that it starts with.
    """

    def __init__(self, host: str, *, identity: pulumi.Output[str], image_choices: Path, published_at: str) -> None:
        """`published_at` is the name under which the machine that runs the program reaches the host's ports."""
        super().__init__(host, identity=identity, image_choices=image_choices)
        self._published_at = published_at
        self._images: dict[str, pulumi_docker.RemoteImage] = {}
        self._networks: dict[str, pulumi_docker.Network] = {}

    def network(self, name: str, *, opts: pulumi.ResourceOptions) -> None:
        self._networks[name] = pulumi_docker.Network(
            name,
            name=f"{self._prefix}-{name}",
            driver="bridge",
            labels=[pulumi_docker.NetworkLabelArgs(label=k, value=v) for k, v in self._labels(name)],
            opts=self._options(opts, delete_before_replace=True, hooks=self._before_create(self._free_network)),
        )

    def host_name(self, alias: str) -> str:
        return alias

    def published_at(self, volume: str | None = None) -> str:  # noqa: ARG002 -- there is one host
        return self._published_at

    def run(self, workload: Workload, *, opts: pulumi.ResourceOptions) -> Sequence[Replica]:
        replicas: dict[int, Replica] = {}
        before: list[pulumi.Resource] = []
        for wave in waves(workload.replicas):
            after = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=before))
            for number in wave:
                name = f"{workload.name}-{number}" if workload.replicas > 1 else workload.name
                container = self._container(name, workload, after)
                replicas[number] = Replica(ready=self._ready(name, workload, container, opts), instance=container.id)
            before = [replicas[number].ready for number in wave]
        return [replicas[number] for number in sorted(replicas)]

    def job(self, workload: Workload) -> Mapping[str, pulumi.Input[Any]]:
        return {
            **super().job(workload),
            "image": self._image(workload.image).image_id,
            "networks": [self._networks[network].name for network in sorted(workload.networks)],
        }

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
            shm_size=workload.shared_memory_mb,
            restart="unless-stopped",
            log_driver="json-file",
            log_opts={"max-size": LOG_SIZE, "max-file": LOG_FILES},
            network_mode="bridge",  # as the official provider has it, so that switching to it replaces nothing
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
                interval=duration(HEALTH_SECONDS),
                timeout=duration(health.timeout_seconds),
                start_period=duration(health.start_seconds),
                retries=health.retries,
            ),
            must_run=True,
            stop_timeout=workload.stop_seconds,
            destroy_grace_seconds=workload.stop_seconds + SECONDS_TO_KILL,
            opts=self._options(
                opts,
                delete_before_replace=True,
                replace_on_changes=REPLACED_BY,
                hooks=self._before_create(
                    self._free_container, *([self._stand_service_down] if stands_alone(workload) else [])
                ),
            ),
        )

    def _entrypoint(self, workload: Workload) -> list[str] | None:
        entrypoint = list(workload.entrypoint) if workload.entrypoint else None
        if workload.live is None:
            return entrypoint
        return ["sh", "-c", START_WITH_LIVE_FILES, "sh", *(entrypoint or [])]

    def _uploads(self, workload: Workload) -> list[pulumi_docker.ContainerUploadArgs]:
        files = {**workload.files, **{f"{SECRETS}/{name}": content for name, content in workload.secrets.items()}}
        uploads = {
            **{file: pulumi_docker.ContainerUploadArgs(file=file, content=files[file]) for file in files},
            **{file: _upload(file, source) for file, source in workload.programs.items()},
        }
        return [uploads[file] for file in sorted(uploads)]

    def _image(self, reference: str) -> pulumi_docker.RemoteImage:
        if reference not in self._images:
            self._images[reference] = pulumi_docker.RemoteImage(
                reference,
                name=self._stand_in(reference),
                keep_locally=True,
                opts=self._options(pulumi.ResourceOptions()),
            )
        return self._images[reference]

    def _free_container(self, args: pulumi.ResourceHookArgs) -> None:
        """Remove the container that a killed `up` left under the name of one that is about to be created."""
        inputs = args.new_inputs or {}
        with closing(connect(self._host)) as engine:
            try:
                container = engine.containers.get(inputs["name"])
            except docker.errors.NotFound:
                return
            check_ours(container.labels, inputs, "container")
            pulumi.log.warn(
                f"{container.name} is not in the state (stopped, or an `up` was killed): it is created again."
            )
            container.stop(timeout=int(inputs["stopTimeout"]))
            container.remove()

    def _stand_service_down(self, args: pulumi.ResourceHookArgs) -> None:
        """Stop the Swarm service that had a part's port or volume, when a stack moves from there to one host."""
        with closing(connect(self._host)) as engine:
            stand_part_down(engine, args.new_inputs or {})
