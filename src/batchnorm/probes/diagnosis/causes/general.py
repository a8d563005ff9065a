"""Explanations that are named where no other is, among them that batch normalization is not the cause."""

from __future__ import annotations

import math

from batchnorm.probes.diagnosis.causes.form import FEW, Cause, Found, losses_of, micro_batches
from batchnorm.probes.diagnosis.evidence import Evidence


def _accumulation(e: Evidence) -> Found | None:
    micro = micro_batches(e)
    if micro is None or e.step is None:
        return None
    calls, samples = micro
    return Found(
        0.94,
        (
            (
                f"one optimizer step is {calls} forwards of {samples} samples: each normalizes by itself, and "
                f"moves the running statistics; the batch of {e.step.given} exists for the optimizer only"
            ),
            *losses_of(e),
        ),
    )


def _growing(e: Evidence) -> Found | None:
    if e.passes is None or not e.buffers_bad:
        return None
    found = {}
    for name, seen in e.passes.seen_as_loaded.items():
        largest = sorted(v for v in seen.largest if math.isfinite(v))
        if len(largest) >= 4 and largest[-1] > 100 * largest[len(largest) // 2] > 0:
            found[name] = largest[-1] / largest[len(largest) // 2]
    if not found:
        return None
    name = max(found, key=found.__getitem__)
    return Found(
        0.6,
        (
            f"the largest variance of a batch in {name or '(the model)'} is {found[name]:.3g} times the median",
            *losses_of(e),
        ),
        tuple(found),
    )


def _transduction(e: Evidence) -> Found | None:
    if e.passes is None or not e.batch_bad or e.passes.samples / e.passes.number > FEW or e.moving:
        return None
    return Found(
        0.62, ("only the statistics of a small batch serve, and no layer is meant to keep others", *losses_of(e))
    )


def _elsewhere(e: Evidence) -> Found | None:
    if not e.sides.mixes or e.sides.mixes_normalization:
        return None
    return Found(
        0.93,
        (
            (
                f"the output for one sample depends on the others of its batch from {e.sides.mixes} on: no batch "
                "normalization"
            ),
        ),
        (e.sides.mixes,),
    )


CAUSES: tuple[Cause, ...] = (
    Cause(
        "accumulation",
        "Accumulated gradients are taken for a large batch.",
        "several forwards of fewer samples in an optimizer step",
        "with batchnorm.deferred(model): around the forwards of a step; normalization stays that of the micro-batch",
        "Train with the micro-batch size alone: the statistics are the same.",
        _accumulation,
    ),
    Cause(
        "growing-activations",
        "Activations grow without bound in some batches.",
        "the largest variance of a batch is far above the median",
        "clip gradients, or lower the learning rate; then batchnorm.recalibrate(model, loader)",
        "Log the running variance over training: it grows.",
        _growing,
    ),
    Cause(
        "transduction",
        "The method uses the statistics of its few test samples by design.",
        "only batch statistics are good, at a few samples",
        "say so when reporting: the result holds for batches only",
        "The method's description.",
        _transduction,
    ),
    Cause(
        "not-batch-normalization",
        "Another module mixes the samples of a batch.",
        "one sample's output changes with its companions at a module that is no batch normalization",
        "correct that module: a mean or a maximum over the batch dimension?",
        "The outputs of that module for one sample alone, and with others.",
        _elsewhere,
    ),
)
