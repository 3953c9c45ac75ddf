"""Which variables and files a stack config gives LiteLLM."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.settings import Settings
from infra.stack_config import Place, validate
from tests.stack_config import raw_config

FILES = "/run/secrets/files"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n"


def problems(*, plain: dict[str, list[Place]] | None = None, **changes: object) -> list[tuple[str, str, str]]:
    """What is wrong with settings, of which all is encrypted but what `plain` names."""
    found = validate(raw_config("dev", **changes), changes, plain)[1]
    return [(each.key, each.what, each.command) for each in found]


def test_numbers_and_switches_reach_litellm_as_text() -> None:
    """Pulumi turns a text of digits into a number, and `true` into a boolean."""
    given = {"REDIS_PORT": 6379, "OTEL_INSECURE": True, "AWS_REGION": "eu-central-1"}
    values, found = validate(raw_config("dev", litellmEnvironment=given), {"litellmEnvironment"})
    assert found == []
    settings = Settings.model_construct(**values)
    assert {name: value.get_secret_value() for name, value in settings.variables.items()} == {
        "AWS_REGION": "eu-central-1",
        "OTEL_INSECURE": "true",
        "REDIS_PORT": "6379",
    }


def test_keys_of_the_stack_config_are_names_for_variables() -> None:
    values, found = validate(raw_config("dev", openaiApiKey="K1", litellmEnvironment={"GEMINI_API_KEY": "K2"}), ())
    settings = Settings.model_construct(**values)
    assert [each.key for each in found] == ["litellmEnvironment.GEMINI_API_KEY", "openaiApiKey"]  # not encrypted
    assert {name: it.get_secret_value() for name, it in settings.variables.items()} == {
        "GEMINI_API_KEY": "K2",
        "OPENAI_API_KEY": "K1",
    }


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("AWS_REGION", "eu-central-1", True),
        ("AWS_ACCESS_KEY_ID", "AKIA", True),
        ("AWS_SECRET_ACCESS_KEY", "x", False),
        ("LANGFUSE_PUBLIC_KEY", "pk", True),
        ("LANGFUSE_SECRET_KEY", "x", False),
        ("GEMINI_API_KEY", "x", False),
        ("OTEL_HEADERS", "authorization=Bearer x", False),
        ("HTTPS_PROXY", "http://proxy.example:3128", True),
        ("HTTPS_PROXY", "http://user:word@proxy.example:3128", False),
        ("REDIS_PASSWORD", "x", False),
        ("GOOGLE_APPLICATION_CREDENTIALS", f"{FILES}/vertex.json", True),
    ],
)
def test_what_is_secret_must_be_encrypted_and_all_else_may_stand_in_clear(
    name: str, value: str, *, plain: bool
) -> None:
    """Also beside an encrypted entry. A variable is secret because of its name, or because its URL has a password."""
    given = {name: value, "GROQ_API_KEY": "encrypted"}
    files = {"vertex.json": "{}"}
    found = problems(plain={"litellmEnvironment": [(name,)]}, litellmEnvironment=given, litellmFiles=files)
    command = f"set --secret --path 'litellmEnvironment[\"{name}\"]' VALUE"
    wanted = (f"litellmEnvironment.{name}", "is not encrypted: get a new one, because this one may be known", command)
    assert found == ([] if plain else [wanted])


@pytest.mark.parametrize(
    ("content", "plain"), [(CERTIFICATE, True), ('{"private_key": "x"}', False), ("anything else", False)]
)
def test_a_certificate_may_stand_in_clear_and_no_other_file(content: str, *, plain: bool) -> None:
    found = problems(plain={"litellmFiles": [("ca.pem",)]}, litellmFiles={"ca.pem": content})
    assert [key for key, _, _ in found] == ([] if plain else ["litellmFiles.ca.pem"])


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("LITELLM_MASTER_KEY", "x", "set masterKey instead"),
        ("LITELLM_SALT_KEY", "x", "set saltKey instead"),
        ("DATABASE_URL", "postgresql://h/d", "litellmDatabase gives it one"),
        ("STORE_MODEL_IN_DB", "true", "use `models`"),
        ("STORE_PROMPTS_IN_SPEND_LOGS", "true", "keep prompts"),
        ("DISABLE_SCHEMA_UPDATE", "false", "an `up` does before the replicas"),
        ("LLM_GATEWAY_FETCH_URLS", "true", "fetchUrls"),
        ("HF_HUB_OFFLINE", "0", "is set by the stack"),
        ("PYTHONPATH", "/tmp", "which programs run"),  # noqa: S108
        ("PORT", "4001", "which the edge relies on"),
        ("SSL_KEYFILE_PATH", "/x", "which the edge relies on"),
        ("CONFIG_FILE_PATH", "/x", "a configuration other than"),
        ("DETAILED_DEBUG", "true", "would write keys and prompts to the log"),
        ("LITELLM_LOG", "DEBUG", "would write keys and prompts to the log"),
        ("SSL_VERIFY", "False", f"set SSL_CERT_FILE in litellmEnvironment to {FILES}/NAME"),
        ("MODEL_0_API_KEY", "x", "modelKeys"),
        ("OPEN AI", "x", "is not a valid variable name"),
        ("X" * 49, "x", "is not a valid variable name"),
    ],
)
def test_a_variable_that_would_undo_a_guarantee_is_refused_with_the_reason(name: str, value: str, what: str) -> None:
    [(key, said, command)] = problems(litellmEnvironment={name: value})
    assert key == f"litellmEnvironment.{name}"
    assert what in said
    assert command == f"rm --path 'litellmEnvironment[\"{name}\"]'"


def test_other_values_of_such_a_variable_are_accepted() -> None:
    assert (
        problems(litellmEnvironment={"LITELLM_LOG": "ERROR", "SSL_VERIFY": "true", "HTTP_PROXY": "http://p:1"}) == []
    )


def test_a_variable_is_set_in_one_place() -> None:
    found = problems(openaiApiKey="K1", litellmEnvironment={"OPENAI_API_KEY": "K2"})
    what = "is set by openaiApiKey too: keep one of the two"
    assert found == [("litellmEnvironment.OPENAI_API_KEY", what, "rm openaiApiKey")]


@pytest.mark.parametrize("name", ["vertex", "Vertex.json", "a/b.json", "../b.json", ".hidden", "a" * 33 + ".pem"])
def test_a_file_has_a_name_that_every_placement_takes(name: str) -> None:
    [(key, said, _)] = problems(litellmFiles={name: "x"})
    assert key == f"litellmFiles.{name}"
    assert "is not a valid file name" in said


def test_a_file_that_is_too_large_for_a_swarm_is_refused() -> None:
    [(key, said, _)] = problems(litellmFiles={"big.json": "x" * 500_001})
    assert key == "litellmFiles.big.json"
    assert "500,000 bytes" in said


def test_a_file_that_a_variable_names_must_be_there() -> None:
    """The error has the command that adds it."""
    given = {"GOOGLE_APPLICATION_CREDENTIALS": f"{FILES}/vertex.json"}
    [(key, said, command)] = problems(litellmEnvironment=given)
    assert key == "litellmEnvironment.GOOGLE_APPLICATION_CREDENTIALS"
    assert "names the file vertex.json, which litellmFiles does not have" in said
    assert command == "set --secret --path 'litellmFiles[\"vertex.json\"]' < vertex.json"
    assert problems(litellmEnvironment=given, litellmFiles={"vertex.json": "{}"}) == []


@pytest.mark.parametrize("key", ["models", "litellmSettings", "routerSettings", "generalSettings"])
def test_what_is_shown_in_previews_holds_nothing_encrypted(key: str) -> None:
    config = raw_config("dev", **{key: [] if key == "models" else {}})
    [found] = validate(config, {key})[1]
    assert found.key == key
    assert "is shown in previews" in found.what
    assert found.command == "set --secret --path litellmEnvironment.NAME VALUE"


def test_an_empty_value_is_refused() -> None:
    assert [key for key, _, _ in problems(litellmEnvironment={"GROQ_API_KEY": ""})] == [
        "litellmEnvironment.GROQ_API_KEY"
    ]


def test_no_message_shows_a_value() -> None:
    values: dict[str, Any] = {"LITELLM_MASTER_KEY": "word-1", "bad name": "word-2", "DATABASE_URL": "word-3"}
    assert "word-" not in json.dumps(problems(litellmEnvironment=values, litellmFiles={"Bad": "word-4"}))
