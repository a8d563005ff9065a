"""Causes in data of several kinds behind one set of statistics."""

from __future__ import annotations

import torch

from batchnorm.probes.diagnosis.causes.form import CORRELATED, FAR, Cause, Found, losses_of
from batchnorm.probes.diagnosis.evidence import Evidence


def _last_domain(e: Evidence) -> Found | None:
    p = e.passes
    if p is None or not e.gap or p.number < 6 or len(p.firsts) != p.number:
        return None
    name = next(iter(p.seen_as_loaded))
    if name not in e.running:
        return None
    mean, var = (t.cpu().double() for t in e.running[name])
    gaps = torch.tensor(p.as_loaded.losses) - torch.tensor(p.batch.losses)
    distance = torch.tensor([_apart(s, mean, var) for s in p.firsts])
    if not bool(gaps.isfinite().all()):
        return None
    order = distance.argsort()
    jumps = distance[order].diff()
    fewest = max(2, p.number // 8)  # batches of a kind
    inner = jumps[fewest - 1 : len(jumps) - fewest + 1]
    if not len(inner) or float(inner.max()) < 0.4 * float(jumps.sum()):
        return None
    cut = int(inner.argmax()) + fewest
    near, far = order[:cut], order[cut:]
    among = distance[far].mean() - distance[near].mean()
    inside = max(float(distance[near].std()), float(distance[far].std()), 1e-9)
    good, bad = float(gaps[near].mean()), float(gaps[far].mean())
    if among < 4 * inside or bad < 0.1 * abs(p.as_loaded.loss) or good > 0.34 * bad or (p.between or 0) < CORRELATED:
        return None
    if p.recalibrated.loss < p.batch.loss + 0.1 * (p.as_loaded.loss - p.batch.loss):
        return None  # one set of statistics serves all batches
    return Found(
        0.9,
        (
            (
                f"batches fall into two kinds: {len(near)} whose statistics the running ones match (within "
                f"{distance[near].mean():.2g} deviations), and {len(far)} that are {distance[far].mean():.2g} away"
            ),
            f"as loaded, the first are {good:.3g} worse than with their own statistics, the second {bad:.3g}",
            *losses_of(e),
        ),
    )


def _apart(found: object, mean: torch.Tensor, var: torch.Tensor) -> float:
    m, v = (t.cpu().double().view(-1) for t in (found.mean, found.var))  # type: ignore[attr-defined]
    scale = torch.minimum(v, var.clamp_min(0)) + 1e-5
    return float(((m - mean).square() / scale + (v.clamp_min(1e-9) / var.clamp_min(1e-9)).log().square()).mean().sqrt())


def _several_distributions(e: Evidence) -> Found | None:
    if e.passes is None or not e.gap:
        return None
    found = {}
    for name, seen in e.passes.seen.items():
        sites = [s.whole for s in seen.sites.values() if s.count > 1 and s.whole is not None]
        if len(sites) < 2:
            continue
        first, *rest = sites
        apart = max(
            float(((s.mean - first.mean).square() / (torch.minimum(s.var, first.var) + 1e-5)).mean().sqrt())
            + float(((s.var + 1e-5) / (first.var + 1e-5)).log().abs().mean())
            for s in rest
        )
        if apart > FAR:
            found[name] = (len(sites), apart)
    if not found:
        return None
    name, (calls, apart) = max(found.items(), key=lambda item: item[1][1])
    return Found(
        0.9,
        (
            (
                f"{name or '(the model)'} is called {calls} times in a forward, on inputs whose statistics differ by "
                f"{apart:.3g} (deviations of the mean, and logarithm of the variance)"
            ),
            *losses_of(e),
        ),
        tuple(found),
    )


CAUSES: tuple[Cause, ...] = (
    Cause(
        "last-domain",
        "The running statistics are those of the last domain.",
        "batches of several kinds; as loaded one kind is good and another bad",
        "batchnorm.BatchNorm2d(..., statistics=batchnorm.Keyed([...])), or mix the domains in each batch",
        "Evaluate each domain by itself after recalibrating on it: no gap in either.",
        _last_domain,
    ),
    Cause(
        "several-distributions",
        "One layer serves inputs of several distributions.",
        "several calls in a forward, whose statistics differ",
        "one layer for each place, or batchnorm.BatchNorm2d(..., statistics=batchnorm.Keyed([...]))",
        "Give each call a copy of the layer and recalibrate: the gap is gone.",
        _several_distributions,
    ),
)
