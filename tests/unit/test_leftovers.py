"""Whatever blocks a resource that is about to be created is removed, or stays if it is another deployment's."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import docker
import pulumi
import pytest
import requests

from engine.labels import LABEL
from infra.placement import docker as docker_placement
from infra.placement import engine_placement, swarm
from infra.placement.docker import DockerHost
from infra.placement.swarm import Swarm

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "llm-infrastructure-dev-edge"
MINE = {f"{LABEL}.identity": "me"}
OTHERS = {f"{LABEL}.identity": "other"}
INPUTS = {"name": NAME, "stopTimeout": 70, "labels": [{"label": f"{LABEL}.identity", "value": "me"}]}
HOOKS: dict[str, Any] = {
    "network": DockerHost._free_network,
    "container": DockerHost._free_container,
    "volume": DockerHost._check_volume,
    "service": Swarm._free_service,
    "container of one host": Swarm._stand_containers_down,
}


class Thing:
    """A network, volume, container or service on an engine, which notes what is done with it."""

    def __init__(self, labels: dict[str, str] | None, name: str = NAME, *, in_use: bool = False) -> None:
        self.id = self.name = name
        self._in_use = in_use
        self.labels = labels or {}
        self.attrs = {"Labels": labels, "Spec": {"Labels": labels}, "Config": {"StopTimeout": 30}}
        self.done: list[str] = []

    def stop(self, *, timeout: int) -> None:
        self.done.append(f"stop within {timeout} s")

    def remove(self) -> None:
        if self._in_use:
            forbidden = requests.Response()
            forbidden.status_code = 403
            raise docker.errors.APIError("403", forbidden, explanation=f"network {self.name} has active endpoints")
        self.done.append("remove")


class Things:
    """Those of one kind."""

    def __init__(self, *things: Thing) -> None:
        self._things = things

    def get(self, name: str) -> Thing:
        for each in self._things:
            if each.name == name:
                return each
        raise docker.errors.NotFound(f"no such thing: {name}")

    def list(self, **_: object) -> list[Thing]:
        return [*self._things]  # of any name that begins so, as the engine does it


@pytest.fixture
def before_create(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Do what is done before a resource of a kind is made, on an engine that has these things of that kind."""
    settings = pulumi.runtime.settings.Settings(project="llm-infrastructure", stack="dev", dry_run=False)
    monkeypatch.setattr(pulumi.runtime.settings, "SETTINGS", settings)
    for level in ("info", "warn"):
        monkeypatch.setattr(pulumi.log, level, lambda _: None)

    def run(kind: str, *things: Thing) -> None:
        plural = f"{kind.split(maxsplit=1)[0]}s"
        engine = SimpleNamespace(**{plural: Things(*things)}, close=lambda: None)
        for module in (docker_placement, engine_placement, swarm):
            monkeypatch.setattr(module, "connect", lambda _: engine)
        monkeypatch.setattr(swarm, "stand_down", lambda _, service: things[0].done.append(f"stand {service} down"))
        HOOKS[kind](
            SimpleNamespace(_host="unix:///var/run/docker.sock"), SimpleNamespace(new_inputs=INPUTS, name="gateway")
        )

    return run


@pytest.mark.parametrize(
    ("kind", "done"),
    [
        ("network", ["remove"]),
        ("container", ["stop within 70 s", "remove"]),
        ("service", [f"stand {NAME} down", "remove"]),
        ("volume", []),
        ("container of one host", ["stop within 30 s"]),
    ],
)
def test_what_is_this_deployments_own_goes(before_create: Callable[..., None], kind: str, done: list[str]) -> None:
    """It is stopped within its allowed time, and its data stay."""
    mine = Thing(MINE)
    before_create(kind, mine)
    assert mine.done == done


def test_a_network_that_the_state_has_lost_is_put_back(before_create: Callable[..., None]) -> None:
    """The engine does not remove a used network: the error has the whole command that puts it back into the state."""
    network = Thing(MINE, in_use=True)
    with pytest.raises(pulumi.RunError, match=r"but not in the state .* has active endpoints") as raised:
        before_create("network", network)
    assert str(raised.value).splitlines()[1].split() == [
        *("./pulumiw", "import", "--stack", "dev", "--protect=false", "--generate-code=false", "--provider"),
        "engine=urn:pulumi:dev::llm-infrastructure::pulumi:providers:docker::engine",
        *("docker:index/network:Network", "gateway", NAME),
    ]


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        *itertools.product(("network", "container", "service", "volume"), (OTHERS, {})),
        ("volume", None),  # the engine's word for none
    ],
)
def test_what_is_anothers_stays(before_create: Callable[..., None], kind: str, labels: dict[str, str] | None) -> None:
    """And the error names the two ways out."""
    thing = Thing(labels)
    with pytest.raises(
        pulumi.RunError, match=f"The {kind} {NAME} exists and belongs to another deployment"
    ) as raised:
        before_create(kind, thing)
    assert "./pulumiw stack init NAME" in str(raised.value)
    assert f"docker {kind} rm " in str(raised.value)
    assert thing.done == []


def test_anothers_container_is_not_stopped(before_create: Callable[..., None]) -> None:
    thing = Thing(OTHERS)
    before_create("container of one host", thing)
    assert thing.done == []


@pytest.mark.parametrize("kind", [kind for kind in HOOKS if kind != "container of one host"])
def test_nothing_is_in_the_way(before_create: Callable[..., None], kind: str) -> None:
    """A name that only begins in the same way belongs to something else."""
    longer = Thing(OTHERS, f"{NAME}-2")
    before_create(kind, longer)
    assert longer.done == []
