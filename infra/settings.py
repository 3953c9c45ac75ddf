"""The stack config as one frozen, validated object.

Types and defaults stand in `Pulumi.yaml`; this module knows ranges, formats and what must fit together. Every
problem is reported at once, with the command that mends it, before any resource is registered.
"""

from __future__ import annotations

import difflib
import json
import re
import ssl
import tempfile
from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import pulumi
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ProgrammingError
from pulumi.runtime.config import _SECRET_KEYS, CONFIG, get_config_env, get_config_secret_keys_env
from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from infra.placement.cluster import CONSTRAINT
from toolchain.engine import lacks_certificates

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from pydantic.fields import FieldInfo

POSTGRES_TAG = re.compile(r":(\d+)[^/]*$")
"""The major version in the tag of a Postgres image."""
KEY_CHARACTERS = 32
"""How many characters a key has at least after its `sk-`."""
DISTINCT_CHARACTERS = 10
"""A random key of that length practically never has fewer different ones."""
PASSWORD_CHARACTERS = 16
PROVIDER_KEYS = {"openai": "openai_api_key", "anthropic": "anthropic_api_key"}
"""LiteLLM's provider prefixes whose models need a key of the stack config when they name no server of their own."""

NEEDS_A_HUB = re.compile(r"(llama)-([23])", re.IGNORECASE)
"""Names for which LiteLLM counts tokens with a tokenizer that it fetches (litellm.utils._select_tokenizer); without
a model hub each chat completion of such a name fails."""

