"""What gateways cost on the same machine, with the same provider: the plan, this stack in three sizes, a peer."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.caller import Target, load, settle, side_by_side
from benchmarks.containers import ContainerMeter, Meter, ProcessMeter, address, demo_provider, network
from benchmarks.measure import Readings, alternating, percentile
from benchmarks.peer import VERSION, NotAvailableError, portkey
from benchmarks.plan import plan
from infra import edge, gateway
from infra.workload import LOOPBACK
from tests.load import MESSAGES
from tests.stacks import deployed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import docker

    from benchmarks.caller import Load
    from benchmarks.measure import Comparison
    from tests.stacks import Deployment
    from toolchain.progress import Step

REPLICAS = (1, 2, 4)
CONCURRENT = (1, 4, 16, 64, 256)
SECONDS = 1.0
"""How long callers ask a gateway, in each round and at each point."""
TARGETS_AT, TIMES = 16, 3
"""The number of requests at once for which there are targets, and how often a round measures there: a single pause of
a gateway decides the p99 of one second."""
PAIRS = 150
"""Requests for each way, in a round that measures what the edge adds."""
DRAIN_SECONDS = 5

BODY: dict[str, object] = {"model": "gpt-4o", "messages": MESSAGES}
MODES = {"plain": BODY, "streamed at once": {**BODY, "stream": True}}
"""The demo provider sends the ten chunks of a stream at once; benchmarks/streams.py has a provider with a pace."""
PLAN, PEER = "the plan", f"Portkey {VERSION}"
RATE, P50, P99, CPU, FAILED, CALLERS = (
    "requests answered",
    "p50",
    "p99",
    "CPU time of the gateway",
    "requests failed",
    "CPU time of the callers",
)
MEMORY, ADDED = "memory of the gateway", "one caller's p50"
DIRECT, THROUGH, PUBLISHED = "the replica itself", "through the edge", "through the edge's published port"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A gateway that is measured."""

    name: str
    target: Target
    parts: tuple[Meter, ...]
    """Its containers, in the order in which they resume after a pause."""
    beside: tuple[Meter, ...] = ()
    """What else it needs: the provider, a database."""

    def cpu_seconds(self) -> float:
        with ThreadPoolExecutor(len(self.parts)) as threads:  # an engine takes up to a second to answer
            return float(sum(threads.map(lambda part: part.cpu_seconds(), self.parts)))

    def memory_mb(self) -> float:
        return sum(part.memory_mb() for part in self.parts)

    def pause(self) -> None:
        for each in (*reversed(self.parts), *self.beside):
            each.pause()

    def resume(self) -> None:
        for each in (*self.beside, *self.parts):
            each.resume()

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run during the block, and none of the others."""
        self.resume()
        try:
            asyncio.run(settle(self.target))
            yield
        finally:
            self.pause()


def size(replicas: int) -> str:
    """The name of a stack with this many replicas."""
    return f"this stack, {replicas} replica{'s' if replicas > 1 else ''}"


def parts_of(replicas: int) -> list[str]:
    return [f"litellm-{number}" for number in range(1, replicas + 1)] if replicas > 1 else ["litellm"]


def of_stack(made: Deployment, replicas: int) -> Contender:
    answering = [*parts_of(replicas), "edge"]
    return Contender(
        name=size(replicas),
        target=Target(
            url=made.outputs["litellmUrl"].replace("localhost", LOOPBACK),
            headers={"authorization": f"Bearer {made.outputs['litellmApiKey']}"},
            body=BODY,
        ),
        parts=tuple(ContainerMeter(made.container(part)) for part in answering),
        beside=tuple(ContainerMeter(made.container(part)) for part in ("postgres", "demo")),
    )


def sized(replicas: int) -> Callable[[Deployment], None]:
    return lambda made: made.set(replicas=replicas, drainSeconds=DRAIN_SECONDS)


def measure(contender: Contender, readings: Readings, step: Step) -> None:
    """A round of one gateway, at every point."""
    for mode, body in MODES.items():
        target = replace(contender.target, body=body)
        for concurrent in [each for each in CONCURRENT for _ in range(TIMES if each == TARGETS_AT else 1)]:
            step.note(f"{contender.name}, {mode}, {concurrent} at once")
            cpu = contender.cpu_seconds()
            seen = asyncio.run(load([target], concurrent, SECONDS))
            cpu = contender.cpu_seconds() - cpu
            read(readings, seen, contender=contender.name, mode=mode, concurrent=concurrent, cpu=cpu)
    readings.add(MEMORY, contender.name, "after the load", contender.memory_mb())


def read(  # noqa: PLR0913 -- all by name
    readings: Readings, seen: Load, *, contender: str, mode: str, concurrent: int, cpu: float
) -> None:
    """Record the figures of a load; a gateway that answered nothing has no times."""
    figures = {
        RATE: seen.per_second,
        FAILED: len(seen.failures),
        CPU: 1000 * cpu / len(seen.answers),
        CALLERS: 100 * seen.own_cpu_seconds / seen.seconds,
    }
    if seen.good:
        figures |= {P50: 1000 * percentile(seen.good, 50), P99: 1000 * percentile(seen.good, 99)}
    for quantity, value in figures.items():
        readings.add(f"{quantity}, {mode}", contender, concurrent, value)


def ways_in(made: Deployment) -> dict[str, Target]:
    """The ways to a stack's only replica: directly, and through the edge."""
    published = of_stack(made, 1).target
    return {
        DIRECT: replace(
            published,
            url=f"http://{address(made.container('litellm'))}:{gateway.PORT}",
            headers={"authorization": f"Bearer {made.secret('master-key')}"},
        ),
        THROUGH: replace(published, url=f"http://{address(made.container('edge'))}:{edge.PORT}"),
        PUBLISHED: published,
    }


