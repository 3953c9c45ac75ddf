"""Output for people: tables on standard output, everything else on standard error."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from app.organizations import Organization
    from console.gateway_report import Gateway

WORDS = {"drop": "leaves out", "error": "refuses"}
"""What happens to the parameters that a model's provider refuses, by the stack's word for it."""
WAYS = {"input": "in", "output": "out"}
"""Kinds of tokens: their names in a price, and in a table."""


def of_models(gateway: Gateway) -> Sequence[Sequence[str]]:
    """A row for each model that is served: its provider, price, parameters, and when its provider ends it."""
    rows = [("model", "provider", "USD per million tokens", "parameters", "ends")]
    for name in gateway.models:
        model = gateway.told[name]
        ends = str(gateway.endings.get(name, ""))
        rows.append((name, model.owner, cost(model.price), "; ".join(fates(model.refuses)), ends))
    return rows


def cost(price: Mapping[str, float]) -> str:
    """A price by WAYS, in few words. "Free" means that it is known to cost nothing, not that it has no price."""
    if set(price) == set(WAYS) and not any(price.values()):
        return "free"
    return ", ".join(f"{price[way]:g} {short}" for way, short in WAYS.items() if way in price) or "unknown"


def told(gateway: Gateway) -> dict[str, dict[str, object]]:
    """What is known about each model, in a form for other programs."""
    return {name: asdict(model) for name, model in gateway.told.items()}


def of_organizations(listed: Sequence[Organization]) -> Sequence[Sequence[str]]:
    """A row for each organization."""
    rows = [("id", "name", "model", "fallback")]
    rows += [(str(each.id), each.name, each.llm_model, each.llm_fallback_model or "-") for each in listed]
    return rows


def fates(refuses: Mapping[str, str]) -> Iterator[str]:
    """What happens to the parameters that a model refuses, in few words."""
    for fate, words in WORDS.items():
        if names := [name for name, it in refuses.items() if it == fate]:
            yield f"{words} {', '.join(names)}"


def aligned(rows: Sequence[Sequence[str]], *, texts: int | None = None) -> Iterator[str]:
    """A line for each row, with aligned columns; those after the first `texts` are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if texts is None or place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def print_table(rows: Sequence[Sequence[str]], *, texts: int | None = None) -> None:
    """Print the lines of a table; the first row has the names of its columns."""
    for line in aligned(rows, texts=texts):
        print(line)


def say(line: str) -> None:
    """Print a line that is not data."""
    print(line, file=sys.stderr)
