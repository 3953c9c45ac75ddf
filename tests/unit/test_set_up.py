"""`make up` and `make down`: what they find wrong, and the commands that they name."""

from __future__ import annotations

import errno
import io
import os
import re
import socket
import sys
import threading
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from rich.console import Console

from infra.workload import LAST_PORT
from tests.stack_config import PROJECT
from toolchain import __main__ as set_up
from toolchain import engine_setup, operating_system, tools
from toolchain.progress import CommandError, SetupError, Step, Steps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import docker


def engine_with(**ports: int) -> docker.DockerClient:
    """An engine on which containers of these names run, each with a port of the host."""
    running = [
        SimpleNamespace(name=name, ports={"1/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}], "2/tcp": None})
        for name, port in ports.items()
    ]
    containers = SimpleNamespace(list=lambda **_: running)
    return cast("docker.DockerClient", SimpleNamespace(containers=containers))


ENGINE = engine_with()


class Config(set_up.StackConfig):
    """The config of stack dev with other ports."""

    def __init__(self, **ports: int | str) -> None:
        super().__init__("dev")
        self._defaults |= ports


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operating_system, "CACHE", tmp_path)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config file of stack dev, in a project of its own."""
    (tmp_path / "Pulumi.yaml").write_bytes((PROJECT / "Pulumi.yaml").read_bytes())
    monkeypatch.setattr(set_up, "PROJECT", tmp_path)
    return tmp_path / "Pulumi.dev.yaml"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("config: [", "line 1, column"),
        ("config: [1]\n", "a line for each key below it"),
        ("- config\n", "a line for each key below it"),
        ("\udcff", "can't decode byte 0xff"),
    ],
)
def test_a_malformed_config_file_is_named(config_file: Path, content: str, why: str) -> None:
    """With the line in it, and nothing is changed."""
    config_file.write_text(content, errors="surrogateescape")
    with pytest.raises(SetupError, match=r"Pulumi\.dev\.yaml is not the config of a stack: ") as raised:
        set_up.StackConfig("dev")
    assert why in raised.value.why
    assert "git diff Pulumi.dev.yaml" in raised.value.fix


@pytest.mark.parametrize("value", ["{secure: v1:x}", "5", "[a]", ""])
def test_what_make_up_needs_must_be_plain_text(config_file: Path, value: str) -> None:
    """For example a dockerHost that was set with `--secret`: the engine could not be asked."""
    config_file.write_text(f"config:\n  llm-infrastructure:dockerHost: {value}\n")
    with pytest.raises(SetupError, match=r"dockerHost is not plain text in Pulumi\.dev\.yaml") as raised:
        set_up.StackConfig("dev")
    assert raised.value.fix == "./pulumiw config set --stack dev dockerHost …"


def test_a_release_that_an_attacker_published_is_not_even_pulled(config_file: Path) -> None:
    """Nor pushed: people trust whatever is in the team's own registry."""
    config_file.write_text("config:\n  llm-infrastructure:litellmImage: ghcr.io/berriai/litellm:v1.107.0\n")
    with pytest.raises(SetupError, match=r"litellmImage is LiteLLM 1\.107\.0, which an attacker published") as raised:
        set_up.StackConfig("dev")
    assert "config set --stack dev litellmImage ghcr.io/berriai/litellm:main-v1.55.0" in raised.value.fix


@pytest.mark.parametrize("content", ["", "config:\n", "encryptionsalt: v1:x\n"])
def test_a_config_file_may_set_nothing(config_file: Path, content: str) -> None:
    config_file.write_text(content)
    assert set_up.StackConfig("dev")["dockerHost"] == set_up.StackConfig("other")["dockerHost"] != ""


def test_an_empty_database_url_counts_as_not_set(config_file: Path) -> None:
    """The stack's own Postgres runs then, and needs its image; with one, encrypted as it is, it does not."""
    config_file.write_text('config:\n  llm-infrastructure:databaseUrl: ""\n')
    assert set_up.StackConfig("dev").images.keys() == {"litellm", "postgres", "haproxy"}
    config_file.write_text("config:\n  llm-infrastructure:databaseUrl:\n    secure: v1:x\n")
    assert set_up.StackConfig("dev").images.keys() == {"litellm", "haproxy"}


@pytest.mark.parametrize(("written", "is_on"), [("true", True), ('"true"', True), ("false", False)])
def test_only_a_stack_with_redis_needs_its_image(config_file: Path, written: str, is_on: bool) -> None:  # noqa: FBT001
    config_file.write_text(f"config:\n  llm-infrastructure:redis: {written}\n")
    assert ("valkey" in set_up.StackConfig("dev").images) is is_on


def quiet() -> Steps:
    return Steps(Console(file=io.StringIO(), soft_wrap=True))


def test_all_taken_ports_are_named_with_free_ones(taken: int) -> None:
    """One try reports all of them, and the commands can be typed as they are."""
    with ExitStack() as servers:
        ports = {"gatewayPort": taken}
        for key in ("postgresPort", "metricsPort", "adminPort"):
            ports[key] = servers.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        with pytest.raises(SetupError) as raised:
            set_up._check_ports(ENGINE, Config(**ports))
    assert raised.value.why.splitlines() == [
        f"port {port} of 127.0.0.1 cannot be used as {key}: Address already in use" for key, port in ports.items()
    ]
    *commands, free = zip(*(line.split() for line in raised.value.fix.splitlines()), strict=True)
    assert [" ".join(words) for words in zip(*commands, strict=True)] == [
        f"./pulumiw config set --stack dev {key}" for key in ports
    ]
    set_up._check_ports(ENGINE, Config(**dict(zip(ports, free, strict=True))))


@pytest.mark.parametrize("key", ["metricsPort", "adminPort"])
def test_metrics_and_administration_are_on_loopback_wherever_the_gateway_is(taken: int, key: str) -> None:
    with pytest.raises(SetupError, match=f"port {taken} of 127.0.0.1 cannot be used as {key}"):
        set_up._check_ports(ENGINE, Config(bindAddress="127.0.0.2", gatewayPort=0, postgresPort=0, **{key: taken}))


def test_a_port_that_the_stack_has_is_free_to_it(taken: int) -> None:
    """But not a newly configured port that its running container does not have, and not another stack's."""
    config = Config(gatewayPort=0, postgresPort=0, metricsPort=taken)
    set_up._check_ports(engine_with(**{"llm-infrastructure-dev-edge": taken}), config)
    for others in ({"llm-infrastructure-dev-edge": 1}, {"llm-infrastructure-other-edge": taken}):
        with pytest.raises(SetupError):
            set_up._check_ports(engine_with(**others), config)


def test_a_port_of_a_postgres_that_does_not_run_is_not_looked_at(taken: int) -> None:
    """With an empty databaseUrl, which counts as not set, the stack's own Postgres runs."""
    set_up._check_ports(ENGINE, Config(gatewayPort=0, postgresPort=taken, databaseUrl="postgresql://…"))
    with pytest.raises(SetupError):
        set_up._check_ports(ENGINE, Config(gatewayPort=0, postgresPort=taken, databaseUrl=""))


@pytest.mark.parametrize(
    ("ports", "unusable", "proposed"),
    [
        ((4000, 4001, 4002), {4000, 4001, 4002}, ["4003", "4004", "4005"]),
        ((4000, 4001, 4002), {4000, 4002, 4003}, ["4004", "4005"]),
        ((LAST_PORT, 4001, 4002), {LAST_PORT}, ["PORT"]),
    ],
)
def test_a_port_that_is_proposed_is_free(
    monkeypatch: pytest.MonkeyPatch, ports: tuple[int, int, int], unusable: set[int], proposed: list[str]
) -> None:
    """Not another one of this stack, not proposed twice, and not above the last."""
    in_use = os.strerror(errno.EADDRINUSE)
    monkeypatch.setattr(set_up, "_why_unusable", lambda _, port: in_use if int(port) in unusable else "")
    with pytest.raises(SetupError) as raised:
        set_up._check_ports(ENGINE, Config(**dict(zip(set_up.PORT_SETTINGS[:3], ports, strict=True))))
    assert [line.split()[-1] for line in raised.value.fix.splitlines()] == proposed


@pytest.mark.parametrize("port", [65536, "http"])
def test_an_invalid_port_is_named(port: int | str) -> None:
    """If a free port would not fix it, none is proposed."""
    with pytest.raises(SetupError) as raised:
        set_up._check_ports(ENGINE, Config(gatewayPort=port, postgresPort=0))
    assert raised.value.fix == "./pulumiw config set --stack dev gatewayPort PORT"


@pytest.mark.parametrize(("keyboard", "screen"), [(True, False), (False, True)])
def test_only_someone_who_can_answer_is_asked(
    monkeypatch: pytest.MonkeyPatch, *, keyboard: bool, screen: bool
) -> None:
    """A question needs a terminal: with `make up >log 2>&1` nobody sees it."""
    steps = Steps(Console(file=io.StringIO(), force_terminal=screen))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: keyboard, raising=False)
    assert set_up._asking(steps) is None


