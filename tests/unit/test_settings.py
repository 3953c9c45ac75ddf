"""The stack config is checked whole, before anything is registered."""

from __future__ import annotations

import json
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pulumi
import pytest
import yaml
from pulumi.runtime.config import set_all_config

from infra import model_list
from infra.settings import Settings, is_secret
from infra.stack_config import STRUCTURED, load, validate
from tests.certificates import certify
from tests.stack_config import KEY, OTHER_KEY, PROJECT_NAME, project_file, raw_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infra.problem import Problem

SECRET = {str(field.alias) for field in Settings.model_fields.values() if is_secret(field)}
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n"
PRIVATE_KEY = "-----BEGIN PRIVATE KEY-----\nnothing\n-----END PRIVATE KEY-----\n"


def problems(stack: str | None = "dev", **changes: object) -> list[Problem]:
    return validate(raw_config(stack, **changes), SECRET)[1]


def keys(stack: str | None = "dev", **changes: object) -> list[str]:
    return [problem.key for problem in problems(stack, **changes)]


def test_pulumi_yaml_describes_exactly_the_settings() -> None:
    """Every key of the settings is in Pulumi.yaml with a type and a description, and no other is."""
    described = project_file()["config"]
    assert set(described) == {field.alias for field in Settings.model_fields.values()}
    for key, spec in described.items():
        assert spec["type"] in {"string", "integer", "boolean", "array", "object"}, key
        assert (spec["type"] in {"array", "object"}) == (key in STRUCTURED), key
        assert spec["description"].endswith((".", ")")), key


