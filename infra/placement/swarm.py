"""Workloads as services of a Docker Swarm, half of the tasks updated at once, each healthy before its old one ends.

Secrets and files are Swarm's own secrets and configs. A changed one gets a new name, the service switches to it task
by task, and the old one is deleted. If a service cannot run with a change, it rolls back by itself.
"""

from __future__ import annotations

import base64
import math
import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import docker
import pulumi
import pulumi_docker

from engine.connection import UNREACHABLE, connect, is_present
from engine.image_names import in_registry
from infra.placement.cluster import Cluster
from infra.placement.engine_placement import (
    HEALTH_SECONDS,
    LOG_FILES,
    LOG_SIZE,
    EnginePlacement,
    check_ours,
    duration,
    is_ours,
    stands_alone,
)
from infra.placement.leftovers import label_config
from infra.placement.swarm_services import OF_A_TASK, Converged, stand_down
from infra.workload import LIVE, MEBIBYTE, SECRETS, Replica, Workload

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from infra.workload import HealthCheck

SECRET_MODE = 0o400
CONFIG_MODE = 0o444
RESERVED_SHARE = 4
"""The fraction (1/4) of a part's memory limit that is reserved on its node: about what it uses without load."""
MONITOR_SECONDS = 5
"""How long a new task must stay healthy; if it does not, the service is rolled back."""
RESTART_SECONDS = 2
SPARE_SECONDS = 60
"""Extra time, beyond the start of a task, to pull an image and to notice that an update failed."""


