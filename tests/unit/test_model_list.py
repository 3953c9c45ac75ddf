"""Which models are served, and by whom."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock, call

import pulumi
import pytest
import yaml

from app._types import DEFAULT_TIMEOUT_SECONDS
from infra import model_list, prices
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infra.settings import Settings

FILE = (PROJECT / "litellm/config.yaml").read_text()
TODAY = date(2024, 12, 1)
"""Before the end of the models that the file names: tests/unit/test_retirements.py has what comes after it."""
DEMO = "http://demo:8080"
LOCAL = {"name": "llama", "model": "ollama/llama3.1", "apiBase": "http://gpu:11434/"}


def rendered(settings: Settings, text: str = FILE) -> tuple[model_list.ModelList, dict[str, dict[str, Any]]]:
    result = model_list.render(text, settings, demo_url=DEMO, today=TODAY)
    config = yaml.safe_load(result.config)
    return result, {model["model_name"]: model["litellm_params"] for model in config["model_list"]}


def left_out(result: model_list.ModelList) -> dict[str, tuple[str, ...]]:
    return {each.name: each.variables for each in result.left_out}


def test_the_file_names_the_three_models_and_the_fixed_settings() -> None:
    config = yaml.safe_load(FILE)
    assert {model["model_name"]: model["litellm_params"]["model"] for model in config["model_list"]} == {
        "gpt-4o": "openai/gpt-4o",
        "claude-3-5-sonnet": "anthropic/claude-3-5-sonnet-20241022",
        "text-embedding-3-small": "openai/text-embedding-3-small",
    }
    assert config["litellm_settings"] == {
        "set_verbose": False,
        "json_logs": True,
        "request_timeout": DEFAULT_TIMEOUT_SECONDS,
        "use_chat_completions_url_for_anthropic_messages": True,
    }
    assert config["router_settings"]["disable_cooldowns"] is True


def test_the_demo_provider_answers_for_all_models_until_a_key_is_set(settings: Callable[..., Settings]) -> None:
    result, models = rendered(settings("dev"))
    assert result.served == ("gpt-4o", "claude-3-5-sonnet", "text-embedding-3-small")
    assert result.left_out == ()
    assert models["gpt-4o"]["api_base"] == f"{DEMO}/v1"
    assert models["claude-3-5-sonnet"]["api_base"] == DEMO


def test_a_model_whose_provider_has_no_key_is_left_out_by_name(settings: Callable[..., Settings]) -> None:
    result, models = rendered(settings("dev", anthropicApiKey="sk-ant-1"))
    assert result.served == ("claude-3-5-sonnet",)
    assert left_out(result) == {"gpt-4o": ("OPENAI_API_KEY",), "text-embedding-3-small": ("OPENAI_API_KEY",)}
    assert models["claude-3-5-sonnet"] == {
        "model": "anthropic/claude-3-5-sonnet-20241022",
        "api_key": "os.environ/ANTHROPIC_API_KEY",
    }


@pytest.mark.parametrize("key", [{}, {"api_key": "none"}])
@pytest.mark.parametrize("stack", ["dev", "staging"])
def test_a_model_of_the_file_on_a_server_that_wants_no_key_stays_as_it_is(
    settings: Callable[..., Settings], stack: str, key: dict[str, str]
) -> None:
    """With and without the demo provider: the model does not count as one whose provider key is missing."""
    config = yaml.safe_load(FILE)
    parameters = {"model": "ollama/llama3.1", "api_base": "http://gpu:11434", **key}
    config["model_list"].append({"model_name": "llama", "litellm_params": parameters})
    result, models = rendered(settings(stack, models=[LOCAL | {"name": "other"}]), yaml.safe_dump(config))
    assert models["llama"] == parameters
    assert "llama" not in left_out(result)


def test_no_key_is_in_the_rendered_config(settings: Callable[..., Settings]) -> None:
    result, models = rendered(
        settings("dev", openaiApiKey="sk-the-key", models=[LOCAL], modelKeys={"llama": "the-local-key"})
    )
    assert "the-" not in result.config
    assert models["llama"]["api_key"] == "os.environ/MODEL_0_API_KEY"


def test_a_local_model_is_added_with_a_price_and_without_a_key(settings: Callable[..., Settings]) -> None:
    _, models = rendered(settings("staging", models=[LOCAL]))
    assert models == {
        "llama": {
            "model": "ollama/llama3.1",
            "input_cost_per_token": 0.0,
            "output_cost_per_token": 0.0,
            "api_base": "http://gpu:11434",
            "api_key": "none",
        }
    }


def test_another_model_of_a_provider_uses_its_key_or_is_left_out(settings: Callable[..., Settings]) -> None:
    more = [{"name": "mini", "model": "openai/gpt-4o-mini"}, {"name": "haiku", "model": "anthropic/claude-3-5-haiku"}]
    result, models = rendered(settings("staging", openaiApiKey="sk-1", models=more))
    assert models["mini"]["api_key"] == "os.environ/OPENAI_API_KEY"
    assert left_out(result) == {"claude-3-5-sonnet": ("ANTHROPIC_API_KEY",), "haiku": ("ANTHROPIC_API_KEY",)}


def test_a_model_of_a_provider_may_have_its_own_key(settings: Callable[..., Settings]) -> None:
    """A key of another account than the stack's, whether or not the provider's key is set."""
    mine = {"models": [{"name": "mine", "model": "openai/gpt-4o-mini"}], "modelKeys": {"mine": "K1"}}
    for changes in (mine, mine | {"openaiApiKey": "K2"}):
        result, models = rendered(settings("staging", **changes))
        assert models["mine"]["api_key"] == "os.environ/MODEL_0_API_KEY"
        assert "mine" in result.served


def deployment(name: str, model: str, **parameters: object) -> dict[str, Any]:
    """A model of the stack config in LiteLLM's own form."""
    return {"model_name": name, "litellm_params": {"model": model, **parameters}}


