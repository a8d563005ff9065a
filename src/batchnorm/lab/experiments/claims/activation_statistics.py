"""How large activations and gradients are at each depth, by initializer, with and without batch normalization."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from batchnorm.lab.experiments.claims.form import (
    COLORS,
    Array,
    Arrays,
    Check,
    Claim,
    Findings,
    Measurement,
    Record,
    Settings,
    number,
    spread,
    style,
)
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.wording import Table, percent
from batchnorm.reference import batch_norm, initializers
from batchnorm.reference.layers import activation_backward, activation_forward, linear_forward

SOURCE_UNITS = 4096
STDS = {"small Gaussian": 0.01, "larger Gaussian": 0.05}
INITIALIZERS = (*STDS, "Xavier", "Kaiming")
ACTIVATIONS, NORMS = {"tanh": "tanh", "relu": "ReLU"}, {"none": "without BN", "batch": "with BN"}
ARMS = tuple((activation, norm) for activation in ACTIVATIONS for norm in NORMS)
EDGES = {"tanh": np.linspace(-1.0, 1.0, 42), "relu": np.linspace(0.0, 4.0, 42)}
COLLAPSED, SATURATED, EXPLODED, KEPT = 0.1, 0.25, 10.0, 1.25


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Send a Gaussian batch forward and a Gaussian gradient back, at initialization; every arm with the same draws."""
    for seed in range(settings["seeds"]):
        for name in INITIALIZERS:
            records, histograms = _one(settings, seed, name)
            yield Measurement(f"seed {seed}, {name}", records, histograms if seed == 0 else {})


def _one(settings: Settings, seed: int, name: str) -> tuple[list[Record], dict[str, Array]]:
    start = np.random.default_rng([seed, 0])
    x, cotangent = start.standard_normal((2, settings["batch"], settings["units"]))
    signals, caches = dict.fromkeys(ARMS, x), {arm: [] for arm in ARMS}  # type: dict[Any, Array], dict[Any, list[Any]]
    records: dict[Any, Record] = {}
    histograms: dict[str, Array] = {}
    depths = range(1, settings["layers"] + 1)
    for layer in depths:
        weight = _weight(settings["units"], seed, layer, name)
        for activation, norm in ARMS:
            z = linear_forward(signals[activation, norm], weight)[0]
            z_hat, normalized = batch_norm.forward_train(z) if norm == "batch" else (z, None)
            y, activated = activation_forward(z_hat, activation)
            signals[activation, norm] = y
            caches[activation, norm].append((normalized, activated))
            lost = np.abs(y) > 0.95 if activation == "tanh" else y == 0
            records[activation, norm, layer] = {
                "initializer": name, "activation": activation, "norm": norm, "seed": seed, "layer": layer,
                "std": y.std(), "saturated": lost.mean(),
            }  # fmt: skip
            shown = y[y > 0] if activation == "relu" else y  # the zeros would be a spike that hides the rest
            histograms[f"{name}/{activation}/{norm}/{layer}"] = np.histogram(shown, EDGES[activation])[0] / max(
                shown.size, 1
            )
    gradients = dict.fromkeys(ARMS, cotangent)
    for layer in reversed(depths):
        weight = _weight(settings["units"], seed, layer, name)  # drawn again: seven of them would fill the memory
        for arm in ARMS:
            records[*arm, layer]["gradient_std"] = gradients[arm].std()
            normalized, activated = caches[arm].pop()
            dz = activation_backward(gradients[arm], activated)
            gradients[arm] = (dz if normalized is None else batch_norm.backward(dz, normalized).dx) @ weight
    return list(records.values()), histograms


def _weight(units: int, seed: int, layer: int, name: str) -> Array:
    shape, draw = (units, units), np.random.default_rng([seed, layer])
    if name in STDS:  # larger with fewer units, so that a layer multiplies its signal by the same factor
        return initializers.small_gaussian(shape, draw, std=STDS[name] * math.sqrt(SOURCE_UNITS / units))
    return initializers.xavier_normal(shape, draw) if name == "Xavier" else initializers.kaiming_normal(shape, draw)


