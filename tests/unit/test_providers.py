"""What the page of providers says is so: its commands bring a model that is served."""

from __future__ import annotations

import ast
import json
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from infra import gateway, model_list, providers, retirements
from infra.settings import Settings
from infra.stack_config import Place, validate
from tests.stack_config import PROJECT, raw_config
from toolchain import recipes
from toolchain.maintenance import providers_page as page

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.providers import Provider

ASKED_OF = {
    *("OpenAI", "Azure OpenAI", "Anthropic", "AWS Bedrock", "Google Vertex AI", "Google Gemini", "Mistral", "Groq"),
    *("DeepSeek", "xAI", "OpenRouter", "Together", "Fireworks", "Cohere", "Ollama", "vLLM", "LM Studio"),
    "Any OpenAI-compatible server",
}
LISTED = list(page.listed())


class Config:
    """A stack config that commands change, as Pulumi does: which of it is encrypted, and which is in clear."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {
            "models": [],
            "litellmEnvironment": {},
            "litellmFiles": {},
            "litellmSettings": {},
        }
        self.secret: set[str] = set()
        self.plain: dict[str, list[Place]] = {}

    def run(self, command: str) -> None:
        program, *words = shlex.split(command.replace("\\\n", " "))
        assert program == "./pulumiw"
        match words:
            case ["up"]:
                pass
            case ["config", "set", "--secret", "--path", path, *rest]:
                assert rest in ([], ["<", path.split('"')[1] if '"' in path else ""])  # asked for, or from a file
                self._set(path, "SECRET", secret=True)
            case ["config", "set", "--path", path, "<", _]:
                self._set(path, "-----BEGIN CERTIFICATE-----", secret=False)
            case ["config", "set", "--path", path, value]:
                self._set(path, value, secret=False)
            case ["config", "set-all", "--path", *pairs]:
                assert pairs[::2] == ["--plaintext"] * (len(pairs) // 2)
                for pair in pairs[1::2]:
                    path, _, value = pair.partition("=")
                    self._set(path, value, secret=False)
            case _:
                pytest.fail(f"a command of another kind: {command}")

    def _set(self, path: str, value: str, *, secret: bool) -> None:
        steps: list[int | str] = [
            int(number) if number else name or quoted
            for number, quoted, name in re.findall(r"""\[(\d+)\]|\["([^"]+)"\]|([^.\[\]]+)""", path)
        ]
        key, *inner = steps
        target: Any = self.values[str(key)]
        for step, following in zip(inner, [*inner[1:], None], strict=True):
            if isinstance(step, int) and step == len(target):
                target.append([] if isinstance(following, int) else {})
            if following is None:
                target[step] = value
            else:
                target = target.setdefault(step, _empty(following)) if isinstance(target, dict) else target[step]
        if secret:
            self.secret.add(str(key))
        else:
            self.plain.setdefault(str(key), []).append(tuple(inner))

    def settings(self) -> Settings:
        """What they make of a stack without a demo provider."""
        values, found = validate(raw_config("staging", **self.values), self.secret, self.plain)
        assert found == []
        return Settings.model_construct(**values)


def _empty(following: int | str) -> Any:
    return [] if isinstance(following, int) else {}


def test_the_page_has_every_provider_that_was_asked_for() -> None:
    assert {it.title for _, it in LISTED} == ASKED_OF


@pytest.mark.parametrize(("prefix", "provider"), LISTED, ids=[it.title for _, it in LISTED])
def test_three_commands_serve_a_model_of_each_provider(prefix: str, provider: Provider) -> None:
    """At most three: on a stack that has nothing else, and in a form that the oldest tested release accepts."""
    assert prefix in providers.load().releases[0].prefixes
    lines = page.commands(prefix, provider)
    assert len(lines) <= 3
    config = Config()
    for line in lines:
        config.run(line)
    result = model_list.render(
        (PROJECT / "litellm/config.yaml").read_text(), config.settings(), demo_url="http://demo"
    )
    entry = yaml.safe_load(result.config)["model_list"][-1]
    name = prefix.replace("_", "-")
    assert entry["model_name"] == name
    assert name in result.served
    assert [each.name for each in result.left_out if each.name == name] == []
    if provider.key:
        assert entry["litellm_params"]["api_key"] == f"os.environ/{provider.key}"
    assert "SECRET" not in json.dumps(entry)


@pytest.mark.parametrize("name", ["langfuse", "otel", "datadog"])
def test_the_commands_of_each_callback_turn_it_on(name: str) -> None:
    config = Config()
    for line in ["./pulumiw config set --secret --path litellmEnvironment.OPENAI_API_KEY", *of_callback(name)]:
        config.run(line)
    assert config.settings().litellm_settings["callbacks"] == [name]


def of_callback(name: str) -> list[str]:
    return page.callback_commands(name, providers.load().callbacks[name].variables)


def test_every_other_command_of_the_page_is_accepted() -> None:
    """Those of a private authority and of an outgoing proxy, one after another."""
    config = Config()
    config.run("./pulumiw config set --secret --path litellmEnvironment.OPENAI_API_KEY")
    text = page.AFTER.partition("## A private authority")[2].format(files="/run/secrets/files", set=page.SET)
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            config.run(line)
    assert {"SSL_CERT_FILE", "HTTPS_PROXY", "NO_PROXY"} <= config.settings().variables.keys()


