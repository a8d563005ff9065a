"""Ioffe and Szegedy, figure 1: three layers of 100 sigmoids on MNIST; accuracy, and the inputs of the last ones."""

from collections.abc import Callable

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batchnorm.lab.experiments.claims.form import COLORS, Check, Claim, Findings, Settings, number, spread
from batchnorm.lab.experiments.numbers import Numbers, accuracy
from batchnorm.lab.experiments.plan import Plan, vary
from batchnorm.lab.experiments.series import Seen, Track, chosen_unit, read_unit_inputs
from batchnorm.lab.experiments.study import Study
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.rules import Floats, drift, interval_of_mean, settled_step, steps_to
from batchnorm.lab.training import TrainConfig

NORMS = {"none": "without BN", "batch": "with BN"}
#: 1 / sqrt(100): an input of unit size stays of unit size through a layer of 100 units. The paper says only "small".
WEIGHT_STD = 0.1


def _plan(settings: Settings) -> Plan:
    every = max(1, settings["steps"] // settings["evaluations"])
    base = TrainConfig(
        data=settings["data"], model="mlp", optimizer="sgd", schedule="constant", batch_size=60, l2=0.0,
        lr=settings["lr"], steps=settings["steps"], weight_std=WEIGHT_STD, units=True, probes=(), train_subset=0,
        evaluate_every=every, log_every=every, checkpoint_every=settings["steps"],
    )  # fmt: skip
    axes = {"seed": vary("seed", range(settings["seeds"])), "norm": vary("norm", list(NORMS))}
    return Plan("How fast, and how steady are the inputs of the sigmoids?", base, axes, CLAIM.rule, ("norm",))


def _find(settings: Settings, study: Study, numbers: Numbers) -> Findings:
    runs = {norm: list(next(iter(group.arms.values())).runs) for norm, group in zip(NORMS, study.groups, strict=True)}
    ends = {norm: [100 * (one.final_accuracy or 0.0) for one in group.shown.runs]
            for norm, group in zip(NORMS, numbers.groups, strict=True)}  # fmt: skip
    first = settled_step(TrainConfig().norm_momentum)
    seen = {norm: [read_unit_inputs(run, first) for run in each] for norm, each in runs.items()}
    gain = [a - b for a, b in zip(ends["batch"], ends["none"], strict=True)]
    tracks = {norm: [accuracy(run, "test") for run in each] for norm, each in runs.items()}
    sooner = [  # each seed has its own target, that with which its network without BN ended
        _times_fewer(*pair, numbers.guessing) for pair in zip(tracks["none"], tracks["batch"], strict=True)
    ]
    calmer = [drift_ratio(a, b, np.median) for a, b in zip(seen["batch"], seen["none"], strict=True)]
    worst = [drift_ratio(a, b, np.max) for a, b in zip(seen["batch"], seen["none"], strict=True)]
    net = [drift_ratio(_ends(a), _ends(b), np.median) for a, b in zip(seen["batch"], seen["none"], strict=True)]
    pictures = []
    if (none := seen["none"][0]) is not None and (batch := seen["batch"][0]) is not None:
        unit = chosen_unit(none)
        with mpl.rc_context(SETTINGS):
            pictures = [_figure(tracks, none, batch, unit), _all_units(none, batch, unit)]
    low, high = interval_of_mean(calmer)
    return Findings(
        f"After {settings['steps']:,} steps the accuracy is {spread(ends['none'])} % without BN and "
        f"{spread(ends['batch'])} % with it, which needs {spread(sooner)} times fewer steps to the former; the median "
        f"input of a sigmoid drifts {number(float(np.mean(calmer)))} times as far ({number(low)} to {number(high)}).",
        [Check("BN ends higher", "points of test accuracy", gain, 0.0),
         Check("BN gets there in fewer steps", "ratio of steps to the end without BN", sooner, 1.0),
         Check("BN: inputs of the sigmoids drift less", "drift of the median unit, with over without", calmer, 1.0,
               above=False)],
        pictures,
        numbers=[f"The unit that drifts most: {spread(worst)} times as far with BN as without.",
                 ("From the first to the last evaluation, without the way between, the median unit moves "
                  f"{spread(net)} times as far with BN.")],
        limits=[(f"One learning rate for both, {settings['lr']:g}: nothing but BN differs in the paper, which gives "
                 "none. `batchnorm compare --data mnist_binary` tunes it for each."),
                f"{settings['steps']:,} steps; the paper's figure has 50,000."],
        definitions=[("drift", ("Sum of the absolute changes of the median input between evaluations on the test data, "
                                f"from step {first} on, when the running statistics have forgotten their start.")),
                     ("the unit shown", "That with the median drift without BN, in both networks: chosen by rule.")],
    )  # fmt: skip


def _times_fewer(none: Track, batch: Track, guessing: float) -> float:
    """Return steps without BN to its end over those with BN; NaN: it learned nothing; inf: BN was never there."""
    if none.values[-1] <= guessing:
        return np.nan
    needed = steps_to(batch.steps, batch.values, none.values[-1])
    return steps_to(none.steps, none.values, none.values[-1]) / needed if np.isfinite(needed) else np.inf


def drift_ratio(batch: Seen | None, none: Seen | None, over: Callable[[Floats], Floats]) -> float:
    """Return the median (or another statistic) drift of the units with BN over that without; NaN: not recorded."""
    if batch is None or none is None:
        return np.nan
    return float(over(drift(batch.percentiles[:, 1])) / over(drift(none.percentiles[:, 1])))


def _ends(seen: Seen | None) -> Seen | None:
    return None if seen is None else Seen(seen.steps[[0, -1]], seen.percentiles[[0, -1]])


def _figure(tracks: dict[str, list[Track]], none: Seen, batch: Seen, unit: int) -> Picture:
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    left, *panels = figure.subplots(1, 3)
    for index, (norm, words) in enumerate(NORMS.items()):
        for k, track in enumerate(tracks[norm]):
            left.plot(track.steps, 100 * track.values, color=COLORS[index], ls="--" if norm == "none" else "-", lw=1.2,
                      label=words if k == 0 else None)  # fmt: skip
    left.set(xlabel="training steps", ylabel="test accuracy (%)", title="a: accuracy")
    left.legend(loc="lower right")
    for axes, one, words in zip(panels, (none, batch), ("b: without BN", "c: with BN"), strict=True):
        _percentiles(axes, one, unit)
        axes.set(xlabel="training steps", title=f"{words}, unit {unit}")
    panels[1].sharey(panels[0])
    panels[0].set_ylabel("input to the sigmoid")
    return Picture("figure-1", "The figure of the paper", "a: each seed. b, c: 15th, 50th and 85th percentile of the "
                   "input to one sigmoid of the last hidden layer over the test data, seed 0.",
                   "Accuracy, and percentiles of the input to one sigmoid without and with BN.", figure)  # fmt: skip


def _percentiles(axes: Axes, one: Seen, unit: int) -> None:
    low, middle, high = one.percentiles[:, :, unit].T
    axes.plot(one.steps, middle, color="#222222")
    for edge in (low, high):
        axes.plot(one.steps, edge, color="#222222", lw=0.9, ls=":")
    axes.fill_between(one.steps, low, high, color=COLORS[1], alpha=0.15, lw=0)


def _all_units(none: Seen, batch: Seen, unit: int) -> Picture:
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    first, second, last = figure.subplots(1, 3)
    for index, (axes, one, words) in enumerate(zip((first, second), (none, batch), NORMS.values(), strict=True)):
        axes.plot(one.steps, one.percentiles[:, 1], color=COLORS[index], lw=0.4, alpha=0.5)
        axes.plot(one.steps, one.percentiles[:, 1, unit], color="#222222")
        axes.set(xlabel="training steps", title=f"{words}: medians of all units")
        last.plot(np.sort(drift(one.percentiles[:, 1])), color=COLORS[index], ls="-" if index else "--", label=words)
    second.sharey(first)
    first.set_ylabel("median input")
    last.set(xlabel="units, sorted", ylabel="drift", title="how far each drifts", yscale="log")
    last.legend()
    return Picture("all-units", "All units of the last hidden layer", "Seed 0; black: the unit of the first picture.",
                   "Median inputs of all last sigmoids over training, and their drift.", figure)  # fmt: skip


_SIZES = {"data": "mnist_binary", "lr": 0.1, "evaluations": 50}
CLAIM = Claim(
    name="mnist-figure",
    sentence="On binary MNIST a network of three layers of 100 sigmoids trains faster and ends higher with batch "
    "normalization, and the inputs of its sigmoids are steadier.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, section 4.1, figure 1",
    protocol="Plain SGD, batches of 60, nothing but BN differs; percentiles of the input to all 100 last sigmoids.",
    rule="At the end BN is higher, it gets to where the network without BN ends in fewer steps, and the drift of the "
    "median unit is smaller.",
    budgets={"small": {"seeds": 3, "steps": 10000, **_SIZES}, "full": {"seeds": 5, "steps": 50000, **_SIZES}},
    cost={"small": "2 min", "full": "8 min, estimated"},
    differs="Learning rate (0.1), initial deviation (0.1), threshold (0.5) and the unit shown are not published. Small "
    "budget: 10,000 steps instead of 50,000.",
    plan=_plan,
    find_in_study=_find,
)
