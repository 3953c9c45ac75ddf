"""`llmctl keys` and `teams`: what LiteLLM is asked, how its answers are shown, and who sees a key.

The answers are LiteLLM's own, of both releases, with another key in the place of the one that was made.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from console import cli, containers, edge_statistics, keys_cli, management, teams_cli
from console.management import ManagementError
from console.programs import ProgramError
from tests.stack_config import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typer.testing import Result

RELEASES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("management_answers.json").read_text(encoding="utf-8")
)
NOTHING: dict[str, Any] = {"/spend/keys": [200, []], "/team/list": [200, []]}


class LiteLLM:
    """A stack's LiteLLM, as far as `docker exec` reaches it: its answers by path, and what it was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = dict(answers)
        self.then: dict[str, dict[str, Any]] = {}
        """What it answers other questions once it was asked something."""
        self.commands: list[list[str]] = []
        self.asked: list[list[Any]] = []

    def output(self, command: list[str], *, given: str, **_: Any) -> str:
        self.commands.append(command)
        requests = json.loads(given)
        self.asked += requests
        found = [self.answers[path] for _, path, _ in requests]
        answered = "" if "nothing" in found else json.dumps(found)
        for _, path, _ in requests:
            self.answers |= self.then.get(path, {})
        return answered

    def bodies(self, path: str) -> list[Any]:
        return [body for _, asked, body in self.asked if asked == path]


@pytest.fixture(params=RELEASES)
def litellm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LiteLLM:
    made = LiteLLM(RELEASES[request.param])
    edge = replace(replica(container="the-edge"), name="edge", kind=containers.EDGE)
    stack = containers.Stack(name="dev", parts=(replica(), edge), short=(), unseen="")
    monkeypatch.setattr(edge_statistics, "output", lambda *_, **__: "app\n")
    monkeypatch.setenv("LITELLM_URL", "http://gateway.test:4000")
    monkeypatch.setenv("LITELLM_API_KEY", KEY)
    monkeypatch.setattr(management, "found", lambda *_, **__: (stack, None))
    monkeypatch.setattr(management, "output", made.output)
    for module in (keys_cli, teams_cli):
        monkeypatch.setattr(module, "check_served", lambda *_, **__: None)
    return made


def replica(**changes: Any) -> containers.Part:
    known: dict[str, Any] = {"state": "healthy", "up": True, "since": None, "restarts": 0, "image": "litellm"}
    more: dict[str, Any] = {"addresses": (), "container": "one", "look": "", "logs": ()}
    return containers.Part(name="litellm-1", kind=containers.REPLICA, **{**known, **more, **changes})


def llmctl(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, list(arguments))


def refusal(*arguments: str) -> str:
    """Why a command is refused."""
    failed = llmctl(*arguments)
    assert isinstance(failed.exception, ManagementError), failed.output
    return str(failed.exception)


def test_a_key_is_made_and_printed_this_once(litellm: LiteLLM) -> None:
    """Only the key is on standard output, so that a program can store it. Its limits have LiteLLM's names."""
    litellm.then["/key/generate"] = {"/spend/keys": litellm.answers["/spend/keys"]}
    litellm.answers["/spend/keys"] = [200, []]
    made = litellm.answers["/key/generate"][1]["key"]
    limits = ("--max-budget", "1.5", "--budget-duration", "1mo", "--rpm-limit", "7", "--model", "gpt-4o")
    shown = llmctl("keys", "create", "batch", "--team", "research", "--duration", "90d", *limits)
    assert (shown.exit_code, shown.stdout) == (0, f"{made}\n")
    assert made not in shown.stderr
    [body] = litellm.bodies("/key/generate")
    team = litellm.answers["/team/list"][1][0]["team_id"]
    assert body == {
        "key_alias": "batch",
        "team_id": team,
        "models": ["gpt-4o"],
        "max_budget": 1.5,
        "budget_duration": "1mo",
        "rpm_limit": 7,
        "duration": "90d",
    }


