"""A real stack: `pulumi up` on a real engine, real LiteLLM, Postgres and HAProxy, asked by the OpenAI SDK."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import openai
import psycopg
import pytest
from pulumi import automation

from infra.placement.health import await_health
from tests.stack_config import PROJECT_NAME
from tests.stacks import PARTS, deployed
from tests.swarm.cluster import WITHIN_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker.models.containers import Container
    from openai import OpenAI

    from tests.stacks import Deployment


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack that the tests of this module change, in their order."""
    with deployed(tmp_path_factory.mktemp("changing")) as made:
        yield made


def ask(client: OpenAI, model: str = "gpt-4o", text: str = "hello") -> str:
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content or ""


def is_healthy(container: Container) -> bool:
    container.reload()
    return bool(container.attrs["State"]["Health"]["Status"] == "healthy")


def test_a_chat_completion_passes_edge_gateway_and_provider(deployment: Deployment) -> None:
    for model in ("gpt-4o", "claude-3-5-sonnet"):
        assert ask(deployment.client, model).endswith("You said: hello")


def test_a_chat_completion_streams(deployment: Deployment) -> None:
    stream = deployment.client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "hello"}], stream=True
    )
    words = [choice.delta.content for chunk in stream for choice in chunk.choices if choice.delta.content]
    assert len(words) > 1
    assert "".join(words).endswith("You said: hello")


def test_an_embedding_has_its_models_dimensions(deployment: Deployment) -> None:
    made = deployment.client.embeddings.create(model="text-embedding-3-small", input="hello", encoding_format="float")
    assert len(made.data[0].embedding) == 1536


def test_only_client_keys_get_in_and_only_to_the_api(deployment: Deployment) -> None:
    with pytest.raises(openai.AuthenticationError):
        ask(deployment.client.with_options(api_key="sk-" + "0" * 64))
    with pytest.raises(openai.NotFoundError):
        deployment.client.get("/model/info", cast_to=object)


def test_the_outputs_are_those_that_are_promised(deployment: Deployment) -> None:
    outputs = deployment.stack.outputs()
    secret = {name for name, output in outputs.items() if output.secret}
    assert secret == {"litellmApiKey", "clientKeys", "databaseUrl"}
    assert outputs["models"].value == ["gpt-4o", "claude-3-5-sonnet", "text-embedding-3-small"]
    assert outputs["replicas"].value == 2
    assert "model_name: gpt-4o" in outputs["litellmConfig"].value
    assert "server-template" in outputs["edgeConfig"].value


def test_a_second_up_and_a_refresh_change_nothing(deployment: Deployment) -> None:
    deployment.up(expect_no_changes=True)
    deployment.refresh(expect_no_changes=True)
    deployment.up(expect_no_changes=True)


def test_every_container_is_confined(deployment: Deployment) -> None:
    """Non-root, no capabilities, no new privileges, bounded memory and logs, restarted, and stopped in peace."""
    assert {container.name for container in deployment.containers()} == {
        f"{PROJECT_NAME}-{deployment.name}-{part}" for part in PARTS
    }
    for container in deployment.containers():
        config, host = container.attrs["Config"], container.attrs["HostConfig"]
        assert config["User"] not in {"", "0", "root"}, container.name
        assert host["CapDrop"] == ["ALL"], container.name
        assert not host["CapAdd"], container.name
        assert host["SecurityOpt"] == ["no-new-privileges:true"], container.name
        assert host["Memory"] > 0, container.name
        assert host["Memory"] == host["MemorySwap"], container.name
        assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
        assert host["RestartPolicy"]["Name"] == "unless-stopped", container.name
        assert config["StopTimeout"] >= 10, container.name
        for bindings in (host["PortBindings"] or {}).values():
            assert [binding["HostIp"] for binding in bindings] == ["127.0.0.1"], container.name
        until(partial(is_healthy, container), f"{container.name} is healthy")


def test_litellm_runs_as_it_is_documented(deployment: Deployment) -> None:
    container = deployment.container("litellm-1")
    assert container.attrs["Config"]["Cmd"] == ["--config", "/app/config.yaml", "--port", "4000"]
    assert "/health/liveliness" in str(container.attrs["Config"]["Healthcheck"]["Test"])
    config = deployment.read("litellm-1", "cat", "/app/config.yaml")
    assert config == deployment.outputs["litellmConfig"]


LOOKS_UP_A_KEY = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, "/opt/llm-gateway")
from run import MODULES, Modules
sys.meta_path.insert(0, Modules(Path(sys.path[0], MODULES).read_text()))
import database
database.install()
from litellm.proxy.auth.auth_checks import get_key_object
try:
    asyncio.run(get_key_object("", None, None))
except Exception as error:
    print(error)
