"""What a stack asks Pulumi for with placement swarm, recorded by mocks: no engine, no CLI."""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Any

import docker
import pulumi
import pytest
import yaml
from pulumi.runtime import mocks

from infra import edge, gateway, postgres, redis
from infra.placement import cluster, swarm
from infra.stack import build
from infra.stack_config import validate
from tests.stack_config import KEY, OTHER_KEY, PROJECT_NAME, raw_config
from tests.unit.test_cluster import MANAGER, Engine, node
from tests.unit.test_stack import Recorder, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infra.settings import Settings

REGISTRY = "registry.example:5000"
ON_A_SWARM = {"placement": "swarm", "bindAddress": "0.0.0.0", "allowPlainHttp": "true"}  # noqa: S104
PREFIX = f"{PROJECT_NAME}-dev"


class Swarm(Engine):
    """A manager and a worker, both accept callers; a registry has every image for amd64."""

    def __init__(self, *, has_images: bool = True) -> None:
        super().__init__([node(1, role="manager", edge="true"), node(2, edge="true", gpu="yes")], MANAGER)
        self.images = self
        self._has_images = has_images

    def get_registry_data(self, name: str, **_: object) -> Any:
        if not self._has_images:
            raise docker.errors.NotFound("404", explanation="manifest unknown")
        attributes = {"Platforms": [{"architecture": "amd64", "os": "linux"}]}
        return type("Data", (), {"id": f"sha256:of-{name}", "attrs": attributes})


class Services(Recorder):
    """What a Swarm was asked for."""

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        id_, made = super().new_resource(args)
        more = {":Converged": {"instance": "tasks"}, ":LiteLLMLogin": {"login": "litellm_1"}}
        return id_, next((made | each for kind, each in more.items() if args.typ.endswith(kind)), made)

    def services(self) -> dict[str, dict[str, Any]]:
        return {name: inputs for (kind, name), inputs in self.inputs.items() if kind.endswith(":Service")}

    def specs(self) -> dict[str, dict[str, Any]]:
        """What each service's containers are to be."""
        return {name: inputs["taskSpec"]["containerSpec"] for name, inputs in self.services().items()}

    def contents(self, kind: str) -> dict[str, str]:
        """The content of each of Swarm's secrets or configs."""
        return {
            name: b64decode(plain(inputs["data"])).decode()
            for (each, name), inputs in self.inputs.items()
            if each.endswith(kind)
        }


@pytest.fixture
def registered(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Services]]:
    """Run the program's `build` with settings on a Swarm, and return what it registered."""

    def run(engine: Swarm | None = None, **changes: object) -> Services:
        for module in (cluster, swarm):
            monkeypatch.setattr(module, "connect", lambda _: engine or Swarm())
        recorder = Services()
        mocks.set_mocks(recorder, project=PROJECT_NAME, stack="dev", preview=False)
        chosen = settings("dev", **{**ON_A_SWARM, **changes})

        @pulumi.runtime.test  # type: ignore[untyped-decorator]
        def program() -> pulumi.Output[object]:
            return pulumi.Output.all(**build(chosen))

        program()
        return recorder

    yield run
    pulumi.runtime.settings.reset_options()


def test_each_part_is_a_service(registered: Callable[..., Services]) -> None:
    """Replicas are tasks of one service, and the edge runs on each node. There are no containers as on one host."""
    recorder = registered(replicas="3")
    modes = {name: inputs["mode"] for name, inputs in recorder.services().items()}
    assert modes == {
        "demo": {"replicated": {"replicas": 1}},
        "edge": {"global": True},
        "litellm": {"replicated": {"replicas": 3}},
        "postgres": {"replicated": {"replicas": 1}},
    }
    assert recorder.containers() == {}
    assert {name for kind, name in recorder.inputs if kind.endswith(":Converged")} == {
        f"{name}-converged" for name in modes
    }


