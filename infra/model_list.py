"""Which models are served: those in `litellm/config.yaml` and the stack config whose variables are all set."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pulumi
import yaml

from infra import litellm_connections, litellm_settings, model_table, prices, providers, redis, retirements
from infra.litellm_environment import REFERENCE, in_clear, named_variables
from infra.settings import Deployment

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date

    from infra.settings import Settings, ShortModel

FILE = Path(__file__).parent.parent / "litellm" / "config.yaml"
REQUEST_TIMEOUT_SECONDS = 6000
"""LiteLLM's own, where the file has none."""
RENAMED = {"max_tokens": "max_completion_tokens"}
"""Parameters that a model may refuse under this name but accept under another."""
NO_KEY = "none"
"""Sent to a server that needs no key: LiteLLM's OpenAI client requires one, and would otherwise send the
provider's."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A model that is not served."""

    name: str
    provider: str
    variables: tuple[str, ...]
    """The variables that it names but that have no value."""


@dataclass(frozen=True, kw_only=True)
class ModelList:
    """A rendered LiteLLM config."""

    config: str
    """The file as LiteLLM reads it; it names secrets as os.environ/NAME."""
    served: tuple[str, ...]
    """The names that callers may ask for."""
    left_out: tuple[LeftOut, ...]
    told: Mapping[str, Mapping[str, Any]]
    """What callers are told about each served model, by the names in `model_info`."""
    table: str
    """What the preview says about each model, whether it is served or not."""
    ending: tuple[retirements.Ending, ...]
    """Models that their providers have shut down, or will soon."""
    request_timeout: int
    """Seconds after which LiteLLM gives up on a request."""


def model_variable(index: int) -> str:
    """The environment variable that holds the key of the stack config's model number `index`."""
    return f"MODEL_{index}_API_KEY"


