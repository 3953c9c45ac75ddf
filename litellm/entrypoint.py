"""Start LiteLLM with its secrets, and make the edge send callers elsewhere before it is stopped.

Usage: python3 run.py entrypoint AGENT_PORT LITELLM_ARGS…

Secrets come as files, so that `docker inspect` shows none; LiteLLM reads them as os.environ/NAME.

LiteLLM closes its port as soon as it gets the signal to stop, and drops requests that have arrived but that it has
not read yet. So this program gets the signal instead: from then on it answers the edge's agent check with "drain",
waits until every edge has received that and no request is left, and only then passes the signal on.
"""

from __future__ import annotations

import os
import resource
import signal
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path

SECRETS = Path("/run/secrets")
FORGOTTEN_SECONDS = 3
"""An edge that has not asked for so long is gone; edges ask twice a second."""
POLL_SECONDS = 0.1
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
ESTABLISHED = "01"

draining = threading.Event()
asked: dict[str, float] = {}
"""When each edge last asked, without those that know about the draining."""


class Agent(socketserver.BaseRequestHandler):
    """Answers HAProxy's agent check."""

    def handle(self) -> None:
        edge = self.client_address[0]
        if draining.is_set():
            self.request.sendall(b"drain\n")
            asked.pop(edge, None)
        else:
            asked[edge] = time.monotonic()
            self.request.sendall(b"ready up\n")


class Agents(socketserver.ThreadingTCPServer):
    """The agent's port."""

    allow_reuse_address = True
    daemon_threads = True


def edges_to_tell() -> bool:
    """Whether there is still an edge that has not been told to drain."""
    return any(time.monotonic() - when < FORGOTTEN_SECONDS for when in list(asked.values()))


def connections(port: int) -> int:
    """The number of connections to a port, including those that LiteLLM has not accepted yet."""
    rows = [row.split() for table in TABLES if table.exists() for row in table.read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == ESTABLISHED for row in rows)


def main(agent_port: str, *arguments: str) -> int:
    """Run LiteLLM until it ends; return its exit code, as a shell would."""
    secrets = {file.name: file.read_text().rstrip("\n") for file in SECRETS.glob("*") if file.is_file()}
    if "SSL_CERT_FILE" in secrets:  # Google's library reads another variable
        secrets.setdefault("REQUESTS_CA_BUNDLE", secrets["SSL_CERT_FILE"])
    # A request takes two open files, and some engines start a container with 1,024 of them.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    port = int(arguments[arguments.index("--port") + 1])
    command = [sys.executable, sys.argv[0], "server", *arguments]
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopping.append(number))
    with (
        Agents(("", int(agent_port)), Agent) as agents,
        subprocess.Popen(command, env={**os.environ, **secrets}) as litellm,
    ):
        threading.Thread(target=agents.serve_forever, daemon=True).start()
        while litellm.poll() is None and not stopping:
            time.sleep(POLL_SECONDS)
        if litellm.poll() is None:
            draining.set()
            while litellm.poll() is None and (edges_to_tell() or connections(port)):
                time.sleep(POLL_SECONDS)
            litellm.terminate()
        code = litellm.wait()
        agents.shutdown()
    return code if code >= 0 else 128 - code