class Swarm(EnginePlacement):
    """Places workloads on the Swarm that an engine manages.

    Creates, for each workload: `docker:index/service:Service`, a `docker:index/secret:Secret` for each secret of it,
    a `docker:index/serviceConfig:ServiceConfig` for each of its files, and `Converged`; for networks
    `docker:index/network:Network`; for a volume on the engine's own node `docker:index/volume:Volume`.
    """

    def __init__(  # noqa: PLR0913 -- all are needed, all by name
        self,
        host: str,
        *,
        identity: pulumi.Output[str],
        image_choices: Path,
        image_registry: str | None,
        encrypt: bool,
        constraints: Sequence[str],
        volume_node: str,
        on_each: str,
        published_at: str,
    ) -> None:
        """Check that the Swarm that an engine manages has a node for each workload.

        `constraints` apply to workloads without a volume. `volume_node` is where volumes are (the engine's own node
        if empty). `on_each` is the label of the nodes with published ports, which callers reach as `published_at`.

        Raises RunError, before anything is registered, when the Swarm has no node for one of them.
        """
        super().__init__(host, identity=identity, image_choices=image_choices)
        self._registry = image_registry
        self._encrypt = encrypt
        self._constraints = tuple(constraints)
        self._published_at = published_at
        self._networks: dict[str, pulumi_docker.Network] = {}
        self._images: dict[str, _Image] = {}
        self._cluster = Cluster(host)
        node = self._cluster.node(volume_node)
        if node is None:
            names = ", ".join(each.name for each in self._cluster.nodes)
            raise pulumi.RunError(
                f"The Swarm of {host} has no node {volume_node}; nothing was changed. It has {names}:\n"
                f"  ./pulumiw config set --stack {pulumi.get_stack()} postgresNode NAME"
            )
        self._volume_node = node
        self._cluster.check(
            {
                "postgresNode": self._pinned(),
                "constraints": self._constraints,
                f"the label {on_each}": (_labelled(on_each),),
            }
        )
        self._refuse_other_encryption()

    def _refuse_other_encryption(self) -> None:
        for network, is_so in self._cluster.encrypted.items():
            if re.fullmatch(rf"{re.escape(self._prefix)}-[a-z]+-overlay", network) and is_so != self._encrypt:
                # The engine would refuse to remove it, halfway through the `up`.
                raise pulumi.RunError(
                    f"encryptNetworks cannot change while services use the network {network}, which is "
                    f"{'' if is_so else 'not '}encrypted; nothing was changed. Undo the change:\n"
                    f"  ./pulumiw config set --stack {pulumi.get_stack()} encryptNetworks {str(is_so).lower()}\n"
                    "To change it, move the stack to one host and back (docs/machines.md); its data are kept."
                )

    def network(self, name: str, *, opts: pulumi.ResourceOptions) -> None:
        # Not the name of the network on one host: when a stack moves, both exist for a moment.
        self._networks[name] = pulumi_docker.Network(
            f"{name}-overlay",
            name=f"{self._prefix}-{name}-overlay",
            driver="overlay",
            options={"encrypted": ""} if self._encrypt else None,
            labels=[pulumi_docker.NetworkLabelArgs(label=k, value=v) for k, v in self._labels(name)],
            opts=self._options(opts, delete_before_replace=True, hooks=self._before_create(self._free_network)),
        )

    def volume(self, name: str, *, protect: bool, opts: pulumi.ResourceOptions) -> None:
        # On a node other than the engine's own, the task that mounts it creates it, and nothing ever deletes it.
        if self._volume_node.id == self._cluster.own_id:
            super().volume(name, protect=protect, opts=opts)

    def host_name(self, alias: str) -> str:
        return f"{self._prefix}-{alias}"

    def published_at(self, volume: str | None = None) -> str:
        here = self._volume_node.id == self._cluster.own_id
        return self._published_at if here or volume is None else self._volume_node.address

    def job(self, workload: Workload) -> Mapping[str, pulumi.Input[Any]]:
        image = self._image(workload.image)
        return {
            **super().job(workload),
            "image": image.name,
            "networks": [self._networks[network].id for network in sorted(workload.networks)],
            "constraints": sorted(self._constraints_of(workload)),
            "platforms": [list(each) for each in image.platforms],
        }

    def inside(self, part: str) -> Mapping[str, pulumi.Input[Any]]:
        # Only the containers of tasks: while a stack moves here from one host, the containers there still exist.
        return {**super().inside(part), "of": OF_A_TASK}

    def run(self, workload: Workload, *, opts: pulumi.ResourceOptions) -> Sequence[Replica]:
        task_spec, mode = self._task_spec(workload, opts), _mode(workload)
        service = self._service(workload, task_spec, mode, opts)
        # One turn is replaced after another: its tasks end, which may take long, and new ones start.
        tasks = len(self._cluster.nodes) if workload.on_each else workload.replicas
        turns = math.ceil(tasks / _at_once(workload))
        converged = Converged(
            f"{workload.name}-converged",
            host=self._host,
            service=service.id,
            declared=pulumi.Output.all(task_spec, mode),
            seconds=turns * (workload.health.start_seconds + _stop_seconds(workload)) + SPARE_SECONDS,
            opts=opts,
        )
        return [Replica(ready=converged, instance=converged.instance)]

    def _service(
        self,
        workload: Workload,
        task_spec: pulumi_docker.ServiceTaskSpecArgs,
        mode: pulumi_docker.ServiceModeArgs,
        opts: pulumi.ResourceOptions,
    ) -> pulumi_docker.Service:
        alone = stands_alone(workload)
        alias = next(iter(workload.networks.values()))
        rolling = {
            "parallelism": _at_once(workload),
            "delay": "0s",
            "monitor": _duration(MONITOR_SECONDS),
            "max_failure_ratio": "0.0",
            "order": "stop-first" if alone else "start-first",
        }
        return pulumi_docker.Service(
            workload.name,
            name=pulumi.Output.from_input(alias).apply(self.host_name),
            labels=[pulumi_docker.ServiceLabelArgs(label=k, value=v) for k, v in self._labels(workload.name)],
            task_spec=task_spec,
            mode=mode,
            # A kernel may not have the module for virtual addresses; HAProxy must see each replica anyway.
            endpoint_spec=pulumi_docker.ServiceEndpointSpecArgs(
                mode="dnsrr",
                ports=[
                    pulumi_docker.ServiceEndpointSpecPortArgs(
                        target_port=port.internal,
                        published_port=port.external,
                        protocol="tcp",
                        publish_mode="host",
                    )
                    for port in workload.ports
                ],
            ),
            update_config=pulumi_docker.ServiceUpdateConfigArgs(failure_action="rollback", **rolling),  # type: ignore[arg-type]
            rollback_config=pulumi_docker.ServiceRollbackConfigArgs(failure_action="pause", **rolling),  # type: ignore[arg-type]
            opts=self._options(
                opts,
                # The provider asks the registry for platforms when it creates a service, but not when it changes one.
                # `docker service update --force` increases the other value.
                ignore_changes=["taskSpec.placement.platforms", "taskSpec.forceUpdate"],
                # With a given name it would be deleted first; replicas with a new master key must start beside the
                # old ones.
                delete_before_replace=False,
                hooks=self._before_create(self._free_service, *([self._stand_containers_down] if alone else [])),
            ),
        )

    def _task_spec(self, workload: Workload, opts: pulumi.ResourceOptions) -> pulumi_docker.ServiceTaskSpecArgs:
        # Set everything: whatever is left out comes back with a default, and each refresh would show a change.
        return pulumi_docker.ServiceTaskSpecArgs(
            container_spec=self._container_spec(workload, opts),
            resources=pulumi_docker.ServiceTaskSpecResourcesArgs(
                limits=pulumi_docker.ServiceTaskSpecResourcesLimitsArgs(memory_bytes=workload.memory_mb * MEBIBYTE),
                reservation=pulumi_docker.ServiceTaskSpecResourcesReservationArgs(
                    memory_bytes=workload.memory_mb * MEBIBYTE // RESERVED_SHARE
                ),
            ),
            restart_policy=pulumi_docker.ServiceTaskSpecRestartPolicyArgs(
                condition="any", delay=_duration(RESTART_SECONDS), max_attempts=0, window="0s"
            ),
            placement=pulumi_docker.ServiceTaskSpecPlacementArgs(
                constraints=sorted(self._constraints_of(workload)),
                max_replicas=0,
                platforms=[
                    pulumi_docker.ServiceTaskSpecPlacementPlatformArgs(architecture=architecture, os=system)
                    for architecture, system in self._image(workload.image).platforms
                ],
            ),
            force_update=0,
            runtime="container",
            networks_advanceds=[
                pulumi_docker.ServiceTaskSpecNetworksAdvancedArgs(id=self._networks[network].id)
                for network in sorted(workload.networks)
            ],
            log_driver=pulumi_docker.ServiceTaskSpecLogDriverArgs(
                name="json-file", options={"max-size": LOG_SIZE, "max-file": LOG_FILES}
            ),
        )

    def _container_spec(
        self, workload: Workload, opts: pulumi.ResourceOptions
    ) -> pulumi_docker.ServiceTaskSpecContainerSpecArgs:
        files: dict[str, pulumi.Input[str]] = dict(workload.files)
        files |= {path: source.read_text(encoding="utf-8") for path, source in workload.programs.items()}
        secrets = {f"{SECRETS}/{name}": it for name, it in workload.secrets.items()}
        if workload.live:
            files |= {f"{LIVE}/current/{name}": it for name, it in workload.live.files.items()}
            secrets |= {f"{LIVE}/current/{name}": it for name, it in workload.live.secrets.items()}
        health = workload.health
        return pulumi_docker.ServiceTaskSpecContainerSpecArgs(
            image=self._image(workload.image).name,
            commands=_entrypoint(workload),
            args=list(workload.command) or None,
            env=None if workload.entrypoint else dict(workload.environment) or None,
            labels=[
                pulumi_docker.ServiceTaskSpecContainerSpecLabelArgs(label=k, value=v)
                for k, v in self._labels(workload.name)
            ],
            user=workload.user,
            read_only=not workload.volumes,
            mounts=self._mounts(workload),
            stop_grace_period=_duration(_stop_seconds(workload)),
            healthcheck=_health_check(health),
            hosts=[pulumi_docker.ServiceTaskSpecContainerSpecHostArgs(host=workload.host_gateway, ip="host-gateway")]
            if workload.host_gateway
            else None,
            configs=[self._config(workload, path, files[path], opts) for path in sorted(files)],
            secrets=[self._secret(workload, path, secrets[path], opts) for path in sorted(secrets)],
            isolation="default",
        )

    def _mounts(self, workload: Workload) -> list[pulumi_docker.ServiceTaskSpecContainerSpecMountArgs]:
        mount = pulumi_docker.ServiceTaskSpecContainerSpecMountArgs
        volumes = [
            mount(
                target=path,
                type="volume",
                read_only=False,
                source=self._volumes[volume].name if volume in self._volumes else f"{self._prefix}-{volume}",
                volume_options=pulumi_docker.ServiceTaskSpecContainerSpecMountVolumeOptionsArgs(
                    no_copy=False,
                    labels=[
                        pulumi_docker.ServiceTaskSpecContainerSpecMountVolumeOptionsLabelArgs(label=k, value=v)
                        for k, v in self._labels(volume)
                    ],
                ),
            )
            for path, volume in sorted(workload.volumes.items())
        ]
        scratch = [] if workload.volumes else [mount(target="/tmp", type="tmpfs", read_only=False)]  # noqa: S108
        if workload.shared_memory_mb:
            # Without a size, which crashes the provider's upstream (2.23): its content counts as the task's memory.
            scratch.append(mount(target="/dev/shm", type="tmpfs", read_only=False))  # noqa: S108
        return [*volumes, *scratch]

    def _config(
        self, workload: Workload, path: str, content: pulumi.Input[str], opts: pulumi.ResourceOptions
    ) -> pulumi_docker.ServiceTaskSpecContainerSpecConfigArgs:
        async def label(args: pulumi.ResourceHookArgs) -> None:
            names, values = zip(*self._labels(workload.name), strict=True)
            known = await pulumi.Output.all(*values).future()
            label_config(self._host, args.id, dict(zip(names, known or (), strict=True)))

        made = pulumi_docker.ServiceConfig(
            f"{workload.name}-{PurePosixPath(path).name}",
            data=_base64(content),
            # In a hook, because the Docker provider that is built here does not support labels of configs.
            opts=self._options(
                opts, ignore_changes=["labels"], hooks=pulumi.ResourceHookBinding(after_create=[label])
            ),
        )
        owner = str(workload.file_owner)
        return pulumi_docker.ServiceTaskSpecContainerSpecConfigArgs(
            config_id=made.id,
            config_name=made.name,
            file_name=path,
            file_uid=owner,
            file_gid=owner,
            file_mode=CONFIG_MODE,
        )

    def _secret(
        self, workload: Workload, path: str, content: pulumi.Input[str], opts: pulumi.ResourceOptions
    ) -> pulumi_docker.ServiceTaskSpecContainerSpecSecretArgs:
        made = pulumi_docker.Secret(
            f"{workload.name}-{PurePosixPath(path).name}",
            data=_base64(pulumi.Output.secret(content)),
            labels=[pulumi_docker.SecretLabelArgs(label=k, value=v) for k, v in self._labels(workload.name)],
            opts=self._options(opts),
        )
        owner = str(workload.file_owner)
        return pulumi_docker.ServiceTaskSpecContainerSpecSecretArgs(
            secret_id=made.id,
            secret_name=made.name,
            file_name=path,
            file_uid=owner,
            file_gid=owner,
            file_mode=SECRET_MODE,
        )

    def _constraints_of(self, workload: Workload) -> tuple[str, ...]:
        if workload.volumes:
            return self._pinned()
        return (_labelled(workload.on_each),) if workload.on_each else self._constraints

    def _pinned(self) -> tuple[str, ...]:
        return (f"node.id == {self._volume_node.id}",)

    def _other_names(self, image: str) -> tuple[str, ...]:
        return (in_registry(image, self._registry),) if self._registry else ()

    def _image(self, reference: str) -> _Image:
        """The image with its digest, which every node has to fetch by itself."""
        if reference not in self._images:
            self._images[reference] = self._resolved(self._stand_in(reference))
        return self._images[reference]

    def _resolved(self, reference: str) -> _Image:
        name = in_registry(reference, self._registry) if self._registry else reference
        with closing(connect(self._host)) as engine:
            try:
                found = engine.images.get_registry_data(name, auth_config={})  # as nodes ask, which have no login
                platforms = {(each["architecture"], each["os"]) for each in found.attrs["Platforms"] or []}
                return _Image(name=name if "@" in name else f"{name}@{found.id}", platforms=sorted(platforms))
            except (docker.errors.APIError, *UNREACHABLE) as error:
                if self._registry is None and len(self._cluster.nodes) == 1 and is_present(engine, name):
                    return _Image(name=name, platforms=[])
                why = getattr(error, "explanation", None) or error
        if self._registry:
            fix = f"make push STACK={pulumi.get_stack()}, which fills it"
        else:
            fix = (
                f"./pulumiw config set --stack {pulumi.get_stack()} imageRegistry HOST:PORT, then make push fills it"
            )
        raise pulumi.RunError(
            f"The nodes of the Swarm cannot get the image {name}: {why}. Nothing was changed.\n  {fix}"
        )

    def _free_service(self, args: pulumi.ResourceHookArgs) -> None:
        """Remove the service that a killed `up` left under the name of one that is about to be created."""
        inputs = args.new_inputs or {}
        with closing(connect(self._host)) as engine:
            for service in engine.services.list(filters={"name": inputs["name"]}):
                if service.name == inputs["name"]:
                    check_ours(service.attrs["Spec"]["Labels"], inputs, "service")
                    pulumi.log.warn(f"{service.name} is not in the state (an `up` was killed): it is created again.")
                    stand_down(engine, str(service.id))  # first: tasks of a removed service cannot be listed
                    service.remove()  # type: ignore[no-untyped-call]

    def _stand_containers_down(self, args: pulumi.ResourceHookArgs) -> None:
        """Stop the container that had a part's port or volume, when a stack moves here from one host."""
        inputs = args.new_inputs or {}
        with closing(connect(self._host)) as engine:
            for container in engine.containers.list(filters={"name": f"^/{inputs['name']}$"}):
                if is_ours(container.labels, inputs):
                    pulumi.log.info(f"{container.name} is stopped: the service of its name takes its place.")
                    container.stop(timeout=container.attrs["Config"].get("StopTimeout"))


