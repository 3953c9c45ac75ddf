"""The benchmarks' measuring and drawing: what is shown is what was measured."""

from __future__ import annotations

import asyncio
import io
import itertools
import statistics
import time
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import caller, chart, document, text
from benchmarks.__main__ import BENCHMARKS
from benchmarks.caller import Caller, Target, failure_of, is_whole, load, settle, side_by_side
from benchmarks.measure import Comparison, Figure, Machine, Readings, Report, alternating, percentile
from benchmarks.stub import stub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"
SECONDS = st.floats(min_value=1e-3, max_value=1e6)
ROUNDS = st.lists(SECONDS, min_size=1, max_size=5)
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def comparison(**changes: object) -> Comparison:
    """Two gateways at two points each, the plan as the baseline."""
    values = {
        "the plan": {"1": (10.0, 20.0), "16": (40.0, 80.0)},
        "ours <&>": {"1": (5.0, 20.0), "16": (80.0, 160.0)},
    }
    given = {"title": "p99, plain", "unit": "ms", "points": "requests at once", "baseline": "the plan"}
    return Comparison.model_validate({**given, "values": values, "chart": "lines", **changes})


def report(*comparisons: Comparison) -> Report:
    return Report(
        benchmark="gateway",
        day="2026-11-25",
        seconds=61,
        rounds=2,
        machine=Machine.this(),
        versions={"LiteLLM": "1.55.0"},
        comparisons=comparisons,
    )


def test_rounds_go_forwards_and_backwards_in_turn() -> None:
    """So that no contender always comes after the same one."""
    assert "".join(alternating(3, "abc")) == "abccbaabc"


@given(st.lists(SECONDS, min_size=1), st.integers(min_value=1, max_value=100))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values)
    assert sum(value < found for value in values) < percent / 100 * len(values)


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


@given(ROUNDS)
def test_a_figure_is_the_median_of_its_rounds_and_their_spread(rounds: list[float]) -> None:
    figure = Figure(tuple(rounds))
    assert figure.median == statistics.median(rounds)
    assert (figure.lowest, figure.highest) == (min(rounds), max(rounds))


@given(ROUNDS, st.floats(min_value=0.1, max_value=10), st.data())
def test_what_slows_a_round_down_for_all_does_not_change_a_ratio(
    rounds: list[float], times: float, data: st.DataObject
) -> None:
    """A ratio is the median of the rounds' own ratios."""
    slower = data.draw(st.lists(st.floats(min_value=0.5, max_value=8), min_size=len(rounds), max_size=len(rounds)))
    baseline = Figure(tuple(value * factor for value, factor in zip(rounds, slower, strict=True)))
    figure = Figure(tuple(value * times for value in baseline.rounds))
    assert figure.ratio_to(baseline) == pytest.approx(times)


def test_there_is_no_ratio_to_zero() -> None:
    assert Figure((1.0,)).ratio_to(Figure((0.0,))) is None
    assert Figure((1.0, 2.0)).ratio_to(Figure((0.0,))) is None


def test_rounds_that_do_not_pair_are_compared_by_their_medians() -> None:
    assert Figure((4.0, 6.0)).ratio_to(Figure((2.0,))) == 2.5


def test_a_figure_is_compared_with_the_baseline_at_the_same_point() -> None:
    shown = comparison()
    assert shown.ratio("ours <&>", "16") == 2.0
    assert shown.ratio("ours <&>", "1") == 0.75
    assert shown.ratio("the plan", "1") is None
    assert shown.ratio("ours <&>", "256") is None


def test_without_a_baseline_a_figure_is_compared_with_its_contenders_first() -> None:
    shown = comparison(baseline=None)
    assert shown.ratio("the plan", "16") == 4.0
    assert shown.ratio("the plan", "1") is None


