"""What the whole stack asks Pulumi for, recorded by mocks: no engine, no CLI."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pulumi
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pulumi.runtime import mocks, rpc

from infra import stack
from infra.placement.docker import waves
from infra.placement.engine_placement import EnginePlacement
from infra.postgres import major_version_of
from infra.stack import build
from tests.stack_config import KEY, OTHER_KEY, PROJECT, PROJECT_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infra.settings import Settings

SECRET_FILES = "/run/secrets/"


def plain(value: Any) -> Any:
    """An input without the wrapping that marks it secret."""
    return value["value"] if isinstance(value, dict) and rpc._special_sig_key in value else value


class Recorder(mocks.Mocks):
    """Every resource that the program registered, by type and name."""

    def __init__(self) -> None:
        self.inputs: dict[tuple[str, str], dict[str, Any]] = {}

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        self.inputs[args.typ, args.name] = {name: plain(value) for name, value in args.inputs.items()}
        made = {"value": f"value-of-{args.name}", "previous": f"previous-of-{args.name}", "generation": 1}
        if args.typ == "docker:index/remoteImage:RemoteImage":
            made = {"imageId": f"sha256:{args.name}"}
        if args.typ.endswith(":DatabaseRoles"):
            made = {"app_login": "app_1"}
        return f"{args.name}-id", {**args.inputs, **made}

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        raise NotImplementedError(args.token)

    def containers(self) -> dict[str, dict[str, Any]]:
        return {name: inputs for (kind, name), inputs in self.inputs.items() if kind.endswith(":Container")}


@pytest.fixture
def registered(settings: Callable[..., Settings]) -> Iterator[Callable[..., Recorder]]:
    """Run the program's `build` with settings, and return what it registered."""

    def run(stack: str = "dev", **changes: object) -> Recorder:
        recorder = Recorder()
        mocks.set_mocks(recorder, project=PROJECT_NAME, stack=stack, preview=False)

        @pulumi.runtime.test  # type: ignore[untyped-decorator]
        def program() -> pulumi.Output[object]:
            return pulumi.Output.all(**build(settings(stack, **changes)))

        program()
        return recorder

    yield run
    pulumi.runtime.settings.reset_options()


def test_the_default_stack_has_its_five_parts(registered: Callable[..., Recorder]) -> None:
    assert sorted(registered().containers()) == ["demo", "edge", "litellm-1", "litellm-2", "postgres"]


def test_parts_are_components_of_their_own_type(registered: Callable[..., Recorder]) -> None:
    kinds = {kind for kind, _ in registered().inputs if kind.startswith(f"{PROJECT_NAME}:")}
    assert kinds == {
        "llm-infrastructure:demo:DemoProvider",
        "llm-infrastructure:edge:Edge",
        "llm-infrastructure:gateway:Gateway",
        "llm-infrastructure:postgres:Postgres",
    }


@pytest.mark.parametrize("on", [True, False])
def test_fast_streams_can_be_turned_off(registered: Callable[..., Recorder], *, on: bool) -> None:
    """In the stack config: LiteLLM then runs unmodified."""
    variables = registered(fastStreams=on).containers()["litellm-1"]["envs"]
    assert ("LLM_GATEWAY_FAST_STREAMS=true" in variables) == on


@pytest.mark.parametrize(("memory_mb", "room_mb"), [(1024, 32), (2048, 83), (256, 1)])
def test_a_replica_handles_as_much_of_large_requests_as_its_memory_takes(
    registered: Callable[..., Recorder], caplog: pytest.LogCaptureFixture, memory_mb: int, room_mb: int
) -> None:
    """A preview warns if the largest request needs more than that."""
    variables = registered(litellmMemoryMb=memory_mb, maxBodyMb=32).containers()["litellm-1"]["envs"]
    assert f"LLM_GATEWAY_LARGE_BODIES_MB={room_mb}" in variables
    warned = "maxBodyMb is 32" in caplog.text
    assert warned == (room_mb < 32)


def test_a_provider_key_takes_the_demo_provider_away(registered: Callable[..., Recorder]) -> None:
    assert "demo" not in registered(openaiApiKey="sk-1").containers()


