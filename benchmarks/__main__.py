"""`make bench`: measure everything side by side, print it, and keep it as JSON and charts. Reports; asserts no time.

make bench                     all of it, within an hour on two cores
make bench ONLY=gateway        one of client, gateway, database, streams, deploy, growth
make bench ONLY=streams NAME="lane on"    the rows whose name holds that; of growth models, replicas or migrations
make bench RECORD=1            and have docs/benchmarks.md show what was measured
make bench ROUNDS=5            more rounds, where figures spread
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import docker
from rich.console import Console

from benchmarks import client, database, deploy, document, gateway, growth, streams
from benchmarks.measure import Machine, Report
from tests.stack_config import project_file
from tests.stacks import image_of
from toolchain import tools
from toolchain.__main__ import IMAGE_SETTINGS
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Comparison

BENCHMARKS: dict[str, tuple[Callable[..., list[Comparison]], int]] = {
    "client": (client.run, 2),
    "gateway": (gateway.run, 2),
    "database": (database.run, 2),
    "streams": (streams.run, 1),
    "deploy": (deploy.run, 2),
    "growth": (growth.run, 2),
}
"""Each benchmark with its number of rounds: as many as the total time allows."""
WITH_NAMES = ("streams", "growth")
"""The benchmarks whose parts can be measured by themselves."""
NAMES = {"litellm": "LiteLLM", "postgres": "PostgreSQL", "haproxy": "HAProxy"}
STAND_IN = " (built here)"
"""Marks an image that replaces the official one."""
WIDTH = 160
"""The width of tables that go to a file."""


def versions(engine: docker.DockerClient) -> dict[str, str]:
    """The versions that are measured, and the machine."""
    images = {part: str(project_file()["config"][key]["default"]) for part, key in IMAGE_SETTINGS.items()}
    return {
        **{
            NAMES[part]: reference.split("@")[0].rpartition(":")[2]
            + ("" if image_of(part) == reference else STAND_IN)
            for part, reference in images.items()
        },
        "Docker Engine": str(engine.version()["Version"]),
        "Pulumi": tools.CLI_VERSION,
        **{package: metadata.version(package) for package in ("openai", "httpx2")},
    }


def measured(name: str, engine: docker.DockerClient, rounds: int | None, steps: Steps, part: str | None) -> Report:
    """Run a benchmark, or a part of it; its stacks' output goes to a log."""
    run, usual_rounds = BENCHMARKS[name]
    machine, started = Machine.this(), time.monotonic()
    log = document.RESULTS / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as printed, steps.step(f"benchmark of the {name}") as step:
        try:
            with contextlib.redirect_stdout(printed):
                comparisons = run(engine, rounds or usual_rounds, step, *([part] if part else []))
        except Exception:
            steps.console.print(f"What its stacks printed is in {log}", markup=False)
            raise
    return Report(
        benchmark=name,
        day=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        seconds=round(time.monotonic() - started),
        rounds=rounds or usual_rounds,
        machine=machine,
        versions=versions(engine),
        comparisons=tuple(each for each in comparisons if each.values),
    )


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=BENCHMARKS, help="one of them")
    parser.add_argument("--name", help=f"the parts of {' or '.join(WITH_NAMES)} whose name holds this")
    parser.add_argument("--rounds", type=int, help="how many rounds, in place of each one's own number")
    parser.add_argument("--record", action="store_true", help="have the documents show the figures")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("there must be at least one round")
    if arguments.name and (arguments.only not in WITH_NAMES or arguments.record):
        parser.error(f"a name is for --only {' or '.join(WITH_NAMES)}, and a part is not recorded")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    engine = docker.from_env()
    with Steps() as steps:
        path = f"{tools.ensure(steps)}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.environ["PATH"] = path
        for name in [arguments.only] if arguments.only else BENCHMARKS:
            report = measured(name, engine, arguments.rounds, steps, arguments.name)
            document.write(report, document.RESULTS)
            document.show(console, report)
            if arguments.record:
                document.record(report, list(BENCHMARKS))
    console.print(f"Figures and charts: {document.RESULTS}", markup=False)


if __name__ == "__main__":
    main()
