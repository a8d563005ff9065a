"""Ioffe and Szegedy, figure 3: steps of Inception to its accuracy, without BN, with BN, and with the seven changes."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from batchnorm.lab import rules
from batchnorm.lab.experiments.bare_loop import few_images
from batchnorm.lab.experiments.claims.form import (
    Arrays,
    Check,
    Claim,
    Findings,
    Measurement,
    Record,
    Settings,
    number,
    spread,
    style,
)
from batchnorm.lab.experiments.seven_changes import CHANGES, CHOICES, curve_of, settings_with
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.rules import Floats, Ratio, Reach
from batchnorm.lab.wording import Table, factor

#: Test accuracies to which steps are counted beside that of Inception.
MARKS = (0.15, 0.2, 0.4, 0.6)
#: Normalization, changes, and settings beyond them.
ARMS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "Inception": ("none", (), {}),
    "BN-Baseline": ("batch", (), {}),
    "BN-x5": ("batch", tuple(CHANGES), {}),
    "BN-x30": ("batch", tuple(CHANGES), {"times": 30.0}),
    "BN-x5-Sigmoid": ("batch", tuple(CHANGES), {"activation": "sigmoid"}),
}


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train all arms from the same weights."""
    images = few_images(settings["data"], settings["train"], settings["test"], settings["side"])
    for seed in range(settings["seeds"]):
        for arm, (norm, changes, beyond) in ARMS.items():
            times = settings["longer"] if norm == "none" else 1
            sizes = {**settings, "steps": times * settings["steps"]}
            found = curve_of(images, {**settings_with(changes), **beyond}, sizes, norm=norm, seed=seed)
            record = {"seed": seed, "arm": arm, "most": max(found.accuracy, default=0.0), "classes": images.classes,
                      "test": len(images.y_test)}  # fmt: skip
            yield Measurement(f"seed {seed}, {arm}", [record], {f"{arm}/{seed}": np.array(found)})


def _reach(arrays: Arrays, seeds: int, arm: str, target: float) -> Reach:
    curves: list[Floats] = [arrays[f"{arm}/{seed}"] for seed in range(seeds)]
    return rules.reach({0.0: [rules.steps_to(steps, right, target) for steps, right in curves]}, tuned=False)


def times_fewer(baseline: float, arm: float, baseline_length: float, arm_length: float) -> float:
    """Return the ratio of steps, from the steps of both (inf: not reached) and how long they trained.

    A baseline that was not there when it ended counts as there at that step, which is a lower bound. inf: the arm
    trained as long as the baseline needed, and was not there. NaN: it did not, or neither was there.
    """
    if np.isfinite(arm):
        return min(baseline, baseline_length) / arm
    return np.inf if np.isfinite(baseline) and arm_length >= baseline else np.nan


def _find(settings: Settings, records: Sequence[Record], arrays: Arrays) -> Findings:
    seeds, classes, examples = settings["seeds"], records[0]["classes"], records[0]["test"]
    most = {arm: [r["most"] for r in records if r["arm"] == arm] for arm in ARMS}
    guessing = rules.guessing_accuracy(classes, examples)
    found = rules.target({0.0: most["Inception"]})
    target = found if found is not None and found > guessing else np.nan
    reached = {arm: partial(_reach, arrays, seeds, arm) for arm in ARMS}
    each = {arm: reached[arm](target).each for arm in ARMS}
    ratios = {arm: rules.ratio(reached["Inception"], reached[arm], target, 1 / examples) for arm in ARMS}

    def length(arm: str) -> int:
        return int(settings["steps"] * (settings["longer"] if ARMS[arm][0] == "none" else 1))

    def fewer(baseline: str, arm: str) -> list[float]:
        whole = length(arm) // settings["every"]
        diverged = [arrays[f"{arm}/{seed}"].shape[1] < whole for seed in range(seeds)]
        return [
            times_fewer(a, b, length(baseline), np.inf if ended else length(arm))
            for a, b, ended in zip(each[baseline], each[arm], diverged, strict=True)
        ]

    above = [100 * (a - b) for a, b in zip(most["BN-x30"], most["Inception"], strict=True)]
    learned = [100 * (value - guessing) for value in most["BN-x5-Sigmoid"]]
    goal = f"{100 * target:.1f} %, Inception's accuracy" if np.isfinite(target) else "Inception's accuracy"
    rows = []
    for arm, one in ratios.items():
        steps = reached[arm](target).steps
        needed = f"not in {length(arm)}" if steps is None else number(steps)
        rows.append([arm, needed, factor(one.value), _interval(one), spread([100 * value for value in most[arm]])])
    marks = [mark for mark in MARKS if mark > guessing]
    to_marks = [[arm, *(_with_interval(rules.ratio(reached["Inception"], reached[arm], mark, 1 / examples))
                        for mark in marks)] for arm in list(ARMS)[1:]]  # fmt: skip
    with mpl.rc_context(SETTINGS):
        picture = _curves(settings, arrays, target)
    steps = settings["longer"] * settings["steps"]
    end = f"; the maximum of BN-x30 is {spread(above)} points higher."
    if not np.isfinite(target):
        headline = f"Inception without BN learned nothing in {steps} steps, so none can be counted" + end
    else:
        there = [f"{arm} needs {factor(one.value)} fewer steps ({_interval(one)})" for arm, one in ratios.items()
                 if one.value is not None][1:]  # fmt: skip
        late = [arm for arm, one in ratios.items() if one.value is None]
        headline = f"To {goal}, " + ", ".join(there or ["no other network gets"])
        headline += f"; {' and '.join(late)} not within {settings['steps']} steps" * bool(late) + end
    return Findings(
        headline,
        [Check("BN-Baseline: fewer steps than Inception", "ratio of steps", fewer("Inception", "BN-Baseline"), 1.0),
         Check("BN-x5: fewer steps than BN-Baseline", "ratio of steps", fewer("BN-Baseline", "BN-x5"), 1.0),
         Check("BN-x30: higher maximum than Inception", "points of accuracy", above, 0.0),
         Check("BN-x5-Sigmoid: learns", "points above guessing", learned, 0.0)],
        [picture],
        tables=[Table("The ladder", ["network", f"steps to {goal}", "times fewer", "interval", "maximum (%)"], rows,
                      "Steps: median over seeds. Interval: over seeds, and over targets one test example lower and "
                      "higher. Maximum: mean over seeds ± standard deviation."),
                Table("Times fewer steps than Inception", ["to", *(f"{100 * mark:g} %" for mark in marks)], to_marks,
                      "With the interval. Accuracies on the way, when the end decides nothing.")],
        limits=[(f"{examples:,} test images: one is {100 / examples:.2g} points. Evaluated every {settings['every']} "
                 "steps; the maximum is over these.")],
        numbers=[CHOICES],
        definitions=[("Inception's accuracy", "The lowest over seeds of the highest that the network without BN had."),
                     ("times fewer", ("Steps of Inception over those of the network. One that was not there, and "
                                      "trained for fewer steps than Inception needed, says nothing.")),
                     ("x5, x30", "Times the learning rate of Inception; with the other six changes of section 4.2.1.")],
    )  # fmt: skip