def test_services_are_found_by_the_names_of_their_parts(registered: Callable[..., Services]) -> None:
    """DNS knows a service by its name. The name of LiteLLM's service contains the generation of its master key."""
    recorder = registered()
    assert {inputs["name"] for inputs in recorder.services().values()} == {
        f"{PREFIX}-demo",
        f"{PREFIX}-edge",
        f"{PREFIX}-litellm-g1",
        f"{PREFIX}-postgres",
    }
    assert f"{PREFIX}-litellm-g1" in recorder.contents(":ServiceConfig")["edge-haproxy.cfg"]
    assert f"http://{PREFIX}-demo:8080" in recorder.contents(":ServiceConfig")["litellm-config.yaml"]


def test_replicas_find_redis_by_the_name_of_its_service(registered: Callable[..., Services]) -> None:
    recorder = registered(litellmDatabase="true", redis="true")
    config = yaml.safe_load(recorder.contents(":ServiceConfig")["litellm-config.yaml"])
    assert config["general_settings"]["coordination_redis"]["host"] == f"{PREFIX}-redis"
    assert f"{redis.ADDRESS_VARIABLE}={PREFIX}-redis:{redis.PORT}" in recorder.specs()["litellm"]["commands"]


@pytest.mark.parametrize(
    ("name", "order"),
    [("litellm", "start-first"), ("demo", "start-first"), ("edge", "stop-first"), ("postgres", "stop-first")],
)
def test_tasks_are_replaced_in_order_and_rolled_back(
    registered: Callable[..., Services], name: str, order: str
) -> None:
    """A part with a node's port or a volume cannot run beside its successor; others start the successor first."""
    service = registered().services()[name]
    assert (service["updateConfig"]["order"], service["rollbackConfig"]["order"]) == (order, order)
    assert service["updateConfig"]["failureAction"] == "rollback"


@pytest.mark.parametrize(("replicas", "at_once"), [(1, 1), (2, 1), (3, 1), (4, 2), (16, 8)])
def test_half_of_the_replicas_are_replaced_at_once(
    registered: Callable[..., Services], replicas: int, at_once: int
) -> None:
    """At least one. For a part that cannot run beside its successor, exactly one, however many nodes there are."""
    services = registered(replicas=str(replicas)).services()
    settings = [services["litellm"][f"{what}Config"]["parallelism"] for what in ("update", "rollback")]
    assert settings == [at_once, at_once]
    assert services["edge"]["updateConfig"]["parallelism"] == 1


def test_each_task_has_its_time_to_end_when_it_is_replaced(registered: Callable[..., Services]) -> None:
    """There is one edge on each node, and each may finish its open requests before it is the next one's turn."""
    recorder = registered(replicas="3", drainSeconds="600")
    seconds = {name: each["seconds"] for (kind, name), each in recorder.inputs.items() if kind.endswith(":Converged")}
    assert seconds["edge-converged"] > 2 * 600
    assert seconds["litellm-converged"] > 3 * 600
    many = registered(replicas="16", drainSeconds="600")
    seconds = {name: each["seconds"] for (kind, name), each in many.inputs.items() if kind.endswith(":Converged")}
    assert 2 * 600 < seconds["litellm-converged"] < 3 * 600  # half of them in each of two turns


def test_published_ports_are_those_of_the_nodes(registered: Callable[..., Services]) -> None:
    """Without virtual addresses and the routing mesh, which not every kernel supports."""
    services = registered(gatewayPort="4100").services()
    assert {inputs["endpointSpec"]["mode"] for inputs in services.values()} == {"dnsrr"}
    published = {name: inputs["endpointSpec"].get("ports") for name, inputs in services.items()}
    host = {"protocol": "tcp", "publishMode": "host"}
    assert {name: ports for name, ports in published.items() if ports} == {
        "edge": [{"targetPort": edge.PORT, "publishedPort": 4100, **host}],
        "postgres": [{"targetPort": postgres.PORT, "publishedPort": 5432, **host}],
    }


