"""What a replica logs and counts for each answer: these fields and no others, and no invented numbers."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.stack_config import KEY, PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIELDS = [
    *("time", "client", "call_id", "organization", "model", "answered_by", "provider", "status", "error", "stream"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "cost", "estimated"),
]
PROMPT = "what nobody else may read"
PIPE_BYTES = 4096
"""What Linux writes to a pipe undivided."""


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """The programs of a replica, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "litellm"))
        yield {name: importlib.import_module(name) for name in ("answers", "usage")}


@pytest.fixture
def event(modules: Any) -> Callable[..., Any]:
    """Make the event of what LiteLLM tells, with changes to it."""

    def make(*, failed: bool = False, version: str = "1.108.14", told: Any = (), **exchange: Any) -> Any:
        known = {"client": "app", "call_id": "call-1", "organization": "acme", "model": "fast", **exchange}
        kwargs = {
            "messages": [{"role": "user", "content": PROMPT}],
            "api_key": KEY,
            "model": "gpt-4o",
            "custom_llm_provider": "openai",
            "litellm_params": {"metadata": {"deployment": "openai/gpt-4o"}},
            "exception": TimeoutError(PROMPT) if failed else None,
            "standard_logging_object": {
                "messages": PROMPT,
                "response": PROMPT,
                "prompt_tokens": 7,
                "completion_tokens": 5,
                "total_tokens": 12,
                "response_cost": 0.25,
                **dict(told),
            },
        }
        return modules["usage"].event_of(kwargs, modules["answers"].Exchange(**known), failed=failed, version=version)

    return make


def tell(modules: Any, event: Any) -> None:
    modules["usage"].Totals(replica="one", models=list).tell(event)


def test_a_line_has_these_fields_and_no_other(event: Callable[..., Any], modules: Any, capfd: Any) -> None:
    """None of them contains a prompt, an answer, a key or an error's text."""
    for each in (event(), event(failed=True)):
        tell(modules, each)
        line = capfd.readouterr().out
        assert list(json.loads(line)) == ["event", *FIELDS]
        assert PROMPT not in line
        assert KEY not in line


def test_a_line_is_written_undivided_whatever_its_fields_are(
    event: Callable[..., Any], modules: Any, capfd: Any
) -> None:
    """Here with the longest fields that the gateway accepts, of the characters that are longest in JSON."""
    longest = event(model="\u0001" * 500, organization="o" * 100, client="c" * 32, call_id="i" * 36)
    tell(modules, longest)
    line = capfd.readouterr().out
    assert line.count("\n") == 1
    assert len(line.encode()) <= PIPE_BYTES


