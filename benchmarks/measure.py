"""What was measured: figures of several rounds, side by side with their baseline, as they are kept in JSON."""

from __future__ import annotations

import os
import platform
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SIGNIFICANT_DIGITS = 4
"""More digits than any of these figures has."""

Kind = TypeVar("Kind")


def alternating(rounds: int, kinds: Sequence[Kind]) -> Iterator[Kind]:
    """Each kind once a round, in turn forwards and backwards, so that no kind always comes after the same one."""
    for number in range(rounds):
        yield from reversed(kinds) if number % 2 else kinds


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed. Raises ValueError if there are none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("there is no percentile of nothing")
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: its value in each round, in order."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def lowest(self) -> float:
        return min(self.rounds)

    @property
    def highest(self) -> float:
        return max(self.rounds)

    def ratio_to(self, baseline: Figure) -> float | None:
        """The median of the rounds' own ratios, so that a slow round cancels out; None for a ratio to zero.

        If the numbers of rounds differ, the medians are compared.
        """
        if len(self.rounds) != len(baseline.rounds):
            return self.median / baseline.median if baseline.median else None
        if not all(baseline.rounds):
            return None
        return statistics.median(own / other for own, other in zip(self.rounds, baseline.rounds, strict=True))


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Comparison(_Kept):
    """One quantity of several contenders, each at several points: a table, and a chart if that says more."""

    title: str
    unit: str
    points: str
    """What the points mean, such as `requests at once`."""
    better: Literal["lower", "higher"] = "lower"
    baseline: str | None = None
    """The contender that the others are compared with; None compares each with its own first point."""
    chart: Literal["lines", "bars"] | None = None
    values: dict[str, dict[str, tuple[float, ...]]]
    """The value of each round, by contender and point."""
    absent: dict[str, str] = {}
    """Why a contender could not be measured."""

    @property
    def all_points(self) -> list[str]:
        """The points of all contenders, in their order."""
        return list(dict.fromkeys(point for values in self.values.values() for point in values))

    def figure(self, contender: str, point: str) -> Figure | None:
        """The figure of a contender at a point, or None if it was not measured there."""
        rounds = self.values.get(contender, {}).get(point)
        return Figure(rounds) if rounds else None

    def ratio(self, contender: str, point: str) -> float | None:
        """The ratio of a figure to the baseline; None for the baseline itself, and if there is none."""
        of, at = (self.baseline, point) if self.baseline else (contender, next(iter(self.values[contender]), point))
        figure, baseline = self.figure(contender, point), self.figure(of, at)
        if figure is None or baseline is None or (of, at) == (contender, point):
            return None
        return figure.ratio_to(baseline)


class Machine(_Kept):
    """Where a benchmark ran, without anything that identifies the machine."""

    cores: int
    memory_gb: int
    processor: str
    system: str
    python: str
    load_before: float
    """The machine's load average in the minute before, which shows what else ran there."""

    @classmethod
    def this(cls) -> Machine:
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return cls(
            cores=len(os.sched_getaffinity(0)),
            memory_gb=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
            processor=models[0].partition(":")[2].strip() if models else platform.machine(),
            system=platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
            python=platform.python_version(),
            load_before=round(os.getloadavg()[0], 1),
        )


class Report(_Kept):
    """All that one benchmark measured in one run."""

    benchmark: str
    day: str
    """The date of the run, as 2026-11-25."""
    seconds: int
    """How long it took."""
    rounds: int
    machine: Machine
    versions: dict[str, str]
    """What was measured, by name."""
    comparisons: tuple[Comparison, ...]


class Readings:
    """Collects values by quantity, contender and point while a benchmark runs."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )
        self._absent: dict[str, str] = {}

    def add(self, quantity: str, contender: str, point: object, value: float) -> None:
        """Add the value of a round."""
        rounded = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
        self._values[quantity][contender][str(point)].append(rounded)

    def leave_out(self, contender: str, why: str) -> None:
        """Record why a contender is not measured."""
        self._absent[contender] = why

    def comparison(  # noqa: PLR0913 -- all by name
        self,
        quantity: str,
        *,
        unit: str,
        points: str,
        better: Literal["lower", "higher"] = "lower",
        baseline: str | None = None,
        chart: Literal["lines", "bars"] | None = None,
        contenders: Sequence[str] = (),
    ) -> Comparison:
        """All readings of a quantity; `contenders` gives an order other than that of the readings."""
        read = self._values[quantity]
        return Comparison(
            title=quantity,
            unit=unit,
            points=points,
            better=better,
            baseline=baseline,
            chart=chart,
            values={
                name: {point: tuple(rounds) for point, rounds in read[name].items()}
                for name in contenders or read
                if name in read
            },
            absent={name: why for name, why in self._absent.items() if not contenders or name in contenders},
        )
