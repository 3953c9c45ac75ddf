"""How gateways handle long answers: paced streams to many callers at once, from the same provider."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks import pace
from benchmarks.caller import Target, settle
from benchmarks.containers import ContainerMeter, ProcessMeter, address, container, network
from benchmarks.deploy import with_model
from benchmarks.gateway import PEER, PLAN, Contender, of_stack
from benchmarks.measure import Readings, alternating, percentile
from benchmarks.pace import LONG, SLOW
from benchmarks.peer import NotAvailableError, portkey
from benchmarks.plan import plan, rendered_config
from infra import edge, gateway
from tests.stack_config import PROJECT_NAME, project_file
from tests.stacks import deployed, free_port, image_of
from toolchain import images
from toolchain.progress import Steps
from toolchain.recipes import STAND_INS, UPGRADES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import docker
    from docker.models.containers import Container
    from docker.models.networks import Network

    from benchmarks.measure import Comparison
    from benchmarks.pace import Seen
    from tests.stacks import Deployment
    from toolchain.progress import Step
    from toolchain.recipes import Recipe

CONCURRENT = (1, 8, 32, 128, 512)
EACH = {1: 2}
"""How many streams a caller asks for, one after another, if not just one."""
REPLICAS = 2
HELD = (1000, REPLICAS * edge.REPLICA_CONNECTIONS + 500)
"""Streams that are held open at once: as many as are promised, and more than there is room for."""
MEMORY_FROM = 32
"""From this many streams on, their memory is larger than the gateway's normal variation."""
SAMPLE_SECONDS = 0.5
QUIET_CORES, QUIET_SECONDS = 0.1, 30
"""Abandoned streams count as over once a gateway uses less than this share of a core, or after this time."""
DRAIN_SECONDS = 5
PINNED, NEWEST = STAND_INS["litellm"], UPGRADES[-1]
HAPROXY = "HAProxy alone"
CONFIG = Path(__file__).with_name("haproxy.cfg")
READY = pace.body(pace.Pace(chunks=2, milliseconds=1, limit_seconds=10))
"""A short stream, to see whether a gateway answers."""

