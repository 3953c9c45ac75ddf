"""The command `llmctl usage`: what it reads, and how it shows that."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from console.programs import ProgramError
from console.tables import print_table, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from console.usage import Row, Usage

By = StrEnum("By", ["client", "team", "key", "org", "model", "day"])
Source = StrEnum("Source", ["database", "lines"])
BY = [By.client, By.model]
STDIN = Path("-")


def usage(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE",
            help="Read the lines that a collector kept (`-` for standard input) instead of the replicas'.",
        ),
    ] = None,
    by: Annotated[
        list[By] | None, typer.Option(help="What to group by; can be given several times (default: client, model).")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Start of the period: 7d, 12h, 30min, 2026-11-01 or 2026-11-01T12:00 (UTC).")
    ] = None,
    source: Annotated[
        Source | None, typer.Option(help="What to read (default: LiteLLM's database where the stack has it).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
) -> None:
    """Show who used what, and what it cost:  llmctl usage --by client --by day --since 7d.

    Reads LiteLLM's database if the stack has it, else the replicas' lines; a replica that was replaced takes its
    lines with it. Both come from the engine that `docker` uses; set DOCKER_HOST for another one.
    """
    from console import usage  # noqa: PLC0415

    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv cannot be combined")
    groups = list(dict.fromkeys(each.value for each in by or BY))
    if files:
        if source == Source.database:
            raise typer.BadParameter("a file has lines: leave out --source")
        usage.check_lines(groups)
    start = usage.moment(since, now=datetime.now(UTC)) if since else None
    try:
        used = (
            usage.of_lines(_lines(files), groups, start)
            if files
            else usage.of_stack(groups, start, source=source and source.value)
        )
    except ProgramError as error:
        say(f"llmctl: {error}")
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(dataclasses.asdict(used), default=str))
    elif as_csv:
        _print_csv(used.rows, groups)
    else:
        _print_table(used.rows, groups)
        _explain(used)


def _lines(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        if file == STDIN:
            yield from sys.stdin
        else:
            with file.open(encoding="utf-8", errors="replace") as lines:
                yield from lines


def _print_csv(rows: Sequence[Row], groups: Sequence[str]) -> None:
    from console.usage import Row  # noqa: PLC0415

    numbers = [each.name for each in dataclasses.fields(Row) if each.name != "group"]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*groups, *numbers])
    for row in rows:
        writer.writerow([*row.group.values(), *(getattr(row, name) for name in numbers)])


def _print_table(rows: Sequence[Row], groups: Sequence[str]) -> None:
    if not rows:
        return
    cells = [(*groups, "calls", "failed", "left", "prompt", "completion", "cost ($)")]
    for row in rows:
        mark = "~" if row.estimated_tokens else ""
        tokens = [f"{mark}{row.prompt_tokens:,}", f"{mark}{row.completion_tokens:,}"]
        counts = ["?" if number is None else f"{number:,}" for number in (row.calls, row.failed, row.left)]
        cells.append((*row.group.values(), *counts, *tokens, _cost(row, mark)))
    print_table(cells, texts=len(groups))


def _cost(row: Row, mark: str) -> str:
    """What is known about a cost. An unknown cost is shown as unknown, and never counts as 0."""
    known = f"{mark}{row.cost:,.6f}" if row.cost is not None else ""
    unknown = "unknown" if row.unpriced_tokens or row.uncounted else ""
    return " + ".join(filter(None, (known, unknown))) or "0"


def _explain(used: Usage) -> None:
    """Say on standard error where the numbers come from."""
    if not used.rows:
        say("nothing was used" if used.source == Source.database else "no line of usage was found")
    if any(row.estimated_tokens for row in used.rows):
        say("~ includes tokens that LiteLLM counted, not the provider")
    if used.without_price:
        say(f"unknown cost: LiteLLM has no price for {', '.join(used.without_price)} (docs/spend.md)")
    if any(row.uncounted for row in used.rows):
        say("unknown cost: nobody counted the tokens of some answers")
    if used.logs:
        say(f"read: {', '.join(f'{log.name} since {_time(log.since)}' for log in used.logs)}")
    began = [log.since for log in used.logs if log.since]
    if used.since and began and max(began) > used.since:
        say(f"lines from before {_time(max(began))} may be gone (docs/spend.md)")
    for what in used.unseen:
        say(f"not seen: {what}")
    if any(row.failed is None for row in used.rows):
        say("failed ?: this release of LiteLLM keeps no failed calls in its database: --source lines has the latest")
    if used.source == Source.database:
        since = f", which begins {_time(used.begins)}" if used.begins else ""
        say(f"source: LiteLLM's database{since}; the last minute may be missing")
    else:
        say("source: the lines of the replicas")


def _time(time: Any) -> str:  # noqa: ANN401 -- a datetime, or None
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if time else "now"
