"""The numbers of a study, computed once: the terminal, summary.json and the page only present them.

The definition of each is in ``batchnorm.lab.rules``; here the records are brought into their form.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchnorm.lab import rules
from batchnorm.lab.experiments.series import Track, number, track
from batchnorm.lab.experiments.study import Arm, Group, Study, seed_of
from batchnorm.lab.recording import TrainRun
from batchnorm.lab.rules import Best, Ratio, Reach, Spread

SPLITS = ("test", "validation", "train_evaluation")


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
        Accuracy on training data in evaluation mode minus on the split that decides, at the end.
    seconds : float or None
        Time spent.
    examples_per_second : float or None
        Median over the records.
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
    steps : list of float or None
        Steps to each mark, median over those runs; None: not reached.
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
    steps: list[float | None]


@dataclass(frozen=True)
class GroupNumbers:
    """One choice of what is compared, over the tuned axis.

    Attributes
    ----------
    name : str
        Of the group.
    arms : dict of float to ArmNumbers
        By value of the tuned axis.
    best : Best or None
        The value with the highest final accuracy.
    reaches : list of Reach
        Steps to each mark, at the value that needs the fewest.
    ratios : list of Ratio
        Steps of the baseline over those, for each mark; empty for the baseline.
    matched : list of dict of float to (float or None)
        The ratio at each mark where both have the same value of the tuned axis; empty for the baseline.
    time_ratio : tuple of float or None
        Seconds per step over those of the baseline in pairs: median and quartiles.
    """

    name: str
    arms: dict[float, ArmNumbers]
    best: Best | None
    reaches: list[Reach]
    ratios: list[Ratio]
    matched: list[dict[float, float | None]]
    time_ratio: tuple[float, float, float] | None

    @property
    def shown(self) -> ArmNumbers:
        """The arm that stands for the group: at its best value, else the first."""
        return self.arms[next(iter(self.arms)) if self.best is None else self.best.value]


@dataclass(frozen=True)
class Numbers:
    """All numbers of a page.

    Attributes
    ----------
    split : str or None
        The split of the data whose accuracy decides; None: nothing was evaluated.
    chosen_on : str or None
        The split on which the best evaluation of a run is chosen.
    example : float
        One over the examples of that split: accuracies that are closer cannot be told apart.
    guessing : float
        The accuracy that guessing hardly exceeds.
    target : float or None
        The accuracy that the baseline ended with in every seed; None: it learned nothing, or nothing is compared.
    marks : list of float
        Accuracies to which steps are counted, in increasing order; the target is one of them.
    groups : list of GroupNumbers
        The first is the baseline.
    """

    split: str | None
    chosen_on: str | None
    example: float
    guessing: float
    target: float | None
    marks: list[float]
    groups: list[GroupNumbers]

    @property
    def arms(self) -> list[ArmNumbers]:
        """Every arm, group by group."""
        return [arm for group in self.groups for arm in group.arms.values()]


def summarize(study: Study) -> Numbers:
    """Compute every number that is shown anywhere.

    Parameters
    ----------
    study : Study
        The runs.

    Returns
    -------
    Numbers
    """
    arms = study.arms
    split = deciding_split(arms)
    validated = split == "test" and all(_has(arm, "validation") for arm in arms)
    chosen_on = "validation" if validated else split
    example, least = _resolution(arms, split)
    target, marks = None, []
    if split is not None and len(study.groups) > 1 and len({_data_of(arm) for arm in arms}) == 1:
        target = rules.target({value: _finals(arm, split) for value, arm in study.groups[0].arms.items()})
        target = None if target is None or target <= least else target
        asked = rules.MARKS if study.plan is None else study.plan.marks
        reached = [
            mark for mark in asked if mark > least and any(_reached(group, split, mark) for group in study.groups)
        ]
        marks = sorted({*reached, *([] if target is None else [target])})
    numbered = [_group(group, study, split, chosen_on, example, marks) for group in study.groups]
    return Numbers(split, chosen_on, example, least, target, marks, numbered)


def deciding_split(arms: Sequence[Arm]) -> str | None:
    """Say which split of the data decides: of test, validation and training data, the first evaluated in every arm.

    A split that was evaluated more than once in every arm goes before one that was not: a single evaluation, at the
    end, says nothing about the way there.

    Parameters
    ----------
    arms : sequence of Arm
        Those without a record do not count.

    Returns
    -------
    str or None
        None when no split was evaluated in every arm.
    """
    counted = [arm for arm in arms if any(run.metrics for run in arm.runs)]
    for least in (2, 1):
        for split in SPLITS:
            if counted and all(_has(arm, split, least) for arm in counted):
                return split
    return None


def best_evaluation(run: TrainRun, split: str | None, chosen_on: str | None) -> tuple[float | None, float | None]:
    """Find the best evaluation of a run: the first with the highest accuracy on the split ``chosen_on``.

    Parameters
    ----------
    run : TrainRun
        The run.
    split : str or None
        The split whose accuracy is wanted.
    chosen_on : str or None
        The split on which it is chosen: validation data when there are any, so that the choice is not made on what it
        is judged by.

    Returns
    -------
    tuple of (float or None, float or None)
        Accuracy on ``split``, and the step.
    """
    if split is None or chosen_on is None:
        return None, None
    own, chooser = accuracy(run, split), accuracy(run, chosen_on)
    if not own.steps.size:
        return None, None
    if split != chosen_on:
        common = np.isin(chooser.steps, own.steps)
        if common.any():
            step = chooser.steps[common][np.nanargmax(chooser.values[common])]
            return float(own.values[own.steps == step][0]), float(step)
    index = int(np.nanargmax(own.values))
    return float(own.values[index]), float(own.steps[index])


def evaluation_spacing(arm: Arm, split: str | None) -> list[float]:
    """Give for each run of an arm the steps between its evaluations, where there are several: the median."""
    found = [np.diff(accuracy(run, split).steps) for run in arm.runs] if split else []
    return [float(np.median(steps)) for steps in found if steps.size]


def accuracy(run: TrainRun, split: str) -> Track:
    """Give the accuracy of a run on one split of the data."""
    return track(run.of_kind(split), lambda record: record.get("accuracy"))


def _has(arm: Arm, split: str, least: int = 1) -> bool:
    return any(accuracy(run, split).steps.size >= least for run in arm.runs)


def _data_of(arm: Arm) -> str:
    return str(arm.runs[0].config["data"].get("name"))


def _resolution(arms: Sequence[Arm], split: str | None) -> tuple[float, float]:
    """Return one over the examples of the split, and the accuracy that guessing hardly exceeds."""
    data = arms[0].runs[0].config["data"]
    examples = data["train" if split == "train_evaluation" else split or "test"]
    return 1 / max(1, examples), rules.guessing_accuracy(data["classes"], max(1, examples))


def _finals(arm: Arm, split: str) -> list[float]:
    """Return the final accuracy of each seed; nothing where a run diverged or failed."""
    if any(run.status in {"diverged", "failed"} for run in arm.runs):
        return []
    tracks = [accuracy(run, split) for run in arm.basis]
    return [float(one.values[-1]) for one in tracks if one.values.size]


def _steps(arm: Arm, split: str, mark: float) -> list[float]:
    if any(run.status in {"diverged", "failed"} for run in arm.runs):
        return [math.inf] * len(arm.runs)
    tracks = [accuracy(run, split) for run in arm.basis]
    return [rules.steps_to(one.steps, one.values, mark) for one in tracks]


def _reach(group: Group, study: Study, split: str, mark: float) -> Reach:
    by_value = {value: _steps(arm, split, mark) for value, arm in group.arms.items()}
    return rules.reach(by_value, tuned=bool(study.tuned))


def _reached(group: Group, split: str, mark: float) -> bool:
    return any(math.isfinite(step) for arm in group.arms.values() for step in _steps(arm, split, mark))


def _group(
    group: Group, study: Study, split: str | None, chosen_on: str | None, example: float, marks: Sequence[float]
) -> GroupNumbers:
    baseline = study.groups[0]
    arms = {value: _arm(arm, split, chosen_on, marks) for value, arm in group.arms.items()}
    losses = {value: arm.final_loss.mean for value, arm in arms.items() if arm.final_loss is not None}
    best = None
    if split is not None:
        best = rules.best_over({value: _finals(arm, split) for value, arm in group.arms.items()}, losses, example)
    ratios, matched = [], []
    if split is not None and group is not baseline:
        ratios = [
            rules.ratio(
                lambda target: _reach(baseline, study, split, target),
                lambda target: _reach(group, study, split, target),
                mark,
                example,
            )
            for mark in marks
        ]
        matched = [_matched(baseline, group, split, mark) for mark in marks]
    return GroupNumbers(
        group.name,
        arms,
        best,
        [] if split is None else [_reach(group, study, split, mark) for mark in marks],
        ratios,
        matched,
        None if group is baseline or study.plan is None else rules.time_ratio(_seconds(baseline), _seconds(group)),
    )


def _matched(baseline: Group, group: Group, split: str, mark: float) -> dict[float, float | None]:
    found: dict[float, float | None] = {}
    for value, arm in group.arms.items():
        if value in baseline.arms:
            pair = [rules.median(_steps(one, split, mark)) for one in (baseline.arms[value], arm)]
            found[value] = pair[0] / pair[1] if pair[0] is not None and pair[1] is not None else None
    return found


def _seconds(group: Group) -> dict[object, float]:
    """Return seconds per step by tuned value, seed and step."""
    return {
        (value, seed_of(run), record["step"]): seconds
        for value, arm in group.arms.items()
        for run in arm.runs
        for record in run.of_kind("train")
        if math.isfinite(seconds := number(record.get("step_seconds")))
    }


def _arm(arm: Arm, split: str | None, chosen_on: str | None, marks: Sequence[float]) -> ArmNumbers:
    runs = [_run(run, split, chosen_on) for run in arm.runs]
    basis = [one for one, run in zip(runs, arm.runs, strict=True) if run in arm.basis]
    counted = basis if basis[0].status in {"finished", "interrupted"} else []
    return ArmNumbers(
        arm.name,
        arm.settings,
        runs,
        basis[0].status,
        final_accuracy=rules.spread([run.final_accuracy for run in counted]),
        best_accuracy=rules.spread([run.best_accuracy for run in counted]),
        final_loss=rules.spread([run.final_loss for run in counted]),
        gap=rules.spread([run.gap for run in counted]),
        examples_per_second=rules.spread([run.examples_per_second for run in counted]),
        steps=[] if split is None else [rules.median(_steps(arm, split, mark)) for mark in marks],
    )


def _run(run: TrainRun, split: str | None, chosen_on: str | None) -> RunNumbers:
    best, best_step = best_evaluation(run, split, chosen_on)
    last = run.of_kind(split)[-1:] if split else []
    final = _last(accuracy(run, split)) if split else None
    seen = _last(accuracy(run, "train_evaluation")) if split != "train_evaluation" else None
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
    )


def _last(values: Track) -> float | None:
    return float(values.values[-1]) if values.values.size else None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
