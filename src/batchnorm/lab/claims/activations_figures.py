"""The figures of `activations`: statistics and histograms by depth."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from batchnorm.lab.claims.findings import COLORS, Arrays, Record, style
from batchnorm.lab.plots import SETTINGS, Picture

ACTIVATIONS = ("tanh", "relu")
INITIALIZERS = ("small Gaussian", "larger Gaussian", "Xavier", "Kaiming")
#: Activation, and whether it is normalized.
ARMS = tuple((activation, norm) for activation in ACTIVATIONS for norm in (False, True))
NORMS = {"none": "without BN", "batch": "with BN"}
EDGES = {"tanh": np.linspace(-1.0, 1.0, 42), "relu": np.linspace(0.0, 4.0, 42)}
NAMES = {"tanh": "tanh", "relu": "ReLU"}


def figures(given: Mapping[str, Any], records: Sequence[Record], arrays: Arrays) -> list[Picture]:
    """Draw statistics by depth and the histograms.

    Parameters
    ----------
    given : mapping
        Settings of the experiment.
    records : sequence of dict
        One per arm, seed and layer.
    arrays : mapping
        Histograms of seed 0.

    Returns
    -------
    list of Picture
    """
    with mpl.rc_context(SETTINGS):
        lines = [
            _by_depth(records, "std", "Size of the activations", "standard deviation", log=True),
            _by_depth(records, "saturated", "Saturated units", "saturated share", log=False),
            _by_depth(records, "gradient_std", "Size of the gradients", "standard deviation of the gradient", log=True),
        ]
        return lines + [_histograms(given, arrays, activation) for activation in ACTIVATIONS]


def _by_depth(records: Sequence[Record], key: str, title: str, label: str, *, log: bool) -> Picture:
    figure = Figure(figsize=(10.5, 3.3), layout="constrained")
    grid = figure.subplots(1, 4, sharey=True)
    panels = [(activation, norm) for activation in ACTIVATIONS for norm in NORMS]
    for axes, (activation, norm) in zip(grid, panels, strict=True):
        for number, name in enumerate(INITIALIZERS):
            arm = [r for r in records if (r["activation"], r["norm"], r["initializer"]) == (activation, norm, name)]
            depths = sorted({r["layer"] for r in arm})
            values = np.array([[r[key] for r in arm if r["layer"] == depth] for depth in depths])
            axes.plot(depths, values.mean(axis=1), label=name, **style(number))
            axes.fill_between(depths, values.min(axis=1), values.max(axis=1), color=COLORS[number], alpha=0.2, lw=0)
        axes.set_title(f"{NAMES[activation]}, {NORMS[norm]}", loc="left")
        axes.set(xlabel="layer", xticks=depths)
    if log:
        grid[0].set_yscale("log")
    else:
        grid[0].set_ylim(0, None)
    grid[0].set_ylabel(label)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return Picture(
        key.replace("_", "-"),
        f"{title} by depth",
        f"{label.capitalize()} of each layer's outputs, one line per initializer; line: mean over seeds, band: lowest "
        "to highest seed. The four panels share the axis." + (" Logarithmic." if log else ""),
        f"{label} against depth for four initializers, tanh and ReLU, without and with BN.",
        figure,
    )


def _histograms(given: Mapping[str, Any], arrays: Arrays, activation: str) -> Picture:
    rows = [(name, norm) for name in INITIALIZERS for norm in NORMS]
    layers, edges = given["layers"], EDGES[activation]
    figure = Figure(figsize=(10.5, 9.6), layout="constrained")
    grid = figure.subplots(len(rows), layers, sharex=True, squeeze=False)
    for line, (name, norm) in zip(grid, rows, strict=True):
        for layer, axes in enumerate(line, start=1):
            share = arrays[f"{name}/{activation}/{norm}/{layer}"]
            axes.stairs(share, edges, fill=True, color=COLORS[0 if norm == "none" else 1])
            axes.set(ylim=(0, max(1.08 * share.max(), 1e-9)), yticks=[])
            axes.grid(visible=False)
            axes.spines["left"].set_visible(False)
            if share.sum() < 0.995:
                axes.annotate(
                    f"{100 * (1 - share.sum()):.0f}% beyond",
                    (0.97, 0.85),
                    xycoords="axes fraction",
                    ha="right",
                    size=7,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
                )
        line[0].set_ylabel(f"{name}\n{NORMS[norm]}", rotation=0, ha="right", va="center")
    for layer, axes in enumerate(grid[0], start=1):
        axes.set_title(f"layer {layer}", loc="left")
    return Picture(
        f"histograms-{activation}",
        f"Distribution of the activations, {NAMES[activation]}",
        f"Histograms of the outputs of each layer (seed 0), from {edges[0]:g} to {edges[-1]:g}; each is drawn to its "
        "own height, so a spike stands for everything in one place. "
        + ("Positive outputs only: the zeros would be a spike that hides them." if activation == "relu" else ""),
        f"Histograms of {NAMES[activation]} outputs: {layers} layers, four initializers, without and with BN.",
        figure,
    )
