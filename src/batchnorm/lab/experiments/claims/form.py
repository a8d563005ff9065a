"""The form of a claim: a sentence, what is measured, the rule that decides, and what a page is made of."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from batchnorm.lab.errors import LabError
from batchnorm.lab.experiments.numbers import Numbers
from batchnorm.lab.experiments.plan import Plan
from batchnorm.lab.experiments.series import Series
from batchnorm.lab.experiments.study import Study
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.rules import FAILS, HOLDS, INCONCLUSIVE, decide, interval_of_mean
from batchnorm.lab.training.settings import nearest
from batchnorm.lab.wording import Table

Array = NDArray[np.float64]
Settings = Mapping[str, Any]
Record = dict[str, Any]
Arrays = Mapping[str, Array]

BUDGETS = ("small", "full")
#: Apart in colour (Okabe and Ito) and in dashes, so that a figure can be read in grey.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), "-.", (0, (1.5, 1)), (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")


class Measurement(NamedTuple):
    """Records that were measured together, with the arrays that belong to them.

    Attributes
    ----------
    label : str
        For the bar.
    records : list of dict
        Values that JSON can hold; what is not finite comes back as NaN.
    arrays : dict of str to ndarray
        Under names that no other measurement uses.
    """

    label: str
    records: list[Record]
    arrays: dict[str, Array]


@dataclass(frozen=True)
class Check:
    """One part of a claim: a number, measured once per repetition, and the bound it must keep.

    Attributes
    ----------
    name : str
        What must be.
    measured : str
        What the values are.
    values : list of float
        One per repetition (seed, start, repeat).
    bound : float
        The check is kept above it, or below.
    above : bool
        Which side.
    """

    name: str
    measured: str
    values: Sequence[float]
    bound: float
    above: bool = True

    @property
    def status(self) -> str:
        """The verdict on this check, by :func:`batchnorm.lab.rules.decide`."""
        return decide(self.values, self.bound, above=self.above)

    @property
    def kept(self) -> int:
        """Repetitions that keep the bound by themselves."""
        return sum(value > self.bound if self.above else value < self.bound for value in self.values)


@dataclass(frozen=True)
class Terrain:
    """A surface over a square, to be turned on the page.

    Attributes
    ----------
    title, label : str
        What it is, and what its height is.
    values : ndarray of shape (n, n)
        Logarithms to base 10; what is not finite is a hole.
    corners : list of str
        Names of the corners [0, 0], [-1, 0], [-1, -1] and [0, -1].
    """

    title: str
    label: str
    values: Array
    corners: list[str]


@dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes
    ----------
    headline : str
        The answer in one sentence.
    checks : list of Check
        What the verdict follows from; at least one.
    pictures : list of Picture
        The first stands on the first screen.
    numbers, limits : list of str
        The numbers behind it, and what limits them.
    tables : list of Table
        Without that of the checks.
    definitions : list of (str, str)
        Words of the page.
    surfaces : list of Terrain
        What can be turned on the page.
    """

    headline: str
    checks: list[Check]
    pictures: list[Picture] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    definitions: list[tuple[str, str]] = field(default_factory=list)
    surfaces: list[Terrain] = field(default_factory=list)

    @property
    def status(self) -> str:
        """The verdict: holds if every check does, does not hold if one does not, else inconclusive."""
        statuses = {check.status for check in self.checks}
        return FAILS if FAILS in statuses else HOLDS if statuses == {HOLDS} else INCONCLUSIVE


@dataclass(frozen=True)
class Claim:
    """A sentence with an experiment: a NumPy measurement, or a plan of training runs.

    Parameters
    ----------
    name : str
        As on the command line; the file is named alike, with underscores.
    sentence : str
        What is claimed.
    source : str
        Paper, arXiv id and section.
    protocol : str
        What is done, in one or two sentences.
    rule : str
        When it holds, in words; stored before anything is measured.
    budgets : dict of str to dict
        Settings by budget, "small" and "full": all that the experiment depends on, as JSON can hold it. "seeds" is the
        number of repetitions.
    cost : dict of str to str
        Time on two cores by budget, in words.
    measure, find_in_records : callable
        For a measurement: from settings to :class:`Measurement`, one by one; and from settings, records and arrays to
        :class:`Findings`.
    plan, find_in_study : callable
        For a plan: from settings to :class:`Plan`; and from settings, the study of its cells and its numbers to
        :class:`Findings`.
    published : str
        The published number, with its place. Empty: there is none.
    differs : str
        How the protocol differs from the published one, and why.
    total : callable
        From settings to the number of measurements, for the bar.
    """

    name: str
    sentence: str
    source: str
    protocol: str
    rule: str
    budgets: Mapping[str, Settings]
    cost: Mapping[str, str]
    measure: Callable[[Settings], Iterator[Measurement]] | None = None
    find_in_records: Callable[[Settings, Sequence[Record], Arrays], Findings] | None = None
    plan: Callable[[Settings], Plan] | None = None
    find_in_study: Callable[[Settings, Study, Numbers], Findings] | None = None
    published: str = ""
    differs: str = ""
    total: Callable[[Settings], int] = lambda settings: int(settings["seeds"])

    def __post_init__(self) -> None:
        assert set(self.budgets) == set(self.cost) == set(BUDGETS), self.name
        assert (self.measure is None) == (self.find_in_records is None) != (self.plan is None), self.name
        assert (self.plan is None) == (self.find_in_study is None), self.name

    def settings(self, budget: str, changes: Sequence[str] = (), seeds: int | None = None) -> dict[str, Any]:
        """Return the settings of a budget, with changes.

        Parameters
        ----------
        budget : {'small', 'full'}
            Which.
        changes : sequence of str
            Such as "units=256".
        seeds : int, optional
            Repetitions.

        Returns
        -------
        dict

        Raises
        ------
        LabError
            The claim has no such setting, or not of this type.
        """
        made = dict(self.budgets[budget])
        for change in [*changes, *([] if seeds is None else [f"seeds={seeds}"])]:
            name, _, word = change.partition("=")
            if name not in made:
                raise LabError(
                    f"{self.name} has no setting {name!r}; {nearest(name, made)} it has {', '.join(made)}"
                    if made
                    else f"{self.name} has no settings"
                )
            made[name] = _like(made[name], word, name)
        return made