@dataclass(frozen=True, kw_only=True)
class _Image:
    """The image of a service: its name with the digest, and the platforms it is for."""

    name: str
    platforms: Sequence[tuple[str, str]]


def _duration(seconds: int) -> str:
    """Seconds in the form in which a service returns them: "2m", while a container returns "2m0s"."""
    text = duration(seconds)
    for zero in ("m0s", "h0m"):
        text = text.removesuffix(zero[1:]) if text.endswith(zero) else text
    return text


def _at_once(workload: Workload) -> int:
    """How many tasks are replaced at once.

    A new one starts before its old one ends, so that all of them serve throughout. If the nodes do not have memory
    for half as many more, Swarm starts as many as fit.
    """
    return 1 if stands_alone(workload) else max(1, workload.replicas // 2)


def _mode(workload: Workload) -> pulumi_docker.ServiceModeArgs:
    if workload.on_each:
        return pulumi_docker.ServiceModeArgs(global_=True)
    return pulumi_docker.ServiceModeArgs(
        replicated=pulumi_docker.ServiceModeReplicatedArgs(replicas=workload.replicas)
    )


def _labelled(label: str) -> str:
    return f"node.labels.{label} == true"


def _stop_seconds(workload: Workload) -> int:
    return workload.drain_seconds or workload.stop_seconds


def _entrypoint(workload: Workload) -> list[str] | None:
    """The command to run, which sets the environment itself.

    The provider would send a service's variables in a different order each time, and Swarm would then replace tasks
    even if only their number changes. An image's own entrypoint cannot be started like this.
    """
    if workload.entrypoint is None:
        return None
    variables = [f"{name}={value}" for name, value in sorted(workload.environment.items())]
    return [*(["env", *variables] if variables else []), *workload.entrypoint]


def _health_check(health: HealthCheck) -> pulumi_docker.ServiceTaskSpecContainerSpecHealthcheckArgs:
    return pulumi_docker.ServiceTaskSpecContainerSpecHealthcheckArgs(
        tests=["CMD", *health.command],
        interval=_duration(HEALTH_SECONDS),
        timeout=_duration(health.timeout_seconds),
        start_period=_duration(health.start_seconds),
        retries=health.retries,
    )


def _base64(content: pulumi.Input[str]) -> pulumi.Output[str]:
    # Swarm refuses empty ones.
    return pulumi.Output.from_input(content).apply(lambda text: base64.b64encode((text or "\n").encode()).decode())