def test_a_model_in_litellms_own_form_is_served_as_it_is(settings: Callable[..., Settings]) -> None:
    """Weights, the API's version, the order, limits, two deployments of a name, prices as numbers."""
    mine = [
        {
            **deployment(
                "gpt", "azure/east", api_base="https://e.example", api_version=20241021, weight="0.5", rpm=60
            ),
            "model_info": {"base_model": "azure/gpt-4o"},
        },
        deployment("gpt", "openai/of-tomorrow", order=2, input_cost_per_token="2e-06"),
    ]
    keys = {"AZURE_API_KEY": "K1", "OPENAI_API_KEY": "K2"}
    result, _ = rendered(settings("staging", models=mine, litellmEnvironment=keys))
    listed = [it for it in yaml.safe_load(result.config)["model_list"] if it["model_name"] == "gpt"]
    assert listed[0].pop("model_info")["base_model"] == "azure/gpt-4o"
    assert "base_model" not in listed[1].pop("model_info")
    assert listed == [
        {
            "model_name": "gpt",
            "litellm_params": {
                "model": "azure/east",
                "api_base": "https://e.example",
                "api_version": "20241021",
                "weight": 0.5,
                "rpm": 60,
                "api_key": "os.environ/AZURE_API_KEY",
            },
        },
        {
            "model_name": "gpt",
            "litellm_params": {
                "model": "openai/of-tomorrow",
                "order": 2,
                "input_cost_per_token": 2e-06,
                "api_key": "os.environ/OPENAI_API_KEY",
            },
        },
    ]
    assert result.served.count("gpt") == 1


def test_a_model_is_served_when_every_variable_that_it_names_is_there(settings: Callable[..., Settings]) -> None:
    """Wherever it names them. Otherwise it is left out, with the names of the missing variables."""
    mine = deployment(
        "nova", "bedrock/nova", aws_region_name="os.environ/AWS_REGION", extra_headers={"x": "os.environ/X"}
    )
    given = {"AWS_REGION": "eu-central-1", "GROQ_API_KEY": "K"}
    result, _ = rendered(settings("staging", models=[mine], litellmEnvironment=given, openaiApiKey="sk-1"))
    assert left_out(result)["nova"] == ("X",)
    result, models = rendered(
        settings("staging", models=[mine], litellmEnvironment={**given, "X": "1"}, openaiApiKey="sk-1")
    )
    assert "nova" not in left_out(result)
    assert "api_key" not in models["nova"]  # a role of the machine does


def test_a_model_of_any_provider_is_named_in_short(settings: Callable[..., Settings]) -> None:
    """With its key's variable, and without a made-up price. The demo provider does not speak every protocol."""
    mine = [{"name": "flash", "model": "gemini/of-tomorrow"}]
    result, _ = rendered(settings("dev", models=mine))
    assert left_out(result) == {"flash": ("GEMINI_API_KEY",)}
    _, models = rendered(settings("dev", models=mine, litellmEnvironment={"GEMINI_API_KEY": "K"}))
    assert models == {"flash": {"model": "gemini/of-tomorrow", "api_key": "os.environ/GEMINI_API_KEY"}}


