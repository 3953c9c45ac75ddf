"""The checks of tests/deploy: all pass on a freshly deployed stack, and each finds its fault, with advice."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2
import pytest
from pulumi import automation

from infra import edge
from infra.workload import LIVE
from tests.certificates import certify
from tests.stack_config import PROJECT_NAME
from tests.stacks import deployed, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from docker.models.containers import Container

    from tests.stacks import Deployment

DEADLINE_SECONDS = 60
CONTAINERS = "tests/deploy/test_docker.py tests/deploy/test_containers.py"
DATABASE, GATEWAY, SECRETS = (f"tests/deploy/test_{name}.py" for name in ("database", "gateway", "secrets"))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack with everything that can be checked: TLS, metrics, two clients, a rotated and a retired key."""
    with deployed(tmp_path_factory.mktemp("checked")) as made:
        for key, value in certify("gateway.example").settings.items():
            made.stack.set_config(key, automation.ConfigValue(value, secret=True))
        made.set(metricsPort=free_port())
        made.stack.set_config("clientKeys.batch", automation.ConfigValue("", secret=True), path=True)
        made.stack.set_config("secretVersions.clientKeys.app", automation.ConfigValue("2"), path=True)
        made.up()
        made.stack.set_config("secretVersions.clientKeys.batch", automation.ConfigValue("2"), path=True)
        made.stack.set_config("retirePrevious.clientKeys.app", automation.ConfigValue("1"), path=True)
        made.up()
        yield made


