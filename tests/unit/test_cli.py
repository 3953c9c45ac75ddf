"""`llmctl`: what it prints, how it ends, and what its doctor finds, against a fake gateway."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import httpx2
import psycopg
import pytest
from typer.testing import CliRunner

from app import DatabaseUnavailableError, StreamInterruptedError, _http, migrations, organizations
from app._made_once import PerProcess
from console import cli, litellm_check
from tests.unit.test_app import KEY, chunk, completion, error, sse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import EllipsisType

    from typer.testing import Result

MODELS = httpx2.Response(200, json={"data": [{"id": "gpt-4o"}, {"id": "claude-3-5-sonnet"}]})
READY = httpx2.Response(200, json={"status": "healthy", "litellm_version": "1.55.0"})
VECTOR = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}], "model": "m"}
ORGANIZATION = organizations.Organization(UUID(int=7), "acme", "gpt-4o", None, datetime(2026, 1, 1, tzinfo=UTC))


class Gateway:
    """Answers by the path of a request, and keeps what was asked."""

    def __init__(self) -> None:
        self.is_there = True
        self.asked: list[dict[str, Any]] = []
        self.answers = {
            "/health/readiness": READY,
            "/v1/models": MODELS,
            "/v1/chat/completions": httpx2.Response(200, json=completion("hi")),
            "/v1/embeddings": httpx2.Response(200, json=VECTOR),
        }

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if not self.is_there:
            raise httpx2.ConnectError("refused")
        if request.content:
            self.asked.append(json.loads(request.content))
        answer = self.answers[request.url.path]
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gateway:
    made = Gateway()
    monkeypatch.chdir(tmp_path)
    for variable, value in {
        "LITELLM_URL": "http://gateway.test:4000",
        "LITELLM_API_KEY": KEY,
        "DATABASE_URL": "postgresql://app:the-password@127.0.0.1:9/app",
    }.items():
        monkeypatch.setenv(variable, value)
    transport = httpx2.MockTransport(made)
    monkeypatch.setattr(_http, "shared", PerProcess(lambda: _http.Pool(transport)))
    return made


def llmctl(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli.cli, arguments, input=stdin)


def out(*arguments: str, stdin: str = "") -> str:
    done = llmctl(*arguments, stdin=stdin)
    assert (done.exit_code, done.stderr) == (0, ""), done.exception
    return done.stdout


@pytest.mark.parametrize(("arguments", "stdin"), [(["hello"], ""), ([], "hello"), (["-"], "hello")])
def test_a_question_comes_as_an_argument_or_on_standard_input(
    gateway: Gateway, arguments: list[str], stdin: str
) -> None:
    assert out("chat", "--system", "be brief", "--model", "gpt-4o", *arguments, stdin=stdin) == "hi\n"
    [asked] = gateway.asked
    assert asked["model"] == "gpt-4o"
    assert [message["content"] for message in asked["messages"]] == ["be brief", "hello"]


STREAM = sse(chunk("h"), chunk("i"), chunk(finish_reason="stop"), "data: [DONE]\n\n")


def test_an_answer_comes_as_it_is_made(gateway: Gateway) -> None:
    gateway.answers["/v1/chat/completions"] = STREAM
    assert out("chat", "--stream", "hello") == "hi\n"
    assert gateway.asked[0]["stream"] is True


def test_an_answer_that_breaks_off_ends_its_line(gateway: Gateway) -> None:
    gateway.answers["/v1/chat/completions"] = sse(chunk("h"), chunk("i"))
    broken = llmctl("chat", "--stream", "hello")
    assert (broken.stdout, type(broken.exception)) == ("hi\n", StreamInterruptedError)


def test_json_is_one_document(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has everything that is known about an answer, and is whole even if the answer would be streamed."""
    monkeypatch.setattr(organizations, "get", lambda _: ORGANIZATION)
    gateway.answers["/v1/chat/completions"] = STREAM
    answer = json.loads(out("chat", "--stream", "--json", "hello", "--org", str(ORGANIZATION.id)))
    assert (answer["content"], answer["used_fallback"]) == ("hi", False)
    assert json.loads(out("embed", "--json", "hello"))["embedding"] == [0.5, -1.0]
    assert json.loads(out("models", "--json")) == ["claude-3-5-sonnet", "gpt-4o"]


