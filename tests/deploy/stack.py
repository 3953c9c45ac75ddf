"""Reads a deployed stack: config, outputs and state, with the project's own Pulumi. Changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from psycopg.conninfo import conninfo_to_dict

from engine.certificates import docker_command
from engine.connection import UNREACHABLE, connect
from engine.labels import LABEL
from infra import demo, edge, postgres
from infra.settings import Settings
from infra.stack_config import STRUCTURED, report, set_command, validate
from infra.workload import LOOPBACK, MEBIBYTE, Port
from tests.deploy.leaks import Secret
from tests.stack_config import PROJECT, PROJECT_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import docker

SIGNATURE = "4dabf18193072939515e22adb298388d"
"""The key by which Pulumi marks a secret in a state."""
VOLUME = "docker:index/volume:Volume"
SETTINGS = {
    "master-key": "masterKey",
    "postgres-password": "postgresPassword",
    "database-password": "databasePassword",
    "litellm-database-password": "litellmDatabasePassword",
    "redis-password": "redisPassword",
    "admin-password": "adminPassword",
}
"""The key of the stack config of a secret that can be rotated, by its resource."""
CLIENT_KEY = "client-key-"


class StackError(Exception):
    """The stack cannot be read; says what to do."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Something that the state runs: a container on one host, a service on a Swarm."""

    name: str
    """In the stack, as `litellm-1`, or of all replicas on a Swarm, `litellm`."""
    kind: str
    """What it is a replica of, as `litellm`."""
    runs_as: str
    """Its name on the engine."""
    id: str
    image: str
    """The image as the engine shows it: by its id, or on a Swarm by name and digest."""
    user: str
    networks: frozenset[str]
    """By name, or on a Swarm by id."""
    volumes: Mapping[str, str]
    """The volume that is mounted at each path."""
    files: Mapping[str, str] = field(repr=False)
    """The content of each file that it was given, secrets among them, by path."""
    programs: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of each file that the state has no content of, by path."""
    declared: Mapping[str, Any] = field(repr=False)
    """The inputs of its resource."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A container of a part."""

    part: Part
    name: str
    """In reports: that of its part, and on a Swarm its number and its node, as `litellm.2@node-3`."""
    container: str
    """Its name on the engine of its node."""
    node: str
    """Where it runs, on a Swarm."""
    host: str | None
    """The address of that engine; None where it is not known."""

    def __str__(self) -> str:
        return f"{self.container} on {self.node}" if self.node else self.container

    def docker(self, command: str) -> str:
        """A docker command that the reader may run, for the engine that has it."""
        return f"on {self.node}: docker {command}" if self.host is None else f"{docker_command(self.host)} {command}"


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """The config of a stack."""

    name: str
    settings: Settings
    secrets: Mapping[str, str] = field(repr=False)
    """Its secret values, as they are in the config, by key."""


def read_config(name: str) -> StackConfig:
    """Read and check the config of a stack. Raises StackError when there is none that is valid."""
    entries: dict[str, dict[str, Any]] = json.loads(_pulumi(name, "config", "--json", "--show-secrets"))
    own = {
        key.removeprefix(f"{PROJECT_NAME}:"): entry
        for key, entry in entries.items()
        if key.startswith(f"{PROJECT_NAME}:")
    }
    raw = {key: str(entry["value"]) for key, entry in own.items()}
    secret = {key for key, entry in own.items() if entry["secret"]}
    values, problems = validate(raw, secret)
    if problems:
        raise StackError(report(problems, name))
    return StackConfig(
        name=name, settings=Settings.model_construct(**values), secrets={key: raw[key] for key in secret}
    )


