"""`llmctl status` on an engine that is a program with prepared answers, and a gateway that is a small server."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

import app
from console import cli, containers, edge_statistics, management, screen
from console.status import down, read

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-the-key"
STATISTICS = (Path(__file__).parent / "edge_statistics.txt").read_text()
"""What HAProxy 3.0.11 answered with edge/haproxy.cfg; replicas' slots without a replica are left out."""
ALL_UP = STATISTICS.replace(",DOWN,", ",UP,")
DOCKER = """#!{python} -IS
import json, pathlib, sys
arguments, given = " ".join(sys.argv[1:]), "" if sys.stdin is None else sys.stdin.read()
with open({log!r}, "a") as log:
    log.write(arguments + "\\n")
for start, code, printed in json.loads(pathlib.Path({answers!r}).read_text()):
    if arguments.startswith(start):
        print(printed, end="", file=sys.stderr if code else sys.stdout)
        sys.exit(code)
sys.exit("nobody thought of: docker " + arguments)
"""
IDS = ("e" * 64, "a" * 64, "b" * 64, "d" * 64)
NO_MANAGER = (
    'Error response from daemon: This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to '
    "connect this node to swarm and try again.\n"
)


class Engine:
    """Answers commands of `docker` that begin in some way; the first that fits."""

    def __init__(self, folder: Path) -> None:
        self.answers: list[tuple[str, int, str]] = []
        self._file, self._log = folder / "answers.json", folder / "calls"
        program = folder / "docker"
        program.write_text(DOCKER.format(python=sys.executable, log=str(self._log), answers=str(self._file)))
        program.chmod(0o755)
        self.write()

    def write(self) -> None:
        self._file.write_text(json.dumps(self.answers))

    def on(self, start: str, printed: object, *, code: int = 0) -> None:
        """Answer so from now on."""
        text = printed if isinstance(printed, str) else json.dumps(printed)
        self.answers.insert(0, (start, code, text))
        self.write()

    def runs(self, containers: list[dict[str, Any]]) -> None:
        self.on("ps --all", "".join(f"{each['Id']}\n" for each in containers))
        self.on("inspect --type=container", containers)

    @property
    def calls(self) -> str:
        return self._log.read_text()


def labels(part: str, stack: str = "dev") -> dict[str, str]:
    name = "llm-infrastructure"
    return {
        f"{name}.identity": f"of {stack}",
        f"{name}.part": part,
        f"{name}.project": name,
        f"{name}.stack": stack,
    }


def container(name: str, part: str, number: int, **state: Any) -> dict[str, Any]:
    """As `docker inspect` has it, as far as it is read."""
    running = state.get("Status", "running") == "running"
    return {
        "Id": IDS[number],
        "Name": f"/llm-infrastructure-dev-{name}",
        "State": {
            "Status": "running",
            "Running": running,
            "ExitCode": 0,
            "StartedAt": "2026-11-25T12:00:00.123456789Z",
            "FinishedAt": "0001-01-01T00:00:00Z",
            "Health": {"Status": "healthy", "FailingStreak": 0, "Log": []},
        }
        | state,
        "Image": f"sha256:{number}",
        "RestartCount": 0,
        "HostConfig": {"PortBindings": {}},
        "Config": {"Labels": labels(part), "Image": f"sha256:{number}"},
        "NetworkSettings": {
            "Networks": {"llm-infrastructure-dev-gateway": {"IPAddress": f"172.20.0.{4 + number}" if running else ""}}
        },
    }


