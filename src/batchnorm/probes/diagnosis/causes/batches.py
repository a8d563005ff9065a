"""Causes in how batches are made, and in what reaches the layers only in training."""

from __future__ import annotations

import math

from batchnorm.probes.diagnosis.causes.form import CORRELATED, FAR, SORTED, Cause, Found, losses_of
from batchnorm.probes.diagnosis.evidence import Evidence
from batchnorm.probes.diagnosis.static import Facts


def _class_sorted(e: Evidence) -> Found | None:
    s = e.sides
    if s.purity is None or s.purity < SORTED or s.ordered is None or s.shuffled is None:
        return None
    uses_batch = [f for f in e.facts if not f.tracks] or e.static.stuck
    if not uses_batch or s.ordered < 1.2 * s.shuffled:
        return None
    return Found(
        0.99,
        (
            (
                f"{len(uses_batch)} layers normalize with the statistics of the batch in evaluation too, and "
                f"batches are {100 * s.purity:.0f} % sorted by class"
            ),
            f"loss {s.ordered:.4g} in this order, {s.shuffled:.4g} shuffled",
        ),
    )


def _correlated(e: Evidence) -> Found | None:
    p = e.passes
    if p is None or not e.batch_bad or (p.between or 0) < CORRELATED:
        return None
    purity = e.sides.purity or 0.0
    return Found(
        0.84 if purity < SORTED else 0.62,
        (
            (
                f"the means of the batches vary {p.between:.3g} times as much as those of independent samples would: "
                "samples of a batch belong together, and training removed what they share"
            ),
            *losses_of(e),
        ),
    )


def _dropout_before(e: Evidence) -> Found | None:
    if not e.buffers_bad:
        return None
    found = {}
    for name, ratio in e.sides.dropped.items():
        c = e.compared.get(name)
        if c is None or not ratio > 1.1:
            continue
        held = 1 / c.ratio if c.ratio > 0 else math.nan
        if abs(math.log(held / ratio)) < abs(math.log(held)):
            found[name] = (ratio, held)
    if not found:
        return None
    name, (ratio, held) = max(found.items(), key=lambda item: item[1][0])
    return Found(
        0.85,
        (
            (
                f"dropout comes before {len(found)} layers: with it on, the variance in {name or '(the model)'} is "
                f"{ratio:.3g} times that with it off; the running variance is {held:.3g} times"
            ),
            *losses_of(e),
        ),
        tuple(found) if len(found) < len(e.moving) else (),
    )


def _fact(e: Evidence, name: str) -> Facts:
    return next(f for f in e.static.facts if f.name == name)


def _other_preprocessing(e: Evidence) -> Found | None:
    p = e.passes
    if p is None or not e.buffers_bad or len(e.compared) < 2:
        return None
    if p.as_loaded.loss - p.recalibrated.loss < 0.7 * (p.as_loaded.loss - min(p.batch.loss, p.recalibrated.loss)):
        return None  # one set of statistics does not serve these data
    first, *rest = e.compared
    here, others = e.compared[first].distance, sorted(e.compared[n].distance for n in rest)
    if here < FAR or here < 3 * others[len(others) // 2] or _fact(e, first).at_start:
        return None
    c = e.compared[first]
    return Found(
        0.87,
        (
            (
                f"the inputs of the first layer, {first or '(the model)'}, differ from what it holds by {c.shift:.3g} "
                f"deviations in the mean and {c.ratio:.3g} times in the variance"
            ),
            f"after it, with batch statistics, the others differ by {others[len(others) // 2]:.2g} (median)",
            *losses_of(e),
        ),
        (first,),
    )


CAUSES: tuple[Cause, ...] = (
    Cause(
        "class-sorted",
        "Evaluation with batch statistics reads one class after the other.",
        "with batch statistics the loss in this order is not that of shuffled batches",
        "shuffle the evaluation, or keep running statistics: track_running_stats=True",
        "DataLoader(..., shuffle=True) for the evaluation.",
        _class_sorted,
    ),
    Cause(
        "correlated-batches",
        "Samples of a batch belong together (windows of a recording, frames of a video).",
        "means of batches vary far more than those of independent samples; only batch statistics are good",
        "draw the samples of a batch from many recordings: DataLoader(..., shuffle=True)",
        "Shuffle samples over batches, with batch statistics: the loss gets as bad as in evaluation.",
        _correlated,
    ),
    Cause(
        "dropout-before",
        "Dropout in front of batch normalization.",
        "the variance of a layer's inputs is larger with dropout on, and the running variance is that one",
        "model = batchnorm.recalibrate(model, loader); or move dropout behind the last batch normalization",
        "Recalibrate on the training data: dropout is off, and the gap is gone.",
        _dropout_before,
    ),
    Cause(
        "other-preprocessing",
        "Evaluation prepares its inputs in another way than training.",
        "the first layer is far from what it holds, those after it are not; batch statistics hide it",
        "use the transforms of training in evaluation (scale, mean, order of channels)",
        "Feed training data through the evaluation path: the gap is the same.",
        _other_preprocessing,
    ),
)