def _pulumi(stack: str, *arguments: str) -> str:
    # Not pulumiw: this runs in the environment that it would make.
    result = subprocess.run(
        [sys.executable, "-m", "toolchain.pulumi", *arguments, "--stack", stack, "--non-interactive"],
        cwd=PROJECT,
        check=False,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise StackError(
            f"stack {stack} cannot be read: {result.stderr.strip()}\n"
            f"Bring it up: make up STACK={stack}. Or see which there are: ./pulumiw stack ls, and name one: "
            "make check-deploy STACK=… "
            "Where its state is kept say PULUMI_BACKEND_URL and PULUMI_CONFIG_PASSPHRASE (or …_FILE)."
        )
    return result.stdout


class DeployedStack(ABC):
    """A deployed stack; where it runs, its subclasses know."""

    IS_THERE: ClassVar[str]
    """The name of the check for whether a part's container exists."""
    RUNS: ClassVar[str]
    """The name of the check for whether it runs."""

    def __init__(self, config: StackConfig) -> None:
        """Raises StackError when the state or the engine cannot be read, or there is nothing of the stack in them."""
        self.name = name = config.name
        self.settings = config.settings
        self._secret_settings = config.secrets
        self.up = f"./pulumiw up --refresh --stack {name}"
        """The command that makes everything run as it should."""
        self.masked_state = _pulumi(name, "stack", "export")
        """The state as it is kept: each secret as ciphertext."""
        self.masked_outputs = _pulumi(name, "stack", "output", "--json")
        exported = json.loads(_pulumi(name, "stack", "export", "--show-secrets"))["deployment"]
        self.resources: list[dict[str, Any]] = [
            {**resource, "name": resource["urn"].rsplit("::", 1)[1]} for resource in exported.get("resources") or []
        ]
        self.outputs: dict[str, Any] = json.loads(_pulumi(name, "stack", "output", "--json", "--show-secrets"))
        if not self.outputs:
            raise StackError(f"stack {name} has not been brought up. Do that first: make up STACK={name}")
        self._engines: dict[str, docker.DockerClient] = {}
        self.engine = self.engine_at(self.settings.docker_host)
        if not self.parts:
            raise StackError(
                f"the config of stack {name} says placement {self.settings.placement}, and by that nothing is "
                f"deployed. See what would change: ./pulumiw preview --stack {name}. Then: {self.up}"
            )

    @cached_property
    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """Every part that the state knows."""

    @cached_property
    @abstractmethod
    def instances(self) -> Sequence[Instance]:
        """Every container of each part: on one host that the state knows, on a Swarm that runs."""

    @property
    def volumes(self) -> int:
        """How many volumes the state should have."""
        return 1

    @abstractmethod
    def modes(self, part: Part) -> tuple[Sequence[str], Mapping[str, int]]:
        """Paths in a part that belong to root and that only root may change, and the modes of its user's paths."""

    @abstractmethod
    def log(self, part: Part) -> tuple[str, list[str]]:
        """A part's whole log, and where it cannot be read. Raises docker.errors.NotFound if there is no such part."""

    @abstractmethod
    def look_into(self, part: Part) -> str:
        """The commands that show a part's state."""

    @abstractmethod
    def recreate(self, part: Part) -> str:
        """The commands that replace a part's containers with containers as in the state."""

    @abstractmethod
    def end_log(self, part: Part) -> str:
        """The last lines of a part's log."""

    def engine_at(self, host: str) -> docker.DockerClient:
        """The engine at an address. Raises StackError when it does not answer."""
        if host not in self._engines:
            try:
                self._engines[host] = connect(host)
            except UNREACHABLE as error:
                what = f"dockerHost of stack {self.name}" if host == self.settings.docker_host else "--node"
                raise StackError(
                    f"the Docker Engine at {host}, {what}, does not answer ({error}). "
                    f"See why: {docker_command(host)} version"
                ) from error
        return self._engines[host]

    def engine_of(self, instance: Instance) -> docker.DockerClient:
        """The engine of a container whose host is known."""
        assert instance.host is not None
        return self.engine_at(instance.host)

    def close(self) -> None:
        """Close the connections to the engines."""
        for engine in self._engines.values():
            engine.close()

    def docker(self, command: str) -> str:
        """A docker command that the reader may run, for this stack's engine."""
        return f"{docker_command(self.settings.docker_host)} {command}"

    def memory_limit(self, part: Part) -> int:
        """The bytes that each container of a part may use, as the config says."""
        megabytes = {
            "postgres": self.settings.postgres_memory_mb,
            "demo": demo.MEMORY_MB,
            "litellm": self.settings.litellm_memory_mb,
            "edge": self.settings.edge_memory_mb,
            "redis": self.settings.redis_memory_mb,
        }
        return megabytes[part.kind] * MEBIBYTE

    def ports(self, part: Part) -> list[Port]:
        """The ports of a part that can be reached from outside, as the config says."""
        settings, address = self.settings, str(self.settings.bind_address)
        ports = {
            "edge": [Port(internal=edge.PORT, external=settings.gateway_port, address=address)],
            "postgres": [Port(internal=postgres.PORT, external=settings.postgres_port, address=address)],
        }
        if settings.metrics_port:
            ports["edge"].append(Port(internal=edge.METRICS_PORT, external=settings.metrics_port, address=LOOPBACK))
        if settings.admin_port:
            ports["edge"].append(Port(internal=edge.ADMIN_PORT, external=settings.admin_port, address=LOOPBACK))
        return ports.get(part.kind, [])

    def of_type(self, kind: str) -> Iterator[dict[str, Any]]:
        """The state's resources whose type ends so, secrets in clear."""
        return (resource for resource in self.resources if resource["type"].endswith(kind))

    def part(self, name: str) -> Part:
        """The part of a name in the stack."""
        return next(part for part in self.parts if part.name == name)

    @property
    def labels(self) -> dict[str, str]:
        """What everything on an engine is labelled with that belongs to this stack."""
        return {
            f"{LABEL}.project": PROJECT_NAME,
            f"{LABEL}.stack": self.name,
            f"{LABEL}.identity": self.rotating("identity")["value"],
        }

    @property
    def labelled(self) -> list[str]:
        """The labels by which an engine finds everything with the stack's name, of any deployment."""
        return [f"{LABEL}.project={PROJECT_NAME}", f"{LABEL}.stack={self.name}"]

    def rotating(self, name: str) -> dict[str, Any]:
        """The outputs of a RotatingSecret in clear: `value`, `previous`, `version` and so on."""
        resource = next(it for it in self.of_type(":RotatingSecret") if it["name"] == name)
        outputs: dict[str, Any] = clear(resource["outputs"])
        return outputs

    def client_keys(self) -> dict[str, list[str]]:
        """Every key of each client that is valid now."""
        keys: dict[str, list[str]] = {}
        for client in self.settings.clients:
            made = self.rotating(f"{CLIENT_KEY}{client}")
            configured = [key.get_secret_value() for key in self.settings.client_keys.get(client, ())]
            keys[client] = list(dict.fromkeys(filter(None, [made["value"], made["previous"], *configured])))
        return keys

    @cached_property
    def secrets(self) -> list[Secret]:
        """Every secret of the stack: generated, previous to them, from the config, and in its outputs."""
        known = [*self._generated(), *self._configured()]
        values = {secret.value for secret in known}
        return [*known, *(secret for secret in self._secret_outputs() if secret.value not in values)]

    def _generated(self) -> Iterator[Secret]:
        for resource in self.of_type(":RotatingSecret"):
            outputs = resource["outputs"]
            for each in ("value", "previous"):
                if _is_secret(outputs[each]) and (value := clear(outputs[each])):
                    yield Secret(name=f"{resource['name']} ({each})", value=value, renew=self._renew(resource))

    def _configured(self) -> Iterator[Secret]:
        for key, text in self._secret_settings.items():
            values = [*_texts(json.loads(text))] if key in STRUCTURED else [text]
            if key in {"databaseUrl", "litellmDatabaseUrl"}:
                values.append(str(conninfo_to_dict(text).get("password", "")))
            for value in values:
                yield Secret(name=f"{key} of the config", value=value, renew=self._set(key))

    def _secret_outputs(self) -> Iterator[Secret]:
        masked = json.loads(self.masked_outputs)
        for name, value in self.outputs.items():
            if masked[name] != value:
                for text in _texts(value):
                    yield Secret(name=f"output {name}", value=text, renew="rotate what it contains")

    def _renew(self, resource: Mapping[str, Any]) -> str:
        name, outputs = resource["name"], resource["outputs"]
        setting = SETTINGS.get(name)
        if name.startswith(CLIENT_KEY):
            setting = f"clientKeys.{name.removeprefix(CLIENT_KEY)}"
        if setting is None:
            return "it cannot be rotated: find out how it got there"
        if clear(outputs["configured"]):
            return self._set(setting.split(".", maxsplit=1)[0])
        version = int(outputs["version"]) + 1
        return f"./pulumiw config set --stack {self.name} --path secretVersions.{setting} {version} && {self.up}"

    def _set(self, key: str) -> str:
        return f"./pulumiw config {set_command(key)} --stack {self.name} && {self.up}"


def _is_secret(value: object) -> bool:
    return isinstance(value, dict) and SIGNATURE in value


def clear(value: Any) -> Any:
    """A value of a decrypted state without the marks of its secrets."""
    if isinstance(value, dict):
        if SIGNATURE in value:
            return clear(json.loads(value["plaintext"]))
        return {key: clear(each) for key, each in value.items()}
    return [clear(each) for each in value] if isinstance(value, list) else value


def _texts(value: object) -> Iterator[str]:
    """The texts in a value, however deep."""
    match value:
        case dict():
            for each in value.values():
                yield from _texts(each)
        case list():
            for each in value:
                yield from _texts(each)
        case _:
            yield str(value)
