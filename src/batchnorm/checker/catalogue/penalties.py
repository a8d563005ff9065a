"""L2 and L1 penalties, cost and gradient, in steps, and their known mistakes."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from batchnorm.checker import inputs
from batchnorm.checker.model import Changes, Convention, Mistake, Outputs, Step, Subject, run

L2: dict[str, Step] = {
    "strength": lambda v: v.lambd / (2 * v.m),
    "cost": lambda v: v.strength * np.sum(v.W**2),
    "dW": lambda v: 2 * v.strength * v.W,
}
L1: dict[str, Step] = {
    "strength": lambda v: v.lambd / v.m,
    "cost": lambda v: v.strength * np.sum(np.abs(v.W)),
    "dW": lambda v: v.strength * np.sign(v.W),
}
GROUPS = {"penalty": ("cost", "dW"), "inputs": ("W_after",)}


def _compute(steps: Mapping[str, Step], changes: Changes, facts: Mapping[str, Any]) -> Outputs:
    v = SimpleNamespace(**(inputs.penalty() | dict(facts)))
    run(steps, changes, v)
    return {"cost": v.cost, "dW": v.dW, "W_after": v.W}


def compute_l2(changes: Changes, facts: Mapping[str, Any]) -> Outputs:
    """Return cost and gradient of L2; ``facts`` may say that the candidate has no ``m``."""
    return _compute(L2, changes, facts)


def compute_l1(changes: Changes, facts: Mapping[str, Any]) -> Outputs:
    """Return cost and gradient of L1; ``facts`` may say that the candidate has no ``m``."""
    return _compute(L1, changes, facts)


def _mistake(name: str, title: str, changes: Changes, why: str) -> Mistake:
    equation = "(109) cost = c sum W^2;  (110) dW = 2 c W;  (111) one c in both: lambda/(2m), lambda/2 or lambda"
    fix = ("cost = lambd / (2 * m) * np.sum(W ** 2)  # or reg * np.sum(W ** 2)", "dW = lambd / m * W  # or 2 * reg * W")
    return Mistake(f"l2-{name}", "penalty", title, changes, equation, why, fix)


def _mistake_l1(name: str, title: str, changes: Changes, why: str) -> Mistake:
    equation = "(112) cost = c sum |W|;  (113) dW = c sign(W), with the same c: lambda/m or lambda"
    fix = ("cost = lambd / m * np.sum(np.abs(W))", "dW = lambd / m * np.sign(W)")
    return Mistake(f"l1-{name}", "penalty", title, changes, equation, why, fix)


_DISAGREE = (
    "The gradient is not that of the cost: a gradient check fails, and the strength is not the one that was set."
)
_NO_EFFECT = "The penalty shows in the loss and changes nothing in training."

_INPUT = Mistake(
    "penalty-input-modified",
    "inputs",
    "the weights are modified in place",
    {},
    "cost and dW are new arrays",
    "The penalty is to be added to the gradient, not to the weights.",
    ("dW = dW + lambd / m * W", "# not W += lambd / m * W"),
)
MISTAKES_L2 = (
    _mistake(
        "factor-2",
        "the gradient is half of what belongs to the cost",
        {"dW": lambda v: v.strength * v.W},
        "A factor 2 is missing in the gradient, or a 1/2 in the cost. " + _DISAGREE,
    ),
    _mistake(
        "factor-2-twice",
        "the gradient is twice what belongs to the cost",
        {"dW": lambda v: 4 * v.strength * v.W},
        "A factor 2 too many in the gradient, or a 1/2 too many in the cost. " + _DISAGREE,
    ),
    _mistake(
        "gradient-m-missing",
        "the gradient is not divided by m, the cost is",
        {"dW": lambda v: 2 * v.strength * v.m * v.W},
        _DISAGREE,
    ),
    _mistake(
        "cost-m-missing",
        "the cost is not divided by m, the gradient is",
        {"cost": lambda v: v.strength * v.m * np.sum(v.W**2)},
        _DISAGREE,
    ),
    _mistake("gradient-missing", "the gradient is 0", {"dW": lambda v: 0 * v.W}, _NO_EFFECT),
    _mistake(
        "gradient-sign",
        "the gradient has the wrong sign",
        {"dW": lambda v: -2 * v.strength * v.W},
        "Weights are pushed away from 0.",
    ),
    _mistake(
        "gradient-of-l1",
        "the gradient is that of L1, sign(W)",
        {"dW": lambda v: 2 * v.strength * np.sign(v.W)},
        "Cost and gradient belong to different penalties.",
    ),
    _mistake(
        "not-squared",
        "the cost sums absolute values instead of squares",
        {"cost": lambda v: v.strength * np.sum(np.abs(v.W))},
        "Cost and gradient belong to different penalties.",
    ),
    _mistake(
        "norm-not-squared",
        "the cost is the norm of W, not its square",
        {"cost": lambda v: v.strength * np.sqrt(np.sum(v.W**2))},
        "The derivative of the norm is W/|W|; weight decay comes from the square.",
    ),
    _mistake(
        "square-of-sum",
        "the cost squares the sum instead of summing the squares",
        {"cost": lambda v: v.strength * np.sum(v.W) ** 2},
        "Weights of opposite sign cancel.",
    ),
    _mistake(
        "mean-instead-of-sum",
        "the cost is the mean of W^2 instead of the sum",
        {"cost": lambda v: v.strength * np.mean(v.W**2)},
        "The strength then depends on the size of the layer.",
    ),
    _INPUT,
)
MISTAKES_L1 = (
    _mistake_l1("gradient-missing", "the gradient is 0", {"dW": lambda v: 0 * v.W}, _NO_EFFECT),
    _mistake_l1(
        "gradient-of-l2",
        "the gradient is that of L2, proportional to W",
        {"dW": lambda v: v.strength * v.W},
        "Cost and gradient belong to different penalties.",
    ),
    _mistake_l1(
        "gradient-sign",
        "the gradient has the wrong sign",
        {"dW": lambda v: -v.strength * np.sign(v.W)},
        "Weights are pushed away from 0.",
    ),
    _mistake_l1(
        "absolute-value-missing",
        "the cost sums W instead of absolute values",
        {"cost": lambda v: v.strength * np.sum(v.W)},
        "The cost has no lower bound.",
    ),
    _mistake_l1(
        "gradient-m-missing",
        "the gradient is not divided by m, the cost is",
        {"dW": lambda v: v.strength * v.m * np.sign(v.W)},
        _DISAGREE,
    ),
    _INPUT,
)


def _convention(name: str, strength: Step, note: str) -> Convention:
    return Convention("penalty", name, {"strength": strength}, note)


CONVENTIONS_L2 = (
    _convention(
        "lambda/2m",
        lambda v: v.lambd / (2 * v.m),
        "cost lambda/(2m) sum W^2, gradient lambda/m W; others write reg sum W^2 and 2 reg W",
    ),
    _convention(
        "lambda",
        lambda v: v.lambd,
        "cost lambda sum W^2, gradient 2 lambda W (EECS 498); others write lambda/(2m) sum W^2 and lambda/m W",
    ),
    _convention(
        "lambda/2",
        lambda v: v.lambd / 2,
        "cost lambda/2 sum W^2, gradient lambda W (CS231n); others write lambda sum W^2 and 2 lambda W",
    ),
    _convention(
        "lambda/m",
        lambda v: v.lambd / v.m,
        "cost lambda/m sum W^2, gradient 2 lambda/m W; others write lambda/(2m) sum W^2 and lambda/m W",
    ),
)
CONVENTIONS_L1 = (
    _convention("lambda/m", lambda v: v.lambd / v.m, "cost lambda/m sum |W|; others write reg sum |W|"),
    _convention("lambda", lambda v: v.lambd, "cost lambda sum |W|; others write lambda/m sum |W|"),
)

SUBJECTS = (
    Subject("l2", compute_l2, GROUPS, MISTAKES_L2, CONVENTIONS_L2),
    Subject("l1", compute_l1, GROUPS, MISTAKES_L1, CONVENTIONS_L1),
)