FIRST50, FIRST99, GAP50, GAP99, LONGEST = (
    "first token, p50",
    "first token, p99",
    "gap between chunks, p50",
    "gap between chunks, p99",
    "longest gap",
)
CPU, MEMORY, FAILED = "CPU time of the gateway", "memory of the gateway", "streams that are not whole"
OWN = "CPU time of provider and callers"
WHOLE, REFUSED, CUT, WAITED, HELD_MEMORY = (
    "streams held open, whole",
    "streams held open, refused with Retry-After",
    "streams held open, cut or failed",
    "streams held open, the slowest refusal",
    "streams held open, memory of edge and replicas",
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A stack to measure."""

    is_newest: bool
    fast: bool

    @property
    def name(self) -> str:
        version = (NEWEST if self.is_newest else PINNED).version
        return f"this stack, LiteLLM {version}, lane {'on' if self.fast else 'off'}"

    def configure(self, made: Deployment) -> None:
        image = stand_in(made, NEWEST if self.is_newest else PINNED)
        fast = str(self.fast).lower()
        made.set(replicas=REPLICAS, drainSeconds=DRAIN_SECONDS, litellmImage=image, fastStreams=fast)
        for key, value in provided().items():
            made.set_path(f"models[0].{key}", value)


def stand_in(made: Deployment, recipe: Recipe) -> str:
    """The image of a release of LiteLLM that a stack is configured with; built, if it is not the default."""
    if recipe is PINNED:
        return str(project_file()["config"]["litellmImage"]["default"])
    image = f"127.0.0.1:1/litellm:v{recipe.version}"  # no registry has it: the image built here is used
    with Steps() as steps:
        record = made.folder / ".images.yaml"
        images.ensure(steps, made.engine, {"litellm": image}, stack="any", ask=None, record=record)
    return image


KINDS = tuple(Kind(is_newest=newest, fast=fast) for newest in (False, True) for fast in (False, True))
HOLDING = f"streams held open by {KINDS[1].name.removeprefix('this stack, ')}"
NAMES = (PLAN, *(kind.name for kind in KINDS), PEER, HAPROXY)


def provided() -> dict[str, str]:
    """The provider's model, as the stack config names it."""
    return {"name": pace.MODEL, "model": f"openai/{pace.MODEL}", "apiBase": f"{pace.PROVIDER}/v1"}


def named(name: str) -> list[str]:
    """The gateways whose name contains `name`. Raises ValueError with all names if there are none."""
    if not (found := [each for each in (*NAMES, HOLDING) if name in each]):
        raise ValueError(f"nothing that is measured has {name!r} in its name: {'; '.join((*NAMES, HOLDING))}")
    return found


class Most:
    """The most memory that a gateway uses during a block, in MiB."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self.before = self.megabytes = contender.memory_mb()

    @contextmanager
    def watched(self) -> Iterator[None]:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(SAMPLE_SECONDS):
                self.megabytes = max(self.megabytes, self._contender.memory_mb())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def await_quiet(contender: Contender) -> None:
    """Wait until a gateway has finished with abandoned streams."""
    deadline = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < deadline:
        started, before = time.monotonic(), contender.cpu_seconds()
        time.sleep(1)
        if contender.cpu_seconds() - before < QUIET_CORES * (time.monotonic() - started):
            return


def measure(contender: Contender, provider: ContainerMeter, readings: Readings, step: Step) -> None:
    """A round of one gateway, at every point."""
    for concurrent in CONCURRENT:
        step.note(f"{contender.name}, {concurrent} at once")
        most = Most(contender)
        own, cpu = provider.cpu_seconds(), contender.cpu_seconds()
        with most.watched():
            seen = pace.call(contender.target, concurrent, LONG, each=EACH.get(concurrent, 1))
        cpu, own = contender.cpu_seconds() - cpu, provider.cpu_seconds() - own + seen.cpu_seconds
        figures = read(seen, cpu=cpu, own=own)
        if concurrent >= MEMORY_FROM:
            figures[MEMORY] = 1024 * (most.megabytes - most.before) / concurrent
        for quantity, value in figures.items():
            readings.add(quantity, contender.name, concurrent, value)
        if seen.failures:
            print(f"{contender.name}, {concurrent} at once: {seen.failures[:3]}")
            if concurrent != CONCURRENT[-1]:
                await_quiet(contender)


def read(seen: Seen, *, cpu: float, own: float) -> dict[str, float]:
    """The figures of what callers saw; without any chunk there are no times."""
    figures = {FAILED: float(len(seen.failures) + len(seen.refused))}
    if seen.chunks:
        figures |= {CPU: 1e6 * cpu / seen.chunks, OWN: 1e6 * own / seen.chunks}
    if seen.first:
        figures |= {FIRST50: 1000 * percentile(seen.first, 50), FIRST99: 1000 * percentile(seen.first, 99)}
    if seen.gaps:
        figures |= {
            GAP50: 1000 * percentile(seen.gaps, 50),
            GAP99: 1000 * percentile(seen.gaps, 99),
            LONGEST: 1000 * max(seen.gaps),
        }
    return figures


def hold(contender: Contender, _provider: ContainerMeter, readings: Readings, step: Step) -> None:
    """A round of streams that are all open at once, and one of more than there is room for."""
    for count in HELD:
        step.note(f"{contender.name}, {count} held open")
        most = Most(contender)
        with most.watched():
            seen = pace.call(contender.target, count, SLOW)
        figures = {
            WHOLE: seen.streams - len(seen.refused) - len(seen.failures),
            REFUSED: len(seen.refused),
            CUT: len(seen.failures),
            HELD_MEMORY: most.megabytes,
        }
        if seen.refused:
            figures[WAITED] = 1000 * max(seen.refused)
        for quantity, value in figures.items():
            readings.add(quantity, contender.name, count, value)
        if seen.failures:
            print(f"{contender.name}, {count} held open: {seen.failures[:3]}")


@contextmanager
def of_kind(kind: Kind, engine: docker.DockerClient, provider: Container) -> Iterator[Contender]:
    """A running stack that asks the provider."""
    with tempfile.TemporaryDirectory() as folder, deployed(Path(folder), kind.configure) as made:
        on = engine.networks.get(f"{PROJECT_NAME}-{made.name}-gateway")
        on.connect(provider, aliases=[pace.MODEL])
        try:
            contender = of_stack(made, REPLICAS)
            url = f"http://{address(made.container('edge'))}:{edge.PORT}"
            yield replace(contender, name=kind.name, target=replace(contender.target, url=url, body=READY))
        finally:
            on.disconnect(provider, force=True)


def asked_at(answering: Container, headers: dict[str, str]) -> Target:
    """How to ask a gateway in a container: at its own address, because Docker's port proxy would cost time."""
    return Target(url=f"http://{address(answering)}:{gateway.PORT}", headers=headers, body=READY)


@contextmanager
def of_plan(engine: docker.DockerClient, on: Network) -> Iterator[Contender]:
    """The plan's LiteLLM, with the provider's model."""
    with plan(engine, on, with_model(rendered_config(), provided())) as made:
        target = asked_at(made.container, {"authorization": f"Bearer {made.key}"})
        yield Contender(name=PLAN, target=target, parts=(ContainerMeter(made.container),))


@contextmanager
def of_peer(provider_url: str) -> Iterator[Contender]:
    """Portkey's process. Raises NotAvailableError."""
    with portkey(READY, provider_url=provider_url) as (pid, target):
        yield Contender(name=PEER, target=target, parts=(ProcessMeter(pid),))


@contextmanager
def of_haproxy(engine: docker.DockerClient, on: Network) -> Iterator[Contender]:
    """HAProxy with only the provider behind it."""
    path = "/usr/local/etc/haproxy/haproxy.cfg"
    with container(
        engine,
        image_of("haproxy"),
        on=on,
        name="haproxy",
        entrypoint=("haproxy", "-W", "-db", "-f", path),
        command=(),
        files={path: CONFIG.read_text(encoding="utf-8")},
        port=gateway.PORT,
        published=free_port(),
    ) as made:
        yield Contender(name=HAPROXY, target=asked_at(made, {}), parts=(ContainerMeter(made),))


def run(engine: docker.DockerClient, rounds: int, step: Step, name: str = "") -> list[Comparison]:
    """Bring up and measure one gateway after another; only those whose name contains `name`."""
    readings, parts = Readings(), named(name)
    with network(engine) as on, pace.provider(engine, on) as provider:
        made: dict[str, Callable[[], AbstractContextManager[Contender]]] = {
            PLAN: partial(of_plan, engine, on),
            **{kind.name: partial(of_kind, kind, engine, provider) for kind in KINDS},
            PEER: partial(of_peer, f"http://{address(provider, on)}:{pace.PORT}/v1"),
            HAPROXY: partial(of_haproxy, engine, on),
            HOLDING: partial(of_kind, KINDS[1], engine, provider),
        }
        for each in alternating(rounds, parts):
            step.note(f"{each}, to be brought up")
            try:
                with made[each]() as contender:
                    asyncio.run(settle(contender.target))
                    (hold if each == HOLDING else measure)(contender, ContainerMeter(provider), readings, step)
            except NotAvailableError as error:
                readings.leave_out(each, str(error))
    return compared(readings)


def compared(readings: Readings) -> list[Comparison]:
    """The tables of all readings."""
    quantities: dict[str, tuple[str, Literal["lines", "bars"] | None]] = {
        FIRST50: ("ms", "lines"),
        FIRST99: ("ms", None),
        GAP50: ("ms", None),
        GAP99: ("ms", "lines"),
        LONGEST: ("ms", None),
        CPU: ("µs a chunk", "lines"),
        MEMORY: ("KiB a stream", None),
        FAILED: ("in all of a round", None),
        OWN: ("µs a chunk", None),
    }
    held = {WHOLE: "streams", REFUSED: "streams", CUT: "streams", WAITED: "ms", HELD_MEMORY: "MiB"}
    return [
        *(
            readings.comparison(
                quantity, unit=unit, points="streams at once", baseline=PLAN, chart=chart, contenders=NAMES
            )
            for quantity, (unit, chart) in quantities.items()
        ),
        *(
            readings.comparison(
                quantity, unit=unit, points="streams at once", better="higher" if quantity == WHOLE else "lower"
            )
            for quantity, unit in held.items()
        ),
    ]
