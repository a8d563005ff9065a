"""Santurkar et al., figure 3: batch normalization does not reduce internal covariate shift, measured by gradients."""

import math
from collections.abc import Callable

import numpy as np

from batchnorm.lab.experiments.claims.form import Check, Claim, Findings, Settings, curves, spread
from batchnorm.lab.experiments.numbers import Numbers
from batchnorm.lab.experiments.plan import Plan, vary
from batchnorm.lab.experiments.protocols import small_vgg
from batchnorm.lab.experiments.series import behind_first, mean_over_layers, number, quantity
from batchnorm.lab.experiments.study import Study
from batchnorm.lab.recording import Record, TrainRun

NORMS = {"none": "without BN", "batch": "with BN"}
#: A cosine that is higher by less, and a shift of more than this share, count as not reduced.
HIGHER, SMALLER = 0.05, 0.8


def relative_shift(record: Record) -> float:
    """Return the shift over the norm of the gradient, mean over the layers behind the first, which cannot shift."""
    shares = [number(layer.get("shift")) / norm for layer in behind_first(record)["layers"].values()
              if (norm := number(layer.get("gradient_norm"))) > 0]  # fmt: skip
    return float(np.mean(shares)) if shares else math.nan


def cosine(record: Record) -> float:
    """Return the mean cosine over the layers behind the first."""
    return mean_over_layers(behind_first(record), "cosine")


def over_steps(run: TrainRun, of: Callable[[Record], float]) -> float:
    """Return the mean over the steps that were looked at; NaN where none has a value."""
    values = [value for record in run.of_probe("shift") if not math.isnan(value := of(record))]
    return float(np.mean(values)) if values else math.nan


def _plan(settings: Settings) -> Plan:
    base = small_vgg(settings, probes=("shift",), probe_every=settings["every"])
    axes = {"seed": vary("seed", range(settings["seeds"])), "norm": vary("norm", list(NORMS))}
    question = "Does BN reduce how much the step of earlier layers changes the gradient of a layer?"
    return Plan(question, base, axes, rule=CLAIM.rule, interleave=("norm",))


def _find(_settings: Settings, study: Study, numbers: Numbers) -> Findings:
    arms = {arm.settings["norm"]: arm for arm in study.arms}
    cosines, shifts = ({norm: [over_steps(run, of) for run in arms[norm].runs] for norm in NORMS}
                       for of in (cosine, relative_shift))  # fmt: skip
    ends = {arm.settings["norm"]: [math.nan if run.final_accuracy is None else 100 * run.final_accuracy
                                   for run in arm.runs] for arm in numbers.arms}  # fmt: skip
    pictures = []
    for name, words, of in (("cosine", "cosine", cosine), ("shift", "shift over gradient", relative_shift)):
        found = quantity([arms[norm] for norm in NORMS], "", lambda run: run.of_probe("shift"), of)
        if found is None:  # no step had a gradient
            continue
        lines = {label: found.series[index] for index, label in enumerate(NORMS.values()) if index in found.series}
        pictures.append(curves(name, f"Internal covariate shift by gradient: {words}",
                               "Mean over the layers behind the first. Line: mean over seeds; band: lowest to highest.",
                               f"{words} over steps, without and with BN.", words, lines))  # fmt: skip

    def pairs(values: dict[str, list[float]]) -> list[tuple[float, float]]:
        return list(zip(values["none"], values["batch"], strict=True))

    return Findings(
        f"The cosine between a layer's gradient before and after the step of the layers in front is "
        f"{spread(cosines['batch'])} with BN and {spread(cosines['none'])} without; the network ends at "
        f"{spread(ends['batch'])} % and {spread(ends['none'])} %.",
        [Check("the cosine is not higher with BN", "with BN minus without, mean over steps and layers",
               [b - a for a, b in pairs(cosines)], HIGHER, above=False),
         Check("the relative shift is not smaller with BN", "with BN over without, mean over steps and layers",
               [b / a if a else math.nan for a, b in pairs(shifts)], SMALLER),
         Check("yet BN ends higher", "points of test accuracy", [b - a for a, b in pairs(ends)], 0.0)],
        pictures,
        definitions=[("shift", ("Euclidean norm of the change of a layer's gradient on the same batch when all layers "
                      "in front of it take their step (definition 2.1); here over the norm of the gradient."))],
    )  # fmt: skip


_SIZES = {"data": "cifar10", "lr": 0.1}
CLAIM = Claim(
    name="gradient-shift",
    sentence="Batch normalization does not reduce internal covariate shift, measured as the change of a layer's "
    "gradient by the step of the layers in front of it, and yet the network trains better.",
    source="Santurkar, Tsipras, Ilyas and Madry 2018, arXiv 1805.11604, section 2.2, figure 3",
    protocol="A small VGG on CIFAR-10 without and with BN, at the same rate; at every tenth step each layer's gradient "
    "on the same batch before and after the layers in front of it take their step.",
    rule="The mean cosine between the two gradients is at most 0.05 higher with BN; the change over the norm of the "
    "gradient is more than 0.8 times that without; and the final test accuracy is higher with BN.",
    budgets={
        "small": {"seeds": 3, "steps": 200, "every": 10, "width": 0.125, **_SIZES},
        "full": {"seeds": 3, "steps": 15000, "every": 100, "width": 1.0, **_SIZES},
    },
    cost={"small": "3 min", "full": "about 40 h, estimated"},
    differs="Four of the eight convolutions of VGG-11, an eighth as wide; 200 steps at the small budget, there 15,000. "
    'The bounds for "not reduced" are ours.',
    plan=_plan,
    find_in_study=_find,
)
