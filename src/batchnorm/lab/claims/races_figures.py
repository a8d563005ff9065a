"""The figures of `races`: paths over contours, and the race as bars."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from batchnorm.lab.claims.findings import COLORS, Arrays
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.reference import optimizers
from batchnorm.reference.descent import ROSENBROCK, SADDLE, WAVES, Function, quadratic

if TYPE_CHECKING:
    from batchnorm.lab.claims.races import Race

RULES: dict[str, optimizers.Rule] = {
    "sgd": optimizers.sgd,
    "momentum": optimizers.momentum,
    "nesterov": optimizers.nesterov,
    "adagrad": optimizers.adagrad,
    "rmsprop": optimizers.rmsprop,
    "adam": optimizers.adam,
}
NAMES = {"sgd": "SGD", "momentum": "momentum", "nesterov": "Nesterov", "adagrad": "AdaGrad", "rmsprop": "RMSProp",
         "adam": "Adam"}  # fmt: skip
CONDITION = 100.0
FUNCTIONS: dict[str, Function] = {
    "quadratic": quadratic(CONDITION),
    "saddle": SADDLE,
    "Rosenbrock": ROSENBROCK,
    "waves": WAVES,
}
WINDOWS = {"quadratic": (-1.3, 1.3, -1.3, 1.3), "saddle": (-1.5, 1.5, -1.6, 1.6), "Rosenbrock": (-2.1, 2.1, -1.2, 3.2)}


def figures(given: Mapping[str, Any], races: "Mapping[tuple[str, bool, str], Race]", arrays: Arrays) -> list[Picture]:
    """Draw the paths and the race.

    Parameters
    ----------
    given : mapping
        Settings of the experiment.
    races : mapping
        By function, noisy or not, and rule.
    arrays : mapping
        The paths.

    Returns
    -------
    list of Picture
    """
    with mpl.rc_context(SETTINGS):
        return [_race(given, races), _paths(given, races, arrays)]


def _race(given: Mapping[str, Any], races: "Mapping[tuple[str, bool, str], Race]") -> Picture:
    figure = Figure(figsize=(10.5, 5.4), layout="constrained")
    grid = figure.subplots(2, len(FUNCTIONS), sharey=True)
    for line, noisy in zip(grid, (False, True), strict=True):
        for axes, name in zip(line, FUNCTIONS, strict=True):
            for place, rule in enumerate(RULES):
                steps = races[name, noisy, rule].steps
                capped = np.clip(steps, 1, given["limit"])
                low, middle, high = np.percentile(capped, [25, 50, 75])
                axes.bar(place, middle, color=COLORS[1] if not noisy else COLORS[2], alpha=0.75)
                axes.errorbar(place, middle, [[middle - low], [high - middle]], color="black", capsize=3, lw=1.1)
                missing = int(np.isinf(steps).sum())
                if missing:
                    axes.annotate(f"{missing} late", (place, high), (0, 3), textcoords="offset points", ha="center",
                                  size=7)  # fmt: skip
            axes.set_title(f"{name}{', noisy' if noisy else ''}", loc="left")
            axes.set_xticks(range(len(RULES)), list(NAMES.values()) if noisy else [""] * len(RULES), rotation=60)
            axes.set(yscale="log", ylim=(1, 3 * given["limit"]))
            axes.axhline(given["limit"], color="#888888", lw=0.8, ls=":")
        line[0].set_ylabel("steps to the tolerance")
    return Picture(
        "race",
        "The race",
        f"Steps until the function is within {given['tolerance']:g} of its minimum, each rule at its best learning "
        f"rate of one grid. Bar: median over {given['starts']} random starts; error bar: quartiles; dotted: the limit, "
        "which stands for the starts that came late or never. Logarithmic.",
        "Bars of steps for six rules on four functions, with exact and with noisy gradients.",
        figure,
    )


def _paths(given: Mapping[str, Any], races: "Mapping[tuple[str, bool, str], Race]", arrays: Arrays) -> Picture:
    figure = Figure(figsize=(11.5, 8.0), layout="constrained")
    grid = figure.subplots(len(FUNCTIONS), len(RULES), sharex="row", sharey="row")
    for line, name in zip(grid, FUNCTIONS, strict=True):
        for axes, rule in zip(line, RULES, strict=True):
            path = arrays[f"{name}/{rule}"]
            path = path[np.isfinite(path).all(axis=1)]
            (_landscape if path.shape[1] == 2 else _curve)(axes, name, path)
            axes.set_title(f"{NAMES[rule]}, lr {races[name, False, rule].lr:.2g}", loc="left", size=9)
            axes.tick_params(labelsize=7)
        line[0].set_ylabel(name)
    return Picture(
        "paths",
        "The paths",
        f"From each function's own start (circle), {given['path_steps']} steps at the rate of the race, no noise; "
        "stars: global minima, square: where the path ends. The quadratic is steep across and flat along; the start at "
        "the saddle is 0.001 beside the ridge; waves has one dimension and is drawn as a curve.",
        "Paths of six rules over the contours of three functions and on a curve with local minima.",
        figure,
    )


def _landscape(axes: Axes, name: str, path: NDArray[np.float64]) -> None:
    function, (left, right, low, high) = FUNCTIONS[name], WINDOWS[name]
    x, y = np.meshgrid(np.linspace(left, right, 121), np.linspace(low, high, 121))
    values = function.value(np.stack([x, y], axis=-1))
    above = values - function.value(function.minima[0])
    axes.contourf(x, y, np.log10(above + 1e-2), levels=14, cmap="Greys", alpha=0.55)
    axes.plot(path[:, 0], path[:, 1], color=COLORS[1], lw=1.0, marker=".", ms=2.0)
    axes.plot(*path[0], "o", color=COLORS[0], ms=5)
    axes.plot(*path[-1], "s", color=COLORS[0], ms=4)
    axes.plot(*function.minima.T, "*", color=COLORS[2], ms=8)
    axes.set(xlim=(left, right), ylim=(low, high))
    axes.grid(visible=False)


def _curve(axes: Axes, name: str, path: NDArray[np.float64]) -> None:
    function, x = FUNCTIONS[name], np.linspace(-6.5, 6.5, 400)
    axes.plot(x, function.value(x[:, None]), color="#888888", lw=1.0)
    axes.plot(path[:, 0], function.value(path), color=COLORS[1], lw=0.8, marker=".", ms=2.5)
    axes.plot(path[0, 0], function.value(path[0]), "o", color=COLORS[0], ms=5)
    axes.plot(path[-1, 0], function.value(path[-1]), "s", color=COLORS[0], ms=4)
    axes.plot(0.0, 0.0, "*", color=COLORS[2], ms=8)
    axes.set(xlim=(-6.5, 6.5), ylim=(-0.4, 6.5))