def _interval(ratio: Ratio) -> str:
    return "-" if ratio.value is None else f"{factor(ratio.low)} to {factor(ratio.high)}"


def _with_interval(ratio: Ratio) -> str:
    return "-" if ratio.value is None else f"{factor(ratio.value)} ({_interval(ratio)})"


def _curves(settings: Settings, arrays: Arrays, target: float) -> Picture:
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, arm in enumerate(ARMS):
        curves = [arrays[f"{arm}/{seed}"] for seed in range(settings["seeds"])]
        length = min(curve.shape[1] for curve in curves)  # a training that diverged ends early
        right = 100 * np.array([curve[1, :length] for curve in curves])
        steps = curves[0][0, :length]
        axes.plot(steps, right.mean(axis=0), label=arm, markevery=3, **style(index))
        axes.fill_between(steps, right.min(axis=0), right.max(axis=0), color=style(index)["color"], alpha=0.15, lw=0)
    if np.isfinite(target):
        axes.axhline(100 * target, color="#555555", lw=0.9, label="Inception's accuracy")
    axes.set(xlabel="training steps", ylabel="test accuracy (%)")
    axes.legend(loc="lower right", ncols=2)
    return Picture("ladder", "Accuracy by step", "Line: mean over seeds; band: lowest to highest.",
                   "Test accuracy against training steps, five networks.", figure)  # fmt: skip


_SIZES = {"data": "cifar10", "batch": 32, "lr": 0.01, "longer": 4}
CLAIM = Claim(
    name="inception-ladder",
    sentence="With batch normalization Inception gets to the same accuracy in fewer steps, with the seven changes in "
    "far fewer; with 30 times the rate it ends higher, and with sigmoids it learns too.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, section 4.2.2, figure 3",
    protocol="Inception without BN, with it (BN-Baseline), with the seven changes at 5 and 30 times the learning rate, "
    "and at 5 times with sigmoids; all from the same weights.",
    rule="To the accuracy of Inception, BN-Baseline needs fewer steps than Inception, BN-x5 fewer than BN-Baseline; "
    "the maximum of BN-x30 is above that of Inception, that of BN-x5-Sigmoid above guessing.",
    budgets={
        "small": {"seeds": 3, "train": 2000, "test": 500, "side": 16, "width": 0.125, "steps": 200, "every": 10,
                  **_SIZES},
        "full": {"seeds": 3, "train": 50000, "test": 10000, "side": 32, "width": 0.5, "steps": 20000, "every": 250,
                 **_SIZES},
    },
    cost={"small": "4 min", "full": "about 60 h, estimated"},
    published="Steps to 72.2 %: Inception 31.0 million, BN-Baseline 13.3, BN-x5 2.1 (14 times fewer than Inception), "
    "BN-x30 2.7, BN-x5-Sigmoid never; maximum 72.2, 72.7, 73.0, 74.8 and 69.8 % (section 4.2.2, figure 3).",
    differs="An Inception of a few filters on some CIFAR-10 images of half the side, in hundreds of steps; there 13.6 "
    "million parameters on ImageNet. The base rate is that of the lab's recipe without BN (0.01; there 0.0015). "
    "Inception without BN trains four times as long as the others, so that it has an accuracy to count to.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(ARMS),
)  # fmt: skip
