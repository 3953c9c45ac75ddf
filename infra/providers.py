"""What LiteLLM's providers and callbacks need, by `litellm/providers.yaml`; no provider is named in code."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from infra import PROJECT

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = PROJECT / "litellm" / "providers.yaml"
RELEASES = PROJECT / "litellm" / "releases.yaml"
IMAGES = PROJECT / "images" / "litellm"
"""A folder for each release of LiteLLM whose image can be built here."""
VERSION = re.compile(r":(?:main-)?v?(\d+)\.(\d+)\.(\d+)")
"""How the tags of LiteLLM's images name a release."""
CALLBACKS = ("callbacks", "success_callback", "failure_callback", "service_callback")
"""Settings of LiteLLM that list callbacks."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """What models of a provider need. For a provider that is not in the file, nothing is known."""

    title: str = ""
    """Its name on the page; empty if it is not on the page."""
    key: str | None = None
    """The variable with its API key, if an entry names none."""
    key_or: tuple[str, ...] = ()
    """Entries of litellm_params that replace the key."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Other variables, each with what to put there."""
    files: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, Any] = field(default_factory=dict)
    """Entries of litellm_params that must be there, each with an example."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """The format of some entries of litellm_params, as regular expressions."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Other entries of litellm_params that the page shows."""
    own_address: bool = False
    """Whether api_base is the account's own, and gets the account's key."""
    server: str | None = None
    """For the team's own server: an example URL."""
    demo: str | None = None
    """The path under which the demo provider speaks its protocol; None if it does not."""
    placeholder: bool = False
    """Whether LiteLLM requires a key for it, even if the server needs none."""
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Parts of a model's entry that a release of LiteLLM must be told, by release."""
    unknown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By release, parameters of a request that LiteLLM loses, or passes on in a form that the provider does not
    accept."""
    example: str = "MODEL"
    embedding: str | None = None
    """An embedding model, as provider/model."""
    otherwise: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By release, which columns of the page's table are not true for it, and what to do."""
    page: str = ""
    package: str | None = None
    """The Python package that a LiteLLM image needs for it, beside LiteLLM."""
    note: str = ""

    def has_account(self, parameters: Mapping[str, Any]) -> bool:
        """Whether a model's `litellm_params` lead to the provider itself, and not to the team's own server."""
        return "api_base" not in parameters or self.own_address


@dataclass(frozen=True, kw_only=True)
class Callback:
    """What a callback needs."""

    variables: tuple[str, ...] = ()
    package: str | None = None
    refused: str | None = None
    """Why it cannot be used here; empty if it can."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """What a release of LiteLLM needs and knows."""

    version: str
    prefixes: frozenset[str]
    callbacks: frozenset[str]
    router_settings: frozenset[str]
    tag: str
    """The Python version of the official image."""
    image_mb: int
    rest_mb: int
    """The memory of a replica at rest, in MiB."""
    database_mb: int
    """What its database needs in addition, in MiB: the Python client and the query engine."""
    start_seconds: float
    """How long it takes to start, on two cores."""
    known_for: tuple[str, ...]
    takes_more: bool = False
    """Whether it is newer than the known releases, or has no known version: then nothing is refused as unknown."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The file's content."""

    providers: Mapping[str, Provider]
    """The known providers, by prefix."""
    compatible: Provider
    """The team's own server, with a protocol that many servers speak."""
    compatible_prefix: str
    callbacks: Mapping[str, Callback]
    releases: tuple[Release, ...]
    """The known releases, from the oldest to the newest."""

    def of(self, model: str) -> Provider:
        """The provider of a LiteLLM model, as provider/model."""
        return self.providers.get(model.partition("/")[0], Provider())

    @property
    def keys(self) -> frozenset[str]:
        """Every variable with the key of an account at a provider."""
        return frozenset(
            name for it in self.providers.values() for name in (it.key, *it.variables) if name is not None
        )

    def release(self, image: str) -> Release:
        """What the LiteLLM of an image needs, from its tag; for one that was not run here, the most it may need."""
        match = VERSION.search(image)
        newest = self.releases[-1]
        if match is None:
            return replace(newest, takes_more=True)
        version = ".".join(match.groups())
        ran = next((it for it in self.releases if it.version == version), None)
        return ran or replace(newest, takes_more=_numbers(version) > _numbers(newest.version))


@cache
def load() -> Table:
    """Return the table."""
    content: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    releases: list[Release] = []
    names = ("prefixes", "callbacks", "router_settings")
    known: dict[str, Any] = dict.fromkeys(names, frozenset())
    for version, told in yaml.safe_load(RELEASES.read_text(encoding="utf-8"))["releases"].items():
        known = {name: known[name] | set(told[name]) for name in names}
        releases.append(Release(version=version, **{**_frozen(told), **known}))
    compatible = {**content["compatible"]}
    return Table(
        compatible_prefix=compatible.pop("prefix"),
        compatible=Provider(**_frozen(compatible)),
        providers={prefix: Provider(**_frozen(it)) for prefix, it in content["providers"].items()},
        callbacks={name: Callback(**_frozen(it)) for name, it in content["callbacks"].items()},
        releases=tuple(releases),
    )


def missing_packages(image: str, config: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a LiteLLM config that need a Python package which the image built here for `image` does not have.

    The keys are the names of models and callbacks. Empty if no image is built here for that release.
    """
    match = VERSION.search(image)
    lock = IMAGES / (".".join(match.groups()) if match else "") / "requirements.lock"
    if not lock.is_file():
        return {}
    there = set(re.findall(r"^([a-z0-9][\w.-]*)==", lock.read_text(encoding="utf-8"), re.MULTILINE))
    table = load()
    wanted = {
        model["model_name"]: table.of(model["litellm_params"]["model"]).package for model in config["model_list"]
    }
    settings = config.get("litellm_settings") or {}
    for name in (name for key in CALLBACKS for name in settings.get(key) or ()):
        wanted[name] = table.callbacks.get(name, Callback()).package
    return {name: package for name, package in wanted.items() if package and package not in there}


def near(name: str, names: frozenset[str]) -> str:
    """The name that is closest to a mistyped one; empty if none is close."""
    return next(iter(difflib.get_close_matches(name, sorted(names), n=1)), "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _frozen(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
