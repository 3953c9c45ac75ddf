"""Keeps a stack on the engine, or the Swarm, that it is on: the provider would make a second, empty one elsewhere."""

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
        """Take away what killed `up`s have left on a Swarm: all else of the stack is gone by now."""
        remove_leftovers(props["host"], f"{props['label']}={props['identity']}")


def _has(host: str, label: str) -> bool:
    """Whether an engine, or its Swarm, has something with a label: another way to the same one may be named."""
    labelled: dict[str, Any] = {"label": label}
    with closing(connect(host)) as engine:
        return bool(
            engine.containers.list(all=True, filters=labelled)
            or engine.volumes.list(filters=labelled)
            or engine.networks.list(filters=labelled)
        )


class EngineGuard(Resource, module="engine", name="EngineGuard"):
    """Refuses, in the preview, a `dockerHost` that leads to another engine than the one that the stack is on.

    Deleted last, it takes away what killed `up`s have left.

    Creates: nothing outside the state. Type token: `pulumi-python:dynamic/engine:EngineGuard`.
    """

    def __init__(self, name: str, *, host: str, label: str, identity: pulumi.Output[str]) -> None:
        """`label` is the one whose value is the stack's `identity` on all that is the stack's."""
        props = {"host": host, "label": label, "identity": identity, "stack": pulumi.get_stack()}
        super().__init__(_EngineGuardProvider(), name, props)
