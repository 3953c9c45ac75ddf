"""The provider and the callers of benchmarks/paced: compiled, so that they use little of the machine."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from benchmarks.containers import LABELS
from engine.system_path import which
from tests.stacks import image_of
from toolchain.operating_system import CACHE
from toolchain.recipes import recipe_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import docker
    from docker.models.containers import Container
    from docker.models.networks import Network

    from benchmarks.caller import Target

SOURCE = Path(__file__).with_name("paced")
MODEL, PORT = "paced", 8080
"""The provider's model, which is also its name in its networks."""
PROVIDER = f"http://{MODEL}:{PORT}"
SPARE_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Pace:
    """A stream's length, the time between its chunks, and the time after which callers give it up."""

    chunks: int
    milliseconds: int
    limit_seconds: int


LONG = Pace(chunks=200, milliseconds=20, limit_seconds=60)
"""Four seconds if nothing delays it."""
SLOW = Pace(chunks=80, milliseconds=500, limit_seconds=120)
"""Two chunks a second, long enough for thousands of streams to be open at once."""


class Seen(BaseModel):
    """What callers saw, in seconds: the type of this name in benchmarks/paced/main.go."""

    first: list[float]
    gaps: list[float]
    refused: list[float]
    failures: list[str]
    chunks: int
    streams: int
    seconds: float
    cpu_seconds: float


def body(pace: Pace) -> Mapping[str, object]:
    """The body of a request for a stream."""
    said = f"{pace.chunks} {pace.milliseconds}"
    return {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": said}]}


@cache
def program() -> Path:
    """Build the program, the first time. Raises RuntimeError if Go is not installed or too old."""
    built = CACHE / "benchmarks" / f"paced-{recipe_hash(SOURCE)}"
    if not built.exists():
        go = which("go")
        if go is None:
            raise RuntimeError("The streams are sent and read by a program in Go: install Go 1.25 or newer.")
        built.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["env", "CGO_ENABLED=0", "GOTOOLCHAIN=local", go, "build", "-o", str(built), "."],
            cwd=SOURCE,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"Go could not build {SOURCE}: {done.stderr.strip()}")
    return built


@contextmanager
def provider(engine: docker.DockerClient, on: Network) -> Iterator[Container]:
    """The provider in a container, known as MODEL in a network."""
    made = engine.containers.create(
        image_of("haproxy"),  # any image would do
        ["provider", f":{PORT}"],
        entrypoint=["/paced"],
        user="65534:65534",
        labels=LABELS,
        network=on.name,
        networking_config={str(on.name): engine.api.create_endpoint_config(aliases=[MODEL])},
        volumes={str(program()): {"bind": "/paced", "mode": "ro"}},
    )
    try:
        made.start()
        made.reload()
        yield made
    finally:
        made.remove(force=True)


def call(target: Target, at_once: int, pace: Pace, *, each: int = 1) -> Seen:
    """Let `at_once` callers ask together, each for `each` streams one after another."""
    plan = {
        "url": f"{target.url}{target.path}",
        "headers": dict(target.headers),
        "body": dict(body(pace)),
        "at_once": at_once,
        "each": each,
        "chunks": pace.chunks,
        "limit_seconds": pace.limit_seconds,
    }
    done = subprocess.run(
        [str(program()), "callers"],
        input=json.dumps(plan),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=pace.limit_seconds + SPARE_SECONDS,
    )
    return Seen.model_validate_json(done.stdout)
