"""What LiteLLM's database costs per request: stacks with it compared with one without, on both releases."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psycopg

from benchmarks import gateway
from benchmarks.caller import load
from benchmarks.containers import ContainerMeter
from benchmarks.measure import Readings, alternating
from benchmarks.streams import NEWEST, PINNED, stand_in
from tests.integration.test_virtual_keys import key_of
from tests.stacks import deployed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import docker

    from benchmarks.gateway import Contender
    from benchmarks.measure import Comparison
    from tests.stacks import Deployment
    from toolchain.progress import Step
    from toolchain.recipes import Recipe

CONCURRENT = (1, 16, 64)
SECONDS = 20
"""How long callers ask in each round and at each point: LiteLLM writes spending every 10 to 15 seconds."""
REPLICAS = 2
MEMORY_MB = {PINNED.version: 1024, NEWEST.version: 1600}
"""A replica's memory: what the documents recommend with a database."""
KEYS, ROWS = 1_000, 100_000

WITHOUT, CLIENT, VIRTUAL, FILLED = (
    "no database",
    "a client of the stack config",
    "a virtual key",
    f"a virtual key beside {KEYS:,} keys and {ROWS:,} answers",
)

MADE_KEYS = """
INSERT INTO "LiteLLM_VerificationToken" (token, key_alias, spend, models, aliases, config, permissions, metadata,
                                         model_spend, model_max_budget, allowed_cache_controls)
SELECT encode(sha256(('key ' || n)::bytea), 'hex'), 'key-' || n, 0.01, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'
FROM generate_series(1, %s) AS n
"""
MADE_ANSWERS = """
INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens,
                                 completion_tokens, "startTime", "endTime", model, metadata)
SELECT 'answer-' || n, 'acompletion', encode(sha256(('key ' || 1 + n %% %s)::bytea), 'hex'), 0.00001, 20, 10, 10,
       now() - n * interval '10 seconds', now() - n * interval '10 seconds', 'gpt-4o', '{}'
FROM generate_series(1, %s) AS n
"""


def fill(url: str) -> None:
    """Fill LiteLLM's database with keys, and with rows of answers from the last days."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(MADE_KEYS, (KEYS,))
        connection.execute(MADE_ANSWERS, (KEYS, ROWS))
        connection.execute("ANALYZE")


def configure(made: Deployment, recipe: Recipe, *, database: bool) -> None:
    """A stack of a release, with LiteLLM's database or without."""
    made.set(
        replicas=REPLICAS,
        drainSeconds=gateway.DRAIN_SECONDS,
        litellmImage=stand_in(made, recipe),
        litellmMemoryMb=MEMORY_MB[recipe.version],
        litellmDatabase=str(database).lower(),
    )


def of(made: Deployment, name: str, key: str | None = None) -> Contender:
    """A stack as a contender, with its Postgres; `key` replaces the app's key."""
    usual = gateway.of_stack(made, REPLICAS)
    postgres, demo = (ContainerMeter(made.container(part)) for part in ("postgres", "demo"))
    headers = {"authorization": f"Bearer {key}"} if key else usual.target.headers
    return replace(
        usual,
        name=name,
        target=replace(usual.target, headers=headers),
        parts=(postgres, *usual.parts),
        beside=(demo,),
    )


def measure(contender: Contender, readings: Readings, release: str, step: Step) -> None:
    """A round of one contender, at every point."""
    for concurrent in CONCURRENT:
        step.note(f"LiteLLM {release}, {contender.name}, {concurrent} at once")
        cpu = contender.cpu_seconds()
        seen = asyncio.run(load([contender.target], concurrent, SECONDS))
        cpu = contender.cpu_seconds() - cpu
        gateway.read(readings, seen, contender=contender.name, mode=mode(release), concurrent=concurrent, cpu=cpu)
    readings.add(f"{gateway.MEMORY}, {mode(release)}", contender.name, "after the load", contender.memory_mb())


def mode(release: str) -> str:
    """How the tables name a release."""
    return f"LiteLLM {release}"


def _contenders(folder: Path, recipe: Recipe, held: ExitStack, step: Step) -> Iterator[Contender]:
    for number, name in enumerate((WITHOUT, CLIENT, FILLED)):
        step.note(f"pulumi up, LiteLLM {recipe.version}, {name}")
        own = folder / str(number)
        own.mkdir()
        has_database = name != WITHOUT
        made = held.enter_context(
            deployed(own, lambda made, has=has_database: configure(made, recipe, database=has))  # type: ignore[misc]
        )
        if name == FILLED:
            fill(made.outputs["litellmDatabaseUrl"])
            made_one = of(made, name, key_of(made)[0])
        else:
            made_one = of(made, name)
        yield made_one
        if name == CLIENT:
            yield of(made, VIRTUAL, key_of(made)[0])
        made_one.pause()
        held.callback(made_one.resume)  # so that its resources can be removed in order


def run(engine: docker.DockerClient, rounds: int, step: Step) -> list[Comparison]:
    """Measure one release after the other: its stacks in turn, while all others are paused."""
    del engine
    readings = Readings()
    for recipe in (PINNED, NEWEST):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
            contenders = list(_contenders(Path(folder), recipe, held, step))
            for contender in alternating(rounds, contenders):
                with contender.awake():
                    measure(contender, readings, recipe.version, step)
    return compared(readings)


def compared(readings: Readings) -> list[Comparison]:
    """The tables of all readings."""
    quantities: dict[str, tuple[str, Literal["lower", "higher"]]] = {
        gateway.RATE: ("a second", "higher"),
        gateway.P50: ("ms", "lower"),
        gateway.P99: ("ms", "lower"),
        gateway.CPU: ("ms a request", "lower"),
        gateway.CALLERS: ("% of a core", "lower"),
        gateway.FAILED: ("in all of a round", "lower"),
        gateway.MEMORY: ("MiB", "lower"),
    }
    return [
        readings.comparison(
            f"{quantity}, {mode(recipe.version)}",
            unit=unit,
            points="" if quantity == gateway.MEMORY else "requests at once",
            better=better,
            baseline=WITHOUT,
            contenders=(WITHOUT, CLIENT, VIRTUAL, FILLED),
        )
        for quantity, (unit, better) in quantities.items()
        for recipe in (PINNED, NEWEST)
    ]
