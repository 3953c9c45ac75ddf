"""The steps of a deployment: how the state names them, and when one is taken again."""

from __future__ import annotations

import importlib
import inspect
import pickletools
from base64 import b64decode
from typing import Any

import pytest
from pulumi.dynamic import ResourceProvider
from pulumi.dynamic.dynamic import serialize_provider

import infra.stack
from infra.deploy_step import DeployStep

STORED = {
    ("infra.client_limits", "_Provider"),
    ("infra.litellm_database", "_LoginProvider"),
    ("infra.litellm_database", "_SchemaProvider"),
    ("infra.migration", "_Provider"),
    ("infra.placement.guard", "_EngineGuardProvider"),
    ("infra.placement.health", "_Provider"),
    ("infra.placement.live_files", "_Provider"),
    ("infra.placement.services", "_Provider"),
    ("infra.postgres", "_RolesProvider"),
    ("infra.postgres", "_SaltKeyProvider"),
    ("infra.secrets", "_ConstantProvider"),
    ("infra.secrets", "_Provider"),
}
"""Module and class of each provider in the states of stacks that run. Add to these, and never change one."""


class Step(DeployStep):
    id = "step"
    inputs = ("file", "server")
    replacing = ("server",)

    def run(self, props: dict[str, Any], olds: dict[str, Any]) -> dict[str, Any]:
        return {**props, "before": olds}


def providers(base: type[ResourceProvider]) -> set[type[ResourceProvider]]:
    """The providers of `infra` that stacks can have."""
    below = set(base.__subclasses__()).union(*map(providers, base.__subclasses__()))
    return {each for each in below if each.__module__.startswith(infra.__name__) and not each.__subclasses__()}


def test_a_state_names_each_provider_as_it_always_did() -> None:
    """An existing stack neither loses a resource nor sees a change when the code behind its providers moves."""
    stored = set()
    for provider in providers(ResourceProvider):
        pickled = b64decode(serialize_provider(provider()))
        module, name = (text for _, text, _ in pickletools.genops(pickled) if isinstance(text, str))
        assert getattr(importlib.import_module(module), name) is provider
        stored.add((module, name))
    assert stored == STORED


def test_each_provider_leaves_what_is_no_secret_readable() -> None:
    assert all(provider.serialize_as_secret_always is False for provider in providers(ResourceProvider))


def test_each_provider_is_a_step() -> None:
    assert providers(ResourceProvider) == providers(DeployStep)
    assert not any(inspect.isabstract(provider) for provider in providers(DeployStep))


@pytest.mark.parametrize(
    ("change", "changes", "replaces"),
    [({}, False, []), ({"seconds": 2}, False, []), ({"file": "b"}, True, []), ({"server": "b"}, True, ["server"])],
)
def test_when_a_step_is_taken_again(change: dict[str, object], changes: bool, replaces: list[str]) -> None:  # noqa: FBT001
    olds = {"file": "a", "server": "a", "seconds": 1}
    diff = Step().diff("step", olds, {**olds, **change})
    assert (diff.changes, diff.replaces) == (changes, replaces)


def test_a_step_knows_what_it_did_the_last_time() -> None:
    created = Step().create({"file": "a"})
    assert (created.id, created.outs) == ("step", {"file": "a", "before": {}})
    assert Step().update("step", {"file": "a"}, {"file": "b"}).outs == {"file": "b", "before": {"file": "a"}}
