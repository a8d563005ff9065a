"""Internal covariate shift measured both ways on the paper's network: by distribution and by gradient."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from batchnorm.lab.experiments.claims.form import Check, Claim, Findings, Settings, curves, number, spread
from batchnorm.lab.experiments.compare import as_in_the_paper
from batchnorm.lab.experiments.numbers import Numbers
from batchnorm.lab.experiments.plan import Plan, vary
from batchnorm.lab.experiments.series import behind_first, mean_over_layers, quantity
from batchnorm.lab.experiments.study import Arm, Study
from batchnorm.lab.plots import Picture
from batchnorm.lab.recording import Record, TrainRun
from batchnorm.lab.training import TrainConfig

NORMS = {"none": "without BN", "batch": "with BN"}
#: By name: the probe, its quantity, what a picture calls it, and whether a smaller one is less shift.
WAYS = {
    "distribution": ("input_shift", "distance", "distance in deviations", True),
    "gradient": ("shift", "cosine", "cosine", False),
}


def shift(record: Record, key: str) -> float:
    """Return the mean of a quantity over the layers behind the first, whose inputs no step moves."""
    return mean_over_layers(behind_first(record), key)


def over_steps(run: TrainRun, way: str) -> float:
    """Return the mean shift of a run over the steps that were looked at; NaN where none has one."""
    probe, key = WAYS[way][:2]
    values = [value for record in run.of_probe(probe) if not math.isnan(value := shift(record, key))]
    return float(np.mean(values)) if values else math.nan


def _plan(settings: Settings) -> Plan:
    base = TrainConfig(
        data=settings["data"], model="mlp", steps=settings["steps"], evaluate_every=settings["steps"], train_subset=0,
        probes=("input_shift", "shift"), probe_every=settings["every"],
    )  # fmt: skip
    axes = {
        "seed": vary("seed", range(settings["seeds"])),
        "lr": vary("lr", settings["lr"]),
        "norm": vary("norm", list(NORMS)),
    }
    question = "Does BN reduce internal covariate shift, by distribution and by gradient?"
    base = replace(as_in_the_paper(base), units=False)
    return Plan(question, base, axes, rule=CLAIM.rule, interleave=("norm",))


def _find(settings: Settings, study: Study, _numbers: Numbers) -> Findings:
    arms = {(arm.settings["lr"], arm.settings["norm"]): arm for arm in study.arms}
    values = {(way, *key): [over_steps(run, way) for run in arm.runs] for way in WAYS for key, arm in arms.items()}
    checks, said = [], []
    for way, (_, _, label, small) in WAYS.items():
        for lr in settings["lr"]:
            none, batch = values[way, lr, "none"], values[way, lr, "batch"]
            less = [(b / a if a else math.nan) if small else b - a for a, b in zip(none, batch, strict=True)]
            measured = f"{label}, with BN {'over' if small else 'minus'} without, mean over steps and layers"
            checks.append(Check(f"by {way}, rate {number(lr)}: less shift", measured, less, 1.0 if small else 0.0,
                                above=not small))  # fmt: skip
            said.append(f"by {way} at rate {number(lr)} {spread(batch)} against {spread(none)}")
    return Findings(
        f"Shift with BN against without: {'; '.join(said)}.",
        checks,
        [_picture(way, arms) for way in WAYS],
        numbers=["A smaller distance is less shift by distribution, a larger cosine less shift by gradient."],
        definitions=[
            ("by distribution", ("Wasserstein distance between the inputs of a layer on the same batch before and "
             "after one step of all layers, unit by unit, in deviations.")),
            ("by gradient", ("Cosine between a layer's gradient on the same batch before and after the layers in front "
             "of it take their step (Santurkar et al. 2018, definition 2.1).")),
        ],
    )  # fmt: skip


def _picture(way: str, arms: Mapping[tuple[float, str], Arm]) -> Picture:
    probe, key, label, small = WAYS[way]
    found = quantity(list(arms.values()), "", lambda run: run.of_probe(probe), lambda record: shift(record, key))
    series = found.series if found else {}
    lines = {f"{NORMS[norm]}, rate {number(lr)}": series[k] for k, (lr, norm) in enumerate(arms) if k in series}
    return curves(
        way, f"Internal covariate shift by {way}",
        f"{label.capitalize()} of the same batch before and after a step, mean over the layers behind the first. Line: "
        "mean over seeds; band: lowest to highest.", f"{label} over steps, without and with BN at each rate.", label,
        lines, log=small,
    )  # fmt: skip


_SIZES = {"data": "mnist_binary", "lr": [0.1, 1.0]}
CLAIM = Claim(
    name="covariate-shift",
    sentence="Batch normalization reduces internal covariate shift: the change of the distributions of layers' inputs, "
    "and the change of layers' gradients, by the step of the layers in front.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, section 2; Santurkar et al. 2018, arXiv 1805.11604, section 2.2, "
    "which measured otherwise",
    protocol="Binary MNIST, three hidden layers of 100 sigmoids, batches of 60, plain SGD, without and with BN at the "
    "same rates; both shifts of the same step, every 20 steps.",
    rule="At each rate, in the mean over steps and layers, the distance between distributions is smaller with BN and "
    "the cosine between gradients larger.",
    budgets={
        "small": {"seeds": 3, "steps": 500, "every": 20, **_SIZES},
        "full": {"seeds": 5, "steps": 50000, "every": 500, **_SIZES},
    },
    cost={"small": "2 min", "full": "2 h, estimated"},
    differs="The first paper measures no shift of one step, and the second none of distributions; 500 steps at the "
    "small budget.",
    plan=_plan,
    find_in_study=_find,
)