def test_a_refusal_is_printed_as_the_answer(gateway: Gateway) -> None:
    message = {"role": "assistant", "content": None, "refusal": "I cannot."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    gateway.answers["/v1/chat/completions"] = httpx2.Response(200, json=completion(choices=[choice]))
    assert out("chat", "--no-stream", "hello") == "I cannot.\n"


def test_for_other_programs_there_is_a_line_each(gateway: Gateway) -> None:
    assert out("embed", "hello", "--model", "small") == "0.5\n-1.0\n"
    assert gateway.asked[0]["model"] == "small"
    assert out("models") == "claude-3-5-sonnet\ngpt-4o\n"


def test_what_is_known_of_models_is_a_table(gateway: Gateway) -> None:
    """From the edge and LiteLLM, by `GET /v1/models`; an older gateway says less."""
    refuses = {"max_tokens": "max_completion_tokens", "temperature": "drop", "stop": "error"}
    known = {"owned_by": "openai", "price": {"input": 2.0, "output": 0.5}, "refuses": refuses}
    more = [
        {"id": "own", "price": {"output": 3.0}},
        {"id": "none", "price": {"input": 0.0, "output": 0.0}},
    ]
    gateway.answers["/v1/models"] = httpx2.Response(
        200, json={"data": [{"id": "gpt-6", **known, "shutdown_date": "2999-01-14"}, *more, {"id": "old"}]}
    )
    head, *rows = out("models", "--verbose").splitlines()
    assert head.split() == ["model", "provider", "USD", "per", "million", "tokens", "parameters", "ends"]
    ends = "ends on 2999-01-14, no successor is known"
    assert [" ".join(row.split()) for row in rows] == [
        f"gpt-6 openai 2 in, 0.5 out leaves out temperature; refuses stop {ends}",
        "none free",
        "old unknown",
        "own 3 out",
    ]
    assert json.loads(out("models", "--verbose", "--json"))["gpt-6"] == {
        "owner": "openai",
        "price": {"input": 2.0, "output": 0.5},
        "refuses": refuses,
        "shutdown_date": "2999-01-14",
    }


@pytest.mark.parametrize(
    ("known", "said", "noticed"),
    [
        ({"shutdown_date": "2999-01-14", "successor": "x/y"}, "ends on 2999-01-14, x/y will take its place", False),
        ({"shutdown_date": "2999-01-14"}, "ends on 2999-01-14, no successor is known", True),
        ({"shutdown_date": "2025-10-28", "successor": "x/y"}, "ended on 2025-10-28, x/y will take its place", True),
        ({"replaces": "a/b"}, "another model answers in place of a/b, which has ended", False),
        (
            {"replaces": "a/b", "shutdown_date": "2999-01-14", "successor": "x/y"},
            "another model answers in place of a/b, which has ended; ends on 2999-01-14, x/y will take its place",
            False,
        ),
    ],
)
def test_models_that_end_are_reported(
    database: Callable[..., None], gateway: Gateway, known: dict[str, str], said: str, *, noticed: bool
) -> None:
    """Separately from the list, which other programs read. Doctor warns about those that callers notice."""
    models = [{"id": "gpt-4o", **known}, {"id": "claude-3-5-sonnet"}]
    gateway.answers["/v1/models"] = httpx2.Response(200, json={"data": models})
    done = llmctl("models")
    assert (done.stdout, done.stderr) == ("claude-3-5-sonnet\ngpt-4o\n", f"gpt-4o: {said}\n")
    assert json.loads(out("models", "--json")) == ["claude-3-5-sonnet", "gpt-4o"]
    assert f"gpt-4o: {said}" in out("doctor")
    assert ("models" in findings()) is noticed


@pytest.mark.parametrize("arguments", [["chat", " "], ["chat"], ["embed", ""]])
def test_an_empty_question_is_refused(gateway: Gateway, arguments: list[str]) -> None:
    assert llmctl(*arguments).exit_code == 2
    assert gateway.asked == []


class Organizations:
    """The table, as far as commands change it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.row = dataclasses.replace(ORGANIZATION, llm_fallback_model="claude-3-5-sonnet")
        for name in ("create", "get", "listed", "set_models"):
            monkeypatch.setattr(organizations, name, getattr(self, name))

    def create(
        self, name: str, *, model: str | None, fallback: str | EllipsisType | None
    ) -> organizations.Organization:
        fallback = self.row.llm_fallback_model if fallback is ... else fallback
        self.row = dataclasses.replace(self.row, name=name, llm_model=model or "gpt-4o", llm_fallback_model=fallback)
        return self.row

    def get(self, _: str) -> organizations.Organization:
        return self.row

    def listed(self) -> list[organizations.Organization]:
        return [self.row]

    def set_models(self, _: str, *, model: str, fallback: str | None) -> organizations.Organization:
        self.row = dataclasses.replace(self.row, llm_model=model, llm_fallback_model=fallback)
        return self.row


@pytest.fixture
def table(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Organizations:
    return Organizations(monkeypatch)


ID = str(ORGANIZATION.id)


def test_organizations_are_a_table(table: Organizations) -> None:
    header, row = out("org", "list").splitlines()
    assert header.split() == ["id", "name", "model", "fallback"]
    assert row.split() == [ID, "acme", "gpt-4o", "claude-3-5-sonnet"]
    assert [each["name"] for each in json.loads(out("org", "list", "--json"))] == ["acme"]
    assert json.loads(out("org", "show", ID, "--json"))["id"] == ID
    assert out("org", "create", "new").splitlines()[1].split() == [ID, "new", "gpt-4o", "claude-3-5-sonnet"]


@pytest.mark.parametrize(
    ("options", "fallback"),
    [([], "claude-3-5-sonnet"), (["--fallback", "gpt-4o", "--force"], "gpt-4o"), (["--no-fallback"], None)],
)
@pytest.mark.parametrize("command", [["set-model", ID, "gpt-4o"], ["create", "new"]])
def test_a_fallback_stays_unless_it_is_named(
    table: Organizations, command: list[str], options: list[str], fallback: str | None
) -> None:
    """For a new organization, the database's default."""
    out("org", *command, *options)
    assert table.row.llm_fallback_model == fallback


@pytest.mark.parametrize("command", [["set-model", ID, "gpt-4o"], ["create", "new"]])
def test_two_words_for_the_fallback_exclude_each_other(table: Organizations, command: list[str]) -> None:
    assert llmctl("org", *command, "--fallback", "gpt-4o", "--no-fallback").exit_code == 2
    assert table.row.name == "acme"


def test_a_model_that_is_not_served_needs_force(table: Organizations) -> None:
    """It may be a typo; the message lists the served models."""
    for arguments in (["set-model", ID, "gpt-5"], ["create", "new", "--fallback", "gpt-5"]):
        refused = llmctl("org", *arguments)
        assert refused.exit_code == 2
        assert "gpt-5" in refused.stderr
        assert "claude-3-5-sonnet" in refused.stderr
        assert table.row.name == "acme"
        assert llmctl("org", *arguments, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("command", "doubt"),
    [
        (["set-model", ID, "claude-3-5-sonnet"], "has no fallback"),
        (["set-model", ID, "gpt-4o", "--fallback", "gpt-4o"], "has no fallback"),
        (["create", "new"], "names retired, which the gateway does not serve"),
    ],
)
def test_models_that_were_not_named_are_checked_too(table: Organizations, command: list[str], doubt: str) -> None:
    """The change is made: for a new organization, only the database knows its defaults."""
    if "create" in command:
        table.row = dataclasses.replace(table.row, llm_fallback_model="retired")
    changed = llmctl("org", *command)
    assert changed.exit_code == 0
    assert doubt in changed.stderr
    assert f"llmctl org set-model {ID} " in changed.stderr
    assert doubt not in llmctl("org", *command, "--force").stderr


def test_a_server_that_is_not_a_gateway_is_named_as_such(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.answers["/v1/models"] = httpx2.Response(200, text="<html>")
    assert "the server at http://gateway.test:4000 is not a gateway" in ended(1, capsys, "models")


def ended(code: int, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the program says that ends so."""
    sys.argv[1:] = arguments
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == code
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


@pytest.fixture(autouse=True)
def _arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["llmctl"])


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (KeyboardInterrupt(), 130),
        (ValueError("an id is a UUID"), 2),
        (DatabaseUnavailableError("run `llmctl migrate up`"), 1),
        (psycopg.OperationalError("refused"), 1),
        (migrations.MigrationError("0002 is missing"), 1),
        (PermissionError(13, "Permission denied", "backups"), 1),
    ],
)
def test_what_a_user_can_cause_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: BaseException, code: int
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr(organizations, "listed", fail)
    said = ended(code, capsys, "org", "list")
    told = f"backups: {raised.strerror}" if isinstance(raised, OSError) else raised
    assert said.strip() == (f"llmctl: {told}" if str(raised) else "")


def test_what_nobody_expects_has_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(organizations, "listed", fail)
    sys.argv[1:] = ["org", "list"]
    with pytest.raises(ZeroDivisionError):
        cli.main()


class Database:
    """What the doctor asks a database itself: how many tables of LiteLLM's are in it."""

    info = SimpleNamespace(server_version=140000)
    """Of which PostgreSQL does not know the C library: tests/integration/test_postgres.py asks one that does."""

    def __init__(self, foreign: int) -> None:
        self._foreign = foreign

    def execute(self, _: str) -> Self:
        return self

    def fetchone(self) -> tuple[int]:
        return (self._foreign,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def database(table: Organizations, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A database that is well but for what is named."""

    def make(
        *,
        foreign: int = 0,
        pending: tuple[migrations.Migration, ...] = (),
        fails: Exception | None = None,
        beside: bool = False,
    ) -> None:
        def connect(*_: object, **__: object) -> Database:
            if fails:
                raise fails
            return Database(foreign)

        monkeypatch.setattr(psycopg, "connect", connect)
        monkeypatch.setattr(migrations, "status", lambda *_: migrations.Status((), pending))
        monkeypatch.setattr(litellm_check, "server_at", lambda *_: SimpleNamespace(litellm_beside=beside))

    make()
    return make


def findings() -> dict[str, str]:
    """The doctor's findings other than "well", with what fixes them."""
    done = llmctl("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == int("failure" in {each["status"] for each in found})
    return {each["check"]: f"{each['detail']}: {each['fix']}" for each in found if each["status"] != "ok"}


def test_the_doctor_finds_nothing_where_all_is_well(database: Callable[..., None]) -> None:
    assert findings() == {}
    report = out("doctor")
    assert "OK      models: claude-3-5-sonnet, gpt-4o\n" in report
    assert "OK      organizations: 1, all with models that are served\n" in report


def test_a_database_of_litellms_that_no_backup_would_have_is_found(database: Callable[..., None]) -> None:
    database(beside=True)
    assert findings() == {
        "LiteLLM's database": "LiteLLM has one, and LITELLM_DATABASE_URL is not set, so no backup has it: "
        "./pulumiw up writes it to .env"
    }


def test_a_gateway_that_does_not_report_its_version_is_healthy(
    database: Callable[..., None], gateway: Gateway
) -> None:
    gateway.answers["/health/readiness"] = httpx2.Response(200, json={"status": "healthy", "db": "Not connected"})
    assert findings() == {}
    assert "does not report it" in out("doctor")


def test_the_doctor_wants_settings_first(database: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LITELLM_API_KEY")
    assert [*findings()] == ["settings"]
    assert findings()["settings"].endswith(": make up")


@pytest.mark.parametrize(
    ("path", "answer", "check", "said"),
    [
        ("/health/readiness", error(503), "gateway", "it answers with status 503: ./pulumiw up --refresh"),
        ("/health/readiness", httpx2.Response(200, text="hello"), "gateway", "is not a gateway: check LITELLM_URL"),
        ("/health/readiness", httpx2.Response(200, json=[]), "gateway", "is not a gateway: check LITELLM_URL"),
        (
            "/health/readiness",
            httpx2.Response(200, json={"litellm_version": "1.54.0"}),
            "version",
            "LiteLLM 1.54.0 is running, but Pulumi.yaml pins 1.55.0: ./pulumiw up, unless litellmImage",
        ),
        ("/v1/models", error(401), "key", "the gateway refuses it with status 401: take LITELLM_API_KEY from .env"),
        ("/v1/models", httpx2.Response(200, json={"data": []}), "models", "none is served: ./pulumiw config set"),
        ("/v1/models", httpx2.Response(200, json={"data": 1}), "gateway", "is not a gateway: check LITELLM_URL"),
    ],
)
def test_the_doctor_finds_what_is_wrong_with_a_gateway(  # noqa: PLR0913, PLR0917 -- a row has these columns
    gateway: Gateway, database: Callable[..., None], path: str, answer: httpx2.Response, check: str, said: str
) -> None:
    gateway.answers[path] = answer
    found = findings()
    assert [*found] == [check]
    assert said in found[check]


def test_the_doctor_knows_that_nothing_answers(gateway: Gateway, database: Callable[..., None]) -> None:
    gateway.is_there = False
    assert findings() == {"gateway": "nothing answers at http://gateway.test:4000: ./pulumiw up --refresh"}


@pytest.mark.parametrize(
    ("state", "check", "said"),
    [
        (
            {"fails": psycopg.OperationalError()},
            "database",
            "it cannot be used (OperationalError): check DATABASE_URL",
        ),
        ({"foreign": 3}, "own database", "may drop the app's: point DATABASE_URL at a separate database for the app"),
        (
            {"pending": (migrations.Migration(3, "more", ""),)},
            "migrations",
            "pending: 0003_more.sql: llmctl migrate up",
        ),
    ],
)
def test_the_doctor_finds_what_is_wrong_with_a_database(
    database: Callable[..., None], state: dict[str, Any], check: str, said: str
) -> None:
    database(**state)
    found = findings()
    assert [*found] == [check]
    assert said in found[check]


def test_the_doctor_does_without_a_database(database: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Users who only ask models need none."""
    monkeypatch.delenv("DATABASE_URL")
    assert [*findings()] == ["database"]
    assert llmctl("doctor").exit_code == 0


def test_the_doctor_tells_of_migrations_that_contradict(
    database: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise migrations.MigrationError("0002_a.sql was changed after it was applied")

    monkeypatch.setattr(migrations, "status", fail)
    assert findings()["migrations"].startswith("0002_a.sql was changed")


def test_the_doctor_looks_at_organizations(
    database: Callable[..., None], table: Organizations, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.row = dataclasses.replace(table.row, llm_model="gone")
    assert findings() == {
        "organizations": f"acme names gone, which the gateway does not serve: llmctl org set-model {ID} MODEL"
    }

    def fail() -> None:
        raise DatabaseUnavailableError("the database has no organizations")

    monkeypatch.setattr(organizations, "listed", fail)
    assert findings()["organizations"] == "the database has no organizations: llmctl migrate up"


def test_migrations_are_shown_applied_and_made(database: Callable[..., None], tmp_path: Path) -> None:
    folder = ("--folder", str(tmp_path))
    made = out("migrate", "new", "Add budgets", *folder).strip()
    assert made == str(tmp_path / "0001_add_budgets.sql")
    assert out("migrate", "check", *folder) == ""
    database(pending=tuple(migrations.read(tmp_path)))
    assert out("migrate", "status", *folder) == "0001_add_budgets.sql  pending\n"
    assert json.loads(out("migrate", "status", "--json")) == [{"file": "0001_add_budgets.sql", "applied_at": None}]
    pending = llmctl("migrate", "check", *folder)
    assert (pending.exit_code, pending.stdout) == (1, "")
    assert "0001_add_budgets.sql is pending: llmctl migrate up" in pending.stderr
