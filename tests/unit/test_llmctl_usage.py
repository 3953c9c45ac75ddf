"""`llmctl usage`: the sums of the replicas' lines, and what remains unknown."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from typer.testing import CliRunner

from app import DatabaseUnavailableError, organizations
from console import cli, containers, management, usage
from console.management import ManagementError
from console.programs import ProgramError
from tests.stack_config import KEY

if TYPE_CHECKING:
    from typer.testing import Result

RELEASES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("management_answers.json").read_text(encoding="utf-8")
)
NO_DATABASE = [404, {"error": {"message": "LiteLLM has no database"}}]
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
ACME = organizations.Organization(id=UUID(int=1), name="acme", llm_model="m", llm_fallback_model=None, created_at=NOW)


def line(**changes: Any) -> str:
    """A line of a replica."""
    event = {
        "event": "usage",
        "time": "2026-11-29T10:00:00.000Z",
        "client": "app",
        "call_id": "1",
        "organization": None,
        "model": "fast",
        "answered_by": "gpt-4o",
        "provider": "openai",
        "status": "success",
        "error": None,
        "stream": False,
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "cost": 0.25,
        "estimated": False,
    }
    return json.dumps({**event, **changes})


FAILED = {
    "status": "failure",
    "error": "RateLimitError",
    **dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens", "cost")),
}
UNPRICED = {"cost": None, "answered_by": "llama", "provider": "ollama"}


def rows(*lines: str, by: tuple[str, ...] = ("client",), since: datetime | None = None) -> list[usage.Row]:
    return list(usage.of_lines(lines, by, since).rows)


def llmctl(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli.cli, ["usage", *arguments], input=stdin)


def test_calls_are_added_up_by_what_was_asked_for() -> None:
    """Whatever else is in the log: other lines, lines that are cut off, and a line that a collector kept twice."""
    lines = [
        "LiteLLM: Proxy initialized",
        line(),
        line(),
        line(call_id="2", time="2026-11-28T23:59:59.999Z"),
        f'{{"log": "of another program", "of": {line(call_id="3", client="batch")[:90]}',
        line(call_id="4", client="batch", model="slow"),
    ]
    assert [(row.group, row.calls, row.cost) for row in rows(*lines)] == [
        ({"client": "app"}, 2, 0.5),
        ({"client": "batch"}, 1, 0.25),
    ]
    by_day = rows(*lines, by=("day", "model"))
    assert [(*row.group.values(), row.calls) for row in by_day] == [
        ("2026-11-28", "fast", 1),
        ("2026-11-29", "fast", 1),
        ("2026-11-29", "slow", 1),
    ]


def test_incomplete_lines_are_reported() -> None:
    """From a collector that truncates them, or a version with other fields. Text around a line does not matter."""
    lines = [f"litellm-1 | {line()} (stdout)", line(call_id="2")[:200], '{"event": "usage", "time": "2026-11-29"}']
    used = usage.of_lines(lines, ["client"], None)
    assert [row.calls for row in used.rows] == [1]
    assert used.unseen == ("2 incomplete lines",)


def test_a_call_counts_once_however_often_its_provider_was_tried() -> None:
    """It failed if no try had an answer."""
    tries = [line(**FAILED), line(**FAILED, time="2026-11-29T10:00:01.000Z"), line(), line(call_id="2", **FAILED)]
    [row] = rows(*tries)
    assert (row.calls, row.failed, row.prompt_tokens, row.completion_tokens) == (2, 1, 7, 5)


def test_a_call_with_several_answers_counts_once_and_costs_all_of_them() -> None:
    """For example if a guardrail asks another model."""
    [row] = rows(line(), line(answered_by="small", cost=0.5))
    assert (row.calls, row.cost, row.prompt_tokens) == (1, 0.75, 14)


def test_a_caller_who_left_is_counted_with_what_the_answer_took() -> None:
    [row] = rows(line(status="left"))
    assert (row.calls, row.left, row.cost) == (1, 1, 0.25)


def test_estimates_are_marked() -> None:
    [row] = rows(line(), line(call_id="2", estimated=True))
    assert (row.estimated_tokens, row.prompt_tokens + row.completion_tokens) == (12, 24)


def test_what_has_no_price_is_unknown_and_never_free() -> None:
    """The models without a price are listed, by the provider's names."""
    used = usage.of_lines([line(**UNPRICED)], ["client"], None)
    assert (used.rows[0].cost, used.rows[0].unpriced_tokens, used.without_price) == (None, 12, ("ollama/llama",))
    shown = llmctl("-", stdin=line(**UNPRICED))
    assert shown.stdout.splitlines()[-1].split()[-1] == "unknown"
    assert "unknown cost: LiteLLM has no price for ollama/llama" in shown.stderr
    beside = llmctl("-", stdin=f"{line()}\n{line(call_id='2', **UNPRICED)}")
    assert beside.stdout.splitlines()[-1].endswith("0.250000 + unknown")


