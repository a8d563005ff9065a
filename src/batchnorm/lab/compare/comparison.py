"""Steps to the same accuracy, with and without BN, seed by seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchnorm.lab.compare.artefacts import Trial

LEARNED = 0.1  # an arm has learned something when it is a tenth of the way from chance to perfect


@dataclass(frozen=True)
class Pair:
    """The two arms with one seed: the steps each needed to reach ``target``, the accuracy that the none arm ended with.

    ``outcome`` is "reached", "not reached", or why there is no target: "diverged" or "learned nothing". ``resolution``
    is the number of steps between the evaluation at which the batch arm was there and the one before.
    """

    seed: int
    outcome: str
    target: float | None
    none_steps: int | None
    batch_steps: int | None
    ratio: float | None
    resolution: int | None
    none_accuracy: float | None
    batch_accuracy: float | None
    batch_status: str


@dataclass(frozen=True)
class Comparison:
    """Both arms, over seeds. ``kind`` is "matched" (the same learning rate) or "best" (each arm at its own best).

    ``ratio`` is steps without BN over steps with BN: above 1, BN needed fewer. It is the median over the ``targets``
    pairs that have a target, where a pair that did not reach it ranks below all that did; None when the median is such
    a pair. ``ratio_low`` and ``ratio_high`` are over the ``reached`` pairs. ``gain`` is the mean of (final accuracy
    with BN minus without) over the pairs in which both have one.
    """

    kind: str
    none_lr: float
    batch_lr: float
    pairs: list[Pair]
    targets: int
    reached: int
    target: float | None
    none_steps: float | None
    batch_steps: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    gain: float | None


def compare(kind: str, trials: Iterable[Trial], none_lr: float, batch_lr: float, chance: float) -> Comparison | None:
    """Compare the arms seed by seed; None unless both arms were run at these rates with a common seed.

    The target of a seed is the accuracy that its none trial ended with (its last record). There is none when that trial
    diverged, or learned nothing: ended less than ``LEARNED`` of the way from chance to perfect, where any network is
    from the start.

    Parameters
    ----------
    kind : {'matched', 'best'}
        What to call the comparison.
    trials : iterable of Trial
        All trials of a run.
    none_lr, batch_lr : float
        The learning rate of each arm.
    chance : float
        Accuracy of guessing: one over the number of classes.

    Returns
    -------
    Comparison or None
    """
    by_key = {
        (trial.norm, trial.lr, trial.seed): trial for trial in trials if trial.steps.size or trial.status == "diverged"
    }
    seeds = [s for n, lr, s in by_key if n == "none" and lr == none_lr and ("batch", batch_lr, s) in by_key]
    pairs = [_pair(by_key["none", none_lr, s], by_key["batch", batch_lr, s], chance) for s in seeds]
    if not pairs:
        return None
    with_target = [pair for pair in pairs if pair.target is not None]
    ratios = [-np.inf if pair.ratio is None else pair.ratio for pair in with_target]
    finite = [ratio for ratio in ratios if np.isfinite(ratio)]
    batch_steps = [np.inf if pair.batch_steps is None else pair.batch_steps for pair in with_target]
    gains = [
        pair.batch_accuracy - pair.none_accuracy
        for pair in pairs
        if pair.batch_accuracy is not None and pair.none_accuracy is not None
    ]
    return Comparison(
        kind=kind,
        none_lr=none_lr,
        batch_lr=batch_lr,
        pairs=pairs,
        targets=len(with_target),
        reached=len(finite),
        target=mean([pair.target for pair in with_target if pair.target is not None]),
        none_steps=median([pair.none_steps for pair in with_target if pair.none_steps is not None]),
        batch_steps=median(batch_steps),
        ratio=median(ratios),
        ratio_low=min(finite, default=None),
        ratio_high=max(finite, default=None),
        gain=mean(gains),
    )


def _pair(none: Trial, batch: Trial, chance: float) -> Pair:
    none_accuracy, batch_accuracy = final_accuracy(none), final_accuracy(batch)
    target, outcome = none_accuracy, "not reached"
    none_steps = batch_steps = resolution = ratio = None
    if none_accuracy is None:
        target, outcome = None, "diverged"
    elif none.steps[-1] == 0 or none_accuracy < chance + LEARNED * (1 - chance):
        target, outcome = None, "learned nothing"
    else:
        none_steps, _ = _first(none, none_accuracy)
        batch_steps, resolution = _first(batch, none_accuracy)
        if none_steps is not None and batch_steps is not None:
            ratio, outcome = none_steps / batch_steps, "reached"
    return Pair(
        seed=none.seed,
        outcome=outcome,
        target=target,
        none_steps=none_steps,
        batch_steps=batch_steps,
        ratio=ratio,
        resolution=resolution,
        none_accuracy=none_accuracy,
        batch_accuracy=batch_accuracy,
        batch_status=batch.status,
    )


def _first(trial: Trial, target: float) -> tuple[int | None, int | None]:
    """Find the first evaluation after step 0 at or above ``target``: its step, and the gap before it."""
    hits = np.flatnonzero((trial.test_accuracy >= target) & (trial.steps > 0))
    if not hits.size:
        return None, None
    before = trial.steps[hits[0] - 1] if hits[0] else 0
    return int(trial.steps[hits[0]]), int(trial.steps[hits[0]] - before)


def final_accuracy(trial: Trial) -> float | None:
    """Give the accuracy of the last record; None for a trial that diverged or recorded nothing.

    Parameters
    ----------
    trial : Trial
        A trial.

    Returns
    -------
    float or None
    """
    if trial.status == "diverged" or not trial.steps.size or not np.isfinite(trial.test_accuracy[-1]):
        return None
    return float(trial.test_accuracy[-1])


def mean(values: Sequence[float]) -> float | None:
    """Average what is a finite number; None when nothing is.

    Parameters
    ----------
    values : sequence of float
        May be empty.

    Returns
    -------
    float or None
    """
    kept = [value for value in values if np.isfinite(value)]
    return float(np.mean(kept)) if kept else None


def median(values: Any) -> float | None:
    """Median of what is not missing; None when there is nothing, or when the median is not a finite number.

    Parameters
    ----------
    values : iterable of float or None
        None and NaN are missing; infinities are not, they rank first or last.

    Returns
    -------
    float or None
    """
    kept = [value for value in values if value is not None and not np.isnan(value)]
    if not kept:
        return None
    ordered = sorted(kept)
    middle = (ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2])
    return float(sum(middle) / 2) if np.isfinite(middle).all() else None