class Gateway(ThreadingHTTPServer):
    """Answers as LiteLLM behind the edge does."""

    key = KEY
    models: tuple[object, ...] = ({"id": "gpt-4o"}, {"id": "claude-3-5-sonnet"})
    ready = 200
    version: object = "1.55.0"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        gateway = self.server
        if self.path == "/health/readiness":
            self._say(gateway.ready, {"status": "healthy", "litellm_version": gateway.version})
        elif self.headers["Authorization"] == f"Bearer {gateway.key}":
            self._say(200, {"data": gateway.models})
        else:
            self._say(401, {"error": {"message": "no"}})

    def _say(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: what is asked is in the tests."""


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gateway]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_API_KEY", KEY)
    with Gateway() as made:
        monkeypatch.setenv("LITELLM_URL", f"http://127.0.0.1:{made.port}")
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def engine(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    """The engine of a stack that is well: an edge, two replicas and Postgres."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    containers._images.cache_clear()
    containers.postgres_version.cache_clear()
    made = Engine(folder)
    made.runs(stack(gateway))
    names = ("haproxy:3.0", "litellm:main-v1.55.0", "litellm:main-v1.55.0", "postgres:17")
    images = [{"Id": f"sha256:{number}", "RepoTags": [name], "RepoDigests": []} for number, name in enumerate(names)]
    made.on("inspect --type=image", images)
    made.on(f"exec {IDS[3]} psql --version", "psql (PostgreSQL) 17.6 (Debian 17.6-0+deb13u1)\n")
    made.on(f"exec --interactive {IDS[0]} bash -c", ALL_UP)
    made.on("service ls", NO_MANAGER, code=1)
    return made


def stack(gateway: Gateway) -> list[dict[str, Any]]:
    """The containers of a stack that is well, in the order of IDS."""
    edge = container("edge", "edge", 0)
    edge["HostConfig"]["PortBindings"]["4000/tcp"] = [{"HostIp": "127.0.0.1", "HostPort": str(gateway.port)}]
    return [
        edge,
        container("litellm-1", "litellm", 1),
        container("litellm-2", "litellm", 2),
        container("postgres", "postgres", 3),
    ]


def stopped(containers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for each in containers:
        each["State"] |= {"Status": "exited", "Running": False, "FinishedAt": "2026-11-25T13:00:00Z"}
    return containers


def llmctl(*arguments: str) -> Any:
    return CliRunner().invoke(cli.cli, ["status", *arguments])


def test_a_healthy_stack_is_shown_completely(gateway: Gateway, engine: Engine) -> None:
    """Each part with its health, image and requests, each client, the models, and every program's version."""
    status = read()
    assert (status.wrong, status.unseen) == ((), ())
    assert (status.stack, status.edge, status.url) == ("dev", "edge", f"http://127.0.0.1:{gateway.port}")
    assert status.models == ("claude-3-5-sonnet", "gpt-4o")
    assert status.versions == {"LiteLLM": "1.55.0", "HAProxy": "3.0.11", "PostgreSQL": "17.6"}
    parts = {part.name: part for part in status.parts}
    assert list(parts) == ["edge", "litellm-1", "litellm-2", "postgres"]
    assert {part.state for part in status.parts} == {"healthy"}
    assert parts["litellm-2"].image == "litellm:main-v1.55.0"
    assert parts["edge"].traffic == edge_statistics.Traffic(requests=17, failed=2, active=2, queued=0)
    assert parts["litellm-1"].traffic == edge_statistics.Traffic(requests=11, failed=5, active=2, queued=0)
    assert parts["litellm-2"].traffic == edge_statistics.Traffic(requests=9, failed=3, active=0, queued=0)
    assert parts["postgres"].traffic is None
    assert status.clients == (
        edge_statistics.Client("app", requests=12, failed=2, refused=0),
        edge_statistics.Client("batch", requests=5, failed=0, refused=2),
    )
    since = status.counted_since
    assert since is not None
    assert round((status.at - since).total_seconds()) in {7383, 7384}


def test_the_key_is_in_no_command(engine: Engine) -> None:
    """A command line can be read by everybody on the machine."""
    read()
    assert "exec --interactive" in engine.calls
    assert KEY not in engine.calls


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ({"Status": "exited", "ExitCode": 137, "FinishedAt": "2026-11-25T13:00:00Z"}, "exited (137)"),
        ({"Status": "restarting", "Running": True}, "restarting"),
        ({"Status": "created", "StartedAt": "0001-01-01T00:00:00Z"}, "created"),
        ({"Health": {"Status": "unhealthy"}}, "unhealthy"),
        ({"Health": {"Status": "starting", "Log": [{"ExitCode": 1}]}}, "starting"),
    ],
)
def test_a_part_that_is_not_up_is_wrong(gateway: Gateway, engine: Engine, state: dict[str, Any], shown: str) -> None:
    """The rest is shown as usual, the exit code is 1, and the commands that help are named. `doctor` warns of it."""
    containers = stack(gateway)
    containers[2] = container("litellm-2", "litellm", 2, **state)
    engine.runs(containers)
    done = llmctl("--json")
    status = json.loads(done.stdout)
    assert done.exit_code == 1
    look = "docker logs --tail 50 llm-infrastructure-dev-litellm-2"
    fix = "" if containers[2]["State"]["Running"] else ", then ./pulumiw up --refresh --stack dev"
    assert status["wrong"] == [f"litellm-2: {shown} ({look}{fix})"]
    assert [part["up"] for part in status["parts"]] == [True, True, False, True]
    assert [(each.detail, each.fix) for each in down()] == [(f"litellm-2 is down: {shown}", f"{look}{fix}")]


