"""What growing brings and costs: requests per second through a Swarm's edges, for 1, 2 and 4 replicas in one run.

    .venv/bin/python -m benchmarks.replicas            (as root, where a Docker Engine is installed; about 8 minutes)

Three nodes, their load and their callers share this machine, so that more replicas help until its cores are busy: the
CPU time per request says what one costs anywhere. Reports only; nothing here fails on a time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
from rich.console import Console
from rich.table import Table

from infra.images import stand_ins
from tests.load import MESSAGES
from tests.stack_config import PROJECT, project_file
from tests.stacks import deployed, pulumi_tools
from tests.swarm.cluster import cluster
from tests.swarm.conftest import place_on
from toolchain.__main__ import IMAGE_SETTINGS

if TYPE_CHECKING:
    from tests.stacks import Deployment

REPLICAS = (1, 2, 4)
CONCURRENT = 16
ROUNDS = 3
ROUND_SECONDS = 10
BODY = {"model": "gpt-4o", "messages": MESSAGES}


def cpu_seconds() -> float:
    """The CPU time that all of this machine has used."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


async def ask(addresses: list[str], key: str) -> list[float]:
    """Ask as fast as the gateway answers for a round; return how long each answer took, in seconds."""
    took: list[float] = []
    until = time.monotonic() + ROUND_SECONDS

    async def one(client: httpx2.AsyncClient, turn: itertools.cycle[str]) -> None:
        while (started := time.monotonic()) < until:
            answer = await client.post(f"{next(turn)}/v1/chat/completions", json=BODY)
            answer.raise_for_status()
            took.append(time.monotonic() - started)

    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as client:
        turn = itertools.cycle(addresses)
        await asyncio.gather(*(one(client, turn) for _ in range(CONCURRENT)))
    return took


def measured(made: Deployment, addresses: list[str]) -> tuple[list[float], list[float]]:
    """Requests per second and CPU milliseconds per request, of each round."""
    rates, costs = [], []
    for _ in range(ROUNDS):
        before = cpu_seconds()
        took = asyncio.run(ask(addresses, made.outputs["litellmApiKey"]))
        rates.append(len(took) / ROUND_SECONDS)
        costs.append(1000 * (cpu_seconds() - before) / len(took))
    return rates, costs


def main() -> None:
    """Bring a Swarm and a stack up, and print the table."""
    table = Table("replicas", "requests/s", "spread", "CPU ms a request", "cores busy")
    with pulumi_tools(), cluster() as swarm, tempfile.TemporaryDirectory() as folder:
        swarm.join(managers=1)
        instead = stand_ins(PROJECT / ".images.yaml")
        for node in swarm.nodes:
            swarm.label(node, "edge", "true")
        for setting in IMAGE_SETTINGS.values():
            reference = str(project_file()["config"][setting]["default"])
            swarm.fill(instead.get(reference, reference), instead.get(reference, reference))
        with deployed(Path(folder), place_on(swarm), host=swarm.nodes[0].host) as made:
            port = made.outputs["litellmUrl"].rsplit(":", 1)[1]
            addresses = [f"http://{node.address}:{port}" for node in swarm.nodes]
            for replicas in REPLICAS:
                made.set(replicas=replicas)
                made.up()
                rates, costs = measured(made, addresses)
                rate, cost = statistics.median(rates), statistics.median(costs)
                table.add_row(
                    str(replicas),
                    f"{rate:.0f}",
                    f"{min(rates):.0f} to {max(rates):.0f}",
                    f"{cost:.1f}",
                    f"{rate * cost / 1000:.1f} of {os.cpu_count()}",
                )
    Console().print(table)


if __name__ == "__main__":
    main()
