"""The figures of a comparison, drawn from its files.

The arms differ in colour (Okabe and Ito's palette, safe for the colour-blind), in line style and in marker, so the
figures can be read in grey. Captions stand beside the code that draws, because they say what was drawn.
"""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from batchnorm.lab.compare.artefacts import Run, Trial
from batchnorm.lab.compare.comparison import Comparison
from batchnorm.lab.compare.summary import ArmSummary, Curve, Summary, drift_and_spread, settled
from batchnorm.lab.compare.wording import arm_name, from_step, saturation
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.wording import percent, plural

STYLE: dict[str, dict[str, Any]] = {
    "none": {"color": "#D55E00", "linestyle": (0, (5, 1.5)), "marker": "o"},
    "batch": {"color": "#0072B2", "linestyle": "-", "marker": "s"},
}
OTHER: dict[str, Any] = {"color": "#009E73", "linestyle": "-.", "marker": "^"}


def pictures(run: Run, summary: Summary) -> list[Picture]:
    """Draw every figure that the run has data for.

    Parameters
    ----------
    run : Run
        The run directory, read.
    summary : Summary
        Its numbers.

    Returns
    -------
    list of Picture
        In the order of the page; "hero", the small figure for a README, comes last.
    """
    makers: Sequence[Callable[[Run, Summary], Picture | None]] = (
        _best,
        _accuracy,
        _one_unit,
        _all_units,
        _saturated,
        _hero,
    )
    with mpl.rc_context(SETTINGS):
        return [picture for make in makers if (picture := make(run, summary)) is not None]


def _best(_: Run, summary: Summary) -> Picture | None:
    arms = [arm for norm, lr in summary.best_lr.items() if (arm := summary.arm(norm, lr)) is not None]
    if not arms:
        return None
    figure = Figure(figsize=(7.5, 4.1), layout="constrained")
    axes = figure.add_subplot()
    _draw_accuracy(axes, arms, summary.best)
    rates = ", ".join(f"{arm_name(arm.norm)} {arm.lr:g}" for arm in arms)
    return Picture(
        "accuracy-best",
        "Accuracy over steps, each arm at its best learning rate" if len(arms) > 1 else "Accuracy over steps",
        f"Test accuracy over training steps at each arm's best learning rate ({rates}). {_over_seeds(arms)} "
        + (
            "Dotted: the accuracy that the arm without BN ended with, and the steps each arm needed to first reach it "
            "(target: mean over seeds; steps: median over seeds, each with its own target)."
            if summary.best and summary.best.targets
            else "There is no target to reach: see the answer above."
        ),
        f"Line chart of test accuracy against training steps, {rates}. Final accuracy: {_finals(arms)}.",
        figure,
    )


def _accuracy(_: Run, summary: Summary) -> Picture | None:
    rates = sorted({arm.lr for arm in summary.arms if arm.accuracy.steps})
    if not rates:
        return None
    columns = min(len(rates), 3)
    rows = -(-len(rates) // columns)
    figure = Figure(figsize=(7.5 if columns < 3 else 10.5, 0.4 + 3.0 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    handles: dict[str, Artist] = {}
    for axes, lr in zip(grid.flat, rates, strict=False):
        arms = [arm for arm in summary.arms if arm.lr == lr]
        _draw_accuracy(axes, arms, next((c for c in summary.matched if c.none_lr == lr), None), legend=False)
        handles |= {arm_name(arm.norm): line for arm, line in zip(arms, axes.lines, strict=False)}
        lost = [f"{arm_name(arm.norm)} {arm.diverged} of {arm.trials} diverged" for arm in arms if arm.diverged]
        axes.set_title("\n".join([f"learning rate {lr:g}", *lost]), loc="left")
        axes.label_outer()
    _label_lowest(grid, len(rates))
    figure.legend(list(handles.values()), list(handles), loc="outside upper right", ncols=len(handles))
    return Picture(
        "accuracy-by-lr",
        "Accuracy over steps, both arms at the same learning rate",
        f"Test accuracy over training steps, one panel per learning rate. {_over_seeds(summary.arms)} Dotted: the "
        "accuracy that the arm without BN ended with at that learning rate, and the steps each arm needed to first "
        "reach it. A cross marks an arm of which every trial diverged; other diverged trials are counted, not drawn.",
        "One line chart of test accuracy against training steps for each learning rate: "
        + ", ".join(f"{lr:g}" for lr in rates),
        figure,
    )


def _label_lowest(grid: NDArray[np.object_], used: int) -> None:
    """Hide the panels that are not used, and label the horizontal axis of those that have nothing below them."""
    for axes in grid.flat[used:]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, used - grid.shape[1]) : used]:
        axes.set_xlabel("training steps")
        axes.tick_params(labelbottom=True)


def _draw_accuracy(
    axes: Axes, arms: Sequence[ArmSummary], comparison: Comparison | None, *, legend: bool = True
) -> None:
    for arm in arms:
        note = f" ({arm.diverged} of {arm.trials} diverged)" if arm.diverged else ""
        _draw_curve(axes, arm.accuracy, arm.norm, f"{arm_name(arm.norm)}, lr {arm.lr:g}{note}", scale=100)
    for arm in arms:
        if arm.basis == "diverged" and arm.accuracy.steps:
            end = (arm.accuracy.steps[-1], 100 * arm.accuracy.mean[-1])
            axes.plot(*end, marker="X", markersize=9, color=_style(arm.norm)["color"], linestyle="none")
    if comparison is not None and comparison.target is not None:
        target = 100 * comparison.target
        axes.axhline(target, color="#333333", linestyle=":", linewidth=1.1)
        for norm, steps in (("none", comparison.none_steps), ("batch", comparison.batch_steps)):
            if steps is not None:
                color, right = _style(norm)["color"], steps < 0.75 * axes.get_xlim()[1]
                axes.vlines(steps, 0, target, color=color, linestyle=":", linewidth=1.3)
                axes.annotate(
                    f"{steps:,.0f}", (steps, 2), (4 if right else -4, 0), textcoords="offset points", color=color,
                    ha="left" if right else "right", fontsize=8.5,
                )  # fmt: skip
    axes.set(xlabel="training steps", ylabel="test accuracy (%)", ylim=(0, 101))
    if legend:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.07))


