"""Services of a Swarm: how to see that one runs as declared, or why it will not; with a fake manager."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import docker
import pulumi
import pytest

from engine.labels import LABEL
from infra.placement import swarm_services

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SECONDS = 60.0
PROPS = {"host": "unix:///var/run/docker.sock", "service": "id-of-edge", "spec": "1", "seconds": SECONDS}
SPEC = {"ContainerSpec": {"Image": "haproxy:3.0"}, "Placement": {"Constraints": ["node.labels.edge == true"]}}
OLD_SPEC = {"ContainerSpec": {"Image": "haproxy:2.9"}}
NODES = [
    {"ID": "node-1", "Description": {"Hostname": "one"}, "Status": {"State": "ready"}},
    {"ID": "node-2", "Description": {"Hostname": "two"}, "Status": {"State": "down"}},
]
LABELS = [{"label": f"{LABEL}.identity", "value": "me"}, {"label": f"{LABEL}.part", "value": "edge"}]


def service(replicas: int | None = 2, status: Mapping[str, str] | None = None) -> dict[str, Any]:
    """As the manager has it; a global one without `replicas`."""
    mode: dict[str, Any] = {"Global": {}} if replicas is None else {"Replicated": {"Replicas": replicas}}
    spec = {"Name": "edge", "Mode": mode, "TaskTemplate": deepcopy(SPEC), "Labels": {f"{LABEL}.identity": "me"}}
    return {"Spec": spec, "Version": {"Index": 7}, "UpdateStatus": status or {}}


def task(name: str, state: str = "running", **more: Any) -> dict[str, Any]:
    wanted = "shutdown" if state in swarm_services.ENDED else "running"
    status = {"State": state, "Message": f"is {state}", "Timestamp": name, **more.pop("status", {})}
    return {"ID": name, "NodeID": "node-1", "Spec": SPEC, "DesiredState": wanted, "Status": status, **more}


class Manager:
    """An engine whose Swarm goes through states, from one look at it to the next; it stays in the last one."""

    def __init__(self, *states: tuple[dict[str, Any], list[dict[str, Any]]], log: bytes | None = b"") -> None:
        self.api = self.services = self
        self.posted: list[dict[str, Any]] = []
        self.controls = True
        self.now = 0.0
        self._states = list(states)
        self._log = log

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if len(self._states) > 1:
            self._states.pop(0)

    def info(self) -> dict[str, Any]:
        return {"Swarm": {"ControlAvailable": self.controls}}

    def inspect_service(self, _: str) -> dict[str, Any]:
        if not self._states:
            raise docker.errors.NotFound("no such service")
        return self._states[0][0]

    def tasks(self, filters: Mapping[str, str]) -> list[dict[str, Any]]:
        assert filters == {"service": "id-of-edge"}
        return self._states[0][1]

    def nodes(self) -> list[dict[str, Any]]:
        return NODES

    def close(self) -> None:
        pass

    def get(self, url: str, **_: object) -> bytes:
        if self._log is None:
            raise docker.errors.APIError(f"no answer from {url}")
        return self._log

    def post(self, url: str, json: dict[str, Any]) -> None:
        assert url == "/services/id-of-edge/update?version=7"
        self.posted.append(json)

    def _url(self, path: str, *arguments: str) -> str:
        return path.format(*arguments)

    def _raise_for_status(self, _: object) -> None:
        pass

    def _multiplexed_buffer_helper(self, answer: bytes) -> list[bytes]:
        return [answer]

    def list(self, filters: Mapping[str, str]) -> list[Any]:
        assert filters == {"label": f"{LABEL}.part=edge"}
        attributes = {"id": "id-of-edge", "name": "edge", "attrs": self._states[0][0]}
        return [type("Service", (), attributes)]


@pytest.fixture
def managed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Manager]:
    """The manager that the program connects to, which is its clock too."""

    def make(*states: tuple[dict[str, Any], list[dict[str, Any]]], **more: Any) -> Manager:
        manager = Manager(*states, **more)
        monkeypatch.setattr(swarm_services, "connect", lambda _: manager)
        monkeypatch.setattr(swarm_services, "time", manager)
        return manager

    return make


def instance() -> str:
    outs = swarm_services._Provider().create(PROPS).outs
    assert outs is not None
    return str(outs["instance"])


def failure() -> str:
    with pytest.raises(RuntimeError) as raised:
        swarm_services._Provider().update("converged", PROPS, PROPS)
    return str(raised.value)


def test_a_service_is_there_when_all_its_tasks_run(managed: Callable[..., Manager]) -> None:
    """Whatever depends on it sees a different value when the tasks are different."""
    managed(
        (service(), [task("a")]), (service(), [task("a"), task("b", "starting")]), (service(), [task("a"), task("b")])
    )
    assert instance() == "a b"


def test_a_global_service_is_there_when_each_of_its_tasks_runs(managed: Callable[..., Manager]) -> None:
    managed((service(None), []), (service(None), [task("a"), task("b", "preparing")]), (service(None), [task("b")]))
    assert instance() == "b"


@pytest.mark.parametrize(
    "earlier",
    [
        (service(), [task("a"), task("b"), task("old", Spec=OLD_SPEC)]),
        (service(status={"State": "updating"}), [task("a"), task("b")]),
    ],
)
def test_what_ran_before_is_waited_for(managed: Callable[..., Manager], earlier: Any) -> None:
    manager = managed(earlier, (service(), [task("a"), task("b"), task("old", "shutdown", Spec=OLD_SPEC)]))
    assert instance() == "a b"
    assert manager.now > 0


def test_a_task_whose_node_fits_is_current(managed: Callable[..., Manager]) -> None:
    """Swarm does not replace it if only the declared placement changes."""
    managed((service(1), [task("a", Spec={**SPEC, "Placement": {}})]))
    assert instance() == "a"


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({"State": "rollback_completed", "Message": "2 failed"}, "was rolled back to what it ran before: 2 failed"),
        ({"State": "paused", "Message": "1 failed"}, "is paused: 1 failed"),
        ({"State": "rollback_paused", "Message": "1 failed"}, "is paused: 1 failed"),
    ],
)
def test_an_update_that_failed(managed: Callable[..., Manager], status: dict[str, str], why: str) -> None:
    """The reason, the node and the task's last lines are in the error, once Swarm has given up."""
    failed = [task("a", Spec=OLD_SPEC), task("1", "failed"), task("2", "failed", status={"Err": "exit code 1"})]
    managed(
        (service(status={"State": "rollback_started", "Message": ""}), failed),
        (service(status=status), failed),
        log=b"cannot bind\n",
    )
    assert failure() == (
        f"edge {why}; the last one that failed, on node one: exit code 1; its last lines:\ncannot bind"
    )