def key_variables(models: Sequence[ShortModel | Deployment], model_keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the stack config's own models, by variable."""
    return {model_variable(i): model_keys[it.name] for i, it in enumerate(models) if it.name in model_keys}


def entries(
    config: Mapping[str, Any], models: Sequence[ShortModel | Deployment], model_keys: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The model_list of the file and the stack config, each with its key.

    A model of the stack config replaces those with its name in the file.
    """
    own = {model.name for model in models}
    listed = [model for model in config.get("model_list") or () if model["model_name"] not in own]
    added = [_entry(model, index, model_keys) for index, model in enumerate(models)]
    return [_with_key(entry) for entry in (*listed, *added)]


def missing_variables(entry: Mapping[str, Any], variables: Collection[str]) -> tuple[str, ...]:
    """The variables that an entry names but that are not set."""
    return tuple(dict.fromkeys(name for name in named_variables(entry) if name not in variables))


@cache
def parsed(text: str) -> Mapping[str, Any]:
    """The content of `litellm/config.yaml`, from its text. A preview needs it three times: do not change it."""
    content: Mapping[str, Any] = yaml.safe_load(text)
    return content


def check(text: str) -> None:
    """Look for keys in the file's text. Raises RunError if there is one in clear text."""
    for model in parsed(text).get("model_list") or ():
        if any(in_clear("", model)):
            raise pulumi.RunError(
                f"litellm/config.yaml: a key of {model['model_name']} is not encrypted, so anyone can read it: get a "
                "new one, name it os.environ/NAME, and set it as a secret of the stack config "
                "(litellmEnvironment.NAME). Nothing was changed."
            )


def render(
    text: str, settings: Settings, *, demo_url: str, redis_host: str = redis.NETWORK_NAME, today: date | None = None
) -> ModelList:
    """Render LiteLLM's config `text` for a stack.

    `demo_url` is the demo provider's address, as http://host:port, used only if the settings let it answer.
    `redis_host` is the name under which replicas find Redis. `today` decides which models have been shut down; by
    default it is the current day in UTC.
    """
    file = dict(parsed(text))
    if of_stack := {**litellm_connections.general_settings(settings), **redis.general_settings(settings, redis_host)}:
        file["general_settings"] = {**of_stack, **(file.get("general_settings") or {})}
    config: dict[str, Any] = litellm_settings.laid_over(
        file, {key: getattr(settings, section) for key, section in litellm_settings.SECTIONS.items()}
    )
    variables = {*settings.variables, *key_variables(settings.models, settings.model_keys)}
    release = providers.load().release(settings.litellm_image)
    models: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    for listed in entries(config, settings.models, settings.model_keys):
        entry = _told_to(release, listed)
        missing = missing_variables(entry, variables)
        provider = providers.load().of(entry["litellm_params"]["model"])
        if not missing:
            models.append(entry)
        elif settings.demo_answers and provider.demo is not None:
            to_demo = {"api_base": f"{demo_url}{provider.demo}", "api_key": NO_KEY}
            models.append({**entry, "litellm_params": {**entry["litellm_params"], **to_demo}})
        else:
            prefix = entry["litellm_params"]["model"].partition("/")[0]
            left_out.append(LeftOut(name=entry["model_name"], provider=prefix, variables=missing))
    served, ending = _without_ended(
        models, settings.retired_models, today or datetime.now(UTC).date(), demo_url=demo_url
    )
    served = [_with_what_is_known(model, release, settings.refused_parameters) for model in served]
    served = [model_table.described(model, release, demo_url=demo_url) for model in served]
    config["model_list"] = served
    names = [model["model_name"] for model in served]
    aliases = (config.get("router_settings") or {}).get("model_group_alias") or {}
    return ModelList(
        config=yaml.safe_dump(config, sort_keys=False),
        served=tuple(dict.fromkeys((*names, *(alias for alias, name in aliases.items() if name in names)))),
        left_out=tuple(left_out),
        told={model["model_name"]: model_table.told(model) for model in reversed(served)},
        table=model_table.table(served, left_out, release),
        ending=ending,
        request_timeout=(config.get("litellm_settings") or {}).get("request_timeout", REQUEST_TIMEOUT_SECONDS),
    )


def _entry(model: ShortModel | Deployment, index: int, model_keys: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the stack config in LiteLLM's form."""
    key = {"api_key": REFERENCE + model_variable(index)} if model.name in model_keys else {}
    if isinstance(model, Deployment):
        info = {"model_info": model.model_info} if model.model_info else {}
        return {"model_name": model.name, "litellm_params": {**model.litellm_params, **key}, **info}
    costs = {"input_cost_per_token": model.input_cost_per_token, "output_cost_per_token": model.output_cost_per_token}
    given = {name: cost for name, cost in costs.items() if cost is not None}
    if model.api_base is None:
        parameters = {"model": model.model, **given, **key}
    else:
        base = {"api_base": str(model.api_base).rstrip("/"), "api_key": NO_KEY}
        # LiteLLM gets the price 0 if nobody has said what a token costs. That does not mean that the model is free.
        parameters = {"model": model.model, **dict.fromkeys(costs, 0.0), **given, **base, **key}
        info = {"price": model_table.price(given)}
        return {"model_name": model.name, "litellm_params": parameters, "model_info": info}
    return {"model_name": model.name, "litellm_params": parameters}


def _with_key(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry that explicitly names the key that LiteLLM would use by default.

    So the preview knows whether the key is set, and no provider's key is sent to the team's own server.
    """
    parameters = entry["litellm_params"]
    provider = providers.load().of(parameters["model"])
    if provider.placeholder and "api_key" not in parameters:
        return {**entry, "litellm_params": {**parameters, "api_key": NO_KEY}}
    if provider.key is None or parameters.keys() & {"api_key", *provider.key_or}:
        return entry
    to_provider = provider.has_account(parameters)
    key = REFERENCE + provider.key if to_provider else NO_KEY
    return {**entry, "litellm_params": {**parameters, "api_key": key}}


def _told_to(release: providers.Release, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with what this release of LiteLLM must be told about its provider."""
    for part, below in providers.load().of(entry["litellm_params"]["model"]).told.get(release.version, {}).items():
        given = entry.get(part, {})
        lists = {name: [*each, *given.get(name, ())] for name, each in below.items() if isinstance(each, list)}
        entry = {**entry, part: {**below, **given, **lists}}
    return entry


def _without_ended(
    models: list[dict[str, Any]], policy: retirements.Policy, today: date, *, demo_url: str
) -> tuple[list[dict[str, Any]], tuple[retirements.Ending, ...]]:
    """The models that are served on a day, and those that have been shut down or will be soon.

    The team itself decides when a model on its own server ends.
    """
    table = retirements.load()
    served, ending = [], []
    for model in models:
        entry: dict[str, Any] | None = model
        if str(model["litellm_params"].get("api_base", demo_url)).startswith(demo_url):
            entry, end = retirements.apply(model, policy, table, today)
            ending += [end] if end else []
        served += [entry] if entry else []
    return served, tuple(ending)


def _with_what_is_known(entry: dict[str, Any], release: providers.Release, refused: prices.Refused) -> dict[str, Any]:
    """An entry with its price, if LiteLLM does not know it, and the parameters that its provider refuses.

    litellm/parameters.py reads `refuses`, which says what happens to each parameter. When LiteLLM translates a
    request from another form, such as Anthropic's, it leaves such parameters out itself. Nothing is known about
    models on the team's own server.
    """
    parameters, info = entry["litellm_params"], entry.get("model_info", {})
    provider, model = providers.load().of(parameters["model"]), prices.of(entry) or prices.NOTHING
    if not provider.has_account(parameters):
        return entry
    unknown = release.version in model.unknown_to
    costs = {} if {*prices.COSTS} & {*parameters, *info} or not unknown else model.costs
    # A release that knows the model sends `max_tokens` under its other name.
    left_out = [name for name in model.refuses if unknown or name not in RENAMED]
    drops = [*left_out, *(it for it in parameters.get("additional_drop_params", ()) if it not in left_out)]
    refuses = (*model.refuses, *provider.unknown.get(release.version, ()))
    fates = {name: RENAMED.get(name, refused) for name in refuses}
    return {
        **entry,
        "litellm_params": {**parameters, **costs, **({"additional_drop_params": drops} if left_out else {})},
        **({"model_info": {"refuses": fates, **info}} if fates else {}),
    }
