"""The charts of the page as data: what ``templates/charts.js`` draws, and what the figures in files are drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from batchnorm.lab.experiments.numbers import Numbers
from batchnorm.lab.experiments.series import Floats, Quantity, Series, Track, mean_over_layers, number, quantity, thin
from batchnorm.lab.experiments.study import Arm, Group, Study, settings_of
from batchnorm.lab.recording import Record
from batchnorm.lab.report.layers import VIEWS, View, Watched, shown_views, watched
from batchnorm.lab.report.units import Units
from batchnorm.lab.report.wording import mark_name
from batchnorm.lab.rules import drift

POINTS = 300  # of a curve, on a page with few arms
FEWEST_POINTS = 60
FAR = 100  # times beyond its curve a band reaches and would press it flat

SPLIT_NAMES = {
    "test": "test data",
    "validation": "validation data",
    "train_evaluation": "training subset",
    "train": "training batches",
}


@dataclass(frozen=True)
class Axis:
    """A horizontal axis that is not training: its label, and the names of its places 1, 2, ..."""

    label: str
    names: list[str]


@dataclass(frozen=True)
class Chart:
    """One chart, over training or over an axis of its own.

    Attributes
    ----------
    name, title, label, note : str
        Identifier, head, vertical axis, how to read it.
    unit : str
        "share" or "".
    log : bool
        Whether the vertical axis is logarithmic at first.
    quantities : list of Quantity
        One is shown at a time; the page switches between them.
    axis : Axis or None
        None: training.
    """

    name: str
    title: str
    label: str
    note: str
    unit: str
    log: bool
    quantities: list[Quantity]
    axis: Axis | None = None


@dataclass(frozen=True)
class Look:
    """How an arm is drawn: index of its colour, dashes, marker; readable without the colour."""

    color: int
    dash: tuple[float, ...]
    marker: str


DASHES: tuple[tuple[float, ...], ...] = ((), (8, 3, 2, 3), (2, 3), (10, 3), (8, 3, 2, 3, 2, 3), (4, 4))
MARKERS = ("square", "triangle", "diamond", "cross", "plus", "down")
#: The arm without normalization looks the same on every page.
WITHOUT = Look(1, (5, 2), "circle")
COLORS = (0, 2, 3, 4, 5, 6, 7)
#: Okabe and Ito's palette, safe for the colour-blind, without its black; the page has lighter ones for the dark.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B37400", "#2299CC", "#7A5C1E", "#666666")


def looks(groups: Sequence[Group]) -> list[Look]:
    """Give every group a look of its own."""
    free = count()
    made = []
    for place, group in enumerate(groups):
        first = next(iter(group.arms.values())).runs[0]
        if place == 0 and len(groups) > 1 and settings_of(first).get("norm") == "none":
            made.append(WITHOUT)
            continue
        n = next(free)
        made.append(Look(COLORS[n % len(COLORS)], DASHES[n % len(DASHES)], MARKERS[(n + n // 42) % len(MARKERS)]))
    return made


def shown_arms(study: Study, numbers: Numbers) -> list[Arm]:
    """Return the arm that stands for each group: at its best value of the tuned axis, else the first."""
    return [
        group.arms[next(iter(group.arms)) if numbered.best is None else numbered.best.value]
        for group, numbered in zip(study.groups, numbers.groups, strict=True)
    ]


def charts(study: Study, numbers: Numbers, units: Units | None) -> list[Chart]:
    """Make every chart that the runs have data for.

    Parameters
    ----------
    study : Study
        The runs.
    numbers : Numbers
        Their numbers: the split that decides is shown first, and each group at its best.
    units : Units or None
        The inputs of the units of the last hidden layer.

    Returns
    -------
    list of Chart
    """
    arms = shown_arms(study, numbers)
    splits = list(
        dict.fromkeys([*([numbers.split] if numbers.split else []), "test", "validation", "train_evaluation"])
    )
    accuracy = [_metric(arms, kind, "accuracy") for kind in splits]
    if study.tuned and numbers.split is not None:
        accuracy = [
            _metric(arms, numbers.split, "accuracy", f"each at its best {study.tuned}"),
            *(
                _metric(_at(study, value), numbers.split, "accuracy", f"{study.tuned} {value:g}")
                for value in _tuned_values(study)
            ),
        ]
    made = [
        _chart("accuracy", "Accuracy", "accuracy", "", accuracy,
               unit="share"),
        _chart("loss", "Loss", "loss", "Training batches: mean since the record before.",
               [_metric(arms, kind, "loss") for kind in [*splits[:1], "train", *splits[1:]]], log=None),
        _chart("gap", "Training data against new data", "difference in accuracy",
               "Accuracy on training data in evaluation mode minus accuracy on data that training does not see, at the "
               "same step: above 0, the network knows its training data better.",
               [_gap(arms, kind) for kind in splits if kind != "train_evaluation"], unit="share"),
        _chart("lr", "Learning rate", "", "", [_metric(arms, "train", "lr", "")]),
        _chart("speed", "Speed", "examples per second", "Training only: evaluations and probes are not counted.",
               [_metric(arms, "train", "examples_per_second", "")]),
        _chart("gradient", "Gradient norm", "", "Of the whole network, before clipping.",
               [_scalar(arms, "gradients", "gradient_norm")], log=True),
        _chart("landscape", "Loss along the gradient", "loss",
               "Line: the loss where the network is; band: lowest to highest at some distances along the gradient. A "
               "narrow band is a smooth landscape (arXiv 1805.11604, section 3).",
               [_range(arms, "loss", "loss_low", "loss_high")], log=None),
        _chart("change", "Change of the gradient along itself", "change",
               "How far the gradient moves (Euclidean) at some distances along it, lowest to highest; line: middle.",
               [_range(arms, None, "gradient_change_low", "gradient_change_high")], log=True),
        _chart("smoothness", "Effective smoothness", "beta",
               "The largest change of the gradient over the distance moved: small is smooth.",
               [_scalar(arms, "landscape", "smoothness")], log=True),
        _chart("input_shift", "Internal covariate shift, by distribution", "distance in deviations",
               "How far one step moves the inputs of each layer on the same batch: Wasserstein distance in deviations, "
               "mean over layers.", [_mean_over_layers(arms, "input_shift", "distance")], log=True),
        _chart("shift", "Internal covariate shift, by gradient", "cosine",
               "Cosine between each layer's gradient before and after the layers before it take their step, mean over "
               "layers.", [_mean_over_layers(arms, "shift", "cosine")]),
    ]  # fmt: skip
    made[1:1] = [*_over_tuned(study, numbers), *(_of_units(units) if units else [])]
    return [chart for chart in made if chart is not None]


def _tuned_values(study: Study) -> list[float]:
    return sorted({value for group in study.groups for value in group.arms})


def _at(study: Study, value: float) -> list[Arm | None]:
    return [group.arms.get(value) for group in study.groups]


def _over_tuned(study: Study, numbers: Numbers) -> list[Chart | None]:
    """Chart the ratio of steps, and the steps, over the tuned axis: one line per group, one variant per accuracy."""
    values = _tuned_values(study)
    if not study.tuned or len(values) < 2 or not numbers.marks:
        return []
    name = study.tuned.replace("_", " ").replace("lr", "learning rate")
    axis = Axis(name, [f"{value:g}" for value in values])

    def quantities(per_group: Sequence[tuple[int, Any]]) -> list[Quantity]:
        return [
            Quantity(
                f"to {mark_name(numbers, mark)}",
                {index: found for index, of in per_group if (found := _places([of(k, v) for v in values])) is not None},
                [],
            )
            for k, mark in enumerate(numbers.marks)
        ]

    ratios = [
        (index, lambda k, value, group=group: group.matched[k].get(value))
        for index, group in enumerate(numbers.groups)
        if index
    ]
    steps = [
        (index, lambda k, value, group=group: group.arms[value].steps[k] if value in group.arms else None)
        for index, group in enumerate(numbers.groups)
    ]
    base = numbers.groups[0].name
    return [
        _chart("ratio", f"Ratio of steps, over the {name}", "ratio of steps",
               f"Steps of {base} over steps of the arm at the same {name}, medians over seeds; above 1 the arm needs "
               "fewer. No point: one of them did not reach the accuracy.", quantities(ratios), log=True, axis=axis),
        _chart("steps", f"Steps to an accuracy, over the {name}", "steps",
               "Median over seeds. No point: not reached.", quantities(steps), log=True, axis=axis),
    ]  # fmt: skip


def _places(values: Sequence[float | None]) -> Series | None:
    """Make a curve over the places 1, 2, ... of an axis."""
    middle = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    if not np.isfinite(middle).any():
        return None
    places = np.arange(1.0, len(values) + 1)
    nowhere = np.full(len(values), np.nan)
    return Series(places, nowhere, nowhere, middle, middle, middle, np.ones(len(values), dtype=np.int64))


def _of_units(units: Units) -> list[Chart | None]:
    runs = np.ones(1, dtype=np.int64)
    one, travelled = {}, {}
    for index, seen in units.seen.items():
        nowhere = np.full(seen.steps.size, np.nan)
        low, middle, high = (seen.percentiles[:, k, units.unit] for k in range(3))
        one[index] = Series(seen.steps, nowhere, nowhere, middle, low, high, np.repeat(runs, seen.steps.size))
        travelled[index] = _places(np.sort(drift(seen.percentiles[:, 1])).tolist())
    return [
        _chart("unit", f"The input to one unit of the last hidden layer (unit {units.unit} of {units.units})", "input",
               f"Line: median over the test data; band: 15th to 85th percentile, in evaluation mode{units.where}; "
               "figure 1b and 1c of Ioffe and Szegedy (2015). The unit: the one with the median drift among all units "
               f"of {units.chosen_by}. Counted from step {units.first} on, when less than 1 % of the initial running "
               "statistics is left.", [Quantity("", one, [])]),
        _chart("drift", "Drift of every unit, sorted", "drift of the median",
               "Sum of the absolute changes of a unit's median input between evaluations: one line below the other "
               "means that the whole layer drifted less.",
               [Quantity("", {k: v for k, v in travelled.items() if v is not None}, [])],
               axis=Axis("units, from least to most drift", [])),
    ]  # fmt: skip


def data(study: Study, arms: Sequence[Arm], drawn: Sequence[Chart]) -> dict[str, Any]:
    """Write charts and layers as the page embeds them.

    Parameters
    ----------
    study : Study
        The runs.
    arms : sequence of Arm
        The arm that stands for each group.
    drawn : sequence of Chart
        From :func:`charts`.

    Returns
    -------
    dict
        Values that JSON can hold, and arrays.
    """
    points = max(FEWEST_POINTS, min(POINTS, 4 * POINTS // len(arms)))
    return {
        "arms": [
            {"name": group.name, "color": look.color, "dash": " ".join(map(str, look.dash)), "marker": look.marker}
            for group, look in zip(study.groups, looks(study.groups), strict=True)
        ],
        "charts": [
            {
                "name": chart.name, "title": chart.title, "label": chart.label, "unit": chart.unit, "log": chart.log,
                "variants": [_variant(one, points) for one in chart.quantities],
                **({} if chart.axis is None else {"axis": {"label": chart.axis.label, "names": chart.axis.names}}),
            }
            for chart in drawn
        ],
        "layers": layers_data(arms),
    }  # fmt: skip


def layers_data(arms: Sequence[Arm]) -> dict[str, Any]:
    """Write what the probes saw in the layers, as the page embeds it; ``views`` is empty when they saw nothing."""
    seen = {probe: watched(arms, probe) for probe in dict.fromkeys(view.probe for view in VIEWS)}
    views = shown_views(seen)
    used = {view.probe for view in views}
    return {
        "views": [_view(view) for view in views],
        "probes": {probe: [_watched(one) for one in found] for probe, found in seen.items() if probe in used},
    }


def rounded(values: Floats, digits: int = 4) -> list[float | None]:
    """Write numbers with a few significant digits, so that the page stays small; None for what is not finite."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]


