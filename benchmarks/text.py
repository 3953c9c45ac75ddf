"""How figures are written, wherever they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.measure import Comparison, Machine, Report

HUNDRED, TEN = 100, 10


def number(value: float) -> str:
    """A value with about three digits, written out."""
    if value == int(value):
        return f"{value:,.0f}"
    magnitude = abs(value)
    return f"{value:,.{0 if magnitude >= HUNDRED else 1 if magnitude >= TEN else 2 if magnitude >= 1 else 3}f}"


def cell(comparison: Comparison, contender: str, point: str) -> str:
    """A figure as the median, its spread, and how many times the baseline it is: `178 (170 to 185) 1.31x`."""
    figure = comparison.figure(contender, point)
    if figure is None:
        return ""
    words = [number(figure.median)]
    if figure.lowest != figure.highest:
        words.append(f"({number(figure.lowest)} to {number(figure.highest)})")
    if (ratio := comparison.ratio(contender, point)) is not None:
        words.append(f"{ratio:.2f}x")
    return " ".join(words)


def rows(comparison: Comparison) -> list[list[str]]:
    """A comparison as rows of a table; the first row is its head."""
    points = comparison.all_points
    return [
        [comparison.points, *points],
        *([name, *(cell(comparison, name, point) for point in points)] for name in comparison.values),
        *([name, f"not available: {why}", *[""] * (len(points) - 1)] for name, why in comparison.absent.items()),
    ]


def heading(comparison: Comparison) -> str:
    """A table's title: quantity, unit, which direction is better, and what its ratios relate to."""
    baseline = comparison.baseline or "each row's first figure"
    return f"{comparison.title}, {comparison.unit} ({comparison.better} is better; x of {baseline})"


def where(machine: Machine) -> str:
    return (
        f"{machine.cores} cores ({machine.processor}), {machine.memory_gb} GB, {machine.system}, "
        f"Python {machine.python}; load before it {machine.load_before:g}"
    )


def how(report: Report) -> str:
    """When and where a report's figures were measured, and with which versions."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return f"{report.day}, {report.rounds} rounds in {report.seconds} s on {where(report.machine)}. {versions}."
