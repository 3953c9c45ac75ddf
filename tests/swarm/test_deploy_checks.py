"""The checks of tests/deploy on a Swarm: all pass over a stack as it was deployed, and each finds its fault."""

from __future__ import annotations

import base64
import re
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from pulumi import automation

from engine.connection import DEFAULT_HOST
from engine.labels import LABEL
from infra.placement.swarm_services import await_convergence
from infra.workload import MEBIBYTE
from tests.certificates import certify
from tests.engines import needs_an_engine_of_its_own
from tests.integration.test_deploy_checks import check, failed
from tests.stack_config import PROJECT_NAME
from tests.stacks import deployed
from tests.swarm.cluster import until
from tests.swarm.conftest import place_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.stacks import Deployment
    from tests.swarm.cluster import Cluster

    Spec = dict[str, Any]

CHECKS = "tests/deploy"
GATEWAY, NODES = (f"{CHECKS}/test_{name}.py" for name in ("gateway", "swarm_nodes"))
UPDATE_SECONDS = 180
OTHER_PORT = 8081
OF_ANOTHER_PROJECT = "notes-config.yaml-0123abc"

pytestmark = needs_an_engine_of_its_own


@pytest.fixture(scope="module")
def deployment(
    swarm: Cluster,
    tmp_path_factory: pytest.TempPathFactory,
    fill_with_redis: Callable[[Deployment], None],
    *,
    of_litellm: bool,
) -> Iterator[Deployment]:
    """A stack with TLS, and two clients; with `make test-swarm DATABASE=1` also with LiteLLM's database and Redis."""

    def configure(made: Deployment) -> None:
        place_on(swarm)(made)
        for key, value in certify("gateway.example").settings.items():
            made.stack.set_config(key, automation.ConfigValue(value, secret=True))
        made.set_path("clientKeys.batch", "", secret=True)
        if of_litellm:
            made.set(litellmDatabase="true")
            fill_with_redis(made)

    with deployed(tmp_path_factory.mktemp("checked"), configure, host=swarm.nodes[0].host) as made:
        yield made
    engine: Any = swarm.leader().client
    for config in engine.configs.list(filters={"name": f"{PROJECT_NAME}-{made.name}"}):
        config.remove()  # of a fault


@pytest.fixture
def nodes(swarm: Cluster) -> list[str]:
    """The option that has the checks look into containers on every node."""
    return [argument for node in swarm.nodes for argument in ("--node", node.host)]


def skipped(printed: str) -> list[str]:
    """Why checks were skipped."""
    return re.findall(r"^SKIPPED \[\d+\] \S+: (.*)$", printed, re.MULTILINE)


def without_nodes(names: set[str]) -> set[str]:
    """Names of checks with no word of where the Swarm has put a task."""
    return {re.sub(r"\.\d+@node-\d", "", name) for name in names}


def test_all_is_well_with_a_stack_as_it_was_deployed(deployment: Deployment, nodes: list[str]) -> None:
    """Nothing fails, and nothing has to be skipped but what these engines' own settings would have to forbid."""
    result = check(deployment, CHECKS, *nodes)
    assert result.returncode == 0
    assert [why for why in skipped(result.stdout) if '"no-new-privileges": true into' not in why] == []
    assert "test_docker.py" not in result.stdout


def test_what_only_other_nodes_know_is_reported_as_missing(deployment: Deployment) -> None:
    result = check(deployment, NODES, "-k", "test_each_container_can_be_looked_into")
    assert result.returncode == 0
    [why] = skipped(result.stdout)
    assert "edge@node-2, edge@node-3" in why
    assert f".venv/bin/pytest tests/deploy --stack {deployment.name} --node ssh://node-2 --node ssh://node-3" in why


def test_a_node_of_no_part_in_it_is_refused(deployment: Deployment) -> None:
    result = check(deployment, NODES, "--node", DEFAULT_HOST)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    refusal = f"the engine at {DEFAULT_HOST}, --node, is no node of the Swarm of stack {deployment.name}"
    assert refusal in result.stdout