def _chart(
    name: str, title: str, label: str, note: str, quantities: Sequence[Quantity | None], *, unit: str = "",
    log: bool | None = False, axis: Axis | None = None,
) -> Chart | None:  # fmt: skip
    found = [one for one in quantities if one is not None and (one.series or one.lost)]
    if not found:
        return None
    return Chart(name, title, label, note, unit, _wide(found) if log is None else log, found, axis)


def _wide(found: Sequence[Quantity]) -> bool:
    """Whether a quantity that is never negative spans so much that a linear axis would hide its end."""
    series = [one for quantity in found for one in quantity.series.values()]
    values = np.concatenate([one.mean for one in series] or [np.array([])])
    bands = np.concatenate([one.high for one in series] or [np.array([])])
    values, bands = values[np.isfinite(values)], bands[np.isfinite(bands)]
    if not values.size or values.min() <= 0:
        return False
    low, high = np.percentile(values, (2, 98))
    return bool(high > 20 * low or bands.max(initial=0) > FAR * high)


def _metric(arms: Sequence[Arm | None], kind: str, key: str, label: str | None = None) -> Quantity | None:
    label = SPLIT_NAMES[kind] if label is None else label
    return quantity(arms, label, lambda run: run.of_kind(kind), lambda record: record.get(key))


