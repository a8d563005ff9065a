"""The figures of `whitening`: cost over features, covariance matrices, training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from batchnorm.lab.claims.findings import Arrays, Record, style
from batchnorm.lab.plots import SETTINGS, Picture

INPUTS = ("raw", "batch", "zca")
NAMES = {"raw": "raw", "batch": "BN", "zca": "whitened"}
STYLES = {"raw": style(2), "batch": style(1), "zca": style(0)}


def figures(
    given: Mapping[str, Any], costs: Sequence[Record], effects: Sequence[Record], arrays: Arrays
) -> list[Picture]:
    """Draw cost and effect.

    Parameters
    ----------
    given : mapping
        Settings of the experiment.
    costs, effects : sequence of dict
        The records by kind.
    arrays : mapping
        Covariances and curves of seed 0.

    Returns
    -------
    list of Picture
    """
    with mpl.rc_context(SETTINGS):
        return [_cost(given, costs), _covariance(arrays), _training(given, effects, arrays)]


def _cost(given: Mapping[str, Any], costs: Sequence[Record]) -> Picture:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = given["channels"]
    for arm in ("batch", "zca"):
        rows = [[r for r in costs if (r["arm"], r["channels"]) == (arm, size)] for size in sizes]
        times = np.array([np.percentile([1e3 * r["seconds"] for r in row], [25, 50, 75]) for row in rows])
        left.plot(sizes, [row[0]["operations"] for row in rows], label=NAMES[arm], **STYLES[arm])
        right.plot(sizes, times[:, 1], label=NAMES[arm], **STYLES[arm])
        right.fill_between(sizes, times[:, 0], times[:, 2], color=STYLES[arm]["color"], alpha=0.2, lw=0)
    left.set_title("counted: operations of a forward", loc="left")
    right.set_title("measured: forward and backward", loc="left")
    for axes, label in ((left, "operations"), (right, "milliseconds")):
        axes.set(xscale="log", yscale="log", xlabel="features", ylabel=label)
        axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axes.minorticks_off()
        axes.legend(loc="upper left")
    return Picture(
        "cost",
        "What whitening costs",
        f"A batch of {given['count']} rows. Both axes logarithmic; line: median, band: quartiles of "
        f"{given['repeats']} interleaved measurements.",
        "Operations and milliseconds against the number of features, BN and whitening.",
        figure,
    )


def _covariance(arrays: Arrays) -> Picture:
    figure = Figure(figsize=(10.5, 3.5), layout="constrained")
    grid = figure.subplots(1, 3)
    for axes, name in zip(grid, INPUTS, strict=True):
        matrix = arrays[f"covariance/{name}"]
        bound = np.abs(matrix).max()
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-bound, vmax=bound)
        figure.colorbar(image, ax=axes, shrink=0.85)
        axes.set_title({"raw": "raw", "batch": "after BN", "zca": "whitened (ZCA)"}[name], loc="left")
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
    return Picture(
        "covariance",
        "Covariance of the inputs",
        "Seed 0. Raw: correlated and of different sizes; BN makes the diagonal 1 and leaves the correlations; ZCA "
        "leaves the diagonal only.",
        "Three covariance matrices as colours: raw, after BN, whitened.",
        figure,
    )


def _training(given: Mapping[str, Any], effects: Sequence[Record], arrays: Arrays) -> Picture:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in INPUTS:
        curve = arrays[f"curve/{name}"]
        line = {**STYLES[name], "marker": None}
        left.plot(np.arange(len(curve)) + 1, np.maximum(curve, given["excess"] / 30), label=NAMES[name], **line)
        rows = [r for r in effects if r["input"] == name]
        steps = [given["limit"] if np.isnan(r["steps"]) else max(r["steps"], 1) for r in rows]
        points = {"color": STYLES[name]["color"], "marker": STYLES[name]["marker"], "ms": 6, "ls": ""}
        right.plot([r["condition"] for r in rows], steps, label=NAMES[name], **points)
    left.axhline(given["excess"], color="#888888", ls=":", lw=1)
    left.set(xscale="log", yscale="log", xlabel="step + 1", ylabel="share of the excess loss left")
    left.set_title("training, seed 0", loc="left")
    right.set(xscale="log", yscale="log", xlabel="condition number", ylabel="steps until done")
    right.set_title("every seed", loc="left")
    left.legend(loc="lower left")
    right.legend(loc="upper left")
    return Picture(
        "training",
        "What whitening gains",
        "Full-batch gradient descent on a linear model, at the best constant rate of each. Left: excess over the "
        f"lowest loss, as a share of the first (dotted: done; cut off at {given['excess'] / 30:.2g}). Right: one "
        "point per seed.",
        "Training curves and steps against condition number for raw, normalized and whitened inputs.",
        figure,
    )
