"""A job on a Swarm: it is awaited to its end, a failure has its reason, and nothing is left of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import docker
import pulumi
import pytest

from engine.labels import LABEL
from infra.placement import job, swarm_job, swarm_services

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OURS = {f"{LABEL}.identity": "me", f"{LABEL}.part": "schema"}
JOB: dict[str, Any] = {
    "host": "unix:///nowhere",
    "name": "llm-infrastructure-dev-schema",
    "image": "registry.example/litellm@sha256:1",
    "entrypoint": ["python3", "/opt/schema.py"],
    "command": [],
    "environment": {"B": "2", "A": "1"},
    "labels": [{"label": label, "value": value} for label, value in OURS.items()],
    "user": "65534:65534",
    "file_owner": 65534.0,  # as a provider gets a number
    "memory_mb": 1536.0,
    "host_gateway": "host.docker.internal",
    "networks": ["id-of-data"],
    "constraints": ["node.labels.llm == true"],
    "platforms": [["amd64", "linux"]],
    "files": {"/opt/schema.py": "print()"},
    "secrets": {"DATABASE_URL": "postgresql://user:password@postgres/litellm"},
}
NODES = {"node-1": "ready", "node-2": "down"}


def state(name: str, *, node: str = "node-1", code: int | None = None, err: str = "") -> dict[str, Any]:
    """The state of a task, as the manager tells it."""
    status: dict[str, Any] = {"State": name, "Message": f"is {name}", "Err": err}
    if code is not None:
        status["ContainerStatus"] = {"ExitCode": code}
    return {"ID": "task", "NodeID": node, "Status": status}


class Manager:
    """A manager whose job goes through states, from one look at it to the next; it stays in the last one.

    `left` is what a killed `up` has left: the labels of its service. It is the clock, too.
    """

    def __init__(self, *states: dict[str, Any] | None, left: Mapping[str, str] | None = None) -> None:
        self.api = self.services = self
        self.now = 0.0
        self.states = list(states)
        self.made: dict[str, Any] = {}
        self.services_left = {"id-of-left": dict(left)} if left is not None else {}
        self.stored: dict[str, dict[str, Any]] = {"secret": {}, "config": {}}
        self.done: list[str] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if len(self.states) > 1:
            self.states.pop(0)

    def close(self) -> None:
        pass

    def create(self, image: str, command: object, **given: Any) -> SimpleNamespace:
        self.made = {"image": image, "command": command, **given}
        self.services_left["id-of-new"] = given["labels"]
        self.done.append("create")
        return SimpleNamespace(id="id-of-new")

    def inspect_service(self, name: str) -> dict[str, Any]:
        assert name == JOB["name"]
        for id_, labels in self.services_left.items():
            return {"ID": id_, "Spec": {"Labels": labels}}
        raise docker.errors.NotFound(name)

    def list_services(self, filters: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"ID": id_} for id_, labels in self.services_left.items() if self._fits(labels, filters)]

    def remove_service(self, id_: str) -> None:
        self.done.append(f"remove {id_}")
        del self.services_left[id_]

    def tasks(self, filters: Mapping[str, str]) -> list[dict[str, Any]]:
        assert filters["service"] in self.services_left
        return [self.states[0]] if self.states[0] else []

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"ID": name, "Description": {"Hostname": name}, "Status": {"State": it}} for name, it in NODES.items()
        ]

    def create_secret(self, name: str, data: bytes, *, labels: dict[str, str]) -> dict[str, str]:
        return self._store("secret", name, data, labels)

    def create_config(self, name: str, data: bytes, *, labels: dict[str, str]) -> dict[str, str]:
        return self._store("config", name, data, labels)

    def _store(self, kind: str, name: str, data: bytes, labels: dict[str, str]) -> dict[str, str]:
        assert len(name) <= 64
        self.stored[kind][f"id-of-{name}"] = {"data": data, "labels": labels}
        return {"ID": f"id-of-{name}"}

    def secrets(self, filters: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self._listed("secret", filters)

    def configs(self, filters: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self._listed("config", filters)

    def _listed(self, kind: str, filters: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"ID": id_} for id_, it in self.stored[kind].items() if self._fits(it["labels"], filters)]

    def _fits(self, labels: Mapping[str, str], filters: Mapping[str, Any]) -> bool:
        assert set(filters) == {"label"}
        return {f"{name}={value}" for name, value in labels.items()} >= set(filters["label"])

    def remove_secret(self, id_: str) -> None:
        del self.stored["secret"][id_]

    def remove_config(self, id_: str) -> None:
        del self.stored["config"][id_]


class Api:
    """The manager's low-level client, in which `services` lists them."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def services(self, filters: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self._manager.list_services(filters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)


