"""Results of a tool, one row for each batch normalization of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

LEFT_ALONE = "left alone"


@dataclass(frozen=True)
class Row:
    """The result for one layer.

    Attributes
    ----------
    name : str
        The layer's first name in the model; empty for the model itself.
    done : str
        The change, such as ``"fused relu"``, or ``"left alone"``.
    reason : str
        The obstacle to more; empty if there is none.
    aliases : tuple of str
        Further names of a layer that the model holds several times.
    numbers : mapping of str to float
        Measurements by name; NaN if unknown. Each tool documents its own.
    """

    name: str
    done: str
    reason: str = ""
    aliases: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """One row per batch normalization found, in the order of ``named_modules``; prints as a table.

    Attributes
    ----------
    rows : tuple of Row
        The result for each layer.
    """

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no batch normalization named {name!r}; there are {[row.name for row in self.rows]}")

    def __str__(self) -> str:
        measured = list(dict.fromkeys(key for row in self.rows for key in row.numbers))
        cells = [["name", "done", *measured, "reason"]]
        for row in self.rows:
            also = [f"also {', '.join(row.aliases)}"] if row.aliases else []
            numbers = [_text(row.numbers.get(key, math.nan)) for key in measured]
            reason = "; ".join([*also, *([row.reason] if row.reason else [])])
            cells.append([row.name or "(the model)", row.done, *numbers, reason])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("  ".join(f"{text:{width}}" for text, width in zip(cell, widths, strict=True)) for cell in cells)
        return "\n".join(line.rstrip() for line in lines)


def _text(number: float) -> str:
    if math.isnan(number):
        return ""
    return str(number) if isinstance(number, int) else f"{number:.2g}"