def _scalar(arms: Sequence[Arm], probe: str, key: str) -> Quantity | None:
    return quantity(arms, "", lambda run: run.of_probe(probe), lambda record: record["scalars"].get(key))


def _mean_over_layers(arms: Sequence[Arm], probe: str, key: str) -> Quantity | None:
    return quantity(arms, "", lambda run: run.of_probe(probe), lambda record: mean_over_layers(record, key))


def _gap(arms: Sequence[Arm], part: str) -> Quantity | None:
    def records(run: Any) -> list[Record]:
        new = {record["step"]: number(record.get("accuracy")) for record in run.of_kind(part)}
        return [
            {**record, "gap": number(record.get("accuracy")) - new[record["step"]]}
            for record in run.of_kind("train_evaluation")
            if record["step"] in new
        ]

    return quantity(arms, SPLIT_NAMES[part], records, lambda record: record["gap"])


def _range(arms: Sequence[Arm], line: str | None, low: str, high: str) -> Quantity | None:
    """Make a band of two recorded quantities, the outermost over the runs; its line is a third, or its middle."""
    ends = [_scalar(arms, "landscape", key) for key in (low, high)]
    if ends[0] is None or ends[1] is None:
        return None
    middles = _scalar(arms, "landscape", line) if line else None
    series = {}
    for index, bottom in ends[0].series.items():
        top = ends[1].series.get(index)
        if top is None or top.steps.size != bottom.steps.size:
            continue
        middle = middles.series.get(index) if middles else None
        whole = middle is not None and middle.steps.size == bottom.steps.size
        mean = middle.mean if middle is not None and whole else (bottom.mean + top.mean) / 2
        # The recorded range leaves out the distance 0, where the line may be lower than everywhere else.
        lowest, highest = np.fmin(bottom.low, mean), np.fmax(top.high, mean)
        series[index] = replace(bottom, mean=mean, low=lowest, high=highest)
    return Quantity("", series, []) if series else None


