"""A stack that is deployed, as it is read: config, outputs and state by the project's own Pulumi. Changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict

from infra.placement.engine import LABEL
from infra.settings import STRUCTURED, Settings, _report, _set, _validate
from infra.workload import LIVE
from tests.deploy.leaks import Secret
from tests.stack_config import PROJECT, PROJECT_NAME
from toolchain.engine import UNREACHABLE, connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from docker.models.containers import Container

SIGNATURE = "4dabf18193072939515e22adb298388d"
"""The key by which Pulumi marks a secret in a state."""
CONTAINER = "docker:index/container:Container"
SETTINGS = {
    "master-key": "masterKey",
    "postgres-password": "postgresPassword",
    "database-password": "databasePassword",
}
"""The key of the stack config of a secret that can be rotated, by its resource."""
CLIENT_KEY = "client-key-"


class StackError(Exception):
    """The stack cannot be read; says what to do."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A container as the state has it."""

    name: str
    """In the stack, as `litellm-1`."""
    kind: str
    """What it is a replica of, as `litellm`."""
    container: str
    """Its name on the engine."""
    id: str
    image: str
    """The id of its image."""
    user: str
    networks: frozenset[str]
    files: Mapping[str, str] = field(repr=False)
    """The content of each file that it was given, secrets among them, by path."""


