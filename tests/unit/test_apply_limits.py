"""How a replica's program sets a client's limits in its LiteLLM, with the peculiarities of each release."""

from __future__ import annotations

import http.server
import importlib
import json
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.stack_config import KEY, OTHER_KEY, PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

RELEASES = ("1.55.0", "1.108.14")
CLIENT = "batch"


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    """The program, as it finds the files beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "litellm"))
        yield importlib.import_module("apply_limits")


class Handler(http.server.BaseHTTPRequestHandler):
    """A LiteLLM with the guard before it, and one key at most."""

    state: SimpleNamespace

    def do_GET(self) -> None:
        assert self.headers["Authorization"] == f"Bearer {KEY}"
        state = self.state
        if self.path == "/health/readiness":
            self.answer(200, {"db": state.database})
        elif self.path == "/v1/models":
            assert self.headers["x-llm-gateway-call"]
            state.calls.append(("made", self.headers["x-llm-gateway-client"]))
            state.remembered -= 1
            if state.remembered < 0:
                state.row = {"models": []}
            self.answer(200, {"data": []})
        elif state.row is not None:
            self.answer(200, {"info": state.row})
        elif state.deleted:
            self.answer(200, {"info": {"rpm_limit": 5, "deleted_at": "2026-11-29"}})
        else:
            self.answer(404, {"error": "Key not found in database"})

    def do_POST(self) -> None:
        state = self.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body.pop("key") == state.token
        state.calls.append(body)
        if state.version == "1.55.0" and body.get("budget_duration", "") is None:
            del body["budget_duration"]
        if not state.refuses:
            state.row = {**state.row, **body}
        self.answer(500 if state.refuses or state.version == "1.55.0" else 200, {"error": "why"})

    def answer(self, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(params=RELEASES)
def litellm(
    request: pytest.FixtureRequest, program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SimpleNamespace]:
    """One that runs, and the files of its container."""
    state = SimpleNamespace(
        version=request.param, row=None, deleted=False, remembered=0, refuses=False, database="connected", calls=[]
    )
    state.token = program.keys.hash_of(program.keys.key_of(CLIENT, OTHER_KEY))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"state": state}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    (tmp_path / "LITELLM_MASTER_KEY").write_text(f"{KEY}\n")
    (tmp_path / "LITELLM_SALT_KEY").write_text(OTHER_KEY)
    (tmp_path / "cmdline").write_text(f"python3\0entrypoint.py\0--port\0{server.server_address[1]}\0")
    monkeypatch.setattr(program, "SECRETS", tmp_path)
    monkeypatch.setattr(program, "FIRST_PROCESS", tmp_path / "cmdline")
    monkeypatch.setattr(program, "WAIT_SECONDS", 0)
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def run(program: ModuleType, capsys: pytest.CaptureFixture[str], **limits: Any) -> Any:
    """What the program prints that applies limits."""
    program.main(CLIENT, json.dumps({**dict.fromkeys(program.LIMITS), **limits}))
    return json.loads(capsys.readouterr().out)


def test_a_client_that_has_not_asked_yet_gets_its_key_as_by_its_first_request(
    program: ModuleType, litellm: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the replica remembers a key that somebody deleted."""
    litellm.deleted, litellm.remembered = litellm.version == "1.108.14", 2
    printed = run(program, capsys, rpm_limit=5, models=["gpt-4o"])
    assert printed == {
        "database": True,
        "limits": {**dict.fromkeys(program.LIMITS), "rpm_limit": 5, "models": ["gpt-4o"]},
    }
    assert litellm.calls == [*[("made", CLIENT)] * 3, {"rpm_limit": 5, "models": ["gpt-4o"]}]


def test_only_what_differs_is_sent(
    program: ModuleType, litellm: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other requests would restart a budget's period. The answer of 1.55.0 does not say what it did."""
    litellm.row = {"max_budget": 5.0, "budget_duration": "30d", "rpm_limit": 5, "models": [], "spend": 3.0}
    for _ in range(2):
        assert run(program, capsys, max_budget=5, budget_duration="30d", rpm_limit=6)["limits"]["rpm_limit"] == 6
    assert litellm.calls == [{"rpm_limit": 6}]
    assert litellm.row["spend"] == 3.0


def test_limits_are_taken_away_and_the_key_stays(
    program: ModuleType, litellm: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """1.55.0 cannot remove a period, so it gets one that does not end; with either release it counts as none."""
    litellm.row = {"max_budget": 5.0, "budget_duration": "30d", "models": ["gpt-4o"], "spend": 3.0}
    none = dict.fromkeys(program.LIMITS)
    assert run(program, capsys) == {"database": True, "limits": none}
    assert litellm.row == {
        "max_budget": None,
        "budget_duration": program.NEVER if litellm.version == "1.55.0" else None,
        "models": [],
        "spend": 3.0,
    }
    litellm.version = "1.108.14"
    assert run(program, capsys)["limits"] == none
    program.main(CLIENT)
    assert json.loads(capsys.readouterr().out)["limits"] == none


def test_a_key_that_is_not_there_is_not_made_to_have_no_limits(
    program: ModuleType, litellm: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(program, capsys)["limits"] == dict.fromkeys(program.LIMITS)
    program.main(CLIENT)
    assert json.loads(capsys.readouterr().out) == {"database": True, "limits": None}
    assert litellm.calls == []


def test_a_refusal_is_told_without_a_key(
    program: ModuleType, litellm: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    litellm.row, litellm.refuses = {"models": []}, True
    with pytest.raises(SystemExit, match=r"did not take the limits of batch \(500\): .*why") as refused:
        run(program, capsys, rpm_limit=5)
    assert not any(key in str(refused.value) for key in (KEY, OTHER_KEY, litellm.token))


def test_a_litellm_without_a_database_is_asked_nothing_more(
    program: ModuleType, litellm: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    litellm.database = "Not connected"
    assert run(program, capsys, rpm_limit=5) == {"database": False, "limits": None}
    assert litellm.calls == []
