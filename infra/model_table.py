"""What is known about each model beyond what LiteLLM needs, for callers of `GET /v1/models` and for the preview.

`llmctl models --verbose` shows it too (console/tables.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from console import tables
from infra import prices, providers, retirements
from infra.litellm_environment import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from infra.model_list import LeftOut

TOLD = (*retirements.INFO, "owned_by", "price", "refuses")
"""The entries of a model's `model_info` that callers see; litellm/release.py reads them there."""
DEMO = "demo"
"""The owner of a model for which the demo provider answers."""
HEAD = ("model", "provider", "key", "USD per million tokens", "parameters", "ends")


def described(entry: dict[str, Any], release: providers.Release, *, demo_url: str) -> dict[str, Any]:
    """An entry with its provider, and its price in US dollars for a million tokens where one is known."""
    parameters, info = entry["litellm_params"], dict(entry.get("model_info", {}))
    told_price = info.pop("price", None)
    if str(parameters.get("api_base", "")).startswith(demo_url):
        return {**entry, "model_info": {**info, "owned_by": DEMO}}
    owner = parameters.get("custom_llm_provider") or parameters["model"].partition("/")[0]
    given = {name: parameters.get(name, info.get(name)) for name in prices.COSTS}
    known = prices.of(entry)
    if all(cost is None for cost in given.values()) and known and release.version not in known.unknown_to:
        given = dict(known.costs) if providers.load().of(parameters["model"]).has_account(parameters) else {}
    known_price = price(given) if told_price is None else told_price
    return {**entry, "model_info": {"owned_by": owner, **({"price": known_price} if known_price else {}), **info}}


def price(costs: Mapping[str, Any]) -> dict[str, float]:
    """The price for a million tokens, as callers see it, from the known costs of a token."""
    return {
        way: round(float(costs[name]) * prices.MILLION, prices.DIGITS)
        for way, name in zip(tables.WAYS, prices.COSTS, strict=True)
        if costs.get(name) is not None
    }


def told(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What callers are told about an entry."""
    info = entry.get("model_info", {})
    return {name: info[name] for name in TOLD if name in info}


def table(listed: Sequence[Mapping[str, Any]], left_out: Sequence[LeftOut], release: providers.Release) -> str:
    """A line for each model of a list and for each that was left out, as it is with this release of LiteLLM."""
    rows = [HEAD, *map(_row, listed)]
    rows += [(it.name, it.provider, f"{' and '.join(it.variables)} missing", "", "", "") for it in left_out]
    return "\n".join((f"models, with LiteLLM {release.version}:", *tables.aligned(rows)))


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    info, parameters = entry["model_info"], entry["litellm_params"]
    cost = "" if info["owned_by"] == DEMO else tables.cost(info.get("price", {}))
    return (
        entry["model_name"],
        info["owned_by"],
        _key(info["owned_by"], parameters),
        cost,
        "; ".join(tables.fates(info.get("refuses", {}))),
        str(info.get("shutdown_date", "")),
    )


def _key(owner: str, parameters: Mapping[str, Any]) -> str:
    if owner == DEMO:
        return "none needed"
    named = [value for value in parameters.values() if isinstance(value, str) and value.startswith(REFERENCE)]
    files = [name for name in parameters if name.endswith("credentials")]
    provider = providers.load().of(parameters["model"])
    if named or files or (provider.variables and not provider.key):
        return "set"
    return "none"
