"""Budgets and limits of the clients of the stack config, in LiteLLM's database."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import ReadResult, Resource

from infra import programs
from infra.deploy_step import DeployStep, say
from infra.placement.inside import InsideError, NobodyError, printed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.gateway import Gateway
    from infra.limits import ClientLimits
    from infra.litellm_database import LiteLLMDatabase
    from infra.settings import Settings
    from infra.workload import Placement

PROGRAM = ("python3", "-I", programs.RUN, "apply_limits")
LIMITS = {
    "rpm": "rpm_limit",
    "tpm": "tpm_limit",
    "budget": "max_budget",
    "budgetDuration": "budget_duration",
    "models": "models",
}
"""LiteLLM's name for each limit of the stack config."""
WHOLE = ("rpm", "tpm")
"""The limits that are whole numbers: Pulumi passes every number as a float."""


def build(
    settings: Settings, placement: Placement, database: LiteLLMDatabase | None, replicas: Gateway
) -> list[LimitsOfClient]:
    """The limits of each client that has some in the settings, applied once the replicas are healthy."""
    if database is None:
        return []
    opts = pulumi.ResourceOptions(depends_on=[replicas], deleted_with=replicas)
    return [
        LimitsOfClient(
            f"client-limits-{client}",
            client=client,
            limits=limits,
            database=database.instance,
            inside=placement.inside("litellm"),
            opts=opts,
        )
        for client, limits in settings.client_limits.items()
    ]


def doubts(settings: Settings) -> Iterator[str]:
    """What a preview warns of."""
    counted = [client for client, limits in settings.client_limits.items() if limits.rpm or limits.tpm]
    if counted and settings.replicas > 1 and not settings.redis:
        # On a Swarm each node's edge counts by itself (preview_warnings).
        exact = " clientRpm is exact without it." if settings.placement == "docker" else ""
        yield (
            f"clientLimits: each of the {settings.replicas} replicas counts the rpm and tpm of {', '.join(counted)} "
            f"by itself, so up to {settings.replicas} times as much gets through. Have them count together: "
            f"./pulumiw config set --stack {pulumi.get_stack()} redis true.{exact}"
        )


class _Provider(DeployStep):
    id = "client-limits"
    inputs = ("client", "database", "inside", *LIMITS)

    def run(self, props: dict[str, Any], olds: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        try:
            has_database, _ = _asked(props, _wanted(props))
        except InsideError as error:
            raise RuntimeError(
                f"the limits of client {props['client']} were not applied: {error}. The next `up` tries again."
            ) from None
        if not has_database:
            raise RuntimeError(f"the limits of client {props['client']} were not applied: LiteLLM has no database")
        return props

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """The client's present limits; those of the state if no replica can tell, so that it does not look gone."""
        try:
            has_database, limits = _asked(props)
        except InsideError as error:
            say(f"the limits of client {props['client']} could not be read, and are taken to be as before: {error}")
            return ReadResult(id_, props, dict(props))
        if not has_database:
            say(f"the limits of client {props['client']} are taken to be as before: LiteLLM has no database")
            return ReadResult(id_, props, dict(props))
        own = {name: value for name, value in props.items() if name not in LIMITS}
        now = {name: limits[key] for name, key in LIMITS.items() if limits and limits[key] is not None}
        return ReadResult(id_, {**own, **now}, {**own, **now})

    def delete(self, id_: str, props: dict[str, Any]) -> None:  # noqa: ARG002
        """Remove the limits. The key stays, with what it has spent."""
        what = f"the limits of client {props['client']} stay in LiteLLM's database"
        try:
            has_database, _ = _asked(props, dict.fromkeys(LIMITS.values()))
        except NobodyError as error:  # a `destroy` would end here for good, and limits that stay let nobody ask more
            say(f"{what}: {error}")
            return
        except InsideError as error:
            raise RuntimeError(f"{what}: {error}. The next `up` tries again.") from None
        if not has_database:
            say(f"{what}, which LiteLLM does not use any more")


def _wanted(props: Mapping[str, Any]) -> dict[str, Any]:
    """The limits by LiteLLM's names; null for no limit."""
    given = {key: props.get(name) for name, key in LIMITS.items()}
    return {key: int(value) if value and key in map(LIMITS.get, WHOLE) else value for key, value in given.items()}


def _asked(props: Mapping[str, Any], limits: Mapping[str, Any] | None = None) -> tuple[bool, dict[str, Any] | None]:
    """Whether LiteLLM has a database, and the limits of the client's key there, after `limits` are set if given."""
    arguments = [] if limits is None else [json.dumps(limits)]
    answer = json.loads(printed(props["inside"], [*PROGRAM, props["client"], *arguments]))
    return answer["database"], answer["limits"]


class LimitsOfClient(Resource, module="client_limits", name="ClientLimits"):
    """The limits of a client of the stack config, as LiteLLM counts them. Deleting it removes the client's limits.

    Type token: `pulumi-python:dynamic/client_limits:ClientLimits`.
    """

    def __init__(  # noqa: PLR0913 -- all are needed, all by name
        self,
        name: str,
        *,
        client: str,
        limits: ClientLimits,
        database: pulumi.Input[str],
        inside: Mapping[str, pulumi.Input[Any]],
        opts: pulumi.ResourceOptions,
    ) -> None:
        """`database` differs for each database that LiteLLM may have; `inside` says where its replicas are."""
        given = limits.model_dump(by_alias=True, exclude_none=True)
        if "models" in given:
            given["models"] = list(given["models"])
        super().__init__(_Provider(), name, {"client": client, "database": database, "inside": inside, **given}, opts)
