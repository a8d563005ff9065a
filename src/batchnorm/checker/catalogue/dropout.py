"""Inverted dropout in steps, and its known mistakes.

The mask is random, so its outputs are features of it: the share that is kept, the factor of what is kept, and whether
the backward has the same mask. Equation numbers: the derivation.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from batchnorm.checker import inputs
from batchnorm.checker.model import Changes, Convention, Mistake, Outputs, Step, Subject, run

STEPS: dict[str, Step] = {
    "keep": lambda v: v.keep_prob,
    "drop": lambda v: 1 - v.keep,
    "kept": lambda v: v.keep,
    "scale": lambda v: 1 / v.keep,
    "rows_alike": lambda _: 0.0,  # 1 if most rows, or most columns, are dropped or kept as a whole
    "test_kept": lambda _: 1.0,
    "test_scale": lambda _: 1.0,
    "back_agrees": lambda _: 1.0,  # share of elements whose gradient passes exactly where the forward passed
    "back_kept": lambda v: v.kept,
    "back_scale": lambda v: v.scale,
    "test_back_kept": lambda v: v.test_kept,
    "test_back_scale": lambda v: v.test_scale,
    "x_after": lambda v: v.x,
    "dout_after": lambda v: v.dout,
}
GROUPS = {
    "forward": ("kept", "scale", "rows_alike", "test_kept", "test_scale"),
    "backward": ("back_agrees", "back_kept", "back_scale", "test_back_kept", "test_back_scale"),
    "inputs": ("x_after", "dout_after"),
}


def compute(changes: Changes, facts: Mapping[str, Any]) -> Outputs:
    """Return the features; ``facts`` may say that the candidate reads ``p`` as the probability of keeping."""
    v = SimpleNamespace(**(inputs.dropout() | dict(facts)))
    run(STEPS, changes, v)
    return {name: getattr(v, name) for name in STEPS if name not in ("keep", "drop")}


CONVENTIONS = (
    Convention("dropout", "drop", {}, "p is the probability of dropping a unit, as in torch and EECS 498"),
    Convention(
        "dropout",
        "keep",
        {"keep": lambda v: v.p},
        "p is the probability of keeping a unit, as in CS231n; in torch and EECS 498 it is that of dropping",
    ),
    Convention(
        "dropout", "keep_prob", {}, "keep_prob is the probability of keeping a unit; torch's p is 1 - keep_prob"
    ),
)

_TRAIN = "(103) mask = 1 with probability keep = 1 - drop;  (104) out = x mask / keep"
_FIX = ("mask = (np.random.rand(*x.shape) < keep) / keep", "out = x * mask  # backward: dx = dout * mask")


def _mistake(
    name: str,
    title: str,
    changes: Changes,
    why: str,
    fix: tuple[str, str] = _FIX,
    equation: str = _TRAIN,
    group: str = "forward",
) -> Mistake:
    return Mistake(f"dropout-{name}", group, title, changes, equation, why, fix)


def _backward(name: str, title: str, changes: Changes, why: str) -> Mistake:
    fix = ("mask = (np.random.rand(*x.shape) < keep) / keep; cache = mask", "dx = dout * mask")
    return _mistake(
        name, title, changes, why, fix, "(105) dx = dout mask / keep, with the mask of the forward", "backward"
    )


MISTAKES = (
    _mistake(
        "not-rescaled",
        "what is kept is not rescaled",
        {"scale": lambda _: 1.0},
        "At test time all units are on, and the next layer gets 1/keep times the input it was trained on.",
    ),
    _mistake(
        "divided-by-drop-rate",
        "what is kept is divided by the drop rate",
        {"scale": lambda v: 1 / v.drop},
        "E[out] is then keep/drop times x instead of x; it is right only for one half.",
    ),
    _mistake(
        "multiplied-by-keep",
        "what is kept is multiplied by the keep probability instead of divided",
        {"scale": lambda v: v.keep},
        "E[out] is keep^2 x instead of x.",
    ),
    _mistake(
        "multiplied-by-drop-rate",
        "what is kept is multiplied by the drop rate",
        {"scale": lambda v: v.drop},
        "E[out] is keep drop x instead of x.",
    ),
    _mistake(
        "keep-drop-swapped",
        "keep and drop are exchanged: what should be kept is dropped",
        {"kept": lambda v: v.drop, "scale": lambda v: 1 / v.drop},
        "A rate of 0.2 then drops 80 per cent; nothing else looks wrong, because the scale fits.",
    ),
    _mistake(
        "mask-swapped",
        "the mask keeps with the drop rate, the scale is that of the keep probability",
        {"kept": lambda v: v.drop},
        "The comparison of the random numbers points the wrong way: rand > keep where rand < keep is meant.",
    ),
    _mistake(
        "identity-in-training",
        "nothing is dropped in training",
        {"kept": lambda _: 1.0, "scale": lambda _: 1.0, "rows_alike": lambda _: None},
        "The mask is not applied, or the mode is not read.",
    ),
    _mistake(
        "whole-rows",
        "one random number serves a whole row or column",
        {"rows_alike": lambda _: 1.0, "kept": lambda _: None},
        "Units are dropped together; each element needs its own number.",
    ),
    _mistake(
        "active-at-test-time",
        "units are dropped at test time",
        {"test_kept": lambda v: v.kept, "test_scale": lambda v: v.scale},
        "Predictions are random.",
        ("if mode == 'test':", "    out = x"),
        "(104) is for training; at test time out = x",
    ),
    _mistake(
        "scaled-at-test-time",
        "test outputs are scaled although training outputs were rescaled",
        {"test_scale": lambda v: v.keep},
        "The expectation is corrected twice.",
        ("if mode == 'test':", "    out = x  # inverted dropout: the factor 1/keep is in training"),
        "(104) is for training; at test time out = x",
    ),
    _mistake(
        "not-inverted",
        "this is the original form (scaled by keep at test time), not inverted dropout",
        {"scale": lambda _: 1.0, "test_scale": lambda v: v.keep},
        "It is right by itself, but the model must know the rate at test time, and all frameworks use the other form.",
    ),
    _backward(
        "backward-new-mask",
        "the backward draws a new mask",
        {"back_agrees": lambda v: v.keep**2 + v.drop**2},
        "Gradients pass where the forward was off.",
    ),
    _backward(
        "backward-mask-not-used",
        "the backward does not use the mask",
        {"back_agrees": lambda v: v.kept, "back_kept": lambda _: 1.0, "back_scale": lambda _: 1.0},
        "Units that were off get a gradient.",
    ),
    _backward(
        "backward-only-scaled",
        "the backward rescales but does not use the mask",
        {"back_agrees": lambda v: v.kept, "back_kept": lambda _: 1.0},
        "Units that were off get a gradient.",
    ),
    _backward(
        "backward-not-rescaled",
        "the backward uses the mask without the factor",
        {"back_scale": lambda _: 1.0},
        "The forward multiplied by mask/keep, and so must the backward.",
    ),
    _backward(
        "backward-divided-by-drop-rate",
        "the backward divides by the drop rate",
        {"back_scale": lambda v: 1 / v.drop},
        "The forward multiplied by mask/keep, and so must the backward.",
    ),
    _backward(
        "backward-active-at-test-time",
        "the backward of test mode uses a mask",
        {"test_back_kept": lambda v: v.kept, "test_back_scale": lambda v: v.scale},
        "At test time out = x, so dx = dout.",
    ),
    _mistake(
        "input-modified",
        "an argument is modified in place",
        {},
        "The caller's array changes under its feet.",
        ("out = x * mask  # not x *= mask", "dx = dout * mask  # not dout *= mask"),
        group="inputs",
    ),
)

SUBJECT = Subject(
    name="dropout",
    compute=compute,
    groups=GROUPS,
    mistakes=MISTAKES,
    conventions=CONVENTIONS,
    tolerances=dict.fromkeys(("kept", "test_kept", "back_kept", "test_back_kept", "back_agrees"), 0.03),
)
