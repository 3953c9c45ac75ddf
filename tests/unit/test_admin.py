"""LiteLLM's page and administration on a port of their own: what a stack gets with one, and without."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from infra import admin, edge
from tests.stack_config import PROJECT, raw_config
from tests.unit import test_guard
from tests.unit.conftest import SECRET
from tests.unit.test_litellm_database import Recorder, files_of, plain, registered
from tests.unit.test_litellm_database import problems as with_database

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.settings import Settings

__all__ = ["registered"]

EDGE = (PROJECT / "edge/haproxy.cfg").read_text()
ON = {"litellmDatabase": "true", "adminPort": "4001"}
MASTER = "sk-master-of-the-stack"
MARK, HOST = b"x-llm-gateway-admin", b"x-llm-gateway-host"


def rendered(settings: Settings) -> str:
    return edge.render(
        EDGE + admin.edge_config(settings),
        generation=2,
        host_name=str,
        request_timeout=600,
        max_body_mb=1,
        tls=False,
        metrics=False,
        virtual_keys=settings.litellm_database,
    )


def test_without_a_port_the_edge_and_the_replicas_are_as_before(registered: Callable[..., Recorder]) -> None:
    """Nothing is published, no password is generated, and the edge's config is the same byte for byte."""
    recorder = registered(litellmDatabase="true")
    containers = recorder.containers()
    assert [port["internal"] for port in plain(containers["edge"])["ports"]] == [edge.PORT]
    assert "admin-password" not in {name for _, name in recorder.inputs}
    files = {each["file"] for each in plain(containers["litellm-1"])["uploads"]}
    assert not {file for file in files if "UI_" in file}
    config = plain(recorder.of("LiveFiles"))["files"]["haproxy.cfg"]
    assert len(config.splitlines()) == len(EDGE.splitlines())
    assert config.endswith(EDGE[-100:])


def test_it_is_published_on_loopback_whatever_the_gateways_address_is(registered: Callable[..., Recorder]) -> None:
    recorder = registered(**ON, bindAddress="10.0.0.5", allowPlainHttp="true")
    ports = plain(recorder.containers()["edge"])["ports"]
    assert [(port["external"], port["ip"]) for port in ports] == [(4000, "10.0.0.5"), (4001, "127.0.0.1")]


def test_the_password_is_a_generated_file_of_the_replicas(registered: Callable[..., Recorder]) -> None:
    for name, container in registered(**ON).containers().items():
        inputs = plain(container)
        files = files_of(inputs)
        given = {file.removeprefix("/run/secrets/"): text for file, text in files.items() if "UI_" in file}
        login = {"UI_USERNAME": "admin", "UI_PASSWORD": "value-of-admin-password"}
        assert given == (login if name.startswith("litellm-") else {})
        assert "value-of-admin-password" not in str([inputs.get("envs"), inputs.get("command")])


def test_a_higher_number_is_another_password(registered: Callable[..., Recorder]) -> None:
    recorder = registered(**ON, secretVersions={"adminPassword": 2})
    (versions,) = (plain(it)["version"] for (_, name), it in recorder.inputs.items() if name == "admin-password")
    assert versions == 2