def measure_ways(ways: dict[str, Target], readings: Readings) -> None:
    """A round of one caller, who uses each way in turn."""
    took = asyncio.run(side_by_side(ways, PAIRS))
    p50 = {name: 1000 * statistics.median(seconds) for name, seconds in took.items()}
    for name, milliseconds in p50.items():
        readings.add(ADDED, name, "at p50", milliseconds)
        if name != DIRECT:
            readings.add(ADDED, name, "more than the replica itself", milliseconds - p50[DIRECT])


def run(engine: docker.DockerClient, rounds: int, step: Step) -> list[Comparison]:
    """Measure every gateway, in turn, while all others are paused."""
    readings = Readings()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as until_the_end:
        made = {}
        contenders: list[Contender] = []
        for replicas in REPLICAS:
            step.note(f"pulumi up, {size(replicas)}")
            own = Path(folder) / str(replicas)
            own.mkdir()
            made[replicas] = until_the_end.enter_context(deployed(own, sized(replicas)))
            contenders.append(of_stack(made[replicas], replicas))
            contenders[-1].pause()
            until_the_end.callback(contenders[-1].resume)  # so that its resources can be removed in order
        ways = ways_in(made[1])
        on = until_the_end.enter_context(network(engine))
        provider, provider_port = until_the_end.enter_context(demo_provider(engine, on))
        literal = until_the_end.enter_context(plan(engine, on))
        headers = {"authorization": f"Bearer {literal.key}"}
        contenders.insert(
            0,
            Contender(
                name=PLAN,
                target=Target(url=literal.url, headers=headers, body=BODY),
                parts=(ContainerMeter(literal.container),),
                beside=(ContainerMeter(provider),),
            ),
        )
        try:
            pid, target = until_the_end.enter_context(
                portkey(BODY, provider_url=f"http://{LOOPBACK}:{provider_port}/v1")
            )
        except NotAvailableError as error:
            readings.leave_out(PEER, str(error))
        else:
            contenders.append(
                Contender(name=PEER, target=target, parts=(ProcessMeter(pid),), beside=(ContainerMeter(provider),))
            )
        contenders[0].pause()
        for contender in alternating(rounds, contenders):
            with contender.awake():
                measure(contender, readings, step)
                if contender.name == size(1):
                    measure_ways(ways, readings)
    return compared(readings)


def compared(readings: Readings) -> list[Comparison]:
    """The tables of all readings."""
    quantities: dict[str, tuple[str, Literal["lower", "higher"], bool]] = {
        RATE: ("a second", "higher", True),
        P50: ("ms", "lower", False),
        P99: ("ms", "lower", True),
        CPU: ("ms a request", "lower", True),
        FAILED: ("in all of a round", "lower", False),
        CALLERS: ("% of a core", "lower", False),
    }
    names = (PLAN, *map(size, REPLICAS), PEER)
    return [
        *(
            readings.comparison(
                f"{quantity}, {mode}",
                unit=unit,
                points="requests at once",
                better=better,
                baseline=PLAN,
                chart="lines" if has_chart else None,
                contenders=names,
            )
            for quantity, (unit, better, has_chart) in quantities.items()
            for mode in MODES
        ),
        readings.comparison(MEMORY, unit="MiB", points="", baseline=PLAN, chart="bars", contenders=names),
        readings.comparison(ADDED, unit="ms", points="", baseline=DIRECT, contenders=(DIRECT, THROUGH, PUBLISHED)),
    ]
