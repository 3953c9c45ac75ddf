"""The stack on a Swarm of three machines, under load through all of them: changes, rotations, lost machines."""

from __future__ import annotations

import json
import subprocess
import time
import warnings
from collections import Counter
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import httpx2
import psycopg
import pytest
from pulumi import automation

from console.status import read
from engine.labels import LABEL
from engine.own_folder import litellm_backups
from infra.programs import FOLDER
from tests.database import opens
from tests.engines import needs_an_engine_of_its_own
from tests.integration.test_redis import LIMIT, in_a_minute
from tests.load import IN_FLIGHT_MAY_FAIL, NOTHING_FAILS
from tests.stack_config import PROJECT_NAME
from tests.stacks import deployed
from tests.swarm.cluster import CRASH, until
from tests.swarm.conftest import llmctl, place_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from docker.models.containers import Container
    from docker.models.services import Service

    from tests.drills.conftest import Drill
    from tests.stacks import Deployment
    from tests.swarm.cluster import Cluster, Node

REPLICAS = 3
BUDGET = 5000
"""US dollars; no drill spends so much."""
UNAUTHORIZED = 401
LINES_SHOWN = 30
STEADY_SECONDS, PAUSE_SECONDS = 180, 5
"""On a machine that is as busy as CI's, the managers' lead can change several times in a minute."""
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
DATABASE_URLS = ("databaseUrl", "litellmDatabaseUrl")
PASSWORDS = ("databasePassword", "litellmDatabasePassword", "redisPassword")
SUPERUSER = {"user": "postgres", "dbname": "postgres"}

pytestmark = [needs_an_engine_of_its_own, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def deployment(
    swarm: Cluster,
    tmp_path_factory: pytest.TempPathFactory,
    fill_with_redis: Callable[[Deployment], None],
    *,
    of_litellm: bool,
) -> Iterator[Deployment]:
    """One stack for all drills of this module; each leaves it whole."""

    def configure(made: Deployment) -> None:
        place_on(swarm)(made)
        made.set(replicas=REPLICAS)
        if of_litellm:
            made.set(litellmDatabase="true", postgresMemoryMb=1024)  # room for six replicas
            made.set_path("clientLimits.app.budget", BUDGET)
            fill_with_redis(made)

    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("home")))  # for backups that an `up` makes
        with deployed(tmp_path_factory.mktemp("swarm"), configure, host=swarm.nodes[0].host) as made:
            print(f"\nup from nothing in {time.monotonic() - started:.1f} s")
            yield made


def service(swarm: Cluster, deployment: Deployment, part: str) -> Service:
    """A part's service; of LiteLLM, that of the newest generation."""
    labels = [f"{LABEL}.stack={deployment.name}", f"{LABEL}.part={part}"]
    (found,) = swarm.leader().client.services.list(filters={"label": labels})
    return found


def nodes_of(swarm: Cluster, deployment: Deployment, part: str) -> list[Node]:
    """The nodes that run a part's tasks, one for each task."""
    return swarm.running(str(service(swarm, deployment, part).name))


def containers(swarm: Cluster, deployment: Deployment, part: str) -> list[Container]:
    """Those of a part, wherever they run, once those of the tasks before them have ended."""
    name = str(service(swarm, deployment, part).name)

    def found() -> list[Container] | None:
        running = [container for node in swarm.nodes for container in node.containers(name)]
        return running if len(running) == len(nodes_of(swarm, deployment, part)) else None

    return until(found, f"each task of {part} has one container")


def await_tasks(
    swarm: Cluster, deployment: Deployment, part: str, count: int, *, without: Node | None = None
) -> None:
    def there() -> bool:
        nodes = nodes_of(swarm, deployment, part)
        return len(nodes) == count and without not in nodes

    until(there, f"{count} tasks of {part} run", within=120)


def output(container: Container, *command: str) -> str:
    printed = container.exec_run(list(command)).output
    assert isinstance(printed, bytes)
    return printed.decode()