def test_readings_keep_their_rounds_in_order_and_the_contenders_as_asked() -> None:
    readings = Readings()
    for value in (3.14159, 2.71828):
        readings.add("p50", "b", 16, value)
        readings.add("p50", "a", 16, value)
        readings.add("p99", "a", 16, 100 * value)
    readings.leave_out("c", "no such program")
    shown = readings.comparison("p50", unit="ms", points="at once", contenders=("a", "b", "c"))
    assert shown.values == {"a": {"16": (3.142, 2.718)}, "b": {"16": (3.142, 2.718)}}
    assert list(shown.values) == ["a", "b"]
    assert shown.absent == {"c": "no such program"}


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (12345.6, "12,346"), (178.4, "178"), (17.84, "17.8"), (1.784, "1.78"), (0.1784, "0.178"), (3, "3")],
)
def test_numbers_are_written_with_about_three_digits(value: float, written: str) -> None:
    assert text.number(value) == written


def test_a_table_has_the_median_the_spread_and_the_ratio_and_says_what_is_missing() -> None:
    rows = text.rows(comparison(absent={"Portkey": "npm is not installed"}))
    assert rows == [
        ["requests at once", "1", "16"],
        ["the plan", "15 (10 to 20)", "60 (40 to 80)"],
        ["ours <&>", "12.5 (5 to 20) 0.75x", "120 (80 to 160) 2.00x"],
        ["Portkey", "not available: npm is not installed", ""],
    ]


def test_a_report_is_printed_whole() -> None:
    printed = io.StringIO()
    document.show(Console(width=160, file=printed), report(comparison(), comparison(title="p50, plain")))
    assert all(words in printed.getvalue() for words in ("p99, plain", "p50, plain", "2.00x", "LiteLLM 1.55.0"))


@given(st.dictionaries(st.text(min_size=1, max_size=9), st.dictionaries(st.text(max_size=3), ROUNDS, max_size=3)))
def test_a_report_comes_back_from_its_json(values: dict[str, dict[str, list[float]]]) -> None:
    before = report(comparison(values=values))
    assert Report.model_validate_json(document.dumped(before.model_dump(mode="json"))) == before


def test_a_report_is_written_in_place_of_the_one_before(tmp_path: Path) -> None:
    document.write(report(comparison(), comparison(title="gone")), tmp_path)
    kept = report(comparison(), comparison(title="no chart", chart=None))
    document.write(kept, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gateway-p99-plain.svg", "gateway.json"]
    assert document.read(tmp_path, "gateway") == kept
    assert document.read(tmp_path, "client") is None


def points_of(drawn: ET.Element) -> Iterator[float]:
    """Every coordinate of a drawing."""
    for element in drawn.iter():
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy"):
            if name in element.attrib:
                yield float(element.attrib[name])


@pytest.mark.parametrize("kind", ["lines", "bars"])
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=9),
        st.fixed_dictionaries({"1": ROUNDS, "16": ROUNDS}),
        min_size=1,
        max_size=7,
    )
)
def test_a_chart_is_well_formed_and_has_every_figure_in_its_frame(
    kind: str, values: dict[str, dict[str, list[float]]]
) -> None:
    """Whatever the names are and however far apart the values."""
    drawn = ET.fromstring(chart.draw(comparison(values=values, chart=kind, baseline=None)))  # noqa: S314 -- our own
    assert drawn.tag == f"{SVG}svg"
    figures = 2 * len(values)
    marks = drawn.findall(f"{SVG}circle") if kind == "lines" else drawn.findall(f"{SVG}rect[@height][@fill]")
    assert len(marks) == figures + (0 if kind == "lines" else len(values))  # the legend has one each
    assert all(0 <= at <= chart.WIDTH for at in points_of(drawn))
    written = [element.text for element in drawn.findall(f"{SVG}text")]
    assert all(name in written for name in values)


def test_a_chart_follows_the_pages_colours_and_runs_nothing() -> None:
    drawn = chart.draw(comparison())
    assert "prefers-color-scheme: dark" in drawn
    assert not {"<script", "href", "url(", "@import"} & set(drawn.split())
    assert "&lt;&amp;&gt;" in drawn


