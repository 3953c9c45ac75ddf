"""How `pulumi up` and the state grow with the size of a stack: models, replicas, migrations."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from benchmarks.containers import database_server, new_database
from benchmarks.deploy import MODEL, asked_of, failed, pulumi_up, seconds_of, under_load
from benchmarks.measure import Readings
from tests.load import Load
from tests.stack_config import PROJECT_NAME
from tests.stacks import deployed

if TYPE_CHECKING:
    from collections.abc import Callable

    import docker

    from benchmarks.measure import Comparison
    from tests.stacks import Deployment
    from toolchain.progress import Step

MODELS = (2, 10, 50)
"""Models in the stack config, beside the three of litellm/config.yaml."""
REPLICAS = (2, 4, 16)
MIGRATIONS = (1, 50, 500)
MEMORY_MB = 768
"""Twice what an idle replica uses: sixteen fit on a small machine."""
DRAIN_SECONDS = 30
BASE_REPLICAS = 1
REQUESTS_PER_SECOND = 50
KIBIBYTE = 1024

STACK = "this stack"

CHANGE, AGAIN, STATE = "pulumi up that makes the change", "pulumi up without a change", "state"
REPLACED, FAILED = "pulumi up of another model", "requests failed meanwhile"


@dataclass(frozen=True)
class Way:
    """A way of growing."""

    what: str
    counts: tuple[int, ...]
    base: int
    """The size of a stack before; it differs from the first of the counts, so that each of them is a change."""
    rounds: int
    bring_to: Callable[[int], None]


def grow(made: Deployment, readings: Readings, what: str, count: int) -> None:
    """Bring a stack to its configured size, and run `up` again; record both times and the size of the state."""
    for quantity in (CHANGE, AGAIN):
        readings.add(f"{quantity}, by {what}", STACK, count, seconds_of(lambda: pulumi_up(made)))
    exported = made.stack.export_stack().deployment
    readings.add(f"{STATE}, by {what}", STACK, count, len(json.dumps(exported)) / KIBIBYTE)


def replace_all(made: Deployment, readings: Readings, count: int) -> None:
    """Make this many replicas serve another model, under load; record the time of the `up` and the failures."""
    target = asked_of(made, "gpt-4o")
    seen = Load(target.url, made.outputs["litellmApiKey"], rate=REQUESTS_PER_SECOND)
    set_models(made, [{**MODEL, "name": f"model-of-{count}"}])
    with under_load(target, seen):
        readings.add(f"{REPLACED}, by replicas", STACK, count, seconds_of(lambda: pulumi_up(made)))
    readings.add(f"{FAILED}, by replicas", STACK, count, failed(seen.report))


def models(count: int) -> list[dict[str, str]]:
    """This many models for the stack config, for which the demo provider answers."""
    return [
        {"name": f"model-{number}", "model": f"openai/model-{number}", "apiBase": "http://demo:8080/v1"}
        for number in range(count)
    ]


def set_models(made: Deployment, named: list[dict[str, str]]) -> None:
    """Set these models in the stack config."""
    file = made.folder / f"Pulumi.{made.name}.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config["config"][f"{PROJECT_NAME}:models"] = named
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def write_migrations(folder: Path, count: int) -> None:
    """Make a folder contain this many migrations, the present ones first."""
    present = sorted(folder.glob("*.sql"))
    for file in present[count:]:
        file.unlink()
    for number in range(len(present) + 1, count + 1):
        name = f"benchmark_{number}"
        (folder / f"{number:04d}_{name}.sql").write_text(f"CREATE TABLE {name} (id bigint PRIMARY KEY, name text);\n")


def set_migrations(made: Deployment, server_url: str, count: int) -> None:
    """Make the stack use a new database, so that all of this many migrations must be applied."""
    write_migrations(made.folder / "migrations", count)
    made.set_path("databaseUrl", new_database(server_url), secret=True)


def run(engine: docker.DockerClient, rounds: int, step: Step, name: str = "") -> list[Comparison]:
    """Grow one stack in each way, every time from its base; replicas in one round only.

    Only the ways whose name contains `name`.
    """
    readings = Readings()
    with (
        database_server(engine) as server,
        tempfile.TemporaryDirectory() as folder,
        deployed(Path(folder), lambda made: configure(made, server)) as made,
    ):
        ways = (
            Way("models", MODELS, 0, rounds, lambda count: set_models(made, models(count))),
            Way("replicas", REPLICAS, BASE_REPLICAS, 1, lambda count: made.set(replicas=count)),
            Way("migrations", MIGRATIONS, 1, rounds, lambda count: set_migrations(made, server, count)),
        )
        for way in [each for each in ways if name in each.what]:
            way.bring_to(way.base)
            step.note(f"{way.base} {way.what}, to begin with")
            made.up()
            for _ in range(way.rounds):
                for count in way.counts:
                    step.note(f"{count} {way.what}")
                    way.bring_to(count)
                    grow(made, readings, way.what, count)
                    if way.what == "replicas":
                        replace_all(made, readings, count)
            way.bring_to(way.base)
    return [
        *(
            readings.comparison(
                f"{quantity}, by {way.what}",
                unit="KiB" if quantity == STATE else "s",
                points=way.what,
                chart="bars" if quantity == CHANGE else None,
            )
            for way in ways
            for quantity in (CHANGE, AGAIN, STATE)
        ),
        readings.comparison(f"{REPLACED}, by replicas", unit="s", points="replicas", chart="bars"),
        readings.comparison(f"{FAILED}, by replicas", unit=f"at {REQUESTS_PER_SECOND} a second", points="replicas"),
    ]


def configure(made: Deployment, server_url: str) -> None:
    """One replica, so that a change takes only as long as one replica takes."""
    made.set(replicas=BASE_REPLICAS, litellmMemoryMb=MEMORY_MB, drainSeconds=DRAIN_SECONDS)
    set_migrations(made, server_url, 1)
