"""Causes in what the running statistics hold: never written, lost, not arrived, or spoilt by a batch."""

from __future__ import annotations

import math

from batchnorm.probes.diagnosis.causes.form import FEW, Cause, Found, at_start, losses_of, names_of, some_of
from batchnorm.probes.diagnosis.evidence import Comparison, Evidence

#: Remainder of the start values in a running average, above which it has not arrived.
REMAINDER = 0.01
#: Weight of a new batch from which on the running statistics are mostly those of the last few batches.
LARGE_MOMENTUM = 0.5


def _never_written(e: Evidence) -> Found | None:
    start = at_start(e)
    if not start or len(start) < len(e.tracked) or any(f.counter for f in start) or e.static.average:
        return None
    if any(f.frozen for f in start) or not (e.gap if e.passes else any(f.trained for f in start)):
        return None
    trained = sum(f.trained for f in start)
    return Found(
        0.95 if e.passes else 0.7,
        (
            (
                f"running mean exactly 0, variance exactly 1 and counter 0 in all {len(start)} layers, "
                f"while weight and bias have learnt in {trained}"
            ),
            *losses_of(e),
        ),
    )


def _buffers_lost(e: Evidence) -> Found | None:
    if e.static.missing:
        return Found(
            0.97,
            (
                (
                    f"the checkpoint lacks {len(e.static.missing)} buffers of running statistics: "
                    f"{some_of(e.static.missing)}"
                ),
                *losses_of(e),
            ),
            tuple(dict.fromkeys(name.rpartition(".")[0] for name in e.static.missing)),
        )
    start = [f for f in at_start(e) if not f.counter]
    others = [f for f in e.tracked if not f.at_start]
    if not start or not others or (e.passes is not None and not e.gap):
        return None
    if e.passes is None and not any(f.trained for f in start):
        return None
    return Found(
        0.95,
        (
            (
                f"mean 0, variance 1, counter 0 in {len(start)} of {len(e.tracked)} layers "
                f"({some_of(names_of(start))}); the others hold statistics"
            ),
            *losses_of(e),
        ),
        names_of(start),
    )