def test_bars_start_at_zero_and_zeros_can_be_drawn() -> None:
    values = {"the plan": {"another model": (12.0, 15.0)}, "ours": {"another model": (0.0, 0.0)}}
    drawn = ET.fromstring(chart.draw(comparison(values=values, chart="bars")))  # noqa: S314 -- our own
    bars = [float(bar.attrib["height"]) for bar in drawn.findall(f"{SVG}rect[@height][@fill]")][2:]
    assert bars[0] > 0
    assert bars[1] == 0
    chart.draw(comparison(values={"ours": {"1": (0.0,)}}, chart="bars"))


def test_nothing_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        chart.draw(comparison(values={}))


def test_a_document_gets_each_report_into_its_section() -> None:
    """The text around the sections stays, and filling it again changes nothing."""
    page = "".join(
        f"About {name}\n{document.SECTION.format(name=name, content='old')}\n" for name in ("gateway", "b")
    )
    filled = document.filled(page, {"gateway": report(comparison()), "b": None})
    assert "About gateway\n" in filled
    assert "old" not in filled
    assert "| ours <&> | 12.5 (5 to 20) 0.75x | 120 (80 to 160) 2.00x |" in filled
    assert "(benchmarks/gateway-p99-plain.svg)" in filled
    assert document.NOTHING in filled
    assert document.filled(filled, {"gateway": report(comparison()), "b": None}) == filled


def test_a_document_without_a_reports_section_is_refused() -> None:
    with pytest.raises(ValueError, match="no section for gateway"):
        document.filled("", {"gateway": None})


def test_the_document_shows_what_was_recorded() -> None:
    """No figure in it is typed by hand, and each chart is drawn from the same figures."""
    recorded = {name: document.read(document.RECORDED, name) for name in BENCHMARKS}
    page = document.DOCUMENT.read_text(encoding="utf-8")
    assert document.filled(page, recorded) == page
    drawn = {name: chart.draw(shown) for each in recorded.values() if each for name, shown in document.charts(each)}
    assert {file.name: file.read_text(encoding="utf-8") for file in document.RECORDED.glob("*.svg")} == drawn


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Le", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n", True),
    ],
)
def test_an_answer_ends_where_its_head_says(answer: bytes, whole: bool) -> None:  # noqa: FBT001
    assert is_whole(answer) is whole


def test_only_a_good_answer_counts() -> None:
    assert failure_of(b"HTTP/1.1 503 Service Unavailable\r\n\r\nno replica", streamed=False)
    assert failure_of(b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\n", streamed=True) == "the stream has no end"
    assert not failure_of(b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\ndata: [DONE]\n\n", streamed=True)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a stub."""
    with stub() as address:
        yield address


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/embeddings", {"model": "m", "input": "hello"}),
    ],
)
def test_callers_ask_as_many_at_once_as_is_said(
    url: str, path: str, body: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asks again and again while there is time, and none is cut off at the end."""
    target = Target(url=url, path=path, headers={"authorization": "Bearer sk-of-a-stub"}, body=body)
    # A second passes whenever somebody looks at this clock: on a busy machine a real one may show the end at once.
    clock = SimpleNamespace(monotonic=partial(next, itertools.count(0.0)), process_time=time.process_time)
    monkeypatch.setattr(caller, "time", clock)
    seen = asyncio.run(load([target], 8, 100))
    assert seen.failures == []
    assert 100 <= seen.seconds <= 100 + 3 * 8
    assert 3 * 8 < len(seen.good) <= seen.seconds
    assert seen.per_second == pytest.approx(len(seen.good) / seen.seconds)
    assert seen.own_cpu_seconds > 0


def test_a_gateway_is_asked_until_it_answers(url: str) -> None:
    target = Target(url=url, headers={}, body=CHAT)
    asyncio.run(settle(target))
    took = asyncio.run(side_by_side({"one": target, "another": target}, 5))
    assert {name: len(seconds) for name, seconds in took.items()} == {"one": 5, "another": 5}


def test_a_gateway_that_refuses_connections_is_a_failure() -> None:
    async def ask() -> str:
        caller = Caller(Target(url="http://127.0.0.1:9", headers={}, body=CHAT))
        return (await caller.ask()).failure

    assert "ConnectionRefusedError" in asyncio.run(ask())
