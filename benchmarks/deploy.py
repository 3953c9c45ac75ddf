"""How long a deployment takes, and what callers notice of a change: this stack, and the plan with docker-compose."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Protocol

import yaml

from benchmarks.caller import Target, settle
from benchmarks.measure import Readings, alternating
from benchmarks.peer import NotAvailableError
from benchmarks.plan import Compose, rendered_config
from infra import model_list
from infra.workload import LOOPBACK
from tests.load import MESSAGES, Load
from tests.stacks import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import docker

    from benchmarks.measure import Comparison
    from tests.load import Report as LoadReport
    from toolchain.progress import Step

REQUESTS_PER_SECOND = 30
"""The callers' rate meanwhile: less than one replica can answer, so that any failure is due to the change."""
OURS, PLAN = "this stack, 2 replicas", "the plan, docker-compose"
NOTHING, UNCHANGED, CHANGED = "from nothing", "no change", "another model"
TIME, FAILED, GAP = "time until it answers", "requests failed during the change", "longest time without an answer"
MODEL = {"name": "llama3.1", "model": "openai/llama3.1", "apiBase": "http://demo:8080/v1"}
DRAIN_SECONDS = 10


class Way(Protocol):
    """A way of deploying a gateway."""

    name: str

    def up(self) -> None:
        """Deploy what is configured, from nothing or over what exists."""

    def write_change(self) -> None:
        """Configure one more model."""

    def take_change_up(self) -> None:
        """Deploy the change."""

    def target(self, model: str) -> Target:
        """Where and how to ask for a model."""

    def take_away(self) -> None:
        """Remove everything."""


def pulumi_up(made: Deployment) -> None:
    """Run `pulumi up` as an operator does, because the Automation API does more than that. Raises RuntimeError."""
    done = made.pulumi("up", "--yes", "--skip-preview")
    print(done.stdout)
    if done.returncode != 0:
        raise RuntimeError(f"pulumi up failed: {done.stdout[-2000:]}")


class Pulumi:
    """This project's stack, as dev is."""

    name = OURS

    def __init__(self, folder: Path) -> None:
        self._made = Deployment(folder, f"test-{token_hex(4)}")
        self._made.set(drainSeconds=DRAIN_SECONDS)

    def up(self) -> None:
        pulumi_up(self._made)

    def write_change(self) -> None:
        for key, value in MODEL.items():
            self._made.set_path(f"models[0].{key}", value)

    def take_change_up(self) -> None:
        self.up()

    def target(self, model: str) -> Target:
        return asked_of(self._made, model)

    def take_away(self) -> None:
        self._made.destroy()


class Composed:
    """The plan's file, with the same images and the same models."""

    name = PLAN

    def __init__(self, folder: Path, config: str) -> None:
        self._compose = Compose(folder)
        self._config = config
        self._compose.write(config)

    def up(self) -> None:
        self._compose.up()

    def write_change(self) -> None:
        self._compose.write(with_model(self._config))

    def take_change_up(self) -> None:
        self._compose.take_config_up()

    def target(self, model: str) -> Target:
        return _asked(self._compose.url, self._compose.key, model)

    def take_away(self) -> None:
        self._compose.down()


def with_model(config: str, model: Mapping[str, str] = MODEL) -> str:
    """A rendered config with one model more."""
    changed = yaml.safe_load(config)
    parameters = {"model": model["model"], "api_base": model["apiBase"], "api_key": model_list.NO_KEY}
    prices = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0}
    changed["model_list"].append({"model_name": model["name"], "litellm_params": {**parameters, **prices}})
    return yaml.safe_dump(changed, sort_keys=False)


def asked_of(made: Deployment, model: str) -> Target:
    """Where and how to ask a stack for a model."""
    return _asked(made.outputs["litellmUrl"].replace("localhost", LOOPBACK), made.outputs["litellmApiKey"], model)


def failed(report: LoadReport) -> int:
    """How many requests of a load failed, whenever they did."""
    return len([*report.failures, *report.in_flight, *report.cut])


def _asked(url: str, key: str, model: str) -> Target:
    body = {"model": model, "messages": MESSAGES}
    return Target(url=url, headers={"authorization": f"Bearer {key}"}, body=body)


@contextmanager
def under_load(target: Target, seen: Load) -> Iterator[None]:
    """Ask steadily while the block runs, and until everything works again."""
    with seen.running():
        yield
        asyncio.run(settle(target))
        seen.await_successes(REQUESTS_PER_SECOND)


def seconds_of(do: Callable[[], object]) -> float:
    started = time.monotonic()
    do()
    return time.monotonic() - started


def measure(way: Way, readings: Readings, step: Step) -> None:
    """A round of one way: from nothing, again without a change, and with a change under load."""

    def timed(point: str, do: Callable[[], None], model: str) -> None:
        step.note(f"{way.name}, {point}")
        took = seconds_of(do)
        target = way.target(model)
        took += seconds_of(lambda: asyncio.run(settle(target)))
        readings.add(TIME, way.name, point, took)

    timed(NOTHING, way.up, "gpt-4o")
    timed(UNCHANGED, way.up, "gpt-4o")
    target = way.target("gpt-4o")
    seen = Load(target.url, target.headers["authorization"].removeprefix("Bearer "), rate=REQUESTS_PER_SECOND)
    way.write_change()
    with under_load(target, seen):
        timed(CHANGED, way.take_change_up, MODEL["name"])
    readings.add(FAILED, way.name, CHANGED, failed(seen.report))
    readings.add(GAP, way.name, CHANGED, seen.report.longest_gap)


def run(_engine: docker.DockerClient, rounds: int, step: Step) -> list[Comparison]:
    """Measure both ways, in turn; each starts from nothing and is removed again."""
    readings = Readings()
    config = rendered_config()
    ways: dict[str, Callable[[Path], Way]] = {OURS: Pulumi, PLAN: lambda folder: Composed(folder, config)}
    for name in alternating(rounds, list(ways)):
        with tempfile.TemporaryDirectory() as folder:
            try:
                way = ways[name](Path(folder))
            except NotAvailableError as error:
                readings.leave_out(name, str(error))
                continue
            try:
                measure(way, readings, step)
            finally:
                step.note(f"{name}, taken away")
                way.take_away()
    return [
        readings.comparison(
            quantity,
            unit=unit,
            points="",
            baseline=PLAN,
            chart="bars" if quantity == TIME else None,
            contenders=(PLAN, OURS),
        )
        for quantity, unit in {TIME: "s", FAILED: f"at {REQUESTS_PER_SECOND} a second", GAP: "s"}.items()
    ]
