"""A comparison as a chart: a small SVG that needs no script and no font, for light and dark pages alike."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from benchmarks.text import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.measure import Comparison, Figure

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 104, 52
"""The room around the plot, in pixels: for numbers, nothing, title and legend, points."""
LEGEND_START, LEGEND_LINE, CHARACTER_WIDTH = (16.0, 66), 18, 6.4
"""Where the legend begins, the distance of its lines, and the approximate width of a character."""
TICKS = 5
LOGARITHMIC_FROM = 30
"""If the highest value is this many times the lowest, the scale is logarithmic, to show both."""
BAR_SHARE = 0.75
"""The share of a point's width that its bars take."""

# Distinguishable without colour vision (Okabe and Ito), on white and on black; lines also differ in their dashes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f7f7f")
DASHES = ("none", "8 3", "2 3", "10 3 2 3", "5 5", "14 4", "1 5")

STYLE = """
    .paper { fill: #ffffff } .ink { fill: #1f2328 } .faint { fill: #59636e }
    .rule { stroke: #d1d9e0 } .spread { stroke: #1f2328 }
    text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif } .title { font-size: 15px; font-weight: 600 }
    @media (prefers-color-scheme: dark) {
      .paper { fill: #0d1117 } .ink { fill: #f0f6fc } .faint { fill: #9198a1 }
      .rule { stroke: #3d444d } .spread { stroke: #f0f6fc }
    }
"""


class Scale:
    """From values to heights, from a round number below the lowest to one above the highest."""

    def __init__(self, lowest: float, highest: float, *, from_zero: bool) -> None:
        """`from_zero` for bars, whose length is the value."""
        self.logarithmic = not from_zero and lowest > 0 and highest / lowest >= LOGARITHMIC_FROM
        if self.logarithmic:
            first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
            self.ticks = [10.0**exponent for exponent in range(first, last + 1)]
        else:
            step = _round_step(highest / TICKS)
            self.ticks = [step * count for count in range(max(1, math.ceil(highest / step - 1e-9)) + 1)]

    def y(self, value: float) -> float:
        """The height of a value, in pixels from the top."""
        low, high = self.ticks[0], self.ticks[-1]
        share = math.log(value / low, high / low) if self.logarithmic else value / high
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, … that is at least this value."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def draw(comparison: Comparison) -> str:
    """Draw a comparison as SVG. Raises ValueError for one without any figure."""
    figures = [figure for _, _, figure in _figures(comparison)]
    if not figures:
        raise ValueError(f"nothing was measured of: {comparison.title}")
    lowest, highest = min(each.lowest for each in figures), max(each.highest for each in figures)
    scale = Scale(lowest, highest, from_zero=comparison.chart == "bars")
    title = f"{comparison.title}, {comparison.unit}"
    better = f"{comparison.better} is better; the thin line at each figure spans its rounds"
    plot = _bars(comparison, scale) if comparison.chart == "bars" else _lines(comparison, scale)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"  <title>{escape(title)}</title>",
            f"  <style>{STYLE}  </style>",
            f'  <rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
            _text(16, 26, title, kind="title ink"),
            _text(16, 44, better, kind="faint"),
            *_legend(comparison),
            *_axes(comparison, scale),
            *plot,
            "</svg>\n",
        ]
    )


def _figures(comparison: Comparison) -> Iterator[tuple[int, int, Figure]]:
    """Each figure with its contender's number and its point's number."""
    for row, contender in enumerate(comparison.values):
        for column, point in enumerate(comparison.all_points):
            if figure := comparison.figure(contender, point):
                yield row, column, figure


def _legend(comparison: Comparison) -> Iterator[str]:
    x, y = LEGEND_START
    for row, contender in enumerate(comparison.values):
        colour, width = COLOURS[row % len(COLOURS)], 31 + CHARACTER_WIDTH * len(contender)
        if x + width > WIDTH:
            x, y = LEGEND_START[0], y + LEGEND_LINE
        yield f'  <rect x="{x:.0f}" y="{y - 9}" width="10" height="10" rx="2" fill="{colour}"/>'
        yield _text(x + 15, y, contender, kind="ink")
        x += width


def _axes(comparison: Comparison, scale: Scale) -> Iterator[str]:
    for tick in scale.ticks:
        y = scale.y(tick)
        yield f'  <line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(LEFT - 8, y + 4, number(tick), kind="faint", anchor="end")
    for column, point in enumerate(comparison.all_points):
        yield _text(_x(comparison, column), HEIGHT - BOTTOM + 20, point, kind="faint", anchor="middle")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, comparison.points, kind="faint", anchor="middle")


def _lines(comparison: Comparison, scale: Scale) -> Iterator[str]:
    for row in range(len(comparison.values)):
        colour, dash = COLOURS[row % len(COLOURS)], DASHES[row % len(DASHES)]
        points = [(_x(comparison, column), figure) for r, column, figure in _figures(comparison) if r == row]
        path = " ".join(f"{x:.1f},{scale.y(figure.median):.1f}" for x, figure in points)
        yield (
            f'  <polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        for x, figure in points:
            yield f'  <circle cx="{x:.1f}" cy="{scale.y(figure.median):.1f}" r="3.5" fill="{colour}"/>'
            yield _spread(x, figure, scale, f'stroke="{colour}"')


def _bars(comparison: Comparison, scale: Scale) -> Iterator[str]:
    share = (WIDTH - LEFT - RIGHT) / len(comparison.all_points) * BAR_SHARE
    width = share / len(comparison.values)
    for row, column, figure in _figures(comparison):
        colour = COLOURS[row % len(COLOURS)]
        x, y = _x(comparison, column) - share / 2 + row * width, scale.y(figure.median)
        yield (
            f'  <rect x="{x + 1:.1f}" y="{y:.1f}" width="{width - 2:.1f}" height="{scale.y(0) - y:.1f}" '
            f'rx="2" fill="{colour}"/>'
        )
        yield _spread(x + width / 2, figure, scale, 'class="spread"')
        top = scale.y(figure.highest)
        yield _text(x + width / 2, top - 5, number(figure.median), kind="ink", anchor="middle")


def _spread(x: float, figure: Figure, scale: Scale, colour: str) -> str:
    ends = f'y1="{scale.y(figure.lowest):.1f}" y2="{scale.y(figure.highest):.1f}"'
    return f'  <line {colour} x1="{x:.1f}" x2="{x:.1f}" {ends} stroke-width="1.5"/>'


def _x(comparison: Comparison, column: int) -> float:
    """The middle of a point, in pixels from the left."""
    return LEFT + (column + 0.5) * (WIDTH - LEFT - RIGHT) / len(comparison.all_points)


def _text(x: float, y: float, text: str, *, kind: str, anchor: str = "start") -> str:
    return f'  <text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