@pytest.mark.parametrize(
    ("variable", "fix"),
    [
        ("ANTHROPIC_API_KEY", "./pulumiw config set --stack dev --secret anthropicApiKey …"),
        ("AZURE_API_KEY", "./pulumiw config set --stack dev --secret --path litellmEnvironment.AZURE_API_KEY …"),
    ],
)
def test_a_model_that_is_left_out_is_warned_of_with_what_fixes_it(
    registered: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch, variable: str, fix: str
) -> None:
    """Also a model of the file whose variable cannot be set by a key of the stack config."""
    read = stack._read
    key = "os.environ/ANTHROPIC_API_KEY"
    monkeypatch.setattr(stack, "_read", lambda name: read(name).replace(key, f"os.environ/{variable}"))
    warned: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", warned.append)
    registered(openaiApiKey="sk-1")
    left_out = [warning for warning in warned if "left out" in warning]
    assert left_out == [f"claude-3-5-sonnet is left out: {variable} is not set ({fix})"]


@pytest.mark.parametrize("built_here", [True, False])
def test_what_the_image_built_here_cannot_do_is_warned_of(
    registered: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch, *, built_here: bool
) -> None:
    image = "ghcr.io/berriai/litellm:main-v1.55.0"
    monkeypatch.setattr(stack, "stand_ins", lambda _: {image: "built"} if built_here else {})
    warned: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", warned.append)
    keys = {"LANGFUSE_PUBLIC_KEY": "pk-1", "LANGFUSE_SECRET_KEY": "sk-1"}
    registered(litellmSettings={"callbacks": ["langfuse"]}, litellmEnvironment=keys)
    missing = [each for each in warned if "langfuse will not work: it needs the Python package langfuse" in each]
    assert len(missing) == built_here


def test_with_your_own_database_there_is_no_postgres(registered: Callable[..., Recorder]) -> None:
    recorder = registered(databaseUrl="postgresql://u:p@db.example/app")
    assert "postgres" not in recorder.containers()
    migrations = next(inputs for (kind, _), inputs in recorder.inputs.items() if kind.endswith(":Migrations"))
    assert migrations["database_url"] == "postgresql://u:p@db.example/app"


def test_names_are_fixed_by_project_stack_and_part(registered: Callable[..., Recorder]) -> None:
    for name, inputs in registered(replicas="3").containers().items():
        assert inputs["name"] == f"{PROJECT_NAME}-dev-{name}"


def test_replicas_share_the_name_of_their_master_keys_generation(registered: Callable[..., Recorder]) -> None:
    containers = registered(replicas="3").containers()
    aliases = [containers[f"litellm-{number}"]["networksAdvanced"][0]["aliases"] for number in (1, 2, 3)]
    assert aliases == [["litellm-g1"]] * 3


@given(replicas=st.integers(1, 100), before=st.integers(2, 100))
def test_half_of_the_replicas_serve_through_every_wave(replicas: int, before: int) -> None:
    """Also half of the former replicas, if one `up` changes their number and replaces all of them."""
    order = waves(replicas)
    assert sorted(number for wave in order for number in wave) == list(range(1, replicas + 1))
    assert order[0] == [1]  # what is broken costs one
    serving = set(range(1, before + 1))
    for wave in order:
        assert len(serving - set(wave)) >= min(before, replicas) // 2
        serving |= set(wave)
    assert len(order) <= 3  # however many replicas there are