@pytest.mark.parametrize(("restarts", "up"), [(0, True), (1, False)])
def test_a_part_that_the_engine_has_yet_to_ask_is_wrong_if_it_was_started_again(
    gateway: Gateway, engine: Engine, restarts: int, *, up: bool
) -> None:
    """The `up` that created it saw that it was healthy."""
    containers = stack(gateway)
    containers[2] = container("litellm-2", "litellm", 2, Health={"Status": "starting", "Log": []})
    containers[2]["RestartCount"] = restarts
    engine.runs(containers)
    part = json.loads(llmctl("--json").stdout)["parts"][2]
    assert (part["state"], part["up"]) == ("starting", up)


def test_a_replica_that_does_not_answer_the_edge_is_wrong(engine: Engine) -> None:
    """Whatever the engine says of its health: callers are not sent to it."""
    engine.on(f"exec --interactive {IDS[0]}", STATISTICS)
    assert [line.split(" (")[0] for line in read().wrong] == ["litellm-2: healthy, but does not answer the edge"]
    assert [each.detail for each in down()] == ["litellm-2 is down: healthy, but does not answer the edge"]


def test_only_replicas_have_requests_of_replicas(gateway: Gateway, engine: Engine) -> None:
    """Another part may now have a former replica's address."""
    containers = [*stack(gateway)[:2], container("postgres", "postgres", 2)]
    engine.runs(containers)
    assert [part.traffic is None for part in read().parts] == [False, False, True]


def test_a_stopped_edge_is_found_by_the_port_that_it_would_publish(gateway: Gateway, engine: Engine) -> None:
    gateway.ready = 503
    containers = stack(gateway)
    containers[0]["State"] |= {"Status": "exited", "Running": False, "FinishedAt": "2026-11-25T13:00:00Z"}
    engine.runs(containers)
    status = read()
    assert [line.split(":")[0] for line in status.wrong] == ["gateway", "edge"]
    assert status.unseen == ("requests: no edge runs on this engine",)
    assert [part.traffic for part in status.parts] == [None] * 4


@pytest.mark.parametrize("missing", [True, False], ids=["no docker", "no engine"])
def test_without_an_engine_the_gateway_alone_is_shown(engine: Engine, tmp_path: Path, *, missing: bool) -> None:
    """What cannot be seen from here does not count as wrong; the output says why it is missing."""
    if missing:
        (tmp_path / "bin" / "docker").unlink()
        why = "there is no docker on PATH"
    else:
        why = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
        engine.on("ps", f"{why}\n", code=1)
    done = llmctl("--json")
    status = json.loads(done.stdout)
    assert done.exit_code == 0
    assert status["versions"] == {"LiteLLM": "1.55.0"}
    assert (status["models"], status["parts"], status["wrong"]) == (["claude-3-5-sonnet", "gpt-4o"], [], [])
    assert len(status["unseen"]) == 1
    assert why in status["unseen"][0]