def _checks(records: Sequence[Record], layers: int) -> list[Check]:
    """Judge what goes wrong without BN, and that BN keeps the deviation; the last layer against the first."""
    ratio, share = _by_seed(records, layers, "std"), _by_seed(records, layers, "saturated", relative=False)
    words = "std, last over first layer"
    kept = {
        activation: [
            max(max(value, 1 / value) for value in arm)
            for arm in zip(*(ratio[activation, "batch", name] for name in INITIALIZERS), strict=True)
        ]
        for activation in ACTIVATIONS
    }
    return [
        Check("without BN, tanh, small: collapses", words, ratio["tanh", "none", "small Gaussian"], COLLAPSED, False),
        Check("without BN, ReLU, small: collapses", words, ratio["relu", "none", "small Gaussian"], COLLAPSED, False),
        Check("without BN, tanh, larger: saturates", "saturated share, last layer",
              share["tanh", "none", "larger Gaussian"], SATURATED),
        Check("without BN, ReLU, larger: explodes", words, ratio["relu", "none", "larger Gaussian"], EXPLODED),
        *(Check(f"with BN, {ACTIVATIONS[name]}: kept", f"{words} or inverse, worst initializer", values, KEPT, False)
          for name, values in kept.items()),
    ]  # fmt: skip


def _by_seed(records: Sequence[Record], layers: int, key: str, *, relative: bool = True) -> dict[Any, list[float]]:
    def arm_of(r: Record) -> tuple[str, str, str]:
        return r["activation"], r["norm"], r["initializer"]

    first = {(*arm_of(r), r["seed"]): r[key] for r in records if r["layer"] == 1}
    found: dict[Any, list[float]] = {}
    for r in records:
        if r["layer"] == layers:
            found.setdefault(arm_of(r), []).append(r[key] / first[*arm_of(r), r["seed"]] if relative else r[key])
    return found


def _find(settings: Settings, records: Sequence[Record], arrays: Arrays) -> Findings:
    """Judge the records, and draw them."""
    made = _checks(records, settings["layers"])
    with mpl.rc_context(SETTINGS):
        pictures = [_by_depth(records), *(_histograms(settings, arrays, name) for name in ACTIVATIONS)]
    return Findings(
        f"Over {settings['layers']} layers of {settings['units']} units batch normalization keeps the "
        "standard deviation "
        f"within a factor of {number(max(*made[4].values, *made[5].values))}, whatever the initializer.",
        made,
        pictures,
        numbers=[("With BN the four initializers give the same numbers: each has the same draws times its own factor, "
                 "and BN takes a factor out, up to eps.")],
        limits=["At initialization, with Gaussian input: it says where training starts, not where it gets.",
                (f"Statistics of {settings['batch']} samples. BN keeps the size of the signal; that of the gradient on "
                "its way back is another matter, see the gradient ratio.")],
        tables=[_table(records, settings["layers"])],
        definitions=[("saturated", "tanh: an output beyond 0.95 in absolute value. ReLU: an output of 0.")],
    )  # fmt: skip


def _table(records: Sequence[Record], layers: int) -> Table:
    rows = []
    for activation, norm in ARMS:
        for name in INITIALIZERS:
            arm = [r for r in records if (r["activation"], r["norm"], r["initializer"]) == (activation, norm, name)]
            first, last = ([r for r in arm if r["layer"] == layer] for layer in (1, layers))
            back = [a["gradient_std"] / b["gradient_std"] for a, b in zip(first, last, strict=True)]
            rows.append([f"{ACTIVATIONS[activation]}, {name}, {NORMS[norm]}", spread([r["std"] for r in first]),
                         spread([r["std"] for r in last]), percent(float(np.mean([r["saturated"] for r in last]))),
                         spread(back)])  # fmt: skip
    columns = ["arm", "std, first", "std, last", "saturated", "gradient ratio"]
    return Table("Activations by arm", columns, rows, "Mean over seeds ± sample standard deviation. Gradient ratio: "
                 "standard deviation at the first over that at the last layer.")  # fmt: skip