@pytest.mark.parametrize("then", [[500, {"error": "no"}], "nothing", [200, []]])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_key_that_was_made_is_printed_whatever_fails_after_it(
    litellm: LiteLLM, options: tuple[str, ...], then: Any
) -> None:
    """It cannot be read again."""
    of_another = litellm.answers["/spend/keys"]
    litellm.then["/key/generate"] = {"/spend/keys": then}
    litellm.answers["/spend/keys"] = [200, of_another[1][:1]]
    made = litellm.answers["/key/generate"][1]
    shown = llmctl("keys", "create", "batch", "--team", "research", *options)
    assert shown.exit_code == 0, shown.exception
    if options:
        told = json.loads(shown.stdout)
        assert (told["key"], told["token"], told["max_budget"]) == (made["key"], made["token_id"], 1.5)
    else:
        assert shown.stdout == f"{made['key']}\n"


def test_a_key_that_may_have_been_made_is_named(litellm: LiteLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example if the engine ended before the answer."""
    litellm.answers["/spend/keys"] = [200, []]

    def ended(command: list[str], *, given: str, **more: Any) -> str:
        if "/key/generate" in given:
            raise ProgramError("docker failed: it ended")
        return litellm.output(command, given=given, **more)

    monkeypatch.setattr(management, "output", ended)
    failed = llmctl("keys", "create", "x")
    assert isinstance(failed.exception, ProgramError)
    assert "it ended. If `llmctl keys list` has x now, nobody knows that key: llmctl keys delete x" in str(
        failed.exception
    )


def test_a_key_is_not_called_as_a_client_of_the_stack_config(
    litellm: LiteLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiteLLM has a client's key only from its first request on, but the edge knows the client before."""
    litellm.answers["/spend/keys"] = [200, []]
    asked = []

    def edge(command: list[str], *, given: str, **_: Any) -> str:
        asked.append((command[3], given))
        return "\napp\nnightly\n\n"

    monkeypatch.setattr(edge_statistics, "output", edge)
    assert refusal("keys", "create", "nightly").startswith("nightly is a client of the stack config")
    assert asked == [("the-edge", edge_statistics.NAMES_QUESTION)]
    assert not [path for method, path, _ in litellm.asked if method == "POST"]
    monkeypatch.setattr(edge_statistics, "output", failing)
    litellm.then["/key/generate"] = {"/spend/keys": [200, []]}
    assert llmctl("keys", "create", "nightly").exit_code == 0


def failing(*_: Any, **__: Any) -> str:
    raise ProgramError("no edge answers")


def test_lists_show_how_a_key_begins_and_ends_and_what_it_may(litellm: LiteLLM) -> None:
    shown = llmctl("keys", "list")
    assert shown.exit_code == 0
    header, batch, plain = (line.split() for line in shown.stdout.splitlines())
    key_name = litellm.answers["/key/generate"][1]["key_name"]
    assert header[:3] == ["alias", "key", "team"]
    assert batch[:3] == ["batch", key_name, "research"]
    assert " ".join(batch[3:]).startswith("0.000000 1.5 per 1mo 7 - gpt-4o blocked ")
    assert plain[0] == "plain"
    assert plain[-1] == "never"
    for shown in (llmctl("keys", "list", "--json"), llmctl("keys", "show", "batch", "--json")):
        assert litellm.answers["/key/generate"][1]["key"] not in shown.stdout
        assert "batch" in shown.stdout


def test_json_has_litellms_names(litellm: LiteLLM) -> None:
    """Whatever else the release has."""
    key = json.loads(llmctl("keys", "show", "batch", "--json").stdout)
    row = next(row for row in litellm.answers["/spend/keys"][1] if row["key_alias"] == "batch")
    same = (
        "key_alias",
        "key_name",
        "token",
        "team_id",
        "max_budget",
        "budget_duration",
        "rpm_limit",
        "models",
        "spend",
    )
    assert {name: key[name] for name in same} == {name: row[name] for name in same}
    assert (key["team_alias"], key["blocked"]) == ("research", True)
    team = json.loads(llmctl("teams", "show", "research", "--json").stdout)
    assert (team["keys"], team["max_budget"], team["tpm_limit"]) == (["batch"], 5.0, 10000)


def test_a_team_is_made_and_shown(litellm: LiteLLM) -> None:
    litellm.then["/team/new"] = {"/team/list": litellm.answers["/team/list"]}
    team = litellm.answers["/team/list"][1][0]["team_id"]
    litellm.answers |= {**NOTHING, "/team/new": [200, {**litellm.answers["/team/new"][1], "team_id": team}]}
    limits = ("--max-budget", "5", "--budget-duration", "30d", "--tpm-limit", "10000")
    shown = llmctl("teams", "create", "research", *limits, "-m", "gpt-4o", "-m", "local")
    assert shown.exit_code == 0, shown.exception
    assert "gpt-4o, local" in shown.stdout
    [body] = litellm.bodies("/team/new")
    assert body == {
        "team_alias": "research",
        "models": ["gpt-4o", "local"],
        "max_budget": 5.0,
        "budget_duration": "30d",
        "tpm_limit": 10000,
    }


def test_a_key_is_blocked_by_its_hash(litellm: LiteLLM) -> None:
    """LiteLLM 1.55.0 answers 500 when it has done that: what counts is whether the key is blocked then."""
    shown = llmctl("keys", "block", "batch")
    assert shown.exit_code == 0, shown.exception
    assert "key batch is blocked" in shown.stderr
    token = next(row["token"] for row in litellm.answers["/spend/keys"][1] if row["key_alias"] == "batch")
    assert litellm.bodies("/key/block") == [{"key": token}]
    litellm.answers["/key/unblock"] = litellm.answers["/key/block"]
    assert "LiteLLM did not unblock the key" in refusal("keys", "unblock", "batch")


def test_what_is_deleted_is_agreed_to(litellm: LiteLLM) -> None:
    assert llmctl("keys", "delete", "plain").exit_code == 2
    assert llmctl("teams", "delete", "research").exit_code == 2
    assert litellm.bodies("/key/delete") == litellm.bodies("/team/delete") == []
    assert llmctl("keys", "delete", "plain", "--yes").exit_code == 0
    token = next(row["token"] for row in litellm.answers["/spend/keys"][1] if row["key_alias"] == "plain")
    assert litellm.bodies("/key/delete") == [{"keys": [token]}]
    gone = llmctl("teams", "delete", "research", "--yes")
    assert (gone.exit_code, litellm.bodies("/team/delete")) == (
        0,
        [{"team_ids": [litellm.answers["/team/list"][1][0]["team_id"]]}],
    )
    assert "its keys (batch)" in gone.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("create", "batch"), "there is a key batch already: llmctl keys show batch"),
        (("create", "x", "--team", "nobody"), "no team is called nobody: llmctl teams list"),
        (("create", "x", "--team", "research", "-m", "o3"), "team research may not ask o3, only gpt-4o, local"),
        (("create", "x", "--budget-duration", "30d"), "--budget-duration needs --max-budget"),
        (("create", "x", "--max-budget", "1", "--budget-duration", "soon"), "soon is not a duration: use 30d"),
        (("create", "x", "--duration", "2w"), "2w is not a duration: use 30d"),
        (("create", "=1+1"), "'=1+1' is not a valid name"),
        (("show", "nobody"), "no key has the alias nobody: llmctl keys list"),
        (("block", "sk-1234"), "name a key by its alias (llmctl keys list): a command line can be read by all"),
    ],
)
def test_what_litellm_would_misread_is_refused(litellm: LiteLLM, arguments: tuple[str, ...], why: str) -> None:
    """Every release accepts keys for teams and models that do not exist, and 1.55.0 has no weeks."""
    assert refusal("keys", *arguments).startswith(why)
    assert not [path for method, path, _ in litellm.asked if method == "POST"]


