"""What growing brings and costs: requests per second through a Swarm's edges, for 1, 2 and 4 replicas in one run.

    .venv/bin/python -m benchmarks.replicas            (as root, where a Docker Engine is installed; about 8 minutes)

Three nodes, their load and their callers share this machine, so more replicas help only until its cores are busy. The
CPU time per request says what a request costs on any machine. Reports only; nothing here fails on a time.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from benchmarks.caller import Target, load
from benchmarks.document import table
from benchmarks.gateway import BODY
from benchmarks.measure import Readings
from tests.stacks import deployed, image_of, pulumi_tools
from tests.swarm.cluster import cluster
from tests.swarm.conftest import place_on
from toolchain.__main__ import IMAGE_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

REPLICAS = (1, 2, 4)
CONCURRENT = 16
ROUNDS = 3
ROUND_SECONDS = 10
SWARM = "three nodes"
RATE, CPU, BUSY = "requests answered", "CPU time of the machine", "cores busy"


def cpu_seconds() -> float:
    """The CPU time that all of this machine has used."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def measure(targets: Sequence[Target], replicas: int, readings: Readings) -> None:
    """Measure one round."""
    before = cpu_seconds()
    seen = asyncio.run(load(targets, CONCURRENT, ROUND_SECONDS))
    took = cpu_seconds() - before
    if seen.failures:
        raise RuntimeError(f"{len(seen.failures)} requests failed: {seen.failures[0]}")
    readings.add(RATE, SWARM, replicas, seen.per_second)
    readings.add(CPU, SWARM, replicas, 1000 * took / len(seen.answers))
    readings.add(BUSY, SWARM, replicas, seen.per_second * took / len(seen.answers))


def main() -> None:
    """Bring a Swarm and a stack up, and print the tables."""
    readings = Readings()
    with pulumi_tools(), cluster() as swarm, tempfile.TemporaryDirectory() as folder:
        swarm.join(managers=1)
        for node in swarm.nodes:
            swarm.label(node, "edge", "true")
        for part in IMAGE_SETTINGS:
            swarm.fill(image_of(part))
        with deployed(Path(folder), place_on(swarm), host=swarm.nodes[0].host) as made:
            port = made.outputs["litellmUrl"].rsplit(":", 1)[1]
            for replicas in REPLICAS:
                made.set(replicas=replicas)
                made.up()
                headers = {"authorization": f"Bearer {made.outputs['litellmApiKey']}"}
                targets = [
                    Target(url=f"http://{node.address}:{port}", headers=headers, body=BODY) for node in swarm.nodes
                ]
                for _ in range(ROUNDS):
                    measure(targets, replicas, readings)
    console = Console()
    for quantity, unit in {RATE: "a second", CPU: "ms a request", BUSY: f"of {os.cpu_count()}"}.items():
        console.print(
            table(
                readings.comparison(
                    quantity, unit=unit, points="replicas", better="higher" if quantity == RATE else "lower"
                )
            )
        )


if __name__ == "__main__":
    main()
