"""The whole stack in reading order; the only module that knows all parts.

your code ──► edge ──► litellm-1 … litellm-N ──► providers / local models / demo
                          network "gateway", and redis where the settings have one
your code ──► postgres    network "data"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pulumi

from engine.image_names import stand_ins
from infra import (
    PROJECT,
    admin,
    client_limits,
    demo,
    edge,
    litellm_environment,
    model_list,
    preview_warnings,
    redis,
)
from infra.demo import DemoProvider, DemoProviderArgs
from infra.edge import Edge, EdgeArgs
from infra.gateway import Gateway, GatewayArgs
from infra.litellm_database import LiteLLMDatabase, Server
from infra.migration import Migrations
from infra.placement.docker import DockerHost
from infra.placement.engine_placement import check_engine
from infra.placement.swarm import Swarm
from infra.postgres import Postgres, PostgresArgs, SaltKeyGuard, major_version_of
from infra.secrets import RotatingSecret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

    from infra.settings import Settings
    from infra.workload import Placement

IMAGE_CHOICES = PROJECT / ".images.yaml"
GATEWAY_NETWORK = "gateway"
DATA_NETWORK = "data"


def check(settings: Settings) -> None:
    """Check the engine and the models before anything is registered. Raises RunError, with what to do."""
    model_list.check(_read("litellm/config.yaml"))
    images = [settings.litellm_image, settings.haproxy_image]
    if settings.database_url is None:
        images.append(settings.postgres_image)
    if settings.redis:
        images.append(settings.redis_image)
    # On a Swarm the nodes fetch images by themselves.
    built = stand_ins(IMAGE_CHOICES) if settings.placement == "docker" else {}
    check_engine(settings.docker_host, {image: built[image] for image in images if image in built})


def build(settings: Settings) -> Mapping[str, pulumi.Input[object]]:
    """Register every resource of the stack and return its outputs."""
    identity = RotatingSecret("identity", kind="identity")
    placement = _placement(settings, identity)
    master_key = RotatingSecret(
        "master-key",
        kind="key",
        version=settings.secret_versions.master_key,
        configured=_text(settings.master_key),
    )
    client_keys = _client_keys(settings)
    models = model_list.render(
        _read("litellm/config.yaml"), settings, demo_url=demo.url(placement), redis_host=redis.host(placement)
    )
    if pulumi.runtime.is_dry_run():
        pulumi.log.info(models.table)
    for warning in preview_warnings.of(settings, models, stand_ins(IMAGE_CHOICES)):
        pulumi.log.warn(warning)
    edge_config = master_key.generation.apply(
        lambda generation: edge.render(
            _read("edge/haproxy.cfg") + admin.edge_config(settings),
            generation=int(generation),
            host_name=placement.host_name,
            request_timeout=models.request_timeout,
            max_body_mb=settings.max_body_mb,
            tls=settings.tls_certificate is not None,
            metrics=settings.metrics_port is not None,
            virtual_keys=settings.litellm_database,
        )
    )

    placement.network(GATEWAY_NETWORK, opts=pulumi.ResourceOptions())
    database = _database(settings, placement)
    salt_key = RotatingSecret(
        "salt-key", kind="key", configured=_text(settings.salt_key), opts=database.salt_key_guarded
    )
    migrations = Migrations("migrations", database_url=database.url, server=database.server, opts=database.after)

    # Before the replicas, so that it knows a new master key when the first of them has it.
    front = Edge(
        "edge",
        EdgeArgs(
            image=settings.haproxy_image,
            memory_mb=settings.edge_memory_mb,
            address=str(settings.bind_address),
            port=settings.gateway_port,
            metrics_port=settings.metrics_port,
            admin_port=settings.admin_port,
            config=edge_config,
            bodies=_read("edge/bodies.lua"),
            usage=_read("edge/usage.lua"),
            models=models.told,
            cors_origins=settings.cors_origins,
            start=_read("edge/start.sh"),
            reload=_read("edge/reload.sh"),
            client_keys=client_keys,
            client_rpm=settings.client_rpm,
            master_key=master_key,
            certificate=_certificate(settings),
            network=GATEWAY_NETWORK,
            drain_seconds=settings.drain_seconds,
        ),
        placement,
    )
    of_litellm = _litellm_database(settings, placement, database)
    counters = redis.build(settings, placement, GATEWAY_NETWORK)
    admin_password = admin.password(settings)
    litellm = Gateway(
        "litellm",
        GatewayArgs(
            image=settings.litellm_image,
            replicas=settings.replicas,
            memory_mb=settings.litellm_memory_mb,
            fetch_urls=settings.fetch_urls,
            drain_seconds=settings.drain_seconds,
            fast_streams=settings.fast_streams,
            config=models.config,
            secrets={
                "LITELLM_MASTER_KEY": master_key.value,
                "LITELLM_SALT_KEY": salt_key.value,
                **({redis.PASSWORD_VARIABLE: counters.password} if counters else {}),
                **_litellm_secrets(settings),
                **admin.login(admin_password),
            },
            more=redis.environment(settings, placement),
            database=of_litellm,
            generation=master_key.generation,
            network=GATEWAY_NETWORK,
        ),
        placement,
        pulumi.ResourceOptions(depends_on=[migrations, front, *([counters] if counters else [])]),
    )
    client_limits.build(settings, placement, of_litellm, litellm)
    if settings.demo_answers:
        # After the replicas, because it runs their image: an image that does not work must stop at the first replica.
        DemoProvider(
            "demo",
            DemoProviderArgs(image=settings.litellm_image, files=demo.files(), network=GATEWAY_NETWORK),
            placement,
            pulumi.ResourceOptions(depends_on=[litellm]),
        )

    return {
        "litellmUrl": settings.litellm_url,
        "litellmApiKey": pulumi.Output.secret(client_keys["app"][0]),
        "clientKeys": pulumi.Output.secret({client: keys[0] for client, keys in client_keys.items()}),
        "databaseUrl": pulumi.Output.secret(database.url),
        "litellmDatabaseUrl": of_litellm and pulumi.Output.secret(of_litellm.here),
        "adminUrl": admin.url(settings),
        "adminPassword": None if admin_password is None else pulumi.Output.secret(admin_password),
        "models": list(models.served),
        "replicas": settings.replicas,
        "litellmConfig": models.config,
        "edgeConfig": edge_config,
    }


@dataclass(frozen=True, kw_only=True)
class _Database:
    url: pulumi.Input[str]
    server: pulumi.Input[str]
    after: pulumi.ResourceOptions
    salt_key_guarded: pulumi.ResourceOptions
    of_litellm: Server | None
    """The server that has LiteLLM's database, unless the settings name another one."""