def test_what_two_things_are_called_needs_an_id(litellm: LiteLLM) -> None:
    """LiteLLM lets two teams have one alias."""
    [team] = litellm.answers["/team/list"][1]
    litellm.answers["/team/list"] = [200, [team, {**team, "team_id": "another"}]]
    assert "several have this name: give the id of one" in refusal("teams", "show", "research")
    assert llmctl("teams", "show", "another").exit_code == 0


@pytest.mark.parametrize("command", [("keys", "list"), ("keys", "create", "x"), ("teams", "list")])
def test_a_stack_without_the_database_is_refused_with_the_command_that_turns_it_on(
    litellm: LiteLLM, command: tuple[str, ...]
) -> None:
    litellm.answers["/health/readiness"] = [200, {"status": "healthy", "db": "Not connected"}]
    assert "./pulumiw config set litellmDatabase true && ./pulumiw up" in refusal(*command)
    litellm.answers["/health/readiness"] = [503, {"error": {"message": "the database is away"}}]
    assert "LiteLLM does not reach its database (it says 'the database is away')" in refusal(*command)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("twice", "Key with alias 'batch' already exists. Unique key aliases across all keys are required."),
        ("no number", "max_budget: Input should be a valid number, unable to parse string as a number"),
        ("no duration", "Invalid duration format"),
        ("no such team", "Team not found, passed team id: nope."),
        ("no such team to block", "Team not found, passed team_id=nope"),
        ("no such key", "Key not found in database"),
    ],
)
@pytest.mark.parametrize("release", RELEASES)
def test_litellms_refusals_are_one_sentence(release: str, case: str, said: str) -> None:
    """It has five forms for them."""
    assert management.sentence(RELEASES[release]["refused"][case][1]) == said


