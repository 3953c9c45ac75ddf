"""What the stack config overrides in LiteLLM's settings in `litellm/config.yaml`, and what it must not.

`litellmSettings`, `routerSettings` and `generalSettings` are merged into the file's `litellm_settings`,
`router_settings` and `general_settings`, key by key, nested keys included.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from infra import litellm_environment, providers
from infra.litellm_environment import REFERENCE, in_clear, missing_files, named_variables, refusal
from infra.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

SECTIONS = {
    "litellmSettings": "litellm_settings",
    "routerSettings": "router_settings",
    "generalSettings": "general_settings",
}
"""Keys of the stack config, and the part of LiteLLM's config that each is merged into."""
LOGS_KEYS = "would write keys and prompts to the log"
NEEDS_CODE = "names Python code, and a replica has none but LiteLLM's and this project's"
REFUSED = {
    "litellmSettings": {
        "(set_verbose|log_raw_request_response)=true": LOGS_KEYS,
        "ssl_verify=(false|0|null)": litellm_environment.UNVERIFIED,
        "(api_base|base_url)=.*": "would send the keys of all providers to one address: `models` has one for each",
        "(custom_provider_map|pre_call_rules|post_call_rules|plugins)=.*": NEEDS_CODE,
    },
    "routerSettings": {
        "model_list=.*": "is `models` of the stack config",
        "set_verbose=true|debug_level=.*debug.*": LOGS_KEYS,
        "(plugins|fallback_access_check|fallback_budget_check)=.*": NEEDS_CODE,
    },
    "generalSettings": {
        "master_key=.*": "is the stack's own, which the edge uses: set masterKey instead",
        "database_url=.*": "is the stack's own: litellmDatabase gives it one, and litellmDatabaseUrl another",
        "(store_model_in_db|supported_db_objects)=.*": "serves models that no preview shows: use `models`",
        "allow_requests_on_db_unavailable=(?!false$).*": "accepts any key while the database is away",
        "store_prompts_in_spend_logs=(?!false$).*": "would keep prompts and answers in the database",
        "disable_(prisma_schema_update|spend_logs|adding_master_key_hash_to_db)=.*": (
            "is the stack's own: litellmDatabase decides it"
        ),
        r"(custom_auth\w*|custom_key\w*|custom_sso|custom_ui\w*|enable_jwt_auth|litellm_jwtauth|\w*oauth2\w*)=.*"
        r"|(public_routes|dangerously_\w+|control_plane_url|enable_claude_code_gateway)=.*": (
            "changes who may send requests, which the edge decides"
        ),
        "pass_through_endpoints=.*": "opens paths that the edge does not let anyone reach",
        r"key_management_\w+=.*": (
            "takes keys from elsewhere: put them into litellmEnvironment, so that a preview shows which are missing"
        ),
        r"(user_url_\w+|provider_url_\w+)=.*": "decides what LiteLLM fetches: set fetchUrls instead",
        "plugins=.*": NEEDS_CODE,
    },
}
"""Settings that are refused, as name=value with the value in JSON, with the reason."""
STRATEGIES = frozenset({
    "simple-shuffle",
    "least-busy",
    "usage-based-routing",
    "usage-based-routing-v2",
    "latency-based-routing",
    "cost-based-routing",
})  # fmt: skip
LONGEST_SECONDS = 6000
DECIMAL = re.compile(r"-?\d*\.\d+(e[+-]?\d+)?", re.IGNORECASE)


OF_A_DATABASE = re.compile(r"database_\w+|\w*spend_logs\w*")
"""Names of general_settings that have an effect only if LiteLLM has a database."""


