"""Which models the gateway serves: `litellm/config.yaml`, less what has no key, plus what the stack config adds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml

from infra import retirements

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from infra.settings import Settings

REFERENCE = "os.environ/"
"""How LiteLLM's config names an environment variable."""
NO_KEY = "none"
"""What a server that wants no key is sent: LiteLLM's OpenAI client insists on one."""


@dataclass(frozen=True, kw_only=True)
class ModelList:
    """A rendered LiteLLM config."""

    config: str
    """The file as LiteLLM reads it; secrets stand in it as os.environ/NAME only."""
    served: tuple[str, ...]
    """The names that callers may ask for."""
    left_out: Mapping[str, str]
    """Models of the file that are not served, with the environment variable that has no value."""
    ending: tuple[retirements.Ending, ...]
    """Models that their providers have ended, or will soon."""
    request_timeout: int
    """Seconds after which LiteLLM gives a request up."""


def provider_variable(provider: str) -> str:
    """The environment variable that holds a provider's key."""
    return f"{provider.upper()}_API_KEY"


def model_variable(index: int) -> str:
    """The environment variable that holds the key of the stack config's model number `index`."""
    return f"MODEL_{index}_API_KEY"


def render(text: str, settings: Settings, *, demo_url: str, today: date | None = None) -> ModelList:
    """Render LiteLLM's config `text` for a stack.

    `demo_url` is the demo provider's address, as http://host:port, used only where the settings let it answer.
    `today` decides which models have ended; it is the present day in UTC unless given.
    """
    config: dict[str, Any] = yaml.safe_load(text)
    known = {provider_variable(provider) for provider in settings.provider_keys}
    models: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    own = {local.name for local in settings.models}
    for model in config["model_list"]:
        if model["model_name"] in own:
            continue  # the stack config's model of that name takes its place
        parameters = model["litellm_params"]
        key = str(parameters.get("api_key", ""))
        variable = key.removeprefix(REFERENCE)
        if variable in known or ("api_base" in parameters and not key.startswith(REFERENCE)):
            models.append(model)
        elif settings.demo_answers:
            models.append({**model, "litellm_params": {**parameters, **_demo(parameters["model"], demo_url)}})
        else:
            left_out[model["model_name"]] = variable
    for index, local in enumerate(settings.models):
        parameters = {
            "model": local.model,
            "input_cost_per_token": local.input_cost_per_token,
            "output_cost_per_token": local.output_cost_per_token,
        }
        if local.api_base is not None:
            has_key = local.name in settings.model_keys
            parameters["api_base"] = str(local.api_base).rstrip("/")
            parameters["api_key"] = REFERENCE + model_variable(index) if has_key else NO_KEY
        elif local.provider in settings.provider_keys:
            parameters["api_key"] = REFERENCE + provider_variable(local.provider)
        elif settings.demo_answers:
            parameters.update(_demo(local.model, demo_url))
        else:
            left_out[local.name] = provider_variable(local.provider)
            continue
        models.append({"model_name": local.name, "litellm_params": parameters})
    served, ending = _without_ended(
        models, settings.retired_models, today or datetime.now(UTC).date(), demo_url=demo_url
    )
    config["model_list"] = served
    return ModelList(
        config=yaml.safe_dump(config, sort_keys=False),
        served=tuple(dict.fromkeys(model["model_name"] for model in served)),
        left_out=left_out,
        ending=ending,
        request_timeout=config["litellm_settings"]["request_timeout"],
    )


def _without_ended(
    models: list[dict[str, Any]], policy: retirements.Policy, today: date, *, demo_url: str
) -> tuple[list[dict[str, Any]], tuple[retirements.Ending, ...]]:
    """What is served of models on a day, and which of them have ended or will soon.

    A server of the team's own ends its models when the team does.
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


def _demo(model: str, url: str) -> dict[str, str]:
    """What sends a model's requests to the demo provider. Only OpenAI's address carries the API's version."""
    return {"api_base": f"{url}/v1" if model.startswith("openai/") else url, "api_key": NO_KEY}