def test_secrets_are_files_that_only_their_process_can_read(registered: Callable[..., Services]) -> None:
    recorder = registered(openaiApiKey="sk-1")
    secrets = {
        name: {(each["fileName"], each["fileUid"], each["fileGid"], each["fileMode"]) for each in spec["secrets"]}
        for name, spec in recorder.specs().items()
    }
    nobody, haproxy, database = (str(owner) for owner in (gateway.USER_ID, edge.USER_ID, postgres.USER_ID))
    assert secrets == {
        "litellm": {
            (f"/run/secrets/{name}", nobody, nobody, 0o400)
            for name in ("LITELLM_MASTER_KEY", "LITELLM_SALT_KEY", "OPENAI_API_KEY")
        },
        "edge": {
            (f"/run/live/current/{name}", haproxy, haproxy, 0o400) for name in ("clients.map", "master-keys.map")
        },
        "postgres": {("/run/secrets/postgres_password", database, database, 0o400)},
    }
    contents = recorder.contents(":Secret")
    assert contents["litellm-OPENAI_API_KEY"] == "sk-1"
    assert "value-of-client-key-app app\n" in contents["edge-clients.map"]


def test_variables_and_files_of_the_stack_config_are_secrets_of_the_swarm(
    registered: Callable[..., Services],
) -> None:
    """With names that it accepts: at most 64 characters, of which the provider adds eight."""
    variable = "X" * 48
    recorder = registered(litellmEnvironment={variable: "1", "GROQ_API_KEY": "K"}, litellmFiles={"v.json": "{}"})
    contents = recorder.contents(":Secret")
    named = {name: contents[f"litellm-{name}"] for name in (variable, "GROQ_API_KEY", "v.json")}
    assert named == {variable: "1", "GROQ_API_KEY": "K", "v.json": "{}"}
    assert max(map(len, contents)) <= 64 - 8
    paths = {each["fileName"] for each in recorder.specs()["litellm"]["secrets"]}
    assert paths >= {"/run/secrets/GROQ_API_KEY", "/run/secrets/files/v.json"}


def test_no_secret_is_anywhere_else(registered: Callable[..., Services]) -> None:
    """Neither in a service's inspection nor in a config: everybody with access to the Swarm can read those."""
    recorder = registered(openaiApiKey="sk-the-key", clientKeys={"batch": [OTHER_KEY, KEY]})
    assert f"{KEY} batch" in recorder.contents(":Secret")["edge-clients.map"]
    for shown in (*map(str, recorder.services().values()), *recorder.contents(":ServiceConfig").values()):
        for secret in ("sk-the-key", KEY, "value-of-master-key", "value-of-client-key", "value-of-postgres-password"):
            assert secret not in shown


def test_variables_keep_their_order(registered: Callable[..., Services]) -> None:
    """The provider sends a service's variables in another order each time, and Swarm would replace tasks for it."""
    for name, spec in registered().specs().items():
        assert len(spec.get("env") or {}) < 2 or name == "postgres"  # of which each change replaces the one task
    environment = gateway.environment(fetch_urls=False, fast_streams=True, memory_mb=1024)
    variables = [f"{name}={value}" for name, value in sorted(environment.items())]
    assert registered().specs()["litellm"]["commands"][: len(variables) + 2] == ["env", *variables, "python3"]


def test_roots_are_read_only_but_for_the_data(registered: Callable[..., Services]) -> None:
    specs = registered().specs()
    assert {name: spec["readOnly"] for name, spec in specs.items()} == {
        "demo": True,
        "edge": True,
        "litellm": True,
        "postgres": False,
    }
    mounts = {name: [(each["type"], each["target"]) for each in spec["mounts"]] for name, spec in specs.items()}
    assert mounts == {
        "demo": [("tmpfs", "/tmp")],  # noqa: S108
        "edge": [("tmpfs", "/tmp")],  # noqa: S108
        "litellm": [("tmpfs", "/tmp")],  # noqa: S108
        "postgres": [("volume", postgres.DATA), ("tmpfs", "/dev/shm")],  # noqa: S108
    }


