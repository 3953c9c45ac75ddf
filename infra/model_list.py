"""Which models the gateway serves: `litellm/config.yaml`, less what has no key, plus what the stack config adds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pulumi
import yaml

from infra import retirements

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from infra.settings import Settings

REFERENCE = "os.environ/"
"""How LiteLLM's config names an environment variable."""
FILE = Path(__file__).parent.parent / "litellm" / "config.yaml"
REQUEST_TIMEOUT_SECONDS = 6000
"""LiteLLM's own, where the file has none."""
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
    endings: Mapping[str, Mapping[str, str]]
    """What callers are told of the end of each served model, by the names of `model_info`."""
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


def has_own_servers() -> bool:
    """Whether the file names a model on a server of the team's own, which needs no provider's key."""
    config = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return any("api_base" in model["litellm_params"] for model in config.get("model_list") or ())


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
        key = _key(model)
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
        own_key = REFERENCE + model_variable(index) if local.name in settings.model_keys else None
        if local.api_base is not None:
            parameters["api_base"] = str(local.api_base).rstrip("/")
            parameters["api_key"] = own_key or NO_KEY
        elif own_key:
            parameters["api_key"] = own_key
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
        endings={model["model_name"]: _told(model.get("model_info", {})) for model in reversed(served)},
        ending=ending,
        request_timeout=(config.get("litellm_settings") or {}).get("request_timeout", REQUEST_TIMEOUT_SECONDS),
    )


def _key(model: Mapping[str, Any]) -> str:
    """The `api_key` of a model of the file; empty where it has none. Raises RunError for one that nobody may read."""
    key = str(model["litellm_params"].get("api_key", ""))
    if key and not key.startswith(REFERENCE) and "api_base" not in model["litellm_params"]:
        raise pulumi.RunError(
            f"litellm/config.yaml: the api_key of {model['model_name']} stands there in clear, for all to read: "
            "take a new one, name it os.environ/NAME, and set it as a secret of the stack config"
        )
    return key


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


def _told(info: Mapping[str, str]) -> dict[str, str]:
    return {name: info[name] for name in retirements.INFO if name in info}


def _demo(model: str, url: str) -> dict[str, str]:
    """What sends a model's requests to the demo provider. Only OpenAI's address carries the API's version."""
    return {"api_base": f"{url}/v1" if model.startswith("openai/") else url, "api_key": NO_KEY}