def _draw_curve(axes: Axes, curve: Curve, norm: str, label: str, scale: float = 1.0) -> None:
    style = _style(norm)
    every = max(1, len(curve.steps) // 12)
    axes.plot(curve.steps, scale * np.array(curve.mean), label=label, markevery=every, **style)
    axes.fill_between(
        curve.steps,
        scale * np.array(curve.low),
        scale * np.array(curve.high),
        color=style["color"],
        alpha=0.18,
        linewidth=0,
    )


def _one_unit(run: Run, summary: Summary) -> Picture | None:
    shown, trials = summary.shown, _shown_trials(run, summary)
    if shown is None or not trials:
        return None
    figure = Figure(figsize=(7.5, 3.5), layout="constrained")
    _draw_unit(figure.subplots(1, len(trials), sharey=True, squeeze=False)[0], trials, shown.unit, summary.settled_step)
    return Picture(
        "percentiles-one-unit",
        f"The inputs to one unit of the last hidden layer (unit {shown.unit} of {shown.units})",
        "15th, 50th and 85th percentile, over the test set, of the input to the activation of one unit of the last "
        f"hidden layer, in evaluation mode, during training (seed {shown.seed}); the counterpart of Fig. 1b and 1c of "
        f"Ioffe and Szegedy (2015). The unit was chosen by rule: {shown.rule}. Panels share their vertical axis. "
        f"{from_step(summary)}",
        "Two panels with three lines each: percentiles of one unit's input against training steps, "
        + " and ".join(arm_name(trial.norm) for trial in trials)
        + ".",
        figure,
    )


def _draw_unit(panels: Sequence[Axes], trials: Sequence[Trial], unit: int, first: int) -> None:
    for axes, trial in zip(panels, trials, strict=True):
        kept, style = settled(trial, first), _style(trial.norm)
        steps, (low, middle, high) = trial.steps[kept], trial.percentiles[kept][:, :, unit].T
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(steps, middle, color=style["color"], linestyle="-", linewidth=2.0, label="50th percentile")
        axes.plot(steps, high, color=style["color"], linestyle="--", linewidth=1.1, label="15th and 85th")
        axes.plot(steps, low, color=style["color"], linestyle="--", linewidth=1.1)
        axes.set_title(f"{arm_name(trial.norm)}, lr {trial.lr:g}", loc="left")
        axes.set(xlabel="training steps")
        axes.legend(loc="best", fontsize=8.5)
    panels[0].set_ylabel("input to the unit")


def _all_units(run: Run, summary: Summary) -> Picture | None:
    shown, trials = summary.shown, _shown_trials(run, summary)
    if shown is None or not trials:
        return None
    figure = Figure(figsize=(10.5, 3.7) if len(trials) > 1 else (7.5, 3.5), layout="constrained")
    grid = figure.subplots(1, len(trials) + 1, squeeze=False)[0]
    last = grid[-1]
    for axes, trial in zip(grid, trials, strict=False):
        axes.sharey(grid[0])
        kept = settled(trial, summary.settled_step)
        medians = trial.percentiles[kept][:, 1]  # (T, U)
        axes.plot(trial.steps[kept], medians, color=_style(trial.norm)["color"], alpha=0.3, linewidth=0.7)
        axes.plot(
            trial.steps[kept],
            medians[:, shown.unit],
            color="black",
            linewidth=1.4,
            label=f"unit {shown.unit}, shown alone too",
        )
        axes.set_title(f"{arm_name(trial.norm)}, lr {trial.lr:g}: all units", loc="left")
        axes.set(xlabel="training steps")
        axes.legend(loc="upper left", fontsize=8.5)
        drift, style = np.sort(drift_and_spread(trial, summary.settled_step)[0]), _style(trial.norm)
        last.plot(
            np.arange(1, len(drift) + 1), drift, label=arm_name(trial.norm), markevery=max(1, len(drift) // 10), **style
        )
    grid[0].set_ylabel("median input to the unit")
    last.set_title("drift of every unit, sorted", loc="left")
    last.set(xlabel="units, from least to most drift", ylabel="drift of the median", ylim=(0, None))
    last.legend(loc="upper left")
    return Picture(
        "percentiles-all-units",
        f"The inputs to all {shown.units} units of the last hidden layer",
        f"The median input of every unit over training (seed {shown.seed}), one thin line each, on the same vertical "
        "axis; and the drift of every unit, the sum over evaluations of the absolute change of its median, sorted: one "
        "line below the other means that the whole layer drifted less.",
        f"Medians of all {shown.units} units against training steps, and the sorted drift of all units, "
        + " and ".join(arm_name(trial.norm) for trial in trials)
        + ".",
        figure,
    )


def _saturated(run: Run, summary: Summary) -> Picture | None:
    rates = summary.shown.lr if summary.shown else summary.best_lr
    arms = [arm for norm, lr in rates.items() if (arm := summary.arm(norm, lr)) is not None and arm.saturated]
    layers = max((len(arm.saturated) for arm in arms), default=0)
    if not layers:
        return None
    columns = min(layers, 3)
    rows = -(-layers // columns)
    figure = Figure(figsize=(10.5 if columns > 2 else 7.5, 0.3 + 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for layer, axes in enumerate(grid.flat[:layers]):
        for arm in arms:
            if layer < len(arm.saturated):
                _draw_curve(axes, arm.saturated[layer], arm.norm, f"{arm_name(arm.norm)}, lr {arm.lr:g}", scale=100)
        axes.set_title(f"hidden layer {layer + 1}", loc="left")
        axes.set(xlabel="training steps", ylabel="saturated (%)")
        axes.label_outer()
    _label_lowest(grid, layers)
    grid.flat[0].set_ylim(0, None)
    grid.flat[0].legend(loc="best")
    return Picture(
        "saturated",
        "Saturated units",
        "Share of the inputs to the activations that are saturated, over test examples and units, per hidden layer, in "
        f"evaluation mode. Saturated: {saturation(run.config['model'].get('activation', ''))}. {_over_seeds(arms)}",
        f"Share of saturated units against training steps, one panel for each of {plural(layers, 'hidden layer')}.",
        figure,
    )


def _hero(run: Run, summary: Summary) -> Picture | None:
    trials = _shown_trials(run, summary)
    arms = [arm for norm, lr in summary.best_lr.items() if (arm := summary.arm(norm, lr)) is not None]
    if summary.shown is None or not trials or not arms:
        return None
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 1.15])[0]
    axes = left.add_subplot()
    _draw_accuracy(axes, arms, summary.best)
    axes.set_title("test accuracy, each at its best learning rate", loc="left")
    _draw_unit(
        right.subplots(1, len(trials), sharey=True, squeeze=False)[0], trials, summary.shown.unit, summary.settled_step
    )
    return Picture("hero", "", "", "", figure)


def _shown_trials(run: Run, summary: Summary) -> list[Trial]:
    shown = summary.shown
    if shown is None:
        return []
    trials = [
        t
        for t in run.trials
        if shown.lr.get(t.norm) == t.lr and drift_and_spread(t, summary.settled_step)[0].size > shown.unit
    ]
    first: dict[str, Trial] = {}
    for trial in sorted(trials, key=lambda t: (t.norm != "none", t.seed != shown.seed, t.status == "diverged", t.seed)):
        first.setdefault(trial.norm, trial)
    return list(first.values())


def _style(norm: str) -> dict[str, Any]:
    return STYLE.get(norm, OTHER)


def _over_seeds(arms: Sequence[ArmSummary]) -> str:
    seeds = sorted({len(arm.seeds) for arm in arms})
    if seeds == [1]:
        return "One seed."
    number = " to ".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
    return f"Line: mean over {number} seeds; band: lowest to highest seed."


def _finals(arms: Sequence[ArmSummary]) -> str:
    return ", ".join(f"{percent(arm.accuracy_mean)} {arm_name(arm.norm)}" for arm in arms)
