"""What models cost and which parameters they refuse, from `litellm/prices.yaml`; not every LiteLLM release knows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = Path(__file__).parent.parent / "litellm" / "prices.yaml"
Refused = Literal["drop", "error"]
"""What to do with a parameter that a model refuses."""
MILLION = 1_000_000
DIGITS = 6
"""The decimal places of a price for a million tokens."""
COSTS = ("input_cost_per_token", "output_cost_per_token")
"""LiteLLM's names for the costs of a token, in US dollars."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What LiteLLM's newest price list says about a model."""

    costs: Mapping[str, float]
    """US dollars, by the names in COSTS."""
    unknown_to: frozenset[str]
    """The releases of LiteLLM, of those that were run here, that do not know its price."""
    refuses: tuple[str, ...]
    """Parameters of a chat completion with which its provider answers 400."""


NOTHING = Model(costs={}, unknown_to=frozenset(), refuses=())
"""For a model that the table does not have."""


@cache
def load() -> Mapping[str, Model]:
    """Return the table, by LiteLLM's `model`: provider/model."""
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the loader written in Python takes a second
    content: dict[str, Any] = yaml.load(FILE.read_text(encoding="utf-8"), Loader=fast)  # noqa: S506 -- both are safe
    return {
        model: Model(
            costs={name: float(price) / MILLION for name, price in zip(COSTS, it["usd"], strict=True)},
            unknown_to=frozenset(it.get("unknown_to", ())),
            refuses=tuple(content["refused"][it["refuses"]]) if "refuses" in it else (),
        )
        for model, it in content["models"].items()
    }


def of(entry: Mapping[str, Any]) -> Model | None:
    """What is known about the model of a `model_list` entry; None for a model on the team's own server.

    Azure's deployments have their own names: `base_model` says what they run. LiteLLM reads `gpt-4o` as
    `openai/gpt-4o`.
    """
    model = (entry.get("model_info") or {}).get("base_model") or entry["litellm_params"]["model"]
    table = load()
    return table.get(model) or table.get(f"openai/{model}") or table.get(f"anthropic/{model}")