def status(swarm: Cluster, deployment: Deployment, key: str) -> list[int]:
    """What the edge of each node answers to a key."""
    port = deployment.outputs["litellmUrl"].rsplit(":", 1)[1]
    return [
        httpx2.post(
            f"http://{node.address}:{port}/v1/chat/completions",
            json=CHAT,
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
            trust_env=False,
        ).status_code
        for node in swarm.nodes
    ]


def add_model(deployment: Deployment, name: str, *, key: str | None = None) -> None:
    base = f"http://{PROJECT_NAME}-{deployment.name}-demo:8080/v1"
    for setting, value in {"name": name, "model": f"openai/{name}", "apiBase": base}.items():
        deployment.set_path(f"models[0].{setting}", value)
    if key:
        deployment.set_path(f"modelKeys.{name}", key, secret=True)


def test_a_second_up_and_a_refresh_change_nothing(deployment: Deployment) -> None:
    deployment.up(expect_no_changes=True)
    deployment.refresh(expect_no_changes=True)
    deployment.up(expect_no_changes=True)


def test_encryption_cannot_change_while_services_use_the_networks(deployment: Deployment) -> None:
    """A preview says so, with the command that takes it back."""
    is_so = deployment.stack.get_config("encryptNetworks").value
    deployment.set(encryptNetworks={"true": "false", "false": "true"}[is_so])
    try:
        with pytest.raises(automation.CommandError, match=f"encryptNetworks {is_so}"):
            deployment.stack.preview()
    finally:
        deployment.set(encryptNetworks=is_so)


def test_each_node_accepts_callers(swarm: Cluster, deployment: Deployment, *, of_litellm: bool) -> None:
    """Each runs an edge, and each edge reaches the replicas on the others."""
    key = deployment.outputs["litellmApiKey"]
    assert sorted(node.name for node in nodes_of(swarm, deployment, "edge")) == [it.name for it in swarm.nodes]
    assert sorted(node.name for node in nodes_of(swarm, deployment, "litellm")) == [it.name for it in swarm.nodes]
    for _ in range(REPLICAS):
        assert status(swarm, deployment, key) == [httpx2.codes.OK] * len(swarm.nodes)
    with deployment.database() as connection:
        connection.execute("INSERT INTO organizations (name) VALUES ('on a node')")
    if of_litellm:
        with psycopg.connect(deployment.outputs["litellmDatabaseUrl"]) as connection:  # of a node that is lost
            assert connection.execute("SHOW tcp_keepalives_idle").fetchone() == ("60",)


def test_llmctl_looks_after_it_as_after_one_on_one_host(
    swarm: Cluster, deployment: Deployment, tmp_path: Path, *, of_litellm: bool
) -> None:
    """The doctor finds all well; backups are made in the container of Postgres, on the node that has it."""
    found = {finding["check"]: finding["status"] for finding in json.loads(llmctl(deployment, "doctor", "--json"))}
    assert {status for check, status in found.items() if check != "organizations"} == {"ok"}
    assert ("LiteLLM's schema" in found) == of_litellm
    llmctl(deployment, "backup", str(tmp_path / "app.dump"))
    saved = {file.name for file in tmp_path.glob("*.dump") if file.stat().st_size}
    assert saved == {"app.dump", *(["app.litellm.dump"] if of_litellm else [])}


def test_a_virtual_key_works_on_every_node_until_it_is_blocked(
    swarm: Cluster, deployment: Deployment, *, of_litellm: bool
) -> None:
    """What it and a client of the stack config have spent is added up; the client has the budget of the config."""
    if not of_litellm:
        pytest.skip("it takes LiteLLM's database: make test-swarm DATABASE=1")
    created = json.loads(llmctl(deployment, "keys", "create", "of-a-team", "--json"))
    for _ in range(REPLICAS):
        assert status(swarm, deployment, created["key"]) == [httpx2.codes.OK] * len(swarm.nodes)
    app = json.loads(llmctl(deployment, "keys", "show", "app", "--json"))
    assert app["max_budget"] == BUDGET
    until(lambda: "of-a-team" in llmctl(deployment, "usage", "--by", "client"), "what the key used is counted")
    llmctl(deployment, "keys", "block", "of-a-team")
    refused = [UNAUTHORIZED] * len(swarm.nodes)
    until(lambda: status(swarm, deployment, created["key"]) == refused, "every replica refuses the key", within=60)