@pytest.fixture
def managed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Manager]:
    """The manager that the program connects to."""
    settings = pulumi.runtime.settings.Settings(project="llm-infrastructure", stack="dev", dry_run=False)
    monkeypatch.setattr(pulumi.runtime.settings, "SETTINGS", settings)

    def make(*states: dict[str, Any] | None, left: Mapping[str, str] | None = None) -> Manager:
        manager = Manager(*states, left=left)
        manager.api = Api(manager)  # type: ignore[assignment]
        monkeypatch.setattr(job, "connect", lambda _: manager)
        monkeypatch.setattr(swarm_job, "time", manager)
        monkeypatch.setattr(swarm_job, "last_lines", lambda *_: "the reason")
        monkeypatch.setattr(swarm_job, "stand_down", lambda _, id_: manager.done.append(f"stand {id_} down"))
        return manager

    return make


def nothing_is_left(manager: Manager) -> bool:
    return not any((manager.services_left, manager.stored["secret"], manager.stored["config"]))


def test_it_runs_once_to_its_end_and_leaves_nothing(managed: Callable[..., Manager]) -> None:
    manager = managed(None, state("preparing"), state("running"), state("complete"))
    job.run(JOB)
    assert manager.now > 0
    assert manager.done == ["create", "stand id-of-new down", "remove id-of-new"]
    assert nothing_is_left(manager)


def test_it_runs_as_the_replicas_do(managed: Callable[..., Manager], monkeypatch: pytest.MonkeyPatch) -> None:
    """On their nodes, as their user, within its memory, and only once; only this user can read the secret's file."""
    manager = managed(state("complete"))
    monkeypatch.setattr(swarm_job, "_remove", lambda *_: None)
    job.run(JOB)
    made = manager.made
    assert (made["image"], made["command"], made["name"]) == (JOB["image"], JOB["entrypoint"], JOB["name"])
    assert (made["restart_policy"]["Condition"], made["mode"]) == ("none", {"replicated": {"Replicas": 1}})
    assert (made["user"], made["read_only"], made["cap_drop"]) == ("65534:65534", True, ["ALL"])
    assert (made["constraints"], made["networks"]) == (["node.labels.llm == true"], ["id-of-data"])
    assert made["resources"]["Limits"]["MemoryBytes"] == 1536 * 2**20
    assert made["healthcheck"]["Test"] == ["NONE"]
    assert made["env"] == ["A=1", "B=2"]
    assert made["labels"] == made["container_labels"] == OURS
    (secret,), (config,) = made["secrets"], made["configs"]
    assert secret["File"] == {"Name": "/run/secrets/DATABASE_URL", "UID": "65534", "GID": "65534", "Mode": 0o400}
    assert config["File"] == {"Name": "/opt/schema.py", "UID": "65534", "GID": "65534", "Mode": 0o444}
    (stored,) = manager.stored["secret"].values()
    assert (stored["data"].decode(), stored["labels"]) == (JOB["secrets"]["DATABASE_URL"], OURS)
    (stored,) = manager.stored["config"].values()
    assert (stored["data"].decode(), stored["labels"]) == ("print()", OURS)
    assert "password" not in str({name: it for name, it in made.items() if name != "secrets"})


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        (
            state("failed", code=1, err="task: non-zero exit (1)"),
            "it exited with 1, on node node-1; its last lines:\nthe reason",
        ),
        (state("failed", code=127, err="starting container failed: no such file"), "container failed: no such file"),
        (state("failed", code=137), "too little memory"),
        (state("rejected", err="no such image"), "no such image, on node node-1"),
        (state("shutdown"), "is shutdown, on node node-1"),
        (state("pending", node="", err="no suitable node"), "it finds no node: no suitable node"),
        (None, "the Swarm has no task of it"),
    ],
)
def test_a_failure_says_why_and_where_and_leaves_nothing(
    managed: Callable[..., Manager], ended: dict[str, Any] | None, why: str
) -> None:
    manager = managed(None, ended)
    with pytest.raises(job.JobError) as caught:
        job.run(JOB)
    assert why in str(caught.value)
    assert nothing_is_left(manager)