def test_local_models_of_the_file_are_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A team that uses only its own servers has no provider key to set."""
    file = tmp_path / "config.yaml"
    local = {"model_name": "llama", "litellm_params": {"model": "ollama/llama3.1", "api_base": "http://gpu:11434"}}
    file.write_text(yaml.safe_dump({"model_list": [local]}))
    monkeypatch.setattr(model_list, "FILE", file)
    assert keys("staging") == []


def test_dev_needs_nothing() -> None:
    assert problems("dev") == []


@pytest.mark.parametrize("stack", ["staging", "prod"])
def test_staging_and_prod_need_a_provider_key_or_a_local_model(stack: str) -> None:
    """And prod needs a certificate, because a Swarm publishes it on every address of its nodes."""
    also = ["tlsCertificate"] if stack == "prod" else []
    assert keys(stack) == [*also, "openaiApiKey", "anthropicApiKey", "demo"]
    assert keys(stack, anthropicApiKey="sk-ant-1") == also
    local = {"name": "llama", "model": "ollama/llama3.1", "apiBase": "http://gpu:11434"}
    assert keys(stack, models=[local], allowPlainHttp="true") == []


@pytest.mark.parametrize(
    ("changes", "key", "what"),
    [
        ({"replica": "3"}, "replica", "did you mean replicas?"),
        ({"replicas": "0"}, "replicas", "greater than or equal to 1"),
        ({"replicas": "17"}, "replicas", "less than or equal to 16"),
        ({"replicas": "many"}, "replicas", "valid integer"),
        ({"gatewayPort": "70000"}, "gatewayPort", "65535"),
        ({"postgresPort": "4000"}, "postgresPort", "is gatewayPort too"),
        ({"metricsPort": "4000"}, "metricsPort", "is gatewayPort too"),
        ({"bindAddress": "10.0.0.5"}, "tlsCertificate", "cross the network in clear"),
        ({"tlsCertificate": CERTIFICATE}, "tlsKey", "is missing"),
        ({"tlsKey": PRIVATE_KEY}, "tlsCertificate", "is missing"),
        ({"tlsKey": "not pem"}, "tlsKey", "is not PEM with a private key"),
        ({"tlsCertificate": CERTIFICATE, "tlsKey": PRIVATE_KEY}, "tlsKey", "cannot be used with tlsCertificate"),
        ({"maxBodyMb": "0"}, "maxBodyMb", "greater than or equal to 1"),
        ({"clientRpm": {"app": 0}}, "clientRpm.app", "greater than or equal to 1"),
        ({"clientRpm": {"batch": 60}}, "clientRpm.batch", "there is no such client"),
        ({"retirePrevious": {"clientKeys": {"batch": 1}}}, "retirePrevious.clientKeys.batch", "no such client"),
        (
            {"secretVersions": {"clientKeys": {"app": 2}}, "clientKeys": {"app": KEY}},
            "secretVersions.clientKeys.app",
            "has no effect",
        ),
        ({"bindAddress": "localhost"}, "bindAddress", "valid IPv4 address"),
        ({"dockerHost": "http://x"}, "dockerHost", "must be unix:///path"),
        ({"litellmImage": "Not An Image"}, "litellmImage", "is not an image reference"),
        ({"postgresImage": "postgres"}, "postgresImage", "is not pinned"),
        ({"postgresVolume": "a/path"}, "postgresVolume", "pattern"),
        *(
            ({f"{part}Image": f"{part}:{tag}"}, f"{part}Image", "is not pinned")
            for part, tag in (
                ("haproxy", "latest"),
                ("haproxy", "lts"),
                ("haproxy", "lts-alpine3.22"),
                ("litellm", "main-latest"),
                ("litellm", "main-stable"),
                ("litellm", "Latest"),
                ("litellm", "v1-latest"),
            )
        ),
        *(
            ({"litellmImage": reference}, "litellmImage", f"is LiteLLM {release}, which an attacker published")
            for reference, release in (
                ("ghcr.io/berriai/litellm:v1.107.0", "1.107.0"),
                ("docker.io/litellm/litellm:main-v1.82.7-stable", "1.82.7"),
                ("registry.example:5000/litellm-database:1.82.8@sha256:" + "0" * 64, "1.82.8"),
                ("team/gateway@sha256:" + "1bbcb1443bc9".ljust(64, "0"), "1.107.0"),
                ("ghcr.io/berriai/litellm-database:v1.107.1@sha256:" + "c00f9d92c427".ljust(64, "0"), "1.107.0"),
                ("mirror.example/litellm-non_root:sha256-" + "7b00e91cd2fe".ljust(64, "0"), "1.107.0"),
            )
        ),
        ({"haproxyImage": "haproxy@sha256:abc"}, "haproxyImage", "is not an image reference"),
        ({"haproxyImage": "haproxy:3.0-alpine3.22"}, "haproxyImage", "is built on Alpine, and the stack uses"),
        ({"postgresImage": "registry.example:5000/postgres:17.9-alpine"}, "postgresImage", "is built on Alpine"),
        (
            {"postgresImage": "dhi.io/postgres:17"},
            "postgresImage",
            "is hardened, or another maker's, and the stack uses",
        ),
        ({"postgresImage": "bitnami/postgresql:17"}, "postgresImage", "is hardened"),
        ({"haproxyImage": "registry.example/hardened/haproxy:3.2"}, "haproxyImage", "is hardened"),
        ({"dockerHost": "ssh://deploy@staging.example"}, "bindAddress", "cannot be reached from here"),
        ({"dockerHost": "tcp://10.0.0.5:2375"}, "dockerHost", "is reached by TLS only"),
        ({"dockerHost": "ssh://deploy:word@staging.example"}, "dockerHost", "has a password, which would be shown"),
        (
            {"dockerHost": "staging.example"},
            "dockerHost",
            "must be unix:///path, ssh://user@host, or tcp://host:2376",
        ),
        ({"replicas": None}, "replicas", "is not set, and Pulumi.yaml has no default for it"),
        ({"secretVersions": {"masterKey": 2}, "masterKey": KEY}, "secretVersions.masterKey", "has no effect"),
        (
            {"models": [{"name": "m", "model": "openai/m", "apiBase": "http://u:p@h"}]},
            "models[0].apiBase",
            "put the key into modelKeys",
        ),
        ({"demo": "maybe"}, "demo", "valid boolean"),
        ({"protectData": "true"}, "demo", "cannot be combined with protectData"),
        ({"masterKey": "hunter2"}, "masterKey", "must be `sk-` and at least 32"),
        ({"masterKey": "sk-" + "a" * 40}, "masterKey", "too easy to guess"),
        ({"openaiApiKey": "  "}, "openaiApiKey", "is empty"),
        ({"openaiApiKey": "…"}, "openaiApiKey", "copy the key again"),
        ({"anthropicApiKey": "sk-ant-1\n"}, "anthropicApiKey", "copy the key again"),
        ({"modelKeys": {"own": " key"}}, "modelKeys.own", "copy the key again"),
        ({"databasePassword": "short"}, "databasePassword", "at least 16 characters"),
        ({"databaseUrl": "mysql://x"}, "databaseUrl", "must name a host and a database"),
        ({"clientKeys": {"app": KEY, "App!": OTHER_KEY}}, "clientKeys.App!", "pattern"),
        ({"clientKeys": {"app": "weak"}}, "clientKeys.app[0]", "must be `sk-`"),
        ({"clientKeys": {"app": [KEY, OTHER_KEY, KEY]}}, "clientKeys.app", "at most 2"),
        ({"clientKeys": {"app": KEY, "batch": KEY}}, "clientKeys.batch", "same key as app's"),
        ({"clientKeys": {"app": KEY}, "masterKey": KEY}, "clientKeys.app", "same key as masterKey's"),
        ({"clientKeys": "not json"}, "clientKeys", "is not a JSON document"),
        ({"models": [{"name": "m", "model": "ollama/m"}]}, "models[0].apiBase", "URL of its server must be given"),
        ({"models": [{"name": "m", "model": "m", "apiBase": "http://h"}]}, "models[0].model", "pattern"),
        ({"models": [{"model_name": "m", "litellm_params": {}}]}, "models[0].litellm_params", "as provider/model"),
        ({"models": [{"name": "m", "model": "ollama/m", "apiBase": "h"}]}, "models[0].apiBase", "valid URL"),
        ({"models": [{"name": "m", "model": "openai/m", "price": 1}]}, "models[0].price", "not permitted"),
        (
            {"models": [{"name": "m", "model": "openai/m"}, {"name": "m", "model": "openai/n"}]},
            "models",
            "names m 2 times",
        ),
        (
            {"models": [{"name": "llama-3.1", "model": "ollama/llama3.1", "apiBase": "http://h"}]},
            "models[0].name",
            "leave the hyphen out",
        ),
        ({"modelKeys": {"m": "k"}}, "modelKeys.m", "is not the key of any model"),
        ({"secretVersions": {"masterKey": 0}}, "secretVersions.masterKey", "greater than or equal to 1"),
        ({"secretVersions": {"nothing": 1}}, "secretVersions.nothing", "not permitted"),
    ],
)
def test_each_mistake_is_named_with_what_is_wrong(changes: dict[str, Any], key: str, what: str) -> None:
    found = problems(**changes)
    assert [problem.key for problem in found] == [key]
    assert what in found[0].what


@pytest.mark.parametrize(
    ("port", "other", "proposed"),
    [(4000, 5432, 4001), (4000, 4001, 4002), (65534, 65535, 65533), (65535, 5432, 65534), (65535, 65534, 65533)],
)
def test_a_port_that_is_proposed_is_one_and_free(port: int, other: int, proposed: int) -> None:
    [found] = problems(gatewayPort=str(port), postgresPort=str(other), metricsPort=str(port))
    assert (found.key, found.command) == ("metricsPort", f"set metricsPort {proposed}")


def test_ports_that_are_proposed_together_differ() -> None:
    found = problems(gatewayPort="4000", postgresPort="4000", metricsPort="4000")
    assert [each.command for each in found] == ["set metricsPort 4001", "set postgresPort 4002"]


def configured(monkeypatch: pytest.MonkeyPatch, config: dict[str, str]) -> None:
    """Have Pulumi hand this config to the program."""
    monkeypatch.delenv("PULUMI_CONFIG", raising=False)
    pulumi.runtime.settings.configure(
        pulumi.runtime.settings.Settings(project=PROJECT_NAME, stack="dev", dry_run=True)
    )
    set_all_config(
        {f"{PROJECT_NAME}:{key}": value for key, value in config.items()}, [f"{PROJECT_NAME}:{key}" for key in SECRET]
    )


def test_all_problems_are_reported_at_once_each_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run lists every problem and the command that fixes it, and shows no secret value."""
    configured(monkeypatch, raw_config("dev", replicas="0", masterKey="secret-that-is-weak", replica="3"))
    with pytest.raises(pulumi.RunError) as caught:
        load()
    message = str(caught.value)
    assert "has 3 problems; nothing was changed" in message
    assert "./pulumiw config set --stack dev replicas 2" in message
    assert "./pulumiw config rm --stack dev replica" in message
    assert './pulumiw config set --stack dev --secret masterKey "sk-' in message
    assert "secret-that-is-weak" not in message


