"""Ioffe and Szegedy, figure 1a: with batch normalization the network learns in fewer steps, and ends higher."""

import math
from dataclasses import replace

from batchnorm.lab.experiments.claims.form import Check, Claim, Findings, Settings, curves, number, spread
from batchnorm.lab.experiments.compare import as_in_the_paper
from batchnorm.lab.experiments.numbers import Numbers
from batchnorm.lab.experiments.plan import Plan, vary
from batchnorm.lab.experiments.series import quantity
from batchnorm.lab.experiments.study import Study
from batchnorm.lab.rules import Reach
from batchnorm.lab.training import TrainConfig


def _plan(settings: Settings) -> Plan:
    base = TrainConfig(
        data=settings["data"], model="mlp", steps=settings["steps"], evaluate_every=settings["every"], train_subset=0,
        probes=(),
    )  # fmt: skip
    axes = {
        "seed": vary("seed", range(settings["seeds"])),
        "lr": vary("lr", settings["lr"]),
        "norm": vary("norm", ["none", "batch"]),
    }
    question = "Does the network reach the best accuracy without BN in fewer steps with it, and end higher?"
    return Plan(
        question, replace(as_in_the_paper(base), units=False), axes, rule=CLAIM.rule, interleave=("norm",), tuned="lr"
    )


def ratios(without: Reach, with_bn: Reach, steps: int) -> list[float]:
    """Return the ratio of steps to the same accuracy of each seed, a lower bound where only the first has not arrived.

    NaN where neither has, 0 where only the second has not.
    """
    if with_bn.steps is None:
        return [0.0] * len(without.each)
    found = []
    for slow, quick in zip(without.each, with_bn.each, strict=True):
        neither = math.isinf(slow) and math.isinf(quick)
        found.append(math.nan if neither else min(slow, float(steps)) / quick)
    return found


def _find(settings: Settings, study: Study, numbers: Numbers) -> Findings:
    none, batch = numbers.groups
    fewer = [math.nan] * settings["seeds"]
    if numbers.target is not None:
        mark = numbers.marks.index(numbers.target)
        fewer = ratios(none.reaches[mark], batch.reaches[mark], settings["steps"])
    ends = [[run.final_accuracy for run in group.shown.runs] for group in (none, batch)]
    higher = [
        math.nan if a is None or b is None else 100 * (b - a)
        for a, b in zip(*ends, strict=True)
    ]  # fmt: skip
    arms = [group.arms[0.0 if one.best is None else one.best.value]
            for group, one in zip(study.groups, numbers.groups, strict=True)]  # fmt: skip
    found = quantity(arms, "", lambda run: run.of_kind("test"), lambda record: record.get("accuracy"))
    assert found is not None
    edges = [group.name for group in numbers.groups if group.best is not None and group.best.edge]
    words = {f"{group.name}, rate {number(one.best.value if one.best else math.nan)}": found.series[index]
             for index, (group, one) in enumerate(zip(study.groups, numbers.groups, strict=True))
             if index in found.series}  # fmt: skip
    goal = "-" if numbers.target is None else f"{100 * numbers.target:.1f} %"
    return Findings(
        f"To {goal}, which every seed without BN ends with at its best rate, it takes {spread(fewer)} times "
        f"as many steps as with BN; at the end BN is {spread(higher)} points higher.",
        [Check("fewer steps to the best accuracy without BN", "ratio of steps, each at the rate that gets there first",
               fewer, 1.0),
         Check("higher at the end", "points of test accuracy, each at its best rate", higher, 0.0)],
        [curves("accuracy", "Test accuracy, each at its best rate", "Line: mean over seeds; band: lowest to highest.",
                "Test accuracy over steps without and with batch normalization.", "accuracy", words)],
        limits=[f"The best rate with {name} is at the edge of the grid." for name in edges],
        numbers=[("Rates are chosen on the test data that also judge them, the same way for both. A seed without BN "
                 "that does not arrive counts with all steps of the run.")],
    )  # fmt: skip


_SIZES = {"data": "mnist_binary", "lr": [0.1, 0.3, 1.0, 3.0, 10.0]}
CLAIM = Claim(
    name="fewer-steps",
    sentence="With batch normalization a network reaches the best accuracy of the same network without it in fewer "
    "steps, and ends at a higher one.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, section 4.1, figure 1a",
    protocol="Binary MNIST, three hidden layers of 100 sigmoids, batches of 60, plain SGD, both from the same weights "
    "on the same batches, at each rate of a grid.",
    rule="The ratio of steps to the accuracy with which every seed without BN ends at its best rate is above 1, each "
    "arm at the rate that gets there first; and the final accuracy, each at its best rate, is higher with BN.",
    budgets={
        "small": {"seeds": 5, "steps": 1000, "every": 50, **_SIZES},
        "full": {"seeds": 5, "steps": 50000, "every": 500, **_SIZES},
    },
    cost={"small": "3 min", "full": "3 h, estimated"},
    published="The figure shows both; no number is printed.",
    differs="1000 steps at the small budget, there 50,000; rates from 0.1 to 10 and weights of deviation 0.1, as the "
    "paper names neither.",
    plan=_plan,
    find_in_study=_find,
)
