"""Reads Pulumi's stack config as Settings, or lists every problem with it, before any resource is registered.

What each key may be is in `infra.settings`; what must fit together is here.
"""

from __future__ import annotations

import difflib
import json
import re
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import pulumi
import yaml
from cryptography import x509
from pulumi.runtime.config import _SECRET_KEYS, CONFIG, get_config_env, get_config_secret_keys_env
from pydantic import TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from infra import (
    admin,
    client_problems,
    limits,
    litellm_connections,
    litellm_environment,
    litellm_settings,
    model_problems,
    redis,
)
from infra.problem import Problem
from infra.settings import Settings, is_secret
from infra.workload import LAST_PORT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from pydantic.fields import FieldInfo

Place = tuple[int | str, ...]
"""The path into a structured value."""
SHOWN = {"models", *litellm_settings.SECTIONS}
"""Keys that anyone who can read LiteLLM's config can read. Secrets in them are named os.environ/NAME."""
RENEWAL = timedelta(days=30)
"""How long before its end a certificate should be renewed; one with less than three times that lifetime, in its last
third."""
MINUTE = "%Y-%m-%d %H:%M UTC"


def load() -> Settings:
    """Return the settings of the running program's stack. Raises pulumi.RunError that lists every problem."""
    prefix = f"{pulumi.get_project()}:"
    everything = {**get_config_env(), **CONFIG.get()}
    config = {key.removeprefix(prefix): value for key, value in everything.items() if key.startswith(prefix)}
    secret = {key.removeprefix(prefix) for key in {*get_config_secret_keys_env(), *_SECRET_KEYS.get()}}
    stack = pulumi.get_stack()
    file = Path(f"Pulumi.{stack}.yaml")
    written = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.exists() else {}
    plain = {key.removeprefix(prefix): list(_plain(value)) for key, value in (written.get("config") or {}).items()}
    values, problems = validate(config, secret, plain)
    if problems:
        raise pulumi.RunError(report(problems, stack))
    settings = Settings.model_construct(**values)
    if settings.tls_certificate is not None:
        for doubt in _doubts(settings.tls_certificate.get_secret_value(), datetime.now(UTC)):
            certificate, key = (_whole(set_command(each), stack) for each in ("tlsCertificate", "tlsKey"))
            pulumi.log.warn(f"{doubt}: {certificate}; if its key is new too: {key}")
    return settings


def validate(
    config: Mapping[str, str], secret: Collection[str], plain: Mapping[str, list[Place]] | None = None
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the valid fields of the raw stack config, and every problem with it.

    `secret` has the keys with something encrypted in them, `plain` the places in each that are not encrypted.
    """
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    fields = {field.alias or name: (name, field) for name, field in Settings.model_fields.items()}
    for key in sorted(config.keys() - fields.keys()):
        near = difflib.get_close_matches(key, fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        problems.append(Problem(key, f"is not a key of this project{hint}", f"rm {key}"))
    for key, (name, field) in fields.items():
        if key not in config:
            problems.append(Problem(key, "is not set, and Pulumi.yaml has no default for it", set_command(key)))
            continue
        try:
            value = _parsed(config[key], key)
            if key in SHOWN and key in secret:
                what = "is shown in previews, so nothing in it can be encrypted: set a variable, and name that here"
                problems.append(Problem(key, what, "set --secret --path litellmEnvironment.NAME VALUE"))
            if is_secret(field):
                places = (plain or {}).get(key, ()) if key in secret else _plain(value)
                problems.extend(_in_clear(key, place) for place in places if not _may_be_plain(key, place, value))
            values[name] = adapter(field).validate_python(value)
        except ValidationError as error:
            problems.extend(
                Problem(_path(key, each["loc"]), _what(each), _fix_for(key, each["loc"], each["type"]))
                for each in error.errors()
            )
        except json.JSONDecodeError:
            problems.append(Problem(key, "is not a JSON document", set_command(key)))
    problems.extend(_contradictions(values))
    return values, problems


def _plain(value: object, place: Place = ()) -> Iterator[Place]:
    """The places in a value of the stack's file that are in clear text. Pulumi encrypts others as {secure: …}."""
    if isinstance(value, dict):
        if value.keys() != {"secure"}:
            for name, each in value.items():
                yield from _plain(each, (*place, name))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _plain(each, (*place, index))
    elif value not in {"", None}:
        yield place


def _may_be_plain(key: str, place: Place, value: object) -> bool:
    """Whether the value at this place of a key may be in clear text."""
    if key not in {"litellmEnvironment", "litellmFiles"} or len(place) != 1 or not isinstance(value, dict):
        return False
    return not litellm_environment.must_be_encrypted(key, str(place[0]), value.get(place[0]))


def _in_clear(key: str, place: Place) -> Problem:
    steps = "".join(f"[{step}]" if isinstance(step, int) else f'["{step}"]' for step in place)
    command = f"set --secret --path '{key}{steps}' VALUE" if place else set_command(key)
    return Problem(_path(key, place), "is not encrypted: get a new one, because this one may be known", command)


def report(problems: list[Problem], stack: str) -> str:
    """All problems, each with the whole command that fixes it."""
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"The configuration of stack {stack} has {count}; nothing was changed."]
    for problem in problems:
        lines += [f"  {problem.key}: {problem.what}", f"      {_whole(problem.command, stack)}"]
    return "\n".join(lines)


