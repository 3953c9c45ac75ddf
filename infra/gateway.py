"""The LiteLLM proxy, in replicas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pulumi

from infra import programs
from infra.workload import Placement, Workload, http_health_check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.litellm_database import LiteLLMDatabase

PORT = 4000
AGENT_PORT = 4001
"""The port on which litellm/entrypoint.py tells the edge that it is about to stop."""
LIVELINESS = "/health/liveliness"
HOST_NAME = "host.docker.internal"
USER_ID = 65534
"""The id of the user `nobody`."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # otherwise the first request waits for a model hub that cannot be reached
    "HOME": "/tmp",  # noqa: S108 -- the user has no home of its own
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # otherwise prices are downloaded at start
    "LITELLM_MODE": "PRODUCTION",
    "PYTHONFAULTHANDLER": "1",  # when the interpreter crashes, it logs where it was
}

FAST_STREAMS = {"LLM_GATEWAY_FAST_STREAMS": "true"}
"""Makes litellm/server.py install litellm/streams.py in LiteLLM."""
WITH_DATABASE = {"DISABLE_SCHEMA_UPDATE": "true"}
"""infra/litellm_database.py has already changed the schema, once for all replicas."""
LITELLM_MB = 384
"""The memory that LiteLLM needs without large requests, beyond the release's `rest_mb` in litellm/releases.yaml
(measured: 260 for 1.55.0; 593 for 1.108.14 with two requests of 16 MB at once)."""
MB_FOR_A_LARGE_MB = 20
"""The memory that LiteLLM needs for each MB of a large request while it works on it (measured: 14 to 19)."""


@dataclass(frozen=True, kw_only=True)
class GatewayArgs:
    """What the gateway runs with."""

    image: str
    replicas: int
    memory_mb: int
    drain_seconds: int
    fetch_urls: bool
    """Whether LiteLLM may fetch what a request names by URL (litellm/fetching.py)."""
    fast_streams: bool
    config: str
    """LiteLLM's rendered config."""
    secrets: Mapping[str, pulumi.Input[str]]
    """Environment variables of LiteLLM that are secret."""
    more: Mapping[str, str]
    """Its other environment variables, which are not secret."""
    database: LiteLLMDatabase | None
    """LiteLLM's own database, if it has one."""
    generation: pulumi.Input[int]
    """The master key's generation, by which callers tell replicas apart."""
    network: str


def large_bodies_mb(memory_mb: int) -> int:
    """How many MB of large requests a replica with this memory handles at once (litellm/large_requests.py)."""
    return max(1, (memory_mb - LITELLM_MB) // MB_FOR_A_LARGE_MB)


def memory_mb(large_mb: int) -> int:
    """The memory that a replica needs to handle this many MB of large requests at once."""
    return LITELLM_MB + large_mb * MB_FOR_A_LARGE_MB


def environment(*, fetch_urls: bool, fast_streams: bool, memory_mb: int) -> dict[str, str]:
    """LiteLLM's environment without secrets; `memory_mb` is a replica's memory without what its database needs."""
    return {
        **ENVIRONMENT,
        "LLM_GATEWAY_LARGE_BODIES_MB": str(large_bodies_mb(memory_mb)),
        **(FAST_STREAMS if fast_streams else {}),
        **({"LLM_GATEWAY_FETCH_URLS": "true"} if fetch_urls else {}),
    }


def network_name(generation: int) -> str:
    """The name under which the edge finds the replicas with this generation of the master key."""
    return f"litellm-g{generation}"


class Gateway(pulumi.ComponentResource):
    """LiteLLM replicas, replaced in waves: each wave is healthy before the next one begins.

    Creates: the workload `litellm`. Type token: `llm-infrastructure:gateway:Gateway`.
    """

    def __init__(
        self, name: str, args: GatewayArgs, placement: Placement, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        after = pulumi.ResourceOptions(depends_on=[args.database.schema] if args.database else [])
        super().__init__("llm-infrastructure:gateway:Gateway", name, {}, pulumi.ResourceOptions.merge(opts, after))
        database = args.database
        placement.run(
            Workload(
                name=name,
                image=args.image,
                entrypoint=("python3", "-IS", programs.RUN, "entrypoint", str(AGENT_PORT)),
                command=("--config", "/app/config.yaml", "--port", str(PORT)),
                environment={
                    **environment(
                        fetch_urls=args.fetch_urls,
                        fast_streams=args.fast_streams,
                        memory_mb=args.memory_mb - (database.replica_mb if database else 0),
                    ),
                    **(WITH_DATABASE if database else {}),
                    **args.more,
                },
                files={"/app/config.yaml": args.config},
                programs=programs.files(),
                secrets={**args.secrets, **({"DATABASE_URL": database.url} if database else {})},
                health=http_health_check(PORT, LIVELINESS),
                user=f"{USER_ID}:{USER_ID}",
                file_owner=USER_ID,
                memory_mb=args.memory_mb,
                networks={
                    args.network: pulumi.Output.from_input(args.generation).apply(lambda it: network_name(int(it))),
                    **dict.fromkeys(database.networks if database else (), name),
                },
                host_gateway=HOST_NAME,
                replicas=args.replicas,
                stop_seconds=args.drain_seconds,
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.register_outputs({})