NOW = datetime.now(UTC).replace(microsecond=0)


def warnings(monkeypatch: pytest.MonkeyPatch, chain: str, key: str) -> list[str]:
    """The program's warnings about a stack's certificate, which it uses nevertheless."""
    configured(monkeypatch, raw_config("dev", tlsCertificate=chain, tlsKey=key))
    warned: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", warned.append)
    assert load().tls_certificate is not None
    return warned


@pytest.mark.parametrize(
    ("begin", "end", "what", "date"),
    [
        (-90, -1, "expired on", "end"),
        (1, 90, "is not valid before", "begin"),
        (-61, 29, "expires on", "end"),
        (-9, 4, "expires on", "end"),
        (-59, 31, "", ""),
        (-1, 5, "", ""),
    ],
    ids=["expired", "not yet valid", "soon", "soon for a short one", "not soon", "not soon for a short one"],
)
def test_a_certificate_that_a_clock_is_against_is_warned_of_with_the_date(
    monkeypatch: pytest.MonkeyPatch, begin: int, end: int, what: str, date: str
) -> None:
    """And with the commands that set another one. It is not an error, because the clock may be wrong."""
    dates = {"begin": NOW + timedelta(days=begin), "end": NOW + timedelta(days=end)}
    certified = certify("gateway.example", begin=dates["begin"], end=dates["end"])
    warned = warnings(monkeypatch, certified.certificate_pem, certified.key_pem)
    assert len(warned) == bool(what)
    for warning in warned:
        assert f"tlsCertificate {what} {dates[date]:%Y-%m-%d %H:%M} UTC" in warning
        assert "./pulumiw config set --stack dev --secret tlsCertificate < gateway.crt" in warning
        assert "./pulumiw config set --stack dev --secret tlsKey < gateway.key" in warning


