"""`llmctl status`: the stack at a glance. It changes nothing and asks no provider.

The gateway is asked over its own API, as any client does. The engine knows what runs, in which state, and what the
edge has counted. It is asked with the `docker` command, if it can be reached.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg

from app._errors import LLMError
from app._settings import Settings
from app._unreachable import KEY_FIX
from console import containers, litellm_check
from console.doctor import collation
from console.edge_statistics import Client, Statistics, statistics
from console.finding import Finding
from console.gateway_report import MODELS_FIX, GatewayError, ask
from console.programs import ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from console.gateway_report import Gateway


DATABASE_SECONDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What is known about the stack. It is well if nothing is wrong; what could not be seen counts as well."""

    at: datetime
    url: str
    stack: str | None
    """The stack's name, if its engine can be reached."""
    models: tuple[str, ...]
    versions: Mapping[str, str]
    """The versions by program: LiteLLM, HAProxy, PostgreSQL."""
    parts: tuple[containers.Part, ...]
    clients: tuple[Client, ...]
    edge: str | None
    """The edge whose counts are shown; on a Swarm each edge counts its own requests."""
    counted_since: datetime | None
    """Since when replicas and totals have been counted; clients have been counted since the edge's container was
    created."""
    wrong: tuple[str, ...]
    """The parts of the stack that are down, each with the command that shows more or fixes it."""
    unseen: tuple[str, ...]
    """What could not be seen, and why."""


def read() -> Status:
    """Look at the stack at LITELLM_URL. Raises only NotConfiguredError: other failures are in the status."""
    settings = Settings.load()
    settings.required_api_key()
    gateway, wrong = _gateway(settings)
    unseen: list[str] = []
    accepted = gateway is not None and gateway.refused is None
    stack, counted = found(settings, unseen, has_valid_key=accepted, answers=accepted)
    parts, edge = _parts(stack, counted), stack.edge if stack else None
    return Status(
        at=datetime.now(UTC),
        url=_url(settings),
        stack=stack.name if stack else None,
        models=gateway.models if gateway else (),
        versions=dict(_versions(gateway, stack, counted, unseen)),
        parts=parts,
        clients=counted.clients if counted else (),
        edge=edge.name if edge and counted else None,
        counted_since=counted.since if counted else None,
        wrong=(
            *wrong,
            *_sorting(settings),
            *_of_litellm(settings),
            *(stack.short if stack else ()),
            *(f"{part.name}: {part.state} ({part.look})" for part in parts if not part.up),
        ),
        unseen=tuple(unseen),
    )


def _gateway(settings: Settings) -> tuple[Gateway | None, list[str]]:
    """What the gateway says, and what is wrong with it."""
    try:
        gateway = ask(settings)
    except GatewayError as error:
        return None, [f"gateway: {error} ({error.fix})"]
    if gateway.refused is not None:
        return gateway, [f"key: the gateway refuses it with status {gateway.refused} ({KEY_FIX})"]
    if not gateway.models:
        return gateway, [f"models: none is served ({MODELS_FIX})"]
    return gateway, []


def _sorting(settings: Settings) -> list[str]:
    """What is wrong with the sort order of texts in the database. If it cannot be asked, it is shown as a part."""
    try:
        with psycopg.connect(
            settings.required_database_url(),
            connect_timeout=DATABASE_SECONDS,
            options=f"-c statement_timeout={DATABASE_SECONDS}s",
            autocommit=True,
        ) as connection:
            found = collation(connection)
    except (LLMError, psycopg.Error):
        return []
    return [f"{found.check}: {found.detail} ({found.fix})"] if found and found.status != "ok" else []


def _of_litellm(settings: Settings) -> list[str]:
    """What is wrong with LiteLLM's own database, as far as its server says."""
    if settings.litellm_database_url is None:
        return []
    found = litellm_check.of_server(settings.litellm_database_url.get_secret_value(), DATABASE_SECONDS)
    return [f"{each.check}: {each.detail} ({each.fix})" for each in found if each.status == "failure"]


