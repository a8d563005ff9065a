"""Santurkar et al., figure 4: along the gradient, loss and gradient vary less with batch normalization."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from batchnorm.lab.experiments.claims.form import Check, Claim, Findings, Settings, curves, spread
from batchnorm.lab.experiments.numbers import Numbers
from batchnorm.lab.experiments.plan import Plan, vary
from batchnorm.lab.experiments.protocols import small_vgg
from batchnorm.lab.experiments.series import number, quantity
from batchnorm.lab.experiments.study import Study
from batchnorm.lab.recording import Record, TrainRun

Of = Callable[[Record], float]
#: What is measured on the line along the gradient, and how it comes from a record; JSON holds infinity as null.
MEASURES: dict[str, Of] = {
    "range of the loss": lambda r: _known(r, "loss_high") - _known(r, "loss_low"),
    "largest change of the gradient": lambda r: _known(r, "gradient_change_high"),
    "effective smoothness": lambda r: _known(r, "smoothness"),
}
NORMS = {"none": "without BN", "batch": "with BN"}


def _known(record: Record, key: str) -> float:
    value: Any = number(record["scalars"].get(key))
    return math.inf if math.isnan(value) else float(value)


def _plan(settings: Settings) -> Plan:
    base = small_vgg(settings, probes=("landscape",), probe_every=settings["every"])
    axes = {"seed": vary("seed", range(settings["seeds"])), "norm": vary("norm", list(NORMS))}
    question = "Are loss and gradient smoother along the gradient with BN?"
    return Plan(question, base, axes, rule=CLAIM.rule, interleave=("norm",))


def typical(run: TrainRun, of: Of) -> float:
    """Return the median over the steps that were looked at: infinite if half of them left the finite numbers."""
    return float(np.median([of(record) for record in run.of_probe("landscape")]))


def _find(_settings: Settings, study: Study, numbers: Numbers) -> Findings:
    arms = {arm.settings["norm"]: arm for arm in study.arms}
    ratios = {
        # 0 where it is infinite without BN alone.
        words: [typical(b, of) / typical(a, of) for a, b in zip(arms["none"].runs, arms["batch"].runs, strict=True)]
        for words, of in MEASURES.items()
    }  # fmt: skip
    pictures = []
    for k, (words, of) in enumerate(MEASURES.items()):
        found = quantity([arms[norm] for norm in NORMS], "", lambda run: run.of_probe("landscape"), of)
        assert found is not None
        lines = {name: found.series[index] for index, name in enumerate(NORMS.values()) if index in found.series}
        pictures.append(curves(f"along-{k}", words.capitalize(), "Line: mean over seeds; band: lowest to highest.",
                               f"{words} over steps, without and with BN.", words, lines, log=True))  # fmt: skip
    accuracy = {arm.settings["norm"]: [run.final_accuracy or math.nan for run in arm.runs] for arm in numbers.arms}
    return Findings(
        "With BN over without: " + ", ".join(f"{words} {spread(each)}" for words, each in ratios.items()) + ".",
        [Check(f"{words}: smaller with BN", "with BN over without, medians over steps", each, 1.0, above=False)
         for words, each in ratios.items()],
        pictures,
        numbers=[", ".join(f"{words} the network ends at {spread([100 * v for v in accuracy[norm]])} %"
                           for norm, words in NORMS.items()) + "."],
        definitions=[("effective smoothness", "The largest change of the gradient over distance: the paper's beta.")],
    )  # fmt: skip


_SIZES = {"data": "cifar10", "lr": 0.1}
CLAIM = Claim(
    name="smooth-landscape",
    sentence="Batch normalization makes the landscape smoother: along the gradient, the loss and its gradient vary "
    "less.",
    source="Santurkar, Tsipras, Ilyas and Madry 2018, arXiv 1805.11604, section 3.1, figure 4",
    protocol="A small VGG on CIFAR-10 without and with BN, at the same rate; at every tenth step the loss and its "
    "gradient at seven points, half to four learning rates along the gradient.",
    rule="In the median over steps the range of the loss, the largest change of the gradient and the effective "
    "smoothness are all smaller with BN, seed by seed.",
    budgets={
        "small": {"seeds": 3, "steps": 200, "every": 10, "width": 0.125, **_SIZES},
        "full": {"seeds": 3, "steps": 15000, "every": 100, "width": 1.0, **_SIZES},
    },
    cost={"small": "3 min", "full": "about 40 h, estimated"},
    differs="Four of the eight convolutions of VGG-11, an eighth as wide; 200 steps at the small budget, there 15,000.",
    plan=_plan,
    find_in_study=_find,
)