def _placement(settings: Settings, identity: RotatingSecret) -> Placement:
    """Where the stack runs: on one host, or on the nodes of a Swarm."""
    if settings.placement == "docker":
        return DockerHost(
            settings.docker_host, identity=identity.value, image_choices=IMAGE_CHOICES, published_at=settings.host
        )
    return Swarm(
        settings.docker_host,
        identity=identity.value,
        image_choices=IMAGE_CHOICES,
        image_registry=settings.image_registry,
        encrypt=settings.encrypt_networks,
        constraints=settings.constraints,
        volume_node=settings.postgres_node or "",
        on_each=edge.NODE_LABEL,
        published_at=settings.host,
    )


def _database(settings: Settings, placement: Placement) -> _Database:
    """The app's database: the stack's own Postgres, or the server that the settings name."""
    if settings.database_url is not None:
        url = pulumi.Output.secret(settings.database_url.get_secret_value())
        nothing = pulumi.ResourceOptions()
        guarded = _salt_key_guard(settings, None, nothing) if settings.litellm_database else nothing
        return _Database(url=url, server="", after=nothing, salt_key_guarded=guarded, of_litellm=None)
    placement.network(DATA_NETWORK, opts=pulumi.ResourceOptions())
    host = placement.published_at(settings.postgres_volume)
    kept = pulumi.ResourceOptions(protect=settings.protect_data)  # data are useless without their passwords
    versions = settings.secret_versions
    superuser_password = RotatingSecret(
        "postgres-password",
        kind="password",
        version=versions.postgres_password,
        configured=_text(settings.postgres_password),
        opts=kept,
    )
    postgres = Postgres(
        "postgres",
        PostgresArgs(
            image=settings.postgres_image,
            major_version=_postgres_major_version(settings, placement),
            memory_mb=settings.postgres_memory_mb,
            host=host,
            address=str(settings.bind_address),
            port=settings.postgres_port,
            volume=settings.postgres_volume,
            protect=settings.protect_data,
            superuser_password=superuser_password,
            app_password=RotatingSecret(
                "database-password",
                kind="password",
                version=versions.database_password,
                retire=settings.retire_previous.database_password,
                configured=_text(settings.database_password),
                opts=kept,
            ),
            network=DATA_NETWORK,
        ),
        placement,
    )
    after = pulumi.ResourceOptions(depends_on=[postgres])
    return _Database(
        url=postgres.database_url,
        server=postgres.server,
        after=after,
        salt_key_guarded=_salt_key_guard(settings, (host, settings.postgres_port, superuser_password), after),
        of_litellm=Server(
            instance=postgres.server,
            host=host,
            superuser_password=superuser_password,
            network=DATA_NETWORK,
            name="postgres",
            ready=postgres,
        ),
    )