class DeployedStack:
    """A deployed stack. Raises StackError when there is none of that name that can be read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.up = f"./pulumiw up --refresh --stack {name}"
        """The command that makes everything that runs what it should be."""
        self.settings, self._secret_settings = self._read_config()
        self.masked_state = self._pulumi("stack", "export")
        """The state as it is kept: each secret as ciphertext."""
        self.masked_outputs = self._pulumi("stack", "output", "--json")
        exported = json.loads(self._pulumi("stack", "export", "--show-secrets"))["deployment"]
        self.resources: list[dict[str, Any]] = [
            {**resource, "name": resource["urn"].rsplit("::", 1)[1]} for resource in exported.get("resources") or []
        ]
        self.outputs: dict[str, Any] = json.loads(self._pulumi("stack", "output", "--json", "--show-secrets"))
        if not self.outputs:
            raise StackError(f"stack {name} has not been brought up. Do that first: make up STACK={name}")
        try:
            self.engine = connect(self.settings.docker_host)
        except UNREACHABLE as error:
            raise StackError(
                f"the Docker Engine at {self.settings.docker_host}, dockerHost of stack {name}, does not answer "
                f"({error}). See why: {self.docker('version')}"
            ) from error

    def _pulumi(self, *arguments: str) -> str:
        # Not pulumiw: this runs in the environment that it would make.
        result = subprocess.run(
            [sys.executable, "-m", "toolchain.pulumi", *arguments, "--stack", self.name, "--non-interactive"],
            cwd=PROJECT,
            check=False,
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            raise StackError(
                f"stack {self.name} cannot be read: {result.stderr.strip()}\n"
                "See which there are: ./pulumiw stack ls. Name one: make check-deploy STACK=… "
                "Where its state is kept say PULUMI_BACKEND_URL and PULUMI_CONFIG_PASSPHRASE (or …_FILE)."
            )
        return result.stdout

    def _read_config(self) -> tuple[Settings, dict[str, str]]:
        """Return the settings, and those of them that are secret as they stand in the config."""
        entries: dict[str, dict[str, Any]] = json.loads(self._pulumi("config", "--json", "--show-secrets"))
        own = {
            key.removeprefix(f"{PROJECT_NAME}:"): entry
            for key, entry in entries.items()
            if key.startswith(f"{PROJECT_NAME}:")
        }
        raw = {key: str(entry["value"]) for key, entry in own.items()}
        secret = {key for key, entry in own.items() if entry["secret"]}
        values, problems = _validate(raw, secret)
        if problems:
            raise StackError(_report(problems, self.name))
        return Settings.model_construct(**values), {key: raw[key] for key in secret}

    def close(self) -> None:
        """Let go of the engine."""
        self.engine.close()

    def docker(self, command: str) -> str:
        """A docker command that the reader may run, for this stack's engine."""
        return f"docker --host {self.settings.docker_host} {command}"

    def make_again(self, container: str) -> str:
        """The commands that put another container, as the state has it, in the place of one."""
        return f"{self.docker(f'stop {container}')} && {self.docker(f'rm {container}')} && {self.up}"

    def of_type(self, kind: str) -> Iterator[dict[str, Any]]:
        """The state's resources whose type ends so, secrets in clear."""
        return (resource for resource in self.resources if resource["type"].endswith(kind))

    @cached_property
    def parts(self) -> list[Part]:
        """Every container that the state knows."""
        live = {
            resource["outputs"]["container"]: _clear(resource["outputs"]["files"])
            for resource in self.of_type(":LiveFiles")
        }
        return [_part(resource, live.get(resource["id"], {})) for resource in self.of_type(CONTAINER)]

    def part(self, name: str) -> Part:
        """The container of a name in the stack."""
        return next(part for part in self.parts if part.name == name)

    @property
    def labels(self) -> dict[str, str]:
        """What everything on the engine is labelled with that belongs to this stack."""
        return {
            f"{LABEL}.project": PROJECT_NAME,
            f"{LABEL}.stack": self.name,
            f"{LABEL}.identity": self.rotating("identity")["value"],
        }

    def containers(self) -> list[Container]:
        """Every container on the engine with the stack's name, running or not."""
        wanted = [f"{LABEL}.project={PROJECT_NAME}", f"{LABEL}.stack={self.name}"]
        return self.engine.containers.list(all=True, filters={"label": wanted}, ignore_removed=True)

    def rotating(self, name: str) -> dict[str, Any]:
        """The outputs of a RotatingSecret in clear: `value`, `previous`, `version` and so on."""
        resource = next(it for it in self.of_type(":RotatingSecret") if it["name"] == name)
        outputs: dict[str, Any] = _clear(resource["outputs"])
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
                if _is_secret(outputs[each]) and (value := _clear(outputs[each])):
                    yield Secret(name=f"{resource['name']} ({each})", value=value, renew=self._renew(resource))

    def _configured(self) -> Iterator[Secret]:
        for key, text in self._secret_settings.items():
            values = [*_texts(json.loads(text))] if key in STRUCTURED else [text]
            if key == "databaseUrl":
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
        if _clear(outputs["configured"]):
            return self._set(setting.split(".", maxsplit=1)[0])
        version = int(outputs["version"]) + 1
        return f"./pulumiw config set --stack {self.name} --path secretVersions.{setting} {version} && {self.up}"

    def _set(self, key: str) -> str:
        return f"./pulumiw config {_set(key)} --stack {self.name} && {self.up}"


def _part(resource: Mapping[str, Any], live: Mapping[str, str]) -> Part:
    inputs = _clear(resource["inputs"])
    labels = {each["label"]: each["value"] for each in inputs["labels"]}
    return Part(
        name=resource["name"],
        kind=labels[f"{LABEL}.part"],
        container=inputs["name"],
        id=resource["id"],
        image=inputs["image"],
        user=inputs["user"],
        networks=frozenset(each["name"] for each in inputs["networksAdvanced"]),
        files={
            **{each["file"]: each["content"] for each in inputs.get("uploads") or []},
            **{f"{LIVE}/current/{name}": content for name, content in live.items()},
        },
    )


def _is_secret(value: object) -> bool:
    return isinstance(value, dict) and SIGNATURE in value


def _clear(value: Any) -> Any:
    """A value of a decrypted state without the marks of its secrets."""
    if isinstance(value, dict):
        if SIGNATURE in value:
            return _clear(json.loads(value["plaintext"]))
        return {key: _clear(each) for key, each in value.items()}
    return [_clear(each) for each in value] if isinstance(value, list) else value


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
