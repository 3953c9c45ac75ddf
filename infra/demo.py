"""The demo provider, which answers until a provider key is set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pulumi

from infra.gateway import USER_ID
from infra.workload import Placement, Workload, http_health_check

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAM = "/app/provider.py"
FOLDER = Path(__file__).parent.parent / "demo"
SPOKEN = ("openai", "anthropic")
"""The providers whose answers it imitates: files in demo/answers."""
PORT = 8080
NETWORK_NAME = "demo"
MEMORY_MB = 256


def url(placement: Placement) -> str:
    """The demo provider's address for the replicas."""
    return f"http://{placement.host_name(NETWORK_NAME)}:{PORT}"


def files() -> dict[str, str]:
    """Its program and its answers, by their paths in the container."""
    paths = {PROGRAM: "provider.py", **{f"/app/answers/{name}.yaml": f"answers/{name}.yaml" for name in SPOKEN}}
    return {there: (FOLDER / here).read_text(encoding="utf-8") for there, here in paths.items()}


@dataclass(frozen=True, kw_only=True)
class DemoProviderArgs:
    """What the demo provider runs with."""

    image: str
    """LiteLLM's image: it has Python, FastAPI, PyYAML and uvicorn."""
    files: Mapping[str, str]
    """What `files` returns."""
    network: str


class DemoProvider(pulumi.ComponentResource):
    """The demo provider.

    Creates: the workload `demo`. Type token: `llm-infrastructure:demo:DemoProvider`.
    """

    def __init__(
        self, name: str, args: DemoProviderArgs, placement: Placement, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("llm-infrastructure:demo:DemoProvider", name, {}, opts)
        placement.run(
            Workload(
                name=name,
                image=args.image,
                entrypoint=("python3", PROGRAM),
                command=(str(PORT),),
                files=args.files,
                health=http_health_check(PORT, "/health"),
                user=f"{USER_ID}:{USER_ID}",
                file_owner=USER_ID,
                memory_mb=MEMORY_MB,
                networks={args.network: NETWORK_NAME},
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.register_outputs({})