def _salt_key_guard(
    settings: Settings, server: tuple[str, int, RotatingSecret] | None, opts: pulumi.ResourceOptions
) -> pulumi.ResourceOptions:
    """Makes the salt key depend on the check of LiteLLM's database, in the stack's server or another one."""
    guard = SaltKeyGuard(
        "salt-key-guard",
        configured=_text(settings.salt_key),
        server=server,
        url=_text(settings.litellm_database_url),
        opts=opts,
    )
    return pulumi.ResourceOptions(depends_on=[guard])


def _litellm_database(settings: Settings, placement: Placement, database: _Database) -> LiteLLMDatabase | None:
    """LiteLLM's own database; None if the settings give it none."""
    if not settings.litellm_database:
        return None
    return LiteLLMDatabase(
        "litellm-database", settings, placement, server=database.of_litellm, network=GATEWAY_NETWORK
    )


def _postgres_major_version(settings: Settings, placement: Placement) -> str:
    """The version in the tag, or else in the image. It must be known, because it must match the data."""
    image = settings.postgres_image
    version = major_version_of(image) or placement.image_environment(image).get("PG_MAJOR", "")
    if not version.isdecimal():
        raise pulumi.RunError(
            f"postgresImage: the major version of {image} is unknown, and it must match the data. Pull it, so that "
            f"it can be read from the image: docker --host {settings.docker_host} pull {image}. Or use an image "
            f"with the version in its tag: ./pulumiw config set --stack {pulumi.get_stack()} postgresImage "
            "postgres:17@sha256:…"
        )
    return version


def _client_keys(settings: Settings) -> Mapping[str, list[pulumi.Input[str]]]:
    """The keys that each client may use: its current one first, and the one before it."""
    keys: dict[str, list[pulumi.Input[str]]] = {}
    for client in settings.clients:
        configured = [key.get_secret_value() for key in settings.client_keys.get(client, ())]
        key = RotatingSecret(
            f"client-key-{client}",
            kind="key",
            version=settings.secret_versions.client_keys.get(client, 1),
            retire=settings.retire_previous.client_keys.get(client, 0),
            configured=configured[0] if configured else None,
        )
        keys[client] = [key.value, key.previous, *map(pulumi.Output.secret, configured[1:])]
    return keys


def _certificate(settings: Settings) -> pulumi.Output[str] | None:
    """The edge's certificate, its chain and its private key in one file, as HAProxy reads them."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    parts = (settings.tls_certificate, settings.tls_key)
    return pulumi.Output.secret("".join(f"{part.get_secret_value().strip()}\n" for part in parts))


def _litellm_secrets(settings: Settings) -> Mapping[str, pulumi.Input[str]]:
    """LiteLLM's variables and files that the stack config gives it."""
    keys = model_list.key_variables(settings.models, settings.model_keys)
    files = {f"{litellm_environment.FOLDER}/{name}": text for name, text in settings.litellm_files.items()}
    return {
        name: pulumi.Output.secret(it.get_secret_value())
        for name, it in {**settings.variables, **keys, **files}.items()
    }


def _text(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _read(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")
