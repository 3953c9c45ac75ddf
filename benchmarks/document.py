"""Shows reports: printed tables, JSON, charts, and the sections of docs/benchmarks.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks import chart, text
from benchmarks.measure import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from benchmarks.measure import Comparison

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks/results"
"""Reports of the last runs; not in git."""
DOCUMENT = PROJECT / "docs/benchmarks.md"
RECORDED = PROJECT / "docs/benchmarks"
"""Reports of the runs that the document shows."""
SECTION = "<!-- {name}: written by make bench RECORD=1 -->\n{content}<!-- end of {name} -->"
NOTHING = "Not recorded yet.\n"
LINE = 118
"""Characters that fit on a line of JSON, without the name and the comma."""


def table(comparison: Comparison) -> Table:
    """A comparison as it is printed."""
    head, *body = text.rows(comparison)
    made = Table(*head, title=text.heading(comparison), title_justify="left")
    for row in body:
        made.add_row(*row)
    return made


def show(console: Console, report: Report) -> None:
    """Print a report as tables."""
    for comparison in report.comparisons:
        console.print(table(comparison))
    console.print(text.how(report), markup=False, highlight=False)


def charts(report: Report) -> Iterator[tuple[str, Comparison]]:
    """The file name of each chart of a report, with what it shows."""
    for comparison in report.comparisons:
        if comparison.chart and comparison.values:
            words = re.sub(r"[^a-z0-9]+", "-", comparison.title.lower()).strip("-")
            yield f"{report.benchmark}-{words}.svg", comparison


def dumped(value: Any, indent: str = "") -> str:  # noqa: ANN401 -- what JSON may hold is of any type
    """JSON in which each list and object is on one line if it fits there."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) < LINE or not isinstance(value, dict | list):
        return line
    inner = f"{indent} "
    if isinstance(value, list):
        parts = [dumped(each, inner) for each in value]
    else:
        parts = [f"{json.dumps(name, ensure_ascii=False)}: {dumped(each, inner)}" for name, each in value.items()]
    return f"{line[0]}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{line[-1]}"


def write(report: Report, folder: Path) -> None:
    """Write a report's JSON and charts into a folder, and replace those of the run before."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{report.benchmark}-*.svg"):
        old.unlink()
    (folder / f"{report.benchmark}.json").write_text(f"{dumped(report.model_dump(mode='json'))}\n", encoding="utf-8")
    for name, comparison in charts(report):
        (folder / name).write_text(chart.draw(comparison), encoding="utf-8")


def read(folder: Path, benchmark: str) -> Report | None:
    """Read a report back; None if there is none. Raises pydantic.ValidationError for another program's file."""
    file = folder / f"{benchmark}.json"
    return Report.model_validate_json(file.read_text(encoding="utf-8")) if file.exists() else None


def section(report: Report) -> str:
    """A report in Markdown."""
    drawn = {comparison.title: name for name, comparison in charts(report)}
    parts = [f"{text.how(report)}\n"]
    for comparison in report.comparisons:
        head, *body = text.rows(comparison)
        parts.append(f"**{text.heading(comparison)}**\n")
        if name := drawn.get(comparison.title):
            parts.append(f"![{comparison.title}]({RECORDED.name}/{name})\n")
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        parts.append("".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(parts)


def filled(document: str, reports: dict[str, Report | None]) -> str:
    """A document with each report in its section. Raises ValueError when one has no section."""
    for name, report in reports.items():
        content = section(report) if report else NOTHING
        start, end = SECTION.format(name=name, content="\0").split("\0")
        before, found_start, rest = document.partition(start)
        _, found_end, after = rest.partition(end)
        if not (found_start and found_end):
            raise ValueError(f"the document has no section for {name}: {SECTION.format(name=name, content='')}")
        document = f"{before}{start}{content}{end}{after}"
    return document


def record(report: Report, benchmarks: list[str]) -> None:
    """Make a report the one that the documents show."""
    write(report, RECORDED)
    document = DOCUMENT.read_text(encoding="utf-8")
    reports = {name: read(RECORDED, name) for name in benchmarks}
    DOCUMENT.write_text(filled(document, reports), encoding="utf-8")
