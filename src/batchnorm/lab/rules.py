"""The definition of every number that the lab prints: one function each, its rule in the docstring.

The loop asks :func:`diverged` when a run ends; pages, tables and verdicts are made of the other functions. All of them
take plain numbers, and treat every arm alike.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special  # type: ignore[import-untyped]  # comes with scikit-learn

Floats = NDArray[np.float64]

#: A run whose loss ends above this many times that of guessing, and above where it began, has diverged.
GUESSING = 2.0
#: Accuracies to which steps are counted, beside the final accuracy of the baseline.
MARKS = (0.8, 0.9, 0.95)
#: Ratios this close to 1 are "about the same".
SAME = 0.05


@dataclass(frozen=True)
class Spread:
    """A quantity over the runs of an arm: how many have it, mean, standard deviation (None for one run), and range."""

    n: int
    mean: float
    std: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Best:
    """The best value of an axis, and what makes the choice doubtful.

    Attributes
    ----------
    value : float
        The chosen value of the axis.
    ties : list of float
        Other values that are as good to within the resolution of the test data.
    edge : bool
        The chosen value is the first or the last of several: a wider grid may hold a better one.
    """

    value: float
    ties: list[float]
    edge: bool


@dataclass(frozen=True)
class Ratio:
    """Steps of the baseline over steps of an arm to the same accuracy: above 1, the arm needed fewer.

    Attributes
    ----------
    value : float or None
        The median over seeds. None: the baseline or the arm did not get there; ``why`` says which.
    low, high : float or None
        The interval: the lowest and the highest over seeds, and over targets within one test example.
    why : str
        Empty, "baseline" or "arm".
    """

    value: float | None
    low: float | None
    high: float | None
    why: str


@dataclass(frozen=True)
class Reach:
    """Steps that an arm needed to an accuracy, at the value of the tuned axis with the fewest.

    Attributes
    ----------
    value : float or None
        The value of the tuned axis; None where nothing is tuned, or the accuracy was not reached.
    steps : float or None
        Median over seeds; None: not reached.
    each : list of float
        Of each seed at that value; inf where it was not reached.
    edge : bool
        The value is the first or the last of several.
    """

    value: float | None
    steps: float | None
    each: list[float]
    edge: bool


def diverged(loss: float, first: float, classes: int) -> str:
    """Say why a run that took its last step has diverged; empty if it has not.

    A run has diverged when a training loss is not finite, in any step; or when the mean training loss since the last
    record is, at the end, above twice the loss of guessing and above the loss of the first step. A run that is one
    record long is not judged by the second rule.

    Parameters
    ----------
    loss : float
        Mean training loss since the last record, at the end.
    first : float
        Training loss of the first step.
    classes : int
        Guessing has the loss ``log(classes)``.

    Returns
    -------
    str
    """
    guessing = math.log(classes)
    if loss <= max(GUESSING * guessing, first):
        return ""
    return (
        f"the training loss ended at {loss:.3g}, more than {GUESSING:g} times that of guessing, {guessing:.3g}, and "
        f"above where it began, {first:.3g}"
    )


def guessing_accuracy(classes: int, examples: int) -> float:
    """Return the accuracy that guessing hardly exceeds: one over the classes, and three standard errors on the data.

    An arm learned nothing when its accuracy is at most this.

    Parameters
    ----------
    classes, examples : int
        Of the data that are evaluated.

    Returns
    -------
    float
    """
    chance = 1 / classes
    return float(chance + 3 * (chance * (1 - chance) / examples) ** 0.5)


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return number, mean, sample standard deviation and range of the values that exist; None if none does."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    std = statistics.stdev(known) if len(known) > 1 else None
    return Spread(len(known), statistics.fmean(known), std, min(known), max(known))


def median(values: Sequence[float | None]) -> float | None:
    """Return the median, with None and inf ranked as later than everything; None when the median is one of those."""
    ranked = sorted(math.inf if value is None else value for value in values)
    found = statistics.median(ranked) if ranked else math.inf
    return float(found) if math.isfinite(found) else None


def steps_to(steps: Floats, accuracy: Floats, target: float) -> float:
    """Return the step of the first evaluation after step 0 whose accuracy is at least ``target``; inf if there is none.

    Parameters
    ----------
    steps, accuracy : ndarray of shape (T,)
        The evaluations of one run.
    target : float
        An accuracy.

    Returns
    -------
    float
    """
    there = np.flatnonzero((accuracy >= target) & (steps > 0))
    return float(steps[there[0]]) if there.size else math.inf


def target(finals: Mapping[float, Sequence[float]]) -> float | None:
    """Return the accuracy with which every seed of the baseline ended, at the best value of the tuned axis.

    The lowest over seeds, so that every run of the baseline reached it; the highest over the tuned axis. A value of the
    axis at which a run did not finish does not count. Two values that end equally high give the same target, and
    :func:`reach` then takes the quicker one, so that a tie changes no ratio.

    Parameters
    ----------
    finals : mapping of float to sequence of float
        Final accuracy of each seed, by value of the tuned axis.

    Returns
    -------
    float or None
        None when there is no finished run.
    """
    lowest = [min(each) for each in finals.values() if each]
    return max(lowest, default=None)


def reach(steps: Mapping[float, Sequence[float]], *, tuned: bool) -> Reach:
    """Return the steps to an accuracy at the value of the tuned axis that needs the fewest, in the median over seeds.

    Every arm is so compared at its own best for this accuracy. Of equal values the first counts that is no edge.

    Parameters
    ----------
    steps : mapping of float to sequence of float
        :func:`steps_to` of each seed, by value of the tuned axis, in the order of the axis.
    tuned : bool
        Report the value of the axis and whether it is an edge.

    Returns
    -------
    Reach
    """
    middles = {value: median(each) for value, each in steps.items()}
    known = {value: middle for value, middle in middles.items() if middle is not None}
    if not known:
        return Reach(None, None, [each for values in steps.values() for each in values], edge=False)
    value = min(known, key=lambda one: (known[one], _edge(one, list(steps))))
    return Reach(value if tuned else None, known[value], list(steps[value]), edge=tuned and _edge(value, list(steps)))


def ratio(baseline: Callable[[float], Reach], arm: Callable[[float], Reach], target: float, example: float) -> Ratio:
    """Return the steps of the baseline over those of an arm to ``target``, with an interval.

    The value is the quotient of the medians over seeds, each arm at the value of its tuned axis that needs the fewest
    steps. The interval holds the quotients of single seeds (paired by position, as seeds are) and those at targets one
    test example lower and higher, where both were reached: accuracies closer than one example cannot be told apart.

    Parameters
    ----------
    baseline, arm : callable
        From an accuracy to the :class:`Reach` of that arm.
    target : float
        An accuracy.
    example : float
        The resolution of the test data: one over the number of examples.

    Returns
    -------
    Ratio
    """
    without, with_arm = baseline(target), arm(target)
    if without.steps is None or with_arm.steps is None:
        return Ratio(None, None, None, "baseline" if without.steps is None else "arm")
    found = [without.steps / with_arm.steps]
    found += [a / b for a, b in zip(without.each, with_arm.each, strict=False) if math.isfinite(a) and math.isfinite(b)]
    for near in (target - example, target + example):
        pair = baseline(near).steps, arm(near).steps
        found += [pair[0] / pair[1]] if pair[0] is not None and pair[1] is not None else []
    return Ratio(found[0], min(found), max(found), "")


def best_over(finals: Mapping[float, Sequence[float]], losses: Mapping[float, float], example: float) -> Best | None:
    """Return the value of the tuned axis with the highest mean final accuracy.

    Then the lowest mean final loss, then the first value. A value at which a run did not finish is not eligible. Values
    whose mean accuracy is less than one test example lower are ties.

    Parameters
    ----------
    finals : mapping of float to sequence of float
        Final accuracy of each seed; empty where a run did not finish.
    losses : mapping of float to float
        Mean final loss.
    example : float
        One over the number of test examples.

    Returns
    -------
    Best or None
        None when no value is eligible.
    """
    means = {value: statistics.fmean(each) for value, each in finals.items() if each}
    if not means:
        return None
    chosen = min(means, key=lambda value: (-means[value], losses.get(value, math.inf)))
    ties = [value for value in means if value != chosen and means[chosen] - means[value] < example]
    return Best(chosen, ties, _edge(chosen, list(finals)))


def time_ratio(baseline: Mapping[object, float], arm: Mapping[object, float]) -> tuple[float, float, float] | None:
    """Return the median and the quartiles of time per step over that of the baseline, in pairs of the same key.

    Pairs are measured in turns on the same machine: same seed, same value of the tuned axis, same step.

    Parameters
    ----------
    baseline, arm : mapping to float
        Seconds per step.

    Returns
    -------
    tuple of float or None
        Median, lower and upper quartile; None without a pair.
    """
    ratios = [seconds / baseline[key] for key, seconds in arm.items() if baseline.get(key)]
    if not ratios:
        return None
    low, middle, high = (float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
    return middle, low, high


def drift(medians: Floats) -> Floats:
    """Return how far the median input of each unit travelled: the sum of its absolute changes between evaluations.

    Parameters
    ----------
    medians : ndarray of shape (T, U)
        The 50th percentile of the inputs to each unit, at each evaluation.

    Returns
    -------
    ndarray of shape (U,)
    """
    travelled: Floats = np.abs(np.diff(medians, axis=0)).sum(axis=0)
    return travelled


def settled_step(norm_momentum: float) -> int:
    """Return the step from which evaluations of running statistics count: less than 1 % of their start is left.

    Running statistics start at mean 0 and variance 1, of which a share of ``(1 - norm_momentum)**step`` is left.
    """
    if not 0 < norm_momentum < 1:
        return 1
    return math.ceil(math.log(0.01) / math.log1p(-norm_momentum))


def _edge(value: float, values: Sequence[float]) -> bool:
    return len(values) > 1 and value in {values[0], values[-1]}


HOLDS, FAILS, INCONCLUSIVE = "holds", "does not hold", "inconclusive"
#: Fewer repetitions decide nothing.
LEAST_REPETITIONS = 3
CONFIDENCE = 0.95


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval of the mean at 95 % confidence, by Student's distribution; NaN for fewer than two values.

    Parameters
    ----------
    values : sequence of float
        Independent repetitions; NaN is left out.

    Returns
    -------
    tuple of float
        Lower and upper end; NaN where a value is infinite.
    """
    values = [value for value in values if not math.isnan(value)]
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return math.nan, math.nan
    mean, std = statistics.fmean(values), statistics.stdev(values)
    reach = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * std / math.sqrt(n)
    return mean - reach, mean + reach


def decide(values: Sequence[float], bound: float, *, above: bool) -> str:
    """Return the verdict on a check: whether the mean keeps the bound.

    It holds when the whole 95 % interval of the mean is beyond the bound, does not hold when none of it is, and is
    inconclusive otherwise, and from fewer than three repetitions. NaN is a repetition that says nothing, and left out;
    an infinite value keeps no bound.

    Parameters
    ----------
    values : sequence of float
        Independent repetitions.
    bound : float
        What they must keep.
    above : bool
        Above it, or below.

    Returns
    -------
    {'holds', 'does not hold', 'inconclusive'}
    """
    values = [value for value in values if not math.isnan(value)]
    if len(values) < LEAST_REPETITIONS:
        return INCONCLUSIVE
    if not all(map(math.isfinite, values)):
        return FAILS
    low, high = interval_of_mean(values)
    if low == high == bound:
        return FAILS
    if above:
        return HOLDS if low > bound else FAILS if high <= bound else INCONCLUSIVE
    return HOLDS if high < bound else FAILS if low >= bound else INCONCLUSIVE