def test_an_edge_node_that_lost_its_label_accepts_nobody(swarm: Cluster, deployment: Deployment) -> None:
    """One check fails, that of the gateway's liveliness where callers reach it; others about it are not run."""
    first, *others = swarm.nodes
    name = f"{PROJECT_NAME}-{deployment.name}-edge"
    of_edge: dict[str, Any] = {"label": f"com.docker.swarm.service.name={name}"}
    swarm.label(first, "edge", "false")
    try:
        swarm.await_running(name, *others)
        # It accepts callers until it has ended; and the next one would fail at the port that it still has.
        until(lambda: not first.client.containers.list(filters=of_edge), "the edge has ended")
        result = check(deployment, GATEWAY)
    finally:
        swarm.label(first, "edge", "true")
        swarm.await_running(name, *swarm.nodes)
    assert failed(result) == {"test_it_is_alive_through_the_edge"}
    assert "see test_it_is_alive_through_the_edge" in result.stdout
    assert f"service ps --no-trunc {name}" in result.stdout


class Faults:
    """What is wrong with a stack, and what the checks have to say to it."""

    def __init__(self, swarm: Cluster, deployment: Deployment) -> None:
        self.swarm = swarm
        self.deployment = deployment
        self.engine = deployment.engine
        self.prefix = f"{PROJECT_NAME}-{deployment.name}"
        self.failures: set[str] = set()
        self.advice: list[str] = []

    def expect(self, *failures: str, advice: str) -> None:
        self.failures.update(failures)
        self.advice.append(advice)

    def service(self, part: str) -> Any:
        services: Any = self.engine.services
        return services.get(f"{self.prefix}-{part}")

    def change(self, part: str, *changes: Callable[[Faults, Spec], None]) -> None:
        """Change a service by hand, as `docker service update` does."""
        service = self.service(part)
        spec = service.attrs["Spec"]
        for each in changes:
            each(self, spec)
        api: Any = self.engine.api
        url = api._url("/services/{0}/update", service.id)
        api._raise_for_status(api.post(url, json=spec, params={"version": service.version}))

    def kill(self, part: str) -> None:
        """Kill the first process of a task of a part, as a crash does."""
        [task, *_] = self.service(part).tasks({"desired-state": "running"})
        node = next(node for node in self.swarm.nodes if node.id == task["NodeID"])
        node.run("kill", "-KILL", str(task["Status"]["ContainerStatus"]["PID"]))
        until(lambda: any(it["Status"]["State"] == "failed" for it in self.service(part).tasks()), "a task failed")


def a_replica_more(faults: Faults, spec: Spec) -> None:
    spec["Mode"]["Replicated"]["Replicas"] = 2
    faults.expect(
        "test_it_runs_as_many_tasks_as_declared[demo]",
        advice="{prefix}-demo was scaled by hand: it has 2 replicas, and 1 are declared",
    )


def another_image(faults: Faults, spec: Spec) -> None:
    container = spec["TaskTemplate"]["ContainerSpec"]
    container["Image"] = container["Image"].split("@")[0]
    faults.expect(
        "test_it_is_the_one_that_the_state_knows[demo]",
        advice="{prefix}-demo runs another image than the state says. Put that one there: ./pulumiw up --refresh",
    )


def root_and_a_folder_of_the_host(faults: Faults, spec: Spec) -> None:
    spec["TaskTemplate"]["ContainerSpec"]["User"] = "0"
    spec["TaskTemplate"]["ContainerSpec"]["Mounts"].append({"Type": "bind", "Source": "/etc", "Target": "/host"})
    faults.expect(
        "test_it_is_confined[demo]",
        "test_no_process_in_it_has_a_privilege[demo]",
        "test_its_secrets_are_for_its_own_processes[demo]",
        advice="{prefix}-demo may do other than declared. As declared: ./pulumiw up --refresh --stack {stack}",
    )


def more_memory_and_a_larger_log(faults: Faults, spec: Spec) -> None:
    spec["TaskTemplate"]["Resources"]["Limits"]["MemoryBytes"] += MEBIBYTE
    spec["TaskTemplate"]["LogDriver"]["Options"]["max-size"] = "1g"
    faults.expect(
        "test_its_memory_and_its_log_are_bounded_as_configured[demo]",
        advice="{prefix}-demo has another memory limit or reservation than the stack config",
    )


