"""The numbers of a report, computed once: the terminal, summary.json and the page only present them.

Every rule that chooses something (which part of the data decides, which runs count, what the target is) is written in
the docstring of the function that applies it, and is the same for every arm.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchnorm.lab.recording import TrainRun
from batchnorm.lab.report.arms import Arm, seed_of
from batchnorm.lab.report.series import Track, number, track

PARTS = ("test", "validation", "train_evaluation")


@dataclass(frozen=True)
class Spread:
    """A quantity over the runs of an arm: how many have it, mean, and standard deviation (None for one run)."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class RunNumbers:
    """One run. None stands for "no such number".

    Attributes
    ----------
    directory : str
        Where it was read from.
    seed : object
        Its seed.
    status, reason : str
        How it ended, and why when it did not finish.
    step : int
        Steps done.
    final_accuracy, final_loss : float or None
        At the last evaluation.
    best_accuracy, best_step : float or None
        At the best evaluation, by the rule of :func:`best_evaluation`.
    gap : float or None
        Accuracy on training data in evaluation mode minus on the part that decides, at the end.
    seconds : float or None
        Time spent.
    examples_per_second : float or None
        Median over the records.
    target_step, target_seconds : float or None
        When the target was first reached.
    """

    directory: str
    seed: Any
    status: str
    reason: str
    step: int
    final_accuracy: float | None
    final_loss: float | None
    best_accuracy: float | None
    best_step: float | None
    gap: float | None
    seconds: float | None
    examples_per_second: float | None
    target_step: float | None
    target_seconds: float | None


@dataclass(frozen=True)
class ArmNumbers:
    """One arm: its runs, and what they come to.

    Attributes
    ----------
    name : str
        Of the arm.
    settings : dict
        In which it differs from the others.
    runs : list of RunNumbers
        All of them.
    basis : str
        The status of the runs that the following are over.
    final_accuracy, best_accuracy, final_loss, gap, examples_per_second : Spread or None
        Over those runs.
    reached : int
        Of those runs, how many reached the target.
    target_step, target_seconds : float or None
        Median over those runs, where one that did not reach it ranks last; None when the median is such a run.
    """

    name: str
    settings: dict[str, Any]
    runs: list[RunNumbers]
    basis: str
    final_accuracy: Spread | None
    best_accuracy: Spread | None
    final_loss: Spread | None
    gap: Spread | None
    examples_per_second: Spread | None
    reached: int
    target_step: float | None
    target_seconds: float | None


@dataclass(frozen=True)
class Numbers:
    """All numbers of a report.

    Attributes
    ----------
    part : str or None
        The part of the data whose accuracy decides; None: nothing was evaluated.
    chosen_on : str or None
        The part on which the best evaluation of a run is chosen.
    target : float or None
        The accuracy that the first arm reached in every run.
    arms : list of ArmNumbers
        In the order of the page; the first is what the others are measured against.
    """

    part: str | None
    chosen_on: str | None
    target: float | None
    arms: list[ArmNumbers]


def summarize(arms: Sequence[Arm]) -> Numbers:
    """Compute every number that is shown anywhere.

    The target is the best accuracy that the first arm reached in each of its runs: the lowest of their best ones. An
    arm that did no better than guessing sets none.

    Parameters
    ----------
    arms : sequence of Arm
        The first is what the others are measured against.

    Returns
    -------
    Numbers
    """
    part = deciding_part(arms)
    chosen_on = "validation" if part == "test" and all(_has(arm, "validation") for arm in arms) else part
    best = [best_evaluation(run, part, chosen_on)[0] for run in arms[0].basis]
    known = [accuracy for accuracy in best if accuracy is not None]
    target = min(known) if known and arms[0].basis[0].status in {"finished", "interrupted"} else None
    if target is not None and target <= guessing(arms[0].runs[0], part):
        target = None
    return Numbers(part, chosen_on, target, [_arm(arm, part, chosen_on, target) for arm in arms])


def deciding_part(arms: Sequence[Arm]) -> str | None:
    """Say which part of the data decides: of test, validation and training data, the first evaluated in every arm.

    A part that was evaluated more than once in every arm goes before one that was not: a single evaluation, at the end,
    says nothing about the way there.

    Parameters
    ----------
    arms : sequence of Arm
        Those without a record do not count.

    Returns
    -------
    str or None
        None when no part was evaluated in every arm.
    """
    counted = [arm for arm in arms if any(run.metrics for run in arm.runs)]
    for least in (2, 1):
        for part in PARTS:
            if counted and all(_has(arm, part, least) for arm in counted):
                return part
    return None


