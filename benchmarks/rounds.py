"""Rounds: the sides of a comparison take turns on the same machine, and what is said of them is median and spread."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

LEAST = 5
"""Fewer rounds say nothing on a machine that others use too."""

Measured = TypeVar("Measured")


@dataclass(frozen=True, slots=True)
class Spread:
    """What a figure was in all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Sum up the rounds."""
        kept = list(values)
        return cls(statistics.median(kept), min(kept), max(kept))

    @classmethod
    def of_ratio(cls, one: Sequence[float], other: Sequence[float]) -> Spread:
        """Sum up the ratio that each round had in itself: what disturbed a round disturbed both of its sides."""
        return cls.of(a / b for a, b in zip(one, other, strict=True))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)}-{_short(self.high)})"


def asked() -> int:
    """Read from the command line how many rounds are wanted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=LEAST, help=f"rounds to run (default: {LEAST})")
    return parser.parse_args().rounds


async def interleaved(rounds: int, sides: Mapping[str, Callable[[], Awaitable[Measured]]]) -> dict[str, list[Measured]]:
    """Measure each side in every round; the order turns. The round before the first is thrown away."""
    figures: dict[str, list[Measured]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(-1, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            figure = await sides[name]()
            if number >= 0:
                figures[name].append(figure)
    return figures


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, as Markdown: it goes into `docs/performance.md` as it is."""
    print(f"\n{title}\n")
    print(f"| {' | '.join(columns)} |")
    print(f"| {' | '.join('---' for _ in columns)} |")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")
    print(flush=True)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
