"""`make purge`: what it removes, and what it leaves to others. Without an engine or Pulumi."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import docker
import pytest
import requests
from rich.console import Console

from toolchain import image_record, operating_system, purge
from toolchain.progress import SetupError, Steps

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from toolchain.progress import Step

STATE = {
    "deployment": {
        "resources": [
            {"type": "pulumi:pulumi:Stack", "outputs": {"litellmUrl": "http://localhost:4000"}},
            {
                "type": "pulumi-python:dynamic/engine:EngineGuard",
                "outputs": {"label": "llm-infrastructure.identity", "identity": "me"},
            },
        ]
    }
}
IMAGES = {"postgres:17": "llm-infrastructure.invalid/one", "haproxy:3.0": "llm-infrastructure.invalid/in-use"}
KINDS = ["services", "secrets", "containers", "networks", "volumes"]


class Engine:
    """An engine that notes what is removed from it; each kind of thing has one that is the stack's."""

    def __init__(self) -> None:
        self.gone: list[str] = []
        for kind in KINDS:
            setattr(self, kind, SimpleNamespace(list=self._list(kind)))
        self.images = SimpleNamespace(remove=self._remove_image)

    def _list(self, kind: str) -> Callable[..., list[Any]]:
        def found(*, filters: dict[str, str], all: bool = False) -> list[Any]:  # noqa: A002 -- the client's own
            assert filters == {"label": "llm-infrastructure.identity=me"}
            assert all == (kind == "containers")
            return [SimpleNamespace(name=kind, remove=lambda **_: self.gone.append(kind))]

        return found

    def _remove_image(self, name: str) -> None:
        if name.endswith("in-use"):
            conflict = requests.Response()
            conflict.status_code = 409
            raise docker.errors.APIError("409", conflict, explanation="a container uses it")
        self.gone.append(name)

    def info(self) -> dict[str, Any]:
        return {"Swarm": {"ControlAvailable": True}}

    def close(self) -> None:
        pass


class Machine:
    """A user's folders, as the set-up leaves them, and what Pulumi is told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written = io.StringIO()
        self.pulumi: list[str] = []
        self.state: dict[str, Any] | None = STATE
        self.stacks: list[str] = []
        self.engine = Engine()
        self.own, self.cache = folder / "state/llm-infrastructure", folder / "cache"
        self.record, self.env = folder / ".images.yaml", folder / ".env"
        for kept in ("backups", "history"):
            for stack in ("dev", "dev-2"):
                (self.own / "state/.pulumi" / kept / "llm-infrastructure" / stack).mkdir(parents=True)
        (self.own / "passphrase").write_text("a passphrase")
        (self.cache / "tools").mkdir(parents=True)
        image_record.write(self.record, IMAGES)
        self.env.write_text("MINE=1\nLITELLM_URL=http://localhost:4000\nLITELLM_API_KEY=sk-1\n")
        monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
        monkeypatch.delenv("PULUMI_BACKEND_URL", raising=False)
        monkeypatch.setattr(operating_system, "CACHE", self.cache)
        monkeypatch.setattr(image_record, "RECORD", self.record)
        monkeypatch.setattr(image_record, "read", lambda: IMAGES)
        monkeypatch.setattr(purge, "ENVIRONMENT_FILE", self.env)
        monkeypatch.setattr(purge, "_asked", self._asked)
        monkeypatch.setattr(purge, "connect", lambda _: self.engine)
        self._patch = monkeypatch

    def _asked(self, *arguments: str) -> Any:
        return self.state if arguments[1] == "export" else [{"name": name} for name in self.stacks]

    def _pulumi(self, _step: Step, *arguments: str) -> str:
        self.pulumi.append(arguments[0])
        return ""

    def purge(self, *, typed: str = "dev") -> None:
        self._patch.setattr(sys, "stdin", io.StringIO(f"{typed}\n"))
        purge.purge(
            Steps(Console(file=self.written)),
            project="llm-infrastructure",
            stack="dev",
            host="unix:///var/run/docker.sock",
            pulumi=self._pulumi,
        )

    def history(self) -> set[str]:
        return {path.name for path in (self.own / "state/.pulumi").glob("[bh]*/llm-infrastructure/*")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize("typed", ["", "y", "prod"])
def test_nothing_goes_without_the_name(here: Machine, typed: str) -> None:
    with pytest.raises(SetupError, match="nothing was changed"):
        here.purge(typed=typed)
    assert (here.pulumi, here.engine.gone) == ([], [])
    assert here.own.exists()
    assert here.cache.exists()


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (("migration:Migrations", "postgres:DatabaseRoles"), []),
        (
            (
                "migration:Migrations",
                "postgres:DatabaseRoles",
                "litellm_database:LiteLLMLogin",
                "litellm_database:LiteLLMSchema",
            ),
            [],
        ),
        (
            ("migration:Migrations", "postgres:DatabaseRoles", "litellm_database:LiteLLMSchema"),
            ["LiteLLM's database db.example:5432/litellm is on a server of your own"],
        ),
        (
            ("migration:Migrations", "litellm_database:LiteLLMSchema"),
            [
                "The app's database, that of databaseUrl, is on a server of your own",
                "LiteLLM's database db.example:5432/litellm is on a server of your own",
            ],
        ),
    ],
)
def test_a_database_on_a_server_of_your_own_is_named_and_stays(
    here: Machine, kinds: tuple[str, ...], said: list[str]
) -> None:
    """Before you type the stack's name, without user and password."""
    resources = STATE["deployment"]["resources"]
    outputs = {"database": "db.example:5432/litellm", "url": {"ciphertext": "v1:user:password"}}
    more = [{"type": f"pulumi-python:dynamic/{kind}", "outputs": outputs} for kind in kinds]
    here.state = {"deployment": {"resources": [*resources, *more]}}
    with pytest.raises(SetupError, match="nothing was changed"):
        here.purge(typed="")
    written = " ".join(here.written.getvalue().split())
    assert [each for each in said if each in written] == said
    assert written.count("it stays as it is") == len(said)
    assert "password" not in written


