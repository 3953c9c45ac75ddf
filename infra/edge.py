"""The edge: HAProxy, the only part of the gateway that callers can reach.

It knows the clients and finds the replicas. Everything it knows is in live files, so a change of its config, a
client's key or the master key drops no connection.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING, Any

import pulumi

from infra import gateway
from infra.settings import REPLICA_SLOTS
from infra.workload import LIVE, LOOPBACK, HealthCheck, LiveFilesArgs, Placement, Port, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from infra.secrets import RotatingSecret

PORT = 4000
METRICS_PORT = 8404
ADMIN_PORT = 4003
# Inside the container only.
HEALTH_PORT = 8405
MASTER_PORT = 8406
PEERS_PORT = 8407
FALLBACK_PORT = 8408
FALLBACK_HEALTH_PORT = 8409
CHECKED = "/v1/models"
"""The path that the edge requests from a replica to check it, with the key."""
USER_ID = 99
"""The id of the user `haproxy` in HAProxy's image."""
NODE_LABEL = "edge"
"""On a cluster: the label of the nodes that callers connect to."""
REPLICA_CONNECTIONS = 1000
"""The most requests that a replica handles at once, streams included: as many as OpenAI's SDK, which LiteLLM uses to
ask providers, opens connections."""
CONNECTIONS = 4096
"""The most connections from callers that an edge accepts, idle ones included. Each open request takes about 85 KB of
its memory (plain HTTP, measured)."""
CONNECTIONS_SPARE = CONNECTIONS // 10
"""How many of these connections it keeps for callers whom it tells that there is no more room."""
RETRY_AFTER_SECONDS = 5
"""When refused callers may ask again."""
SECONDS_OVER_REQUEST_TIMEOUT = 30
"""How much longer than LiteLLM the edge waits for an answer: a busy replica's error about a timeout must still
arrive."""
STOP_SECONDS = 10
"""Short, because a stopping edge accepts nobody. Only a new image, port or limit makes it stop at all."""
CONFIG = "haproxy.cfg"
BODIES = "bodies.lua"
USAGE = "usage.lua"
SERVERS_STATE = "/tmp/servers.state"  # noqa: S108 -- in a container of its own, where that is what can be written
START = "/usr/local/bin/edge-start"
RELOAD = "/usr/local/bin/edge-reload"
MEGABYTE = 1_000_000

# The image has no HTTP client either, but it has bash.
HEALTH_CHECK = (
    f"exec 3<>/dev/tcp/{LOOPBACK}/{HEALTH_PORT} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 "
    "&& read -r -t 9 line <&3 && [[ $line == *' 200 '* ]]"
)


@dataclass(frozen=True, kw_only=True)
class EdgeArgs:
    """What the edge runs with."""

    image: str
    memory_mb: int
    address: str
    port: int
    metrics_port: int | None
    """Where the metrics and the statistics page are published, on the host's loopback address; None for nowhere."""
    admin_port: int | None
    """Where LiteLLM's page and administration are published, on the same address; None for nowhere."""
    config: pulumi.Input[str]
    """HAProxy's rendered config."""
    bodies: str
    """HAProxy's Lua program that bounds bodies."""
    usage: str
    """HAProxy's Lua program that serves what the replicas have counted."""
    models: Mapping[str, Mapping[str, Any]]
    """The served models, each with what callers are told about it beside its name."""
    cors_origins: Sequence[str]
    """The origins whose pages may send requests from a browser; `*` for any."""
    start: str
    """The script that starts HAProxy."""
    reload: str
    """The script that makes HAProxy load new files."""
    client_keys: Mapping[str, Sequence[pulumi.Input[str]]]
    """The keys of each client; empty and repeated ones are ignored."""
    client_rpm: Mapping[str, int]
    """The most requests per minute of each client that has a limit."""
    master_key: RotatingSecret
    certificate: pulumi.Input[str] | None
    """A certificate with its chain and its private key, as PEM; without it the edge speaks plain HTTP."""
    network: str
    drain_seconds: int
    """How long an edge may take to finish its open requests, if other edges accept callers meanwhile."""


