"""What an engine says about itself, and whether the stack can run on it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import docker

CONTAINERD_STORE = "io.containerd.snapshotter.v1"
DESKTOP = "Docker Desktop"
OLDEST_API = (1, 41)
"""The API of Docker Engine 20.10, on which the stack was first run."""
_PROVIDER = Path(__file__).parent.parent / "toolchain/go/docker-provider/shim/version.go"
SPOKEN_API = tuple(map(int, re.findall(r'newestAPI = "(\d+)\.(\d+)"', _PROVIDER.read_text())[0]))
"""The newest API that the Docker provider built here speaks."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an engine says about itself."""

    name: str
    """Its name, its version, and what about it matters here, as text for a person."""
    refused: str
    """Why the stack cannot run on it; empty if it can."""
    doubts: tuple[str, ...]
    """What about it was never tested with this project, or will not work as the documents say."""


def look_at(client: docker.DockerClient) -> Found:
    """Ask an engine about itself, before anything is changed on it."""
    version, info = client.version(), client.info()
    kind = next((part["Name"] for part in version.get("Components") or ()), "Engine")
    newest, oldest = version["ApiVersion"], version.get("MinAPIVersion") or version["ApiVersion"]
    store = dict(info.get("DriverStatus") or ()).get("driver-type") == CONTAINERD_STORE
    traits = [
        f"API {oldest} to {newest}",
        *(["containerd image store"] if store else []),
        f"cgroup {info.get('CgroupVersion') or '1'}",
        *(["rootless"] if "name=rootless" in (info.get("SecurityOptions") or ()) else []),
        *([DESKTOP] if info.get("OperatingSystem") == DESKTOP else []),
    ]
    name = "Docker Engine" if kind == "Engine" else kind
    refused = ""
    if _number(newest) < OLDEST_API:
        refused = f"its API is {newest}, and {_text(OLDEST_API)} is needed: Docker Engine 20.10 or newer"
    doubts = []
    if kind != "Engine":
        doubts.append(f"{kind} has Docker's API, but this project has only been run on Docker Engine")
    if _number(oldest) > SPOKEN_API:
        doubts.append(
            f"it accepts no API older than {oldest}, and the Docker provider built here speaks {_text(SPOKEN_API)}: "
            "only the official provider works with it"
        )
    if info.get("MemoryLimit") is False:
        doubts.append("it cannot limit memory, so no container's limit holds")
    return Found(name=f"{name} {version['Version']} ({', '.join(traits)})", refused=refused, doubts=tuple(doubts))


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
