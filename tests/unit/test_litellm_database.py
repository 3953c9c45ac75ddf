"""LiteLLM's database: what the stack config must say, what a stack gets with one, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
import pulumi
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pulumi.runtime import mocks, rpc

from console.postgres_programs import BackupError
from infra import litellm_connections, litellm_database
from infra.placement import job
from infra.stack import build
from infra.stack_config import validate
from tests.stack_config import PROJECT_NAME, raw_config
from tests.unit.conftest import SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infra.settings import Settings

URL = "postgresql://user:password@db.example:5432/litellm"
SWARM = {"placement": "swarm", "bindAddress": "0.0.0.0", "allowPlainHttp": "true"}  # noqa: S104


def problems(**changes: object) -> dict[str, tuple[str, str]]:
    """What is wrong with a stack config that has LiteLLM's database, with the command that fixes it, by key."""
    values = {"litellmDatabase": "true", **changes}
    _, found = validate(raw_config("staging", demo="true", protectData="false", **values), SECRET & values.keys())
    return {each.key: (each.what, each.command) for each in found}


def test_a_stack_has_none_unless_it_asks_for_one(registered: Callable[..., Recorder]) -> None:
    recorder = registered()
    assert not [kind for kind, _ in recorder.inputs if "litellm_database" in kind]
    uploads = plain(recorder.containers()["litellm-1"])["uploads"]
    assert "/run/secrets/DATABASE_URL" not in {each["file"] for each in uploads}


@pytest.mark.parametrize("placement", [{}, SWARM])
def test_one_switch_is_enough(placement: dict[str, str]) -> None:
    """On one host and on a Swarm, with the pins' memory and two replicas."""
    assert problems(**placement) == {}