class FailingStep(Step):
    """A step whose program fails, having printed what Pulumi does."""

    printed = ""

    def run(self, command: Any, **_: Any) -> str:
        raise CommandError(command, 1, self.printed)


@pytest.mark.parametrize(
    ("printed", "why", "fix"),
    [
        ("error: no stack named 'dev' found", "there is no stack dev", "./pulumiw stack ls"),
        ("error: the stack is currently locked by 1 lock(s).", "another run of Pulumi", "wait until it has ended"),
        ("Diagnostics:\n  error: boom\nResources:\n    1 errored", "  error: boom", "the same command again"),
    ],
)
def test_what_pulumi_says_becomes_a_next_step(
    monkeypatch: pytest.MonkeyPatch, printed: str, why: str, fix: str
) -> None:
    """A missing stack, and one that another run is changing, are distinguished from problems to fix."""
    monkeypatch.setattr(FailingStep, "printed", printed)
    steps = quiet()
    step = FailingStep(steps._progress, "pulumi")
    with pytest.raises(SetupError) as raised:
        set_up._pulumi(step, "dev", "destroy")
    assert why in raised.value.why
    assert fix in raised.value.fix


def test_two_runs_for_a_stack_take_turns() -> None:
    """The second one waits until the first has ended, and says so, in a log too."""
    steps = quiet()
    written = cast("io.StringIO", steps.console.file)
    held, go_on = threading.Event(), threading.Event()
    ended: list[str] = []

    def first() -> None:
        with steps.step("first") as step, operating_system.exclusive("stack-dev", step):
            held.set()
            go_on.wait()
            ended.append("first")

    def second() -> None:
        with steps.step("second") as step, operating_system.exclusive("stack-dev", step):
            ended.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    held.wait()
    threads[1].start()
    while "waiting for another run that does the same: second" not in written.getvalue():
        assert threads[1].is_alive()
        threads[1].join(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    assert ended == ["first", "second"]


@pytest.mark.parametrize(
    ("fix", "selected"),
    [
        ("./pulumiw config set --stack dev dockerHost unix:///run/docker.sock", ["dev"]),
        ("sudo systemctl start docker", []),
    ],
)
def test_an_unreachable_engine_is_reported_at_once(
    monkeypatch: pytest.MonkeyPatch, fix: str, selected: list[str]
) -> None:
    """Before the tools take minutes, unless the command that fixes it needs them and the stack."""
    stacks: list[str] = []

    def unreachable(*_: object) -> None:
        raise SetupError("no engine", fix=fix)

    monkeypatch.setattr(engine_setup, "ensure", unreachable)
    monkeypatch.setattr(set_up, "_select", lambda _, stack: stacks.append(stack))
    monkeypatch.setattr(tools, "ensure", lambda _: pytest.fail("tools were made"))
    with pytest.raises(SetupError, match="no engine"):
        set_up.up(quiet(), "dev")
    assert stacks == selected


@pytest.mark.parametrize(
    ("stack", "commands"), [("dev", ["make up", "make down"]), ("own", ["make up STACK=own", "make down STACK=own"])]
)
def test_the_next_commands_are_for_the_stack_that_is_up(stack: str, commands: list[str]) -> None:
    """And not for dev, which is `make`'s default."""
    said = set_up._how_to_go_on({"litellmUrl": "http://localhost:4000", "models": ["gpt-4o"]}, stack, Config())
    assert re.findall("make [a-z]+(?: STACK=.+)?$", said, re.MULTILINE) == commands


@pytest.mark.parametrize(
    ("values", "answers"),
    [
        ("demo: true", True),
        ('demo: "true"\n  llm-infrastructure:openaiApiKey: ""', True),
        ('demo: "false"', False),
        ("demo: true\n  llm-infrastructure:openaiApiKey:\n    secure: v1:x", False),
    ],
)
def test_the_demo_provider_is_named_where_it_answers(config_file: Path, values: str, *, answers: bool) -> None:
    """Pulumi puts the values that it sets in quotes."""
    config_file.write_text(f"config:\n  llm-infrastructure:{values}\n")
    outputs = {"litellmUrl": "http://localhost:4000", "models": ["gpt-4o"]}
    said = set_up._how_to_go_on(outputs, "dev", set_up.StackConfig("dev"))
    assert ("The demo provider answers" in said) == answers


@pytest.mark.parametrize(
    ("models", "asked"),
    [(["claude", "gpt-4o"], None), (["deepseek"], "deepseek"), (["an-embedding", "groq/*"], "MODEL")],
)
def test_the_first_questions_name_a_model_that_is_served(models: list[str], asked: str | None) -> None:
    """Unless that is the one which `llmctl` and the app ask anyway."""
    said = set_up._how_to_go_on({"litellmUrl": "http://localhost:4000", "models": models}, "dev", Config())
    assert f'"model": "{asked or "gpt-4o"}"' in said
    assert re.findall(r"--model (\S+)", said) == re.findall(r'Options\(model="(.+?)"', said) == [asked][: bool(asked)]
