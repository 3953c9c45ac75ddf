"""What LiteLLM's providers and callbacks need, by `litellm/providers.yaml`; no provider is named in code."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECT = Path(__file__).parent.parent
FILE = PROJECT / "litellm" / "providers.yaml"
RELEASES = PROJECT / "litellm" / "releases.yaml"
IMAGES = PROJECT / "images" / "litellm"
"""A folder for each release of LiteLLM whose image can be built here."""
VERSION = re.compile(r":(?:main-)?v?(\d+)\.(\d+)\.(\d+)")
"""As the tags of LiteLLM's images name a release."""
CALLBACKS = ("callbacks", "success_callback", "failure_callback", "service_callback")
"""Settings of LiteLLM that list callbacks."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """What models of a provider need; for a provider that is not in the file, nothing is known."""

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
    """How some entries of litellm_params look, as regular expressions."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Other entries of litellm_params that the page shows."""
    own_address: bool = False
    """Whether api_base is the account's own, and gets the account's key."""
    server: str | None = None
    """For a server of the team's own: a URL as example."""
    demo: str | None = None
    """The path under which the demo provider speaks its protocol; None where it does not."""
    placeholder: bool = False
    """Whether LiteLLM asks it with a key only, though it may want none."""
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Parts of a model's entry that a release of LiteLLM must be told, by release."""
    unknown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameters of a request that a release of LiteLLM loses, or sends on as nobody takes them, by release."""
    example: str = "MODEL"
    embedding: str | None = None
    """A model for vectors, as provider/model."""
    otherwise: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By release, which columns of the page's table do not hold, and what to do."""
    page: str = ""
    package: str | None = None
    """What a LiteLLM image must have for it, beside LiteLLM."""
    note: str = ""

    def has_account(self, parameters: Mapping[str, Any]) -> bool:
        """Whether the `litellm_params` of a model ask the provider itself, and no server of the team's own."""
        return "api_base" not in parameters or self.own_address


@dataclass(frozen=True, kw_only=True)
class Callback:
    """What a callback needs."""

    variables: tuple[str, ...] = ()
    package: str | None = None
    refused: str | None = None
    """Why it cannot be used here."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """What a release of LiteLLM needs and knows."""

    version: str
    prefixes: frozenset[str]
    callbacks: frozenset[str]
    router_settings: frozenset[str]
    tag: str
    """That of the official image."""
    image_mb: int
    rest_mb: int
    """The memory of a replica at rest, in MiB."""
    database_mb: int
    """What its database takes in addition, in MiB: the Python client and the query engine."""
    start_seconds: float
    """Until it answers, on two cores."""
    known_for: tuple[str, ...]
    takes_more: bool = False
    """Whether it is newer than what is known, or of no known version: then nothing is refused as unknown."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The file's content."""

    providers: Mapping[str, Provider]
    """By prefix."""
    compatible: Provider
    """A server of the team's own that speaks a protocol which many do."""
    compatible_prefix: str
    callbacks: Mapping[str, Callback]
    releases: tuple[Release, ...]
    """From the oldest to the newest."""

    def of(self, model: str) -> Provider:
        """The provider of a LiteLLM model, as provider/model."""
        return self.providers.get(model.partition("/")[0], Provider())

    @property
    def keys(self) -> frozenset[str]:
        """Every variable that an account at a provider is asked with."""
        return frozenset(
            name for it in self.providers.values() for name in (it.key, *it.variables) if name is not None
        )

    def release(self, image: str) -> Release:
        """What the LiteLLM of an image takes, by its tag: of one that was not run here, as much as may be."""
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
    """What of a LiteLLM config needs a Python package that the image built here in place of `image` does not have.

    By what needs it: the name of a model or a callback. Empty where none is built for that release.
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
    """The name that a mistyped one is most like; empty if none is close."""
    return next(iter(difflib.get_close_matches(name, sorted(names), n=1)), "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _frozen(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