def test_a_wave_of_replicas_waits_until_all_of_the_one_before_are_healthy(
    registered: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for nothing else, so that the replicas of one wave are drained and started together."""
    waits: dict[str, set[str]] = {}
    register = mocks.MockMonitor.RegisterResource

    def recorded(monitor: mocks.MockMonitor, request: Any) -> Any:
        waits[request.name] = {urn.rsplit("::", 1)[1] for urn in request.dependencies}
        return register(monitor, request)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(mocks.MockMonitor, "RegisterResource", recorded)
    registered(replicas="6")
    replicas = {f"litellm-{number}": waits[f"litellm-{number}"] for number in range(1, 7)}
    of_replicas = {f"{name}{suffix}" for name in replicas for suffix in ("", "-healthy")}
    assert {name: sorted(each & of_replicas) for name, each in replicas.items()} == {
        "litellm-1": [],
        "litellm-2": ["litellm-1-healthy"],
        "litellm-3": ["litellm-2-healthy", "litellm-4-healthy", "litellm-6-healthy"],
        "litellm-4": ["litellm-1-healthy"],
        "litellm-5": ["litellm-2-healthy", "litellm-4-healthy", "litellm-6-healthy"],
        "litellm-6": ["litellm-1-healthy"],
    }


def test_only_the_edge_and_postgres_have_ports(registered: Callable[..., Recorder]) -> None:
    published = {name: inputs["ports"] for name, inputs in registered().containers().items() if inputs.get("ports")}
    assert published == {
        "edge": [{"internal": 4000, "external": 4000, "ip": "127.0.0.1"}],
        "postgres": [{"internal": 5432, "external": 5432, "ip": "127.0.0.1"}],
    }


def test_secrets_are_files_of_the_containers_that_need_them(registered: Callable[..., Recorder]) -> None:
    files = {
        name: sorted(
            each["file"].removeprefix(SECRET_FILES)
            for each in inputs["uploads"]
            if each["file"].startswith(SECRET_FILES)
        )
        for name, inputs in registered(openaiApiKey="sk-1", masterKey="sk-" + "0123456789abcdef" * 4)
        .containers()
        .items()
    }
    assert files == {
        "edge": [],
        "litellm-1": ["LITELLM_MASTER_KEY", "LITELLM_SALT_KEY", "OPENAI_API_KEY"],
        "litellm-2": ["LITELLM_MASTER_KEY", "LITELLM_SALT_KEY", "OPENAI_API_KEY"],
        "postgres": ["postgres_password"],
    }


def test_programs_are_in_the_state_by_their_checksums(registered: Callable[..., Recorder]) -> None:
    """And by a path that each clone has, so that an `up` from another one replaces nothing."""
    for name in ("litellm-1", "litellm-2"):
        uploads = [plain(each) for each in registered().containers()[name]["uploads"]]
        programs = {each["file"]: (each["source"], each["sourceHash"]) for each in uploads if "source" in each}
        assert programs == {
            f"/opt/llm-gateway/{file}": (f"litellm/{file}", hashlib.sha256(path.read_bytes()).hexdigest())
            for file in ("modules.txt", "run.py")
            for path in [PROJECT / "litellm" / file]
        }
        assert not [each for each in uploads if "source" in each and "content" in each]


def test_variables_and_files_of_the_stack_config_are_files_of_the_replicas(
    registered: Callable[..., Recorder],
) -> None:
    """Variables are where the start program reads its environment from, files in a folder beside them."""
    recorder = registered(
        litellmEnvironment={"GROQ_API_KEY": "K", "AWS_REGION": "eu-1"}, litellmFiles={"v.json": "{}"}
    )
    containers = recorder.containers()
    for name, inputs in containers.items():
        uploads = {plain(each)["file"]: plain(plain(each).get("content")) for each in inputs["uploads"]}
        given = {path: text for path, text in uploads.items() if text in {"K", "eu-1", "{}"}}
        of_litellm = {"GROQ_API_KEY": "K", "AWS_REGION": "eu-1", "files/v.json": "{}"}
        wanted = {f"{SECRET_FILES}{path}": text for path, text in of_litellm.items()}
        assert given == (wanted if name.startswith("litellm-") else {})
    assert "demo" not in containers  # there is a provider's key


def test_no_secret_is_in_a_containers_environment(registered: Callable[..., Recorder]) -> None:
    for name, inputs in registered(openaiApiKey="sk-the-key").containers().items():
        assert "sk-the-key" not in str(inputs.get("envs")), name
        assert "value-of" not in str(inputs.get("envs")), name


def edge_files(recorder: Recorder) -> dict[str, str]:
    """The edge's live files."""
    inputs = next(inputs for (kind, _), inputs in recorder.inputs.items() if kind.endswith(":LiveFiles"))
    return {name: plain(content) for name, content in inputs["files"].items()}


def test_previous_client_keys_stay_valid(registered: Callable[..., Recorder]) -> None:
    recorder = registered(clientKeys={"batch": [KEY, OTHER_KEY]})
    assert edge_files(recorder)["clients.map"].splitlines() == [
        "value-of-client-key-app app",
        "previous-of-client-key-app app",
        "value-of-client-key-batch batch",
        "previous-of-client-key-batch batch",
        f"{OTHER_KEY} batch",
    ]


def test_the_edge_knows_the_master_key_of_each_generation(registered: Callable[..., Recorder]) -> None:
    files = edge_files(registered())
    assert files["master-keys.map"].splitlines() == [
        "litellm-g1 value-of-master-key",
        "litellm-g0 previous-of-master-key",
    ]
    assert "value-of" not in files["haproxy.cfg"]


def test_a_client_may_have_a_rate(registered: Callable[..., Recorder]) -> None:
    assert edge_files(registered(clientKeys={"batch": ""}, clientRpm={"batch": 60}))["rpm.map"] == "batch 60\n"


def test_metrics_are_published_on_loopback_only_if_asked_for(registered: Callable[..., Recorder]) -> None:
    assert [port["internal"] for port in registered().containers()["edge"]["ports"]] == [4000]
    ports = registered(metricsPort="9100", bindAddress="10.0.0.5", allowPlainHttp="true").containers()["edge"][
        "ports"
    ]
    assert [(port["external"], port["ip"]) for port in ports] == [(4000, "10.0.0.5"), (9100, "127.0.0.1")]


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("postgres:17", "17"),
        ("postgres:17.2-bookworm", "17"),
        ("registry.example:5000/postgres:16@sha256:" + "0" * 64, "16"),
        ("registry.example:5000/postgres@sha256:" + "0" * 64, ""),
        ("pgvector/pgvector:pg17", "17"),
        ("pgvector/pgvector:0.8.1-pg17", "17"),
        ("pgvector/pgvector:0.8.1-pg17-trixie@sha256:" + "0" * 64, "17"),
        ("timescale/timescaledb:2.17.2-pg17", "17"),
        ("timescale/timescaledb:2.17.2", ""),
        ("pgvector/pgvector:0.8.1", ""),
        ("postgis/postgis:17-3.5", "17"),
        ("registry.example/team/database:3.1", ""),
        ("registry.example:5000/postgres:17beta1", ""),
    ],
)
def test_the_major_version_of_postgres_is_in_its_images_tag(image: str, version: str) -> None:
    assert major_version_of(image) == version