def test_a_refusal_of_litellm_is_told(litellm: LiteLLM) -> None:
    litellm.answers |= {**NOTHING, "/key/generate": litellm.answers["refused"]["no duration"]}
    assert refusal("keys", "create", "x") == "LiteLLM refused: Invalid duration format"


def test_no_request_is_in_a_command(litellm: LiteLLM) -> None:
    """A command line can be read by all; a key may be in a request and is in answers."""
    llmctl("keys", "list")
    llmctl("keys", "delete", "batch", "--yes")
    assert len(litellm.commands) > 3
    for command in litellm.commands:
        assert command == ["docker", "exec", "--interactive", "one", "python3", "-I", "-c", management.PROGRAM]


def test_a_replica_of_another_engine_is_asked_there() -> None:
    """A Swarm's manager knows the tasks of all nodes, but reaches only its own containers."""
    far = containers.Stack(name="prod", parts=(replica(container=None),), short=(), unseen="")
    with pytest.raises(ProgramError, match="DOCKER_HOST"):
        management.of_stack(far)
    down = containers.Stack(name="prod", parts=(replica(up=False),), short=(), unseen="")
    with pytest.raises(ProgramError, match="llmctl status"):
        management.of_stack(down)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as LiteLLM does whom it knows: with rows, one of its own key among them."""

    def answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        given = self.rfile.read(length).decode()
        known = self.headers["authorization"] == f"Bearer {KEY}"
        own = hashlib.sha256(KEY.encode()).hexdigest()
        rows = [{"token": own}, {"token": "another", "given": given}]
        body = {"/rows": json.dumps(rows), "/text": "Internal Server Error"}[self.path] if known else "{}"
        self.send_response(200 if known else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = answer  # noqa: N815 -- as the standard library names them

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_program_asks_with_the_containers_key(port: int, tmp_path: Path) -> None:
    """It is run as text by whatever Python the replica has, and finds the port where LiteLLM was given it."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "command").write_text(f"python3\0entrypoint.py\0--port\0{port}\0")
    program = management.PROGRAM
    for place, file in (("/run/secrets/LITELLM_MASTER_KEY", "key"), ("/proc/1/cmdline", "command")):
        assert place in program
        program = program.replace(place, str(tmp_path / file))
    requests = [["GET", "/rows", None], ["POST", "/rows", {"a": 1}], ["GET", "/text", None]]
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], input=json.dumps(requests), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [
        [200, [{"token": "another", "given": ""}]],
        [200, [{"token": "another", "given": '{"a": 1}'}]],
        [200, "Internal Server Error"],
    ]
    assert done.stderr == ""
