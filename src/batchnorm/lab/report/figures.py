"""The charts as pictures in files: for a README, for paper, and for a page where scripts do not run."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from batchnorm.lab.experiments.series import Quantity
from batchnorm.lab.experiments.study import Arm, Group, Study
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.report.charts import PALETTE, Chart, Look, looks
from batchnorm.lab.report.layers import VIEWS, View, Watched, shown_views, watched
from batchnorm.lab.wording import plural

MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "x", "plus": "+", "down": "v"}
COLUMNS, WIDTH, HEIGHT = 2, 10.5, 3.0


def pictures(study: Study, arms: Sequence[Arm], drawn: Sequence[Chart]) -> list[Picture]:
    """Draw the charts over training, and the layers at the last step.

    Parameters
    ----------
    study : Study
        The runs.
    arms : sequence of Arm
        The arm that stands for each group.
    drawn : sequence of Chart
        What there is over training.

    Returns
    -------
    list of Picture
        Only those that there are data for.
    """
    with mpl.rc_context(SETTINGS):
        made = (_over_training(study.groups, drawn), _layers(study.groups, arms), _hero(study.groups, drawn))
        return [picture for picture in made if picture is not None]


def _over_training(groups: Sequence[Group], drawn: Sequence[Chart]) -> Picture | None:
    panels = [(chart, one) for chart in drawn for one in chart.quantities]
    if not panels:
        return None
    figure, grid = _grid(len(panels))
    seen = looks(groups)
    for axes, (chart, one) in zip(grid, panels, strict=False):
        _panel(axes, chart, one, seen)
    _legend(figure, groups, seen)
    titles = dict.fromkeys(chart.title for chart in drawn)
    return Picture(
        "over-training",
        "Over training",
        "Line: mean over the runs of an arm; band: lowest to highest run; a cross: where a run ended that no mean "
        "contains.",
        f"Line charts against training steps, {plural(len(panels), 'panel')}: {', '.join(titles)}.",
        figure,
    )


def _panel(axes: Axes, chart: Chart, one: Quantity, seen: Sequence[Look]) -> None:
    if chart.log and all((series.low > 0).any() for series in one.series.values()):
        axes.set_yscale("log")
    _draw(axes, one, seen, 100 if chart.unit == "share" else 1)
    title = chart.title.split(" (unit")[0].replace("last hidden layer", "last layer")
    axes.set_title("\n".join(filter(None, (title, one.label))), loc="left")
    label = "training steps" if chart.axis is None else chart.axis.label
    axes.set(xlabel=label, ylabel=f"{chart.label} (%)" if chart.unit == "share" else chart.label)
    if chart.log and chart.axis is not None:  # small numbers are not written as powers
        for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis(ScalarFormatter())
    if chart.axis is not None and chart.axis.names:
        axes.set_xticks(range(1, len(chart.axis.names) + 1), chart.axis.names)


def _hero(groups: Sequence[Group], drawn: Sequence[Chart]) -> Picture | None:
    """Draw the first charts of a comparison beside each other, for a README; the page has them already."""
    by_name = {chart.name: chart for chart in drawn}
    shown = [by_name[name] for name in ("accuracy", "ratio", "unit") if name in by_name]
    if len(shown) < 3:
        return None
    figure = Figure(figsize=(12.0, 3.6), layout="constrained")
    seen = looks(groups)
    for axes, chart in zip(figure.subplots(1, len(shown)), shown, strict=True):
        _panel(axes, chart, chart.quantities[0], seen)
    _legend(figure, groups, seen)
    return Picture("hero", "", "", "", figure)


def _draw(axes: Axes, one: Quantity, seen: Sequence[Look], factor: float) -> None:
    for index, series in one.series.items():
        style = _style(seen[index])
        every = max(1, series.steps.size // 10)
        axes.plot(series.steps, factor * series.mean, markevery=every, **style)
        axes.fill_between(
            series.steps, factor * series.low, factor * series.high, color=style["color"], alpha=0.18, linewidth=0
        )
    bottom, top = axes.get_ylim()
    for lost in one.lost:
        color = PALETTE[seen[lost.arm].color]
        values = factor * lost.track.values
        axes.plot(lost.track.steps, values, color=color, linewidth=0.9)
        end = np.clip(values[-1], bottom, top) if one.series else values[-1]
        axes.plot(lost.track.steps[-1], end, marker="X", markersize=8, color=color, linestyle="none", clip_on=False)
    if one.series:
        axes.set_ylim(bottom, top)  # one run that blew up would flatten all others


def _layers(groups: Sequence[Group], arms: Sequence[Arm]) -> Picture | None:
    found = {probe: watched(arms, probe) for probe in dict.fromkeys(view.probe for view in VIEWS)}
    views = shown_views(found)
    if not views:
        return None
    figure, grid = _grid(len(views))
    seen = looks(groups)
    for axes, view in zip(grid, views, strict=False):
        for one in found[view.probe]:
            _draw_profile(axes, view, one, _style(seen[one.arm]))
        axes.set_title(view.title, loc="left")
        axes.set(xlabel="layer, from the input on", ylabel=f"{view.label} (%)" if view.unit == "share" else view.label)
        axes.locator_params(axis="x", integer=True)
        if view.log and all((one.values[view.middle][-1] > 0).any() for one in found[view.probe]):
            axes.set_yscale("log")
    _legend(figure, groups, seen)
    last = max(one.steps[-1] for probe in found.values() for one in probe)
    return Picture(
        "layers",
        f"Layer by layer, at step {last:,.0f}",
        "What the probes saw last, across the layers in the order of the forward pass.",
        f"Charts across the layers, {plural(len(views), 'panel')}: {', '.join(view.title for view in views)}.",
        figure,
    )


def _draw_profile(axes: Axes, view: View, one: Watched, style: dict[str, Any]) -> None:
    factor = 100 if view.unit == "share" else 1
    depth = np.arange(1, len(one.names) + 1)
    axes.plot(depth, factor * one.values[view.middle][-1], **style)
    if view.low:
        low, high = (factor * one.values[name][-1] for name in (view.low, view.high))
        axes.fill_between(depth, low, high, color=style["color"], alpha=0.18, linewidth=0)


def _grid(panels: int) -> tuple[Figure, Sequence[Axes]]:
    rows = -(-panels // COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.5 + HEIGHT * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).flat
    axes = list(grid)
    for unused in axes[panels:]:
        unused.set_axis_off()
    return figure, axes


def _legend(figure: Figure, groups: Sequence[Group], seen: Sequence[Look]) -> None:
    handles = [
        mpl.lines.Line2D([], [], label=group.name, **_style(look)) for group, look in zip(groups, seen, strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(3, len(handles)))


def _style(look: Look) -> dict[str, Any]:
    return {
        "color": PALETTE[look.color],
        "linestyle": (0, tuple(size / 1.6 for size in look.dash)) if look.dash else "-",
        "marker": MARKERS[look.marker],
    }
