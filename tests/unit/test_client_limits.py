"""Limits of clients: what a stack config may say, what LiteLLM is told, and what a refresh and a removal do."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import docker
import pytest

from infra import client_limits
from infra.placement import inside
from infra.placement.inside import InsideError, NobodyError
from infra.stack_config import validate
from tests.stack_config import raw_config
from tests.unit.conftest import SECRET

if TYPE_CHECKING:
    from collections.abc import Sequence

PROVIDER = client_limits._Provider()
ID = "client-limits"
SWARM = {"placement": "swarm", "bindAddress": "0.0.0.0", "allowPlainHttp": "true"}  # noqa: S104


def problems(limits: object, **changes: object) -> dict[str, tuple[str, str]]:
    """What is wrong with a stack config that has limits, with the command that fixes it, by key."""
    values = {"litellmDatabase": "true", "clientKeys": {"batch": ""}, "clientLimits": limits, "demo": "true"}
    values |= {"protectData": "false", **changes}
    _, found = validate(raw_config("staging", **values), SECRET & values.keys())
    return {each.key: (each.what, each.command) for each in found}


@pytest.mark.parametrize("duration", ["30s", "30m", "30h", "30d", "1mo"])
def test_each_limit_may_be_set_as_pulumi_writes_it(duration: str) -> None:
    """A number with a decimal point is text there."""
    limits = {"rpm": 600, "tpm": 100000, "budget": "12.5", "budgetDuration": duration, "models": ["gpt-4o"]}
    assert problems({"batch": limits, "app": {"budget": 5}}) == {}


@pytest.mark.parametrize(
    ("limits", "key", "what", "command"),
    [
        ({"nobody": {"rpm": 1}}, "clientLimits.nobody", "there is no such client", "rm --path clientLimits.nobody"),
        ({"batch": {"rpm": 0}}, "clientLimits.batch.rpm", "greater", "set --path clientLimits.batch.rpm 600"),
        ({"batch": {"tpm": -1}}, "clientLimits.batch.tpm", "greater", "set --path clientLimits.batch.tpm 100000"),
        ({"batch": {"budget": 0}}, "clientLimits.batch.budget", "greater", "set --path clientLimits.batch.budget 50"),
        ({"batch": {"budget": "nan"}}, "clientLimits.batch.budget", "", "set --path clientLimits.batch.budget 50"),
        (
            {"batch": {"budget": 1, "budgetDuration": "monthly"}},
            "clientLimits.batch.budgetDuration",
            "use 30s, 30m, 30h, 30d or 1mo",
            "set --path clientLimits.batch.budgetDuration 30d",
        ),
        (
            {"batch": {"budgetDuration": "30d"}},
            "clientLimits.batch.budgetDuration",
            "no effect without a budget",
            "set --path clientLimits.batch.budget 50",
        ),
        ({"batch": {"rmp": 1}}, "clientLimits.batch.rmp", "not permitted", "rm --path clientLimits.batch.rmp"),
        (
            {"batch": {"models": []}},
            "clientLimits.batch.models",
            "at least 1",
            "set --path 'clientLimits.batch.models[0]' MODEL",
        ),
        (
            {"batch": {"models": ["gpt-4o", "gpt-4oo"]}},
            "clientLimits.batch.models[1]",
            "gpt-4oo is not served",
            "rm --path 'clientLimits.batch.models[1]'",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_the_command_that_fixes_it(
    limits: object, key: str, what: str, command: str
) -> None:
    found = problems(limits)
    assert found.keys() == {key}
    assert what in found[key][0]
    assert found[key][1] == command


def test_limits_need_litellms_database() -> None:
    limits = {"app": {"rpm": 1}}
    assert problems(limits, litellmDatabase="false")["clientLimits"][1] == "set litellmDatabase true"
    assert problems(limits, litellmDatabase="false", **SWARM)["clientLimits"][1] == "set litellmDatabase true"


def test_a_model_whose_key_is_missing_is_not_served() -> None:
    """The command sets the key. A pattern serves what fits it."""
    models = [{"model_name": "claude/*", "litellm_params": {"model": "anthropic/*"}}]
    limits = {"app": {"models": ["claude/any", "gpt-4o"]}}
    found = problems(limits, models=models, demo="false", anthropicApiKey="sk-ant-1")
    assert found["clientLimits.app.models[1]"][1] == "set --secret openaiApiKey …"
    assert found.keys() == {"clientLimits.app.models[1]"}


class Replica:
    """A replica in which the program runs, as far as an engine reaches it: what it prints, and what it was told."""

    def __init__(self) -> None:
        self.limits: dict[str, Any] | None = None
        self.database = True
        self.fails: InsideError | None = None
        self.asked: list[Any] = []

    def printed(self, inside: object, command: Sequence[str]) -> str:
        if self.fails:
            raise self.fails
        client, *limits = command[len(client_limits.PROGRAM) :]
        self.asked.append((client, *map(json.loads, limits)))
        return json.dumps({"database": self.database, "limits": self.limits})


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Replica:
    made = Replica()
    monkeypatch.setattr(client_limits, "printed", made.printed)
    return made


NONE: dict[str, Any] = dict.fromkeys(client_limits.LIMITS.values())
PROPS: dict[str, Any] = {"client": "batch", "database": "one", "inside": {}, "rpm": 600.0, "budget": 12.5}


def test_all_limits_are_applied_also_those_that_are_none(replica: Replica) -> None:
    """Whole numbers are sent as integers, although Pulumi's are floats."""
    assert PROVIDER.create(PROPS).outs == PROPS
    assert replica.asked == [("batch", {**NONE, "rpm_limit": 600, "max_budget": 12.5})]
    assert isinstance(replica.asked[0][1]["rpm_limit"], int)