def test_with_the_last_stack_all_goes(here: Machine) -> None:
    """The lines of `.env` that are your own stay, and so does an image that something else runs."""
    here.purge()
    assert here.pulumi == ["state", "destroy", "stack"]
    assert here.engine.gone == [
        *KINDS,
        "llm-infrastructure.invalid/one",
    ]
    assert "in-use stays: a container uses it" in here.written.getvalue().replace("\n", "")
    assert [each.exists() for each in (here.own, here.cache, here.record)] == [False, False, False]
    assert here.env.read_text() == "MINE=1\n"


@pytest.mark.parametrize("elsewhere", [True, False])
def test_what_other_stacks_use_stays(here: Machine, *, elsewhere: bool) -> None:
    """Also stacks of another backend, if PULUMI_BACKEND_URL names one now. This stack's former states are removed."""
    if elsewhere:
        other = here.own / "state/.pulumi/stacks/llm-infrastructure/dev-2.json"
        other.parent.mkdir(parents=True)
        other.write_text("{}")
    else:
        here.stacks = ["dev-2"]
    here.purge()
    assert "are kept for dev-2" in here.written.getvalue()
    assert here.history() == {"dev-2"}
    assert here.engine.gone == KINDS
    assert [each.exists() for each in (here.own / "passphrase", here.cache, here.record)] == [True, True, True]


def test_what_is_left_of_no_stack_goes_too(here: Machine) -> None:
    """After `make down` and the removal of the stack."""
    here.state = None
    here.purge()
    assert here.pulumi == []
    assert [each.exists() for each in (here.own, here.cache, here.record)] == [False, False, False]


def test_an_engine_that_fails_costs_no_state(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running the same command again continues from there."""

    def gone(_: str) -> None:
        raise docker.errors.DockerException("no engine")

    monkeypatch.setattr(purge, "connect", gone)
    with pytest.raises(SetupError, match="some things could not be removed"):
        here.purge()
    assert "stack" not in here.pulumi
    assert here.history() == {"dev", "dev-2"}