def check_table(checks: Sequence[Check]) -> Table:
    """Write the checks as a table: n, mean and interval of each.

    Parameters
    ----------
    checks : sequence of Check
        In the order of the page.

    Returns
    -------
    Table
    """
    rows = []
    for check in checks:
        low, high = interval_of_mean(check.values)
        known = [value for value in check.values if not np.isnan(value)]
        side = "above" if check.above else "below"
        rows.append([
            check.name, f"{check.measured}, {side} {number(check.bound)}", check.status,
            f"{check.kept} of {len(check.values)}", number(statistics.fmean(known) if known else np.nan),
            f"{number(low)} to {number(high)}",
        ])  # fmt: skip
    return Table(
        "What decides",
        ["check", "measured, and the bound", "verdict", "kept in", "mean", "95% interval"],
        rows,
        "A check holds when the whole interval of its mean is on the right side of the bound, does not hold when it is "
        "on the wrong side, and is inconclusive otherwise, or from fewer than three repetitions.",
    )


def number(value: float) -> str:
    """Write a number in three digits or whole, a dash for NaN, never for infinity."""
    if not np.isfinite(value):
        return "-" if np.isnan(value) else "never"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value + 0.0:.3g}"


def spread(values: Sequence[float]) -> str:
    """Write mean ± sample standard deviation, of the finite values; the mean alone for one value."""
    finite = [value for value in values if np.isfinite(value)]
    if len(finite) < len(values):
        some = f"{spread(finite)} and " if finite else ""
        return f"{some}{len(values) - len(finite)} of {len(values)} beyond the limit"
    mean = number(statistics.fmean(values))
    return f"{mean} ± {number(statistics.stdev(values))}" if len(values) > 1 else mean


def style(index: int) -> dict[str, Any]:
    """Return colour, dashes and marker of the line with that number."""
    return {"color": COLORS[index], "linestyle": DASHES[index], "marker": MARKERS[index]}


def _like(before: Any, word: str, name: str) -> Any:
    """Read a word as a value of the same type."""
    try:
        if isinstance(before, bool):
            return {"true": True, "false": False}[word.lower()]
        if isinstance(before, list):
            return [_like(before[0], part, name) for part in word.split(",")]
        value = type(before)(word)
    except (ValueError, KeyError):
        raise LabError(f"{name} must be of the type of {before!r}; got {word!r}") from None
    if isinstance(value, int | float) and not value > 0:
        raise LabError(f"{name} must be above 0; got {word}")
    return value


def curves(
    name: str, title: str, caption: str, alt: str, label: str, lines: Mapping[str, Series], *, log: bool = False
) -> Picture:
    """Draw the mean over seeds as a line, from the lowest to the highest as a band, over steps.

    Parameters
    ----------
    name, title, caption, alt : str
        Of the picture.
    label : str
        Of the vertical axis.
    lines : mapping of str to Series
        By words.
    log : bool
        Whether the vertical axis is logarithmic.

    Returns
    -------
    Picture
    """
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        axes = figure.subplots()
        for index, (line, series) in enumerate(lines.items()):
            axes.plot(series.steps, series.mean, label=line, markevery=max(1, series.steps.size // 12), **style(index))
            axes.fill_between(series.steps, series.low, series.high, color=COLORS[index], alpha=0.15, linewidth=0)
        axes.set(xlabel="step", ylabel=label, yscale="log" if log else "linear")
        axes.legend()
    return Picture(name, title, caption, alt, figure)


def points(
    name: str, title: str, caption: str, alt: str, label: str, values: Mapping[str, Mapping[str, Sequence[float]]]
) -> Picture:
    """Draw each repetition as a point and the mean as a line.

    Parameters
    ----------
    name, title, caption, alt : str
        Of the picture.
    label : str
        Of the vertical axis.
    values : mapping of str to mapping of str to sequence of float
        By line, then by place on the horizontal axis.

    Returns
    -------
    Picture
    """
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        axes = figure.subplots()
        for index, (line, places) in enumerate(values.items()):
            for place, each in enumerate(places.values()):
                shown = [value for value in each if np.isfinite(value)]
                axes.scatter([place] * len(shown), shown, s=14, color=COLORS[index], marker=MARKERS[index], alpha=0.5)
            means = [statistics.fmean(each) for each in places.values()]
            axes.plot(range(len(means)), means, label=line, **style(index))
            axes.set_xticks(range(len(places)), list(places))
        axes.set_ylabel(label)
        if len(values) > 1:
            axes.legend()
    return Picture(name, title, caption, alt, figure)