@pytest.mark.parametrize("name", [*client_limits.LIMITS, "database", "inside"])
def test_each_limit_that_changes_is_applied_and_so_are_all_in_another_database(name: str) -> None:
    assert PROVIDER.diff(ID, PROPS, {**PROPS, name: "another"}).changes
    assert PROVIDER.diff(ID, {**PROPS, name: "another"}, {key: PROPS[key] for key in PROPS if key != name}).changes
    assert not PROVIDER.diff(ID, PROPS, dict(PROPS)).changes


def test_what_somebody_changed_is_found(replica: Replica) -> None:
    """And the next `up` changes it back."""
    replica.limits = {**NONE, "rpm_limit": 600, "max_budget": 99.0, "models": ["gpt-4o"]}
    found = PROVIDER.read(ID, PROPS)
    assert replica.asked == [("batch",)]
    assert found.outs == found.inputs == {**PROPS, "budget": 99.0, "models": ["gpt-4o"]}
    assert PROVIDER.diff(ID, found.outs, PROPS).changes


def test_a_key_that_was_deleted_has_no_limits(replica: Replica) -> None:
    found = PROVIDER.read(ID, PROPS)
    assert (found.id, found.outs) == (ID, {key: PROPS[key] for key in ("client", "database", "inside")})


def test_a_key_that_is_as_it_should_be_is_no_drift(replica: Replica) -> None:
    replica.limits = {**NONE, "rpm_limit": 600, "max_budget": 12.5}
    assert PROVIDER.read(ID, PROPS).outs == PROPS


@pytest.mark.parametrize("fails", [InsideError("no answer"), NobodyError("none runs"), None])
def test_what_cannot_be_read_is_as_before(
    replica: Replica, capsys: pytest.CaptureFixture[str], fails: InsideError | None
) -> None:
    """The state keeps it, and Pulumi says why."""
    replica.fails, replica.database = fails, False
    found = PROVIDER.read(ID, PROPS)
    assert (found.id, found.outs, found.inputs) == (ID, PROPS, PROPS)
    assert "taken to be as before" in capsys.readouterr().err