def _by_depth(records: Sequence[Record]) -> Picture:
    figure = Figure(figsize=(10.5, 7.2), layout="constrained")
    labels = {"std": "standard deviation", "saturated": "saturated share", "gradient_std": "std of the gradient"}
    grid = figure.subplots(3, 4, sharey="row", sharex=True)
    for line, (key, label) in zip(grid, labels.items(), strict=True):
        for axes, (activation, norm) in zip(line, ARMS, strict=True):
            for index, name in enumerate(INITIALIZERS):
                arm = [r for r in records if (r["activation"], r["norm"], r["initializer"]) == (activation, norm, name)]
                depths = sorted({r["layer"] for r in arm})
                values = np.array([[r[key] for r in arm if r["layer"] == depth] for depth in depths])
                axes.plot(depths, values.mean(axis=1), label=name, **style(index))
                axes.fill_between(depths, values.min(axis=1), values.max(axis=1), color=COLORS[index], alpha=0.2, lw=0)
            if key != "saturated":
                axes.set_yscale("log")
        line[0].set_ylabel(label)
    for axes, (activation, norm) in zip(grid[0], ARMS, strict=True):
        axes.set_title(f"{ACTIVATIONS[activation]}, {NORMS[norm]}", loc="left")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return Picture(
        "by-depth", "By depth", "Outputs and gradients of each layer, one line per initializer; line: mean over seeds, "
        "band: lowest to highest. Rows share their axis.",
        "Standard deviation, saturated share and gradient deviation against depth, without and with BN.", figure,
    )  # fmt: skip


def _histograms(settings: Settings, arrays: Arrays, activation: str) -> Picture:
    rows = [(name, norm) for name in INITIALIZERS for norm in NORMS]
    edges = EDGES[activation]
    figure = Figure(figsize=(10.5, 9.6), layout="constrained")
    grid = figure.subplots(len(rows), settings["layers"], sharex=True, squeeze=False)
    for line, (name, norm) in zip(grid, rows, strict=True):
        for layer, axes in enumerate(line, start=1):
            share = arrays[f"{name}/{activation}/{norm}/{layer}"]
            axes.stairs(share, edges, fill=True, color=COLORS[0 if norm == "none" else 1])
            axes.set(
                ylim=(0, max(1.08 * share.max(), 1e-9)), yticks=[], title=f"layer {layer}" if line is grid[0] else ""
            )
            axes.grid(visible=False)
        line[0].set_ylabel(f"{name}\n{NORMS[norm]}", rotation=0, ha="right", va="center")
    return Picture(
        f"histograms-{activation}", f"Distribution of the activations, {ACTIVATIONS[activation]}",
        f"Outputs of each layer (seed 0), from {edges[0]:g} to {edges[-1]:g}; each is drawn to its own height."
        + (" Positive outputs only." if activation == "relu" else ""),
        f"Histograms of {ACTIVATIONS[activation]} outputs by layer, four initializers, without and with BN.", figure,
    )  # fmt: skip


CLAIM = Claim(
    name="activation-statistics",
    sentence="With small Gaussian weights the activations of a deep network collapse, with large ones they saturate or "
    "explode; batch normalization keeps their size, whatever the initializer.",
    source="EECS 498 course notes on weight initialization; Glorot and Bengio 2010; He et al. 2015, arXiv 1502.01852; "
    "Ioffe and Szegedy 2015, arXiv 1502.03167",
    protocol="Seven dense layers at initialization, a Gaussian batch forward and a Gaussian gradient back.",
    rule="The last layer against the first: its standard deviation below a tenth (small), the saturated share above a "
    "quarter (tanh, larger), the deviation above tenfold (ReLU, larger); with BN within a factor of 1.25.",
    budgets={
        "small": {"seeds": 3, "units": 256, "batch": 16, "layers": 7},
        "full": {"seeds": 5, "units": SOURCE_UNITS, "batch": 16, "layers": 7},
    },
    cost={"small": "3 s", "full": "4 min and 2 GiB"},
    differs="Small budget: 256 units instead of 4096; the Gaussian deviations are larger by the root of the ratio.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(INITIALIZERS),
)