print("prisma" in sys.modules)
"""
"""As LiteLLM does for each request. Prints what it says, and whether it has imported Prisma for that."""


def test_litellm_without_a_database_does_not_import_prisma(deployment: Deployment) -> None:
    *_, said, imported = deployment.read("litellm-1", "python3", "-c", LOOKS_UP_A_KEY).splitlines()
    assert "No DB Connected" in said
    assert imported == "False"


def test_no_secret_is_where_it_can_be_read(deployment: Deployment) -> None:
    """Not in docker inspect, a log, the state, an output in clear or a process list; only in /run/secrets."""
    secrets = deployment.secrets()
    assert {name.split(".")[0] for name in secrets} == {
        "master-key",
        "salt-key",
        "client-key-app",
        "postgres-password",
        "postgres-initial-password",
        "database-password",
    }
    ask(deployment.client)
    places: dict[str, str] = {}
    for container in deployment.containers():
        places[f"docker inspect {container.name}"] = json.dumps(container.attrs)
        places[f"docker logs {container.name}"] = container.logs().decode()
        places[f"docker top {container.name}"] = json.dumps(container.top(ps_args="-eo pid,args"))
    for path in deployment.state.rglob("*"):
        if path.is_file():
            places[f"state file {path.name}"] = path.read_text()
    places["pulumi stack output"] = deployment.pulumi("stack", "output", "--json").stdout
    assert len(places) > 3 * len(PARTS)
    found = [(name, place) for name, value in secrets.items() for place, text in places.items() if value in text]
    assert found == []
    files = deployment.read("litellm-1", "ls", "/run/secrets").split()
    assert files == ["LITELLM_MASTER_KEY", "LITELLM_SALT_KEY"]


def test_the_migrations_are_part_of_the_deployment(deployment: Deployment) -> None:
    with deployment.database() as connection:
        connection.execute("INSERT INTO organizations (name) VALUES ('of the defaults')")
        row = connection.execute(
            "SELECT llm_model, llm_fallback_model FROM organizations WHERE name = 'of the defaults'"
        ).fetchone()
        owner = connection.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'organizations'").fetchone()
    assert row == ("gpt-4o", "claude-3-5-sonnet")
    assert owner == ("app",)


def test_the_apps_role_has_no_other_database_and_no_privilege(deployment: Deployment) -> None:
    url = deployment.outputs["databaseUrl"]
    for database in ("litellm", "postgres"):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(url, dbname=database)
    with deployment.database() as connection:
        row = connection.execute(
            "SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = session_user"
        )
        assert row.fetchone() == (False, False, False)


def test_a_broken_migration_fails_the_up_and_leaves_the_schema_as_it_was(deployment: Deployment) -> None:
    """The `up` names the file and the error; the gateway goes on; the next `up`, with the file fixed, succeeds."""
    broken = deployment.folder / "migrations/0003_budgets.sql"
    broken.write_text("CREATE TABLE budgets (id int);\nALTER TABLE nowhere ADD COLUMN x int;\n")
    with pytest.raises(automation.CommandError) as caught:
        deployment.up()
    assert '0003_budgets.sql: relation "nowhere" does not exist' in str(caught.value)
    assert ask(deployment.client).endswith("hello")
    with deployment.database() as connection:
        assert connection.execute("SELECT to_regclass('budgets')").fetchone() == (None,)
        assert connection.execute("SELECT max(version) FROM schema_migrations").fetchone() == (2,)
    broken.write_text("CREATE TABLE budgets (id int);\n")
    deployment.up()
    with deployment.database() as connection:
        assert connection.execute("SELECT max(version) FROM schema_migrations").fetchone() == (3,)


def test_a_volume_that_is_gone_is_created_again(deployment: Deployment) -> None:
    """After the data are removed by hand, there is an empty database with roles and schema, not a broken stack."""
    volume = deployment.container("postgres").attrs["Mounts"][0]["Name"]
    deployment.container("postgres").remove(force=True)
    deployment.engine.volumes.get(volume).remove()
    deployment.refresh()
    deployment.up()
    with deployment.database() as connection:
        assert connection.execute("SELECT count(*) FROM organizations").fetchone() == (0,)


def test_another_major_version_of_postgres_is_refused_before_anything_changes(deployment: Deployment) -> None:
    before = deployment.container("postgres").id
    preview = deployment.pulumi("preview", "--config", f"{PROJECT_NAME}:postgresImage=postgres:16")
    deployment.stack.remove_config("postgresImage")
    assert preview.returncode != 0
    assert "written by another major version of Postgres" in preview.stdout
    assert deployment.container("postgres").id == before


def test_a_state_that_does_not_name_the_volume_of_a_major_version_is_taken_over(deployment: Deployment) -> None:
    """By one `up` that changes nothing else. Until then another version on the first volume is refused too."""
    state = json.loads(deployment.pulumi("stack", "export").stdout)
    (constant,) = (each for each in state["deployment"]["resources"] if each["type"].endswith(":Constant"))
    for side in ("inputs", "outputs"):
        constant[side] = {key: each for key, each in constant[side].items() if key not in {"of", "first", "values"}}
    taken = deployment.pulumi("stack", "import", input=json.dumps(state))
    assert taken.returncode == 0, taken.stdout
    image = f"{PROJECT_NAME}:postgresImage=postgres:16"
    preview = deployment.pulumi("preview", "--config", image, "--config", f"{PROJECT_NAME}:postgresVolume=other")
    assert preview.returncode == 0, preview.stdout
    deployment.stack.remove_config("postgresVolume")
    preview = deployment.pulumi("preview")
    deployment.stack.remove_config("postgresImage")
    assert preview.returncode != 0
    assert "postgres-data has 17: the data was written by another major version of Postgres" in preview.stdout
    deployment.up()
    info = deployment.stack.info()
    assert info is not None
    changes = info.resource_changes or {}
    assert {kind: count for kind, count in changes.items() if kind != "same"} == {"update": 1}
    deployment.up(expect_no_changes=True)


@pytest.mark.parametrize(("stack", "count"), [("staging", 3), ("prod", 4)])
def test_staging_and_prod_say_what_they_need(deployment: Deployment, stack: str, count: int) -> None:
    """Without a provider key the preview fails with the list of what to set, each with its command."""
    deployment.stack.workspace.create_stack(stack)
    deployment.stack.workspace.select_stack(deployment.name)
    name, deployment.name = deployment.name, stack
    try:
        preview = deployment.pulumi("preview")
    finally:
        deployment.name = name
    assert preview.returncode != 0
    assert f"The configuration of stack {stack} has {count} problems; nothing was changed." in preview.stdout
    assert f"./pulumiw config set --stack {stack} --secret openaiApiKey" in preview.stdout


def test_a_model_without_a_key_is_left_out_with_a_warning(deployment: Deployment) -> None:
    deployment.stack.set_config("anthropicApiKey", automation.ConfigValue("sk-ant-nothing", secret=True))
    try:
        preview = deployment.pulumi("preview")
    finally:
        deployment.stack.remove_config("anthropicApiKey")
    assert preview.returncode == 0
    assert "gpt-4o is left out: OPENAI_API_KEY is not set" in preview.stdout
    assert "sk-ant-nothing" not in preview.stdout


def test_a_container_of_another_deployment_is_not_touched(deployment: Deployment) -> None:
    """A container with the same name that is not in this state is refused by name, and keeps running."""
    edge = deployment.container("edge")
    foreign: dict[str, Any] = {
        "image": edge.attrs["Config"]["Image"],
        "entrypoint": ["sleep", "600"],
        "labels": {f"{PROJECT_NAME}.stack": deployment.name, f"{PROJECT_NAME}.identity": "another"},
    }
    edge.remove(force=True)
    container = deployment.engine.containers.run(name=edge.name, detach=True, **foreign)
    try:
        deployment.refresh()
        with pytest.raises(automation.CommandError) as caught:
            deployment.up()
        container.reload()
        assert container.status == "running"
    finally:
        container.remove(force=True)
    assert f"{edge.name} exists and belongs to another deployment" in str(caught.value)
    deployment.up()
    assert ask(deployment.client).endswith("hello")


def test_a_container_that_is_started_again_shows_what_it_had_exited_with(deployment: Deployment) -> None:
    """The engine does not show a running container's last exit code, and restarts one that ended at once."""
    containers = deployment.engine.containers
    program = "test -e /tmp/again && exec sleep 600; touch /tmp/again; echo no such thing; exit 3"
    what: dict[str, Any] = {
        "image": deployment.container("edge").attrs["Config"]["Image"],
        "entrypoint": ["sh", "-c", program],
        "restart_policy": {"Name": "always"},
        "healthcheck": {"Test": ["CMD", "false"]},
    }
    container = containers.create(name=f"{PROJECT_NAME}-{deployment.name}-restarting", **what)
    try:
        container.start()
        until(lambda: containers.get(str(container.id)).attrs["RestartCount"] == 1, "the container runs again")
        until(lambda: containers.get(str(container.id)).status == "running", "the container runs again")
        with pytest.raises(RuntimeError, match=r"-restarting exited with 3; its last lines:\nno such thing$"):
            await_health(container, WITHIN_SECONDS)
    finally:
        container.remove(force=True)


def test_destroy_leaves_nothing_behind(deployment: Deployment) -> None:
    assert len(deployment.leftovers()) >= len(PARTS)
    deployment.stack.destroy(show_secrets=False)
    assert deployment.leftovers() == []