def laid_over(config: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """LiteLLM's config with the settings of a stack config merged in; `values` has them by their keys."""
    laid = {
        SECTIONS[key]: _merged(config.get(SECTIONS[key]) or {}, settings)
        for key, settings in values.items()
        if settings
    }
    return {**config, **laid}


def problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the settings of a stack config; `values` has its valid fields."""
    variables = {*litellm_environment.variables(values)}
    release = providers.load().release(values.get("litellm_image", ""))
    for section, field in SECTIONS.items():
        settings: Mapping[str, Any] = values.get(field, {})
        for name, value in settings.items():
            place = f"{section}.{name}"
            shown = f"{name}={json.dumps(value)}"
            refused = REFUSED[section].items()
            if why := next(
                (why for what, why in refused if re.fullmatch(what, shown, re.DOTALL | re.IGNORECASE)), None
            ):
                yield Problem(place, f"cannot be set: it {why}", f"rm --path {place}")
            elif (
                section == "generalSettings"
                and OF_A_DATABASE.fullmatch(name)
                and not values.get("litellm_database", True)
            ):
                what = "needs LiteLLM's database, which is off"
                yield Problem(place, what, "set litellmDatabase true")
            else:
                yield from parts(place, value, values)
                yield from _missing(place, value, variables)
                if section == "routerSettings":
                    yield from _router_setting(place, name, value, release)
                elif name in providers.CALLBACKS and section == "litellmSettings":
                    yield from _callbacks(place, value, variables, release)
    yield from _others(values.get("litellm_settings", {}), variables, counts=bool(values.get("redis")))


def parts(place: str, value: object, values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong in any part of LiteLLM's config: keys in clear text, missing files, forbidden variables."""
    for each in in_clear(place, value, place.rpartition(".")[2]):
        what = "is not encrypted, so anyone can read it: set a new one in litellmEnvironment, and name that here"
        yield Problem(each, what, f"set --path '{each}' {REFERENCE}NAME")
    for name in dict.fromkeys(named_variables(value)):
        if why := refusal(name):
            yield Problem(place, f"names the variable {name}, which {why}", f"rm --path '{place}'")
    yield from missing_files(place, json.dumps(value), values)


def _merged(below: Any, above: Any) -> Any:  # noqa: ANN401 -- JSON
    """`below` with `above` merged in: if both are mappings, key by key; otherwise `above` replaces it."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}
    if isinstance(above, dict):
        return {key: _merged(None, value) for key, value in above.items()}
    # Pulumi keeps a number with a decimal point as text.
    return float(above) if isinstance(above, str) and DECIMAL.fullmatch(above) else above


def _missing(place: str, value: object, variables: Collection[str]) -> Iterator[Problem]:
    for name in dict.fromkeys(named_variables(value)):
        if name not in variables and not refusal(name):
            what = f"names the variable {name}, which is not set"
            yield Problem(place, what, f"set {litellm_environment.set_arguments(name)}")


def _router_setting(place: str, name: str, value: object, release: providers.Release) -> Iterator[Problem]:
    newest = providers.load().releases[-1]
    if name not in release.router_settings and not release.takes_more:
        near = providers.near(name, release.router_settings)
        hint = f"; did you mean {near}?" if near else ""
        known = f": {newest.version} does" if name in newest.router_settings else hint
        yield Problem(place, f"is not one that LiteLLM {release.version} knows{known}", f"rm --path {place}")
    elif name == "routing_strategy" and value not in STRATEGIES:
        near = providers.near(str(value), STRATEGIES) or "simple-shuffle"
        yield Problem(place, f"is not one of {', '.join(sorted(STRATEGIES))}", f"set --path {place} {near}")


def _callbacks(
    place: str, value: object, variables: Collection[str], release: providers.Release
) -> Iterator[Problem]:
    table = providers.load()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        yield Problem(place, "must be a list of names", f"set --path '{place}[0]' NAME")
        return
    for index, name in enumerate(value):
        entry = f"{place}[{index}]"
        needs = table.callbacks.get(name, providers.Callback())
        if "." in name:
            yield Problem(entry, f"cannot be {name}: it {NEEDS_CODE}", f"rm --path '{entry}'")
        elif needs.refused:
            yield Problem(entry, f"cannot be {name}: {needs.refused}", f"rm --path '{entry}'")
        elif name not in release.callbacks and not release.takes_more:
            newest = table.releases[-1]
            near = providers.near(name, release.callbacks)
            hint = f"; did you mean {near}?" if near else ""
            known = f": {newest.version} does" if name in newest.callbacks else hint
            fix = f"set --path '{entry}' {near}" if near else f"rm --path '{entry}'"
            yield Problem(entry, f"{name} is not a callback that LiteLLM {release.version} knows{known}", fix)
        for variable in needs.variables:
            if variable not in variables:
                what = f"{name} needs the variable {variable}, which is not set"
                yield Problem(entry, what, f"set {litellm_environment.set_arguments(variable)}")


def _others(settings: Mapping[str, Any], variables: Collection[str], *, counts: bool) -> Iterator[Problem]:
    """What must be so for LiteLLM to start and the edge to wait as long as it does.

    `counts` says whether the stack has a Redis for counters, beside which REDIS_HOST is refused (infra/redis.py).
    """
    seconds = settings.get("request_timeout", 1)
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 1 <= seconds <= LONGEST_SECONDS:
        what = f"is not a whole number of seconds from 1 to {LONGEST_SECONDS}"
        yield Problem("litellmSettings.request_timeout", what, "set --path litellmSettings.request_timeout 600")
    cache = settings.get("cache_params") or {}
    redis = settings.get("cache") is True and isinstance(cache, dict) and cache.get("type", "redis") == "redis"
    if redis and not cache.keys() & {"host", "url"} and not {"REDIS_HOST", "REDIS_URL"} & {*variables}:
        what, command = "the variable REDIS_HOST or REDIS_URL", "set --secret --path litellmEnvironment.REDIS_HOST …"
        if counts:
            what, command = "a host in cache_params", "set --path litellmSettings.cache_params.host HOST"
        yield Problem("litellmSettings.cache", f"needs {what}, or another type in cache_params", command)
