"""Ioffe and Szegedy, figures 1b and 1c: batch normalization keeps the inputs of the last sigmoids where they are."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from batchnorm.lab.experiments.claims.form import Array, Check, Claim, Findings, Settings, number, spread, style
from batchnorm.lab.experiments.compare import as_in_the_paper
from batchnorm.lab.experiments.numbers import Numbers
from batchnorm.lab.experiments.plan import Plan, vary
from batchnorm.lab.experiments.study import Study
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.recording import TrainRun
from batchnorm.lab.rules import drift, settled_step
from batchnorm.lab.training import TrainConfig
from batchnorm.lab.wording import Table

NORMS = {"none": "without BN", "batch": "with BN"}
PERCENTILES = ("p15", "p50", "p85")


def _plan(settings: Settings) -> Plan:
    base = TrainConfig(
        data=settings["data"], model="mlp", steps=settings["steps"], evaluate_every=settings["every"], train_subset=0,
        probes=(),
    )  # fmt: skip
    axes = {
        "seed": vary("seed", range(settings["seeds"])),
        "lr": vary("lr", settings["lr"]),
        "norm": vary("norm", list(NORMS)),
    }
    question = "Do the inputs of the sigmoids in the last hidden layer drift less with BN?"
    return Plan(question, as_in_the_paper(base), axes, rule=CLAIM.rule, interleave=("norm",))


def percentiles(run: TrainRun) -> tuple[Array, Array]:
    """Return (T,) steps and (T, 3, units) percentiles of the last hidden inputs, once running statistics settled."""
    first = settled_step(run.config["config"]["norm_momentum"])
    seen = [(r["step"], list(r["layers"].values())[-1]) for r in run.of_probe("units") if r["step"] >= first]
    values = [[layer[name] for name in PERCENTILES] for _, layer in seen]
    return np.array([step for step, _ in seen], dtype=np.float64), np.array(values, dtype=np.float64)


def travelled(found: Array) -> tuple[float, float, float]:
    """Return, each as the median over units, the drift of the median, of the spread, and of the median in spreads."""
    middle, width = found[:, 1], found[:, 2] - found[:, 0]
    moved = drift(middle)
    return float(np.median(moved)), float(np.median(drift(width))), float(np.median(moved / width.mean(axis=0)))


def _find(settings: Settings, study: Study, _numbers: Numbers) -> Findings:
    runs = {(arm.settings["lr"], arm.settings["norm"]): [percentiles(run) for run in arm.runs] for arm in study.arms}
    values = {key: np.array([travelled(one) for _, one in each]) for key, each in runs.items()}  # (seeds, 3)
    ratio = {lr: values[lr, "batch"] / values[lr, "none"] for lr in settings["lr"]}
    checks = [
        Check(f"rate {number(lr)}: {words}", "with BN over without, median over units", ratio[lr][:, k].tolist(), 1.0,
              above=False)
        for lr in settings["lr"] for k, words in enumerate(["the median drifts less", "the spread drifts less"])
    ]  # fmt: skip
    rows = [[number(lr), *(spread(ratio[lr][:, k].tolist()) for k in range(3))] for lr in settings["lr"]]
    return Findings(
        "The median input of a sigmoid drifts with BN "
        + ", ".join(f"{spread(ratio[lr][:, 0].tolist())} times as far as without at rate {number(lr)}"
                    for lr in settings["lr"])
        + "; counted in spreads of its inputs, "
        + ", ".join(f"{spread(ratio[lr][:, 2].tolist())} times" for lr in settings["lr"])
        + ".",
        checks,
        [_picture(runs, settings["lr"])],
        tables=[Table("Drift with BN over drift without", ["rate", "of the median", "of the spread",
                      "of the median, in spreads"], rows, "Mean and deviation over seeds; below 1: BN drifts less.")],
        definitions=[
            ("drift", ("Sum of the absolute changes of a number between evaluations, once the running statistics have "
                       "lost 99 % of their start; the test data in evaluation mode.")),
            ("spread", "85th minus 15th percentile of the inputs to a unit."),
        ],
    )  # fmt: skip


def _picture(runs: dict[tuple[float, str], list[tuple[Array, Array]]], rates: Sequence[float]) -> Picture:
    """Draw the unit whose drift is the median of all units without BN, at each rate, in both arms."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(10.5, 3.2 * len(rates)), layout="constrained")
        grid = figure.subplots(len(rates), 2, sharey="row", squeeze=False)
        for row, lr in zip(grid, rates, strict=True):
            far = drift(runs[lr, "none"][0][1][:, 1])
            unit = int(np.argsort(far, kind="stable")[(len(far) - 1) // 2])
            for axes, (index, (norm, words)) in zip(row, enumerate(NORMS.items()), strict=True):
                steps, seen = runs[lr, norm][0]
                low, middle, high = seen[:, :, unit].T
                axes.plot(steps, middle, **style(index))
                axes.fill_between(steps, low, high, color=style(index)["color"], alpha=0.2, linewidth=0)
                axes.set_title(f"{words}, rate {number(lr)}, unit {unit}", loc="left")
                axes.set(xlabel="step", ylabel="input")
    return Picture("unit", "The input to one sigmoid of the last hidden layer",
                   "Line: median; band: 15th to 85th percentile; seed 0. The unit is the one with the median drift of "
                   "all units without BN.", "Percentiles of the input to one unit over training, without and with BN.",
                   figure)  # fmt: skip


_SIZES = {"data": "mnist_binary", "lr": [0.1, 1.0]}
CLAIM = Claim(
    name="stable-inputs",
    sentence="With batch normalization the distribution of the inputs to the sigmoids of the last hidden layer is more "
    "stable as training progresses.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, section 4.1, figures 1b and 1c",
    protocol="Binary MNIST, three hidden layers of 100 sigmoids, batches of 60, plain SGD, both at the same rates; the "
    "15th, 50th and 85th percentile of the input to every unit of the last hidden layer.",
    rule="At each rate the drift of the median input and that of the spread, as medians over all units, are smaller "
    "with BN.",
    budgets={
        "small": {"seeds": 5, "steps": 1000, "every": 50, **_SIZES},
        "full": {"seeds": 5, "steps": 50000, "every": 500, **_SIZES},
    },
    cost={"small": "3 min", "full": "2 h, estimated"},
    published="The figure shows one unit that was chosen as typical; no number is printed.",
    differs="All units of the layer are measured, not one; 1000 steps at the small budget, there 50,000; the rates, as "
    "the paper names none.",
    plan=_plan,
    find_in_study=_find,
)
