"""Ioffe and Szegedy, sections 1 and 3.2: sigmoids that saturate, by depth and initial scale, without and with BN."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from batchnorm.lab.experiments.claims.form import Check, Claim, Findings, Settings, spread, style
from batchnorm.lab.experiments.numbers import Numbers
from batchnorm.lab.experiments.plan import Plan, label_of, vary
from batchnorm.lab.experiments.study import Study
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.training import TrainConfig
from batchnorm.lab.wording import Table

NORMS = {"none": "without BN", "batch": "with BN"}
#: By norm, depth and initial deviation: final accuracy of each seed, and saturated share by layer, (seeds, layers).
Found = dict[tuple[str, int, float], tuple[list[float], list[list[float]]]]


def _plan(settings: Settings) -> Plan:
    every = max(1, settings["steps"] // 4)
    base = TrainConfig(
        data=settings["data"], model="mlp", activation="sigmoid", optimizer="sgd", schedule="constant", batch_size=60,
        l2=0.0, lr=settings["lr"], steps=settings["steps"], probes=(), train_subset=0, units=True,
        evaluate_every=every, log_every=every, checkpoint_every=settings["steps"],
    )  # fmt: skip
    depths = {str(depth): {"hidden": (100,) * depth} for depth in settings["depths"]}
    scales = {label_of(std): {"weight_std": std} for std in settings["stds"]}
    axes = {"seed": vary("seed", range(settings["seeds"])), "depth": depths, "scale": scales,
            "norm": vary("norm", list(NORMS))}  # fmt: skip
    return Plan("How many sigmoids are saturated?", base, axes, CLAIM.rule, ("norm",))


def _read(study: Study) -> Found:
    found: Found = {}
    for arm in study.arms:
        for run in arm.runs:
            own = run.config["config"]
            accuracies, shares = found.setdefault((own["norm"], len(own["hidden"]), own["weight_std"]), ([], []))
            accuracies.append(100 * (run.of_kind("test")[-1]["accuracy"] or 0.0))  # None: it diverged
            shares.append([100 * layer["saturated"] for layer in run.of_probe("units")[-1]["layers"].values()])
    return found


def _find(settings: Settings, study: Study, _numbers: Numbers) -> Findings:
    found, deepest, large, small = _read(study), max(settings["depths"]), max(settings["stds"]), min(settings["stds"])

    def saturated(norm: str) -> list[float]:
        return [float(np.mean(each)) for each in found[norm, deepest, large][1]]

    less = [a - b for a, b in zip(saturated("batch"), saturated("none"), strict=True)]
    gains = {std: [a - b for a, b in zip(found["batch", deepest, std][0], found["none", deepest, std][0], strict=True)]
             for std in (small, large)}  # fmt: skip
    with mpl.rc_context(SETTINGS):
        pictures = [_by_layer(settings, found), _by_depth(settings, found)]
    return Findings(
        f"With {deepest} layers and initial weights of deviation {large:g}, {spread(saturated('none'))} % of the "
        f"sigmoids are saturated after training without BN, {spread(saturated('batch'))} % with it; BN ends "
        f"{spread(gains[large])} points higher ({spread(gains[small])} at {small:g}).",
        [Check(f"{deepest} layers, large weights: fewer saturated", "percentage points, with minus without", less, 0.0,
               above=False),
         *(Check(f"{deepest} layers, deviation {std:g}: BN ends higher", "points of test accuracy", each, 0.0)
           for std, each in gains.items())],
        pictures,
        tables=[Table("At the end", ["layers", "initial deviation", "BN", "saturated (%)", "test accuracy (%)"],
                      [[str(depth), f"{std:g}", NORMS[norm], spread([float(np.mean(each)) for each in found[key][1]]),
                        spread(found[key][0])] for key in sorted(found) for norm, depth, std in [key]],
                      "Mean over seeds ± standard deviation; saturated: over all hidden layers.")],
        limits=[f"{settings['steps']} steps at one rate, {settings['lr']:g}, for all."],
        definitions=[("saturated", "A sigmoid whose output is below 0.05 or above 0.95, over the test data.")],
    )  # fmt: skip


def _by_layer(settings: Settings, found: Found) -> Picture:
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    deepest = max(settings["depths"])
    for axes, std in zip(figure.subplots(1, len(settings["stds"]), sharey=True, squeeze=False)[0], settings["stds"],
                         strict=True):  # fmt: skip
        for index, (norm, words) in enumerate(NORMS.items()):
            each = np.array(found[norm, deepest, std][1])
            axes.plot(range(1, deepest + 1), each.mean(axis=0), label=words, **style(index))
        axes.set(xlabel="hidden layer", title=f"initial deviation {std:g}", ylim=(-3, 103))
    figure.axes[0].set_ylabel("saturated sigmoids (%)")
    figure.axes[0].legend()
    return Picture("by-layer", f"Saturated sigmoids after training, {deepest} layers", "Mean over seeds.",
                   "Saturated share against the layer, without and with BN.", figure)  # fmt: skip


def _by_depth(settings: Settings, found: Found) -> Picture:
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    for axes, std in zip(figure.subplots(1, len(settings["stds"]), sharey=True, squeeze=False)[0], settings["stds"],
                         strict=True):  # fmt: skip
        for index, (norm, words) in enumerate(NORMS.items()):
            means = [np.mean(found[norm, depth, std][0]) for depth in settings["depths"]]
            axes.plot(settings["depths"], means, label=words, **style(index))
        axes.set(xlabel="hidden layers", title=f"initial deviation {std:g}")
    figure.axes[0].set_ylabel("test accuracy (%)")
    figure.axes[0].legend()
    return Picture("by-depth", "Accuracy by depth", "Mean over seeds.", "Accuracy against depth.", figure)


_SIZES = {"data": "digits", "depths": [2, 4, 8], "stds": [0.1, 1.0]}
CLAIM = Claim(
    name="sigmoid-saturation",
    sentence="Batch normalization keeps sigmoids out of their saturated regimes, so that deep networks of them train.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, sections 1 and 3.2",
    protocol="Networks of 2, 4 and 8 layers of 100 sigmoids from small and large initial weights; after training the "
    "share of saturated sigmoids of each layer.",
    rule="In the deepest network from large weights fewer sigmoids are saturated with BN; from small and from large "
    "weights it ends at a higher test accuracy.",
    budgets={
        "small": {"seeds": 3, "steps": 1000, "lr": 0.3, **_SIZES},
        "full": {"seeds": 10, "steps": 10000, "lr": 0.3, **_SIZES},
    },
    cost={"small": "2 min", "full": "50 min, estimated"},
    differs="The paper argues so, and shows inputs of one sigmoid of a network of three layers (claim mnist-figure).",
    plan=_plan,
    find_in_study=_find,
)
