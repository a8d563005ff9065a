"""What a tool did to each batch normalization of a model, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

LEFT_ALONE = "left alone"


@dataclass(frozen=True)
class Row:
    """What was done to one layer.

    Attributes
    ----------
    name : str
        The layer's first name in the model; empty for the model itself.
    what : str
        What was done, or ``"left alone"``.
    reason : str
        Why not more was done; empty where nothing is missing.
    count : int
        Values per channel that were measured; 0 if nothing was.
    uncertainty : float
        Error of the layer's output, in deviations, that the 95 % confidence intervals of its measured statistics leave
        in the worst channel; NaN if unknown.
    """

    name: str
    what: str
    reason: str = ""
    count: int = 0
    uncertainty: float = math.nan


def row(name: str, others: list[str], what: str, reason: str = "") -> Row:
    """Return a row whose reason begins with the further names of a layer that the model holds several times."""
    return Row(name, what, "; ".join(([f"also {', '.join(others)}"] if others else []) + ([reason] if reason else [])))


@dataclass(frozen=True)
class Report:
    """One row per batch normalization found, in the order of ``named_modules``; prints as a table.

    Attributes
    ----------
    rows : tuple of Row
        What was done to each layer.
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
        cells = [["name", "what", "reason"], *([row.name or "(the model)", row.what, row.reason] for row in self.rows)]
        if any(row.count for row in self.rows):
            for cell, row in zip(cells[1:], self.rows, strict=True):
                known = row.count > 0 and not math.isnan(row.uncertainty)
                cell[2:2] = [str(row.count or ""), f"{row.uncertainty:.2g}" if known else ""]
            cells[0][2:2] = ["values", "uncertainty"]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("  ".join(f"{text:{width}}" for text, width in zip(cell, widths, strict=True)) for cell in cells)
        return "\n".join(line.rstrip() for line in lines)