def test_answers_whose_tokens_nobody_counted_are_reported() -> None:
    shown = llmctl("-", stdin=line(cost=None, prompt_tokens=None, completion_tokens=None, total_tokens=None))
    assert shown.stdout.splitlines()[-1].split()[-1] == "unknown"
    assert "nobody counted" in shown.stderr


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("7d", datetime(2026, 11, 22, 12, tzinfo=UTC)),
        ("12h", datetime(2026, 11, 29, 0, tzinfo=UTC)),
        ("30min", datetime(2026, 11, 29, 11, 30, tzinfo=UTC)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T12:00", datetime(2026, 11, 1, 12, tzinfo=UTC)),
        ("2026-11-01T12:00+02:00", datetime(2026, 11, 1, 10, tzinfo=UTC)),
    ],
)
def test_a_time_is_said_in_several_ways(text: str, time: datetime) -> None:
    assert usage.moment(text, now=NOW) == time


def test_what_was_before_that_time_does_not_count() -> None:
    lines = [line(time="2026-11-29T09:59:59.999Z"), line(call_id="2"), line(call_id="3")]
    assert rows(*lines, since=datetime(2026, 11, 29, 10, tzinfo=UTC))[0].calls == 2


def test_an_invalid_time_is_refused() -> None:
    refused = llmctl("-", "--since", "yesterday")
    assert isinstance(refused.exception, ValueError)
    assert "use 7d, 12h, 30min, 2026-11-01" in str(refused.exception)


def test_json_and_csv_have_the_same_numbers() -> None:
    lines = f"{line()}\n{line(call_id='2', **UNPRICED)}"
    [row] = json.loads(llmctl("-", "--json", stdin=lines).stdout)["rows"]
    [found] = csv.DictReader(io.StringIO(llmctl("-", "--csv", stdin=lines).stdout))
    assert found == {**row.pop("group"), **{name: str(value) for name, value in row.items()}}
    assert (row["calls"], row["cost"], row["unpriced_tokens"]) == (2, 0.25, 12)
    assert llmctl("-", "--json", "--csv", stdin=lines).exit_code == 2