def test_an_up_that_cannot_apply_them_fails(replica: Replica) -> None:
    replica.fails = InsideError("litellm-1: LiteLLM did not take the limits")
    with pytest.raises(RuntimeError, match="batch were not applied: litellm-1"):
        PROVIDER.update(ID, PROPS, {**PROPS, "rpm": 1.0})
    with pytest.raises(RuntimeError, match="stay in LiteLLM's database"):
        PROVIDER.delete(ID, PROPS)
    replica.fails, replica.database = None, False
    with pytest.raises(RuntimeError, match="has no database"):
        PROVIDER.create(PROPS)


def test_a_removal_leaves_a_key_without_limits(replica: Replica, capsys: pytest.CaptureFixture[str]) -> None:
    """If there is no replica or no database any more, it says what stays."""
    PROVIDER.delete(ID, PROPS)
    assert replica.asked == [("batch", NONE)]
    assert not capsys.readouterr().err
    replica.database = False
    PROVIDER.delete(ID, PROPS)
    replica.fails = NobodyError("none runs")
    PROVIDER.delete(ID, PROPS)
    assert capsys.readouterr().err.count("stay in LiteLLM's database") == 2


class Container(SimpleNamespace):
    """A container that answers a command with what it is told."""

    name: str
    answer: Any

    def exec_run(self, command: list[str], *, demux: bool) -> Any:
        assert demux
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer.pop(0) if isinstance(self.answer, list) else self.answer


def in_containers(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[Any]:
    """Have an engine with containers, and return how it is asked for them."""
    asked: list[Any] = []
    found = [Container(name=f"litellm-{number}", answer=answer) for number, answer in enumerate(answers, 1)]

    def listed(**options: Any) -> list[Container]:
        asked.append(options)
        return found[::-1]

    engine = SimpleNamespace(containers=SimpleNamespace(list=listed), close=lambda: None)
    monkeypatch.setattr(inside, "connect", lambda _: engine)
    return asked


INSIDE = {"host": "unix:///engine", "labels": [{"label": "stack.part", "value": "litellm"}]}


def test_a_program_runs_in_the_first_container_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is paused, one that fails and one that loses what it printed are passed over."""
    paused = docker.errors.APIError("conflict", explanation="is paused")
    asked = in_containers(monkeypatch, paused, (1, (b"", b"no")), (0, (None, None)), (0, (b"yes", b"a warning")))
    assert inside.printed(INSIDE, ["program"]) == "yes"
    assert asked[0]["filters"] == {"label": ["stack.part=litellm"]}


def test_a_program_whose_words_the_engine_lost_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    in_containers(monkeypatch, [(0, (None, None)), (0, (b"yes", None))])
    assert inside.printed(INSIDE, ["program"]) == "yes"


def test_on_a_swarm_a_program_runs_in_a_task_of_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a container from before a move to the Swarm. If all replicas are elsewhere, the error names nodes."""
    on_swarm = {**INSIDE, "of": "com.docker.swarm.task.id"}
    asked = in_containers(monkeypatch, (0, (b"yes", None)))
    assert inside.printed(on_swarm, ["program"]) == "yes"
    assert asked[0]["filters"] == {"label": ["stack.part=litellm", "com.docker.swarm.task.id"]}
    in_containers(monkeypatch)
    monkeypatch.setattr(inside, "nodes_of", lambda _, labels: ["node-2", "node-3"] if labels else [])
    with pytest.raises(NobodyError, match=r"run on node-2 and node-3.* Name a manager that has one"):
        inside.printed(on_swarm, ["program"])
    monkeypatch.setattr(inside, "nodes_of", lambda *_: [])
    with pytest.raises(NobodyError):
        inside.printed(on_swarm, ["program"])


def test_why_a_program_ran_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    in_containers(monkeypatch, (1, (None, b"Traceback\nthe reason\n")))
    with pytest.raises(InsideError, match="litellm-1: the reason"):
        inside.printed(INSIDE, ["program"])
    in_containers(monkeypatch)
    with pytest.raises(NobodyError):
        inside.printed(INSIDE, ["program"])
    monkeypatch.setattr(inside, "connect", lambda _: (_ for _ in ()).throw(ConnectionRefusedError("refused")))
    with pytest.raises(InsideError, match="the engine at unix:///engine does not answer: refused"):
        inside.printed(INSIDE, ["program"])
