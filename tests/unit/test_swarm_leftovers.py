"""Secrets and configs that a killed `up` has left on a Swarm: found by their label, and removed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import docker
import pytest

from infra.placement import guard, leftovers

HOST = "unix:///var/run/docker.sock"


class Manager:
    """An engine with three secrets and a config: one is in use."""

    def __init__(self) -> None:
        self.api = self
        self.removed: list[str] = []
        self.posted: dict[str, Any] = {}
        self.controls = True

    def info(self) -> dict[str, Any]:
        return {"Swarm": {"ControlAvailable": self.controls}}

    def secrets(self, filters: object) -> list[dict[str, Any]]:
        assert filters == {"label": "identity=me"}
        return [{"ID": it, "Spec": {"Name": f"name-of-{it}"}} for it in ("known", "used", "left")]

    def configs(self, filters: object) -> list[dict[str, Any]]:
        assert filters == {"label": "identity=me"}
        return [{"ID": "config", "Spec": {"Name": "name-of-config"}}]

    def remove_secret(self, id_: str) -> None:
        if id_ == "used":
            raise docker.errors.APIError("400", SimpleNamespace(status_code=400))  # type: ignore[arg-type]
        self.removed.append(id_)

    remove_config = remove_secret

    def inspect_config(self, config: str) -> dict[str, Any]:
        return {"Version": {"Index": 7}, "Spec": {"Name": config, "Labels": {}, "Data": "eA=="}}

    def post(self, url: str, json: dict[str, Any]) -> None:
        self.posted[url] = json

    def _url(self, path: str, *arguments: object) -> str:
        assert all(isinstance(each, str) for each in arguments)  # docker-py takes nothing else
        return path.format(*arguments)

    def _raise_for_status(self, _: object) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    made = Manager()
    monkeypatch.setattr(leftovers, "connect", lambda _: made)
    return made


def test_what_neither_the_state_nor_a_service_has_goes(manager: Manager) -> None:
    assert leftovers.remove_leftovers(HOST, "identity=me", {"known"}) == ["name-of-left", "name-of-config"]
    assert manager.removed == ["left", "config"]


def test_where_there_is_no_swarm_nothing_is_asked(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor if the engine is gone: a broken stack can still be destroyed."""
    manager.controls = False
    assert leftovers.remove_leftovers(HOST, "identity=other") == []

    def gone(_: str) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(leftovers, "connect", gone)
    assert leftovers.remove_leftovers(HOST, "identity=other") == []


def test_the_last_that_is_destroyed_takes_all_of_it_away(manager: Manager) -> None:
    guard._EngineGuardProvider().delete("guard", {"host": HOST, "label": "identity", "identity": "me"})
    assert manager.removed == ["known", "left", "config"]


def test_a_config_gets_labels_and_keeps_what_it_holds(manager: Manager) -> None:
    leftovers.label_config(HOST, "config", {"identity": "me"})
    spec = {"Name": "config", "Labels": {"identity": "me"}, "Data": "eA=="}
    assert manager.posted == {"/configs/config/update?version=7": spec}
