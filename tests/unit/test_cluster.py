"""A Swarm that cannot run a stack is refused, with what is missing and what fixes that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import docker
import pulumi
import pytest

from infra.placement import cluster
from infra.placement.cluster import Cluster, Node
from tests.stack_config import PROJECT_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

HOST = "unix:///var/run/docker.sock"
MANAGER = {"NodeID": "id-1", "LocalNodeState": "active", "ControlAvailable": True}
WORKER = MANAGER | {
    "ControlAvailable": False,
    "RemoteManagers": [{"Addr": "10.0.0.1:2377"}, {"Addr": "10.0.0.2:2377"}],
}


def node(number: int, **more: Any) -> dict[str, Any]:
    """A node as the engine describes it; `more` are labels, or `role`, `availability` and `state`."""
    role, availability, state = (
        more.pop(name, usual) for name, usual in (("role", "worker"), ("availability", "active"), ("state", "ready"))
    )
    return {
        "ID": f"id-{number}",
        "Spec": {"Role": role, "Availability": availability, "Labels": more},
        "Description": {
            "Hostname": f"node-{number}",
            "Platform": {"OS": "linux", "Architecture": "x86_64"},
            "Engine": {"Labels": {"disk": "ssd"}},
        },
        "Status": {"State": state, "Addr": f"10.0.0.{number}"},
    }


class Engine:
    """An engine that knows a Swarm."""

    def __init__(self, nodes: list[dict[str, Any]], swarm: Mapping[str, Any]) -> None:
        self.api = self
        self._nodes = nodes
        self._swarm = swarm
        self.overlays: list[dict[str, Any]] = []
        self.used: list[str] = []
        """The networks of a service, by id."""

    def info(self) -> dict[str, Any]:
        return {"Swarm": self._swarm}

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def networks(self, filters: Mapping[str, str]) -> list[dict[str, Any]]:
        assert filters == {"driver": "overlay"}
        return self.overlays

    def services(self) -> list[dict[str, Any]]:
        return [{"Spec": {"TaskTemplate": {"Networks": [{"Target": each} for each in self.used]}}}]

    def close(self) -> None:
        pass


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cluster]]:
    """The Swarm with these nodes, as the program finds it."""
    pulumi.runtime.settings.configure(
        pulumi.runtime.settings.Settings(project=PROJECT_NAME, stack="prod", dry_run=True)
    )

    def find(*nodes: dict[str, Any], swarm: Mapping[str, Any] = MANAGER, error: Exception | None = None) -> Cluster:
        def connect(host: str) -> Engine:
            assert host == HOST
            if error:
                raise error
            return Engine(list(nodes), swarm)

        monkeypatch.setattr(cluster, "connect", connect)
        return Cluster(HOST)

    yield find
    pulumi.runtime.settings.reset_options()


@pytest.mark.parametrize(
    ("constraints", "fits"),
    [
        ([], True),
        (["node.role == worker"], True),
        (["node.role==worker"], True),
        (["node.role == manager"], False),
        (["node.role != manager"], True),
        (["node.hostname == NODE-1"], True),
        (["node.hostname != node-1"], False),
        (["node.id == id-1"], True),
        (["node.labels.gpu == true"], True),
        (["node.labels.gpu != true"], False),
        (["node.labels.absent == true"], False),
        (["node.labels.absent != true"], True),
        (["engine.labels.disk == ssd"], True),
        (["node.platform.arch == x86_64", "node.platform.os == linux"], True),
        (["node.labels.gpu == true", "node.role == manager"], False),
    ],
)
def test_a_node_fits_constraints_as_swarm_has_them(
    found: Callable[..., Cluster],
    constraints: list[str],
    fits: bool,  # noqa: FBT001 -- what is expected
) -> None:
    """By its role, name, id, platform and labels; all must hold, in whatever case they are written."""
    (one,) = found(node(1, gpu="true")).nodes
    assert one.fits(constraints) is fits


def test_nodes_by_their_name(found: Callable[..., Cluster]) -> None:
    """The empty name is the engine's own node."""
    swarm = found(node(2), node(1, role="manager"))
    assert [each.name for each in swarm.nodes] == ["node-1", "node-2"]
    assert [getattr(swarm.node(name), "id", None) for name in ("", "node-2", "node-3")] == ["id-1", "id-2", None]


