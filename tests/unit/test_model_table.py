"""What the preview and callers are told about each model."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from infra import model_list
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.settings import Settings

FILE = (PROJECT / "litellm/config.yaml").read_text()
MODELS = [
    {"name": "luna", "model": "openai/gpt-6-luna"},
    {"name": "priced", "model": "openai/of-a-team", "inputCostPerToken": 0.000001},
    {"name": "mine", "model": "openai/mine", "apiBase": "http://gpu/v1", "outputCostPerToken": 0.000003},
    {"name": "llama", "model": "ollama/llama3.1", "apiBase": "http://gpu:11434"},
    {
        "name": "paid",
        "model": "ollama/paid",
        "apiBase": "http://gpu",
        "inputCostPerToken": 0,
        "outputCostPerToken": 0,
    },
    {"name": "unheard", "model": "xai/unheard-of"},
    {"name": "flash", "model": "gemini/gemini-3.8-flash"},
]
KEYS: dict[str, Any] = {"openaiApiKey": "sk-1", "litellmEnvironment": {"XAI_API_KEY": "K"}}


def rendered(settings: Settings) -> model_list.ModelList:
    return model_list.render(FILE, settings, demo_url="http://demo:8080", today=date(2026, 11, 28))


def test_the_preview_has_a_line_for_each_model(settings: Callable[..., Settings]) -> None:
    """Its provider, whether its key is there, its price, the parameters that it refuses, and its end.

    A price that nobody has set is unknown, as in `llmctl usage`, and not free.
    """
    version, head, *rows = rendered(settings("dev", models=MODELS, **KEYS)).table.splitlines()
    assert version == "models, with LiteLLM 1.55.0:"
    assert head.split("  ")[0] == "model"
    by_name = {row.split()[0]: " ".join(row.split()) for row in rows}
    assert by_name == {
        "gpt-4o": "gpt-4o openai set 2.5 in, 10 out 2027-01-14",
        "text-embedding-3-small": "text-embedding-3-small openai set 0.02 in, 0 out",
        "luna": "luna openai set 0.1 in, 0.5 out leaves out temperature, top_p, stop",
        "priced": "priced openai set 1 in",
        "mine": "mine openai none 3 out",
        "llama": "llama ollama none unknown",
        "paid": "paid ollama none free",
        "unheard": "unheard xai set unknown",
        "claude-3-5-sonnet": "claude-3-5-sonnet anthropic ANTHROPIC_API_KEY missing",
        "flash": "flash gemini GEMINI_API_KEY missing",
    }


@pytest.mark.parametrize(("image", "refused"), [("main-v1.55.0", "drop"), ("v1.108.14", "error")])
def test_a_price_is_known_to_the_release_or_to_the_stack(
    settings: Callable[..., Settings], image: str, refused: str
) -> None:
    """Callers see the same in either case, under the names of `model_info`."""
    made = settings("dev", models=MODELS, litellmImage=f"a/litellm:{image}", refusedParameters=refused, **KEYS)
    result = rendered(made)
    fates = {"max_tokens": "max_completion_tokens", "temperature": refused, "top_p": refused, "stop": refused}
    assert result.told["luna"] == {"owned_by": "openai", "price": {"input": 0.1, "output": 0.5}, "refuses": fates}
    assert result.told["llama"] == {"owned_by": "ollama"}
    assert result.told["paid"] == {"owned_by": "ollama", "price": {"input": 0.0, "output": 0.0}}
    assert result.told["unheard"] == {"owned_by": "xai"}
    listed = {it["model_name"]: it["model_info"] for it in yaml.safe_load(result.config)["model_list"]}
    assert {name: listed[name] for name in result.told} == result.told


def test_the_demo_provider_is_named_as_who_answers(settings: Callable[..., Settings]) -> None:
    result = rendered(settings("dev"))
    assert {it["owned_by"] for it in result.told.values()} == {"demo"}
    assert "none needed" in result.table