@pytest.mark.parametrize(
    ("changes", "key", "what", "command"),
    [
        ({"databaseUrl": URL}, "litellmDatabaseUrl", "is missing", "set --secret litellmDatabaseUrl"),
        ({"databaseUrl": URL, "litellmDatabaseUrl": URL}, "litellmDatabaseUrl", "is the app's database", "set"),
        ({"litellmDatabase": "false", "litellmDatabaseUrl": URL}, "litellmDatabaseUrl", "no effect", "true"),
        ({"litellmDatabaseUrl": "host=h dbname=d"}, "litellmDatabaseUrl", "must be a URL", "set --secret"),
        ({"litellmDatabaseUrl": "postgresql://h1,h2:5432/d"}, "litellmDatabaseUrl", "several hosts", "set --secret"),
        (
            {"litellmDatabaseUrl": URL, "secretVersions": {"litellmDatabasePassword": 2}},
            "secretVersions.litellmDatabasePassword",
            "has no effect",
            "rm --path secretVersions.litellmDatabasePassword",
        ),
        (
            {"litellmDatabaseUrl": URL, "retirePrevious": {"litellmDatabasePassword": 1}},
            "retirePrevious.litellmDatabasePassword",
            "has no effect",
            "rm --path retirePrevious.litellmDatabasePassword",
        ),
        ({"litellmMemoryMb": "512"}, "litellmMemoryMb", "is too small", "set litellmMemoryMb 1024"),
        (
            {"generalSettings": {"store_prompts_in_spend_logs": True}},
            "generalSettings.store_prompts_in_spend_logs",
            "keep prompts",
            "rm --path",
        ),
        (
            {"generalSettings": {"allow_requests_on_db_unavailable": "yes"}},
            "generalSettings.allow_requests_on_db_unavailable",
            "accepts any key",
            "rm --path",
        ),
        (
            {"generalSettings": {"disable_adding_master_key_hash_to_db": False}},
            "generalSettings.disable_adding_master_key_hash_to_db",
            "is the stack's own",
            "rm --path",
        ),
        (
            {"litellmDatabase": "false", "generalSettings": {"database_connection_pool_limit": 5}},
            "generalSettings.database_connection_pool_limit",
            "LiteLLM's database, which is off",
            "set litellmDatabase true",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_command_that_fixes_it(
    changes: dict[str, object], key: str, what: str, command: str
) -> None:
    found = problems(**changes)
    assert what in found[key][0]
    assert command in found[key][1]


@given(replicas=st.integers(1, 16), connections=st.integers(1, 200), memory_mb=st.integers(64, 8192))
def test_what_is_let_through_fits_the_server(replicas: int, connections: int, memory_mb: int) -> None:
    """Beside the app, even while each replica is replaced; and the printed command makes it fit."""
    general = {litellm_connections.POOL: connections}
    found = problems(
        replicas=str(replicas), postgresMemoryMb=str(memory_mb), generalSettings=general, litellmMemoryMb="1024"
    )
    place = f"generalSettings.{litellm_connections.POOL}"
    wanted = litellm_connections.limit(replicas, connections)
    assert wanted >= 2 * replicas * connections
    if place in found:
        connections = int(found[place][1].rpartition(" ")[2])
        assert connections >= 1
        wanted = litellm_connections.limit(replicas, connections)
    elif "postgresMemoryMb" in found:
        memory_mb = int(found["postgresMemoryMb"][1].rpartition(" ")[2])
    assert wanted + litellm_connections.APP_CONNECTIONS <= litellm_connections.MAX_CONNECTIONS
    if place not in found:
        assert wanted * litellm_connections.CONNECTION_MB <= memory_mb


class Recorder(mocks.Mocks):
    """Every resource that the program registered, by type and name, with its inputs and what it waits for."""

    def __init__(self) -> None:
        self.inputs: dict[tuple[str, str], dict[str, Any]] = {}

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        self.inputs[args.typ, args.name] = args.inputs
        made = {"value": f"value-of-{args.name}", "previous": "", "generation": 1}
        if args.typ == "docker:index/remoteImage:RemoteImage":
            made = {"imageId": f"sha256:{args.name}"}
        if args.typ.endswith(":DatabaseRoles"):
            made = {"app_login": "app_1"}
        if args.typ.endswith(":LiteLLMLogin"):
            made = {"login": "litellm_1"}
        return f"{args.name}-id", {**args.inputs, **made}

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        raise NotImplementedError(args.token)

    def containers(self) -> dict[str, dict[str, Any]]:
        return {name: inputs for (kind, name), inputs in self.inputs.items() if kind.endswith(":Container")}

    def of(self, kind: str) -> dict[str, Any]:
        """The inputs of the resource of a kind of which there is one."""
        (inputs,) = (inputs for (type_, _), inputs in self.inputs.items() if type_.endswith(f":{kind}"))
        found: dict[str, Any] = plain(inputs)
        return found


def plain(value: Any) -> Any:
    """A value without the wrappings that mark it secret."""
    if isinstance(value, dict):
        return (
            plain(value["value"])
            if rpc._special_sig_key in value
            else {key: plain(each) for key, each in value.items()}
        )
    return [plain(each) for each in value] if isinstance(value, list) else value


def files_of(container: Any) -> dict[str, str]:
    """The content of the files that a container gets, by path; not of programs, which it gets from the clone."""
    return {each["file"]: each["content"] for each in plain(container)["uploads"] if "source" not in each}


@pytest.fixture
def registered(settings: Callable[..., Settings]) -> Iterator[Callable[..., Recorder]]:
    """Run the program's `build` with settings, and return what it registered."""

    def run(**changes: object) -> Recorder:
        recorder = Recorder()
        mocks.set_mocks(recorder, project=PROJECT_NAME, stack="dev", preview=False)

        @pulumi.runtime.test  # type: ignore[untyped-decorator]
        def program() -> pulumi.Output[object]:
            return pulumi.Output.all(**build(settings(**changes)))

        program()
        return recorder

    yield run
    pulumi.runtime.settings.reset_options()


def test_replicas_get_the_database_as_a_secret_file_and_leave_its_schema_alone(
    registered: Callable[..., Recorder],
) -> None:
    recorder = registered(litellmDatabase="true")
    for name in ("litellm-1", "litellm-2"):
        container = plain(recorder.containers()[name])
        files = files_of(container)
        url = urlsplit(files["/run/secrets/DATABASE_URL"])
        assert (url.username, url.hostname, url.port, url.path) == ("litellm_1", "postgres", 5432, "/litellm")
        assert url.password == "value-of-litellm-database-password"
        assert "DISABLE_SCHEMA_UPDATE=true" in container["envs"]
        assert "value-of" not in str(container["envs"])
        assert len(container["networksAdvanced"]) == 2  # the edge's, and that of Postgres
        general = yaml.safe_load(files["/app/config.yaml"])["general_settings"]
        assert general[litellm_connections.POOL] == litellm_connections.POOL_CONNECTIONS
        assert general["store_prompts_in_spend_logs"] is False
    for name in ("edge", "demo"):
        assert len(recorder.containers()[name]["networksAdvanced"]) == 1


def test_the_schema_is_made_by_the_image_of_the_replicas(registered: Callable[..., Recorder]) -> None:
    """The job has only the database's network; this machine reaches the database through the host's port."""
    recorder = registered(litellmDatabase="true", generalSettings={litellm_connections.POOL: 3})
    schema = recorder.of("LiteLLMSchema")
    assert schema["image"] == plain(recorder.containers()["litellm-1"])["image"]
    assert schema["database"] == "localhost:5432/litellm"
    assert schema["job"]["networks"] == ["data-id"] or len(schema["job"]["networks"]) == 1
    assert set(schema["job"]["secrets"]) == {"DATABASE_URL"}
    assert schema["connections"] == recorder.of("LiteLLMLogin")["connections"] == litellm_connections.limit(2, 3)


def test_your_own_server_replaces_the_one_of_the_stack(registered: Callable[..., Recorder]) -> None:
    recorder = registered(litellmDatabase="true", litellmDatabaseUrl=URL)
    assert not [kind for kind, _ in recorder.inputs if kind.endswith(":LiteLLMLogin")]
    schema = recorder.of("LiteLLMSchema")
    assert (schema["database"], schema["job"]["secrets"]["DATABASE_URL"]) == ("db.example:5432/litellm", URL)
    assert len(recorder.containers()["litellm-1"]["networksAdvanced"]) == 1
    assert recorder.of("SaltKeyGuard")["url"] == URL


def test_the_former_password_is_retired_by_its_number(registered: Callable[..., Recorder]) -> None:
    recorder = registered(litellmDatabase="true", retirePrevious={"litellmDatabasePassword": 1})
    (password,) = [
        inputs
        for (kind, name), inputs in recorder.inputs.items()
        if kind.endswith(":RotatingSecret") and name == "litellm-database-password"
    ]
    assert password["retire"] == 1


def test_limits_of_a_client_name_the_replicas_and_no_secret(registered: Callable[..., Recorder]) -> None:
    """A client without limits has no such resource."""
    limits = {"batch": {"rpm": 600, "budget": "12.5", "models": ["gpt-4o"]}}
    recorder = registered(litellmDatabase="true", clientKeys={"batch": ""}, clientLimits=limits)
    found = recorder.of("ClientLimits")
    assert found.pop("inside")["labels"][1] == {"label": "llm-infrastructure.part", "value": "litellm"}
    assert "localhost:5432/litellm" in found["database"]
    given = {name: found[name] for name in found if not name.startswith("__")}
    assert given == {
        "client": "batch",
        "database": found["database"],
        "rpm": 600,
        "budget": 12.5,
        "models": ["gpt-4o"],
    }
    assert "value-of-" not in str(found).replace("value-of-identity", "")


PROPS: dict[str, Any] = {
    "url": URL,
    "database": "db.example:5432/litellm",
    "connections": 24,
    "stack": "any",
    "job": {"host": "unix:///nowhere"},
}


def test_what_the_job_says_is_the_reason_of_the_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It also says where the data were backed up before."""

    def failing(_: object) -> None:
        raise job.JobError("it exited with 1; its last lines:\nthe reason")

    monkeypatch.setattr(litellm_database, "_has_data", lambda *_: True)
    monkeypatch.setattr(litellm_database, "_saved", lambda _: SimpleNamespace(file="/backups/litellm.dump"))
    monkeypatch.setattr(litellm_database, "remove_older", lambda *_: pytest.fail("a backup was removed"))
    monkeypatch.setattr(job, "end_former", lambda _: None)
    monkeypatch.setattr(job, "run", failing)
    with pytest.raises(RuntimeError, match=r"the next `up` tries again(.|\n)*/backups/litellm.dump(.|\n)*the reason"):
        litellm_database._SchemaProvider().create(PROPS)


@pytest.mark.parametrize("has_data", [True, False])
def test_data_are_saved_before_the_schema_changes(monkeypatch: pytest.MonkeyPatch, *, has_data: bool) -> None:
    """After a killed `up`'s job has ended. An empty database is not backed up."""
    done: list[str] = []
    monkeypatch.setattr(job, "end_former", lambda _: done.append("ended"))
    monkeypatch.setattr(litellm_database, "_has_data", lambda *_: has_data)

    def saved(_: object) -> Any:
        done.append("saved")
        return SimpleNamespace(file="file", database="litellm")

    monkeypatch.setattr(litellm_database, "_saved", saved)
    monkeypatch.setattr(job, "run", lambda _: done.append("changed"))
    monkeypatch.setattr(litellm_database, "remove_older", lambda *_: done.append("removed"))
    made = litellm_database._SchemaProvider().create(PROPS)
    assert done == (["ended", "saved", "changed", "removed"] if has_data else ["ended", "changed"])
    assert made.outs is not None
    assert made.outs["backup"] == ("file" if has_data else "")


@pytest.mark.parametrize(
    "error",
    [
        BackupError("no pg_dump"),
        psycopg.OperationalError("refused"),
        psycopg.errors.InsufficientPrivilege("no right"),
    ],
)
def test_without_a_backup_nothing_changes(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(_: object) -> str:
        raise error

    monkeypatch.setattr(litellm_database, "_has_data", lambda *_: True)
    monkeypatch.setattr(litellm_database, "_saved", failing)
    monkeypatch.setattr(job, "end_former", lambda _: None)
    monkeypatch.setattr(job, "run", lambda _: pytest.fail("the schema was changed"))
    with pytest.raises(RuntimeError, match=str(error)):
        litellm_database._SchemaProvider().create(PROPS)


def test_the_schema_is_looked_at_again_for_another_image_server_or_database_only() -> None:
    """Not for a new password, which changes no table."""
    olds = {"image": "1", "server": "a", "database": "d", "url": "one", "job": {}}
    provider = litellm_database._SchemaProvider()
    assert not provider.diff("schema", olds, {**olds, "url": "two", "job": {"secrets": {}}}).changes
    for name in ("image", "server", "database"):
        assert provider.diff("schema", olds, {**olds, name: "another"}).changes
