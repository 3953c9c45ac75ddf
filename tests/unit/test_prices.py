"""What models cost, and what they refuse: how the table is made, and read."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from infra import prices
from toolchain.maintenance import renew_prices as renewal

CHAT = {"mode": "chat", "input_cost_per_token": 2e-06, "output_cost_per_token": 1e-05}


def test_the_file_is_as_it_is_written() -> None:
    """So that an update changes only the lines of models that have changed."""
    text = prices.FILE.read_text(encoding="utf-8")
    found = re.search(r"Renewed on (\S+) from LiteLLM (\S+)\.\n", text)
    assert found is not None
    assert renewal.written(found[2], yaml.safe_load(text), found[1]) == text


@pytest.mark.parametrize(
    ("model", "facts", "name"),
    [
        ("gpt-6", {"litellm_provider": "openai"}, "openai/gpt-6"),
        ("eu.anthropic.claude-6", {"litellm_provider": "bedrock_converse"}, "bedrock/eu.anthropic.claude-6"),
        ("gemini-4", {"litellm_provider": "vertex_ai-language-models"}, "vertex_ai/gemini-4"),
        ("groq/openai/gpt-oss", {"litellm_provider": "groq"}, "groq/openai/gpt-oss"),
        ("azure/eu/gpt-6", {"litellm_provider": "azure"}, ""),
        ("ft:gpt-6", {"litellm_provider": "openai"}, ""),
        ("together-ai-21.1b-41b", {"litellm_provider": "together_ai"}, ""),
        ("painter", {"litellm_provider": "openai", "mode": "image_generation"}, ""),
        ("of-others", {"litellm_provider": "elsewhere"}, ""),
    ],
)
def test_a_model_of_a_price_list_is_named_as_litellm_asks_it(model: str, facts: dict[str, Any], name: str) -> None:
    """Models of one region, fine-tuned ones, and sizes instead of models are left out."""
    assert renewal.full_name(model, {**CHAT, **facts}) == name


def test_the_table_has_what_each_release_does_not_know_and_what_models_refuse() -> None:
    """Models that only an older list has stay: newer lists drop models that are gone."""
    of = {"litellm_provider": "openai"}
    gone, new = {**CHAT, **of}, {**CHAT, **of, "supports_reasoning": True}
    latest = {**new, "input_cost_per_token": 3e-06}
    claude = {**CHAT, "litellm_provider": "anthropic", "supports_sampling_params": False}
    made = renewal.made(
        {"gpt-new": latest, "gpt-chat-latest": new, "claude": claude},
        {"1.0.0": {"gpt-gone": gone}, "2.0.0": {"gpt-new": new}},
    )
    assert made["models"] == {
        "anthropic/claude": {"usd": [2.0, 10.0], "unknown_to": ["1.0.0", "2.0.0"], "refuses": "sampling"},
        "openai/gpt-chat-latest": {"usd": [2.0, 10.0], "unknown_to": ["1.0.0", "2.0.0"]},
        "openai/gpt-gone": {"usd": [2.0, 10.0], "unknown_to": ["2.0.0"]},
        "openai/gpt-new": {"usd": [3.0, 10.0], "unknown_to": ["1.0.0"], "refuses": "reasoning"},
    }
