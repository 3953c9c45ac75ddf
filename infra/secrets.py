"""Secrets that nobody has to make up: generated once, kept encrypted in the state, regenerated on demand.

A `RotatingSecret` has a current and a previous value, so that both can be valid while clients change over. It makes
a new one when its version grows; a value set in the stack config wins, and is rotated by setting another one. The
previous value is forgotten at the next rotation, or when `retire` grows.
"""

from __future__ import annotations

import secrets
from typing import Any, Literal

import pulumi
from pulumi.dynamic import CheckFailure, CheckResult, CreateResult, Resource

from infra.deploy_step import DeployStep, GuardProvider

Kind = Literal["key", "password", "identity"]

OUTPUTS = ("value", "previous", "generation")
BYTES = {"key": 32, "password": 32, "identity": 8}
SETTINGS = {"version": "secretVersions", "retire": "retirePrevious"}
"""The numbers that may only grow, with their names in the stack config."""
PREFIXES = {"key": "sk-", "password": "", "identity": ""}


class _Provider(DeployStep):
    inputs = ("version", "retire", "configured", "kind")

    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        # The version number is for generated values. It has no effect beside your own value: the settings refuse it
        # there.
        counted = ("retire",) if news["configured"] else ("version", "retire")
        failures = [
            CheckFailure(name, f"{SETTINGS[name]} cannot go back from {int(olds[name])} to {int(news[name])}")
            for name in counted
            if news[name] < olds.get(name, 0)
        ]
        return CheckResult(news, failures)

    def create(self, props: dict[str, Any]) -> CreateResult:
        value = props["configured"] or _generate(props["kind"])
        return CreateResult(secrets.token_hex(8), {**props, "value": value, "previous": "", "generation": 1})

    def run(self, props: dict[str, Any], olds: dict[str, Any]) -> dict[str, Any]:
        value = olds["value"]
        if props["configured"]:
            value = props["configured"]
        elif props["version"] > olds["version"]:
            value = _generate(props["kind"])
        rotated = value != olds["value"]
        previous = olds["value"] if rotated else olds["previous"]
        if props["retire"] > olds.get("retire", 0):
            previous = ""
        return {**props, "value": value, "previous": previous, "generation": olds["generation"] + int(rotated)}


def _generate(kind: Kind) -> str:
    return PREFIXES[kind] + secrets.token_hex(BYTES[kind])


class RotatingSecret(Resource, module="secrets", name="RotatingSecret"):
    """A secret with its current and previous value.

    Creates: nothing outside the state. Type token: `pulumi-python:dynamic/secrets:RotatingSecret`.
    """

    value: pulumi.Output[str]
    previous: pulumi.Output[str]
    """The value before the last rotation; empty before the first, and once it is retired."""
    generation: pulumi.Output[int]
    """How many values there have been, from 1."""

    def __init__(  # noqa: PLR0913 -- all by name
        self,
        name: str,
        *,
        kind: Kind,
        version: int = 1,
        retire: int = 0,
        configured: str | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        hidden = [] if kind == "identity" else ["value", "previous", "configured"]
        super().__init__(
            _Provider(),
            name,
            {
                "kind": kind,
                "version": version,
                "retire": retire,
                "configured": pulumi.Output.secret(configured) if configured else "",
                **dict.fromkeys(OUTPUTS),
            },
            pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(additional_secret_outputs=hidden)),
        )


class _ConstantProvider(GuardProvider):
    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        of, value = news["of"], news["value"]
        # A state from when only one value was kept has no `values`, and an even older one has no `of` either.
        first = {olds.get("of", news["first"]): olds["value"]} if olds else {}
        values = olds.get("values", first)
        known = values.get(of, value)
        failures = [] if known == value else [CheckFailure("value", f"{of} has {known}: {news['refusal']}")]
        return CheckResult({**news, "values": {**values, of: value}}, failures)


class ImmutableValue(Resource, module="secrets", name="Constant"):  # the name in existing states
    """A value for each of several things that must not change: a preview that changes one fails with `refusal`.

    Creates: nothing outside the state. Type token: `pulumi-python:dynamic/secrets:Constant`.
    """

    def __init__(  # noqa: PLR0913 -- all by name
        self,
        name: str,
        value: str,
        *,
        of: str,
        first: str,
        refusal: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`of` names the thing that has `value` now, `first` the one that is meant by a state that names none."""
        super().__init__(
            _ConstantProvider(), name, {"value": value, "of": of, "first": first, "refusal": refusal}, opts
        )