def test_a_server_of_the_teams_own_is_not_sent_the_key_of_a_provider(settings: Callable[..., Settings]) -> None:
    """LiteLLM would send it if an entry names no key."""
    mine = [deployment("own", "openai/own", api_base="http://gpu:8000/v1")]
    _, models = rendered(settings("dev", models=mine, openaiApiKey="sk-1"))
    assert models["own"]["api_key"] == "none"


def test_a_model_that_an_older_litellm_does_not_know_comes_with_its_price(settings: Callable[..., Settings]) -> None:
    """And with what happens to the parameters that it refuses. The team's own settings stay."""
    mine = [
        {"name": "luna", "model": "openai/gpt-6-luna"},
        {"name": "claude", "model": "anthropic/of-tomorrow"},
        {"name": "dear", "model": "openai/gpt-6-luna", "inputCostPerToken": 1},
        {"name": "own", "model": "openai/gpt-6-luna", "apiBase": "http://gpu:8000/v1"},
        deployment("azure", "azure/mine", api_base="https://a.example", api_version="1")
        | {"model_info": {"base_model": "azure/gpt-6.1-terra"}},
    ]
    keys = {"OPENAI_API_KEY": "K1", "AZURE_API_KEY": "K2", "ANTHROPIC_API_KEY": "K3"}
    known = prices.load()["openai/gpt-6-luna"]
    assert known.costs["input_cost_per_token"] > 0
    for image, fate in (("main-v1.55.0", "drop"), ("v1.108.14", "error")):
        made = settings(
            "dev", models=mine, litellmEnvironment=keys, litellmImage=f"a/litellm:{image}", refusedParameters=fate
        )
        result, models = rendered(made)
        info = {it["model_name"]: it.get("model_info") for it in yaml.safe_load(result.config)["model_list"]}
        fates = {"max_tokens": "max_completion_tokens", "temperature": fate, "top_p": fate, "stop": fate}
        assert info["luna"]["refuses"] == info["azure"]["refuses"] == fates
        assert info["azure"]["base_model"] == "azure/gpt-6.1-terra"
        assert "refuses" not in info["own"]
        assert info["claude"].get("refuses") == ({"reasoning_effort": "drop"} if fate == "drop" else None)
        older = image == "main-v1.55.0"
        drops = [*known.refuses] if older else ["temperature", "top_p", "stop"]
        assert models["luna"] == {
            "model": "openai/gpt-6-luna",
            "api_key": "os.environ/OPENAI_API_KEY",
            "additional_drop_params": drops,
            **(known.costs if older else {}),
        }
        assert models["dear"]["input_cost_per_token"] == 1
        assert "output_cost_per_token" not in models["dear"]


def test_a_preview_parses_the_file_once(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is the slowest file to read, and a preview does not change the parsed content."""
    text = f"# of this test\n{FILE}"
    file = tmp_path / "config.yaml"
    file.write_text(text)
    monkeypatch.setattr(model_list, "FILE", file)
    load = Mock(wraps=yaml.safe_load)
    monkeypatch.setattr(yaml, "safe_load", load)
    chosen = settings("staging", anthropicApiKey="sk-ant-1")
    model_list.check(text)
    model_list.render(text, chosen, demo_url=DEMO, today=TODAY)
    assert load.mock_calls.count(call(text)) == 1
    assert model_list.parsed(text) == load(text)


def test_a_key_in_the_file_is_refused_without_being_shown() -> None:
    model_list.check(FILE)
    with pytest.raises(pulumi.RunError, match="a key of gpt-4o is not encrypted") as caught:
        model_list.check(FILE.replace("os.environ/OPENAI_API_KEY", "sk-of-somebody"))
    assert "sk-of-somebody" not in str(caught.value)


@pytest.mark.parametrize("section", [None, {"json_logs": True}])
def test_without_a_request_timeout_it_is_litellms_own(
    settings: Callable[..., Settings], section: dict[str, Any] | None
) -> None:
    """The edge's timeouts follow it."""
    config = yaml.safe_load(FILE) | {"litellm_settings": section}
    result, _ = rendered(settings("dev"), yaml.safe_dump(config))
    assert result.request_timeout == 6000


def test_a_model_of_the_stack_takes_the_place_of_one_of_that_name(settings: Callable[..., Settings]) -> None:
    """A team can let another server answer for a name."""
    result, models = rendered(settings("dev", openaiApiKey="sk-1", models=[{**LOCAL, "name": "gpt-4o"}]))
    assert result.served == ("text-embedding-3-small", "gpt-4o")
    assert models["gpt-4o"]["model"] == "ollama/llama3.1"
    assert "gpt-4o" not in left_out(result)