def test_an_image_whose_tag_does_not_tell_is_asked_for_its_major_version(
    registered: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image without a known version is refused, with the command that makes it known."""
    image = "registry.example/team/database:3.1"
    told: dict[str, str] = {"PG_MAJOR": "18"}
    monkeypatch.setattr(EnginePlacement, "image_environment", lambda _self, asked: told if asked == image else {})
    recorder = registered(postgresImage=image, postgresVolume="other")
    (constant,) = (inputs for (kind, _), inputs in recorder.inputs.items() if kind.endswith(":Constant"))
    assert constant["value"] == "18"
    told.clear()
    with pytest.raises(pulumi.RunError, match=f"docker --host unix:///var/run/docker.sock pull {image}"):
        registered(postgresImage=image)


def test_postgres_may_share_half_of_its_memory(registered: Callable[..., Recorder]) -> None:
    """The engine's 64 MB do not hold the hash table of a parallel query."""
    containers = registered(postgresMemoryMb="2048").containers()
    assert {name: each.get("shmSize") for name, each in containers.items()} == {
        "postgres": 1024,
        **dict.fromkeys(("demo", "edge", "litellm-1", "litellm-2")),
    }


@pytest.mark.parametrize(
    ("version", "mounted_at", "data"),
    [
        ("17", "/var/lib/postgresql/data", "/var/lib/postgresql/data"),
        ("18", "/var/lib/postgresql", "/var/lib/postgresql/18/docker"),
    ],
)
def test_the_volume_is_where_the_image_of_postgres_has_a_folder_of_its_users(
    registered: Callable[..., Recorder], version: str, mounted_at: str, data: str
) -> None:
    """The server does not run as root, and could not take ownership of another folder."""
    recorder = registered(postgresImage=f"postgres:{version}", postgresVolume="postgres-of-then")
    postgres = recorder.containers()["postgres"]
    name = f"{PROJECT_NAME}-dev-postgres-of-then"
    assert postgres["volumes"] == [{"containerPath": mounted_at, "volumeName": name}]
    assert f"PGDATA={data}" in postgres["envs"]
    assert [inputs["name"] for (kind, _), inputs in recorder.inputs.items() if kind.endswith(":Volume")] == [name]


def test_what_may_not_change_is_the_major_version_of_a_volume(registered: Callable[..., Recorder]) -> None:
    """The first volume is the one that every stack had before another could be named."""
    recorder = registered(postgresImage="postgres:18.1", postgresVolume="postgres-of-then")
    (constant,) = (inputs for (kind, _), inputs in recorder.inputs.items() if kind.endswith(":Constant"))
    assert (constant["of"], constant["value"], constant["first"]) == ("postgres-of-then", "18", "postgres-data")