IMAGE = re.compile(
    r"([a-z0-9]+([.-][a-z0-9]+)*(:\d+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:(?P<tag>\w[\w.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def _image(reference: str) -> str:
    match = IMAGE.fullmatch(reference)
    if match is None:
        raise ValueError("is not an image reference, as name:tag, name@sha256:… or name:tag@sha256:…")
    if match["digest"] is None and match["tag"] in (None, "latest"):
        raise ValueError("is not pinned: add a version as tag, or a digest")
    return reference


def _key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not re.fullmatch(rf"sk-[A-Za-z0-9_-]{{{KEY_CHARACTERS},}}", text):
        raise ValueError(f"must be `sk-` and at least {KEY_CHARACTERS} letters, digits, `-` or `_`")
    if len(set(text)) < DISTINCT_CHARACTERS:
        raise ValueError("is too easy to guess: use a random one")
    return key


def _password(password: SecretStr) -> SecretStr:
    if len(password.get_secret_value()) < PASSWORD_CHARACTERS:
        raise ValueError(f"must have at least {PASSWORD_CHARACTERS} characters")
    return password


def _present(key: SecretStr) -> SecretStr:
    if not key.get_secret_value().strip():
        raise ValueError("is empty")
    return key


def _docker_host(host: str) -> str:
    url = urlsplit(host)
    if not (url.scheme == "unix" and url.path) and not (url.scheme in {"ssh", "tcp"} and url.hostname):
        raise ValueError("must be unix:///path, ssh://user@host, or tcp://host:2376 for TLS")
    if url.password:
        raise ValueError("has a password, which would be shown: let a key of yours in (ssh-copy-id)")
    if why := lacks_certificates(host):
        raise ValueError(why)
    return host


def _constraint(constraint: str) -> str:
    if not CONSTRAINT.fullmatch(constraint):
        raise ValueError("is no placement constraint of Docker, as node.labels.gpu == true")
    return constraint


def _database_url(url: SecretStr) -> SecretStr:
    try:
        parts = conninfo_to_dict(url.get_secret_value())
    except ProgrammingError:
        parts = {}
    if not parts.get("host") or not parts.get("dbname"):
        raise ValueError("must name a host and a database, as postgresql://user:password@host:5432/name")
    return url


def _without_credentials(url: AnyHttpUrl) -> AnyHttpUrl:
    if url.username or url.password or url.query:
        raise ValueError("has a user or a query, which would be shown: put the key into modelKeys")
    return url


def _unset(value: object) -> object:
    return None if value == "" else value


def _keys(keys: object) -> object:
    """One key, two of them, or an empty text for a key that is to be generated."""
    return keys if isinstance(keys, list) else [keys] if keys else []


def _pem(label: str) -> Callable[[SecretStr], SecretStr]:
    def check(text: SecretStr) -> SecretStr:
        if not re.search(rf"-----BEGIN [A-Z ]*{label}-----\n.+-----END ", text.get_secret_value(), re.DOTALL):
            raise ValueError(f"is not PEM with a {label.lower()}")
        return text

    return check


def _sorted(keys: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(keys.items()))


Constraint = Annotated[str, AfterValidator(_constraint)]
Registry = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*(:\d{1,5})?(/[a-z0-9._/-]+)?$")]
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$")]
Image = Annotated[str, AfterValidator(_image)]
Port = Annotated[int, Field(ge=1, le=65535)]
MemoryMb = Annotated[int, Field(ge=64, le=1024 * 1024)]
Key = Annotated[SecretStr, AfterValidator(_key)]
Password = Annotated[SecretStr, AfterValidator(_password)]
ProviderKey = Annotated[SecretStr, AfterValidator(_present)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
Certificate = Annotated[SecretStr, AfterValidator(_pem("CERTIFICATE"))]
PrivateKey = Annotated[SecretStr, AfterValidator(_pem("PRIVATE KEY"))]
Optional = BeforeValidator(_unset)
"""Pulumi has no keys without a value: an empty one stands for none."""
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$")]
ClientName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
ClientKeys = Annotated[tuple[Key, ...], BeforeValidator(_keys), Field(max_length=2)]
Version = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rpm = Annotated[int, Field(ge=1, le=1_000_000)]


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, hide_input_in_errors=True, protected_namespaces=()
    )


class LocalModel(_Frozen):
    """A model that the stack config adds: one on a server of the team's own, or another one of a provider.

    Prices are US dollars a token. A model without a price costs LiteLLM a third of its throughput, so there is one.
    """

    name: Name
    model: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+/.+$")]
    api_base: Annotated[AnyHttpUrl, AfterValidator(_without_credentials)] | None = None
    input_cost_per_token: Annotated[float, Field(ge=0)] = 0.0
    output_cost_per_token: Annotated[float, Field(ge=0)] = 0.0

    @property
    def provider(self) -> str:
        """LiteLLM's provider prefix."""
        return self.model.split("/", 1)[0]


class SecretVersions(_Frozen):
    """The number of each generated secret; a higher one than before makes it anew."""

    master_key: Version = 1
    client_keys: Annotated[dict[ClientName, Version], AfterValidator(_sorted)] = {}
    postgres_password: Version = 1
    database_password: Version = 1


class RetirePrevious(_Frozen):
    """The number of each secret whose previous value stays valid; a higher one than before ends that."""

    client_keys: Annotated[dict[ClientName, Count], AfterValidator(_sorted)] = {}
    database_password: Count = 0


class Settings(_Frozen):
    """The whole stack config. Each field's example is what the command that mends it shows."""

    docker_host: Annotated[str, AfterValidator(_docker_host)] = Field(examples=["unix:///var/run/docker.sock"])
    bind_address: IPv4Address = Field(examples=["127.0.0.1"])
    placement: Literal["docker", "swarm"] = Field(examples=["swarm"])
    gateway_host: Annotated[HostName | None, Optional] = Field(examples=["llm.example"])
    gateway_port: Port = Field(examples=["4000"])
    postgres_port: Port = Field(examples=["5432"])
    tls_certificate: Annotated[Certificate | None, Optional] = Field(examples=["< gateway.crt"])
    tls_key: Annotated[PrivateKey | None, Optional] = Field(examples=["< gateway.key"])
    allow_plain_http: bool = Field(examples=["true"])
    metrics_port: Annotated[Port | None, Optional] = Field(examples=["8404"])
    max_body_mb: Annotated[int, Field(ge=1, le=1024)] = Field(examples=["20"])

    litellm_image: Image = Field(examples=["ghcr.io/berriai/litellm:main-v1.55.0"])
    postgres_image: Image = Field(examples=["postgres:17"])
    haproxy_image: Image = Field(examples=["haproxy:3.0"])
    image_registry: Annotated[Registry | None, Optional] = Field(examples=["registry.example:5000"])
    constraints: tuple[Constraint, ...] = Field(examples=["--path 'constraints[0]' 'node.labels.llm == true'"])
    postgres_node: Annotated[HostName | None, Optional] = Field(examples=["NODE"])
    encrypt_networks: bool = Field(examples=["true"])
    replicas: Annotated[int, Field(ge=1, le=16)] = Field(examples=["2"])
    drain_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(examples=["60"])
    litellm_memory_mb: MemoryMb = Field(examples=["1024"])
    postgres_memory_mb: MemoryMb = Field(examples=["512"])
    edge_memory_mb: MemoryMb = Field(examples=["512"])

    models: tuple[LocalModel, ...] = Field(examples=["--path 'models[0].apiBase' http://host.docker.internal:11434"])
    model_keys: Annotated[dict[Name, ProviderKey], AfterValidator(_sorted)] = Field(
        examples=["--path 'modelKeys[\"NAME\"]' KEY"]
    )
    openai_api_key: Annotated[ProviderKey | None, Optional] = Field(examples=["sk-…"])
    anthropic_api_key: Annotated[ProviderKey | None, Optional] = Field(examples=["sk-ant-…"])
    demo: bool = Field(examples=["true"])

    master_key: Annotated[Key | None, Optional] = Field(examples=['"sk-$(openssl rand -hex 24)"'])
    salt_key: Annotated[Key | None, Optional] = Field(examples=['"sk-$(openssl rand -hex 24)"'])
    client_keys: Annotated[dict[ClientName, ClientKeys], AfterValidator(_sorted)] = Field(
        examples=['--path clientKeys.app "sk-$(openssl rand -hex 24)"']
    )
    postgres_password: Annotated[Password | None, Optional] = Field(examples=['"$(openssl rand -hex 24)"'])
    database_password: Annotated[Password | None, Optional] = Field(examples=['"$(openssl rand -hex 24)"'])
    secret_versions: SecretVersions = Field(examples=["--path secretVersions.masterKey 2"])
    retire_previous: RetirePrevious = Field(examples=["--path retirePrevious.clientKeys.app 1"])
    client_rpm: Annotated[dict[ClientName, Rpm], AfterValidator(_sorted)] = Field(
        examples=["--path clientRpm.app 600"]
    )

    database_url: Annotated[DatabaseUrl | None, Optional] = Field(
        examples=["postgresql://user:password@db.example:5432/app"]
    )
    protect_data: bool = Field(examples=["true"])

    @classmethod
    def load(cls) -> Self:
        """Return the settings of the running program's stack. Raises pulumi.RunError that lists every problem."""
        prefix = f"{pulumi.get_project()}:"
        everything = {**get_config_env(), **CONFIG.get()}
        config = {key.removeprefix(prefix): value for key, value in everything.items() if key.startswith(prefix)}
        secret = {key.removeprefix(prefix) for key in {*get_config_secret_keys_env(), *_SECRET_KEYS.get()}}
        values, problems = _validate(config, secret)
        if problems:
            raise pulumi.RunError(_report(problems, pulumi.get_stack()))
        return cls.model_construct(**values)

    @property
    def host(self) -> str:
        """The name under which callers and the machine that runs the program reach the stack's ports."""
        if self.gateway_host:
            return self.gateway_host
        if not self.bind_address.is_loopback and not self.bind_address.is_unspecified:
            return str(self.bind_address)
        return urlsplit(self.docker_host).hostname or "localhost"

    @property
    def clients(self) -> tuple[str, ...]:
        """The gateway's clients; `app`, whose key the app module uses, is always one."""
        return tuple(sorted({"app", *self.client_keys}))

    @property
    def litellm_url(self) -> str:
        """Where callers reach the gateway."""
        return f"{'https' if self.tls_certificate else 'http'}://{self.host}:{self.gateway_port}"

    @property
    def provider_keys(self) -> dict[str, SecretStr]:
        """The provider keys that are set, by LiteLLM's provider prefix."""
        keys = {provider: getattr(self, field) for provider, field in PROVIDER_KEYS.items()}
        return {provider: key for provider, key in keys.items() if key is not None}

    @property
    def demo_answers(self) -> bool:
        """Whether the demo provider stands in for the providers."""
        return self.demo and not self.provider_keys


@dataclass(frozen=True)
class Problem:
    """What is wrong with a key of the stack config, and the command that mends it (without `pulumi config`)."""

    key: str
    what: str
    command: str


def _validate(config: Mapping[str, str], secret: Collection[str]) -> tuple[dict[str, Any], list[Problem]]:
    """Return the valid fields of the raw stack config, and every problem with it; `secret` are its encrypted keys."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    fields = {field.alias or name: (name, field) for name, field in Settings.model_fields.items()}
    for key in sorted(config.keys() - fields.keys()):
        near = difflib.get_close_matches(key, fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        problems.append(Problem(key, f"is not a key of this project{hint}", f"rm {key}"))
    for key, (name, field) in fields.items():
        if key not in config:
            problems.append(Problem(key, "is not set, and Pulumi.yaml has no default for it", _set(key)))
            continue
        if _is_secret(field) and config[key] not in {"", "{}"} and key not in secret:
            problems.append(Problem(key, "is not encrypted: take a new one, this one may be known", _set(key)))
        try:
            values[name] = _adapter(field).validate_python(_parsed(config[key], key))
        except ValidationError as error:
            problems.extend(Problem(_path(key, each["loc"]), _what(each), _set(key)) for each in error.errors())
        except json.JSONDecodeError:
            problems.append(Problem(key, "is not a JSON document", _set(key)))
    problems.extend(_contradictions(values))
    return values, problems


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    checked = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(checked)  # type: ignore[arg-type]  # a type that is built at run time


def _parsed(value: str, key: str) -> object:
    """Structured values reach the program as JSON."""
    return json.loads(value) if key in STRUCTURED else value


STRUCTURED = frozenset(
    {"models", "modelKeys", "clientKeys", "secretVersions", "retirePrevious", "clientRpm", "constraints"}
)


def _path(key: str, location: tuple[int | str, ...]) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location if step != "[key]")
    return key + "".join(steps)


def _what(error: Mapping[str, Any]) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _set(key: str) -> str:
    field = next(field for name, field in Settings.model_fields.items() if (field.alias or name) == key)
    example = str((field.examples or ["VALUE"])[0])
    secret = "--secret " if _is_secret(field) else ""
    return f"set {secret}{example}" if example.startswith("--path") else f"set {secret}{key} {example}"


def _is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation)


def _contradictions(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Settings that are right one by one and wrong together. A field that is wrong itself is not there."""
    yield from _port_problems(values)
    yield from _tls_problems(values)
    host, address = urlsplit(values.get("docker_host", "")), values.get("bind_address")
    if host.hostname and address is not None and address.is_loopback:
        what = f"is that machine's own: nothing reaches it from here, and `up` must reach Postgres on {host.hostname}"
        yield Problem("bindAddress", what, "set bindAddress 10.0.0.5")
    yield from _swarm_problems(values)
    if (image := values.get("postgres_image")) and not POSTGRES_TAG.search(image.split("@")[0]):
        what = "does not tell its major version, which cannot change over data: name it in the tag"
        yield Problem("postgresImage", what, "set postgresImage postgres:17@sha256:…")
    for secret in ("master_key", "postgres_password", "database_password"):
        if values.get(secret) and getattr(values.get("secret_versions"), secret, 1) > 1:
            key = to_camel(secret)
            what = f"has no effect while {key} is set: set another {key} to rotate it"
            yield Problem(f"secretVersions.{key}", what, f"rm --path secretVersions.{key}")
    if values.get("demo") and values.get("protect_data"):
        yield Problem(
            "demo", "does not go with protectData: data worth protecting is not for a demo", "set demo false"
        )
    if "models" in values:
        yield from _model_problems(values)
    yield from _client_key_problems(values)


def _model_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    models: tuple[LocalModel, ...] = values["models"]
    for name, count in Counter(model.name for model in models).items():
        if count > 1:
            last = max(index for index, model in enumerate(models) if model.name == name)
            yield Problem("models", f"names {name} {count} times", f"rm --path 'models[{last}]'")
    for index, model in enumerate(models):
        if NEEDS_A_HUB.search(model.name):
            yield Problem(
                f"models[{index}].name",
                "would make LiteLLM look for a tokenizer on a model hub at each request: leave the hyphen out",
                f"set --path 'models[{index}].name' {''.join(NEEDS_A_HUB.split(model.name))}",
            )
        if model.api_base is None and model.provider not in PROVIDER_KEYS:
            yield Problem(
                f"models[{index}].apiBase",
                f"is missing: {model.name} is a local model, so the URL of its server must be given",
                f"set --path 'models[{index}].apiBase' http://host.docker.internal:11434",
            )
    for name in sorted(values.get("model_keys", {}).keys() - {model.name for model in models}):
        yield Problem(f"modelKeys.{name}", "is the key of no model in `models`", f"rm --path 'modelKeys[\"{name}\"]'")
    keys = [values.get(field) for field in PROVIDER_KEYS.values()]
    local = any(model.api_base is not None for model in models)
    if not any(keys) and not local and values.get("demo") is False:
        yield Problem(
            "openaiApiKey", "nothing can answer: no provider key and no local model is set", _set("openaiApiKey")
        )
        yield Problem(
            "anthropicApiKey", "nothing can answer, as above: one of the two is enough", _set("anthropicApiKey")
        )


def _client_key_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    if (master := values.get("master_key")) is not None:
        owners[master.get_secret_value()] = "masterKey"
    for client, keys in values.get("client_keys", {}).items():
        for key in keys:
            owner = owners.setdefault(key.get_secret_value(), client)
            if owner != client:
                yield Problem(f"clientKeys.{client}", f"is the same key as that of {owner}", _set("clientKeys"))
    named = {
        "secretVersions.clientKeys": getattr(values.get("secret_versions"), "client_keys", {}),
        "retirePrevious.clientKeys": getattr(values.get("retire_previous"), "client_keys", {}),
        "clientRpm": values.get("client_rpm", {}),
    }
    clients = {"app", *values.get("client_keys", {})}
    for key, of_clients in named.items():
        for client in of_clients:
            if client not in clients and "client_keys" in values:
                what = f"there is no such client (clientKeys names {', '.join(sorted(clients))})"
                yield Problem(f"{key}.{client}", what, f"rm --path {key}.{client}")
    for client, version in named["secretVersions.clientKeys"].items():
        if version > 1 and values.get("client_keys", {}).get(client):
            what = "has no effect while its key is set: set another one to rotate it"
            yield Problem(
                f"secretVersions.clientKeys.{client}", what, f"rm --path secretVersions.clientKeys.{client}"
            )


def _port_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    ports = {"gatewayPort": values.get("gateway_port"), "metricsPort": values.get("metrics_port")}
    if values.get("database_url") is None:
        ports["postgresPort"] = values.get("postgres_port")
    first: dict[int, str] = {}
    for key, port in ports.items():
        if port is not None and (other := first.setdefault(port, key)) != key:
            yield Problem(key, f"is {other} too", f"set {key} {port + 1}")


def _swarm_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What Swarm cannot do, and what only Swarm can."""
    if values.get("placement") == "swarm":
        if (address := values.get("bind_address")) is not None and not address.is_unspecified:
            what = "cannot be kept on a Swarm, which publishes a port on each address of a node"
            yield Problem("bindAddress", what, "set bindAddress 0.0.0.0")
        if values.get("metrics_port"):
            what = "would be published on each address of each node: a Swarm knows no loopback port"
            yield Problem("metricsPort", what, "rm metricsPort")
    elif values.get("placement") == "docker":
        for key in ("image_registry", "constraints", "postgres_node"):
            if values.get(key):
                what = "is for a Swarm, and placement is docker"
                yield Problem(to_camel(key), what, "set placement swarm")


def _tls_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    if not {"tls_certificate", "tls_key", "allow_plain_http", "bind_address"} <= values.keys():
        return
    certificate, key = values["tls_certificate"], values["tls_key"]
    if (certificate is None) != (key is None):
        missing = "tlsKey" if certificate else "tlsCertificate"
        yield Problem(missing, "is missing: TLS needs a certificate and its key", _set(missing))
    elif certificate and (reason := _mismatch(certificate.get_secret_value(), key.get_secret_value())):
        yield Problem("tlsKey", f"cannot be used with tlsCertificate: {reason}", _set("tlsKey"))
    elif not certificate and not values["bind_address"].is_loopback and not values["allow_plain_http"]:
        what = "is missing: without TLS, keys and prompts cross the network in clear (or set allowPlainHttp true)"
        yield Problem("tlsCertificate", what, _set("tlsCertificate"))


def _mismatch(certificate: str, key: str) -> str | None:
    """Why a certificate and a key do not go together, as OpenSSL finds."""
    with tempfile.TemporaryDirectory() as folder:
        chain, private = Path(folder, "chain.pem"), Path(folder, "key.pem")
        chain.write_text(certificate)
        private.write_text(key)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, private, password="")
        except ssl.SSLError as error:
            return (error.reason or "it cannot be read").replace("_", " ").lower()
    return None


def _report(problems: list[Problem], stack: str) -> str:
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"The configuration of stack {stack} has {count}; nothing was changed."]
    for problem in problems:
        verb, rest = problem.command.split(" ", 1)
        lines += [f"  {problem.key}: {problem.what}", f"      pulumi config {verb} --stack {stack} {rest}"]
    return "\n".join(lines)
