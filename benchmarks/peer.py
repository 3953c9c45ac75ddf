"""Portkey's gateway, from npm: what another open gateway costs on the same machine, with the same provider."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from benchmarks.caller import Target, settle
from engine.system_path import which
from infra.workload import LOOPBACK
from tests.stacks import free_port
from toolchain.operating_system import CACHE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PACKAGE, VERSION = "@portkey-ai/gateway", "1.15.2"
SERVER, SERVER_VERSION = "@hono/node-server", "1.11.4"
"""With the newest version that it allows, all its streams fail with 500 ("immutable")."""
INSTALL_SECONDS = 180
END_SECONDS = 10


class NotAvailableError(Exception):
    """A contender cannot be measured here; the message says why."""


def _installed() -> Path:
    """The folder with the packages, filled by npm the first time."""
    folder = CACHE / "benchmarks" / f"portkey-{VERSION}-{SERVER_VERSION}"
    program = folder / "node_modules" / PACKAGE / "build/start-server.js"
    if program.exists():
        return program
    if which("npm") is None or which("node") is None:
        raise NotAvailableError("npm is not installed (apt-get install npm)")
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--legacy-peer-deps", "--prefix", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["npm", "install", *options, f"{PACKAGE}@{VERSION}", f"{SERVER}@{SERVER_VERSION}"],
            check=True,
            capture_output=True,
            timeout=INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise NotAvailableError(f"npm had not installed it after {INSTALL_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        raise NotAvailableError(f"npm could not install it (exit code {error.returncode})") from None
    return program


@contextmanager
def portkey(body: Mapping[str, object], *, provider_url: str) -> Iterator[tuple[int, Target]]:
    """Portkey's gateway with an OpenAI-like provider: its process, and where to ask it.

    Raises NotAvailableError if it cannot be installed or does not answer.
    """
    program, port = _installed(), free_port()
    target = Target(
        url=f"http://{LOOPBACK}:{port}",
        headers={
            "authorization": "Bearer none",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": provider_url,
        },
        body=body,
    )
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            ["node", str(program), "--headless", f"--port={port}"],
            # In a private network it connects only to addresses that are listed.
            env={
                **os.environ,
                "NODE_ENV": "production",
                "TRUSTED_CUSTOM_HOSTS": str(urlsplit(provider_url).hostname),
            },
            stdout=log,
            stderr=log,
        )
        try:
            try:
                asyncio.run(settle(target))
            except TimeoutError as error:
                raise NotAvailableError(f"it does not answer: {error}") from None
            yield process.pid, target
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