def render(  # noqa: PLR0913 -- all are needed, all by name
    template: str,
    *,
    generation: int,
    host_name: Callable[[str], str],
    request_timeout: int,
    max_body_mb: int,
    tls: bool,
    metrics: bool,
    virtual_keys: bool,
) -> str:
    """Fill in HAProxy's config, which has no secret in it.

    `generation` is that of the master key, `host_name` returns the name under which an alias is found,
    `request_timeout` is in seconds. `virtual_keys` says whether keys that the edge does not know may be LiteLLM's.
    """
    newest, previous = gateway.network_name(generation), gateway.network_name(generation - 1)
    return Template(template).substitute(
        PORT=PORT,
        TLS=_switch(tls),
        METRICS=_switch(metrics),
        VIRTUAL_KEYS=_switch(virtual_keys),
        METRICS_PORT=METRICS_PORT,
        ADMIN_PORT=ADMIN_PORT,
        HEALTH_PORT=HEALTH_PORT,
        PEERS_PORT=PEERS_PORT,
        FALLBACK_PORT=FALLBACK_PORT,
        FALLBACK_HEALTH_PORT=FALLBACK_HEALTH_PORT,
        CHECKED=CHECKED,
        SERVERS_STATE=SERVERS_STATE,
        SERVER_TIMEOUT_SECONDS=request_timeout + SECONDS_OVER_REQUEST_TIMEOUT,
        MAX_BODY_MB=max_body_mb,
        MAX_BODY_BYTES=max_body_mb * MEGABYTE,
        FILES=f"{LIVE}/current",
        CONNECTIONS=CONNECTIONS,
        CONNECTIONS_USED=CONNECTIONS - CONNECTIONS_SPARE,
        RETRY_AFTER_SECONDS=RETRY_AFTER_SECONDS,
        REPLICA_SLOTS=REPLICA_SLOTS,
        REPLICA_CONNECTIONS=REPLICA_CONNECTIONS,
        REPLICA_PORT=gateway.PORT,
        AGENT_PORT=gateway.AGENT_PORT,
        NEWEST=newest,
        NEWEST_HOST=host_name(newest),
        PREVIOUS=previous,
        PREVIOUS_HOST=host_name(previous),
    )


def _switch(on: bool) -> str:  # noqa: FBT001
    return "on" if on else "off"


def _models_map(models: Mapping[str, Mapping[str, Any]]) -> str:
    """HAProxy's map from a model's name to what OpenAI's API says about it, as LiteLLM formats it; one line each."""
    told = {"object": "model", "created": 1677610602, "owned_by": "openai"}
    return "".join(f"{name} {json.dumps({'id': name, **told, **models[name]})}\n" for name in sorted(models))


def _clients_map(keys: Mapping[str, list[str]]) -> str:
    """HAProxy's map from key to client, a line each."""
    return "".join(f"{key} {client}\n" for client in sorted(keys) for key in dict.fromkeys(keys[client]) if key)


def _master_keys_map(key: RotatingSecret) -> pulumi.Output[str]:
    """HAProxy's map from the name of a generation's replicas to their master key."""
    return pulumi.Output.all(key.generation, key.value, key.previous).apply(
        lambda it: "".join(
            f"{gateway.network_name(int(it[0]) - age)} {value}\n" for age, value in enumerate(it[1:]) if value
        )
    )


class Edge(pulumi.ComponentResource):
    """HAProxy before the replicas.

    Creates: the workload `edge`. Type token: `llm-infrastructure:edge:Edge`.
    """

    def __init__(
        self, name: str, args: EdgeArgs, placement: Placement, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("llm-infrastructure:edge:Edge", name, {}, opts)
        ports = [Port(internal=PORT, external=args.port, address=args.address)]
        if args.metrics_port:
            ports.append(Port(internal=METRICS_PORT, external=args.metrics_port, address=LOOPBACK))
        if args.admin_port:
            ports.append(Port(internal=ADMIN_PORT, external=args.admin_port, address=LOOPBACK))
        secrets: dict[str, pulumi.Input[str]] = {
            "clients.map": pulumi.Output.all(**{name: list(keys) for name, keys in args.client_keys.items()}).apply(
                _clients_map
            ),
            "master-keys.map": _master_keys_map(args.master_key),
        }
        if args.certificate:
            secrets["certificate.pem"] = args.certificate
        config = f"{LIVE}/current/{CONFIG}"
        placement.run(
            Workload(
                name=name,
                image=args.image,
                entrypoint=(
                    *("bash", START, SERVERS_STATE, config),
                    *("haproxy", "-W", "-db", "-S", f"{LOOPBACK}:{MASTER_PORT}", "-f", config),
                ),
                files={START: args.start, RELOAD: args.reload},
                live=LiveFilesArgs(
                    files={
                        CONFIG: args.config,
                        BODIES: args.bodies,
                        USAGE: args.usage,
                        "models.map": _models_map(args.models),
                        "origins.lst": "".join(f"{origin}\n" for origin in sorted(args.cors_origins)),
                        "rpm.map": "".join(f"{client} {rpm}\n" for client, rpm in sorted(args.client_rpm.items())),
                    },
                    secrets=secrets,
                    check=("env", "FILES=.", "haproxy", "-c", "-q", "-f", CONFIG),
                    reload=("bash", RELOAD, SERVERS_STATE, str(MASTER_PORT)),
                ),
                health=HealthCheck(command=("bash", "-c", HEALTH_CHECK)),
                user="haproxy",
                file_owner=USER_ID,
                memory_mb=args.memory_mb,
                networks={args.network: name},
                ports=tuple(ports),
                on_each=NODE_LABEL,
                stop_seconds=STOP_SECONDS,
                drain_seconds=args.drain_seconds,
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.register_outputs({})
