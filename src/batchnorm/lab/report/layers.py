"""What happened inside: for each layer, at a number of steps, what the probes saw.

Arms are shown side by side by the place of a layer in the forward pass, not by its name: a network with normalization
has other module paths than the same network without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.experiments.series import number
from batchnorm.lab.experiments.study import Arm, seed_of
from batchnorm.lab.recording import Record, TrainRun

Floats = NDArray[np.float64]

#: A page holds about this many numbers about layers; more layers or arms, and fewer steps of each are shown.
BUDGET = 60_000
FEWEST_STEPS, MOST_STEPS = 6, 60
BINS = 32
#: A bin of a histogram is one character: its height from 0 to 61, relative to the highest bin of that histogram.
HEIGHTS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class View:
    """One way to look at the layers: a quantity of a probe, perhaps with a band around it.

    Attributes
    ----------
    probe : str
        Which probe.
    title, label, note : str
        Head, axis, and how to read it.
    middle, low, high : str
        Quantities of the probe; no band without ``low`` and ``high``.
    unit : str
        "share" or "".
    log : bool
        Whether the axis is logarithmic at first.
    histogram : bool
        Whether the probe has a histogram that belongs to it.
    """

    probe: str
    title: str
    label: str
    note: str
    middle: str
    low: str = ""
    high: str = ""
    unit: str = ""
    log: bool = False
    histogram: bool = False


VIEWS = (
    View(
        "activations",
        "Inputs to the nonlinearities",
        "input",
        "Line: median; band: 15th to 85th percentile, over a training batch and all units.",
        "p50",
        "p15",
        "p85",
        histogram=True,
    ),
    View("activations", "Saturated share", "saturated", "Values at which the nonlinearity hardly passes a gradient.",
         "saturated", unit="share"),
    View("activations", "Dead units", "dead", "Units that are off for every example of the batch.", "dead",
         unit="share"),
    View("units", "Saturated units on the test data", "saturated",
         "Share of the inputs to a nonlinearity, over test examples and units, where it hardly passes a gradient.",
         "saturated", unit="share"),
    View("gradients", "Gradient norm", "gradient norm",
         "Euclidean norm of the gradient of each layer's parameters; where arms are compared, without those of batch "
         "normalization layers.",
         "gradient_norm", log=True, histogram=True),
    View("gradients", "Gradient, root mean square", "gradient RMS", "Size of a typical component of the gradient.",
         "gradient_rms", log=True),
    View("gradients", "Weight norm", "weight norm", "Euclidean norm of each layer's parameters.", "weight_norm"),
    View("running", "Batch mean against running mean", "distance",
         "Root mean square over channels of (batch mean - running mean), in running standard deviations: what "
         "evaluation mode gets wrong about the mean.", "mean_gap"),
    View("running", "Batch variance over running variance", "ratio",
         "Line: median channel; band: 10th to 90th percentile of channels. 1: evaluation mode divides by what training "
         "mode divides by.", "var_ratio", "var_ratio_low", "var_ratio_high", log=True),
    View("input_shift", "Internal covariate shift, by distribution", "distance",
         "How far one step of all layers moves the inputs of a layer on the same batch: the Wasserstein distance "
         "of its units, in deviations. The inputs of the first layer do not move.", "distance", log=True),
    View("input_shift", "Spread kept by the step", "ratio",
         "Standard deviation of a layer's inputs after the step over that before it; 1: no change.", "std_ratio"),
    View("shift", "Internal covariate shift, by gradient", "shift",
         "How far a layer's gradient moves when the layers before it take their step: the Euclidean norm of the "
         "difference (arXiv 1805.11604, definition 2.1).", "shift", log=True),
    View("shift", "Direction kept under the shift", "cosine",
         "Cosine between a layer's gradient before and after the layers before it take their step; 1: it did not turn.",
         "cosine"),
)  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """What one run's probe saw: S steps of L layers.

    Attributes
    ----------
    arm : int
        Index of the arm.
    seed : object
        The run that is shown.
    names : list of str
        Of the layers, in the order of the forward pass.
    steps : ndarray of shape (S,), dtype=np.float64
        Increasing.
    values : dict of str to ndarray of shape (S, L), dtype=np.float64
        By quantity; NaN where a layer has none.
    edges : ndarray of shape (S, L, 2), dtype=np.float64
        Ends of the histograms.
    bins : list of list of str
        For each step and layer its histogram, written with :data:`HEIGHTS`; empty when there is none.
    """

    arm: int
    seed: Any
    names: list[str]
    steps: Floats
    values: dict[str, Floats]
    edges: Floats
    bins: list[list[str]]


def watched(arms: Sequence[Arm], probe: str) -> list[Watched]:
    """Read what a probe saw, in one run of each arm: the first of its basis that was probed.

    Parameters
    ----------
    arms : sequence of Arm
        The arms.
    probe : str
        Which probe.

    Returns
    -------
    list of Watched
        For the arms that were probed. Of many steps some are taken, evenly, the first and the last among them.
    """
    runs = {
        index: next((run for run in (*arm.basis, *arm.others) if _records(run, probe)), None)
        for index, arm in enumerate(arms)
    }
    # Beside an arm without normalization, layers are those that both have: a normalization layer has no counterpart.
    unmatched = probe == "gradients" and len(arms) > 1
    return [
        _watched(index, run, probe, len(arms), _normalizations(run) if unmatched else frozenset())
        for index, run in runs.items()
        if run is not None
    ]


def shown_views(seen: dict[str, list[Watched]]) -> list[View]:
    """Say which views there is anything to show for: those with a finite value somewhere."""
    return [
        view
        for view in VIEWS
        if any(view.middle in one.values and np.isfinite(one.values[view.middle]).any() for one in seen[view.probe])
    ]


def _records(run: TrainRun, probe: str) -> list[Record]:
    by_step = {record["step"]: record for record in run.of_probe(probe) if record["layers"]}
    return [by_step[step] for step in sorted(by_step)]


def _normalizations(run: TrainRun) -> frozenset[str]:
    """Name the batch normalization layers of a run, as far as their running statistics were probed."""
    return frozenset(name for record in run.of_probe("running")[:1] for name in record["layers"])


def _watched(index: int, run: TrainRun, probe: str, arms: int, without: frozenset[str]) -> Watched:
    records = _records(run, probe)
    names = list(dict.fromkeys(name for record in records for name in record["layers"] if name not in without))
    wanted = [quantity for view in VIEWS if view.probe == probe for quantity in (view.middle, view.low, view.high)]
    wanted = [name for name in dict.fromkeys(wanted) if name]
    has_bins = any("histogram" in layer for record in records[:1] for layer in record["layers"].values())
    size = max(1, arms * len(names) * (len(wanted) + (BINS // 5 if has_bins else 0)))
    steps = max(FEWEST_STEPS, min(MOST_STEPS, BUDGET // size))
    if len(records) > steps:
        records = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, steps).round().astype(int))]
    layers = [[record["layers"].get(name, {}) for name in names] for record in records]
    return Watched(
        arm=index,
        seed=seed_of(run),
        names=names,
        steps=np.array([record["step"] for record in records], dtype=np.float64),
        values={
            quantity: np.array([[number(layer.get(quantity)) for layer in row] for row in layers])
            for quantity in wanted
        },
        edges=np.array([[_ends(layer.get("histogram")) for layer in row] for row in layers]),
        bins=[[_written(layer.get("histogram")) for layer in row] for row in layers] if has_bins else [],
    )


def _ends(histogram: Any) -> tuple[float, float]:
    if not isinstance(histogram, dict):
        return np.nan, np.nan
    return number(histogram.get("low")), number(histogram.get("high"))


def _written(histogram: Any) -> str:
    counts = histogram.get("counts") if isinstance(histogram, dict) else None
    if not counts or not np.isfinite(_ends(histogram)).all():
        return ""
    heights = np.nan_to_num(np.array([number(count) for count in counts]))
    top = heights.max()
    return "".join(HEIGHTS[round(61 * height / top)] for height in heights) if top > 0 else ""