def test_one_that_never_ends_is_given_up(managed: Callable[..., Manager], capfd: pytest.CaptureFixture[str]) -> None:
    """Meanwhile messages say from time to time how to see what it does."""
    manager = managed(state("running"))
    with pytest.raises(job.JobError, match="it did not end within 3600 s; its last lines:\nthe reason"):
        job.run(JOB)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 60
    assert said[0].endswith(f"60 minutes: docker service logs --follow {JOB['name']}")
    assert nothing_is_left(manager)


def test_what_cannot_be_made_leaves_nothing(managed: Callable[..., Manager], monkeypatch: pytest.MonkeyPatch) -> None:
    manager = managed(None)

    def refused(*_: object, **__: object) -> None:
        raise docker.errors.APIError("refused")

    monkeypatch.setattr(manager, "create", refused)
    with pytest.raises(docker.errors.APIError):
        job.run(JOB)
    assert nothing_is_left(manager)


def test_what_a_killed_up_has_left_is_awaited_and_removed(managed: Callable[..., Manager]) -> None:
    """With its secrets and configs, also those without a service yet, but nobody else's."""
    manager = managed(state("running"), state("complete"), left=OURS)
    manager.create_secret("DATABASE_URL-1", b"url", labels=OURS)
    manager.create_config("schema.py-1", b"", labels=OURS)
    manager.create_secret("DATABASE_URL-2", b"url", labels={**OURS, f"{LABEL}.identity": "other"})
    manager.create_config("config.yaml-2", b"", labels={**OURS, f"{LABEL}.part": "litellm"})
    job.end_former(JOB)
    assert manager.now > 0
    assert manager.done == ["stand id-of-left down", "remove id-of-left"]
    assert [*manager.stored["secret"], *manager.stored["config"]] == ["id-of-DATABASE_URL-2", "id-of-config.yaml-2"]


def test_one_of_a_killed_up_that_failed_is_removed(managed: Callable[..., Manager]) -> None:
    """The new run repeats what it failed to do."""
    manager = managed(state("failed", code=1), left=OURS)
    job.end_former(JOB)
    assert nothing_is_left(manager)


def test_secrets_are_removed_though_no_service_was_made(managed: Callable[..., Manager]) -> None:
    manager = managed(None)
    manager.create_secret("DATABASE_URL-1", b"url", labels=OURS)
    job.end_former(JOB)
    assert nothing_is_left(manager)


def test_anothers_is_left_alone(managed: Callable[..., Manager]) -> None:
    manager = managed(state("running"), left={**OURS, f"{LABEL}.identity": "other"})
    with pytest.raises(pulumi.RunError, match="belongs to another deployment"):
        job.end_former(JOB)
    assert manager.done == []


@pytest.mark.parametrize("step", [job.run, job.end_former])
def test_one_whose_node_is_down_may_still_run(
    managed: Callable[..., Manager], step: Callable[[Mapping[str, Any]], None]
) -> None:
    """Two jobs must not change one schema: it stays until the node is back, or has been removed from the Swarm."""
    left = OURS if step is job.end_former else None
    manager = managed(state("running", node="node-2"), left=left)
    with pytest.raises(job.JobError, match=r"its node node-2 is down.* docker node rm --force node-2"):
        step(JOB)
    assert len(manager.services_left) == 1
    manager.states = [state("running", node="removed"), state("orphaned", node="removed")]
    job.end_former(JOB)
    assert nothing_is_left(manager)


def test_where_replicas_run(managed: Callable[..., Manager]) -> None:
    manager = managed(state("running", node="node-2"), left=OURS)
    assert swarm_services.nodes_of(manager, [f"{LABEL}.part=schema"]) == ["node-2"]  # type: ignore[arg-type]
    manager.states = [state("pending", node="")]
    assert swarm_services.nodes_of(manager, [f"{LABEL}.part=schema"]) == []  # type: ignore[arg-type]