@pytest.mark.parametrize("rpm", [{}, {"batch": 600}])
def test_a_warning_says_that_each_edge_counts_a_rate(
    registered: Callable[..., Services], monkeypatch: pytest.MonkeyPatch, rpm: dict[str, int]
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", warned.append)
    registered(clientKeys={"batch": ""}, clientRpm=rpm)
    assert len([each for each in warned if "each edge of a Swarm counts by itself" in each]) == len(rpm)


def test_memory_is_bounded_and_part_of_it_reserved(registered: Callable[..., Services]) -> None:
    resources = registered(litellmMemoryMb="1024").services()["litellm"]["taskSpec"]["resources"]
    assert resources == {"limits": {"memoryBytes": 2**30}, "reservation": {"memoryBytes": 2**28}}


def constraints(recorder: Services) -> dict[str, list[str]]:
    return {name: inputs["taskSpec"]["placement"]["constraints"] for name, inputs in recorder.services().items()}


def test_where_parts_may_run(registered: Callable[..., Services]) -> None:
    """The edge on labelled nodes, Postgres on the node with its volume, everything else where the config says."""
    anywhere = constraints(registered())
    assert anywhere["litellm"] == []
    chosen = constraints(registered(constraints=["node.role == worker", "node.labels.gpu == yes"]))
    assert chosen == {
        "demo": ["node.labels.gpu == yes", "node.role == worker"],
        "edge": ["node.labels.edge == true"],
        "litellm": ["node.labels.gpu == yes", "node.role == worker"],
        "postgres": ["node.id == id-1"],
    }


def test_postgres_on_a_node_that_you_choose(registered: Callable[..., Services]) -> None:
    """Its volume is made there by Swarm, and it is reached at that node's address."""
    recorder = registered(postgresNode="node-2")
    assert constraints(recorder)["postgres"] == ["node.id == id-2"]
    assert not [name for kind, name in recorder.inputs if kind.endswith(":Volume")]
    roles = next(inputs for (kind, _), inputs in recorder.inputs.items() if kind.endswith(":DatabaseRoles"))
    assert roles["host"] == "10.0.0.2"
    mount, _ = recorder.specs()["postgres"]["mounts"]
    assert mount["source"] == f"{PREFIX}-postgres-data"


@pytest.mark.parametrize(("switch", "options"), [("true", {"encrypted": ""}), ("false", None)])
def test_networks_are_encrypted_unless_switched_off(
    registered: Callable[..., Services], switch: str, options: dict[str, str] | None
) -> None:
    networks = {
        inputs["name"]: (inputs["driver"], inputs.get("options"))
        for (kind, _), inputs in registered(encryptNetworks=switch).inputs.items()
        if kind.endswith(":Network")
    }
    assert networks == {f"{PREFIX}-{name}-overlay": ("overlay", options) for name in ("gateway", "data")}


def test_networks_that_services_use_keep_their_encryption(registered: Callable[..., Services]) -> None:
    """The engine cannot remove networks in use: a preview refuses the change, with the command that undoes it."""
    engine = Swarm()
    engine.overlays = [
        {"Id": "1", "Name": f"{PREFIX}-data-overlay", "Options": {"encrypted": "", "vxlanid": "4097"}},
        {"Id": "2", "Name": f"{PREFIX}-2-data-overlay", "Options": None},  # of a stack dev-2
    ]
    engine.used = ["2"]
    assert registered(engine, encryptNetworks="false").services()
    engine.used = ["1", "2"]
    assert registered(engine, encryptNetworks="true").services()
    with pytest.raises(pulumi.RunError, match=r"\./pulumiw config set --stack dev encryptNetworks true"):
        registered(engine, encryptNetworks="false")
    engine.overlays[0]["Options"] = None
    with pytest.raises(pulumi.RunError, match=r"\./pulumiw config set --stack dev encryptNetworks false"):
        registered(engine, encryptNetworks="true")


def test_images_are_named_by_digest(registered: Callable[..., Services]) -> None:
    """From your own registry, if there is one."""
    assert "@sha256:of-" in registered().specs()["edge"]["image"]
    image = registered(imageRegistry=REGISTRY, postgresImage="mirror.example/team/postgres:17.2").specs()["postgres"][
        "image"
    ]
    name = f"{REGISTRY}/team/postgres:17.2"
    assert image == f"{name}@sha256:of-{name}"


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"imageRegistry": REGISTRY}, "make push STACK=dev, which fills it"),
        ({}, "./pulumiw config set --stack dev imageRegistry HOST:PORT, then make push fills it"),
    ],
)
def test_an_image_that_nodes_cannot_get(
    registered: Callable[..., Services], changes: dict[str, str], fix: str
) -> None:
    with pytest.raises(pulumi.RunError, match="The nodes of the Swarm cannot get the image") as caught:
        registered(Swarm(has_images=False), **changes)
    assert "manifest unknown" in str(caught.value)
    assert fix in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"postgresNode": "node-9"}, ["has no node node-9", "It has node-1, node-2", "postgresNode NAME"]),
        ({"constraints": ["node.labels.gpu == no"]}, ["constraints: no node", "node-2 (worker, ready;"]),
    ],
)
def test_a_swarm_without_a_fitting_node_is_refused_before_anything_is_registered(
    registered: Callable[..., Services], changes: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(pulumi.RunError) as caught:
        registered(**changes)
    for words in ["nothing was changed", *said]:
        assert words in str(caught.value)


def test_litellms_database_is_changed_by_what_runs_where_its_replicas_do(
    registered: Callable[..., Services],
) -> None:
    """With the same image, nodes and network. Both reach Postgres by the name of its service."""
    recorder = registered(litellmDatabase="true", constraints=["node.labels.gpu == yes"], postgresNode="node-2")
    schema = next(inputs for (kind, _), inputs in recorder.inputs.items() if kind.endswith(":LiteLLMSchema"))
    job, litellm = plain(schema["job"]), recorder.services()["litellm"]["taskSpec"]
    assert schema["image"] == job["image"] == litellm["containerSpec"]["image"]
    assert job["constraints"] == litellm["placement"]["constraints"] == ["node.labels.gpu == yes"]
    assert job["platforms"] == [["amd64", "linux"]]
    assert job["networks"] == ["data-overlay-id"]
    assert {each["id"] for each in litellm["networksAdvanceds"]} == {"gateway-overlay-id", "data-overlay-id"}
    url = recorder.contents(":Secret")["litellm-DATABASE_URL"]
    assert url == job["secrets"]["DATABASE_URL"]
    assert url.endswith(f"@{PREFIX}-postgres:5432/litellm")
    assert plain(schema["url"]).endswith("@10.0.0.2:5432/litellm")
    assert recorder.services()["litellm"]["name"] == f"{PREFIX}-litellm-g1"


@pytest.mark.parametrize(
    ("changes", "key", "what"),
    [
        (ON_A_SWARM | {"bindAddress": "10.0.0.5"}, "bindAddress", "publishes a port on every address of a node"),
        (ON_A_SWARM | {"metricsPort": "9100"}, "metricsPort", "a Swarm cannot publish on loopback only"),
        (ON_A_SWARM | {"adminPort": "9100"}, "adminPort", "a Swarm cannot publish on loopback only"),
        ({"imageRegistry": REGISTRY}, "imageRegistry", "is for a Swarm, but placement is docker"),
        ({"constraints": ["node.role == worker"]}, "constraints", "is for a Swarm, but placement is docker"),
        ({"postgresNode": "node-1"}, "postgresNode", "is for a Swarm, but placement is docker"),
        (ON_A_SWARM | {"constraints": ["gpu"]}, "constraints[0]", "is not a placement constraint of Docker"),
        (ON_A_SWARM | {"imageRegistry": "https://x"}, "imageRegistry", "pattern"),
        (ON_A_SWARM | {"placement": "kubernetes"}, "placement", "'docker' or 'swarm'"),
    ],
)
def test_what_does_not_go_with_a_placement(changes: dict[str, Any], key: str, what: str) -> None:
    found = validate(raw_config("dev", **changes), secret=())[1]
    assert [problem.key for problem in found] == [key]
    assert what in found[0].what