def a_port(faults: Faults, spec: Spec) -> None:
    port = {"Protocol": "tcp", "TargetPort": 8080, "PublishedPort": OTHER_PORT, "PublishMode": "host"}
    spec["EndpointSpec"]["Ports"] = [port]
    faults.expect(
        "test_its_ports_are_published_as_configured[demo]",
        advice="{prefix}-demo is reachable elsewhere than configured",
    )


def another_network(faults: Faults, spec: Spec) -> None:
    [network] = faults.engine.networks.list(names=[f"{faults.prefix}-data-overlay"])
    spec["TaskTemplate"]["Networks"].append({"Target": network.id})
    faults.expect("test_it_is_in_no_other_network[demo]", advice="{prefix}-demo is in other networks")


def a_key_in_the_environment(faults: Faults, spec: Spec) -> None:
    spec["TaskTemplate"]["ContainerSpec"]["Env"] = [f"KEY={faults.deployment.secret('master-key')}"]
    faults.expect(
        "test_it_starts_as_declared[demo]",
        "test_service_inspect_shows_no_secret[demo]",
        "test_docker_inspect_shows_no_secret[demo]",
        advice="master-key (value): ./pulumiw config set --stack {stack} --path secretVersions.masterKey 2",
    )


def another_program(faults: Faults, spec: Spec) -> None:
    configs = spec["TaskTemplate"]["ContainerSpec"]["Configs"]
    (config,) = (each for each in configs if each["File"]["Name"] == "/app/provider.py")
    program = base64.b64decode(faults.engine.configs.get(config["ConfigID"]).attrs["Spec"]["Data"])
    name = f"{faults.prefix}-other-program"
    made: Any = faults.engine.configs.create(name=name, data=program + b"# changed\n")
    config.update(ConfigID=made.id, ConfigName=name)
    faults.expect(
        "test_its_configs_are_those_that_were_rendered[demo]",
        "test_its_files_are_those_that_were_rendered[demo]",
        advice="['/app/provider.py'] of {prefix}-demo is not what was deployed. As deployed: ./pulumiw up --refresh",
    )


def a_secret_of_another_part(faults: Faults, spec: Spec) -> None:
    [secret] = faults.service("postgres").attrs["Spec"]["TaskTemplate"]["ContainerSpec"]["Secrets"]
    spec["TaskTemplate"]["ContainerSpec"]["Secrets"] = [secret]
    faults.expect(
        "test_its_secrets_are_as_declared[demo]",
        "test_it_has_the_secrets_that_it_needs_and_no_other[demo]",
        advice="{prefix}-demo gets ['/run/secrets/postgres_password'] other than declared",
    )


def another_order_of_updates(faults: Faults, spec: Spec) -> None:
    spec["UpdateConfig"]["Order"] = "stop-first"
    faults.expect(
        "test_it_is_placed_and_updated_as_declared[demo]",
        advice="{prefix}-demo is placed or updated other than declared",
    )


def a_service_that_was_changed_by_hand(faults: Faults) -> None:
    faults.change(
        "demo",
        a_replica_more,
        another_image,
        root_and_a_folder_of_the_host,
        more_memory_and_a_larger_log,
        a_port,
        another_network,
        a_key_in_the_environment,
        another_program,
        a_secret_of_another_part,
        another_order_of_updates,
    )


def a_task_that_was_killed(faults: Faults) -> None:
    await_convergence(faults.engine, faults.service("demo").id, UPDATE_SECONDS)
    faults.kill("demo")
    await_convergence(faults.engine, faults.service("demo").id, UPDATE_SECONDS)
    faults.expect(
        "test_none_of_its_tasks_failed[demo]", advice="service update --force {prefix}-demo resets the count"
    )


def an_update_that_is_rolled_back(faults: Faults) -> None:
    def broken(_: Faults, spec: Spec) -> None:
        spec["TaskTemplate"]["ContainerSpec"]["Command"] = ["false"]

    faults.change("litellm-g1", broken)
    faults.expect(
        "test_its_last_update_came_to_its_end[litellm]",
        "test_none_of_its_tasks_failed[litellm]",
        advice="the last update of {prefix}-litellm-g1 is rollback_completed",
    )


def roll_back_ended(faults: Faults) -> bool:
    return bool(faults.service("litellm-g1").attrs["UpdateStatus"]["State"] == "rollback_completed")


