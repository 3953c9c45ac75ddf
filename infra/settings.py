"""The stack config as one frozen object: what each key may be.

Types and defaults are in `Pulumi.yaml`; this module knows ranges and formats, and `infra.stack_config` what must
fit together.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ProgrammingError
from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    StringConstraints,
    Tag,
)
from pydantic.alias_generators import to_camel

from engine.allowed_images import moves, old_redis, replaced_litellm, unfit
from engine.certificates import missing_certificates
from infra import litellm_environment, prices, providers, retirements
from infra.limits import ClientLimits
from infra.workload import LAST_PORT, LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic.fields import FieldInfo

KEY_CHARACTERS = 32
"""How many characters a key has at least after its `sk-`."""
DISTINCT_CHARACTERS = 10
"""A random key of that length practically never has fewer different characters."""
PASSWORD_CHARACTERS = 16
MODEL = r"^[a-z0-9_-]+/.+$"
"""LiteLLM's name of a model: its provider's prefix, and the provider's own name."""
NUMBERS = re.compile(r"weight|order|rpm|tpm|temperature|top_p|\w*(cost|timeout|retries|tokens)\w*")
"""Entries of litellm_params that are numbers. Pulumi stores a number with a decimal point as text."""
REPLICA_SLOTS = 16
"""How many replicas the edge can distinguish."""
CONSTRAINT = re.compile(r"(?P<key>[a-zA-Z][\w.-]*)\s*(?P<operator>==|!=)\s*(?P<value>\S+)")
"""A placement constraint, as Docker has it."""
IMAGE = re.compile(
    r"([a-z0-9]+([.-][a-z0-9]+)*(:\d+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:(?P<tag>\w[\w.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def _image(reference: str) -> str:
    match = IMAGE.fullmatch(reference)
    if match is None:
        raise ValueError("is not an image reference such as name:tag, name@sha256:… or name:tag@sha256:…")
    if match["digest"] is None and (match["tag"] is None or moves(match["tag"])):
        raise ValueError("is not pinned: add a version as tag, or a digest")
    return reference


def _fits(why_not: Callable[[str], str | None]) -> AfterValidator:
    """Refuses an image for the reason that `why_not` has, if it has one."""

    def check(reference: str) -> str:
        if why := why_not(reference):
            raise ValueError(why)
        return reference

    return AfterValidator(check)


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


def _provider_key(key: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", key.get_secret_value()):
        raise ValueError("has characters that no header can carry, or a space at an end: copy the key again")
    return key


def _variable(value: object) -> object:
    """Numbers and switches back as text: Pulumi converts any text that looks like one."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value


def _docker_host(host: str) -> str:
    url = urlsplit(host)
    if not (url.scheme == "unix" and url.path) and not (url.scheme in {"ssh", "tcp"} and url.hostname):
        raise ValueError("must be unix:///path, ssh://user@host, or tcp://host:2376 for TLS")
    if url.password:
        raise ValueError("has a password, which would be shown: use an ssh key (ssh-copy-id)")
    if why := missing_certificates(host):
        raise ValueError(why)
    return host


def _constraint(constraint: str) -> str:
    if not CONSTRAINT.fullmatch(constraint):
        raise ValueError("is not a placement constraint of Docker, such as node.labels.gpu == true")
    return constraint


def _database_url(url: SecretStr) -> SecretStr:
    try:
        parts = conninfo_to_dict(url.get_secret_value())
    except ProgrammingError:
        parts = {}
    if not parts.get("host") or not parts.get("dbname"):
        raise ValueError("must name a host and a database, such as postgresql://user:password@host:5432/name")
    return url


def _without_credentials(url: AnyHttpUrl) -> AnyHttpUrl:
    if url.username or url.password or url.query:
        raise ValueError("has a user or a query, which would be shown: put the key into modelKeys")
    return url


def _litellm_params(parameters: dict[str, Any]) -> dict[str, Any]:
    if not re.fullmatch(MODEL, str(parameters.get("model", ""))):
        raise ValueError("must have a `model` with its provider in front, as provider/model")
    return {name: _typed(name, value) for name, value in parameters.items()}


def _typed(name: str, value: object) -> object:
    """A parameter with the type that LiteLLM needs: Pulumi reads only a text of digits as a number."""
    if NUMBERS.fullmatch(name) and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if number and name.endswith(("_project", "_id", "_version", "_key", "_name")) else value


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
VolumeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
Image = Annotated[str, AfterValidator(_image)]
LiteLLMImage = Annotated[Image, _fits(replaced_litellm)]
RedisImage = Annotated[Image, _fits(old_redis)]
DebianImage = Annotated[Image, _fits(unfit)]
Origin = Annotated[str, StringConstraints(pattern=r"^(\*|https?://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?)$")]
Port = Annotated[int, Field(ge=1, le=LAST_PORT)]
MemoryMb = Annotated[int, Field(ge=64, le=1024 * 1024)]
Key = Annotated[SecretStr, AfterValidator(_key)]
Password = Annotated[SecretStr, AfterValidator(_password)]
ProviderKey = Annotated[SecretStr, AfterValidator(_present), AfterValidator(_provider_key)]
FileContent = Annotated[SecretStr, AfterValidator(_present)]
Variable = Annotated[SecretStr, BeforeValidator(_variable), AfterValidator(_present)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
Certificate = Annotated[SecretStr, AfterValidator(_pem("CERTIFICATE"))]
PrivateKey = Annotated[SecretStr, AfterValidator(_pem("PRIVATE KEY"))]
Optional = BeforeValidator(_unset)
"""Pulumi has no keys without a value: an empty value means that the key is not set."""
LiteLLMModel = Annotated[str, StringConstraints(pattern=MODEL)]
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


class ShortModel(_Frozen):
    """A model that the stack config adds, in short form: one on the team's own server, or another one of a provider.

    Prices are US dollars a token. A model without a price costs LiteLLM a third of its throughput, so LiteLLM gets
    the price 0 for a model on the team's own server if none is given. It is shown as unknown.
    """

    name: Name
    model: LiteLLMModel
    api_base: Annotated[AnyHttpUrl, AfterValidator(_without_credentials)] | None = None
    input_cost_per_token: Annotated[float, Field(ge=0)] | None = None
    output_cost_per_token: Annotated[float, Field(ge=0)] | None = None


class Deployment(BaseModel):
    """A model that the stack config adds, in LiteLLM's own form: an entry of its model_list."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=())

    model_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9*][A-Za-z0-9._:/*-]{0,99}$")]
    litellm_params: Annotated[dict[str, Any], AfterValidator(_litellm_params)]
    model_info: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The name that callers use."""
        return self.model_name

    @property
    def model(self) -> str:
        """LiteLLM's provider/model."""
        return str(self.litellm_params["model"])


def _form(entry: object) -> str:
    names = entry.keys() if isinstance(entry, dict) else set()
    return "[litellm]" if names & {"model_name", "litellm_params", "model_info"} else "[short]"


Model = Annotated[
    Annotated[ShortModel, Tag("[short]")] | Annotated[Deployment, Tag("[litellm]")], Discriminator(_form)
]


class SecretVersions(_Frozen):
    """The number of each generated secret; a higher one than before regenerates it."""

    master_key: Version = 1
    client_keys: Annotated[dict[ClientName, Version], AfterValidator(_sorted)] = {}
    postgres_password: Version = 1
    database_password: Version = 1
    litellm_database_password: Version = 1
    redis_password: Version = 1
    admin_password: Version = 1


class RetirePrevious(_Frozen):
    """A number for each secret whose previous value is still valid; a higher one than before retires that value."""

    client_keys: Annotated[dict[ClientName, Count], AfterValidator(_sorted)] = {}
    database_password: Count = 0
    litellm_database_password: Count = 0
    redis_password: Count = 0


class Settings(_Frozen):
    """The whole stack config. Each field's example is shown in the command that fixes the field."""

    docker_host: Annotated[str, AfterValidator(_docker_host)] = Field(examples=["unix:///var/run/docker.sock"])
    bind_address: IPv4Address = Field(examples=[LOOPBACK])
    placement: Literal["docker", "swarm"] = Field(examples=["swarm"])
    gateway_host: Annotated[HostName | None, Optional] = Field(examples=["llm.example"])
    gateway_port: Port = Field(examples=["4000"])
    postgres_port: Port = Field(examples=["5432"])
    tls_certificate: Annotated[Certificate | None, Optional] = Field(examples=["< gateway.crt"])
    tls_key: Annotated[PrivateKey | None, Optional] = Field(examples=["< gateway.key"])
    allow_plain_http: bool = Field(examples=["true"])
    metrics_port: Annotated[Port | None, Optional] = Field(examples=["8404"])
    admin_port: Annotated[Port | None, Optional] = Field(examples=["4001"])
    fetch_urls: bool = Field(examples=["true"])
    max_body_mb: Annotated[int, Field(ge=1, le=1024)] = Field(examples=["32"])
    cors_origins: tuple[Origin, ...] = Field(examples=["--path 'corsOrigins[0]' https://app.example"])

    litellm_image: LiteLLMImage = Field(examples=["ghcr.io/berriai/litellm:main-v1.55.0"])
    postgres_image: DebianImage = Field(examples=["postgres:17"])
    haproxy_image: DebianImage = Field(examples=["haproxy:3.0"])
    redis_image: RedisImage = Field(examples=["valkey/valkey:8.1"])
    image_registry: Annotated[Registry | None, Optional] = Field(examples=["registry.example:5000"])
    constraints: tuple[Constraint, ...] = Field(examples=["--path 'constraints[0]' 'node.labels.llm == true'"])
    postgres_volume: VolumeName = Field(examples=["postgres-18-data"])
    postgres_node: Annotated[HostName | None, Optional] = Field(examples=["NODE"])
    encrypt_networks: bool = Field(examples=["true"])
    replicas: Annotated[int, Field(ge=1, le=REPLICA_SLOTS)] = Field(examples=["2"])
    drain_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(examples=["60"])
    fast_streams: bool = Field(examples=["false"])
    litellm_memory_mb: MemoryMb = Field(examples=["1024"])
    postgres_memory_mb: MemoryMb = Field(examples=["512"])
    edge_memory_mb: MemoryMb = Field(examples=["512"])
    redis_memory_mb: MemoryMb = Field(examples=["128"])

    models: tuple[Model, ...] = Field(examples=["--path 'models[0].apiBase' http://host.docker.internal:11434"])
    model_keys: Annotated[dict[Name, ProviderKey], AfterValidator(_sorted)] = Field(
        examples=["--path 'modelKeys[\"NAME\"]' KEY"]
    )
    litellm_environment: Annotated[dict[str, Variable], AfterValidator(_sorted)] = Field(
        examples=["--path litellmEnvironment.GEMINI_API_KEY KEY"]
    )
    litellm_files: Annotated[dict[str, FileContent], AfterValidator(_sorted)] = Field(
        examples=["--path 'litellmFiles[\"vertex.json\"]' < key.json"]
    )
    litellm_settings: dict[str, Any] = Field(examples=["--path 'litellmSettings.success_callback[0]' langfuse"])
    router_settings: dict[str, Any] = Field(examples=["--path routerSettings.num_retries 1"])
    general_settings: dict[str, Any] = Field(examples=["--path generalSettings.max_parallel_requests 500"])
    refused_parameters: prices.Refused = Field(examples=["error"])
    retired_models: retirements.Policy = Field(examples=["keep"])
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
    client_limits: Annotated[dict[ClientName, ClientLimits], AfterValidator(_sorted)] = Field(
        examples=["--path clientLimits.app.budget 50"]
    )

    database_url: Annotated[DatabaseUrl | None, Optional] = Field(
        examples=["postgresql://user:password@db.example:5432/app"]
    )
    litellm_database: bool = Field(examples=["true"])
    litellm_database_url: Annotated[DatabaseUrl | None, Optional] = Field(
        examples=["postgresql://user:password@db.example:5432/litellm"]
    )
    redis: bool = Field(examples=["true"])
    protect_data: bool = Field(examples=["true"])

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
    def variables(self) -> dict[str, SecretStr]:
        """LiteLLM's environment by name, without what the stack itself puts there."""
        return litellm_environment.variables(dict(self))

    @property
    def demo_answers(self) -> bool:
        """Whether the demo provider answers for all providers."""
        return self.demo and not self.variables.keys() & providers.load().keys


def is_secret(field: FieldInfo) -> bool:
    """Whether a field of Settings holds a secret, or several."""
    return "SecretStr" in str(field.annotation)
