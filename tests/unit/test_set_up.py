"""`make up` and `make down`: what they find wrong, and the commands that they name."""

from __future__ import annotations

import io
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest
from rich.console import Console

from toolchain import __main__ as set_up
from toolchain import engine, machine, tools
from toolchain.progress import CommandError, SetupError, Step, Steps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import docker


class Engine:
    """An engine on which nothing runs."""

    @property
    def containers(self) -> Engine:
        return self

    def list(self) -> list[object]:
        return []


ENGINE = cast("docker.DockerClient", Engine())


class Config(set_up.StackConfig):
    """The config of stack dev with other ports."""

    def __init__(self, **ports: int | str) -> None:
        super().__init__("dev")
        self._defaults |= ports


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CACHE", tmp_path)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def quiet() -> Steps:
    return Steps(Console(file=io.StringIO(), soft_wrap=True))


def test_all_taken_ports_are_named_with_free_ones(taken: int) -> None:
    """One try tells of all of them, and the commands can be typed as they stand."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = server.getsockname()[1]
        with pytest.raises(SetupError) as raised:
            set_up._check_ports(ENGINE, Config(gatewayPort=taken, postgresPort=other))
    assert f"port {taken} of 127.0.0.1 cannot be used for the edge: Address already in use" in raised.value.why
    assert f"port {other} of 127.0.0.1 cannot be used for the postgres: Address already in use" in raised.value.why
    gateway, postgres = (line.split() for line in raised.value.mend.splitlines())
    assert gateway[:-1] == ["./pulumiw", "config", "set", "--stack", "dev", "gatewayPort"]
    assert postgres[:-1] == ["./pulumiw", "config", "set", "--stack", "dev", "postgresPort"]
    set_up._check_ports(ENGINE, Config(gatewayPort=gateway[-1], postgresPort=postgres[-1]))


def test_the_other_ports_of_the_stack_are_not_proposed(taken: int) -> None:
    """A port that this stack is to use for something else is not free."""
    config = Config(gatewayPort=taken, postgresPort=taken + 1)
    assert set_up._free_port(config, "gatewayPort", set_up._why_unusable("127.0.0.1", taken)) != str(taken + 1)


@pytest.mark.parametrize("port", [65536, "http"])
def test_what_is_no_port_is_said(port: int | str) -> None:
    """Where no free port would mend it, none is proposed."""
    with pytest.raises(SetupError) as raised:
        set_up._check_ports(ENGINE, Config(gatewayPort=port, postgresPort=0))
    assert raised.value.mend == "./pulumiw config set --stack dev gatewayPort PORT"


@pytest.mark.parametrize(("keyboard", "screen"), [(True, False), (False, True)])
def test_nobody_is_asked_who_cannot_answer(monkeypatch: pytest.MonkeyPatch, *, keyboard: bool, screen: bool) -> None:
    """A question needs a terminal to be read on: `make up >log 2>&1`, typed on one, has nobody who sees it."""
    steps = Steps(Console(file=io.StringIO(), force_terminal=screen))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: keyboard, raising=False)
    assert set_up._asking(steps) is None


class FailingStep(Step):
    """A step whose program fails, having printed what Pulumi does."""

    printed = ""

    def run(self, command: Any, **_: Any) -> str:
        raise CommandError(command, 1, self.printed)


@pytest.mark.parametrize(
    ("printed", "why", "mend"),
    [
        ("error: no stack named 'dev' found", "there is no stack dev", "./pulumiw stack ls"),
        ("error: the stack is currently locked by 1 lock(s).", "another run of Pulumi", "wait until it has ended"),
        ("Diagnostics:\n  error: boom\nResources:\n    1 errored", "  error: boom", "the same command again"),
    ],
)
def test_what_pulumi_says_becomes_a_next_step(
    monkeypatch: pytest.MonkeyPatch, printed: str, why: str, mend: str
) -> None:
    """A stack that is not there and one that another run changes are told from what is to be mended."""
    monkeypatch.setattr(FailingStep, "printed", printed)
    steps = quiet()
    step = FailingStep(steps._progress, "pulumi")
    with pytest.raises(SetupError) as raised:
        set_up._pulumi(step, "dev", "destroy")
    assert why in raised.value.why
    assert mend in raised.value.mend


def test_two_runs_for_a_stack_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second one waits until the first has ended, and says so, in a log too."""
    steps = quiet()
    written = cast("io.StringIO", steps.console.file)
    held, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(machine, "CACHE", tmp_path)
    ended: list[str] = []

    def first() -> None:
        with steps.step("first") as step, machine.exclusive("stack-dev", step):
            held.set()
            go_on.wait()
            ended.append("first")

    def second() -> None:
        with steps.step("second") as step, machine.exclusive("stack-dev", step):
            ended.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    held.wait()
    threads[1].start()
    while "waits for another run that does the same" not in written.getvalue():
        assert threads[1].is_alive()
        threads[1].join(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    assert ended == ["first", "second"]


@pytest.mark.parametrize(
    ("mend", "selected"),
    [("./pulumiw config set dockerHost unix:///run/docker.sock", ["dev"]), ("sudo systemctl start docker", [])],
)
def test_an_engine_out_of_reach_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, mend: str, selected: list[str]
) -> None:
    """No minute goes into tools before, unless the command that mends it needs them and the stack."""
    stacks: list[str] = []

    def unreachable(*_: object) -> None:
        raise SetupError("no engine", mend=mend)

    monkeypatch.setattr(engine, "ensure", unreachable)
    monkeypatch.setattr(set_up, "_select", lambda _, stack: stacks.append(stack))
    monkeypatch.setattr(tools, "ensure", lambda _: pytest.fail("tools were made"))
    with pytest.raises(SetupError, match="no engine"):
        set_up.up(quiet(), "dev")
    assert stacks == selected