@pytest.mark.parametrize(("addr", "address"), [("10.0.0.9", "10.0.0.9"), ("0.0.0.0", "10.0.0.1"), ("", "10.0.0.1")])  # noqa: S104
def test_a_managers_address_is_the_one_that_others_know(
    found: Callable[..., Cluster], addr: str, address: str
) -> None:
    one = node(1, role="manager") | {"ManagerStatus": {"Addr": "10.0.0.1:2377"}}
    one["Status"]["Addr"] = addr
    assert found(one).nodes[0].address == address


@pytest.mark.parametrize(
    ("swarm", "error", "said"),
    [
        (
            {"LocalNodeState": "inactive", "NodeID": "", "ControlAvailable": False},
            None,
            [f"is not in a Swarm. Make it the first manager of one: docker --host {HOST} swarm init"],
        ),
        (WORKER, None, ["is not a manager of its Swarm", "Name one as dockerHost: 10.0.0.1, 10.0.0.2"]),
        (WORKER | {"RemoteManagers": None}, None, ["is not a manager of its Swarm", "none is known here"]),
        (MANAGER, FileNotFoundError("no socket"), ["does not answer: no socket", f"docker --host {HOST} version"]),
        (
            MANAGER,
            docker.errors.APIError("503", explanation="The swarm does not have a leader."),
            ["does not have a leader"],
        ),
    ],
    ids=["no Swarm", "worker", "worker that knows nobody", "no engine", "no leader"],
)
def test_an_engine_that_manages_no_swarm(
    found: Callable[..., Cluster], swarm: Mapping[str, Any], error: Exception | None, said: list[str]
) -> None:
    """The error names the engine, and what to do."""
    with pytest.raises(pulumi.RunError) as caught:
        found(node(1), swarm=swarm, error=error)
    for words in [HOST, *said]:
        assert words in str(caught.value)


def test_a_swarm_without_the_nodes_that_a_stack_needs(found: Callable[..., Cluster]) -> None:
    """All parts without a suitable node are named at once, with all nodes and the command that labels one."""
    swarm = found(
        node(1, role="manager"), node(2, edge="true", availability="drain"), node(3, state="down", gpu="yes")
    )
    with pytest.raises(pulumi.RunError) as caught:
        swarm.check(
            {
                "postgresNode": ["node.id == id-1"],
                "constraints": ["node.labels.gpu == yes", "node.role == worker"],
                "the label edge": ["node.labels.edge == true"],
            }
        )
    said = str(caught.value).splitlines()
    assert said == [
        f"The Swarm of {HOST} cannot run stack prod; nothing was changed.",
        "  constraints: no node that is ready and active satisfies node.labels.gpu == yes and node.role == worker",
        "  the label edge: no node that is ready and active satisfies node.labels.edge == true",
        "Its nodes:",
        "  node-1 (manager, ready; engine.labels.disk=ssd)",
        "  node-2 (worker, takes no tasks; edge=true, engine.labels.disk=ssd)",
        "  node-3 (worker, takes no tasks; engine.labels.disk=ssd, gpu=yes)",
        f"Label one, as in: docker --host {HOST} node update --label-add edge=true NODE",
    ]


def test_a_swarm_that_has_them(found: Callable[..., Cluster]) -> None:
    found(node(1, edge="true")).check({"constraints": [], "the label edge": ["node.labels.edge == true"]})


def test_a_node_that_a_leader_has_not_heard_of_yet_counts(found: Callable[..., Cluster]) -> None:
    """A new leader knows no node for some seconds; that is no reason to refuse."""
    assert [each.ready for each in found(node(1, state="unknown"), node(2, state="down")).nodes] == [True, False]


def test_nothing_is_known_of_a_label_that_is_not_there() -> None:
    bare = Node(id="1", name="n", address="", ready=True, attributes={})
    assert not bare.fits(["node.labels.edge == true"])
