"""`make up` and `make down`: what they find wrong, and the commands that they name."""

from __future__ import annotations

import io
import socket
from typing import TYPE_CHECKING, cast

import pytest
from rich.console import Console

from toolchain import __main__ as set_up
from toolchain import machine
from toolchain.progress import SetupError, Steps

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
