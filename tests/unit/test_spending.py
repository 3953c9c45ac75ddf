"""Which model the checks of a deployed stack ask: none that costs money, unless the operator wants that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from infra import model_list
from tests.deploy.test_gateway import models_to_ask
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.settings import Settings

PROVIDER: dict[str, Any] = {"demo": False, "openaiApiKey": "sk-of-a-provider"}
OWN = {"name": "own", "model": "openai/own", "apiBase": "http://10.0.0.9/v1"}


def stack(settings: Settings) -> Any:
    """What the checks read of a stack that was deployed with these settings."""
    text = (PROJECT / "litellm/config.yaml").read_text()
    config = model_list.render(text, settings, demo_url="http://demo:8080").config
    return SimpleNamespace(settings=settings, outputs={"litellmConfig": config}, parts=[])


@pytest.mark.parametrize("embeds", [False, True])
def test_a_providers_model_is_asked_only_where_money_may_be_spent(
    settings: Callable[..., Settings], *, embeds: bool
) -> None:
    """The reason for not asking names the models, and the option that has them asked."""
    model = "text-embedding-3-small" if embeds else "gpt-4o"
    made = stack(settings(**PROVIDER))
    with pytest.raises(pytest.skip.Exception, match=rf"it would cost money: .*{model}.*--spend"):
        models_to_ask(made, embeds=embeds, spend=False)
    assert models_to_ask(made, embeds=embeds, spend=True) == [model]


def test_the_demo_provider_costs_nothing(settings: Callable[..., Settings]) -> None:
    assert models_to_ask(stack(settings()), embeds=False, spend=False) == ["gpt-4o"]


def test_a_model_of_the_teams_own_without_a_price_is_asked_in_place_of_a_providers(
    settings: Callable[..., Settings],
) -> None:
    made = stack(settings(**PROVIDER, models=[OWN]))
    assert models_to_ask(made, embeds=False, spend=False) == ["own"]
    assert models_to_ask(made, embeds=False, spend=True) == ["gpt-4o", "own"]


def test_a_model_of_the_teams_own_with_a_price_costs_money(settings: Callable[..., Settings]) -> None:
    made = stack(settings(**PROVIDER, models=[{**OWN, "inputCostPerToken": 0.001}]))
    with pytest.raises(pytest.skip.Exception, match="it would cost money"):
        models_to_ask(made, embeds=False, spend=False)


def test_a_stack_without_an_embedding_model_is_not_asked_for_one(settings: Callable[..., Settings]) -> None:
    made = stack(settings(demo=False, models=[OWN]))
    with pytest.raises(pytest.skip.Exception, match="no model for embeddings"):
        models_to_ask(made, embeds=True, spend=True)