@pytest.mark.parametrize(
    ("changes", "key", "what", "command"),
    [
        ({"litellmDatabase": "false"}, "adminPort", "LiteLLM's database, which is off", "set litellmDatabase true"),
        ({"adminPort": "4000"}, "adminPort", "is gatewayPort too", "set adminPort 4001"),
        ({"metricsPort": "4001"}, "adminPort", "is metricsPort too", "set adminPort 4002"),
        ({"adminPort": "5432"}, "postgresPort", "is adminPort too", "set postgresPort 5433"),
        (
            {"adminPort": "", "secretVersions": {"adminPassword": 2}},
            "secretVersions.adminPassword",
            "has no effect without adminPort",
            "rm --path secretVersions.adminPassword",
        ),
        ({"adminPort": "70000"}, "adminPort", "less than or equal to 65535", "set adminPort 4001"),
        *(
            (
                {"litellmEnvironment": {name: "x"}},
                f"litellmEnvironment.{name}",
                "cannot be set",
                f"rm --path litellmEnvironment.{name}",
            )
            for name in admin.STACKS_OWN
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_fixes_it(
    changes: dict[str, Any], key: str, what: str, command: str
) -> None:
    found = with_database(**{**ON, **changes})
    assert list(found) == [key]
    assert what in found[key][0]
    assert found[key][1] == command


def test_a_swarm_cannot_publish_on_loopback() -> None:
    swarm = {"placement": "swarm", "bindAddress": "0.0.0.0", "allowPlainHttp": "true"}  # noqa: S104
    found = with_database(**{**swarm, "litellmDatabase": "false", "adminPort": "4001"})
    assert found == {"adminPort": (found["adminPort"][0], "rm adminPort")}
    assert "a Swarm cannot publish on loopback only" in found["adminPort"][0]


def test_variables_of_the_login_are_no_business_of_a_stack_without_a_port() -> None:
    raw = raw_config("dev", litellmEnvironment={"UI_PASSWORD": "x"})
    assert importlib.import_module("infra.stack_config").validate(raw, SECRET)[1] == []


def test_the_mark_is_taken_off_before_it_is_set(settings: Callable[..., Settings]) -> None:
    """On this port and on the callers' port: callers cannot send it. Each generation's replicas get their own."""
    callers, _, operators = rendered(settings(**ON)).partition("\nfrontend admin ")
    taken_off = "http-request del-header x-llm-gateway- -m beg"
    assert taken_off in callers.partition("\nfrontend gateway ")[2].partition("\nbackend ")[0]
    assert operators.index(taken_off) < operators.index("set-header x-llm-gateway-admin")
    for generation in ("litellm-g1", "litellm-g2"):
        assert f"x-llm-gateway-admin %[str({generation}),map_str(master-keys.map)]" in operators


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Replica:
    monkeypatch.syspath_prepend(str(PROJECT / "litellm"))
    return Replica({name: importlib.import_module(name) for name in ("answers", "operator_requests")})


class Replica:
    """How a replica treats a request's mark."""

    def __init__(self, programs: dict[str, Any]) -> None:
        self.programs = programs

    def is_operators(self, *headers: tuple[bytes, bytes], master_key: str = MASTER) -> Any:
        """Whether it is an operator's, and the headers that LiteLLM sees."""
        scope: dict[str, Any] = {"headers": [(b"host", b"litellm"), *headers]}
        keys = SimpleNamespace(master_key=master_key) if master_key else None
        return self.programs["operator_requests"].is_operators(scope, keys), scope["headers"]


def test_a_request_without_a_mark_is_a_callers(replica: Replica) -> None:
    assert replica.is_operators((HOST, b"elsewhere")) == (False, [(b"host", b"litellm"), (HOST, b"elsewhere")])


def test_a_marked_one_is_litellms_as_the_browser_sent_it(replica: Replica) -> None:
    """It has its own generation's mark among those of others. LiteLLM sees none of them."""
    marks = ((MARK, b"sk-of-another-generation"), (MARK, MASTER.encode()))
    answered = replica.is_operators(*marks, (HOST, b"localhost:4001"), (b"authorization", b"Bearer sk-1"))
    assert answered == (True, [(b"host", b"localhost:4001"), (b"authorization", b"Bearer sk-1")])


@pytest.mark.parametrize(("mark", "master_key"), [(b"1", MASTER), (b"", MASTER), (b"", "")])
def test_a_mark_that_is_not_the_edges_is_refused(replica: Replica, mark: bytes, master_key: str) -> None:
    """Also by a replica without LiteLLM's database, which has no such port."""
    with pytest.raises(replica.programs["answers"].Refusal) as caught:
        replica.is_operators((MARK, mark), master_key=master_key)
    assert caught.value.status == 403


@pytest.mark.parametrize(("mark", "status"), [({MARK: MASTER.encode()}, 200), ({}, 400)])
def test_a_body_that_a_caller_could_not_send_passes_with_the_mark_only(
    replica: Replica, mark: dict[bytes, bytes], status: int
) -> None:
    modules = {name: importlib.import_module(name) for name in test_guard.MODULES}
    guarded = test_guard.Replica(modules)
    guarded.guard.keys = SimpleNamespace(master_key=MASTER, admit=admit)
    assert guarded.ask({"fallbacks": []}, "/key/generate", headers=mark)[0] == status
    assert bool(guarded.seen) == bool(mark)


async def admit(_scope: object, _exchange: object) -> None:
    """Whose key it is does not matter here."""
