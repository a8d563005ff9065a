"""Initialisers: the deviation of the weights that they draw, and their known mistakes.

A draw is random, so its outputs are estimates: the mean in units of the deviation, and the deviation itself divided
by the right one.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from batchnorm.checker import inputs
from batchnorm.checker.model import Changes, Convention, Mistake, Outputs, Step, Subject, run

#: 30000 draws give the deviation to 0.4 per cent; the formulas of the catalogue are at least 10 per cent apart.
TOLERANCES = {"mean": 0.03, "deviation": 0.03, "conv_deviation": 0.03}
OUTPUTS = {"draw": ("mean", "deviation", "conv_deviation")}

_SIZES: dict[str, Step] = {"area": lambda v: v.kernel**2}
KAIMING: dict[str, Step] = _SIZES | {
    "gain": lambda _: np.sqrt(2.0),
    "fan": lambda v: v.fan_in,
    "std": lambda v: v.gain / np.sqrt(v.fan),
}
XAVIER: dict[str, Step] = _SIZES | {
    "gain": lambda _: 1.0,
    "fan": lambda v: v.fan_in,
    "std": lambda v: v.gain / np.sqrt(v.fan),
}
GAUSSIAN: dict[str, Step] = _SIZES | {"gain": lambda _: 1.0, "fan": lambda v: v.fan_in, "std": lambda v: v.wanted}


def _compute(steps: Mapping[str, Step]) -> Callable[[Changes, Mapping[str, Any]], Outputs]:
    def one(changes: Changes, sizes: Mapping[str, Any]) -> SimpleNamespace:
        v = SimpleNamespace(mean=0.0, **sizes)
        run(steps, changes, v)
        v.mean = changes["mean"](v) if "mean" in changes else 0.0
        return v

    def compute(changes: Changes, _: Mapping[str, Any]) -> Outputs:
        given = inputs.initializer()
        sizes = {"fan_in": given["fan_in"], "fan_out": given["fan_out"], "kernel": 1, "wanted": given["std"]}
        dense = one(changes, sizes)
        right = one({}, sizes)
        area = given["kernel"] ** 2
        conv_sizes = {
            "fan_in": given["in_channels"] * area,
            "fan_out": given["out_channels"] * area,
            "kernel": given["kernel"],
            "wanted": given["std"],
        }
        conv, conv_right = one(changes, conv_sizes), one({}, conv_sizes)
        return {
            "mean": dense.mean,
            "deviation": None if dense.std is None else dense.std / right.std,
            "conv_deviation": None if conv.std is None else conv.std / conv_right.std,
        }

    return compute


def right_deviations(name: str) -> tuple[float, float]:
    """Return the deviations, dense and convolutional, that the outputs of a subject are divided by."""
    given = inputs.initializer()
    if name == "gaussian":
        return given["std"], given["std"]
    gain = np.sqrt(2.0) if name == "kaiming" else 1.0
    return gain / np.sqrt(given["fan_in"]), gain / np.sqrt(given["in_channels"] * given["kernel"] ** 2)


def _mistakes(
    prefix: str, equation: str, fix: tuple[str, str], *rows: tuple[str, str, str, Changes]
) -> tuple[Mistake, ...]:
    return tuple(
        Mistake(f"{prefix}-{name}", "draw", title, changes, equation, why, fix) for name, title, why, changes in rows
    )


_SHARED: tuple[tuple[str, str, str, Changes], ...] = (
    (
        "variance-for-deviation",
        "the variance is used where the standard deviation belongs: the root is missing",
        "randn * s has the deviation s, not the variance s: with fans of hundreds the weights are 10 times too small.",
        {"std": lambda v: v.gain**2 / v.fan},
    ),
    (
        "fans-swapped",
        "fan-in and fan-out are exchanged",
        "Signals then grow or shrink by sqrt(fan_in / fan_out) in each layer.",
        {"fan": lambda v: v.fan_out},
    ),
    (
        "kernel-area-forgotten",
        "the kernel area is not part of the fan of a convolution",
        "A 3x3 kernel sums 9 times as many terms: its weights are 3 times too large.",
        {"fan": lambda v: v.fan_in / v.area},
    ),
    (
        "kernel-side-for-area",
        "the fan of a convolution has the kernel's side instead of its area",
        "A 3x3 kernel sums 9 terms per channel, not 3.",
        {"fan": lambda v: v.fan_in / np.sqrt(v.area)},
    ),
    (
        "uniform-bound-is-deviation",
        "the deviation is used as the bound of a uniform distribution",
        "A uniform distribution on (-b, b) has the deviation b / sqrt(3).",
        {"std": lambda v: v.gain / np.sqrt(3 * v.fan)},
    ),
    (
        "constant",
        "all weights are equal",
        "Units with equal weights get equal gradients and stay equal: the layer is one unit wide.",
        {"std": lambda _: 0.0, "mean": lambda _: np.nan},
    ),
    (
        "not-centred",
        "the weights are drawn from (0, 1) instead of around 0",
        "All units add up the same positive sum; rand is uniform on (0, 1), randn is Gaussian around 0.",
        {"mean": lambda _: np.sqrt(3.0), "std": lambda _: None},
    ),
    (
        "unit-deviation",
        "the weights are not scaled: their deviation is 1",
        "Activations grow by the root of the fan in each layer; tanh saturates.",
        {"std": lambda _: 1.0},
    ),
)
_KAIMING_FIX = (
    "std = np.sqrt(2 / fan_in)  # convolution: fan_in = in_channels * K * K",
    "W = std * np.random.randn(fan_in, fan_out)",
)
_XAVIER_FIX = (
    "std = np.sqrt(1 / fan_in)  # or np.sqrt(2 / (fan_in + fan_out))",
    "W = std * np.random.randn(fan_in, fan_out)",
)
_KAIMING = _mistakes(
    "kaiming",
    "(123) std(W) = sqrt(2 / fan_in) for ReLU;  (118) fan_in = in_channels x kernel area",
    _KAIMING_FIX,
    *_SHARED,
    (
        "gain-missing",
        "the gain sqrt(2) of ReLU is missing: this is Xavier's deviation",
        "ReLU halves the second moment, so signals shrink by sqrt(2) in each layer.",
        {"gain": lambda _: 1.0},
    ),
    (
        "gain-not-rooted",
        "the gain is 2 instead of sqrt(2): it stands outside the root",
        "Signals grow by sqrt(2) in each layer.",
        {"gain": lambda _: 2.0, "std": lambda v: v.gain / np.sqrt(v.fan)},
    ),
)
_XAVIER = _mistakes(
    "xavier",
    "(121) std(W) = sqrt(2 / (fan_in + fan_out)), or (123) with gain 1: sqrt(1 / fan_in)",
    _XAVIER_FIX,
    *_SHARED,
    (
        "gain-added",
        "the deviation has the gain sqrt(2) of ReLU: this is Kaiming's",
        "For tanh, signals are pushed into saturation.",
        {"gain": lambda _: np.sqrt(2.0)},
    ),
    (
        "fan-sum-without-2",
        "the deviation is sqrt(1 / (fan_in + fan_out)): the 2 is missing",
        "Glorot's formula takes the MEAN of the two fans.",
        {"fan": lambda v: v.fan_in + v.fan_out},
    ),
)
_GAUSSIAN = _mistakes(
    "gaussian",
    "(120) W = std randn: 0.01 randn has the deviation 0.01 and the variance 0.0001",
    ("W = std * np.random.randn(fan_in, fan_out)", "# std is the deviation; its square is the variance"),
    (
        "std-taken-for-variance",
        "the standard deviation is taken for a variance: its root is used",
        "The weights are 1/sqrt(std) times too large, 10 times for 0.01.",
        {"std": lambda v: np.sqrt(v.wanted)},
    ),
    (
        "variance-for-deviation",
        "the square of std is used: the variance where the deviation belongs",
        "The weights are std times too small, 100 times for 0.01.",
        {"std": lambda v: v.wanted**2},
    ),
    *(row for row in _SHARED if row[0] in ("constant", "not-centred", "unit-deviation")),
)
_FAN_IN = Convention("fan", "in", {}, "")
_FAN_MEAN = Convention(
    "fan",
    "mean",
    {"fan": lambda v: (v.fan_in + v.fan_out) / 2},
    "the deviation is Glorot's, sqrt(2 / (fan_in + fan_out)); the short form of the courses is sqrt(1 / fan_in)",
)

SUBJECTS = tuple(
    Subject(name, _compute(steps), OUTPUTS, mistakes, conventions, TOLERANCES)
    for name, steps, mistakes, conventions in (
        ("kaiming", KAIMING, _KAIMING, ()),
        ("xavier", XAVIER, _XAVIER, (_FAN_IN, _FAN_MEAN)),
        ("gaussian", GAUSSIAN, _GAUSSIAN, ()),
    )
)