def check(deployment: Deployment, *arguments: str, stack: str = "") -> subprocess.CompletedProcess[str]:
    """Run the checks as an operator does; what they print is in `stdout`, and has no secret of the stack."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, "--stack", stack or deployment.name],
        cwd=deployment.folder,
        env={name: value for name, value in os.environ.items() if name != "STACK"} | deployment.environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(result.stdout)
    assert [name for name, value in deployment.secrets().items() if value in result.stdout] == []
    return result


def failed(result: subprocess.CompletedProcess[str]) -> set[str]:
    return set(re.findall(r"^(?:FAILED|ERROR) \S+?::(\w+(?:\[[^\]]*\])?)", result.stdout, re.MULTILINE))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it was not there in time"
        time.sleep(0.1)


def attributes(container: Container) -> dict[str, object]:
    container.reload()
    state = container.attrs["State"]
    return {"restarts": container.attrs["RestartCount"], "health": state["Health"]["Status"], **state}


def execute(deployment: Deployment, part: str, script: str, *arguments: str, user: str = "") -> str:
    """Run a shell script in a part's container, by default as the part's own user."""
    code, printed = deployment.container(part).exec_run(["sh", "-ec", script, "sh", *arguments], user=user)
    assert isinstance(printed, bytes)
    assert code == 0, printed.decode()
    return printed.decode()


def superuser(deployment: Deployment, statement: str) -> None:
    execute(deployment, "postgres", 'psql --username=postgres --command="$1"', statement)


@dataclass(frozen=True)
class Fault:
    """Something that can be wrong with a stack, and what the checks then say."""

    make: Callable[[Deployment], AbstractContextManager[None]]
    failures: frozenset[str]
    advice: str
    """What the report contains, with the stack's name for {stack} and its containers' prefix for {prefix}."""


FAULTS: dict[str, list[Fault]] = {CONTAINERS: [], DATABASE: [], GATEWAY: [], SECRETS: []}


def fault(
    files: str, *failures: str, advice: str
) -> Callable[[Callable[[Deployment], Iterator[None]]], Callable[[Deployment], Iterator[None]]]:
    """Register a fault that exists while a generator is suspended, and that these checks of `files` must find."""

    def note(make: Callable[[Deployment], Iterator[None]]) -> Callable[[Deployment], Iterator[None]]:
        FAULTS[files].append(Fault(contextmanager(make), frozenset(failures), advice))
        return make

    return note


@fault(CONTAINERS, "test_it_runs_and_is_healthy[litellm-2]", advice="{prefix}-litellm-2 is exited. See why: docker")
def a_stopped_replica(deployment: Deployment) -> Iterator[None]:
    container = deployment.container("litellm-2")
    container.stop()
    yield
    container.start()
    wait_until(lambda: attributes(container)["health"] == "healthy")


@fault(CONTAINERS, "test_it_has_not_restarted[litellm-1]", advice="restart {prefix}-litellm-1 resets the count")
def a_replica_that_ended(deployment: Deployment) -> Iterator[None]:
    container = deployment.container("litellm-1")
    execute(deployment, "litellm-1", "kill -9 $(cat /proc/1/task/1/children)")
    wait_until(lambda: attributes(container)["restarts"] == 1 and attributes(container)["health"] == "healthy")
    yield
    container.restart()
    assert attributes(container)["restarts"] == 0
    wait_until(lambda: attributes(container)["health"] == "healthy")


@fault(
    CONTAINERS,
    "test_the_engine_has_the_containers_of_the_state",
    *(
        f"{name}[demo]"
        for name in (
            "test_it_is_the_one_that_the_state_knows",
            "test_it_runs_and_is_healthy",
            "test_it_is_confined",
            "test_no_process_in_it_can_gain_a_privilege",
            "test_no_process_in_it_has_a_privilege",
            "test_its_memory_and_its_log_are_bounded_as_configured",
            "test_its_ports_are_bound_as_configured",
            "test_it_is_in_no_other_network",
            "test_its_files_are_those_that_were_rendered",
        )
    ),
    advice="{prefix}-demo was replaced by hand. Put the stack's own there: ./pulumiw up --refresh --stack {stack}",
)
def a_container_that_was_replaced_by_hand(deployment: Deployment) -> Iterator[None]:
    demo = deployment.container("demo")
    name = str(demo.name)
    demo.stop()
    demo.rename(f"{name}-kept")
    other = deployment.engine.containers.run(
        demo.attrs["Image"],
        name=name,
        labels=demo.labels,
        entrypoint=["sleep", "600"],
        user="root",
        ports={"8080/tcp": ("127.0.0.1", free_port())},
        volumes={str(deployment.state): {"bind": "/host", "mode": "ro"}},
        detach=True,
        init=True,
    )
    yield
    other.remove(force=True)
    demo.rename(name)
    demo.start()
    wait_until(lambda: attributes(demo)["health"] == "healthy")


@fault(
    CONTAINERS,
    "test_its_files_are_those_that_were_rendered[edge]",
    advice="stop {prefix}-edge && docker",
)
def a_file_that_was_changed_in_its_container(deployment: Deployment) -> Iterator[None]:
    file = "/usr/local/bin/edge-reload"
    kept = execute(deployment, "edge", f"cat {file}; echo '# changed' >>{file}", user="root")
    yield
    execute(deployment, "edge", f'printf %s "$1" >{file}', kept, user="root")


@fault(
    CONTAINERS,
    "test_its_memory_and_its_log_are_bounded_as_configured[edge]",
    "test_its_ports_are_bound_as_configured[postgres]",
    advice="See: ./pulumiw preview --stack {stack}",
)
def a_config_that_was_changed_and_not_deployed(deployment: Deployment) -> Iterator[None]:
    port = deployment.stack.get_config("postgresPort").value
    deployment.set(edgeMemoryMb=600, postgresPort=free_port())
    yield
    deployment.stack.remove_config("edgeMemoryMb")
    deployment.set(postgresPort=port)


@fault(
    DATABASE,
    "test_organizations_have_their_models_with_the_defaults",
    advice="llmctl migrate new 'defaults of organizations'",
)
def a_column_without_its_default(deployment: Deployment) -> Iterator[None]:
    with deployment.database() as connection:
        connection.execute("ALTER TABLE organizations ALTER llm_model DROP DEFAULT")
        yield
        connection.execute("ALTER TABLE organizations ALTER llm_model SET DEFAULT 'gpt-4o'")


@fault(DATABASE, "test_the_schema_is_that_of_the_migrations", advice="not applied: ['0003_later.sql']")
def a_migration_that_was_not_applied(deployment: Deployment) -> Iterator[None]:
    file = deployment.folder / "migrations/0003_later.sql"
    file.write_text("SELECT 1;\n")
    yield
    file.unlink()


@fault(
    DATABASE,
    "test_the_apps_role_reaches_its_own_database_only",
    "test_no_role_reaches_a_database_that_is_not_its_own",
    advice="--command='REVOKE ALL ON DATABASE litellm FROM PUBLIC, app'",
)
def a_role_that_reaches_litellms_database(deployment: Deployment) -> Iterator[None]:
    superuser(deployment, "GRANT CONNECT ON DATABASE litellm TO app")
    yield
    superuser(deployment, "REVOKE ALL ON DATABASE litellm FROM PUBLIC, app")


@fault(
    DATABASE,
    "test_no_role_reaches_a_database_that_is_not_its_own",
    advice="--command='REVOKE ALL ON DATABASE app FROM PUBLIC, litellm'",
)
def litellms_role_that_reaches_the_apps_database(deployment: Deployment) -> Iterator[None]:
    superuser(deployment, "GRANT CONNECT ON DATABASE app TO litellm")
    yield
    superuser(deployment, "REVOKE ALL ON DATABASE app FROM PUBLIC, litellm")


@fault(DATABASE, "test_no_role_but_the_superuser_has_a_privilege", advice="['litellm'] may do more than")
def a_role_with_a_privilege(deployment: Deployment) -> Iterator[None]:
    superuser(deployment, "ALTER ROLE litellm CREATEDB")
    yield
    superuser(deployment, "ALTER ROLE litellm NOCREATEDB")


@fault(
    DATABASE,
    "test_the_data_is_protected_as_configured",
    advice="Bring it in line: ./pulumiw up --refresh --stack {stack}",
)
def a_state_that_protects_other_than_configured(deployment: Deployment) -> Iterator[None]:
    urns = [
        line for line in deployment.pulumi("stack", "--show-urns").stdout.split() if line.endswith("::postgres-data")
    ]
    assert deployment.pulumi("state", "protect", *urns, "--yes").returncode == 0
    yield
    assert deployment.pulumi("state", "unprotect", *urns, "--yes").returncode == 0


RELOAD = f"bash {edge.RELOAD} {edge.SERVERS_STATE} {edge.MASTER_PORT}"


@fault(
    GATEWAY,
    "test_without_a_clients_key_it_is_closed[the master key]",
    "test_without_a_clients_key_it_is_closed[one that was retired]",
    "test_what_administers_it_is_closed",
    advice="'GET /model/info': 200",
)
def an_edge_that_lets_in_too_much(deployment: Deployment) -> Iterator[None]:
    master = deployment.secret("master-key")
    execute(
        deployment,
        "edge",
        f"cp -a {LIVE}/current {LIVE}/kept; cd {LIVE}/current; chmod u+w *; cat {LIVE}/old/clients.map >>clients.map;"
        f' echo "$1 other" >>clients.map; sed -i "s,acl is_get .* -m str,& /model/info," haproxy.cfg; {RELOAD}',
        master,
    )
    yield
    execute(deployment, "edge", f"cd {LIVE}; rm -r current; mv kept current; cd; {RELOAD}")


@fault(
    GATEWAY,
    "test_a_chat_completion_is_answered",
    "test_an_embedding_is_made",
    advice="See what the provider said: docker",
)
def a_provider_that_does_not_answer(deployment: Deployment) -> Iterator[None]:
    container = deployment.container("demo")
    container.stop()
    yield
    container.start()
    wait_until(lambda: attributes(container)["health"] == "healthy")


@fault(
    SECRETS,
    "test_its_secrets_are_for_its_own_processes[litellm-1]",
    advice="LITELLM_SALT_KEY in {prefix}-litellm-1 can be changed in it: its mode is 666",
)
def a_secret_that_can_be_changed(deployment: Deployment) -> Iterator[None]:
    execute(deployment, "litellm-1", "chmod 666 /run/secrets/LITELLM_SALT_KEY", user="root")
    yield
    execute(deployment, "litellm-1", "chmod 644 /run/secrets/LITELLM_SALT_KEY", user="root")


@fault(
    SECRETS,
    "test_its_secrets_are_for_its_own_processes[edge]",
    advice="clients.map in {prefix}-edge has mode 444",
)
def a_live_file_that_anybody_can_read(deployment: Deployment) -> Iterator[None]:
    execute(deployment, "edge", f"chmod 444 {LIVE}/current/clients.map")
    yield
    execute(deployment, "edge", f"chmod 400 {LIVE}/current/clients.map")


@fault(
    SECRETS,
    "test_it_has_the_secrets_that_it_needs_and_no_other[litellm-2]",
    advice="/run/secrets in {prefix}-litellm-2 has other files",
)
def a_secret_too_many(deployment: Deployment) -> Iterator[None]:
    execute(deployment, "litellm-2", "touch /run/secrets/OTHER", user="root")
    yield
    execute(deployment, "litellm-2", "rm /run/secrets/OTHER", user="root")


@fault(
    SECRETS,
    "test_its_process_arguments_show_no_secret[postgres]",
    advice="postgres-password (value): ./pulumiw config set --stack {stack} --path secretVersions.postgresPassword 2",
)
def a_password_as_an_argument(deployment: Deployment) -> Iterator[None]:
    password = deployment.secret("postgres-password")
    script = "until [ -e /tmp/end ]; do sleep 0.1; done"
    container = deployment.container("postgres")
    container.exec_run(["sh", "-c", script, "sh", f"--password={password}"], detach=True)
    yield
    execute(deployment, "postgres", "touch /tmp/end")
    wait_until(lambda: password not in str(container.top(ps_args="-eo pid,args")))


@fault(
    SECRETS,
    "test_outputs_state_and_config_show_no_secret",
    advice="Pulumi.{stack}.yaml shows database-password (value)",
)
def a_password_in_the_config_file(deployment: Deployment) -> Iterator[None]:
    file = deployment.folder / f"Pulumi.{deployment.name}.yaml"
    kept = file.read_text()
    file.write_text(f"# {deployment.secret('database-password')}\n{kept}")
    yield
    file.write_text(kept)


@fault(
    SECRETS,
    "test_its_log_shows_no_secret[edge]",
    advice="client-key-batch (value): ./pulumiw config set --stack {stack} --path secretVersions.clientKeys.batch 3",
)
def a_key_in_a_log(deployment: Deployment) -> Iterator[None]:
    """In base64, inside a path that the edge logs. A log cannot be fixed."""
    key = deployment.secret("client-key-batch")
    path = base64.urlsafe_b64encode(f"batch:{key}".encode()).decode()
    with httpx2.Client(verify=False, trust_env=False) as client:
        assert client.get(f"{deployment.outputs['litellmUrl']}/{path}").status_code == httpx2.codes.UNAUTHORIZED
    wait_until(lambda: path.encode() in deployment.container("edge").logs())
    yield


def test_all_is_well_with_a_stack_as_it_was_deployed(deployment: Deployment) -> None:
    """Nothing fails, and nothing has to be skipped."""
    result = check(deployment, "tests/deploy")
    assert result.returncode == 0
    assert "skipped" not in result.stdout


def test_a_check_without_what_it_needs_is_skipped_and_names_the_check_that_failed(deployment: Deployment) -> None:
    """With the edge stopped, one check fails, its liveness check, and the other checks of it are not run."""
    edge = deployment.container("edge")
    edge.stop()
    try:
        result = check(deployment, GATEWAY)
    finally:
        edge.start()
        wait_until(lambda: attributes(edge)["health"] == "healthy")
    assert failed(result) == {"test_it_is_alive_through_the_edge"}
    assert "see test_it_is_alive_through_the_edge" in result.stdout


def test_a_missing_stack_is_reported(deployment: Deployment) -> None:
    result = check(deployment, "tests/deploy", stack="nowhere")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: stack nowhere cannot be read: error: no stack named 'nowhere' found" in result.stdout
    assert "./pulumiw stack ls" in result.stdout


@pytest.mark.parametrize("files", [CONTAINERS, DATABASE, GATEWAY, SECRETS])
def test_each_fault_is_found_with_advice_and_nothing_else(deployment: Deployment, files: str) -> None:
    """Several faults at a time, each found by different checks."""
    faults = FAULTS[files]
    with ExitStack() as made:
        for each in faults:
            made.enter_context(each.make(deployment))
        result = check(deployment, *files.split())
    assert failed(result) == {name for each in faults for name in each.failures}
    names = {"stack": deployment.name, "prefix": f"{PROJECT_NAME}-{deployment.name}"}
    missing = [each.advice for each in faults if each.advice.format(**names) not in result.stdout]
    assert missing == []