def test_a_new_service_whose_tasks_fail(managed: Callable[..., Manager]) -> None:
    """One task may have had a bad node. If that node does not answer, the error has only the reason."""
    first, second = task("1", "rejected", NodeID="of-yesterday"), task("2", "failed", NodeID="of-yesterday")
    managed((service(), [first]), (service(), [first, second]), log=None)
    assert failure() == "edge does not start: 2 tasks failed; the last one that failed, on node ?: is failed"


def test_a_task_that_no_node_can_take(managed: Callable[..., Manager]) -> None:
    """At first this may still change, for example while its predecessor has the port."""
    manager = managed((service(1), [task("a", "pending", status={"Err": "no suitable node"})]))
    assert failure() == "edge finds no node: no suitable node"
    assert swarm_services.UNFIT_SECONDS < manager.now < swarm_services.UNFIT_SECONDS + 1


def test_a_task_whose_predecessor_still_ends_has_time(managed: Callable[..., Manager]) -> None:
    ending = task("old", Spec=OLD_SPEC, DesiredState="shutdown")
    managed((service(1), [task("a", "pending", status={"Err": "no suitable node"}), ending]))
    assert failure() == "edge has 0 of 1 tasks running as declared after 60 s"


def test_a_service_that_was_scaled_to_nothing(managed: Callable[..., Manager]) -> None:
    managed((service(0), []))
    assert failure() == "edge was scaled to 0; to bring it back: ./pulumiw up --refresh"


