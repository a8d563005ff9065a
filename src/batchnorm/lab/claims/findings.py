"""What every claim's page is made of: checks with n, mean and deviation, and the verdict that follows from them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.plots import Picture
from batchnorm.lab.wording import Table

Record = dict[str, Any]
Arrays = Mapping[str, NDArray[np.float64]]

HOLDS, MIXED, FAILS = "holds", "mixed", "does not hold"
#: Apart in colour (Okabe and Ito) and in dashes, so that a figure can be read in grey.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), "-.", (0, (1.5, 1)), (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")


class Measurement(NamedTuple):
    """One line of the records, with the arrays that belong to it.

    Attributes
    ----------
    label : str
        What was measured, for the bar.
    records : list of dict
        What JSON can hold.
    arrays : dict of str to ndarray
        Under names that no other measurement uses.
    """

    label: str
    records: list[Record]
    arrays: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Check:
    """One part of a claim, looked at once per seed.

    Attributes
    ----------
    name : str
        What must be.
    rule : str
        What is measured, and the bound.
    values : list of float
        One per seed.
    passed : list of bool
        Whether the bound is kept, per seed.
    """

    name: str
    rule: str
    values: list[float]
    passed: list[bool]

    @property
    def status(self) -> str:
        """Holds for all seeds, for none, or mixed."""
        return judge(self.passed)

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Standard deviation over seeds, of the sample; NaN for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 and np.all(np.isfinite(self.values)) else np.nan


@dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes
    ----------
    headline : str
        The answer in one sentence.
    checks : list of Check
        What the verdict follows from.
    numbers, limits : list of str
        The numbers behind it, and what limits them.
    tables : list of Table
        Without that of the checks.
    pictures : list of Picture
        In the order of the page.
    definitions : list of (str, str)
        Words of the page.
    """

    headline: str
    checks: list[Check]
    numbers: list[str]
    limits: list[str]
    tables: list[Table]
    pictures: list[Picture]
    definitions: list[tuple[str, str]]

    @property
    def status(self) -> str:
        """The verdict: holds if all checks hold for all seeds, does not hold if none does for any, else mixed."""
        return judge([passed for check in self.checks for passed in check.passed])


def judge(passed: Sequence[bool]) -> str:
    """Turn passed or not into the verdict.

    Parameters
    ----------
    passed : sequence of bool
        At least one.

    Returns
    -------
    str
        "holds", "does not hold" or "mixed".

    Examples
    --------
    >>> judge([True, True]), judge([False]), judge([True, False])
    ('holds', 'does not hold', 'mixed')
    """
    assert passed, "a verdict needs a check"
    return HOLDS if all(passed) else MIXED if any(passed) else FAILS


def check_table(checks: Sequence[Check]) -> Table:
    """Write the checks as a table: n, mean and standard deviation of each.

    Parameters
    ----------
    checks : sequence of Check
        In the order of the page.

    Returns
    -------
    Table
    """
    rows = [
        [
            check.name,
            check.rule,
            check.status,
            f"{sum(check.passed)} of {len(check.passed)}",
            number(check.mean),
            number(check.std),
        ]
        for check in checks
    ]
    note = (
        "Each check is made once per seed (or start, or repeat); mean and sample standard deviation, over these, of "
        "what is measured."
    )
    return Table("What decides", ["check", "measured, and the rule", "verdict", "kept in", "mean", "std"], rows, note)


def number(value: float) -> str:
    """Write a number in three digits or whole, a dash for NaN, never for infinity."""
    if not np.isfinite(value):
        return "-" if np.isnan(value) else "never"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Write mean ± sample standard deviation, of the finite values; the mean alone for one value."""
    finite = [value for value in values if np.isfinite(value)]
    if len(finite) < len(values):
        some = f"{spread(finite)} and " if finite else ""
        return f"{some}{len(values) - len(finite)} times beyond the limit"
    mean = number(statistics.fmean(values))
    return f"{mean} ± {number(statistics.stdev(values))}" if len(values) > 1 else mean


def style(index: int) -> dict[str, Any]:
    """Return colour, dashes and marker of the line with that number."""
    return {"color": COLORS[index], "linestyle": DASHES[index], "marker": MARKERS[index]}