def _whole(command: str, stack: str) -> str:
    """A command as you type it, for this stack."""
    verb, rest = command.split(" ", 1)
    return f"./pulumiw config {verb} --stack {stack} {rest}"


def adapter(field: FieldInfo) -> TypeAdapter[Any]:
    """Validates a value of the field, and knows its schema."""
    checked = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(checked)  # type: ignore[arg-type]  # a type that is built at run time


def _parsed(value: str, key: str) -> object:
    """Structured values reach the program as JSON."""
    return json.loads(value) if key in STRUCTURED else value


STRUCTURED = frozenset(
    str(field.alias)
    for field in Settings.model_fields.values()
    if adapter(field).json_schema().get("type") in {"array", "object"}
)


NAME = re.compile(r"[A-Za-z_]\w*")
"""A step of a path that needs no quotes."""


def _steps(location: Place) -> list[int | str]:
    """The way to a value, without pydantic's own steps: the names of a union's forms, and "[key]"."""
    return [step for step in location if not str(step).startswith("[")]


def _path(key: str, location: Place) -> str:
    return key + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in _steps(location))


def _fix_for(key: str, location: Place, kind: str) -> str:
    """The command that fixes a value that is wrong by itself; `kind` is pydantic's name of the error."""
    steps, command = _steps(location), set_command(key)
    if not steps or "--path " not in command:
        return command
    if key == "clientLimits" and (better := limits.command(steps)):
        return better
    place = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" if NAME.fullmatch(step) else f'["{step}"]'
        for step in steps
    )
    path = f"'{key}{place}'" if "[" in place else f"{key}{place}"
    if kind == "extra_forbidden" or "[key]" in location:
        return f"rm --path {path}"
    before, _, example = command.partition("--path ")
    value = "VALUE" if key == "models" else example.split(" ", 1)[1]  # each field of a model is another
    return f"{before}--path {path} {value}"


def _what(error: Mapping[str, Any]) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def set_command(key: str) -> str:
    """The command that sets a key, with an example (without `pulumi config`)."""
    field = next(field for name, field in Settings.model_fields.items() if (field.alias or name) == key)
    example = str((field.examples or ["VALUE"])[0])
    secret = "--secret " if is_secret(field) else ""
    return f"set {secret}{example}" if example.startswith("--path") else f"set {secret}{key} {example}"