def test_a_service_that_was_removed(managed: Callable[..., Manager]) -> None:
    managed()
    assert failure() == "service id-of-edge was removed while it started"


def test_what_is_awaited_again() -> None:
    """A changed declaration is awaited again; a new service is awaited instead of the former one."""
    provider = swarm_services._Provider()
    assert provider.diff("converged", PROPS, {**PROPS, "seconds": 1}).changes is False
    assert provider.diff("converged", PROPS, {**PROPS, "spec": "2"}).changes is True
    assert provider.diff("converged", PROPS, {**PROPS, "spec": "2"}).replaces == []
    assert provider.diff("converged", PROPS, {**PROPS, "service": "another"}).replaces == ["service"]


def test_a_service_is_deleted_when_the_swarm_has_removed_its_tasks(managed: Callable[..., Manager]) -> None:
    """Or until the time is up: a task that is never removed does not stop a `destroy`."""
    removed = task("a", "shutdown", DesiredState="remove")
    manager = managed((service(), [removed]), (service(), []))
    swarm_services._Provider().delete("converged", PROPS)
    assert 0 < manager.now < swarm_services.STOP_SECONDS
    manager = managed((service(), [removed]))
    swarm_services._Provider().delete("converged", PROPS)
    assert manager.now > swarm_services.STOP_SECONDS


@pytest.mark.parametrize("replicas", [2, None])
def test_a_deleted_service_has_ended(managed: Callable[..., Manager], replicas: int | None) -> None:
    """On every node that answers. The rest of its declaration stays unchanged."""
    lost = task("lost", NodeID="node-2")
    manager = managed((service(replicas), [task("a"), lost]), (service(replicas), [task("a", "complete"), lost]))
    swarm_services._Provider().delete("converged", PROPS)
    [spec] = manager.posted
    assert manager.now > 0
    if replicas:
        assert spec["Mode"] == {"Replicated": {"Replicas": 0}}
        assert spec["TaskTemplate"] == SPEC
    else:
        assert spec["Mode"] == {"Global": {}}
        assert spec["TaskTemplate"] == {**SPEC, "Placement": {"Constraints": [swarm_services.NOWHERE]}}


def test_a_service_that_does_not_end(managed: Callable[..., Manager]) -> None:
    managed((service(), [task("a")]))
    with pytest.raises(RuntimeError, match="service id-of-edge is still running 120 s after it was told to stop"):
        swarm_services._Provider().delete("converged", PROPS)


def test_a_service_that_is_gone_needs_no_end(managed: Callable[..., Manager]) -> None:
    manager = managed()
    swarm_services._Provider().delete("converged", PROPS)
    assert manager.posted == []


@pytest.mark.parametrize(("identity", "controls", "posted"), [("me", True, 1), ("other", True, 0), ("me", False, 0)])
def test_a_service_whose_part_moves_to_one_host(
    managed: Callable[..., Manager], monkeypatch: pytest.MonkeyPatch, identity: str, *, controls: bool, posted: int
) -> None:
    """It is stopped if it belongs to this deployment, and if there is a Swarm at all."""
    monkeypatch.setattr(pulumi.log, "info", lambda _: None)
    manager = managed((service(), [task("a", "complete")]))
    manager.controls = controls
    inputs = {"name": "edge", "labels": [{**LABELS[0], "value": identity}, LABELS[1]]}
    swarm_services.stand_part_down(manager, inputs)  # type: ignore[arg-type]  # a fake
    assert len(manager.posted) == posted