def test_a_limit_holds_over_all_nodes_together(swarm: Cluster, deployment: Deployment, *, of_litellm: bool) -> None:
    """Exactly that many requests of a key are answered in a minute, whichever nodes they come through."""
    if not of_litellm:
        pytest.skip("it takes LiteLLM's database: make test-swarm DATABASE=1")

    def ask() -> Counter[int]:
        limits = ("--rpm-limit", str(LIMIT), "--json")
        created = json.loads(llmctl(deployment, "keys", "create", f"limited-{token_hex(4)}", *limits))
        rounds = -(-2 * LIMIT // len(swarm.nodes))
        return Counter(code for _ in range(rounds) for code in status(swarm, deployment, created["key"]))

    found = in_a_minute(ask)
    assert found.keys() == {httpx2.codes.OK, httpx2.codes.TOO_MANY_REQUESTS}
    assert found[httpx2.codes.OK] == LIMIT


def test_status_shows_every_node_and_what_the_edge_of_its_own_has_counted(
    swarm: Cluster, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which edges have counted more."""
    asked, *others = swarm.nodes
    monkeypatch.setenv("DOCKER_HOST", asked.host)
    monkeypatch.setenv("LITELLM_URL", deployment.outputs["litellmUrl"])
    monkeypatch.setenv("LITELLM_API_KEY", deployment.outputs["litellmApiKey"])
    assert status(swarm, deployment, deployment.outputs["litellmApiKey"]) == [httpx2.codes.OK] * len(swarm.nodes)
    found = read()
    assert (found.wrong, found.stack) == ((), deployment.name)
    by_kind = {kind: {part.name: part for part in found.parts if part.kind == kind} for kind in ("edge", "litellm")}
    assert sorted(by_kind["edge"]) == [f"edge@{node.name}" for node in swarm.nodes]
    assert [name for name, part in by_kind["edge"].items() if part.traffic] == [f"edge@{asked.name}"] == [found.edge]
    assert len(by_kind["litellm"]) == REPLICAS
    assert None not in [part.traffic for part in by_kind["litellm"].values()]
    assert next(client for client in found.clients if client.name == "app").requests >= 1
    assert [node.name in found.unseen[0] for node in (asked, *others)] == [False, *[True] * len(others)]


NO_SECRETS = {"haproxy.cfg", "bodies.lua", "usage.lua", "models.map", "origins.lst", "rpm.map"}
"""What the edge reads beside its secrets."""


def test_secrets_are_files_for_their_process_alone(swarm: Cluster, deployment: Deployment) -> None:
    """0400 and of the process's own user, on whichever node it runs; nothing can be written beside them."""
    for part, folder in (("litellm", "/run/secrets"), ("edge", "/run/live/current"), ("postgres", "/run/secrets")):
        node = nodes_of(swarm, deployment, part)[0]
        container = node.container(str(service(swarm, deployment, part).name))
        uid = output(container, "id", "-u").strip()
        listed = output(container, "find", folder, "-type", "f", "-printf", "%m %U %f\\n")
        files = [line.split() for line in listed.splitlines()]
        secret = [file for file in files if file[2] not in NO_SECRETS]
        assert secret, part
        assert {(mode, owner) for mode, owner, _ in secret} == {("400", uid)}, part
        assert container.attrs["HostConfig"]["ReadonlyRootfs"] == (part != "postgres")


def test_a_changed_model_list_and_a_providers_key_reach_every_replica(
    swarm: Cluster, deployment: Deployment, drill: Drill
) -> None:
    add_model(deployment, "ours", key="the-first-key")
    with drill("Swarm: a changed model list, and then a provider's key, 3 replicas", NOTHING_FAILS):
        started = time.monotonic()
        deployment.up()
        print(f"\n{REPLICAS} replicas updated in {time.monotonic() - started:.1f} s")
        answer = deployment.client.chat.completions.create(model="ours", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content
        add_model(deployment, "ours", key="the-second-key")
        deployment.up()
    for container in containers(swarm, deployment, "litellm"):
        secrets = output(container, "sh", "-c", "cat /run/secrets/*")
        assert "the-second-key" in secrets
        assert "the-first-key" not in secrets


@pytest.fixture
def broken_image(swarm: Cluster, deployment: Deployment) -> str:
    """An image like LiteLLM's whose package ends the program that imports it, in the registry."""
    client = swarm.nodes[0].client
    image = client.images.get(
        service(swarm, deployment, "litellm").attrs["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
    )
    container = client.containers.create(image, ["true"])
    deployment.put(container, f"{FOLDER}/litellm.py", "raise SystemExit('no such thing')\n", mode=0o644)
    name = f"{swarm.registry}/broken/litellm"
    container.commit(name, "1")
    container.remove()
    client.images.push(name, "1")
    return "broken/litellm:1"


def test_a_broken_image_is_rolled_back(
    swarm: Cluster, deployment: Deployment, drill: Drill, broken_image: str, *, of_litellm: bool
) -> None:
    """The `up` fails with the reason, the node and the last lines; it does so again; the next good one fixes it.

    It is the same with what changes LiteLLM's schema before the replicas, which saves the database first.
    """
    before = service(swarm, deployment, "litellm").attrs["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
    with drill("Swarm: a broken image, rolled back", NOTHING_FAILS):
        deployment.set(litellmImage=broken_image)
        if of_litellm:
            schema_is_refused(swarm, deployment)
        started = time.monotonic()
        for _ in range(2):
            with pytest.raises(automation.CommandError) as caught:
                deployment.up()
            said = str(caught.value)
            assert f"{PROJECT_NAME}-{deployment.name}-litellm-g1 was rolled back" in said
            assert "no such thing" in said
            assert "on node node-" in said
        print(f"\nrefused twice in {time.monotonic() - started:.1f} s")
        assert service(swarm, deployment, "litellm").attrs["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == before
        deployment.forget("litellmImage")
        deployment.up()
    deployment.up(expect_no_changes=True)


def schema_is_refused(swarm: Cluster, deployment: Deployment) -> None:
    """What changes the schema ends the `up`, with the node, after a backup, and is gone."""
    with psycopg.connect(deployment.outputs["litellmDatabaseUrl"], autocommit=True) as connection:
        connection.execute("CREATE TABLE _prisma_migrations ()")
        with pytest.raises(automation.CommandError, match="a newer LiteLLM has migrated this database") as caught:
            deployment.up()
        connection.execute("DROP TABLE _prisma_migrations")
    assert "on node node-" in str(caught.value)
    assert len([*litellm_backups(deployment.name).glob("litellm-*.dump")]) == 1
    assert jobs(swarm, deployment) == []


def jobs(swarm: Cluster, deployment: Deployment) -> list[object]:
    """What there is of a service that changes LiteLLM's schema: itself, its secrets and configs."""
    client = swarm.leader().client
    label = {"label": [f"{LABEL}.stack={deployment.name}", f"{LABEL}.part=litellm-database-schema"]}
    return [
        *client.services.list(filters=label),
        *client.secrets.list(filters=label),
        *client.configs.list(filters=label),
    ]


def test_secrets_are_rotated(swarm: Cluster, deployment: Deployment, drill: Drill, *, of_litellm: bool) -> None:
    """All at once, and then what was kept of the old ones is retired.

    Replicas with the new master key come up beside those with the old one, which then go. Old and new keys of a
    client open every node's edge, and the app's database takes both passwords, until the old ones are retired. The
    superuser's password is replaced at once. Postgres does not restart.
    """
    everywhere = len(swarm.nodes)
    old = {name: deployment.secret(name) for name in ("master-key", "postgres-password")}
    urls, passwords = DATABASE_URLS[: 1 + of_litellm], PASSWORDS if of_litellm else PASSWORDS[:1]
    old_urls = [deployment.outputs[name] for name in urls]
    postgres = service(swarm, deployment, "postgres").attrs["Version"]
    with drill("Swarm: rotation of every secret", NOTHING_FAILS) as load:
        old_key = load.key
        for name in ("masterKey", "clientKeys.app", "postgresPassword", *passwords):
            deployment.set_path(f"secretVersions.{name}", 2)
        deployment.up()
        new_key, url = deployment.outputs["litellmApiKey"], deployment.outputs["databaseUrl"]
        new_urls = [deployment.outputs[name] for name in urls]
        assert new_key != old_key
        for key in (old_key, new_key):
            assert status(swarm, deployment, key) == [httpx2.codes.OK] * everywhere
        assert [opens(each) for each in (*new_urls, *old_urls)] == [True] * (len(new_urls) + len(old_urls))
        load.key = new_key
        load.await_successes(round(load.rate))
        for name in ("clientKeys.app", *passwords):
            deployment.set_path(f"retirePrevious.{name}", 1)
        deployment.up()
    assert status(swarm, deployment, old_key) == [UNAUTHORIZED] * everywhere
    assert status(swarm, deployment, new_key) == [httpx2.codes.OK] * everywhere
    assert [opens(each) for each in new_urls] == [True] * len(new_urls)
    assert [opens(each) for each in old_urls] == [False] * len(old_urls)
    assert opens(url, **SUPERUSER, password=deployment.secret("postgres-password"))
    assert not opens(url, **SUPERUSER, password=old["postgres-password"])
    assert service(swarm, deployment, "postgres").attrs["Version"] == postgres

    assert service(swarm, deployment, "litellm").name == f"{PROJECT_NAME}-{deployment.name}-litellm-g2"
    new = deployment.secret("master-key")
    ask = (
        "import http.client, sys\n"
        "c = http.client.HTTPConnection('127.0.0.1', 4000)\n"
        "c.request('GET', '/v1/models', headers={'authorization': 'Bearer ' + sys.argv[1]})\n"
        "print(c.getresponse().status)\n"
    )
    for container in containers(swarm, deployment, "litellm"):
        answered = [output(container, "python3", "-c", ask, key).split() for key in (new, old["master-key"])]
        assert answered == [["200"], ["401"]]
    assert status(swarm, deployment, new) == [UNAUTHORIZED] * everywhere  # never at the edge


def test_more_and_fewer_replicas(swarm: Cluster, deployment: Deployment, drill: Drill) -> None:
    """Up to six and back to two, spread over the nodes."""
    with drill("Swarm: 2 replicas, 6, 2", NOTHING_FAILS):
        for replicas in (2, 6, 2):
            deployment.set(replicas=replicas)
            deployment.up()
            nodes = nodes_of(swarm, deployment, "litellm")
            assert len(nodes) == replicas
            assert len({node.name for node in nodes}) == min(replicas, len(swarm.nodes))
    deployment.set(replicas=REPLICAS)
    deployment.up()


def test_a_drained_node_is_left(swarm: Cluster, deployment: Deployment, drill: Drill) -> None:
    """Swarm stops its tasks before others take their place; two of three replicas and edges go on."""
    demo = nodes_of(swarm, deployment, "demo")  # of which there is one
    node = next(node for node in swarm.nodes[1:] if node not in demo)
    with drill("Swarm: a node is drained", NOTHING_FAILS):
        swarm.drain(node)
        await_tasks(swarm, deployment, "litellm", REPLICAS, without=node)
    swarm.activate(node)
    await_tasks(swarm, deployment, "edge", len(swarm.nodes))
    deployment.up(expect_no_changes=True)


@pytest.mark.parametrize("what", ["a machine", "the leader of three"])
def test_a_machine_that_is_lost_takes_only_what_was_in_flight(
    swarm: Cluster, deployment: Deployment, drill: Drill, what: str
) -> None:
    """Its tasks come up elsewhere; when it is back it accepts callers again."""
    if "leader" in what:
        lead_without_postgres(swarm, deployment)
    leader = swarm.leader()
    another = next(node for node in swarm.nodes[1:] if node is not leader)
    node = leader if "leader" in what else another
    if node in nodes_of(swarm, deployment, "demo"):  # of which there is one
        swarm.drain(node)
        await_tasks(swarm, deployment, "demo", 1, without=node)
        swarm.activate(node)
        await_tasks(swarm, deployment, "edge", len(swarm.nodes))
    until(lambda: spread_again(swarm, deployment, node), f"{node.name} has a replica to lose")
    with drill(f"Swarm: {what} is lost", IN_FLIGHT_MAY_FAIL) as load:
        started = time.monotonic()
        node.kill()
        load.report.broken = node.lost_at
        await_tasks(swarm, deployment, "litellm", REPLICAS, without=node)
        print(f"\n{what}: {REPLICAS} replicas run again after {time.monotonic() - started:.1f} s")
    node.start()
    swarm.await_state(node, "ready")
    await_tasks(swarm, deployment, "edge", len(swarm.nodes))
    deployment.up(expect_no_changes=True)


def spread_again(swarm: Cluster, deployment: Deployment, node: Node) -> bool:
    """Have Swarm place the replicas again, on the nodes that are ready for it just then; whether one is on `node`."""
    name = str(service(swarm, deployment, "litellm").name)
    command = ["docker", "--host", swarm.leader().host, "service", "update", "--force", "--quiet", name]
    subprocess.run(command, check=True)
    return node in nodes_of(swarm, deployment, "litellm")


def lead_without_postgres(swarm: Cluster, deployment: Deployment) -> None:
    """Have another machine lead than the one that holds Postgres' volume, which the stack cannot do without."""
    first = swarm.nodes[0]
    if swarm.leader() is not first:
        return
    # Not by a demotion: a manager that is promoted again takes a minute to catch up with the log, and were the leader
    # lost meanwhile, nothing would be decided until then.
    first.end()
    swarm.await_state(first, "down")
    first.start()
    swarm.await_state(first, "ready")
    for part, tasks in {"postgres": 1, "edge": len(swarm.nodes), "litellm": REPLICAS}.items():
        await_tasks(swarm, deployment, part, tasks)
    deployment.up(expect_no_changes=True)


def destroy(swarm: Cluster, deployment: Deployment) -> str | None:
    """Why it has to be repeated: another manager leads now, or an engine has crashed. Fails for any other reason."""
    try:
        deployment.stack.destroy(show_secrets=False, on_output=print)
    except automation.CommandError as error:
        logs = {node.name: node.log.read_text() for node in swarm.nodes}
        last_lines = [str(error).splitlines()[-LINES_SHOWN:]]
        last_lines += [[f"{name}: {line}" for line in log.splitlines()[-LINES_SHOWN:]] for name, log in logs.items()]
        problem = "\n".join(line for lines in last_lines for line in lines)
        if not any(map(CRASH.search, logs.values())) and "node lost leader status" not in str(error):
            pytest.fail(problem, pytrace=False)
        return problem
    return None


def test_destroy_leaves_nothing_behind(swarm: Cluster, deployment: Deployment) -> None:
    label: dict[str, Any] = {"label": f"{LABEL}.stack={deployment.name}"}

    def found() -> list[bool]:
        client = swarm.leader().client
        of_swarm = (client.services, client.secrets, client.configs, client.networks)
        return [bool(kind.list(filters=label)) for kind in (*of_swarm, swarm.nodes[0].client.volumes)]

    until(lambda: all(found()), "all kinds are there")
    deadline = time.monotonic() + STEADY_SECONDS
    while (problem := destroy(swarm, deployment)) is not None:
        assert time.monotonic() < deadline, problem
        warnings.warn(f"destroyed once more, as docs/machines.md has it, after: {problem}", stacklevel=2)
        time.sleep(PAUSE_SECONDS)
    until(lambda: not any(found()), "nothing is left")
    for node in swarm.nodes:
        assert node.client.containers.list(all=True, filters=label) == []