def test_of_a_chain_the_certificate_that_expired_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = certify("an authority", begin=NOW - timedelta(days=9), end=NOW - timedelta(days=1))
    own = certify("gateway.example", authority)
    (warned,) = warnings(monkeypatch, own.certificate_pem + authority.certificate_pem, own.key_pem)
    assert f"CN=an authority in tlsCertificate expired on {NOW - timedelta(days=1):%Y-%m-%d %H:%M} UTC" in warned


def trusted(pem: str) -> str:
    """As `openssl x509 -trustout` labels it."""
    return pem.replace(" CERTIFICATE", " TRUSTED CERTIFICATE")


def of_version_2(pem: str) -> str:
    version = b"\xa0\x03\x02\x01"
    third, second = (version + bytes([number]) for number in (2, 1))
    return ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(pem).replace(third, second, 1))


@pytest.mark.parametrize("changed", [trusted, of_version_2])
def test_a_certificate_whose_dates_cannot_be_read_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, changed: Callable[[str], str]
) -> None:
    """OpenSSL, and so the edge, accepts it."""
    own = certify("gateway.example")
    (warned,) = warnings(monkeypatch, changed(own.certificate_pem), own.key_pem)
    assert warned.startswith("the dates of tlsCertificate cannot be read")


@pytest.mark.parametrize(
    "reference",
    [
        "ghcr.io/berriai/litellm:main-v1.55.0",
        "postgres@sha256:" + "0" * 64,
        "registry.example:5000/team/haproxy:3.0@sha256:" + "f" * 64,
        "ghcr.io/berriai/litellm:main-latest@sha256:" + "f" * 64,
        "ghcr.io/berriai/litellm:v1.107.1",
        "ghcr.io/berriai/litellm:v1.81.107.0",
        "1.107.0.example/litellm:v1.82.70",
    ],
)
def test_pinned_image_references_are_accepted(reference: str) -> None:
    assert problems(litellmImage=reference) == []