def _url(settings: Settings) -> str:
    return str(settings.litellm_url).rstrip("/")


def down(*, answers: bool = False) -> Iterator[Finding]:
    """The parts that are down while the gateway may still answer, if the engine that `docker` uses runs the stack."""
    try:
        stack, counted = found(Settings.load(), [], answers=answers)
    except LLMError:
        return
    for part in _parts(stack, counted):
        if not part.up:
            yield Finding("parts", "warning", f"{part.name} is down: {part.state}", part.look)
    for each in stack.short if stack else ():
        yield Finding("parts", "warning", each)


def found(
    settings: Settings, unseen: list[str], *, has_valid_key: bool = True, answers: bool = False
) -> tuple[containers.Stack | None, Statistics | None]:
    """The stack at LITELLM_URL, whose edge publishes its port, and what that edge has counted.

    If the key is valid there, an edge with the same port that does not know the key belongs to another stack. So does
    one that is stopped, if the gateway was seen to answer. What cannot be seen is added to `unseen`. Raises
    NotConfiguredError without a key.
    """
    url, port, key = _url(settings), settings.litellm_url.port or 0, settings.required_api_key()
    try:
        stacks = containers.stacks(port)
    except (ProgramError, ValueError) as error:
        unseen.append(f"what runs, and its requests: {error}")
        return None, None
    for stack in stacks:
        counted, why = _counted(stack.edge, key)
        if answers and stack.is_off:
            continue
        if has_valid_key and counted is not None and counted.knows_key is False:
            continue
        unseen += [each for each in (stack.unseen, why) if each]
        return stack, counted
    which = f", but that of another stack than {url}" if stacks else ""
    unseen.append(
        f"what runs, and its requests: no edge on the engine that `docker` uses publishes port {port}{which} (if it "
        "was removed: ./pulumiw up --refresh; if it runs on another engine: set DOCKER_HOST)"
    )
    return None, None


def _counted(edge: containers.Part | None, key: str) -> tuple[Statistics | None, str]:
    """The statistics of an edge, or why there are none."""
    if edge is None or edge.container is None:
        return None, "requests: no edge runs on this engine"
    try:
        return statistics(edge.container, key), ""
    except (ProgramError, ValueError) as error:
        return None, f"requests: {edge.name} was asked, and {error}"


def _parts(stack: containers.Stack | None, counted: Statistics | None) -> tuple[containers.Part, ...]:
    """The parts of a stack, with what its edge has counted for them if it could be asked."""
    if stack is None or counted is None:
        return stack.parts if stack else ()
    return tuple(_with_traffic(part, stack.edge, counted) for part in stack.parts)


def _with_traffic(part: containers.Part, edge: containers.Part | None, counted: Statistics) -> containers.Part:
    """A part with what the edge has counted for it and says about it."""
    if part == edge:
        return replace(part, traffic=counted.traffic)
    if part.kind != containers.REPLICA:  # a part may have a former replica's address
        return part
    address = next((each for each in part.addresses if each in counted.replicas), "")
    part = replace(part, traffic=counted.replicas.get(address))
    if part.up and address in counted.down:
        return replace(part, state=f"{part.state}, but does not answer the edge", up=False)
    return part


def _versions(
    gateway: Gateway | None, stack: containers.Stack | None, counted: Statistics | None, unseen: list[str]
) -> Iterator[tuple[str, str]]:
    """Each program and its version, if it is known."""
    if gateway is not None and gateway.version:
        yield "LiteLLM", gateway.version
    if counted is not None:
        yield "HAProxy", counted.version
    for part in stack.parts if stack else ():
        if part.kind == containers.POSTGRES and part.up and part.container:
            try:
                yield "PostgreSQL", containers.postgres_version(part.container)
            except ProgramError as error:
                unseen.append(f"the version of PostgreSQL: {error}")
