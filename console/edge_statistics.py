"""What the edge has counted: HAProxy's own statistics, asked through its master in its container.

Each reload starts a new worker, whose counters for replicas start at zero. The counters for clients are in a table
that each worker passes on to the next (edge/haproxy.cfg), and start at zero with the container.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from console.programs import ProgramError, output

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS = 10.0
FRONTEND = "gateway"
REPLICA = "replica"
# As edge/reload.sh asks; the address of the master is in its own command. Questions come on standard input, as a
# command line can be read by all.
ASK = r"""
mapfile -d '' -t words </proc/1/cmdline
for i in "${!words[@]}"; do [[ ${words[i]} == -S ]] && master=${words[i + 1]}; done
exec 3<>"/dev/tcp/${master/://}"
cat >&3
cat <&3
"""
NAMES = ASK.replace("cat <&3", 'while read -r _ _ name; do echo "$name"; done <&3')
"""Reads only the values of a map. Its keys are the clients' keys, which stay in the container."""
QUESTIONS = "@1 show info;@1 show stat;@1 show table clients;{}quit\n"
NAMES_QUESTION = "@1 show map clients.map;quit\n"
KEY_QUESTION = "@1 get map clients.map {};"
PLAIN_KEY = re.compile(r"[\w.-]+", re.ASCII)
"""A key without characters that are special in HAProxy's command line."""
CLIENT_ROW = re.compile(r"key=(\S+) .*gpc0=(\d+) gpc1=(\d+) gpc2=(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests, streams included, since the edge's last reload."""

    requests: int
    failed: int
    """For an edge, the requests that it answered with 500 or more. For a replica also those that it broke off or
    refused, for which the edge asks another one."""
    active: int
    """Requests that are being answered now."""
    queued: int
    """Requests that are waiting for a replica."""


@dataclass(frozen=True, slots=True)
class Client:
    """The requests that a client has sent for models since the edge's container was created.

    Requests that an old worker still answers after a reload, at most one per connection, are missing.
    """

    name: str
    requests: int
    failed: int
    """Answered with 500 or more."""
    refused: int
    """Answered with 400 to 499."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What one edge has counted."""

    version: str
    """HAProxy's."""
    since: datetime
    """When the worker that counts started: at the last reload."""
    traffic: Traffic
    replicas: Mapping[str, Traffic]
    """By the replica's address."""
    down: frozenset[str]
    """Addresses of replicas to which the edge sends nothing, because they do not answer its checks."""
    clients: tuple[Client, ...]
    knows_key: bool | None
    """Whether the key belongs to a client of this edge; None if the edge could not be asked."""


def statistics(container: str, key: str) -> Statistics:
    """Ask the edge in a container. Raises ProgramError if that fails, and ValueError for an unexpected answer."""
    command = ["docker", "exec", "--interactive", container, "bash", "-c", ASK]
    questions = QUESTIONS.format(KEY_QUESTION.format(key) if PLAIN_KEY.fullmatch(key) else "")
    return read(output(command, given=questions, seconds=SECONDS), now=datetime.now(UTC))


def clients(container: str) -> frozenset[str]:
    """The names of the clients that the edge in a container knows; none if it does not answer."""
    command = ["docker", "exec", "--interactive", container, "bash", "-c", NAMES]
    try:
        return frozenset(output(command, given=NAMES_QUESTION, seconds=SECONDS).split())
    except ProgramError:
        return frozenset()


def read(answer: str, *, now: datetime) -> Statistics:
    """Read HAProxy's answers to the questions. Raises ValueError."""
    info = dict(re.findall(r"^(\w+): (.*)$", answer, re.MULTILINE))
    start = answer.find("# pxname")
    if start < 0 or not {"Version", "Uptime_sec"} <= set(info):
        raise ValueError("what runs there does not answer like HAProxy")
    rows = list(csv.DictReader(answer[start + 2 :].split("\n\n", 1)[0].splitlines()))
    frontend = next((row for row in rows if (row["pxname"], row["svname"]) == (FRONTEND, "FRONTEND")), {})
    # A replica is in the backend of its master key's generation; the other backend may still have its address.
    servers: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if row["svname"].startswith(REPLICA) and row["addr"]:
            servers.setdefault(row["addr"].rsplit(":", 1)[0], []).append(row)
    return Statistics(
        version=info["Version"].split("-")[0],
        since=now - timedelta(seconds=int(info["Uptime_sec"])),
        traffic=Traffic(
            requests=_number(frontend, "req_tot"),
            failed=_number(frontend, "hrsp_5xx"),
            active=sum(_number(row, "scur") for same in servers.values() for row in same),
            queued=sum(_number(row, "qcur") for row in rows if row["svname"] == "BACKEND"),
        ),
        replicas={address: _traffic(*same) for address, same in servers.items()},
        down=frozenset(
            address for address, same in servers.items() if all(row["status"].startswith("DOWN") for row in same)
        ),
        clients=tuple(
            sorted(
                (Client(name, *map(int, counts)) for name, *counts in re.findall(CLIENT_ROW, answer)),
                key=lambda client: client.name,
            )
        ),
        knows_key=found[1] == "yes" if (found := re.search(r"found=(yes|no)", answer)) else None,
    )


def _traffic(*rows: Mapping[str, str]) -> Traffic:
    return Traffic(
        requests=sum(_number(row, "stot") for row in rows),
        failed=sum(_number(row, column) for row in rows for column in ("hrsp_5xx", "econ", "eresp")),
        active=sum(_number(row, "scur") for row in rows),
        queued=sum(_number(row, "qcur") for row in rows),
    )


def _number(row: Mapping[str, str], column: str) -> int:
    return int(row.get(column) or 0)
