"""How the lab writes numbers, and what an answer is made of: the terminal and the pages print the same."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A title, column heads, rows of text as wide as the heads, and a note on how to read it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str


@dataclass(frozen=True)
class Verdict:
    """The answer in one sentence, the numbers behind it, and what limits them."""

    headline: str
    numbers: list[str]
    limits: list[str]


def percent(value: float | None) -> str:
    """Write a share as a percentage with one decimal; a dash for no number."""
    return "-" if value is None else f"{100 * value:.1f}%"


def count(value: float | None) -> str:
    """Write a number of steps; "not reached" for none."""
    return "not reached" if value is None else f"{value:,.0f}"


def factor(value: float | None, missing: str = "-") -> str:
    """Write a ratio with two significant digits and a times sign."""
    if value is None:
        return missing
    return f"{value:.0f}x" if value >= 99.5 else f"{value:.1f}x" if value >= 0.995 else f"{value:.2g}x"


def duration(seconds: float | None) -> str:
    """Write the time of a step in a unit that suits it."""
    if seconds is None:
        return "-"
    unit, size = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("µs", 1e-6)
    value = seconds / size
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def plural(number: int, noun: str) -> str:
    """Write "1 seed", "3 seeds"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def text(value: Any) -> str:
    """Write a value of a config as words: lists with spaces, numbers short, a dash for None."""
    if isinstance(value, list | tuple):
        return " ".join(text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