def _contradictions(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Settings that are valid by themselves but not together. A field that is invalid by itself is ignored."""
    yield from _port_problems(values)
    yield from _tls_problems(values)
    host, address = urlsplit(values.get("docker_host", "")), values.get("bind_address")
    if host.hostname and address is not None and address.is_loopback:
        what = f"cannot be reached from here, and `up` must reach Postgres on {host.hostname}"
        yield Problem("bindAddress", what, "set bindAddress 10.0.0.5")
    yield from _swarm_problems(values)
    for secret in ("master_key", "postgres_password", "database_password"):
        if values.get(secret) and getattr(values.get("secret_versions"), secret, 1) > 1:
            key = to_camel(secret)
            what = f"has no effect while {key} is set: set a new {key} to rotate it"
            yield Problem(f"secretVersions.{key}", what, f"rm --path secretVersions.{key}")
    if values.get("demo") and values.get("protect_data"):
        what = "cannot be combined with protectData; if the data can be thrown away, set that to false instead"
        yield Problem("demo", what, "set demo false")
    yield from litellm_environment.problems(values)
    yield from model_problems.problems(values)
    yield from litellm_settings.problems(values)
    yield from litellm_connections.problems(values)
    yield from redis.problems(values)
    yield from client_problems.problems(values)
    yield from admin.problems(values)


def _port_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    named = {"gatewayPort": "gateway_port", "metricsPort": "metrics_port", "adminPort": "admin_port"}
    ports = {key: values.get(name) for key, name in named.items()}
    if values.get("database_url") is None:
        ports["postgresPort"] = values.get("postgres_port")
    first: dict[int, str] = {}
    spoken_for = set(ports.values())
    for key, port in ports.items():
        if port is not None and (other := first.setdefault(port, key)) != key:
            near = (*range(port + 1, port + 4), *range(port - 1, port - 4, -1))
            free = next(each for each in near if each <= LAST_PORT and each not in spoken_for)
            spoken_for.add(free)
            yield Problem(key, f"is {other} too", f"set {key} {free}")


def _swarm_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What Swarm cannot do, and what only Swarm can."""
    if values.get("placement") == "swarm":
        if (address := values.get("bind_address")) is not None and not address.is_unspecified:
            what = "does not work on a Swarm, which publishes a port on every address of a node"
            yield Problem("bindAddress", what, "set bindAddress 0.0.0.0")
        for key in ("metricsPort", "adminPort"):
            if values.get(f"{key.removesuffix('Port')}_port"):
                what = "would be published on every address of every node: a Swarm cannot publish on loopback only"
                yield Problem(key, what, f"rm {key}")
    elif values.get("placement") == "docker":
        for key in ("image_registry", "constraints", "postgres_node"):
            if values.get(key):
                what = "is for a Swarm, but placement is docker"
                yield Problem(to_camel(key), what, "set placement swarm")


def _tls_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    if not {"tls_certificate", "tls_key", "allow_plain_http", "bind_address"} <= values.keys():
        return
    certificate, key = values["tls_certificate"], values["tls_key"]
    if (certificate is None) != (key is None):
        missing = "tlsKey" if certificate else "tlsCertificate"
        yield Problem(missing, "is missing: TLS needs a certificate and its key", set_command(missing))
    elif certificate and (reason := _mismatch(certificate.get_secret_value(), key.get_secret_value())):
        yield Problem("tlsKey", f"cannot be used with tlsCertificate: {reason}", set_command("tlsKey"))
    elif not certificate and not values["bind_address"].is_loopback and not values["allow_plain_http"]:
        what = "is missing: without TLS, keys and prompts cross the network in clear (or set allowPlainHttp true)"
        yield Problem("tlsCertificate", what, set_command("tlsCertificate"))


def _mismatch(certificate: str, key: str) -> str | None:
    """Why a certificate and a key do not match, as OpenSSL finds."""
    with tempfile.TemporaryDirectory() as folder:
        chain, private = Path(folder, "chain.pem"), Path(folder, "key.pem")
        chain.write_text(certificate)
        private.write_text(key)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, private, password="")
        except ssl.SSLError as error:
            return (error.reason or "it cannot be read").replace("_", " ").lower()
    return None


def _doubts(chain: str, now: datetime) -> Iterator[str]:
    """Warnings about certificates of a chain that are not valid, or not for much longer.

    The clock may be wrong, so this only warns.
    """
    try:
        certificates = [
            (each.subject.rfc4514_string(), each.not_valid_before_utc, each.not_valid_after_utc)
            for each in x509.load_pem_x509_certificates(chain.encode())
        ]
    except (ValueError, x509.InvalidVersion):  # raised for some that OpenSSL accepts
        yield "the dates of tlsCertificate cannot be read"
        return
    for number, (subject, begin, end) in enumerate(certificates):
        name = f"{subject} in tlsCertificate" if number else "tlsCertificate"
        if now < begin:
            yield f"{name} is not valid before {begin:{MINUTE}}"
        elif end - now < min(RENEWAL, (end - begin) / 3):
            yield f"{name} {'expired' if end < now else 'expires'} on {end:{MINUTE}}"
