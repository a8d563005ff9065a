"""Ioffe and Szegedy, section 3.3: the scale of the weights in front of batch normalization does not matter."""

from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from batchnorm import BatchNorm1d
from batchnorm.lab.experiments.claims.form import (
    Array,
    Arrays,
    Check,
    Claim,
    Findings,
    Measurement,
    Record,
    Settings,
    number,
    style,
)
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.reference import batch_norm
from batchnorm.reference.layers import linear_backward, linear_forward

#: Output, gradient of the input and gradient of the weights, for weights that are `a` times as large.
Terms = tuple[Array, Array, Array]
ARMS = {"textbook": "textbook", "layer": "layer", "none": "without BN"}
WHAT = {"output": "BN((aW)u) = BN(Wu)", "dinput": "dBN((aW)u)/du = dBN(Wu)/du",
        "dweight": "dBN((aW)u)/d(aW) = (1/a) dBN(Wu)/dW"}  # fmt: skip
LARGEST = 1e-6


def terms(arm: str, u: Array, weight: Array, cotangent: Array, eps: float) -> Terms:
    """Return the three terms of an arm."""
    if arm == "textbook":
        x, inner = linear_forward(u, weight)
        y, cache = batch_norm.forward_train(x, eps=eps)
        back = linear_backward(batch_norm.backward(cotangent, cache).dx, inner)
        return y, back.dx, back.dweight
    inputs, weights = (torch.tensor(one, requires_grad=True) for one in (u, weight))
    out = torch.nn.functional.linear(inputs, weights)
    if arm == "layer":
        out = BatchNorm1d(len(weight), eps=eps, affine=False, dtype=torch.float64)(out)
    dinput, dweight = torch.autograd.grad(out, (inputs, weights), torch.tensor(cotangent))
    return out.detach().numpy(), dinput.numpy(), dweight.numpy()


def errors(one: Terms, other: Terms, scale: float) -> dict[str, float]:
    """Return the largest relative error of each identity; ``other``: of weights ``scale`` times as large."""
    pairs = {"output": (one[0], other[0]), "dinput": (one[1], other[1]), "dweight": (one[2], scale * other[2])}
    return {name: float(np.abs(b - a).max() / np.abs(a).max()) for name, (a, b) in pairs.items()}


def _measure(settings: Settings) -> Iterator[Measurement]:
    rows, features = settings["rows"], settings["features"]
    for seed in range(settings["seeds"]):
        rng = np.random.default_rng(seed)
        u, weight = rng.normal(size=(rows, features)), rng.normal(size=(features, features)) / np.sqrt(features)
        cotangent, records = rng.normal(size=(rows, features)), []
        for arm in ARMS:
            for eps in settings["eps"]:
                one = terms(arm, u, weight, cotangent, eps)
                for scale in settings["scales"]:
                    other = terms(arm, u, scale * weight, cotangent, eps)
                    size = float(np.linalg.norm(other[2]))
                    records.append({"seed": seed, "arm": arm, "eps": eps, "scale": scale, "dweight_norm": size,
                                    **errors(one, other, scale)})  # fmt: skip
        yield Measurement(f"seed {seed}", records, {})


def _find(settings: Settings, records: Sequence[Record], _arrays: Arrays) -> Findings:
    eps, seeds = min(settings["eps"]), range(settings["seeds"])

    def worst(arm: str, what: str) -> list[float]:
        chosen = [r for r in records if r["arm"] == arm and r["eps"] == eps]
        return [max(r[what] for r in chosen if r["seed"] == seed) for seed in seeds]

    checks = [Check(f"{words}, {ARMS[arm]}", "largest relative error over scales", worst(arm, what), LARGEST, False)
              for arm in ("textbook", "layer") for what, words in WHAT.items()]  # fmt: skip
    checks.append(Check("without BN the output does depend on the scale", "largest relative error over scales",
                        worst("none", "output"), LARGEST))  # fmt: skip
    low, high = min(settings["scales"]), max(settings["scales"])
    off = max(worst("layer", what)[k] for what in WHAT for k in seeds)
    return Findings(
        f"Weights {number(low)} to {number(high)} times as large change outputs and gradients by {off:.0e} at most, "
        "but for the factor 1/a of the gradient of the weights.",
        checks,
        [_picture(settings, records)],
        numbers=[(f"eps is {eps:g} here: the identities are exact as eps over the variance goes to 0. The picture "
                 "shows them at other eps: small weights feel it.")],
    )  # fmt: skip


def _picture(settings: Settings, records: Sequence[Record]) -> Picture:
    scales = sorted(settings["scales"])

    def over_scales(arm: str, eps: float, key: str) -> list[float]:
        chosen = [r for r in records if (r["arm"], r["eps"]) == (arm, eps)]
        return [float(np.mean([r[key] for r in chosen if r["scale"] == scale])) for scale in scales]

    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for index, (arm, words) in enumerate((("none", "without BN"), ("layer", "with BN"))):
            left.plot(scales, over_scales(arm, min(settings["eps"]), "dweight_norm"), label=words, **style(index))
        for index, eps in enumerate(settings["eps"]):
            shown = np.maximum(over_scales("layer", eps, "output"), 1e-17)  # an error of 0 has no logarithm
            right.plot(scales, shown, label=f"eps {eps:g}", **style(index))
        right.axhline(LARGEST, color="#888888", ls=":", lw=1)
        left.set(xscale="log", yscale="log", xlabel="scale of the weights", ylabel="norm of their gradient")
        right.set(xscale="log", yscale="log", xlabel="scale of the weights", ylabel="relative error of the output")
        left.legend()
        right.legend()
    return Picture("scales", "The gradient of the weights, and the error of the identity",
                   "Left: with BN larger weights get smaller gradients, by 1/a. Right: the output of the layer against "
                   "that at scale 1; dotted: the bound. Means over seeds.",
                   "Gradient norm and error of the identity against the scale of the weights.", figure)  # fmt: skip


_SIZES = {"rows": 60, "features": 100, "eps": [1e-12, 1e-5, 1e-3], "scales": [0.01, 0.1, 0.5, 2.0, 10.0, 100.0]}
CLAIM = Claim(
    name="scale-invariance",
    sentence="Batch normalization makes a layer independent of the scale of its weights: outputs and the gradient of "
    "the input stay, and the gradient of weights that are a times as large is 1/a times as large.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, section 3.3",
    protocol="A dense layer and batch normalization with weights multiplied by 0.01 to 100, in float64, by the "
    "textbook and by the layer; without BN beside it.",
    rule="The three identities hold to a relative error of 1e-6 at every scale with eps 1e-12, in both; and the first "
    "does not hold without BN.",
    budgets={"small": {"seeds": 5, **_SIZES}, "full": {"seeds": 50, **_SIZES}},
    cost={"small": "1 s", "full": "5 s"},
    published="The three identities, without eps.",
    differs="With eps, without which a constant unit would divide by 0.",
    measure=_measure,
    find_in_records=_find,
)