def test_a_gateway_that_does_not_serve_is_wrong(
    gateway: Gateway, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output says what is wrong with it, and still shows the parts."""
    gateway.models = ()
    assert read().wrong[0].startswith("models: none is served")
    gateway.key = "another"
    assert read().wrong[0].startswith("key: the gateway refuses it with status 401")
    gateway.ready = 503
    assert read().wrong == ("gateway: it answers with status 503 (./pulumiw up --refresh)",)
    gateway.ready, gateway.key, gateway.models = 200, KEY, ("no model",)
    assert read().wrong[0].startswith("gateway: the server at")
    assert len(read().parts) == 4
    monkeypatch.setenv("LITELLM_URL", "http://127.0.0.1:9")
    status = read()
    assert status.wrong == ("gateway: nothing answers at http://127.0.0.1:9 (./pulumiw up --refresh)",)
    assert (
        "no edge on the engine that `docker` uses publishes port 9 (if it was removed: ./pulumiw up"
        in status.unseen[0]
    )
    monkeypatch.setenv("LITELLM_API_KEY", "")
    with pytest.raises(app.NotConfiguredError):
        read()


def test_another_stack_with_the_same_port_is_not_shown(engine: Engine) -> None:
    """For example if LITELLM_URL names another machine: its gateway accepts the key, but the edge here does not."""
    engine.on(f"exec --interactive {IDS[0]}", ALL_UP.replace("found=yes", "found=no"))
    status = read()
    assert (status.stack, status.parts, status.wrong) == (None, (), ())
    assert "another stack than http://127.0.0.1" in status.unseen[0]


def test_a_stopped_stack_with_the_same_port_is_not_what_answers(gateway: Gateway, engine: Engine) -> None:
    """For example a developer's own stack, while LITELLM_URL names another machine."""
    engine.runs(stopped(stack(gateway)))
    status = read()
    assert (status.stack, status.parts, status.wrong) == (None, (), ())
    assert "another stack than http://127.0.0.1" in status.unseen[0]
    assert [*down(answers=True)] == []


def test_a_stopped_stack_is_found_by_who_did_not_ask_the_gateway(gateway: Gateway, engine: Engine) -> None:
    """For example to read what its replicas have written."""
    engine.runs(stopped(stack(gateway)))
    assert management.stack().name == "dev"
    assert len([*down()]) == 4


def test_a_key_that_haproxy_could_take_for_commands_is_not_asked_for(
    gateway: Gateway, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "get map" not in _questions(engine, monkeypatch, gateway, "sk;shutdown")
    assert "get map clients.map sk-1_2.3;" in _questions(engine, monkeypatch, gateway, "sk-1_2.3")


def _questions(engine: Engine, monkeypatch: pytest.MonkeyPatch, gateway: Gateway, key: str) -> str:
    gateway.key = key
    monkeypatch.setenv("LITELLM_API_KEY", key)
    asked = []

    def answer(_command: list[str], *, given: str, seconds: float) -> str:
        asked.append(given)
        return ALL_UP

    with monkeypatch.context() as patch:
        patch.setattr(edge_statistics, "output", answer)
        assert read().stack == "dev"
    return asked[0]


@pytest.mark.parametrize("answer", ["", "Unknown command: @1\n", "# pxname,svname,\n"])
def test_an_edge_that_answers_otherwise_leaves_the_rest(engine: Engine, answer: str) -> None:
    engine.on(f"exec --interactive {IDS[0]}", answer)
    status = read()
    assert (status.wrong, len(status.parts), status.edge) == ((), 4, None)
    assert status.unseen == ("requests: edge was asked, and what runs there does not answer like HAProxy",)


def test_what_goes_away_while_it_is_looked_at_is_left_out(gateway: Gateway, engine: Engine) -> None:
    """As during a rolling change. Other failures of the engine are reported."""
    for each in stack(gateway):
        engine.on(f"inspect --type=container {each['Id']}", [each])
    engine.on(f"inspect --type=container {' '.join(IDS)}", f"Error: No such container: {IDS[2]}\n", code=1)
    engine.on(f"inspect --type=container {IDS[2]}", f"Error: No such container: {IDS[2]}\n", code=1)
    assert [part.name for part in read().parts] == ["edge", "litellm-1", "postgres"]
    engine.on("inspect --type=container", "error during connect: EOF\n", code=1)
    assert "error during connect" in read().unseen[0]


def test_versions_that_cannot_be_read_are_not_seen(engine: Engine) -> None:
    engine.on(f"exec {IDS[3]} psql", "Error: container is paused\n", code=1)
    engine.on("inspect --type=image", "Error: No such image\n", code=1)
    status = read()
    assert "the version of PostgreSQL: docker failed" in status.unseen[0]
    assert status.parts[0].image == "sha256:0"


def service(name: str, part: str, **more: Any) -> dict[str, Any]:
    return {
        "ID": f"{name}-id",
        "Spec": {"Name": f"llm-infrastructure-dev-{name}", "Labels": labels(part), "EndpointSpec": {"Mode": "dnsrr"}},
    } | more


def task(name: str, node: str, address: str, *, slot: int | None = None, state: str = "running") -> dict[str, Any]:
    return {
        "ID": f"{name}-on-{node}",
        "ServiceID": f"{name}-id",
        "NodeID": f"{node}-id",
        **({"Slot": slot} if slot else {}),
        "DesiredState": "running",
        "Status": {"State": state, "Timestamp": "2026-11-25T12:00:00.5Z"},
        "Spec": {"ContainerSpec": {"Image": f"registry:5000/{name}:1@sha256:abc"}},
        "NetworksAttachments": [{"Network": {}, "Addresses": [f"{address}/24"]}],
    }


@pytest.fixture
def swarm(gateway: Gateway, engine: Engine) -> Engine:
    """The engine of a manager, with an edge of its own and one on another node."""
    edge = service("edge", "edge")
    edge["Spec"]["EndpointSpec"]["Ports"] = [{"PublishedPort": gateway.port, "PublishMode": "host"}]
    services = [edge, service("litellm-g1", "litellm")]
    tasks = [
        task("edge", "one", "10.0.1.2"),
        task("edge", "two", "10.0.1.3"),
        task("litellm-g1", "one", "172.20.0.5", slot=1),
        task("litellm-g1", "two", "172.20.0.6", slot=2, state="starting"),
    ]
    of_edge = container("edge.one", "edge", 0)
    of_edge["Config"]["Labels"][containers.OF_A_TASK] = "edge-on-one"
    of_edge["HostConfig"]["PortBindings"]["4000/tcp"] = [{"HostIp": "", "HostPort": str(gateway.port)}]
    left = container("edge.before", "edge", 1, Status="exited")
    left["Config"]["Labels"][containers.OF_A_TASK] = "edge-before"
    engine.runs([of_edge, left])
    listed = [
        {"Name": "llm-infrastructure-dev-edge", "Mode": "global", "Replicas": "2/2"},
        {"Name": "llm-infrastructure-dev-litellm-g1", "Mode": "replicated", "Replicas": "1/2 (max 1 per node)"},
    ]
    engine.on("service ls", "\n".join(map(json.dumps, listed)))
    engine.on("inspect --type=service", services)
    nodes = [{"ID": f"{name}-id", "Hostname": name, "Status": "Ready"} for name in ("one", "two")]
    engine.on("node ls", "\n".join(map(json.dumps, nodes)))
    engine.on("service ps --quiet", "".join(f"{each['ID']}\n" for each in tasks))
    engine.on("inspect --type=task", tasks)
    return engine


def test_a_swarm_is_shown_task_by_task(swarm: Engine) -> None:
    """With each task's node, what its services are missing, and the statistics of the edge on this engine."""
    status = read()
    parts = {part.name: part for part in status.parts}
    assert list(parts) == ["edge@one", "edge@two", "litellm-g1.1@one", "litellm-g1.2@two"]
    assert parts["litellm-g1.1@one"].image == "registry:5000/litellm-g1:1"
    assert parts["litellm-g1.1@one"].traffic == edge_statistics.Traffic(requests=11, failed=5, active=2, queued=0)
    assert (parts["edge@one"].traffic is None, parts["edge@two"].traffic) == (False, None)
    look = "docker service ps --no-trunc llm-infrastructure-dev-litellm-g1"
    assert status.wrong == (f"litellm-g1: 1 of 2 run ({look})", f"litellm-g1.2@two: starting ({look})")
    assert status.unseen == ("what edge@two counted: ask the engines there",)
    assert status.edge == "edge@one"


def test_a_node_that_is_not_a_manager_shows_its_own_tasks(swarm: Engine) -> None:
    swarm.on("service ls", NO_MANAGER, code=1)
    status = read()
    assert [part.name for part in status.parts] == ["edge.one"]
    assert status.unseen[0].startswith("only the tasks of this node, because docker failed")


def test_a_failing_manager_is_reported(swarm: Engine) -> None:
    swarm.on("service ls", "Error response from daemon: rpc error: context deadline exceeded\n", code=1)
    assert "context deadline exceeded" in read().unseen[0]
    swarm.on("service ls", "")
    assert "no edge on the engine that `docker` uses publishes port" in read().unseen[0]


def test_without_a_terminal_the_text_is_plain(engine: Engine) -> None:
    """One line per part, however long, without colours."""
    done = llmctl()
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[1:3] == ["all is well", "LiteLLM 1.55.0, HAProxy 3.0.11, PostgreSQL 17.6"]
    assert "\x1b" not in done.stdout
    words = [line.split() for line in lines]
    edge = next(each for each in words if each[:1] == ["edge"])
    assert (edge[1], edge[-5:]) == ("healthy", ["17", "2", "2", "0", "haproxy:3.0"])
    assert ["batch", "5", "0", "2"] in words
    engine.on(f"exec --interactive {IDS[0]}", STATISTICS)
    failed = llmctl()
    assert failed.exit_code == 1
    assert failed.stdout.splitlines()[1].startswith("WRONG    litellm-2: healthy, but does not answer")


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_watching_continues_after_a_failure_and_ends_with_an_interrupt(
    gateway: Gateway, engine: Engine, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """A source that fails for a moment is shown as failed, and an interrupt is not a failure."""
    steps = iter(
        (
            lambda: setattr(gateway, "ready", 503),
            lambda: engine.on("ps", "Cannot connect to the Docker daemon\n", code=1),
            lambda: setattr(gateway, "ready", 200),
        )
    )

    def step(seconds: float) -> None:
        assert seconds == 0.5
        try:
            next(steps)()
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(screen, "sleep", step)
    done = llmctl("--watch", "--every", "0.5", *options)
    assert done.exit_code == 0
    if options:
        seen = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(len(each["wrong"]), len(each["unseen"])) for each in seen] == [(0, 0), (1, 0), (1, 1), (0, 1)]
    else:
        assert done.stdout.count("stack dev at") == 2
        assert done.stdout.count("WRONG    gateway: it answers with status 503") == 2
        assert done.stdout.count("everything that can be seen is well") == 1


def test_who_says_how_often_to_look_watches(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    def stop(seconds: float) -> None:
        waited.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(screen, "sleep", stop)
    for arguments in (["--watch"], ["--every", "0.5"], ["--watch", "--every", "0.5"]):
        assert llmctl(*arguments).exit_code == 0
    assert waited == [cli.LOOK_SECONDS, 0.5, 0.5]


def test_on_a_terminal_a_watch_stays_in_its_place(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with screen.Screen(live=True) as terminal:
        for _ in range(2):
            terminal.show(read())
    printed = capsys.readouterr().out
    assert "all is well" in printed
    assert "\x1b[1A" in printed  # back up over the first


def test_a_status_is_a_document(engine: Engine) -> None:
    """`--json` has every field, under the names of the classes."""
    document = json.loads(llmctl("--json").stdout)
    assert document == json.loads(json.dumps(asdict(read()), default=str)) | {
        name: document[name] for name in ("at", "counted_since")
    }


def test_wrong_usage_is_explained() -> None:
    assert llmctl("--every", "0").exit_code == 2
    assert "llmctl status --watch" in llmctl("--help").stdout
