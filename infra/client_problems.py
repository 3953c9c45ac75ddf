"""What is wrong with the clients of the stack config: their keys, and their limits."""

from __future__ import annotations

from datetime import date
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from infra import litellm_environment, model_list
from infra.problem import Problem
from infra.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.limits import ClientLimits

NEW_KEY = 'set --secret --path clientKeys.{} "sk-$(openssl rand -hex 24)"'


def problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the clients of a stack config; `values` has its valid fields."""
    yield from _same_keys(values)
    yield from _unknown_clients(values)
    versions = getattr(values.get("secret_versions"), "client_keys", {})
    for client, version in versions.items():
        if version > 1 and values.get("client_keys", {}).get(client):
            place = f"secretVersions.clientKeys.{client}"
            what = "has no effect while its key is set: set a new one to rotate it"
            yield Problem(place, what, f"rm --path {place}")
    yield from _limits(values)


def _same_keys(values: Mapping[str, Any]) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    if (master := values.get("master_key")) is not None:
        owners[master.get_secret_value()] = "masterKey"
    for client, keys in values.get("client_keys", {}).items():
        for key in keys:
            owner = owners.setdefault(key.get_secret_value(), client)
            if owner != client:
                yield Problem(f"clientKeys.{client}", f"is the same key as {owner}'s", NEW_KEY.format(client))


def _unknown_clients(values: Mapping[str, Any]) -> Iterator[Problem]:
    if "client_keys" not in values:
        return
    clients = {"app", *values["client_keys"]}
    named = {
        "secretVersions.clientKeys": getattr(values.get("secret_versions"), "client_keys", {}),
        "retirePrevious.clientKeys": getattr(values.get("retire_previous"), "client_keys", {}),
        "clientRpm": values.get("client_rpm", {}),
        "clientLimits": values.get("client_limits", {}),
    }
    for key, of_clients in named.items():
        for client in of_clients:
            if client not in clients:
                what = f"there is no such client (clientKeys has {', '.join(sorted(clients))})"
                yield Problem(f"{key}.{client}", what, f"rm --path {key}.{client}")


def _limits(values: Mapping[str, Any]) -> Iterator[Problem]:
    limits: Mapping[str, ClientLimits] = values.get("client_limits", {})
    if not limits:
        return
    if values.get("litellm_database") is False:
        what = "need LiteLLM's database, which is off"
        yield Problem("clientLimits", what, "set litellmDatabase true")
    for client, each in limits.items():
        if each.budget_duration and each.budget is None:
            place = f"clientLimits.{client}"
            yield Problem(
                f"{place}.budgetDuration",
                "has no effect without a budget: set one, or remove this",
                f"set --path {place}.budget 50",
            )
    if any(each.models for each in limits.values()) and values.keys() >= Settings.model_fields.keys():
        yield from _models(limits, Settings.model_construct(**values))


def _models(limits: Mapping[str, ClientLimits], settings: Settings) -> Iterator[Problem]:
    """Models that a client may ask but that nothing serves. The date does not matter: ending models get a warning."""
    text = model_list.FILE.read_text(encoding="utf-8")
    models = model_list.render(text, settings, demo_url="http://demo", today=date.min)
    missing = {each.name: each.variables[0] for each in models.left_out}
    for client, each in limits.items():
        for index, name in enumerate(each.models or ()):
            place = f"clientLimits.{client}.models[{index}]"
            if any(fnmatchcase(name, served) for served in models.served):
                continue
            if variable := missing.get(name):
                command = f"set {litellm_environment.set_arguments(variable)}"
                yield Problem(place, f"{name} is not served, as {variable} is not set", command)
            else:
                what = f"{name} is not served, only {', '.join(models.served)}"
                yield Problem(place, what, f"rm --path '{place}'")
