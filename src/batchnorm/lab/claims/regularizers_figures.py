"""The figures of `regularizers`: decision boundaries, accuracies, training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from batchnorm.lab.claims.findings import COLORS, Arrays, Record, style
from batchnorm.lab.plots import SETTINGS, Picture

ARMS = ("none", "l2", "dropout", "fixed_mask")
NAMES = {"none": "none", "l2": "L2", "dropout": "dropout", "fixed_mask": "dropout, one mask"}


def window(*points: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return left, right, low and high of a picture with all points in it."""
    every = np.concatenate(points)
    low, high = every.min(axis=0), every.max(axis=0)
    margin = 0.06 * np.maximum(high - low, 1e-9)
    (left, bottom), (right, top) = low - margin, high + margin
    return float(left), float(right), float(bottom), float(top)


def figures(given: Mapping[str, Any], records: Sequence[Record], arrays: Arrays) -> list[Picture]:
    """Draw boundaries, accuracies and curves.

    Parameters
    ----------
    given : mapping
        Settings of the experiment.
    records : sequence of dict
        One per arm and seed.
    arrays : mapping
        Scores on a grid and points of seed 0, curves.

    Returns
    -------
    list of Picture
    """
    with mpl.rc_context(SETTINGS):
        return [_boundaries(records, arrays), _accuracies(records), _curves(given, arrays)]


def _boundaries(records: Sequence[Record], arrays: Arrays) -> Picture:
    figure = Figure(figsize=(10.5, 5.9), layout="constrained")
    grid = figure.subplots(2, len(ARMS), sharex=True, sharey=True)
    extent = window(arrays["x"], arrays["x_test"])
    own = {r["arm"]: r for r in records if r["seed"] == 0}
    for line, (x, y, key, words) in zip(
        grid, (("x", "y", "train", "training"), ("x_test", "y_test", "test", "test")), strict=True
    ):
        for axes, arm in zip(line, ARMS, strict=True):
            scores = arrays[f"scores/{arm}"]
            steps = [np.linspace(extent[i], extent[i + 1], scores.shape[0]) for i in (0, 2)]
            above = np.where(scores > 0, 1.0, 0.0)
            axes.contourf(*steps, above, levels=[-0.5, 0.5, 1.5], colors=[COLORS[0], COLORS[1]], alpha=0.16)
            if scores.min() < 0 < scores.max():
                axes.contour(*steps, scores, levels=[0.0], colors="black", linewidths=1.0)
            for label, mark in ((0, "o"), (1, "^")):
                inside = arrays[x][arrays[y] == label]
                axes.plot(*inside.T, mark, color=COLORS[label], ms=2.8, alpha=0.85)
            axes.set_title(f"{NAMES[arm]}: {100 * own[arm][key]:.1f}%", loc="left")
            axes.grid(visible=False)
            axes.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
        line[0].set_ylabel(f"{words} points")
    return Picture(
        "boundaries",
        "Decision boundaries",
        "Seed 0. Above the training points, below the test points, over the same boundary of each arm, with the "
        "accuracy on the points shown.",
        "Decision boundaries of four arms over training and test points of two classes.",
        figure,
    )


def _accuracies(records: Sequence[Record]) -> Picture:
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    seeds = sorted({r["seed"] for r in records})
    for seed in seeds:
        ends = [next(100 * r[key] for r in records if (r["arm"], r["seed"]) == (arm, seed))
                for arm in ARMS for key in ("train", "test")]  # fmt: skip
        for place in range(len(ARMS)):
            axes.plot([place - 0.15, place + 0.15], ends[2 * place : 2 * place + 2], color="#bbbbbb", lw=1, zorder=1)
    for number, (key, words) in enumerate((("train", "training"), ("test", "test"))):
        shift = (-0.15, 0.15)[number]
        values = [[100 * r[key] for r in records if r["arm"] == arm] for arm in ARMS]
        places = np.repeat(np.arange(len(ARMS)) + shift, len(seeds))
        axes.plot(places, np.concatenate(values), ls="", marker=("o", "s")[number], color=COLORS[number], alpha=0.6)
        means = [np.mean(v) for v in values]
        axes.plot(np.arange(len(ARMS)) + shift, means, ls="", marker="_", ms=18, mew=2.2, color=COLORS[number],
                  label=f"{words}, mean as a bar")  # fmt: skip
    axes.set_xticks(range(len(ARMS)), [NAMES[arm] for arm in ARMS])
    axes.set_ylabel("accuracy (%)")
    axes.legend(loc="best")
    return Picture(
        "accuracies",
        "Training and test accuracy",
        "One point per seed, its training and test accuracy joined by a line: the steeper it falls, the wider the gap.",
        "Training and test accuracy of every seed in four arms.",
        figure,
    )


def _curves(given: Mapping[str, Any], arrays: Arrays) -> Picture:
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for number, arm in enumerate(ARMS):
        curves = np.array([arrays[f"curve/{arm}/{seed}"] for seed in range(given["seeds"])])
        for axes, column in ((left, 2), (right, 3)):
            axes.plot(curves[0, :, 0], 100 * curves[:, :, column].mean(axis=0), label=NAMES[arm], markevery=6,
                      **style(number))  # fmt: skip
    for axes, words in ((left, "training"), (right, "test")):
        axes.set_title(f"{words} accuracy", loc="left")
        axes.set(xscale="log", xlabel="step")
    left.set_ylabel("accuracy (%)")
    left.legend(loc="lower right")
    return Picture(
        "curves",
        "Over training",
        "Mean over seeds of the accuracy at test time. Where the left keeps rising and the right falls, the network "
        "learns the noise.",
        "Training and test accuracy against steps, four arms.",
        figure,
    )
