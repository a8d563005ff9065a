"""How large activations and gradients are at each depth, by initializer, with and without batch normalization."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.claims.activations_figures import ACTIVATIONS, ARMS, EDGES, INITIALIZERS, NAMES, figures
from batchnorm.lab.claims.config import RunClaims
from batchnorm.lab.claims.findings import Arrays, Check, Findings, Measurement, Record, number, spread
from batchnorm.lab.wording import Table, percent, plural
from batchnorm.reference import batch_norm, initializers
from batchnorm.reference.layers import activation_backward, activation_forward, linear_forward

SOURCE_UNITS, BATCH, LAYERS = 4096, 16, 7
STDS = {"small Gaussian": 0.01, "larger Gaussian": 0.05}
SATURATED = 0.95
COLLAPSED, SATURATED_SHARE, EXPLODED, KEPT = 0.1, 0.25, 10.0, 1.25

Array = NDArray[np.float64]


def settings(config: RunClaims) -> dict[str, Any]:
    """Resolve what the experiment depends on.

    Parameters
    ----------
    config : RunClaims
        The command line.

    Returns
    -------
    dict
    """
    units = config.units or (256 if config.quick else SOURCE_UNITS)
    wider = math.sqrt(SOURCE_UNITS / units)
    return {
        "units": units,
        "batch": BATCH,
        "layers": LAYERS,
        "seeds": config.seeds or (2 if config.quick else 3),
        "gaussian_std": {name: std * wider for name, std in STDS.items()},
    }


def total(given: Mapping[str, Any]) -> int:
    """Count the measurements: one per seed and initializer."""
    return int(given["seeds"]) * len(INITIALIZERS)


def measure(given: Mapping[str, Any]) -> Iterator[Measurement]:
    """Send a Gaussian batch forward and a Gaussian gradient back, at initialization.

    Every arm of a seed has the same input and gradient, and the same draws behind its weights.

    Parameters
    ----------
    given : mapping
        From `settings`.

    Yields
    ------
    Measurement
        One record per arm and layer.
    """
    for seed in range(given["seeds"]):
        for name in INITIALIZERS:
            records, histograms = _one(given, seed, name)
            yield Measurement(f"seed {seed}, {name}", records, histograms if seed == 0 else {})


def _one(given: Mapping[str, Any], seed: int, name: str) -> tuple[list[Record], dict[str, Array]]:
    shape = (given["batch"], given["units"])
    start = np.random.default_rng([seed, 0])
    x, cotangent = start.standard_normal(shape), start.standard_normal(shape)
    signals = dict.fromkeys(ARMS, x)
    caches: dict[tuple[str, bool], list[Any]] = {arm: [] for arm in ARMS}
    records: dict[tuple[str, bool, int], Record] = {}
    histograms: dict[str, Array] = {}
    depths = range(1, given["layers"] + 1)
    for layer in depths:
        weight = _weight(given, seed, layer, name)
        for arm in ARMS:
            activation, norm = arm
            z = linear_forward(signals[arm], weight)[0]
            z_hat, normalized = batch_norm.forward_train(z) if norm else (z, None)
            y, activated = activation_forward(z_hat, activation)
            signals[arm] = y
            caches[arm].append((normalized, activated))
            lost = np.abs(y) > SATURATED if activation == "tanh" else y == 0
            records[*arm, layer] = {
                "initializer": name, "activation": activation, "norm": "batch" if norm else "none", "seed": seed,
                "layer": layer, "mean": y.mean(), "std": y.std(), "saturated": lost.mean(),
            }  # fmt: skip
            key = f"{name}/{activation}/{'batch' if norm else 'none'}/{layer}"
            shown = y[y > 0] if activation == "relu" else y  # the zeros would be a spike that hides the rest
            histograms[key] = np.histogram(shown, EDGES[activation])[0] / max(shown.size, 1)
    gradients = dict.fromkeys(ARMS, cotangent)
    for layer in reversed(depths):
        weight = _weight(given, seed, layer, name)
        for arm in ARMS:
            records[*arm, layer]["gradient_std"] = gradients[arm].std()
            normalized, activated = caches[arm].pop()
            dz = activation_backward(gradients[arm], activated)
            dz = dz if normalized is None else batch_norm.backward(dz, normalized).dx
            gradients[arm] = dz @ weight
    return list(records.values()), histograms


def _weight(given: Mapping[str, Any], seed: int, layer: int, name: str) -> Array:
    """Draw the weight of a layer; drawn again for the way back, because seven of them would fill the memory."""
    shape, draw = (given["units"], given["units"]), np.random.default_rng([seed, layer])
    if name in STDS:
        return initializers.small_gaussian(shape, draw, std=given["gaussian_std"][name])
    return initializers.xavier_normal(shape, draw) if name == "Xavier" else initializers.kaiming_normal(shape, draw)


def find(given: Mapping[str, Any], records: Sequence[Record], arrays: Arrays) -> Findings:
    """Judge what was recorded, and draw it.

    Parameters
    ----------
    given : mapping
        From `settings`.
    records : sequence of dict
        From `measure`.
    arrays : mapping
        The histograms of seed 0.

    Returns
    -------
    Findings
    """
    checks = judge_records(records, given["layers"])
    kept = [value for check in checks if check.name.startswith("with BN") for value in check.values]
    return Findings(
        headline=f"Over {given['layers']} layers of {given['units']} units batch normalization keeps the standard "
        f"deviation within a factor of {number(max(kept))}, whatever the initializer.",
        checks=checks,
        numbers=_numbers(checks),
        limits=[
            ("At initialization, with Gaussian input: nothing is trained, so it says where training starts, not where "
            "it gets."),
            (f"Statistics of {given['batch']} samples. BN keeps the size of the signal; that of the gradient on "
            "its way back is another matter, see the gradient ratio of the table and the figure."),
            *(
                [
                    (f"{given['units']} units, where the source has {SOURCE_UNITS}; the Gaussian deviations are larger "
                    "by the root of the ratio, so that a layer multiplies its signal by the same factor.")
                ]
                if given["units"] != SOURCE_UNITS
                else []
            ),
        ],
        tables=[_table(records, given["layers"])],
        pictures=figures(given, records, arrays),
        definitions=[
            ("saturated", "tanh: an output beyond 0.95 in absolute value. ReLU: an output of 0."),
            ("initializers", ("Gaussian: the deviations of the settings. Xavier: variance 2 / (fan in + fan out). "
             "Kaiming: variance 2 / fan in, for tanh too.")),
            ("gradient", ("Sent back from the last layer, standard normal there; the figure has its standard deviation "
             "with respect to the output of each layer.")),
        ],
    )  # fmt: skip


def judge_records(records: Sequence[Record], layers: int) -> list[Check]:
    """Make the checks from the records.

    Parameters
    ----------
    records : sequence of dict
        From `measure`.
    layers : int
        Number of the last layer.

    Returns
    -------
    list of Check
        What goes wrong without BN, and for each activation and initializer that BN keeps the deviation.
    """
    ratio, share = _by_seed(records, layers, "std"), _by_seed(records, layers, "saturated", relative=False)
    checks = []
    ratio_rule = "std, last over first layer"
    for activation in ACTIVATIONS:
        values = ratio[activation, "none", "small Gaussian"]
        rule = f"{ratio_rule}, below {COLLAPSED}"
        passed = [value < COLLAPSED for value in values]
        checks.append(Check(f"without BN, {NAMES[activation]}, small: collapses", rule, values, passed))
    values = share["tanh", "none", "larger Gaussian"]
    passed = [value > SATURATED_SHARE for value in values]
    rule = f"saturated share, last layer, above {SATURATED_SHARE}"
    checks.append(Check("without BN, tanh, larger: saturates", rule, values, passed))
    values = ratio["relu", "none", "larger Gaussian"]
    passed = [value > EXPLODED for value in values]
    checks.append(Check("without BN, ReLU, larger: explodes", f"{ratio_rule}, above {EXPLODED:g}", values, passed))
    for activation in ACTIVATIONS:
        arms = zip(*(ratio[activation, "batch", name] for name in INITIALIZERS), strict=True)
        values = [max(max(value, 1 / value) for value in arm) for arm in arms]
        rule = f"{ratio_rule} or inverse, worst initializer, at most {KEPT}"
        passed = [value <= KEPT for value in values]
        checks.append(Check(f"with BN, {NAMES[activation]}: kept", rule, values, passed))
    return checks


def _by_seed(
    records: Sequence[Record], layers: int, key: str, *, relative: bool = True
) -> dict[tuple[str, str, str], list[float]]:
    found: dict[tuple[str, str, str], list[float]] = {}
    first = {(r["activation"], r["norm"], r["initializer"], r["seed"]): r[key] for r in records if r["layer"] == 1}
    for r in records:
        if r["layer"] == layers:
            arm = r["activation"], r["norm"], r["initializer"]
            found.setdefault(arm, []).append(r[key] / first[*arm, r["seed"]] if relative else r[key])
    return found


def _numbers(checks: Sequence[Check]) -> list[str]:
    small_tanh, small_relu, saturated, exploded = checks[:4]
    seeds = plural(len(small_tanh.values), "seed")
    return [
        (
            f"Without BN, small Gaussian: the last layer has {spread(small_tanh.values)} (tanh) and "
            f"{spread(small_relu.values)} (ReLU) times the standard deviation of the first ({seeds})."
        ),
        (
            f"Without BN, larger Gaussian: {percent(saturated.mean)} of the last tanh layer are saturated; with ReLU "
            f"the standard deviation grows by {spread(exploded.values)}."
        ),
        (
            "With BN the four initializers give the same numbers: each has the same draws times its own factor, and "
            "BN takes a factor out, up to eps."
        ),
    ]


def _table(records: Sequence[Record], layers: int) -> Table:
    rows = []
    for activation in ACTIVATIONS:
        for norm in ("none", "batch"):
            for name in INITIALIZERS:
                arm = [r for r in records if (r["activation"], r["norm"], r["initializer"]) == (activation, norm, name)]
                last, first = ([r for r in arm if r["layer"] == layer] for layer in (layers, 1))
                gradients = [a["gradient_std"] / b["gradient_std"] for a, b in zip(first, last, strict=True)]
                rows.append(
                    [
                        f"{NAMES[activation]}, {name}{', BN' if norm == 'batch' else ''}",
                        spread([r["mean"] for r in last]),
                        spread([r["std"] for r in first]),
                        spread([r["std"] for r in last]),
                        percent(float(np.mean([r["saturated"] for r in last]))),
                        spread(gradients),
                    ]
                )
    columns = ["arm", "mean, last", "std, first", "std, last", "saturated", "gradient ratio"]
    note = (
        "Outputs of the first and the last layer: mean over seeds ± sample standard deviation. Saturated: of the last. "
        "Gradient ratio: standard deviation at the first over that at the last."
    )
    return Table("Activations by arm", columns, rows, note)