def best_evaluation(run: TrainRun, part: str | None, chosen_on: str | None) -> tuple[float | None, float | None]:
    """Find the best evaluation of a run: the first with the highest accuracy on the part ``chosen_on``.

    Parameters
    ----------
    run : TrainRun
        The run.
    part : str or None
        The part whose accuracy is wanted.
    chosen_on : str or None
        The part on which it is chosen: validation data when there are any, so that the choice is not made on what it
        is judged by.

    Returns
    -------
    tuple of (float or None, float or None)
        Accuracy on ``part``, and the step.
    """
    if part is None or chosen_on is None:
        return None, None
    own, chooser = accuracy(run, part), accuracy(run, chosen_on)
    if not own.steps.size:
        return None, None
    if part != chosen_on:
        common = np.isin(chooser.steps, own.steps)
        if common.any():
            step = chooser.steps[common][np.nanargmax(chooser.values[common])]
            return float(own.values[own.steps == step][0]), float(step)
    index = int(np.nanargmax(own.values))
    return float(own.values[index]), float(own.steps[index])


def guessing(run: TrainRun, part: str | None) -> float:
    """Give the accuracy that guessing hardly exceeds: one over the classes, and three standard errors on a part."""
    data = run.config["data"]
    chance = 1 / data["classes"]
    examples = data["train" if part == "train_evaluation" else part or "test"]
    return float(chance + 3 * (chance * (1 - chance) / examples) ** 0.5)


def evaluation_spacing(arm: Arm, part: str | None) -> list[float]:
    """Give for each run of an arm the steps between its evaluations, where there are several: the median."""
    found = [np.diff(accuracy(run, part).steps) for run in arm.runs] if part else []
    return [float(np.median(steps)) for steps in found if steps.size]


def accuracy(run: TrainRun, part: str) -> Track:
    """Give the accuracy of a run on one part of the data."""
    return track(run.of_kind(part), lambda record: record.get("accuracy"))


def _has(arm: Arm, part: str, least: int = 1) -> bool:
    return any(accuracy(run, part).steps.size >= least for run in arm.runs)


def _arm(arm: Arm, part: str | None, chosen_on: str | None, target: float | None) -> ArmNumbers:
    runs = [_run(run, part, chosen_on, target) for run in arm.runs]
    basis = [one for one, run in zip(runs, arm.runs, strict=True) if run in arm.basis]
    lost = basis[0].status not in {"finished", "interrupted"}
    counted = [] if lost else basis
    reached = [run for run in counted if run.target_step is not None]
    return ArmNumbers(
        arm.name,
        arm.settings,
        runs,
        basis[0].status,
        final_accuracy=_spread([run.final_accuracy for run in counted]),
        best_accuracy=_spread([run.best_accuracy for run in counted]),
        final_loss=_spread([run.final_loss for run in counted]),
        gap=_spread([run.gap for run in counted]),
        examples_per_second=_spread([run.examples_per_second for run in counted]),
        reached=len(reached),
        target_step=_median([run.target_step for run in counted]),
        target_seconds=_median([run.target_seconds for run in counted]),
    )


def _run(run: TrainRun, part: str | None, chosen_on: str | None, target: float | None) -> RunNumbers:
    best, best_step = best_evaluation(run, part, chosen_on)
    last = run.of_kind(part)[-1:] if part else []
    final = _last(accuracy(run, part)) if part else None
    seen = _last(accuracy(run, "train_evaluation")) if part != "train_evaluation" else None
    target_step = target_seconds = None
    if part is not None and target is not None:
        own = accuracy(run, part)
        if (there := np.flatnonzero(own.values >= target)).size:
            target_step, target_seconds = float(own.steps[there[0]]), _finite(own.seconds[there[0]])
    speed = track(run.of_kind("train"), lambda record: record.get("examples_per_second")).values
    seconds = [number(record.get("seconds")) for record in run.metrics]
    return RunNumbers(
        directory=str(run.path),
        seed=seed_of(run),
        status=run.status,
        reason=run.reason,
        step=run.step,
        final_accuracy=final,
        final_loss=_finite(number(last[0].get("loss"))) if last else None,
        best_accuracy=best,
        best_step=best_step,
        gap=None if final is None or seen is None else seen - final,
        seconds=_finite(np.nanmax(seconds)) if np.isfinite(seconds).any() else None,
        examples_per_second=float(np.nanmedian(speed)) if speed.size else None,
        target_step=target_step,
        target_seconds=target_seconds,
    )


def _last(values: Track) -> float | None:
    return float(values.values[-1]) if values.values.size else None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(len(known), statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def _median(values: Sequence[float | None]) -> float | None:
    """Take the median, with None ranked as later than everything; None when the median is one of those."""
    ranked = sorted(np.inf if value is None else value for value in values)
    return _finite(statistics.median(ranked)) if ranked else None