def _variant(found: Quantity, points: int) -> dict[str, Any]:
    return {
        "label": found.label,
        "series": [{"arm": arm, **_series(thin(series, points))} for arm, series in found.series.items()],
        "lost": [
            {"arm": one.arm, "what": one.what, **_series(thin(_alone(one.track), points // 2))} for one in found.lost
        ],
    }


def _alone(own: Track) -> Series:
    return Series(
        own.steps, own.epochs, own.seconds, own.values, own.values, own.values, np.ones(own.steps.size, dtype=np.int64)
    )


def _series(series: Series) -> dict[str, Any]:
    written: dict[str, Any] = {
        "step": rounded(series.steps, 9),
        "epoch": rounded(series.epochs, 5),
        "second": rounded(series.seconds, 5),
        "mean": rounded(series.mean),
    }
    if np.nanmax(series.high - series.low, initial=0) > 0:
        written |= {"low": rounded(series.low), "high": rounded(series.high)}
    most = int(series.runs.max())
    # How many runs there are is said once, unless some of them end earlier than others.
    written["runs"] = most if bool((series.runs == most).all()) else series.runs.tolist()
    return written


def _view(view: View) -> dict[str, Any]:
    names = ("probe", "title", "label", "note", "middle", "low", "high", "unit", "log", "histogram")
    return {name: getattr(view, name) for name in names}


def _watched(one: Watched) -> dict[str, Any]:
    return {
        "arm": one.arm,
        "seed": one.seed,
        "names": one.names,
        "steps": rounded(one.steps, 9),
        "values": {name: [rounded(row) for row in values] for name, values in one.values.items()},
        "edges": [[rounded(pair, 3) for pair in row] for row in one.edges] if one.bins else [],
        "bins": one.bins,
    }
