"""What is wrong with `models` in the stack config, also in combination with the other keys."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from pydantic.alias_generators import to_camel

from infra import litellm_environment, model_list, providers
from infra.litellm_environment import REFERENCE, UNVERIFIED
from infra.litellm_settings import parts
from infra.problem import Problem
from infra.settings import Deployment, ShortModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Models = Sequence[ShortModel | Deployment]

NEEDS_A_HUB = re.compile(r"(llama)-([23])", re.IGNORECASE)
"""Names for which LiteLLM counts tokens with a tokenizer that it downloads (litellm.utils._select_tokenizer). If it
cannot reach a model hub, each chat completion with such a name fails."""
CLIENT_DECIDES = "configurable_clientside_auth_params"


def problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the models of a stack config; `values` has its valid fields."""
    if "models" not in values:
        return
    models: Models = values["models"]
    short = Counter(model.name for model in models if isinstance(model, ShortModel))
    for name, count in short.items():
        if count > 1:
            last = max(index for index, model in enumerate(models) if model.name == name)
            what = (
                f"names {name} {count} times: several deployments of one name need the form of LiteLLM's model_list"
            )
            yield Problem("models", what, f"rm --path 'models[{last}]'")
    release = providers.load().release(values.get("litellm_image", ""))
    for index, model in enumerate(models):
        place = f"models[{index}]"
        if NEEDS_A_HUB.search(model.name):
            name = "name" if isinstance(model, ShortModel) else "model_name"
            yield Problem(
                f"{place}.{name}",
                "would make LiteLLM look for a tokenizer on a model hub at each request: leave the hyphen out",
                f"set --path '{place}.{name}' {''.join(NEEDS_A_HUB.split(model.name))}",
            )
        if isinstance(model, ShortModel):
            unknown = list(_unknown_provider(f"{place}.model", model.model, release))
            has_key = model.name in values.get("model_keys", {})
            yield from unknown or _short(place, model, has_key=has_key)
        else:
            parameters = f"{place}.litellm_params"
            if "custom_llm_provider" not in model.litellm_params:
                yield from _unknown_provider(f"{parameters}.model", model.model, release)
            yield from _parameters(parameters, model)
            yield from parts(parameters, model.litellm_params, values)
            yield from parts(f"{place}.model_info", model.model_info, values)
    names = {model.name for model in models}
    for name in sorted(values.get("model_keys", {}).keys() - names):
        yield Problem(
            f"modelKeys.{name}", "is not the key of any model in `models`", f"rm --path 'modelKeys[\"{name}\"]'"
        )
    yield from _nothing_served(values)


def _unknown_provider(place: str, model: str, release: providers.Release) -> Iterator[Problem]:
    prefix, _, rest = model.partition("/")
    if prefix in release.prefixes or release.takes_more:
        return
    newest = providers.load().releases[-1]
    if prefix in newest.prefixes:
        what = f"has a provider that LiteLLM {release.version} does not know: {newest.version} does"
        yield Problem(place, what, "set litellmImage ghcr.io/berriai/litellm:v" + newest.version)
        return
    near = providers.near(prefix, release.prefixes)
    hint = f"; did you mean {near}/{rest}?" if near else ", as provider/model"
    yield Problem(
        place,
        f"does not begin with a provider that LiteLLM knows{hint}",
        f"set --path '{place}' {near or 'PROVIDER'}/{rest}",
    )


def _short(place: str, model: ShortModel, *, has_key: bool) -> Iterator[Problem]:
    provider = providers.load().of(model.model)
    if more := sorted(provider.needs.keys() - {"api_base"}):
        yield Problem(
            place,
            f"needs {' and '.join(more)}, so it must have the form of LiteLLM's model_list (docs/providers.md)",
            f"rm --path '{place}'",
        )
    elif model.api_base is None and (provider.server or provider.own_address or not (provider.key or has_key)):
        example = provider.server or provider.needs.get("api_base") or "http://host.docker.internal:8000/v1"
        what = f"{model.name} is a local model, so the URL of its server must be given"
        if not provider.server:
            what = f"{model.name} needs the URL of its server, or else a key in modelKeys"
        if provider.own_address:
            what = f"{model.name} needs the account's own address"
        yield Problem(f"{place}.apiBase", f"is missing: {what}", f"set --path '{place}.apiBase' {example}")


def _parameters(place: str, model: Deployment) -> Iterator[Problem]:
    """What is missing in litellm_params for its provider, and what must not be there."""
    provider = providers.load().of(model.model)
    needs = provider.needs if not provider.server else {"api_base": provider.server}
    for name, example in needs.items():
        if name not in model.litellm_params:
            yield Problem(
                f"{place}.{name}", "is missing: the provider needs it", f"set --path '{place}.{name}' {example}"
            )
    for name, form in provider.formats.items():
        text = str(model.litellm_params.get(name, ""))
        if text and not text.startswith(REFERENCE) and not re.fullmatch(form, text):
            what = f"does not look like one, such as {provider.needs.get(name)}"
            yield Problem(f"{place}.{name}", what, f"set --path '{place}.{name}' {provider.needs.get(name)}")
    if str(model.litellm_params.get("ssl_verify")).lower() == "false":
        yield Problem(f"{place}.ssl_verify", f"cannot be set: it {UNVERIFIED}", f"rm --path '{place}.ssl_verify'")
    if CLIENT_DECIDES in model.litellm_params:
        yield Problem(
            f"{place}.{CLIENT_DECIDES}",
            "would let clients send the stack's keys to a server of their choice",
            f"rm --path '{place}.{CLIENT_DECIDES}'",
        )


def _nothing_served(values: Mapping[str, Any]) -> Iterator[Problem]:
    if values.get("demo") is not False:
        return
    model_keys = values.get("model_keys", {})
    config = model_list.parsed(model_list.FILE.read_text(encoding="utf-8"))
    variables = {
        *litellm_environment.variables(values),
        *model_list.key_variables(values["models"], model_keys),
    }
    listed = model_list.entries(config, values["models"], model_keys)
    if any(not model_list.missing_variables(entry, variables) for entry in listed):
        return
    what = "nothing can answer: no provider key and no local model is set"
    for field in litellm_environment.NAMED:
        yield Problem(to_camel(field), what, f"set --secret {to_camel(field)} sk-…")
        what = "or this key: one provider's is enough, and docs/providers.md has all of them"
    what = "or no key, to try the stack with the demo provider: its data can then be thrown away"
    yield Problem("demo", what, "set-all --plaintext demo=true --plaintext protectData=false")