def test_organizations_have_their_names_where_the_database_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line(organization=str(ACME.id)), line(call_id="2", organization="other"), line(call_id="3")]
    monkeypatch.setattr(organizations, "listed", lambda: [ACME])
    assert [row.group["org"] for row in rows(*lines, by=("org",))] == ["-", "acme", "other"]

    def away() -> list[organizations.Organization]:
        raise DatabaseUnavailableError("away")

    monkeypatch.setattr(organizations, "listed", away)
    assert [row.group["org"] for row in rows(*lines, by=("org",))] == ["-", str(ACME.id), "other"]


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """A stack of two replicas, one of which is lost; the commands of `docker` that were asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_URL", "http://gateway.test:4000")
    monkeypatch.setenv("LITELLM_API_KEY", KEY)
    known: dict[str, Any] = {
        "state": "healthy",
        "up": True,
        "since": NOW,
        "restarts": 0,
        "image": "litellm",
        "addresses": (),
        "container": "1",
        "look": "",
    }
    parts = (
        containers.Part(name="edge", kind=containers.EDGE, logs=("logs", "edge"), **known),
        containers.Part(name="litellm-1", kind=containers.REPLICA, logs=("logs", "one"), **known),
        containers.Part(
            name="litellm-g1.2@far", kind=containers.REPLICA, logs=("service", "logs", "--raw", "two"), **known
        ),
    )
    made = containers.Stack(name="dev", parts=parts, short=(), unseen="")
    monkeypatch.setattr(management, "found", lambda *_, **__: (made, None))
    asked: list[list[str]] = []

    def output(command: list[str], **_: Any) -> str:
        asked.append(command)
        if command[-1] == "two":
            raise ProgramError("docker failed: no such task")
        said = f"2026-11-29T09:00:00.5Z a provider said: {line(call_id='2')}"
        return f"2026-11-29T08:00:00.5Z started\n{said}\n2026-11-29T10:00:00.123456789Z {line()}\n"

    monkeypatch.setattr(containers, "output", output)
    database(monkeypatch, NO_DATABASE)
    return asked


def database(monkeypatch: pytest.MonkeyPatch, answer: list[Any]) -> list[Any]:
    """Have LiteLLM answer so when its database is asked; returns what it was asked."""
    asked: list[Any] = []

    def output(_: list[str], *, given: str, **__: Any) -> str:
        asked.extend(json.loads(given))
        return json.dumps([answer])

    monkeypatch.setattr(management, "output", output)
    return asked


def test_the_replicas_logs_are_read_from_the_engine(stack: list[list[str]]) -> None:
    """The output says how far back they go, and which could not be read. A line quoted in another does not count."""
    shown = llmctl("--by", "client", "--since", "2026-11-01")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[-1].split() == ["app", "1", "0", "0", "7", "5", "0.250000"]
    assert stack == [
        ["docker", "logs", "--timestamps", "one"],
        ["docker", "service", "logs", "--raw", "--timestamps", "two"],
    ]
    assert "read: litellm-1 since 2026-11-29 08:00 UTC" in shown.stderr
    assert "lines from before 2026-11-29 08:00 UTC may be gone (docs/spend.md)" in shown.stderr
    assert "not seen: the log of litellm-g1.2@far: docker failed: no such task" in shown.stderr


def test_where_no_stack_is_seen_the_command_fails_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: object, unseen: list[str]) -> tuple[None, None]:
        unseen.append("what runs: no edge publishes port 4000 (name another engine by DOCKER_HOST)")
        return None, None

    monkeypatch.setenv("LITELLM_API_KEY", KEY)
    monkeypatch.setattr(management, "found", none)
    failed = llmctl()
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert failed.stderr == "llmctl: what runs: no edge publishes port 4000 (name another engine by DOCKER_HOST)\n"


@pytest.mark.parametrize("release", RELEASES)
def test_where_litellm_has_its_database_that_is_read(
    stack: list[list[str]], monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    """It goes further back than any log. The last line says what the table came from."""
    asked = database(monkeypatch, RELEASES[release]["spend"])
    monkeypatch.setattr(organizations, "listed", list)
    by = ("client", "team", "key", "org", "model", "day")
    shown = llmctl(*(word for each in by for word in ("--by", each)), "--since", "2026-11-01")
    assert shown.exit_code == 0, shown.exception
    assert (stack, asked) == ([], [["GET", f"/llm-gateway/spend/{','.join(by)}/2026-11-01T00:00:00Z", None]])
    assert shown.stdout.split()[:6] == list(by)
    assert shown.stderr.splitlines()[-1].startswith("source: LiteLLM's database, which begins 2026-11-29 ")
    assert "openai/nobody-knows" in next(it for it in shown.stderr.splitlines() if it.startswith("unknown cost"))
    used = json.loads(llmctl("--json", *(word for each in by for word in ("--by", each))).stdout)
    assert (used["source"], used["logs"]) == ("database", [])
    unpriced = next(row for row in used["rows"] if row["group"]["model"] == "local")
    assert (unpriced["cost"], unpriced["unpriced_tokens"]) == (None, 13)


def test_failed_calls_that_a_release_does_not_keep_are_unknown_and_never_none(
    stack: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiteLLM 1.55.0 has them in another table, which does not say whose calls they are."""
    told: dict[str, Any] = {"since": None, "without_price": [], "has_failures": False}
    row = {
        "by_client": "app",
        **dict.fromkeys(("calls", "failed", "left", "prompt_tokens", "completion_tokens"), 1),
        "estimated_tokens": 2,
        "uncounted": 0,
        "cost": 0.5,
        "unpriced_tokens": 0,
    }
    database(monkeypatch, [200, {**told, "rows": [row]}])
    shown = llmctl("--by", "client")
    assert shown.stdout.splitlines()[-1].split() == ["app", "1", "?", "1", "~1", "~1", "~0.500000"]
    assert "failed ?: this release of LiteLLM keeps no failed calls in its database" in shown.stderr
    database(monkeypatch, [200, {**told, "has_failures": True, "rows": [row]}])
    assert llmctl("--by", "client").stdout.splitlines()[-1].split()[2] == "1"
    assert stack == []


def test_the_lines_can_be_read_beside_a_database(stack: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = database(monkeypatch, RELEASES["1.108.14"]["spend"])
    shown = llmctl("--source", "lines")
    assert (shown.exit_code, asked, len(stack)) == (0, [], 2)
    assert shown.stderr.splitlines()[-1] == "source: the lines of the replicas"


def test_a_database_that_does_not_answer_is_no_other_source(
    stack: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise some lines would look like all of them."""
    database(
        monkeypatch, [503, {"error": {"message": "LiteLLM's database did not answer (ClientNotConnectedError)"}}]
    )
    failed = llmctl()
    assert isinstance(failed.exception, ManagementError)
    assert "did not answer (ClientNotConnectedError): llmctl usage --source lines" in str(failed.exception)
    assert stack == []


def test_what_only_a_database_has_is_refused_without_one(stack: list[list[str]]) -> None:
    """With the command that turns it on."""
    for arguments in (("--by", "team"), ("--by", "key", "-"), ("--source", "database")):
        refused = llmctl(*arguments)
        assert isinstance(refused.exception, ManagementError)
        assert "./pulumiw config set litellmDatabase true" in str(refused.exception)
    assert stack == []