def test_what_the_file_says_of_providers_and_callbacks_is_of_those_that_litellm_knows() -> None:
    table = providers.load()
    newest = table.releases[-1]
    assert table.providers.keys() <= newest.prefixes
    assert table.callbacks.keys() <= newest.callbacks


def test_a_package_missing_from_the_image_built_here_is_named() -> None:
    """With what needs it. For an image that is not built here, no package is named."""
    models = [
        {"model_name": name, "litellm_params": {"model": f"{name}/x"}} for name in ("bedrock", "vertex_ai", "groq")
    ]
    config = {"model_list": models, "litellm_settings": {"success_callback": ["langfuse"], "cache": True}}
    of = "ghcr.io/berriai/litellm:"
    assert providers.missing_packages(f"{of}main-v1.55.0", config) == {"langfuse": "langfuse"}
    assert providers.missing_packages(f"{of}v1.108.14", config) == {"langfuse": "langfuse"}
    assert providers.missing_packages(f"{of}v1.84.3", config) == {}
    assert providers.missing_packages("registry.example/litellm@sha256:" + "0" * 64, config) == {}


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("ghcr.io/berriai/litellm:main-v1.55.0", "1.55.0"),
        ("ghcr.io/berriai/litellm:v1.108.14@sha256:" + "0" * 64, "1.108.14"),
        ("ghcr.io/berriai/litellm:v1.84.3", "1.108.14"),
        ("ghcr.io/berriai/litellm:v1.110.2", "more"),
        ("registry.example:5000/litellm@sha256:" + "0" * 64, "more"),
    ],
)
def test_of_a_release_that_was_not_run_here_nothing_is_refused_that_it_may_take(image: str, version: str) -> None:
    """A release between two known ones may accept what the newer one does; about others nothing is known."""
    release = providers.load().release(image)
    assert ("more" if release.takes_more else release.version) == version


def test_what_a_release_must_be_told_of_a_provider_is_told_to_that_release(
    settings: Callable[..., Settings],
) -> None:
    """What the entry itself has stays: lists are extended, everything else is the entry's."""
    own = {"model": "groq/openai/gpt-oss-120b", "additional_drop_params": ["user"]}
    mine = [
        {"model_name": "groq", "litellm_params": own},
        {"model_name": "together", "litellm_params": {"model": "together_ai/x"}, "model_info": {"mode": "chat"}},
        {"model_name": "vllm", "litellm_params": {"model": "hosted_vllm/x", "api_base": "http://gpu:8000/v1"}},
    ]
    keys = {"GROQ_API_KEY": "K1", "TOGETHERAI_API_KEY": "K2"}
    text = (PROJECT / "litellm/config.yaml").read_text()

    def rendered(image: str) -> dict[str, Any]:
        made = settings("staging", models=mine, litellmEnvironment=keys, litellmImage=image)
        config = yaml.safe_load(model_list.render(text, made, demo_url="http://demo").config)
        return {entry["model_name"]: entry for entry in config["model_list"]}

    older, newer = (rendered(f"ghcr.io/berriai/litellm:v{version}") for version in ("1.55.0", "1.108.14"))
    assert older["groq"]["litellm_params"]["additional_drop_params"] == ["stream_options", "user"]
    assert newer["groq"]["litellm_params"]["additional_drop_params"] == ["user"]
    assert older["together"]["model_info"] == {
        "owned_by": "together_ai",
        "supports_function_calling": True,
        "mode": "chat",
    }
    assert newer["together"]["model_info"] == {"owned_by": "together_ai", "mode": "chat"}
    assert older["vllm"]["litellm_params"]["api_key"] == newer["vllm"]["litellm_params"]["api_key"] == "none"


def test_what_a_release_is_told_or_does_otherwise_is_of_one_that_was_run_here() -> None:
    known = {it.version for it in providers.load().releases}
    for _, provider in LISTED:
        assert {*provider.told, *provider.otherwise} <= known
        assert {column for it in provider.otherwise.values() for column in it} <= {*page.COLUMNS}


def test_the_releases_are_the_same_wherever_one_is_named() -> None:
    """What can be built, and what the lane for streams was compared with."""
    versions = [it.version for it in providers.load().releases]
    assert versions == [recipes.STAND_INS["litellm"].version, *(it.version for it in recipes.UPGRADES)]
    proven = re.search(r"^PROVEN = (.*)", (PROJECT / "litellm/streams.py").read_text(), re.MULTILINE)
    assert proven
    assert {*versions} <= {*ast.literal_eval(proven[1])}
    assert [it.tag for it in providers.load().releases] == ["main-v1.55.0", "v1.108.14"]
    for release in providers.load().releases:
        assert 0 < release.rest_mb < gateway.LITELLM_MB
        assert release.image_mb > 0 < release.start_seconds
        assert release.known_for


def test_no_model_of_the_page_has_an_end() -> None:
    """A newcomer's first model should still exist next year."""
    ends = {f"{prefix}/{it.example}": retirements.load().of(f"{prefix}/{it.example}") for prefix, it in LISTED}
    assert {model: end for model, end in ends.items() if end is not None} == {}