def _too_few_steps(e: Evidence) -> Found | None:
    left = {}
    for f in e.moving:
        if f.momentum is not None and 0 < f.momentum < 1 and f.counter:
            left[f.name] = (1 - f.momentum) ** f.counter
    slow = [name for name, rest in left.items() if rest > REMAINDER]
    if not slow or not e.buffers_bad:
        return None
    fits = [_fits_start(e.compared[name], left[name]) for name in slow if name in e.compared]
    fit = sorted(fits)[len(fits) // 2] if fits else 0.0
    f = next(f for f in e.moving if f.name == slow[0])
    return Found(
        0.92 if fit > 0.5 else 0.65,
        (
            (
                f"momentum {f.momentum:g} and {f.counter:.0f} batches: {100 * left[f.name]:.3g} % of the "
                "running statistics is still the start values 0 and 1"
            ),
            f"that remainder explains {100 * max(0.0, fit):.0f} % of the distance of the variances (median layer)",
            *losses_of(e),
        ),
        tuple(slow) if len(slow) < len(e.moving) else (),
    )


def _fits_start(c: Comparison, rest: float) -> float:
    """Return the share of the distance of logarithmic variances that a remainder of the start explains."""
    predicted = rest + (1 - rest) * c.var
    tiny = 1e-12
    far = (c.running_var.clamp_min(tiny) / c.var.clamp_min(tiny)).log().abs().mean()
    near = (c.running_var.clamp_min(tiny) / predicted.clamp_min(tiny)).log().abs().mean()
    return float(1 - near / far) if far > 0 else 0.0


def _momentum_zero(e: Evidence) -> Found | None:
    stopped = [f for f in e.moving if f.momentum == 0]
    if not stopped or (e.passes is not None and not e.gap):
        return None
    seen = [f for f in stopped if f.counter and f.at_start]
    return Found(
        0.98 if seen else 0.7,
        (
            f"momentum is 0 in {len(stopped)} layers: a batch has no weight in the running statistics",
            *((f"counter {seen[0].counter:.0f}, and mean 0, variance 1 as at the start",) if seen else ()),
            *losses_of(e),
        ),
        names_of(stopped) if len(stopped) < len(e.moving) else (),
    )


def _momentum_reversed(e: Evidence) -> Found | None:
    large = [f for f in e.moving if f.momentum is not None and f.momentum >= LARGE_MOMENTUM]
    if not large or not e.buffers_bad:
        return None
    f = large[0]
    return Found(
        0.88,
        (
            (
                f"momentum {f.momentum:g} in {len(large)} layers: in torch it is the weight of the new batch, so "
                f"{100 * (f.momentum or 0):.3g} % of the running statistics is the last batch"
            ),
            *losses_of(e),
        ),
        names_of(large) if len(large) < len(e.moving) else (),
    )


def _few_values(e: Evidence) -> Found | None:
    if e.passes is None or not e.gap:
        return None
    small = [f.name for f in e.moving if 0 < e.values(f.name) <= FEW and f.name in e.passes.seen]
    if not small:
        return None
    m = min(e.values(name) for name in small)
    joined, apart = e.sides.joined, e.sides.ordered
    depends = joined is not None and apart is not None and abs(joined - apart) > 0.1 * max(abs(joined), abs(apart))
    samples = e.passes.samples / e.passes.number
    if samples > FEW / 2 or not (depends or e.batch_bad):
        return None
    words = [
        f"{m} values per channel in a batch of {samples:.0f}: training divides by the variance over {m}, evaluation by "
        f"one that is {m}/{m - 1} times as large, a factor of {math.sqrt(m / (m - 1)):.4g} in the outputs"
        if m > 1
        else "one value per channel"
    ]
    if depends:
        words.append(
            f"with batch statistics the loss is {apart:.4g} in these batches, {joined:.4g} in one batch of all"
        )
    return Found(0.81 if e.batch_bad or m < 8 else 0.76, (*words, *losses_of(e)))


def _single_value_batch(e: Evidence) -> Found | None:
    bad = [f for f in e.tracked if f.bad_vars and not f.bad_means and not f.half]
    if not bad or not e.static.finite:
        return None
    words = [
        (
            f"running variance not finite in {len(bad)} layers ({some_of(names_of(bad))}), running mean finite: the "
            "unbiased variance of one value is 0/0"
        )
    ]
    if e.remainder == 1:
        words.append("the last batch of the loader holds one sample")
    return Found(0.97, (*words, *losses_of(e)), names_of(bad))


def _nonfinite_batch(e: Evidence) -> Found | None:
    bad = [f for f in e.tracked if f.bad_means]
    if not bad or not e.static.finite:
        return None
    return Found(
        0.97,
        (
            (
                f"running mean not finite in {len(bad)} of {len(e.tracked)} layers, parameters finite; "
                f"{bad[0].name or '(the model)'} is the first in order"
            ),
            *losses_of(e),
        ),
        (bad[0].name,),
    )


CAUSES: tuple[Cause, ...] = (
    Cause(
        "never-written",
        "The running statistics were never written.",
        "mean exactly 0, variance exactly 1, counter 0 in every layer",
        "model = batchnorm.recalibrate(model, loader)",
        "Print num_batches_tracked after one training step: it must be 1.",
        _never_written,
    ),
    Cause(
        "buffers-lost",
        "Buffers were lost between saving and loading.",
        "the checkpoint lacks running_mean or running_var, or some layers are at the start values",
        "save model.state_dict() whole, and load it with strict=True; else batchnorm.recalibrate(model, loader)",
        "model.load_state_dict(checkpoint) without strict=False names the missing keys.",
        _buffers_lost,
    ),
    Cause(
        "too-few-steps",
        "Too few steps for the momentum.",
        "(1 - momentum) ** steps above 1 %, and recalibration closes the gap",
        "model = batchnorm.recalibrate(model, loader); for the next training momentum=0.1, or batchnorm.Debiased()",
        "Train on with a learning rate of 0: the gap shrinks by the factor (1 - momentum) in each step.",
        _too_few_steps,
    ),
    Cause(
        "momentum-zero",
        "Momentum is 0: batches never enter the running statistics.",
        "momentum 0, counter above 0, buffers as at the start",
        "layer.momentum = 0.1, and batchnorm.recalibrate(model, loader)",
        "running_mean is the same tensor of zeros before and after a training step.",
        _momentum_zero,
    ),
    Cause(
        "momentum-reversed",
        "Momentum was read the other way round.",
        "momentum 0.5 or more: the running statistics are those of the last batch",
        "layer.momentum = 1 - layer.momentum, and batchnorm.recalibrate(model, loader)",
        "Evaluate after each of a few steps with a learning rate of 0: the loss jumps with every batch.",
        _momentum_reversed,
    ),
    Cause(
        "few-values",
        "Few values per channel in a batch.",
        "batch statistics give another loss in other batch sizes; recalibrated ones do not",
        "train with larger batches, or batchnorm.BatchNorm2d(..., statistics=batchnorm.Renorm()), or SyncBatchNorm",
        "Train a few epochs with four times the batch size: the gap shrinks.",
        _few_values,
    ),
    Cause(
        "single-value-batch",
        "A batch with one value per channel entered the running statistics.",
        "running variance not finite, running mean finite",
        "DataLoader(..., drop_last=True), and batchnorm.recalibrate(model, loader)",
        "len(dataset) % batch_size is 1.",
        _single_value_batch,
    ),
    Cause(
        "nonfinite-batch",
        "One batch with values that are not finite entered the running statistics.",
        "buffers not finite, parameters finite; the first such layer in order",
        "model = batchnorm.recalibrate(model, loader); batchnorm.convert(model): its layers skip such batches",
        "torch.isfinite of the inputs of that layer, in the training log or under autocast.",
        _nonfinite_batch,
    ),
)
