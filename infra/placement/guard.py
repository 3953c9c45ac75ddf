"""Keeps a stack on its engine or Swarm: with another `dockerHost` the provider would create a second, empty one."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pulumi
from pulumi.dynamic import CheckFailure, CheckResult, Resource

from engine.connection import UNREACHABLE, connect
from infra.deploy_step import GuardProvider
from infra.placement.leftovers import remove_leftovers

MOVE = (
    "To move the stack, create another one there and restore the data: `llmctl backup`, `./pulumiw stack init "
    "NAME` with its configuration and the new dockerHost, `./pulumiw up`, `llmctl restore FILE`, then `./pulumiw "
    "destroy` of this one (docs/machines.md). To keep it where it is: ./pulumiw config set"
)


class _EngineGuardProvider(GuardProvider):
    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        if not olds or olds["host"] == news["host"]:
            return CheckResult(news, [])
        try:
            there = _has(news["host"], f"{news['label']}={news['identity']}")
        except UNREACHABLE as error:
            there, why = False, f"{news['host']} cannot tell whether this stack is there ({error})"
        else:
            why = f"this stack is on {olds['host']}, and nothing of it is on {news['host']}"
        failure = CheckFailure("host", f"{why}. {MOVE} --stack {news['stack']} dockerHost {olds['host']}")
        return CheckResult(news, [] if there else [failure])

    def delete(self, id: str, props: dict[str, Any]) -> None:  # noqa: A002, ARG002
        """Remove what killed `up`s left on a Swarm: everything else of the stack is gone by now."""
        remove_leftovers(props["host"], f"{props['label']}={props['identity']}")


def _has(host: str, label: str) -> bool:
    """Whether an engine, or its Swarm, has something with a label: two addresses may name the same engine."""
    labelled: dict[str, Any] = {"label": label}
    with closing(connect(host)) as engine:
        return bool(
            engine.containers.list(all=True, filters=labelled)
            or engine.volumes.list(filters=labelled)
            or engine.networks.list(filters=labelled)
        )


class EngineGuard(Resource, module="engine", name="EngineGuard"):
    """Refuses, in the preview, a `dockerHost` that leads to another engine than the stack's own.

    It is deleted last, and then removes what killed `up`s left.

    Creates: nothing outside the state. Type token: `pulumi-python:dynamic/engine:EngineGuard`.
    """

    def __init__(self, name: str, *, host: str, label: str, identity: pulumi.Output[str]) -> None:
        """`label` is the label whose value is the stack's `identity` on everything that belongs to the stack."""
        props = {"host": host, "label": label, "identity": identity, "stack": pulumi.get_stack()}
        super().__init__(_EngineGuardProvider(), name, props)
