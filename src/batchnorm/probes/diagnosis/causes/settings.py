"""Causes in settings of the layers: dtype, eps, no running statistics, padding."""

from __future__ import annotations

import math

import torch

from batchnorm.probes.diagnosis.causes.form import FAR, Cause, Found, losses_of, names_of, some_of
from batchnorm.probes.diagnosis.evidence import Comparison, Evidence
from batchnorm.probes.diagnosis.static import HALF_HIGH, HALF_LOW


def _half_buffers(e: Evidence) -> Found | None:
    half = [f for f in e.tracked if f.half]
    found, low, high = [], 0, 0
    for f in half:
        c = e.compared.get(f.name)
        lost = f.zero if c is None else int(((c.running_var == 0) & (c.var > 0) & (c.var < HALF_LOW)).sum())
        over = f.bad_vars if c is None else int((~c.running_var.isfinite() & (c.var > HALF_HIGH)).sum())
        if lost or over or f.bad_vars:
            found.append(f.name)
            low, high = low + lost, high + max(over, f.bad_vars)
    if not found:
        return None
    return Found(
        0.97,
        (
            (
                f"running statistics are {half[0].dtype}: {low} channels have a variance below {HALF_LOW:.0e} "
                f"that became 0, {high} one above {HALF_HIGH:.0f} that became infinite ({some_of(found)})"
            ),
            *losses_of(e),
        ),
        tuple(found),
    )


def _other_eps(e: Evidence) -> Found | None:
    own = e.sides.at_own_eps
    if own is None or not e.sides.eps:
        return None
    eps, loss = min(e.sides.eps.items(), key=lambda item: item[1] if math.isfinite(item[1]) else math.inf)
    small = {}
    for f in e.tracked:
        c = e.compared.get(f.name)
        if c is not None:
            small[f.name] = float((c.running_var < 10 * max(eps, f.eps)).double().mean())
    share = max(small.values(), default=0.0)
    if share < 0.01 or not (loss < 0.8 * own or not math.isfinite(own)):
        return None
    far = sorted(c.distance for c in e.compared.values())
    settled = bool(far) and far[len(far) // 2] < FAR
    return Found(
        0.93 if settled else 0.5,
        (
            f"with eps {eps:g} in place of {e.tracked[0].eps:g} the loss is {loss:.4g} in place of {own:.4g}",
            f"in the worst layer {100 * share:.0f} % of the channels have a variance below 10 eps",
        ),
    )


def _no_running_statistics(e: Evidence) -> Found | None:
    without = [f for f in e.facts if not f.tracks]
    if not without:
        return None
    at = e.sides.mixes_normalization
    if e.passes is not None and not at:
        return None
    words = [f"{len(without)} of {len(e.facts)} layers keep no running statistics ({some_of(names_of(without))})"]
    if at:
        words.append(f"the output for one sample depends on the others of its batch from {e.sides.mixes} on")
    return Found(0.95 if at else 0.7, tuple(words), names_of(without) if len(without) < len(e.facts) else ())


def _padding_counted(e: Evidence) -> Found | None:
    valid = min(e.sides.valid, e.step.valid if e.step else 1.0)
    if not e.buffers_bad or valid > 0.98 or not e.compared:
        return None
    first = next(iter(e.compared))
    c, silent = e.compared[first], e.sides.silent.get(first)
    if silent is None:
        return None
    fitted = _mixture(c, silent.cpu().double(), most=1 / valid)
    if fitted is None:
        return None
    share, left = fitted
    if left > 0.1 or abs(share - 1) < 0.1:
        return None
    more = "more" if share < 1 else "less"
    return Found(
        0.91,
        (
            f"{100 * (1 - valid):.0f} % of the positions of a batch are padding, and padding enters the statistics",
            (
                f"the running statistics of {first} are those of these data with {more} padding: {share:.2f} "
                f"times the share of valid positions explains {100 * (1 - left):.0f} % of their distance"
            ),
            *losses_of(e),
        ),
    )


def _mixture(c: Comparison, silent: torch.Tensor, most: float) -> tuple[float, float] | None:
    """Fit a share s: running = s data + (1 - s) silence; return s and the unexplained share of the distance."""

    def distance(mean: torch.Tensor, var: torch.Tensor) -> float:
        scale = c.running_var.clamp_min(1e-9)
        ratio = (var.clamp_min(1e-9) / scale).log()
        return float(((mean - c.running_mean).square() / scale + ratio.square()).mean())

    whole = distance(c.mean, c.var)
    if not whole > 0 or not math.isfinite(whole):
        return None

    def mixed(s: float) -> float:
        mean = s * c.mean + (1 - s) * silent
        return distance(mean, s * c.var + s * (1 - s) * (c.mean - silent).square())

    candidates = [k / 50 for k in range(5, 150) if k / 50 <= most]
    best = min(candidates, key=mixed)
    return best, mixed(best) / whole


CAUSES: tuple[Cause, ...] = (
    Cause(
        "half-buffers",
        "Running statistics in half precision.",
        "variances below 6e-8 became 0, or above 65504 infinite",
        "keep the layers in float32: for m in norms: m.float(); then batchnorm.recalibrate(model, loader)",
        "The same checkpoint loaded in float32.",
        _half_buffers,
    ),
    Cause(
        "other-eps",
        "The eps of another framework.",
        "channels with a variance below 10 eps, and a better loss with another eps",
        "layer.eps = 1e-3 for weights of TensorFlow or Keras; the value is in the original's configuration",
        "The eps in the original's configuration.",
        _other_eps,
    ),
    Cause(
        "no-running-statistics",
        "Layers keep no running statistics: evaluation depends on the batch.",
        "buffers are None, and one sample's output changes with its companions",
        "track_running_stats=True, and train on; or evaluate in large shuffled batches",
        "Evaluate one sample alone.",
        _no_running_statistics,
    ),
    Cause(
        "padding-counted",
        "Padding is counted in the statistics.",
        "the running statistics are those of the data with another share of zeros",
        "with batchnorm.masked(model, lengths): around each forward, then batchnorm.recalibrate",
        "Append padding to a batch in training mode: the output changes.",
        _padding_counted,
    ),
)