def test_an_answer_is_recorded_with_who_asked_for_what_and_who_answered(event: Callable[..., Any]) -> None:
    made = dataclasses.asdict(event())
    assert made.pop("time").endswith("Z")
    assert made == {
        "client": "app",
        "call_id": "call-1",
        "organization": "acme",
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


@pytest.mark.parametrize(("told", "cost"), [({}, 0.25), ({"response_cost": 0.0}, None), ({"cache_hit": True}, 0.0)])
def test_a_cost_of_nothing_is_unknown_unless_a_cache_answered(
    event: Callable[..., Any], told: dict[str, Any], cost: float | None
) -> None:
    """LiteLLM reports 0 for a model without a price."""
    assert event(told=told).cost == cost


def test_tokens_that_nobody_counted_are_unknown(event: Callable[..., Any]) -> None:
    made = event(told={"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "response_cost": 0.0})
    assert (made.prompt_tokens, made.completion_tokens, made.total_tokens, made.cost) == (None, None, None, None)


def test_a_failed_try_tells_the_kind_of_error_and_no_numbers(event: Callable[..., Any]) -> None:
    made = event(failed=True)
    assert (made.status, made.error) == ("failure", "TimeoutError")
    assert (made.prompt_tokens, made.completion_tokens, made.total_tokens, made.cost) == (None, None, None, None)


def test_a_stream_is_marked_where_its_tokens_were_counted_here(event: Callable[..., Any]) -> None:
    """LiteLLM 1.55.0 counts every stream's tokens itself, later releases only if the provider did not."""
    assert event(stream=True, version="1.55.0").estimated
    assert not event(stream=False, version="1.55.0").estimated
    assert event(stream=True, estimated=True).estimated
    assert not event(stream=True).estimated


def test_a_caller_who_left_is_recorded(event: Callable[..., Any]) -> None:
    assert event(left=True).status == "left"


class Stream:
    """LiteLLM's stream of an answer, as far as it is asked where its caller left."""

    def __init__(self, *, in_lane: bool, ended: bool = False, fails: bool = False) -> None:
        self.in_lane, self.sent_last_chunk, self.fails = in_lane, ended, fails
        self.told: list[tuple[str, object]] = []
        self.logging_obj = self

    async def report_left(self) -> bool:
        if self.fails:
            raise ValueError(PROMPT)
        if self.in_lane:
            self.told.append(("lane", None))
        return self.in_lane

    def finish_reason_handler(self) -> str:
        return "the end"

    async def async_success_handler(self, chunk: object) -> None:
        self.told.append(("async", chunk))

    def success_handler(self, chunk: object) -> None:
        self.told.append(("thread", chunk))


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (Stream(in_lane=True), [("lane", None)]),
        (Stream(in_lane=False), [("async", "the end"), ("thread", "the end")]),
        (Stream(in_lane=False, ended=True), []),
        (Stream(in_lane=True, fails=True), []),
    ],
    ids=["in the lane", "in LiteLLM's own way", "ended", "fails"],
)
def test_litellm_is_told_of_the_end_of_a_stream_that_is_left(
    modules: Any, stream: Stream, told: list[tuple[str, object]]
) -> None:
    """As if it had ended there: all of LiteLLM's callbacks run, once. An error in that does not reach the caller."""
    asyncio.run(modules["usage"].left(modules["answers"].Exchange(left=True, wrapper=stream), None))
    assert stream.told == told


def test_who_leaves_before_a_stream_has_begun_leaves_nothing_to_tell(modules: Any) -> None:
    asyncio.run(modules["usage"].left(modules["answers"].Exchange(left=True), None))


@pytest.fixture
def totals(modules: Any, event: Callable[..., Any]) -> Any:
    """Counters of a replica that serves `fast`."""
    made = modules["usage"].Totals(replica="one", models=lambda: ["fast"])
    for each in (
        event(),
        event(),
        event(told={"response_cost": 0.0}),
        event(failed=True),
        event(model="*-any", client=None),
    ):
        made.add(each)
    return made


def test_counters_are_by_client_model_and_replica(totals: Any) -> None:
    """Tokens without a price are counted separately; names that only match a pattern share one label."""
    lines = list(totals.lines())
    assert 'llm_gateway_calls_total{client="app",model="fast",replica="one",status="success"} 3' in lines
    assert 'llm_gateway_calls_total{client="app",model="fast",replica="one",status="failure"} 1' in lines
    assert 'llm_gateway_tokens_total{client="app",model="fast",replica="one",type="prompt"} 21' in lines
    assert 'llm_gateway_tokens_total{client="app",model="fast",replica="one",type="completion"} 15' in lines
    assert 'llm_gateway_cost_usd_total{client="app",model="fast",replica="one"} 0.5' in lines
    assert 'llm_gateway_unpriced_tokens_total{client="app",model="fast",replica="one"} 12' in lines
    assert 'llm_gateway_tokens_total{client="",model="(other)",replica="one",type="prompt"} 7' in lines
    assert sum(line.startswith("# TYPE") for line in lines) == len(
        {line.split("{")[0] for line in lines if "{" in line}
    )


def test_a_label_is_quoted(modules: Any, event: Callable[..., Any]) -> None:
    name = 'a"b\\c\nd'
    made = modules["usage"].Totals(replica="one", models=lambda: [name])
    made.add(event(model=name))
    assert any(r'model="a\"b\\c\nd"' in line for line in made.lines())


@pytest.mark.parametrize(("key", "status"), [(f"Bearer {KEY}", 200), ("Bearer sk-another", 401), ("", 401)])
def test_counters_are_shown_to_anyone_with_the_master_key(
    modules: Any, totals: Any, monkeypatch: pytest.MonkeyPatch, key: str, status: int
) -> None:
    monkeypatch.setenv("LITELLM_MASTER_KEY", KEY)
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "path": modules["usage"].PATH, "headers": [(b"authorization", key.encode())]}
    asyncio.run(modules["usage"].Metrics(None, totals)(scope, None, send))
    assert sent[0]["status"] == status
    assert (b"llm_gateway_tokens_total" in sent[1]["body"]) == (status == 200)