@contextmanager
def things_that_the_state_does_not_know(faults: Faults) -> Iterator[None]:
    """As killed `up`s leave them, and a service of somebody else's."""
    labels = faults.service("demo").attrs["Spec"]["Labels"] | {f"{LABEL}.part": "other"}
    engine: Any = faults.engine
    left = [
        engine.services.create(
            faults.swarm.registry, name="other", labels=labels, mode={"Replicated": {"Replicas": 0}}
        ),
        engine.secrets.create(name="edge-clients.map-0123abc", data=b"of an earlier up", labels=labels),
        engine.configs.create(name="litellm-config.yaml-0123abc", data=b"of an earlier up"),
        engine.configs.create(name="schema.py-0123abc", data=b"of an earlier up", labels=labels),
        engine.networks.create("left", driver="overlay", labels=labels),
    ]
    of_others = engine.configs.create(name=OF_ANOTHER_PROJECT, data=b"not ours")
    faults.expect("test_the_swarm_has_the_services_of_the_state", advice="unknown to the state: ['other']")
    faults.expect("test_nothing_is_left_over", advice="secret rm edge-clients.map-0123abc; docker")
    faults.expect("test_nothing_is_left_over", advice="config rm litellm-config.yaml-0123abc schema.py-0123abc")
    faults.expect("test_nothing_is_left_over", advice="network rm left")
    try:
        yield
    finally:
        for each in (*left, of_others):
            each.remove()


@contextmanager
def a_drained_edge_node(faults: Faults) -> Iterator[None]:
    node = faults.swarm.nodes[-1]
    faults.swarm.drain(node)
    faults.expect(
        f"test_each_edge_node_accepts_callers[{node.name}]",
        advice=f"node update --availability active {node.name}",
    )
    try:
        yield
    finally:
        faults.swarm.activate(node)


def a_role_that_reaches_the_apps_database(faults: Faults) -> None:
    container = faults.swarm.nodes[0].container(f"{faults.prefix}-postgres")
    statement = "GRANT CONNECT ON DATABASE app TO litellm"
    code, printed = container.exec_run(["psql", "--username=postgres", f"--command={statement}"])
    assert code == 0, printed
    faults.expect(
        "test_no_role_reaches_a_database_that_is_not_its_own",
        advice=f"docker --host {faults.swarm.nodes[0].host} exec {container.name} psql --username=postgres",
    )


def a_key_in_a_log(faults: Faults) -> None:
    """In base64, inside a path that the edge of another node logs."""
    key = faults.deployment.secret("client-key-batch")
    path = base64.urlsafe_b64encode(f"batch:{key}".encode()).decode()
    node = faults.swarm.nodes[1]
    with httpx2.Client(verify=False, trust_env=False) as client:
        port = faults.deployment.stack.get_config("gatewayPort").value
        assert client.get(f"https://{node.address}:{port}/{path}").status_code == httpx2.codes.UNAUTHORIZED
    edge = node.container(f"{faults.prefix}-edge")
    until(lambda: path.encode() in edge.logs(), "the edge has logged it")
    faults.expect(
        "test_its_log_shows_no_secret[edge]",
        advice="client-key-batch (value): ./pulumiw config set --stack {stack} --path secretVersions",
    )


def test_each_fault_is_found_with_advice_and_nothing_else(
    swarm: Cluster, deployment: Deployment, nodes: list[str]
) -> None:
    """All at a time, each found by other checks; the last test here, for the stack is not fixed."""
    faults = Faults(swarm, deployment)
    with ExitStack() as undone:
        undone.enter_context(a_drained_edge_node(faults))
        undone.enter_context(things_that_the_state_does_not_know(faults))
        an_update_that_is_rolled_back(faults)
        a_service_that_was_changed_by_hand(faults)
        a_role_that_reaches_the_apps_database(faults)
        a_key_in_a_log(faults)
        a_task_that_was_killed(faults)
        until(lambda: roll_back_ended(faults), "litellm is rolled back", within=UPDATE_SECONDS)
        result = check(deployment, CHECKS, *nodes)
    assert without_nodes(failed(result)) == without_nodes(faults.failures)
    names = {"stack": deployment.name, "prefix": faults.prefix}
    missing = [advice for advice in faults.advice if advice.format(**names) not in result.stdout]
    assert missing == []
    assert OF_ANOTHER_PROJECT not in result.stdout