def test_a_client_may_have_two_keys_while_one_is_rotated() -> None:
    values, found = validate(raw_config("dev", clientKeys={"app": [KEY, OTHER_KEY]}), SECRET)
    assert found == []
    assert [key.get_secret_value() for key in values["client_keys"]["app"]] == [KEY, OTHER_KEY]


def test_a_client_without_a_key_gets_a_generated_one() -> None:
    values, found = validate(raw_config("dev", clientKeys={"batch": ""}), SECRET)
    assert found == []
    assert values["client_keys"]["batch"] == ()


def test_plain_http_beyond_loopback_must_be_asked_for() -> None:
    assert problems(bindAddress="10.0.0.5", allowPlainHttp="true") == []


def test_your_own_password_is_used() -> None:
    assert problems(databasePassword="a-long-password-of-ones-own") == []


def test_a_stack_config_without_problems_is_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    configured(monkeypatch, raw_config("dev", replicas="3", masterKey=KEY))
    settings = load()
    assert settings.replicas == 3
    assert settings.master_key is not None
    assert settings.master_key.get_secret_value() == KEY


@pytest.mark.parametrize(
    ("changes", "host"),
    [
        ({}, "localhost"),
        ({"bindAddress": "10.0.0.5", "allowPlainHttp": "true"}, "10.0.0.5"),
        (
            {"dockerHost": "ssh://deploy@staging.example", "bindAddress": "0.0.0.0", "allowPlainHttp": "true"},  # noqa: S104
            "staging.example",
        ),
        ({"gatewayHost": "llm.example", "bindAddress": "10.0.0.5", "allowPlainHttp": "true"}, "llm.example"),
    ],
)
def test_callers_are_told_where_the_gateway_is(changes: dict[str, Any], host: str) -> None:
    values, found = validate(raw_config("dev", **changes), SECRET)
    assert found == []
    settings = Settings.model_construct(**values)
    assert settings.litellm_url == f"http://{host}:4000"


def test_settings_never_show_a_secret() -> None:
    values, _ = validate(raw_config("dev", masterKey=KEY, clientKeys={"app": OTHER_KEY}), SECRET)
    shown = repr(Settings.model_construct(**values))
    assert KEY not in shown
    assert OTHER_KEY not in shown


def test_every_example_in_a_command_is_itself_valid() -> None:
    """The command that a problem names fixes it: its example passes the same check."""
    for field in Settings.model_fields.values():
        example = str((field.examples or [""])[0])
        if example and not example.startswith(("--path", "< ")) and "$(" not in example and "…" not in example:
            others = {"protectData": "false"}
            if field.alias in {"imageRegistry", "postgresNode"}:
                others |= {"placement": "swarm", "bindAddress": "0.0.0.0", "allowPlainHttp": "true"}  # noqa: S104
            if field.alias in {"adminPort", "litellmDatabaseUrl", "redis"}:
                others |= {"litellmDatabase": "true"}
            assert field.alias not in keys("dev", **{**others, str(field.alias): example})


def test_defaults_are_typed_as_pulumi_yaml_says() -> None:
    types = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}
    for key, spec in project_file()["config"].items():
        if "default" in spec:
            assert type(spec["default"]) is types[spec["type"]], key
            assert json.dumps(spec["default"])


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"secretVersions": {"clientKeys": {"batch": "x"}}}, "set --path secretVersions.clientKeys.batch 2"),
        ({"clientRpm": {"batch": "x"}}, "set --path clientRpm.batch 600"),
        ({"models": [{"name": "a"}]}, "set --path 'models[0].model' VALUE"),
        ({"models": [{"name": "a", "model": "openai/a", "no": 1}]}, "rm --path 'models[0].no'"),
        ({"constraints": ["no"]}, "set --path 'constraints[0]' 'node.labels.llm == true'"),
        ({"litellmEnvironment": {"a b": "c"}}, "rm --path 'litellmEnvironment[\"a b\"]'"),
    ],
)
def test_the_command_changes_the_value_that_is_wrong_and_no_other(changes: dict[str, object], command: str) -> None:
    _, found = validate(raw_config("dev", **changes), set())
    assert command in {each.command for each in found}
