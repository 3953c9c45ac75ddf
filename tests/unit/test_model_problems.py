"""What is refused of `models` in the stack config."""

from __future__ import annotations

import pytest

from infra.stack_config import validate
from tests.stack_config import raw_config

NEWEST = "ghcr.io/berriai/litellm:v1.108.14"
AZURE = {"model": "azure/east", "api_base": "https://n.example", "api_version": "1"}


def problems(models: object, **changes: object) -> list[tuple[str, str, str]]:
    found = validate(raw_config("dev", models=models, **changes), changes)[1]
    return [(each.key, each.what, each.command) for each in found]


@pytest.mark.parametrize(
    ("parameters", "key", "what", "command"),
    [
        ({"model": "gemni/x"}, "model", "did you mean gemini/x?", "gemini/x"),
        ({"model": "nothing-like-it/x"}, "model", "does not begin with a provider", "PROVIDER/x"),
        ({"model": "bedrock/x"}, "aws_region_name", "is missing: the provider needs it", "eu-central-1"),
        (
            {"model": "bedrock/x", "aws_region_name": "frankfurt"},
            "aws_region_name",
            "as eu-central-1",
            "eu-central-1",
        ),
        ({"model": "azure/x", "api_version": "1"}, "api_base", "is missing", "https://NAME.openai.azure.com"),
        (
            {"model": "openai/x", "api_key": "sk-proj-1"},
            "api_key",
            "is not encrypted, so anyone can read it",
            "os.environ/NAME",
        ),
        ({**AZURE, "api_base": "https://u:p@n.example"}, "api_base", "is not encrypted", "os.environ/NAME"),
        (
            {"model": "bedrock/x", "aws_region_name": "eu-west-1", "aws_secret_access_key": "word"},
            "aws_secret_access_key",
            "is not encrypted",
            "os.environ/NAME",
        ),
        (
            {"model": "openai/x", "extra_headers": {"Authorization": "Bearer x"}},
            "extra_headers.Authorization",
            "is not encrypted",
            "os.environ/NAME",
        ),
        (
            {"model": "openai/x", "extra_headers": {"x-api-key": "9f8e7d"}},
            "extra_headers.x-api-key",
            "is not encrypted",
            "os.environ/NAME",
        ),
    ],
)
def test_each_mistake_in_an_entry_is_named_with_what_fixes_it(
    parameters: dict[str, object], key: str, what: str, command: str
) -> None:
    found = problems([{"model_name": "m", "litellm_params": parameters}])
    place = f"models[0].litellm_params.{key}"
    assert [(each[0], each[2]) for each in found] == [(place, f"set --path '{place}' {command}")]
    assert what in found[0][1]


def test_a_provider_that_only_a_newer_litellm_knows_is_named_with_that() -> None:
    models = [{"name": "m", "model": "moonshot/kimi"}]
    [(key, what, command)] = problems(models)
    assert key == "models[0].model"
    assert "LiteLLM 1.55.0 does not know: 1.108.14 does" in what
    assert command == f"set litellmImage {NEWEST}"
    assert not [it for it in problems(models, litellmImage=NEWEST) if it[0].endswith(".model")]
    newer = "ghcr.io/berriai/litellm:v1.110.2"
    assert problems([{"model_name": "m", "litellm_params": {"model": "brand-new/x"}}], litellmImage=newer) == []


def test_what_the_short_form_cannot_say_is_said_in_litellms() -> None:
    [(key, what, _)] = problems([{"name": "m", "model": "bedrock/nova"}])
    assert key == "models[0]"
    assert "needs aws_region_name, so it must have the form of LiteLLM's model_list" in what


@pytest.mark.parametrize(
    ("parameters", "what"),
    [
        ({"configurable_clientside_auth_params": ["api_base"]}, "would let clients send the stack's keys"),
        ({"ssl_verify": False}, "would send keys and prompts to anyone who answers"),
        ({"api_key": "os.environ/LITELLM_MASTER_KEY"}, "names the variable LITELLM_MASTER_KEY"),
        ({"vertex_credentials": "/run/secrets/files/v.json"}, "names the file v.json, which litellmFiles does not"),
    ],
)
def test_what_would_undo_a_guarantee_or_is_not_there_is_refused(parameters: dict[str, object], what: str) -> None:
    [(_, said, _)] = problems([{"model_name": "m", "litellm_params": {"model": "openai/x", **parameters}}])
    assert what in said


@pytest.mark.parametrize("key", ["none", "EMPTY", "not-needed", "sk-1234", "os.environ/GPU_KEY"])
def test_a_placeholder_for_a_key_is_accepted(key: str) -> None:
    parameters = {"model": "openai/x", "api_base": "http://gpu/v1", "api_key": key}
    assert problems([{"model_name": "m", "litellm_params": parameters}]) == []


def test_wildcards_and_several_deployments_of_a_name_are_accepted() -> None:
    models = [
        {"model_name": "groq/*", "litellm_params": {"model": "groq/*"}},
        {"model_name": "gpt", "litellm_params": AZURE},
        {"model_name": "gpt", "litellm_params": {**AZURE, "model": "azure/west"}},
    ]
    assert problems(models) == []


def test_all_mistakes_are_named_at_once() -> None:
    models = [
        {"model_name": "a", "litellm_params": {"model": "gemni/x"}},
        {"model_name": "b", "litellm_params": {"model": "bedrock/x", "aws_region_name": "frankfurt"}},
        {"name": "c", "model": "vertex_ai/x"},
    ]
    keys = [key for key, _, _ in problems(models, litellmEnvironment={"PORT": "1"})]
    assert keys == [
        "litellmEnvironment.PORT",
        "models[0].litellm_params.model",
        "models[1].litellm_params.aws_region_name",
        "models[2]",
    ]


def test_a_stack_with_a_key_of_any_provider_can_answer() -> None:
    """If no model has what it needs, the error names the keys for the models of litellm/config.yaml, and the demo."""
    flash = [{"name": "flash", "model": "gemini/gemini-3.8-flash"}]
    config = raw_config("staging", models=flash)
    assert [it.key for it in validate(config, ())[1]] == ["openaiApiKey", "anthropicApiKey", "demo"]
    config = raw_config("staging", models=flash, litellmEnvironment={"GEMINI_API_KEY": "K"})
    assert validate(config, {"litellmEnvironment"}, {})[1] == []
